"""A study's file (question, variants, seeds, budget), and the runs that it stands for, each with what identifies it.

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

A run is identified by hashes of what decides its outcome: its definition (configuration, budget and threads), its data
and its seed. Runs are resolved anew each time; those whose identity has results are done, and results of a definition
that has changed stay apart.

Only what differs from the defaults of the configuration's dataclasses enters the hash. Say that a variant resolves to

    {"name": "cpu-demo", "data": {"path": "data/default"}, "optim": {"muon_lr": 0.02, "beta1": 0.9}, "train": {…}}

where beta1's default is 0.9. The name and the path do not decide a score, and beta1 is as if it were not there, so what
is hashed is {"optim.muon_lr": 0.02, …}. A field that is added later is not in the hash of any run that leaves it at its
default: earlier results stay valid. A field that is renamed changes the hash of every run that sets it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import re
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from bytegolf.config import Config, flatten, from_dict, read_toml
from bytegolf.config.reading import Ranged, doc
from bytegolf.data.dataset import data_hash, dataset_entry, short_hash, validation_bytes
from bytegolf.errors import BytegolfError, counted, shown
from bytegolf.files import disk_errors, folder_name

# ------------------------------------------------------------------------------------------------------- a study's file


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


# ------------------------------------------------------------------------------------------------------------- its runs


_NOT_OF_THE_RESULT = {
    "name",
    "about",
    "data.path",  # what lies there counts, not where
    "train.seed",
    "train.validate_every",
    "train.validate_tokens",
    "train.checkpoint_every",
    "train.keep_checkpoints",
    "train.log_every",
    "eval.batch",
}
"""Configuration keys that do not change what a run scores, or that its identity holds under another name."""


class Identity(NamedTuple):
    """What tells a run from others: two runs of one identity would score alike."""

    definition: str
    """hash of configuration, budget and threads"""
    seed: int
    data: str
    """hash of the data; empty: whatever data"""


@dataclass(frozen=True)
class Job:
    """One run of a study."""

    variant: Variant
    identity: Identity
    config: Config
    """as it is trained"""
    folder: Path
    """the run's own"""

    def __hash__(self) -> int:
        return hash((self.identity, self.variant.name))

    @property
    def seed(self) -> int:
        """The seed of its weights and of the order of its data."""
        return self.identity.seed

    @property
    def label(self) -> str:
        """What people call it."""
        return f"{self.variant.name}, seed {self.seed}"


def jobs(study: Study, only: Iterable[str] = (), *, without_data: bool = False) -> list[Job]:
    """The runs of ``study``, a seed of every variant before the next one; ``only`` these variants, if any are named.

    ``without_data`` allows for data folders that are not there: such runs can be looked up, but not be trained.

    Raises BytegolfError for a name that is no variant, a configuration that cannot be, or missing data.
    """
    wanted, names = list(only), [variant.name for variant in study.variants]
    for name in wanted:
        if name not in names:
            raise BytegolfError(f"{study.path} has no variant {name!r}: there are {', '.join(map(repr, names))}")
    variants = [variant for variant in study.variants if not wanted or variant.name in wanted]
    hashes: dict[tuple[Path, str], str] = {}
    bases = []
    for variant in variants:
        try:
            config = _base(study, variant)
            place = (variant.data, config.data.tokenizer)
            if place not in hashes:
                with contextlib.suppress(BytegolfError) if without_data else contextlib.nullcontext():
                    hashes[place] = data_hash(*place)
            bases.append((variant, config, hashes.setdefault(place, "")))
        except BytegolfError as error:
            raise BytegolfError(f"{study.path}, variant {variant.name!r}: {error}") from error
    _check_one_text(study, [place for place, known in hashes.items() if known])
    found = []
    for seed in study.config.seeds:
        for variant, config, data in bases:
            definition = definition_hash(config, study.config.budget, study.config.threads, study.config.eval_limit)
            slug = re.sub(r"[^A-Za-z0-9.=_-]+", "-", variant.name).strip("-.")[:60]
            folder = study.runs / f"{slug}-seed{seed}-{definition[:6]}{data[:6]}"
            seeded = _seeded(config, study, variant, seed) if data else config
            found.append(Job(variant, Identity(definition, seed, data), seeded, folder))
    return found


def _check_one_text(study: Study, places: Iterable[tuple[Path, str]]) -> None:
    """Raise if the validation texts in data folders differ in size: their scores must not be compared."""
    sizes = {folder: size for folder, tokenizer in places if (size := validation_bytes(folder, tokenizer)) is not None}
    if len(set(sizes.values())) > 1:
        told = ", ".join(f"{counted(size, 'byte')} in {folder}" for folder, size in sizes.items())
        raise BytegolfError(
            f"{study.path}: the variants would be scored on different validation texts ({told}): prepare all data with "
            "the same validation documents"
        )


def _base(study: Study, variant: Variant) -> Config:
    """The variant's configuration without its budget in steps, which for one in bytes depends on the data."""
    budget = study.config.budget
    seconds = {"train.max_seconds": budget.seconds, "train.clock": budget.clock if budget.seconds else "wall"}
    spend = {**seconds, "train.max_steps": budget.steps or (1 if budget.bytes else 0)}
    changes: dict[str, Any] = {**variant.overrides, "data.path": str(variant.data), **spend}
    return Config.load(variant.preset, changes)


def _seeded(config: Config, study: Study, variant: Variant, seed: int) -> Config:
    train = dataclasses.replace(config.train, seed=seed)
    budget, limit = study.config.budget, study.config.eval_limit
    if budget.bytes:
        tokens = budget.bytes / bytes_per_token(variant.data, config.data.tokenizer, "train")
        train = dataclasses.replace(train, max_steps=max(1, round(tokens / train.batch_tokens)))
    if limit:
        limit = max(1, round(limit / bytes_per_token(variant.data, config.data.tokenizer, "val")))
    return dataclasses.replace(config, train=train, eval=dataclasses.replace(config.eval, limit=limit))


def bytes_per_token(data: Path, tokenizer: str, split: str) -> float:
    """The mean original bytes that a token of a split stands for, from the manifest."""
    entry = dataset_entry(data, tokenizer)
    stats = entry.stats if entry is not None else {}
    tokens, size = stats.get(f"tokens_{split}"), stats.get(f"original_bytes_{split}")
    if not tokens or not size:
        raise BytegolfError(
            f"{data} does not record how many bytes its {tokenizer} tokens stand for, which a budget or a score "
            "in bytes needs: run prepare again, or give the budget in steps or seconds and no eval_limit"
        )
    return float(size) / float(tokens)


def definition_hash(config: Config, budget: BudgetConfig, threads: int, eval_limit: int) -> str:
    """The hash of what a run does, but for its data and its seed."""
    kept = {key: value for key, value in flatten(_unlike_default(config)).items() if key not in _NOT_OF_THE_RESULT}
    return short_hash({"config": kept, "budget": _unlike_default(budget), "threads": threads, "eval_limit": eval_limit})


def _unlike_default(value: Any) -> dict[str, Any]:
    """The fields of a configuration dataclass that differ from their defaults, nested ones likewise."""
    found = {}
    for field in dataclasses.fields(value):
        item = getattr(value, field.name)
        if item == field.default:
            continue
        found[field.name] = _unlike_default(item) if dataclasses.is_dataclass(item) else item
    return found
