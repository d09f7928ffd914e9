"""What benchmarks come to, and their tables for people: models side by side. Nothing here imports torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table


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


def show(console: Console, found: BenchmarkResult) -> None:
    """Print what there is."""
    _noise(console, found)
    _accuracies(console, "characters", [one.characters for one in found.models], found)
    _accuracies(console, "questions", [one.choices for one in found.models], found)
    _boundaries(console, found)
    for one in found.models:
        for task, figures in one.harness.items():
            words = ", ".join(f"{k} {v:.4f}" if isinstance(v, float) else f"{k} {v}" for k, v in figures.items())
            console.print(f"{one.model}, {task}: {words}", soft_wrap=True)


def _table(console: Console, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    if rows:
        table = Table(box=None, pad_edge=False, title=title, title_justify="left")
        for number, column in enumerate(columns):
            table.add_column(column, justify="left" if number == 0 else "right", no_wrap=number == 0)
        for row in rows:
            table.add_row(*row)
        console.print(table)


def _names(found: BenchmarkResult) -> list[str]:
    return [f"{one.model} ({one.tokenizer})" for one in found.models]


def _noise(console: Console, found: BenchmarkResult) -> None:
    rows = []
    for same in zip(*(one.noise for one in found.models), strict=True):
        cells = [f"{each.bpb:.3f} ± {each.standard_error:.3f} ({each.bits_per_clean_byte:.3f})" for each in same]
        rows.append([same[0].noise or "clean", *cells, f"{same[0].chance:.0f}", f"{same[0].n}"])
    title = "bits per byte under noise (in brackets: the same bits per byte before the noise)"
    _table(console, title, ["", *_names(found), "chance", "texts"], rows)


def _accuracies(console: Console, title: str, of_models: Sequence[Sequence[Accuracy]], found: BenchmarkResult) -> None:
    rows = []
    for same in zip(*of_models, strict=True):
        first = same[0]
        cells = [f"{each.accuracy:.3f} ± {each.standard_error:.3f}" for each in same]
        name = f"{first.task}, {first.noise}" if first.noise else first.task
        rows.append([name, *cells, f"{first.chance:.3f}", f"{first.n}"])
    _table(console, f"{title}: share of right answers", ["", *_names(found), "chance", "n"], rows)


def _boundaries(console: Console, found: BenchmarkResult) -> None:
    rows = [
        [
            f"{one.model}, level {each.level}, {each.gold}",
            _or_dash(each.f1, each.standard_error),
            _or_dash(each.chance),
            _or_dash(each.precision),
            _or_dash(each.recall),
            _or_dash(each.enrichment),
            str(each.n),
        ]
        for one in found.models
        for each in one.boundaries
    ]
    columns = ["", "F1", "chance", "precision", "recall", "enrichment", "n"]
    _table(console, "chunks against gold segmentations", columns, rows)


def _or_dash(value: float | None, error: float | None = None) -> str:
    if value is None:
        return "–"
    return f"{value:.3f}" + (f" ± {error:.3f}" if error is not None else "")
