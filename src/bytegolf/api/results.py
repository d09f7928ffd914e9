"""What jobs come to: the results that `bytegolf.evaluate` and `bytegolf.train` give and `--json` prints.

Nothing here imports torch, so that a verb's help, which is made from these types, answers at once.
"""

from __future__ import annotations

from dataclasses import dataclass

from bytegolf.config import MixConfig, TttConfig
from bytegolf.evaluate.results import BoundaryFigures, Check, Truncation

UNSCORED = 0.01
"""The share of a split that may be left over while its score counts as the full split's, as in published scores."""


def scope(subset: bool, scored_share: float) -> str:
    """What a score is over: the full validation split, or what there is of it.

    >>> scope(False, 1.0), scope(False, 0.51), scope(True, 0.2)
    ('the full validation split', '51% of the validation split', 'a SUBSET of the validation split')
    """
    if subset:
        return "a SUBSET of the validation split"
    if scored_share < 1 - UNSCORED:  # a small split, whose windows leave much of it over
        return f"{scored_share:.0%} of the validation split"
    return "the full validation split"


@dataclass(frozen=True)
class Windows:
    """Windows that overlap."""

    seq_len: int
    """tokens per window"""
    stride: int
    """new tokens per window"""


@dataclass(frozen=True)
class Evaluation:
    """A score with all that belongs to it."""

    bpb: float
    """bits per byte"""
    bpb_original: float | None
    """over the bytes of the text before the tokenizer normalised it; null where that size is not known"""
    val_loss: float
    """nats per token"""
    tokens: int
    """scored"""
    bytes: int
    """that the scored tokens stand for"""
    seconds: float
    bytes_per_second: int
    subset: bool
    """whether --limit left something out"""
    tokens_dropped: int
    """tokens of the split that were not scored"""
    scored_share: float
    """scored tokens per token of the split"""
    stride: int
    """new tokens per window; 0: windows do not overlap"""
    seq_len: int
    """tokens per window"""
    receptive_field: list[int]
    """positions that attention to everything saw, outermost network first; empty: everything"""
    one_pass: Windows | None
    """the windows that one pass stands for; null without --one-pass"""
    precision: str
    """dtype of activations"""
    artifact_bytes: int
    code_bytes: int
    """of the script that a submission ships"""
    total_bytes: int
    limit_bytes: int
    """of Parameter Golf"""
    fits: bool
    """whether the total keeps within that limit"""
    params: int
    """weights"""
    artifact_sha256: str
    boundaries: BoundaryFigures | None
    """how the chunks of the outermost level lie; null for a flat model"""
    capacity: list[Truncation]
    """per level of chunking: the room for chunks, and what it truncated"""
    ttt: TttConfig | None
    """the settings of test-time training; null without"""
    mix: MixConfig | None
    """the settings of mixing; null without"""


@dataclass(frozen=True)
class Summary(Evaluation):
    """What a training run came to: the score of its artifact as reloaded from disk, and how it was made."""

    name: str
    """of the configuration"""
    seed: int
    steps: int
    train_seconds: float
    """with gptq_seconds"""
    gptq_seconds: float
    train_tokens: int
    train_bytes: int
    train_bytes_per_second: int | None
    """null if no step was trained"""
    bpb_unquantised: float | None
    """of the weights before quantisation; null unless eval.unquantised"""
    validation_bpb_unquantised_sample: float | None
    """of the weights before quantisation, on train.validate_tokens"""
    validation_bpb_sample: float | None
    """of the artifact, on the same tokens"""
    stopped_early: bool
    chunks_of: str | None
    """the beginning of the validation split; null for a flat model"""
    chunks_before: list[int] | None
    """byte offsets of chunks in it, untrained"""
    chunks_after: list[int] | None
    """the same, trained"""
    artifact: str
    """the file"""


@dataclass(frozen=True)
class Preset:
    """A configuration that comes with the package."""

    name: str
    about: str
    tokenizer: str
    params: int
    artifact_estimate_bytes: int
    """before compression"""


@dataclass(frozen=True)
class Presets:
    """All of them."""

    presets: list[Preset]


@dataclass(frozen=True)
class SegmentResult:
    """The chunks of a text."""

    boundaries: list[int]
    """byte offsets of chunk starts"""
    chunks: list[str]
    """their texts; of a character that is cut in two the bytes, as \\xc3"""
    mean_chunk_bytes: float | None
    cv: float | None
    """standard deviation over mean of the chunks' bytes"""
    whitespace_agreement: float | None
    """share of boundaries before or behind a whitespace byte; null if there is none"""
    bytes: int
    level: int


@dataclass(frozen=True)
class Verification:
    """What the checks of a score came to."""

    passed: bool
    """all of them"""
    artifact_sha256: str
    precision: str
    """dtype of activations"""
    checks: list[Check]
