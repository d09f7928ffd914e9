"""The configuration of a run: data, training, optimiser, scoring, export, and all of it together."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from bytegolf.config.model import ModelConfig, check_fixed_capacity, levels, stacks
from bytegolf.config.reading import Ranged, change, doc, from_dict, read_tables, to_dict
from bytegolf.errors import BytegolfError
from bytegolf.registry import MIXERS, QUANTIZERS, ROUTERS, UnknownNameError


@dataclass(frozen=True)
class TttConfig(Ranged):
    """Test-time training: what a model learns from text on which it has been scored already (rules.md)."""

    mode: Literal["off", "lora", "sgd"] = doc(
        "lora = low-rank adapters beside the matrices, moved by Adam; sgd = plain SGD on the weights themselves", "off"
    )
    chunk: int = doc(
        "tokens scored before they are learned from; 0 = seq_len; where scores are mixed, 256 or the stride", 0, least=0
    )
    steps: int = doc("updates after each chunk, all on that chunk", 1, least=1)
    reset: Literal["document", "never"] = doc(
        "document = each one starts with the shipped weights, and is read by itself; never = carried on", "document"
    )
    matrices: Literal["all", "attention", "mlp"] = doc("which maps learn; a router's never do", "all")
    lora_lr: float = doc("learning rate of the adapters", 0.003, least=0)
    rank: int = doc("rank of the adapters", 8, least=1)
    documents: int = doc("lora: how many documents go through at once", 1, least=1)
    sgd_lr: float = doc("learning rate of SGD on the matrices, down the sum of a chunk's losses", 3e-4, least=0)
    rms_lr: float = doc(
        "sgd: rate of the matrices by gradients over their root mean square so far, in place of sgd_lr; 0 = plain SGD",
        0.0,
        least=0,
    )
    ngram_lr: float = doc(
        "rate of plain SGD on the n-gram tables, whose rows few tokens touch; 0 = they stay", 0.3, least=0
    )


ContextName = Literal[
    "o0", "o1", "o2", "o3", "o4", "o5", "o6", "o7", "o8", "o12", "o16", "o24",
    "word", "words", "word-skip", "chunk", "chunks", "chunk-skip", "skip1-2", "skip1-3", "skip2-2", "high", "skip3",
    "column4", "slope4",
]  # fmt: skip
SelectorName = Literal["bits", "last", "before", "match", "known", "unsure", "chunk"]


@dataclass(frozen=True)
class MixConfig(Ranged):
    """Mixing: the model's distribution of each byte and those of adaptive context models, combined bit by bit; what
    learns does so from scored bytes only (mixing/__init__.py). ``eval.mix = true`` switches it on.
    """

    on: bool = doc("mix the model's distributions with those of contexts of the scored text", False)
    reset: Literal["document", "never"] = doc(
        "document = each one starts with empty tables; never = carried on", "never"
    )
    megabytes: int = doc("memory for contexts, a power of 2 or the one below", 256, least=1, most=1 << 13)
    contexts: tuple[ContextName, ...] = doc(
        "what is looked up: the last n bytes (o0 … o24); word = the letters so far, words = with the word before, "
        "word-skip = the word before and the last byte; chunk, chunks, chunk-skip = the same with the model's chunks; "
        "skip1-2 = 2 bytes behind the last one, …; high = the upper halves of 5 bytes; column4 = the 4th and 8th "
        "byte back; slope4 = where the 16 bits 8 and 4 back lead",
        ("o1", "o2", "o3", "o4", "o6", "o12", "o16", "word", "words"),
    )
    primer: bool = doc("read the artifact's primer (export.primer) first, if it has one", True)
    selectors: tuple[SelectorName, ...] = doc(
        "what chooses weights, a set of them each: the bits so far, the last byte, the one before, the match and the "
        "model's confidence, how many contexts are known, how unsure the model is, the place in the chunk",
        ("bits", "last", "before", "match", "known"),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for what, names, most in (("contexts", self.contexts, 32), ("selectors", self.selectors, 8)):
            if not 0 < len(set(names)) == len(names) <= most:
                raise BytegolfError(f"{what} of mixing are {', '.join(names)}: give 1 to {most}, each once")


@dataclass(frozen=True)
class EvalConfig(Ranged):
    """How the final score is taken."""

    stride: int = doc("new tokens per window; 0 = windows do not overlap", 0, least=0)
    limit: int = doc("score about so many tokens only: a subset, labelled as one; 0 = all", 0, least=0)
    batch: int = doc("windows worked out at a time; 0 = as many as suit the model's size", 0, least=0)
    capacity: Literal["", "exact", "bucketed", "fixed"] = doc(
        "router.capacity of every level when scoring and segmenting; empty = as trained", ""
    )
    capacity_divisor: float = doc("router.capacity_divisor then, 1 or more; 0 = as trained", 0.0, least=0)
    ttt: TttConfig = doc("test-time training", TttConfig())
    mix: MixConfig = doc("mixing with context models", MixConfig())
    unquantised: bool = doc("`train` scores the weights before quantisation as well, which doubles its time", False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if 0 < self.capacity_divisor < 1:
            raise BytegolfError(f"capacity_divisor is {self.capacity_divisor}: give 1 or more, or 0 for as trained")


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
    micro_batch: int = doc(
        "sequences in one forward pass on one rank, which changes nothing but speed and memory; 0 = as many of its "
        "share of the batch as fit in memory",
        0,
        least=0,
    )
    max_seconds: float = doc("budget of training in seconds of `clock`; 0 = none", 0.0, least=0)
    max_steps: int = doc("budget in optimiser steps; 0 = none", 0, least=0)
    clock: Literal["wall", "processor"] = doc(
        "what training seconds are counted on: wall = as they pass; processor = those that this process's threads "
        "compute on the CPU, which on one thread compare between runs whatever else the machine does",
        "wall",
    )
    warmup_steps: int = doc("steps run and undone before the clock starts, so that the first are not slow", 2, least=0)
    lr_warmup_steps: int = doc("steps over which the learning rate rises linearly from 0", 0, least=0)
    lr_warmup_fraction: float = doc("the same as a share of the budget; the longer one counts", 0.0, least=0, most=1)
    decay_fraction: float = doc("last part of the budget over which the learning rate falls to 0", 0.4, least=0, most=1)
    decay_shape: Literal["linear", "sqrt"] = doc(
        "linear; or sqrt = as 1 − √(share of the decay that is over), fast at first (S4)", "linear"
    )
    decay_steps: int = doc("the same in steps (timed, under a wall-clock budget), used if > 0", 0, least=0)
    qat_from: float = doc(
        "share of the learning rate's decay after which training computes with quantised weights, as `export` stores "
        "them (QAT); 0 = never",
        0.0,
        least=0,
        below=1,
    )
    precision: Literal["auto", "bf16", "fp32"] = doc(
        "dtype of activations and matmuls; auto = bf16 where the device computes in it", "auto"
    )
    compile: Literal["auto", "on", "off"] = doc(
        "torch.compile for stacks of constant length, a minute or so before the first step; auto = on GPUs", "auto"
    )
    parallel: Literal["ddp", "fsdp"] = doc(
        "of several processes (torchrun): ddp = each has the whole model; fsdp = each has its share of every tensor, "
        "for models that do not fit, with optim.algorithm = adamw",
        "ddp",
    )
    recompute: bool = doc(
        "keep no activations within a block for the backward pass, which computes them again: slower, far less memory",
        False,
    )
    init: str = doc(
        "the run, artifact, imported or public model whose weights training starts from; its model and tokenizer are "
        "taken over; empty = random weights",
        "",
    )
    init_sha256: str = doc("the hash of that artifact: it is written when its model is taken over", "")
    adapters: int = doc(
        "rank of low-rank adapters (LoRA) that are trained in place of all weights, and are merged into them when "
        "exported; 0 = train the weights",
        0,
        least=0,
    )
    grad_clip: float = doc("limit on the global gradient norm; 0 = none", 0.0, least=0)
    ema_decay: float = doc(
        "decay per step of the averaged weights that are validated and exported; 0 = off", 0.0, least=0, below=1
    )
    validate_every: float = doc("seconds between validations on a sample; 0 = only at the end", 60.0, least=0)
    validate_tokens: int = doc("size of that sample in tokens", 65_536, least=0)
    checkpoint_every: float = doc("seconds between checkpoints; 0 = only at the end", 120.0, least=0)
    keep_checkpoints: int = doc("how many of the latest checkpoints are kept, besides the best", 2, least=1)
    log_every: int = doc("steps between rows of metrics.jsonl", 10, least=1)
    tensorboard: bool = doc("write the figures of metrics.jsonl for TensorBoard as well (an extra to install)", False)
    device: str = doc("cpu, cuda, mps, or auto", "auto")
    seed: int = doc("seed of weights and data order", 1337, least=0, below=1 << 63)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.batch_tokens % self.seq_len:
            raise BytegolfError(f"batch_tokens {self.batch_tokens} is no multiple of seq_len {self.seq_len}: change it")
        if not self.max_seconds and not self.max_steps:
            raise BytegolfError("training has no end: set max_seconds or max_steps above 0")
        if self.qat_from and not (self.decay_fraction or self.decay_steps):
            raise BytegolfError(
                f"qat_from is {self.qat_from}, a share of the learning rate's decay, but it never decays: set "
                "decay_fraction or decay_steps above 0, or qat_from to 0"
            )
        if self.qat_from and self.adapters:
            raise BytegolfError("adapters are not trained with quantised weights: set qat_from or adapters to 0")


@dataclass(frozen=True)
class OptimConfig(Ranged):
    """Muon on matrices, Adam on the embedding and on vectors and scalars (S0); or AdamW on all of them (S4)."""

    algorithm: Literal["muon", "adamw"] = doc(
        "muon = Muon on matrices and Adam on the rest, each at its own rate (S0); adamw = AdamW on all but the n-gram "
        "tables, at adamw_lr (S4)",
        "muon",
    )
    muon_lr: float = doc("learning rate of Muon", 0.04, least=0)
    muon_momentum: float = doc("final momentum of Muon (Nesterov)", 0.95, least=0, below=1)
    muon_momentum_start: float = doc("its value at step 0", 0.85, least=0, below=1)
    muon_momentum_steps: int = doc("steps over which it rises linearly", 500, least=0)
    muon_ns_steps: int = doc("Newton-Schulz iterations", 5, least=1)
    muon_quintics: Literal["same", "minimax"] = doc(
        "same = each iteration applies the same quintic to singular values (S0); minimax = each its own, the best for "
        "those from 0.01 on, so that 3 do (Polar Express, arXiv 2505.16932)",
        "same",
    )
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
    adamw_lr: float = doc("learning rate under algorithm = adamw", 6.25e-4, least=0)
    adamw_weight_decay: float = doc(
        "decoupled weight decay under algorithm = adamw, times the learning rate; of matrices and embeddings, not of "
        "vectors",
        0.1,
        least=0,
    )
    stage_multipliers: Literal["", "paper"] = doc(
        "paper = every stage's rates times √(4.6 · ∏ N of the stages from it inwards / ∏ N of all · innermost width / "
        "its width) (S4), besides lr_mult; N is router.target",
        "",
    )
    adapter_lr: float = doc("learning rate of the adapters that train.adapters asks for", 1e-3, least=0)


@dataclass(frozen=True)
class ExportConfig(Ranged):
    """How the weights are quantised: in the artifact, and in training from ``train.qat_from`` on."""

    bits: int = doc("bits of a weight's code in a large matrix; each row has a scale of its own", 8, least=3, most=8)
    embedding_bits: int = doc(
        "the same of the tied embedding, which is small and whose errors are seen twice; 0 = bits", 8, least=0, most=8
    )
    ngram_bits: int = doc("the same of the tables of n-grams and chunks; 0 = bits", 0, least=0, most=8)
    prune: float = doc("share of each matrix row's weights, the smallest, that become 0", 0.0, least=0, below=1)
    quantizer: str = doc("the quantiser of large matrices by its registered name; empty = rows of codes of `bits`", "")
    coder: Literal["zlib", "zstd", "range"] = doc(
        "what compresses the artifact, at its smallest; range codes weights in contexts of their own", "zlib"
    )
    gptq: bool = doc("choose the codes of linear maps by what their inputs look like in training text (GPTQ)", False)
    gptq_tokens: int = doc("how much of that text it looks at; this takes training time", 65_536, least=1)
    gptq_damping: float = doc("what it adds to the diagonal of its second moments, times their mean", 0.01, above=0)
    gptq_seconds: float = doc("seconds of train.max_seconds that are kept for it", 0.0, least=0)
    primer: int = doc(
        "bytes of training text that the artifact carries, packed, for mixing's contexts to read first; 0 = none", 0,
        least=0, most=1 << 28,
    )  # fmt: skip

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.quantizer:
            QUANTIZERS.check(self.quantizer, "quantizer")
        for name in ("embedding_bits", "ngram_bits"):
            if 0 < getattr(self, name) < 3:
                raise BytegolfError(f"{name} is {getattr(self, name)}: give 3 to 8, or 0 for as many as bits")


@dataclass(frozen=True)
class Config:
    """Everything that determines a run.

    It is frozen; ``with_`` makes another one:

        config = Config.load("cpu-demo").with_("train.max_seconds=60", {"train.seed": 2})
    """

    name: str = doc("name of the preset")
    about: str = doc("one line for `bytegolf presets`")
    model: ModelConfig = doc("the model")
    train: TrainConfig = doc("the training loop")
    data: DataConfig = doc("the data", DataConfig())
    optim: OptimConfig = doc("the optimiser", OptimConfig())
    eval: EvalConfig = doc("the score", EvalConfig())
    export: ExportConfig = doc("the artifact", ExportConfig())
    plugins: tuple[str, ...] = doc(
        "files or modules that register the kinds which are not the package's own; for the reader's information: they "
        "are imported only by --plugin, or by the program that loads this",
        (),
    )

    def __post_init__(self) -> None:
        if self.eval.capacity == "fixed":
            check_fixed_capacity(self.model, "eval.capacity")
        if self.export.gptq and 0 < self.train.max_seconds <= self.export.gptq_seconds:
            raise BytegolfError(
                f"export.gptq_seconds = {self.export.gptq_seconds:g} leaves nothing of train.max_seconds = "
                f"{self.train.max_seconds:g} to train in: lower it"
            )

    @staticmethod
    def load(source: str | Path, overrides: Iterable[str | Mapping[str, Any]] | Mapping[str, Any] = ()) -> Config:
        """The configuration of a preset's name or a TOML file, changed by ``overrides`` as in ``with_``, in order.

        Raises BytegolfError, which names the key, for one that is unknown or missing, or a value out of its range.
        """
        raw = read_tables(source)
        for each in [overrides] if isinstance(overrides, (str, Mapping)) else overrides:
            change(raw, each)
        return Config.from_tables(raw)

    def with_(self, *changes: str | Mapping[str, Any]) -> Config:
        """A configuration with other values of some dotted keys: ``"train.seed=2"``, or ``{"train.seed": 2}``.

        A string's value is read as TOML, or as a bare string where it is none. Raises BytegolfError as ``load`` does.
        """
        raw = to_dict(self)
        for each in changes:
            change(raw, each)
        return Config.from_tables(raw)

    @staticmethod
    def from_tables(raw: dict[str, Any]) -> Config:
        """The configuration that plain data say, with the ``plugins`` that it needs.

        Raises BytegolfError as ``load`` does, and for a kind that nothing has registered: nothing is imported for it.
        """
        try:
            config = from_dict(Config, raw)
        except UnknownNameError as error:
            named = raw.get("plugins")
            if not isinstance(named, (list, tuple)) or not named:
                raise
            raise UnknownNameError(
                f"{str(error).partition(': choose')[0]}: the configuration says that {' and '.join(map(str, named))} "
                "registers it; if you trust that file, give it with --plugin, or import it first"
            ) from error
        network = config.model.network
        used = {MIXERS.source(stack.kind) for stack in stacks(network)}
        used |= {ROUTERS.source(level.router.kind) for level in levels(network)}
        used.add(QUANTIZERS.source(config.export.quantizer))
        named = {*config.plugins, *(Path(plugin).name for plugin in config.plugins)}
        missing = sorted(used - named - {""})
        return dataclasses.replace(config, plugins=(*config.plugins, *missing)) if missing else config

    def to_toml(self) -> str:
        """All settings as a TOML file that ``load`` reads."""
        # not by an import statement: a submission's script holds this class, and is to ask for no such package
        writer: Any = importlib.import_module("tomli_w")
        text: str = writer.dumps(to_dict(self))
        return text
