"""A study's file: the question, the variants, their seeds and the budget that all of them share.

    name = "outer-layers"
    question = "Does a second outer layer pay at equal training time?"
    preset = "cpu-demo"
    control = "one"
    seeds = [1, 2, 3]

    [budget]
    seconds = 60

    [variants.one]
    overrides.model.network.encoder.layers = 1

    [variants.two]
    overrides.model.network.encoder.layers = 2

A ``[grid]`` gives axes instead (``"model.network.router.target" = [6, 9]``): every variant is trained at each point.
"""

from __future__ import annotations

import itertools
import json
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from bytegolf.config import flatten, from_dict, read_toml
from bytegolf.config.fields import Ranged, doc
from bytegolf.errors import BytegolfError, counted, shown
from bytegolf.files import disk_errors, folder_name


@dataclass(frozen=True)
class BudgetConfig(Ranged):
    """What every run of a study may spend on training: seconds, steps or bytes."""

    seconds: float = doc("training seconds; 0 = another budget", 0.0, least=0)
    clock: Literal["wall", "processor"] = doc("train.clock: what the seconds are counted on", "wall")
    steps: int = doc("optimiser steps; 0 = another budget", 0, least=0)
    bytes: int = doc("bytes of training text, at the data's mean bytes per token; 0 = another budget", 0, least=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if sum(value > 0 for value in (self.seconds, self.steps, self.bytes)) != 1:
            raise BytegolfError("a budget is one of seconds, steps and bytes: set exactly one of them above 0")

    def __str__(self) -> str:
        if self.seconds:
            return f"{self.seconds:g} {'processor ' if self.clock == 'processor' else ''}seconds of training"
        return counted(self.steps, "step") if self.steps else f"{counted(self.bytes, 'byte')} of training text"


@dataclass(frozen=True)
class VariantConfig:
    """One system under study: what it has otherwise than the study's preset."""

    preset: str = doc("another preset or TOML file; empty = the study's", "")
    data: str = doc("another data folder; empty = the study's", "")
    overrides: dict[str, Any] = doc("configuration keys, as in a preset, on top of the study's own", {})


@dataclass(frozen=True)
class StudyConfig(Ranged):
    """A study file."""

    name: str = doc("name of the study: its results lie in a folder of that name")
    question: str = doc("the question, in one line")
    preset: str = doc("preset, or TOML file (beside the study's file, or below the current folder)")
    control: str = doc("the variant that the others are compared with")
    seeds: tuple[int, ...] = doc("seeds of weights and data order; every variant is trained with each")
    budget: BudgetConfig = doc("what a run may spend on training, the same for all")
    variants: dict[str, VariantConfig] = doc("the systems, by name", {})
    grid: dict[str, Any] = doc("axes: configuration key → list of values; their product multiplies the variants", {})
    overrides: dict[str, Any] = doc("configuration keys, as in a preset, for all variants", {})
    data: str = doc("folder made by `bytegolf prepare`", "data/default")
    compare: tuple[tuple[str, ...], ...] = doc("further pairs to compare, as [name, with which]", ())
    threads: int = doc("threads of each run", 1, least=1)
    gpus: int = doc("GPUs that Slurm or Ray is to give each run", 0, least=0)
    eval_limit: int = doc("score about so many bytes only: a subset, labelled as one; 0 = all", 0, least=0)
    trainer: str = doc("command that trains, such as a torchrun; empty = this Python's `-m bytegolf train`", "")
    results: str = doc("folder of results and tables, beside the file; empty = the study's name", "")
    runs: str = doc("folder of the runs, below the current one; empty = runs/<name>", "")

    def __post_init__(self) -> None:
        super().__post_init__()
        folder_name(self.name, "name")
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise BytegolfError(f"seeds is {list(self.seeds)}: give one or more, none of them twice")
        for number, seed in enumerate(self.seeds):
            if not 0 <= seed < 1 << 63:
                raise BytegolfError(f"seeds[{number}] is {seed}: give a number of at least 0 and below 2^63")
        for pair in self.compare:
            if len(pair) != 2:
                raise BytegolfError(f"compare has {list(pair)}: give pairs of names, as [name, with which]")


@dataclass(frozen=True)
class Variant:
    """A system of the study with everything that it resolves to, but for the seed."""

    name: str
    preset: str
    data: Path
    overrides: dict[str, Any]
    """dotted key → value, the study's own first"""


_OWN = {
    "train.seed": "seeds",
    "train.max_seconds": "budget",
    "train.max_steps": "budget",
    "train.clock": "budget",
    "eval.limit": "eval_limit",
    "data.path": "data",
}
"""Configuration keys that a study sets itself, and from what."""


@dataclass(frozen=True)
class Study:
    """A study file as read: its settings and its variants, in the order of the file."""

    path: Path
    config: StudyConfig
    variants: tuple[Variant, ...]

    @property
    def folder(self) -> Path:
        """Where results and tables go."""
        return self.path.parent / (self.config.results or self.config.name)

    @property
    def runs(self) -> Path:
        """Where the runs' own folders lie."""
        return Path(self.config.runs or f"runs/{self.config.name}")

    def pairs(self) -> list[tuple[str, str]]:
        """The comparisons wanted, as (name, with which): all with the control, then those that the file names."""
        own = [(variant.name, self.config.control) for variant in self.variants if variant.name != self.config.control]
        return own + [(first, second) for first, second in self.config.compare]


def read_study(path: Path) -> Study:
    """The study in a TOML file; an error that names file and key where it is none."""
    raw = read_toml(path, "study")
    try:
        config = from_dict(StudyConfig, raw)
        variants = tuple(_variants(config, path.parent))
        names = [variant.name for variant in variants]
        _check_names(config, names)
    except BytegolfError as error:
        raise BytegolfError(f"{path}: {error}") from error
    return Study(path, config, variants)


def is_study(path: Path) -> bool:
    """Whether a TOML file was meant as a study: it says what only studies say. BytegolfError if it is no TOML."""
    return bool(_STUDIES_OWN & read_toml(path, "file").keys())


_STUDIES_OWN = {"question", "control", "seeds"}


def _variants(config: StudyConfig, beside: Path) -> Iterator[Variant]:
    """The named variants at every point of the grid."""
    common = _checked(config.overrides, "overrides")
    axes = _checked(config.grid, "grid")
    for key, values in axes.items():
        if not isinstance(values, list) or not values:
            raise BytegolfError(f"grid.{key} is {values!r}: give a list of values")
    labels = _labels(list(axes))
    for name, variant in (config.variants or {"": VariantConfig()}).items():
        own = _checked(variant.overrides, f"variants.{name}.overrides")
        for values in itertools.product(*axes.values()):
            point = dict(zip(axes, values, strict=True))
            parts = [name] if name else []
            parts += [f"{labels[key]}={_plain(value)}" for key, value in point.items()]
            preset = _preset(variant.preset or config.preset, beside)
            yield Variant(" ".join(parts), preset, Path(variant.data or config.data), {**common, **point, **own})


def _checked(table: dict[str, Any], where: str) -> dict[str, Any]:
    flat = flatten(table)
    for key in flat:
        if key in _OWN:
            raise BytegolfError(f"{where} sets {key}, which is the same for all runs of a study: use its {_OWN[key]}")
    return flat


def _labels(keys: list[str]) -> dict[str, str]:
    """Short names of axes: as few of a key's last parts as tell it from the others."""
    found = {}
    for key in keys:
        parts = key.split(".")
        tails = [".".join(parts[-count:]) for count in range(1, len(parts) + 1)]
        alone = [tail for tail in tails if not any(other != key and f".{other}".endswith(f".{tail}") for other in keys)]
        found[key] = (alone or [key])[0]
    return found


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else f"{value:g}" if isinstance(value, float) else json.dumps(value)


def _preset(name: str, beside: Path) -> str:
    """A preset's name as it is; a file's path from the study's folder, if it lies there."""
    found = beside / name
    with disk_errors(found, "read"):
        return str(found) if name.endswith(".toml") and found.is_file() else name


def _check_names(config: StudyConfig, names: list[str]) -> None:
    if not config.variants and not config.grid:
        raise BytegolfError("there is nothing to compare: give variants, or a grid")
    wanted = [("control", config.control), *(("compare", name) for pair in config.compare for name in pair)]
    for key, name in wanted:
        if name not in names:
            raise BytegolfError(f"{key} names {name!r}, which is no variant: there are {', '.join(map(repr, names))}")
    looks: dict[str, str] = {}
    for name in names:
        if set("\n\r") & set(name) or not name.strip():
            raise BytegolfError(f"a variant is called {name!r}: give it a name of one line")
        if (other := looks.setdefault(_look(name), name)) != name or names.count(name) > 1:
            alike = f"two variants are called {name!r}" if other == name else f"{other!r} and {name!r} look alike"
            raise BytegolfError(f"{alike}: give each variant its own name")


def _look(name: str) -> str:
    """What people see of a name: accents however they are encoded, and spaces as one."""
    return " ".join(shown(unicodedata.normalize("NFKC", name)).split())
