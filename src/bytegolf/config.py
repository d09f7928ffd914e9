"""The configuration of a run: frozen dataclasses whose nesting mirrors the modules they configure.

A preset or a TOML file gives the values, dotted overrides (``optim.muon_lr=0.02``) change some, and what results is
saved with the run. An unknown key, a missing key or a value of the wrong type is an error that names the key.

Each field's meaning and range stand once, in its ``doc``; errors are made from there.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import operator
import tomllib
import types
import typing
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Literal, TypeVar

from bytegolf.errors import BytegolfError
from bytegolf.files import disk_errors

T = TypeVar("T")


def doc(
    text: str,
    default: Any = dataclasses.MISSING,
    *,
    least: float | None = None,
    above: float | None = None,
    most: float | None = None,
    below: float | None = None,
) -> Any:
    """A dataclass field with its documentation and range beside it; without a default the field is required."""
    limits = {"least": least, "above": above, "most": most, "below": below}
    return dataclasses.field(default=default, metadata={"doc": text, **limits})


def _check_ranges(cls: type, values: dict[str, Any], dotted: str) -> None:
    """Raise if a number is not finite or outside its field's range; ``dotted`` goes before the field's name."""
    for field in dataclasses.fields(cls):
        value = values.get(field.name)
        if not isinstance(value, (int, float)):
            continue
        bounds = {key: field.metadata[key] for key in _HOLDS if field.metadata[key] is not None}
        if math.isfinite(value) and all(_HOLDS[key][1](value, bound) for key, bound in bounds.items()):
            continue
        wanted = " and ".join(f"{_HOLDS[key][0]} {bound:g}" for key, bound in bounds.items())
        raise BytegolfError(
            f"{dotted}{field.name} is {value}: give a {f'number {wanted}' if wanted else 'finite number'} "
            f"({field.metadata['doc']})"
        )


_HOLDS: dict[str, tuple[str, Callable[[float, float], bool]]] = {
    "least": ("of at least", operator.ge),
    "above": ("above", operator.gt),
    "most": ("up to", operator.le),
    "below": ("below", operator.lt),
}


class Ranged:
    """A dataclass whose fields keep to the ranges in their ``doc``, however it is made."""

    def __post_init__(self) -> None:
        _check_ranges(type(self), vars(self), "")


@dataclass(frozen=True)
class StageConfig(Ranged):
    """A stack of transformer blocks at one resolution (S0's block: PR #1104, PR #1191 and the official baseline)."""

    layers: int = doc("number of blocks", least=0)
    dim: int = doc("model width D", least=1)
    heads: int = doc("query heads; dim must be a multiple of it, and the head width even", least=1)
    kv_heads: int = doc("key/value heads (grouped-query attention); heads must be a multiple of it", least=1)
    mlp_mult: float = doc("hidden width of the MLP, as a multiple of dim", 2.0, above=0)
    window: int = doc("positions a query sees, itself included (local attention); 0 = all (full causal)", 0, least=0)
    rope_base: float = doc("base of the rotary frequencies", 10_000.0, above=0)
    qk_gain: float = doc("initial gain of the RMS-normalised queries, one a head", 1.5)
    lr_mult: float = doc("learning-rate multiplier of this stage's parameters", 1.0, least=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.dim % self.heads or (self.dim // self.heads) % 2:
            raise BytegolfError(
                f"dim {self.dim} does not split into {self.heads} heads of even width: change dim or heads"
            )
        if self.heads % self.kv_heads:
            raise BytegolfError(
                f"{self.heads} heads do not share {self.kv_heads} kv_heads evenly: make heads a multiple of kv_heads"
            )


CapacityMode = Literal["exact", "bucketed", "fixed"]


@dataclass(frozen=True)
class RouterConfig(Ranged):
    """Where chunks begin, how many there is room for, and how gradients cross the chunking (S2, PR #1104; S3, PR #1305;
    arXiv 2507.07955, equations 4-10)."""

    target: float = doc("N: wanted positions per chunk", above=1)
    loss_weight: float = doc("weight of the ratio loss", 0.03, least=0)
    grad_scale: float = doc("S2's 'LR diff' λ: gradients inside the main stage are scaled by it; 1 = off", 1.0, above=0)
    surprisal_weight: float = doc(
        "weight of the loss that draws boundaries to tokens that were hard to predict; 0 = off (outermost level only)",
        0.0,
        least=0,
    )
    lr_mult: float = doc("learning-rate multiplier of the router's matrices, on top of the encoder's", 1.0, least=0)
    capacity: CapacityMode = doc(
        "room for chunks: exact = the most that a sequence of the batch has; bucketed = the next of a few sizes, so "
        "that shapes recur; fixed = a share of the level's length, beyond which boundaries are dropped (S3)",
        "exact",
    )
    capacity_divisor: float = doc("fixed: room for floor(length / it) chunks, at least 1", 4.0, least=1)
    capacity_buckets: int = doc(
        "bucketed: how many sizes, in geometric steps from length/(2 target) to the length", 8, least=1
    )


@dataclass(frozen=True)
class LevelConfig:
    """One level of an H-Net: encoder, router and decoder around a main network, which may be a level itself (S4)."""

    encoder: StageConfig = doc("blocks before the chunking, at this level's resolution")
    router: RouterConfig = doc("the chunking")
    main: StageConfig | LevelConfig = doc("the network over chunks: a stage, or a further level")
    decoder: StageConfig = doc("blocks after the chunks are expanded again")

    def __post_init__(self) -> None:
        if self.encoder.dim != self.decoder.dim:
            raise BytegolfError(
                f"encoder.dim {self.encoder.dim} and decoder.dim {self.decoder.dim} differ: make them equal"
            )
        if outer_dim(self.main) < self.encoder.dim:
            raise BytegolfError(
                f"main.dim {outer_dim(self.main)} is below encoder.dim {self.encoder.dim}: an inner network must be "
                "at least as wide as the one around it"
            )
        inner = self.main.router.capacity if isinstance(self.main, LevelConfig) else "exact"
        if inner == "fixed" != self.router.capacity:
            raise BytegolfError(
                f"main.router.capacity is 'fixed' inside a level of {self.router.capacity!r} capacity, whose number of "
                "chunks depends on the whole sequence: set router.capacity to 'fixed' as well"
            )


NetworkConfig = StageConfig | LevelConfig


def outer_dim(network: NetworkConfig) -> int:
    """The width at a network's own (outermost) resolution."""
    return network.dim if isinstance(network, StageConfig) else network.encoder.dim


def levels(network: NetworkConfig) -> list[LevelConfig]:
    """The chunking levels of a network, outermost first; empty for a flat model."""
    found: list[LevelConfig] = []
    while isinstance(network, LevelConfig):
        found.append(network)
        network = network.main
    return found


@dataclass(frozen=True)
class NgramConfig(Ranged):
    """Hash n-gram embeddings beside the tokens' own (BLT, arXiv 2412.09871)."""

    longest: int = doc("n-grams of 2 to so many tokens are looked up at each position; 1 = none", 1, least=1, most=32)
    bits: int = doc("each length has a table of 2^bits rows, which n-grams share by their hash", 15, least=4, most=24)
    dim: int = doc("width of a row", 64, least=1)


@dataclass(frozen=True)
class ModelConfig(Ranged):
    """A language model: tied embedding, a network, softcapped logits (S0)."""

    network: StageConfig | LevelConfig = doc("a stage (flat model) or a level (H-Net)")
    vocab_size: int = doc("size of the alphabet; 260 for byte260", 260, least=5, most=1 << 16)
    embed_std: float = doc("standard deviation of the initial embedding", 0.005, above=0)
    softcap: float = doc("logits z become softcap·tanh(z/softcap); 0 = off", 30.0, least=0)
    reset_at_bos: bool = doc("attention and chunking start afresh at every BOS token", False)
    ngrams: NgramConfig = doc("embeddings of the n-grams that end at a position", NgramConfig())

    def __post_init__(self) -> None:
        super().__post_init__()
        if any(level.router.capacity == "fixed" for level in levels(self.network)):
            check_fixed_capacity(self, "router.capacity")


def check_fixed_capacity(model: ModelConfig, where: str) -> None:
    """Raise if documents of ``model`` must not see each other, which a capacity that they share makes them."""
    if model.reset_at_bos:
        raise BytegolfError(
            f"{where} is 'fixed' and reset_at_bos is on, but documents that share a window's capacity depend on each "
            "other: choose 'bucketed' or 'exact', or turn reset_at_bos off"
        )


@dataclass(frozen=True)
class DataConfig:
    """Which shards a run reads, and how."""

    path: str = doc("folder written by `bytegolf prepare`", "data/default")
    tokenizer: str = doc("name of the tokenizer whose shards are used", "byte260")
    order: Literal["shuffled", "sequential"] = doc("order of the training windows within an epoch", "shuffled")


@dataclass(frozen=True)
class TrainConfig(Ranged):
    """Budget, batch, schedule and housekeeping of the training loop."""

    seq_len: int = doc("tokens in a training sequence; also the evaluation window", least=2)
    batch_tokens: int = doc("tokens in an optimiser step, over all ranks; a multiple of seq_len", least=2)
    micro_batch: int = doc("sequences in one forward pass on one rank; 0 = the whole share of the rank", 0, least=0)
    max_seconds: float = doc("wall-clock budget of training in seconds; 0 = none", 0.0, least=0)
    max_steps: int = doc("budget in optimiser steps; 0 = none", 0, least=0)
    warmup_steps: int = doc(
        "steps run and undone before the clock starts, so that the first ones are not slow", 2, least=0
    )
    lr_warmup_steps: int = doc("steps over which the learning rate rises linearly from 0", 0, least=0)
    decay_fraction: float = doc(
        "last part of the budget over which the learning rate falls linearly to 0", 0.4, least=0, most=1
    )
    decay_steps: int = doc(
        "the same in steps (timed, under a wall-clock budget); overrides the fraction if > 0", 0, least=0
    )
    precision: Literal["auto", "bf16", "fp32"] = doc(
        "dtype of activations and matmuls; auto = bf16 where the device computes in it", "auto"
    )
    compile: Literal["auto", "on", "off"] = doc(
        "torch.compile for stages of constant length, a minute or so before the first step; auto = on GPUs", "auto"
    )
    grad_clip: float = doc("limit on the global gradient norm; 0 = none", 0.0, least=0)
    ema_decay: float = doc(
        "decay a step of the averaged weights that are validated and exported; 0 = off", 0.0, least=0, below=1
    )
    validate_every: float = doc("seconds between validations on a sample; 0 = only at the end", 60.0, least=0)
    validate_tokens: int = doc("size of that sample in tokens", 65_536, least=0)
    checkpoint_every: float = doc("seconds between checkpoints; 0 = only at the end", 120.0, least=0)
    keep_checkpoints: int = doc("how many of the latest checkpoints are kept, besides the best", 2, least=1)
    log_every: int = doc("steps between rows of metrics.jsonl", 10, least=1)
    device: str = doc("cpu, cuda, mps, or auto", "auto")
    seed: int = doc("seed of weights and data order", 1337, least=0, below=1 << 63)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.batch_tokens % self.seq_len:
            raise BytegolfError(
                f"batch_tokens {self.batch_tokens} is no multiple of seq_len {self.seq_len}: change one of them"
            )
        if not self.max_seconds and not self.max_steps:
            raise BytegolfError("training has no end: set max_seconds or max_steps above 0")


@dataclass(frozen=True)
class OptimConfig(Ranged):
    """Muon on matrices, Adam on the embedding and on vectors and scalars (S0)."""

    muon_lr: float = doc("learning rate of Muon", 0.04, least=0)
    muon_momentum: float = doc("final momentum of Muon (Nesterov)", 0.95, least=0, below=1)
    muon_momentum_start: float = doc("its value at step 0", 0.85, least=0, below=1)
    muon_momentum_steps: int = doc("steps over which it rises linearly", 500, least=0)
    muon_ns_steps: int = doc("Newton-Schulz iterations", 5, least=1)
    muon_weight_decay: float = doc("decoupled weight decay of the matrices, times the learning rate", 0.0, least=0)
    embed_lr: float = doc("learning rate of Adam on the tied embedding", 0.05, least=0)
    router_lr: float = doc(
        "learning rate of Adam on the routers' matrices; 0 = Muon, as on the others (S2)", 0.0, least=0
    )
    scalar_lr: float = doc("learning rate of Adam on vectors and scalars", 0.04, least=0)
    ngram_lr: float = doc("learning rate of the n-gram tables", 0.05, least=0)
    ngram_beta: float = doc("decay of their mean squared gradients, in steps that touch a row", 0.99, least=0, below=1)
    adam_beta1: float = doc("Adam's β₁", 0.9, least=0, below=1)
    adam_beta2: float = doc("Adam's β₂", 0.95, least=0, below=1)
    adam_eps: float = doc("Adam's ε", 1e-8, above=0)


@dataclass(frozen=True)
class EvalConfig(Ranged):
    """How the final score is taken."""

    stride: int = doc("new tokens a window; 0 = windows do not overlap", 0, least=0)
    batch: int = doc("windows worked out at a time; 0 = as many as suit the model's size", 0, least=0)
    capacity: Literal["", "exact", "bucketed", "fixed"] = doc(
        "router.capacity of every level when scoring and segmenting; empty = as trained", ""
    )
    capacity_divisor: float = doc("router.capacity_divisor then, 1 or more; 0 = as trained", 0.0, least=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if 0 < self.capacity_divisor < 1:
            raise BytegolfError(f"capacity_divisor is {self.capacity_divisor}: give 1 or more, or 0 for as trained")


@dataclass(frozen=True)
class Config:
    """Everything that determines a run."""

    name: str = doc("name of the preset")
    about: str = doc("one line for `bytegolf presets`")
    model: ModelConfig = doc("the model")
    train: TrainConfig = doc("the training loop")
    data: DataConfig = doc("the data", DataConfig())
    optim: OptimConfig = doc("the optimiser", OptimConfig())
    eval: EvalConfig = doc("the score", EvalConfig())

    def __post_init__(self) -> None:
        if self.eval.capacity == "fixed":
            check_fixed_capacity(self.model, "eval.capacity")


# ---------------------------------------------------------------------------------------------- reading


def from_dict(cls: type[T], raw: Any, where: str = "") -> T:
    """Build the dataclass ``cls`` from plain data; ``where`` is the dotted path that errors name."""
    if not isinstance(raw, dict):
        raise BytegolfError(f"{where or 'the configuration'} must be a table of keys, not {raw!r}")
    hints = typing.get_type_hints(cls)
    fields = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    dotted = f"{where}." if where else ""
    for key in raw:
        if key not in fields:
            close = difflib.get_close_matches(key, fields, 1)
            hint = f"did you mean {dotted}{close[0]}?" if close else f"known keys: {', '.join(fields)}"
            raise BytegolfError(f"unknown configuration key {dotted}{key}: {hint}")
    values = {}
    for name, field in fields.items():
        if name in raw:
            values[name] = _value(hints[name], raw[name], dotted + name)
        elif field.default is dataclasses.MISSING:
            raise BytegolfError(f"configuration key {dotted}{name} is missing: {field.metadata['doc']}")
    _check_ranges(cls, values, dotted)
    try:
        return cls(**values)
    except BytegolfError as error:  # keys that do not go together
        raise BytegolfError(f"{where}: {error}" if where else str(error)) from error


def _value(kind: Any, raw: Any, where: str) -> Any:
    if typing.get_origin(kind) in (typing.Union, types.UnionType):  # StageConfig | LevelConfig
        own = {field.name for field in dataclasses.fields(LevelConfig)}
        kind = LevelConfig if isinstance(raw, dict) and own & raw.keys() else StageConfig
    if dataclasses.is_dataclass(kind):
        return from_dict(typing.cast("type[Any]", kind), raw, where)
    if typing.get_origin(kind) is Literal:
        choices = typing.get_args(kind)
        if raw not in choices:
            raise BytegolfError(f"{where} is {raw!r}: choose one of {', '.join(map(repr, choices))}")
        return raw
    if kind is float and isinstance(raw, int) and not isinstance(raw, bool):
        return float(raw)
    if type(raw) is not kind:
        raise BytegolfError(f"{where} is {raw!r}, a {type(raw).__name__}: give a value of type {kind.__name__}")
    return raw


def to_dict(config: Any) -> dict[str, Any]:
    """The plain data of a configuration dataclass: what ``from_dict`` takes."""
    return dataclasses.asdict(config)


def preset_names() -> list[str]:
    """The names of the presets that come with the package, sorted."""
    folder = resources.files("bytegolf") / "presets"
    return sorted(entry.name[:-5] for entry in folder.iterdir() if entry.name.endswith(".toml"))


def load(source: str | Path, overrides: Iterable[str] = ()) -> Config:
    """The configuration of a preset's name or a TOML file, with ``section.key=value`` overrides applied in order."""
    name = str(source)
    if name in preset_names():
        text = (resources.files("bytegolf") / "presets" / f"{name}.toml").read_text(encoding="utf-8")
    elif Path(name).is_dir():
        raise BytegolfError(f"{name} is a folder: name a preset or a TOML file, such as a run's {name}/config.toml")
    elif name.endswith(".toml") or "/" in name:
        with disk_errors(Path(name), "read the configuration"):
            data = Path(name).read_bytes()
        try:
            text = data.decode("utf-8")
        except UnicodeDecodeError as error:
            raise BytegolfError(f"{name} is not UTF-8 (byte {error.start}), so it is no TOML file") from error
    else:
        close = difflib.get_close_matches(name, preset_names(), 1)
        hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(preset_names())}"
        raise BytegolfError(f"no preset is called {name!r}: {hint} (a file's name must end in .toml)")
    try:
        raw = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise BytegolfError(f"{name} is not valid TOML: {error}") from error
    for override in overrides:
        _override(raw, override)
    return from_dict(Config, raw)


def _override(raw: dict[str, Any], override: str) -> None:
    """Set one dotted key of nested tables; the value is read as TOML, or as a bare string where it is none."""
    path, equals, text = override.partition("=")
    if not equals or not path:
        raise BytegolfError(f"{override!r} is no override: write section.key=value, for instance optim.muon_lr=0.02")
    try:
        parsed = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        parsed = {}
    value = parsed["value"] if parsed.keys() == {"value"} else text
    *tables, key = path.split(".")
    for table in tables:
        raw = raw.setdefault(table, {})
        if not isinstance(raw, dict):
            raise BytegolfError(f"{path}: {table} is a value, not a section, so it holds no key {key}")
    raw[key] = value
