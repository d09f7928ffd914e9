"""What an analysis of chunks reports, as types: plain Python, so that a verb's help can be made from them at once.

Throughout, a *boundary* is one that the router chose, a *position* is a byte where it had the choice, and a
``random_…`` figure is what chance gives: the same number of boundaries at positions drawn at random. None: no data.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

from bytegolf.analyze.stability_results import Stability, StabilityLevel
from bytegolf.evaluate.results import BoundaryFigures

T = TypeVar("T")


@dataclass(frozen=True)
class Agreement:
    """How the boundaries meet a reference: the token starts of a BPE tokenizer."""

    precision: float | None
    """share of the boundaries at a token's start"""
    recall: float | None
    """share of the token starts that are boundaries"""
    f1: float | None
    random_precision: float | None
    random_recall: float | None
    random_f1: float | None


@dataclass(frozen=True)
class Surprisal:
    """Whether chunks begin at bytes that are hard to predict."""

    enrichment: float | None
    """share of the boundaries at the tenth of positions with the highest surprisal, over a tenth: chance has 1"""
    bits_at_boundaries: float | None
    """mean bits per byte at the boundaries"""
    bits_elsewhere: float | None
    """at the other positions"""
    rate_by_decile: list[float | None]
    """boundaries per position, from the least to the most surprising tenth of them"""
    bits_in_chunk: list[float | None]
    """mean bits of a chunk's first, second, … byte"""


@dataclass(frozen=True)
class WordClass:
    """Words that occur about equally often in the text."""

    from_: int
    """least occurrences of the word"""
    to: int | None
    """most occurrences; null in the last class"""
    words: int
    """words of the text, repeated ones counted again"""
    mean_bytes: float | None
    cut: float | None
    """share with a boundary behind the first byte and before the word's end"""
    random_cut: float | None
    opened: float | None
    """share with a boundary at the first byte or at the space before it"""
    random_opened: float | None
    pieces: float | None
    """mean number of chunks that the word lies in"""


@dataclass(frozen=True)
class ChunkCount:
    """How often a chunk occurs."""

    chunk: str
    count: int


@dataclass(frozen=True)
class Frequent:
    """The most frequent complete chunks."""

    distinct: int
    """number of different ones"""
    top: list[ChunkCount]


@dataclass(frozen=True)
class Level(BoundaryFigures):
    """One level of chunking."""

    boundaries_per_256_bytes: float | None
    """per 256 bytes of text, whatever the positions are"""
    lengths: list[tuple[int, int]]
    """pairs: a length in bytes, complete chunks of it"""
    bpe: Agreement | None
    """null without a tokenizer to compare with"""
    surprisal: Surprisal
    words: list[WordClass]
    """the rarest first"""
    frequent: Frequent


@dataclass(frozen=True)
class Part(BoundaryFigures):
    """A part of what was read, with the boundaries of the outermost level; none for a flat model."""

    characters: int
    bpb: float | None
    mean_chunk_characters: float | None


@dataclass(frozen=True)
class TextPart(Part):
    """A text."""

    text: str


@dataclass(frozen=True)
class ScriptPart(Part):
    """A writing system."""

    script: str


@dataclass(frozen=True)
class Extremes:
    """The share of positions that have some property."""

    all: float | None
    lowest: float | None
    """of the lowest tenth of b"""
    highest: float | None
    """of the highest tenth of b"""


@dataclass(frozen=True)
class SoftLayerFigures:
    """What one layer of soft chunking does; b is the share of its own vector that a position keeps."""

    mean: float
    """of b"""
    std: float
    quantiles: dict[str, float]
    """of b, by percent"""
    histogram: list[float]
    """shares of b in equal parts of 0 to 1"""
    below_half: float
    """share of b below one half"""
    from_identity: float | None
    """‖out − out at b = 1‖ / ‖W·x‖"""
    whitespace: Extremes
    """positions that touch whitespace"""
    boundaries: BoundaryFigures
    """of the boundaries that b at or above the threshold would be"""
    bpe: Extremes | None
    """positions at the start of a BPE token; null where none are compared with"""


@dataclass(frozen=True)
class ForcedScores:
    """Bits per byte with b replaced."""

    as_is: float
    open: float
    """b = 1 everywhere"""
    closed: float
    """b = 0 everywhere"""
    shuffled: float
    """b shuffled among the positions of each window"""


@dataclass(frozen=True)
class SoftChunking:
    """What the soft chunking of a model does."""

    threshold: float
    """b from which on a chunk is said to begin"""
    bpb: ForcedScores
    layers: list[SoftLayerFigures]


@dataclass(frozen=True)
class SoftStep:
    """A row of a run's metrics."""

    step: int
    layers: list[dict[str, float]]
    """b, std and gradient of each layer"""


@dataclass(frozen=True)
class Probe:
    """What soft chunking does on validation text and did in training."""

    tokens: int
    bytes: int
    bpb: ForcedScores
    layers: list[SoftLayerFigures]
    history: list[SoftStep]
    """rows of metrics.jsonl, 20 at most; empty for an artifact file"""


@dataclass(frozen=True)
class Moment:
    """A model at some point of its training."""

    what: str
    step: int
    bpb: float
    whitespace_agreement: float | None
    mean_chunk_bytes: float | None
    cv: float | None
    boundaries_per_256_bytes: float | None
    enrichment: float | None
    b: float | None
    """mean of the first soft layer; null behind a router"""
    chunks: list[int]
    """byte offsets of chunk starts in the beginning of the first text"""


@dataclass(frozen=True)
class TextInfo:
    """A text that was read."""

    name: str
    bytes: int


@dataclass(frozen=True)
class ModelAnalysis:
    """What one model does with the texts."""

    model: str
    """its path"""
    name: str
    tokenizer: str
    params: int
    bpb: float
    bytes: int
    texts: list[TextPart]
    scripts: list[ScriptPart]
    chunking: Literal["router", "soft"] | None
    """what begins chunks: router, soft, or null"""
    levels: list[Level]
    """outermost first; without a router, the layers of soft chunking; none for a flat model"""
    soft: SoftChunking | None
    history: list[Moment] | None
    """from the untrained weights to the artifact; null unless asked for"""
    stability: Stability | None
    """null unless asked for, and without a router"""

    def named_levels(self) -> list[tuple[str, Level]]:
        """The levels, each with a name that tells it from all others."""
        return named(self.name, "layer" if self.chunking == "soft" else "level", self.levels)

    def stable_levels(self) -> list[tuple[str, Stability, StabilityLevel]]:
        """The same of the levels whose stability is known, with what they have in common."""
        found = self.stability
        return [(name, found, one) for name, one in named(self.name, "level", found.levels)] if found else []


def named(model: str, kind: str, parts: Sequence[T]) -> list[tuple[str, T]]:
    """Each of a ``model``'s parts with a name: the model's own for a single one."""
    if len(parts) == 1:
        return [(model, parts[0])]
    return [(f"{model} · {kind} {at}".removeprefix(" · "), one) for at, one in enumerate(parts)]


@dataclass(frozen=True)
class AnalysisResult:
    """Where models begin chunks, and how that lies beside words, tokens and surprisal."""

    texts: list[TextInfo]
    bpe: str | None
    """the tokenizer whose token starts are compared with"""
    note: str
    """what the reader of the figures has to know"""
    models: list[ModelAnalysis]
