"""How a model is scored: in which windows, and what it may learn from text that it has been scored on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from bytegolf.config.fields import Ranged, doc
from bytegolf.errors import BytegolfError


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
    ngram_lr: float = doc("the same on the n-gram tables, whose rows few tokens touch; 0 = they stay", 0.3, least=0)


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
        ("o2", "o3", "o4", "o6", "o12", "o16", "word", "words"),
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
