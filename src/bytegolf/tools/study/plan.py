"""The runs of a study: each variant with each seed, its resolved configuration, and what identifies it.

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
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from bytegolf.config import Config, flatten
from bytegolf.data.manifest import data_hash, dataset_entry, short_hash, validation_bytes
from bytegolf.errors import BytegolfError, counted
from bytegolf.tools.study.definition import BudgetConfig, Study, Variant

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
