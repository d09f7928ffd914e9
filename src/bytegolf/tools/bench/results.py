"""What benchmarks come to. Nothing here imports torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Accuracy:
    """A share of right answers."""

    task: str
    noise: str
    """the perturbation of the texts; empty without one"""
    accuracy: float
    """the choice of the greatest log-likelihood is the right one"""
    accuracy_per_byte: float
    """the same, of log-likelihoods divided by the choices' bytes"""
    chance: float
    """of choices drawn at random"""
    n: int
    """questions"""
    standard_error: float
    """of ``accuracy``: √(a·(1 − a)/(n − 1)); 0 for fewer than two questions"""


@dataclass(frozen=True)
class NoisyScore:
    """Bits per byte of texts under a perturbation."""

    noise: str
    """the perturbation; empty without one"""
    bpb: float
    """over the perturbed texts' bytes"""
    bits_per_clean_byte: float
    """the same bits over the bytes before the perturbation, which may add some that are easy to foretell"""
    chance: float
    """8: a uniform distribution over bytes"""
    n: int
    """documents"""
    bytes: int
    """of perturbed text"""
    standard_error: float
    """of ``bpb``, over documents"""


@dataclass(frozen=True)
class BoundaryMatch:
    """How a level's chunks begin where parts of a gold segmentation do."""

    gold: str
    """words, word ends, or morphemes (within words)"""
    level: int
    """of chunking, 0 the outermost"""
    f1: float | None
    """null where there is neither a boundary nor a gold one"""
    standard_error: float | None
    """of ``f1``, from texts drawn again with replacement"""
    chance: float | None
    """F1 of as many boundaries at places drawn at random"""
    precision: float | None
    recall: float | None
    enrichment: float | None
    """how many times as often a chunk begins at a gold boundary as anywhere"""
    n: int
    """gold boundaries"""
    boundaries: int
    """of the model, at places that count"""
    texts: int


@dataclass(frozen=True)
class Benchmarks:
    """Everything that was asked of one model."""

    model: str
    """the artifact's file"""
    artifact_sha256: str
    tokenizer: str
    params: int
    noise: list[NoisyScore]
    """BPB of validation documents, clean and under each perturbation"""
    characters: list[Accuracy]
    """tasks about letters"""
    boundaries: list[BoundaryMatch]
    """chunks against gold segmentations; empty for a flat model"""
    choices: list[Accuracy]
    """tasks of --file"""
    harness: dict[str, dict[str, float | int | str]]
    """of lm-eval: for each task its metrics, their standard errors, n and the chance level where it is known"""


@dataclass(frozen=True)
class BenchmarkResult:
    """What `bytegolf bench` prints."""

    models: list[Benchmarks]
