"""The tables of a study: pure functions of its rows, as results, Markdown and CSV; paired differences with intervals.

Why paired, and what the interval means. A seed that is hard is hard for both variants: with the control at 1.50, 1.60,
1.55 and a variant at 1.48, 1.57, 1.53 bits per byte, the means lie 0.023 apart while each scatters by 0.05. Seed by
seed the variant gains 0.02, 0.03, 0.02: mean d̄ = −0.0233, standard deviation s = 0.0058 over n = 3. The true
difference lies in d̄ ± t·s/√n with 95 % confidence, where t = 4.303 is Student's t for n − 1 = 2 degrees of freedom:
−0.0233 ± 0.0143, which leaves zero out. No bootstrap: resampling three to ten seeds says next to nothing.

Scores are compared in bits per byte of the *original* text where every run knows it, so that a tokenizer that
normalises text gains nothing by it. Differences are paired, same seed against same seed.
"""

from __future__ import annotations

import csv
import dataclasses
import functools
import io
import math
import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from bytegolf.api.results import scope
from bytegolf.errors import counted, shown
from bytegolf.tools.study.definition import Job, Study
from bytegolf.tools.study.results import Row, Summary

# --------------------------------------------------------------------------------------------------- paired differences


SAME, BETTER, WORSE, UNKNOWN = "=", "better", "worse", "?"
"""Verdicts: the interval holds zero; below it; above it; too few pairs for an interval."""


@dataclass(frozen=True)
class Difference:
    """A paired difference in bits per byte, same seed against same seed."""

    mean: float
    half: float | None
    """half the 95 % interval; None with a single pair, which says nothing about noise"""
    n: int
    each: tuple[float, ...] = ()
    """pair by pair"""

    @property
    def told_apart(self) -> bool:
        """Whether the interval leaves zero out."""
        return self.half is not None and abs(self.mean) > self.half

    @property
    def verdict(self) -> str:
        """How the difference reads: lower is better, and an interval that holds zero is noise."""
        if self.half is None:
            return UNKNOWN
        return SAME if not self.told_apart else BETTER if self.mean < 0 else WORSE


def spread(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and standard deviation (n − 1) of a sample; no deviation of a single value."""
    return fmean(values), statistics.stdev(values) if len(values) > 1 else None


def paired(control: Sequence[float], candidate: Sequence[float]) -> Difference:
    """The mean of candidate − control, pair by pair, and the half width of its 95 % interval."""
    differences = [b - a for a, b in zip(control, candidate, strict=True)]
    mean, deviation = spread(differences)
    n = len(differences)
    half = None if deviation is None else t_95(n - 1) * deviation / math.sqrt(n)
    return Difference(mean, half, n, tuple(differences))


@functools.cache
def t_95(freedom: int) -> float:
    """Student's t at 97.5 % for whole ``freedom`` ≥ 1: 12.706, 4.303, 3.182, … By hand: no 40 MB for one quantile."""
    low, high = 0.0, 13.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _within(middle, freedom) < 0.95 else (low, middle)
    return (low + high) / 2


def _within(t: float, freedom: int) -> float:
    """P(|T| < t), as the finite sums for whole degrees of freedom (Abramowitz and Stegun 26.7.3 and 26.7.4)."""
    angle = math.atan(t / math.sqrt(freedom))
    sine, cosine = math.sin(angle), math.cos(angle)
    odd = freedom % 2
    term, total = cosine if odd else 1.0, 0.0
    for index in range(freedom // 2):
        total += term
        step = 2 * index + 1 + odd
        term *= cosine**2 * step / (step + 1)
    return 2 / math.pi * (angle + sine * total) if odd else sine * total


# --------------------------------------------------------------------------------------------------------------- tables


FLOAT = "float"
"""The heading of what was scored before quantisation."""


# ---------------------------------------------------------------------------------------------- the table


@dataclass(frozen=True)
class VariantResult:
    """A variant over its seeds; means are over the seeds that have a result."""

    variant: str
    n: int
    """seeds with a result"""
    missing: int
    """seeds without one"""
    failed: int
    """of these, seeds whose run failed"""
    bpb: float | None
    """mean of the compared score"""
    bpb_std: float | None
    best: bool
    """whether no complete variant has a lower mean"""
    difference: float | None
    """paired difference to the control"""
    difference_half_interval: float | None
    """half its 95 % interval"""
    verdict: str | None
    """better, worse, =: within noise, or ?: too few pairs"""
    bpb_pieces: float | None
    """bits per byte of the tokens' text"""
    bpb_original: float | None
    """of the original text"""
    bpb_float: float | None
    """before quantisation"""
    total_bytes: float | None
    params: float | None
    train_seconds: float | None
    steps: float | None
    train_bytes: float | None
    train_bytes_per_second: float | None
    rate: float | None
    whitespace_agreement: float | None
    cv: float | None
    mean_chunk_bytes: float | None
    fits: bool | None
    """whether every artifact keeps to the limit of 16,000,000 bytes, code included"""


@dataclass(frozen=True)
class ComparisonResult:
    """Two variants, seed by seed."""

    variant: str
    with_: str
    n: int
    """pairs"""
    difference: float | None
    half_interval: float | None
    """half its 95 % interval"""
    verdict: str | None
    float_difference: float | None
    """the same before quantisation"""
    float_half_interval: float | None


@dataclass(frozen=True)
class Table:
    """All that is known of a study."""

    study: Study
    score: str
    """bpb_original, or bpb where some run does not know the original bytes"""
    subset: bool
    scored_share: float
    """of the split's tokens, where it is least"""
    variants: list[VariantResult]
    gaps: dict[str, Difference]
    """to the control, by variant"""
    comparisons: list[ComparisonResult]
    """with the control, then those that the file asks for"""
    errors: dict[str, str]
    """run → why it failed"""
    commits: list[str]
    versions: list[str]

    @property
    def has_floats(self) -> bool:
        """Whether some run was scored before quantisation as well (``eval.unquantised``)."""
        return any(one.bpb_float is not None for one in self.variants)


def tabulate(study: Study, rows: Mapping[Job, Row]) -> Table:
    """The table of ``rows``, the latest row of each job that has one."""
    done = {job: row.summary for job, row in rows.items() if row.summary}
    original = all(summary.bpb_original is not None for summary in done.values())
    scores: dict[str, dict[int, float]] = {variant.name: {} for variant in study.variants}
    floats: dict[str, dict[int, float]] = {variant.name: {} for variant in study.variants}
    for job, summary in done.items():
        score = summary.bpb_original if original else summary.bpb
        assert score is not None
        scores[job.variant.name][job.seed] = score
        if summary.bpb_float is not None:
            floats[job.variant.name][job.seed] = summary.bpb_float
    seeds, control = study.config.seeds, study.config.control
    means = {name: fmean(found.values()) for name, found in scores.items() if len(found) == len(seeds)}
    best = min(means, key=lambda name: means[name]) if means else None
    variants: list[VariantResult] = []
    gaps: dict[str, Difference] = {}
    for name, found in scores.items():
        own = [summary for job, summary in done.items() if job.variant.name == name]
        failures = sum(job.variant.name == name and not row.done for job, row in rows.items())
        gap = None if name == control else _paired(scores[control], found)
        variants.append(_result(name, list(found.values()), own, len(seeds), failures, name == best, gap))
        if gap:
            gaps[name] = gap
    return Table(
        study=study,
        score="bpb_original" if original else "bpb",
        subset=any(summary.subset for summary in done.values()),
        scored_share=min((summary.scored_share for summary in done.values()), default=1.0),
        variants=variants,
        gaps=gaps,
        comparisons=[_compared(*pair, scores, floats) for pair in study.pairs()],
        errors={job.label: row.error for job, row in rows.items() if not row.done},
        commits=sorted({row.commit for row in rows.values() if row.done}),
        versions=sorted({f"torch {row.torch}" for row in rows.values() if row.done}),
    )


def _compared(
    first: str, second: str, scores: dict[str, dict[int, float]], floats: dict[str, dict[int, float]]
) -> ComparisonResult:
    gap, before = (_paired(found[second], found[first]) for found in (scores, floats))
    found = (gap.n, gap.mean, gap.half, gap.verdict) if gap else (0, None, None, None)
    return ComparisonResult(first, second, *found, *((before.mean, before.half) if before else (None, None)))


def _result(
    name: str, scores: list[float], own: list[Summary], wanted: int, failed: int, best: bool, gap: Difference | None
) -> VariantResult:
    def mean(key: str) -> float | None:
        known = [value for summary in own if (value := getattr(summary, key)) is not None]
        return fmean(known) if known else None

    score, deviation = spread(scores) if scores else (None, None)
    return VariantResult(
        variant=name,
        n=len(scores),
        missing=wanted - len(scores),
        failed=failed,
        bpb=score,
        bpb_std=deviation,
        best=best,
        difference=gap.mean if gap else None,
        difference_half_interval=gap.half if gap else None,
        verdict=gap.verdict if gap else None,
        bpb_pieces=mean("bpb"),
        fits=all(summary.fits for summary in own) if own else None,
        **{key: mean(key) for key in _AVERAGED},
    )


_AVERAGED = [
    field.name for field in dataclasses.fields(Summary) if field.name not in ("bpb", "subset", "fits", "scored_share")
]  # under the same names in both


def _paired(control: dict[int, float], candidate: dict[int, float]) -> Difference | None:
    seeds = sorted(control.keys() & candidate.keys())
    return paired([control[seed] for seed in seeds], [candidate[seed] for seed in seeds]) if seeds else None


# ---------------------------------------------------------------------------------------------- as text


def cells(table: Table) -> list[dict[str, str]]:
    """The table as text, a row per variant: what people read."""

    def row(one: VariantResult) -> dict[str, str]:
        return {
            "variant": one.variant,
            "n": f"{one.n}" + (f" ({one.failed} failed)" if one.failed else ""),
            "BPB": _with("{:.4f}", one.bpb, one.bpb_std),
            **({FLOAT: _number(one.bpb_float, ".4f")} if table.has_floats else {}),
            "− control": _with("{:+.4f}", one.difference, one.difference_half_interval),
            "": one.verdict or "",
            "artifact bytes": _number(one.total_bytes, ",.0f"),
            "≤ 16 MB": "" if one.fits is None else "yes" if one.fits else "NO",
            "train s": _number(one.train_seconds, ".0f"),
            "steps": _number(one.steps, ",.0f"),
            "bytes/s": _number(one.train_bytes_per_second, ",.0f"),
            "rate": _number(one.rate, ".3f"),
            "at whitespace": _number(one.whitespace_agreement, ".1%"),
            "CV": _number(one.cv, ".2f"),
            "chunk bytes": _number(one.mean_chunk_bytes, ".2f"),
        }

    return [row(one) for one in table.variants]


def _with(spec: str, value: float | None, around: float | None) -> str:
    return "-" if value is None else spec.format(value) + ("" if around is None else f" ± {around:.4f}")


def _number(value: float | None, spec: str) -> str:
    return "-" if value is None else format(value, spec)


def notes(table: Table) -> list[str]:
    """What has to be known to read the table."""
    study, config = table.study, table.study.config
    original = "the original text" if table.score == "bpb_original" else "the tokens' text"
    over, threads = scope(table.subset, table.scored_share), counted(config.threads, "thread")
    lines = [
        f"BPB: bits per byte of {original} over {over}, mean ± standard deviation over seeds; the best in bold. "
        f"Budget of each run: {config.budget}, {threads}.",
        f"− control: paired difference to {config.control!r} over the same seeds ± half its 95 % interval "
        f"(Student's t); {SAME} within noise.",
    ]
    if table.has_floats:
        lines.append(f"{FLOAT}: the same before quantisation, a score or a paired difference.")
    for one in table.variants:
        if one.missing:
            lines.append(f"Missing: {one.missing} of {len(config.seeds)} seeds of {one.variant!r}.")
    lines += [f"Failed: {label}: {why}" for label, why in table.errors.items()]
    made = ", ".join([*table.commits, *table.versions]) or "nothing yet"
    return [*lines, f"Made by `bytegolf study run {study.path.name}`; code: {made}."]


def markdown(table: Table) -> str:
    """table.md: the question, the variants, comparisons that the file asks for, and notes."""
    config = table.study.config
    bold = [one.variant if one.best else "" for one in table.variants]
    parts = [f"# {_plain(config.name)}", _plain(config.question), _pipes(cells(table), bold)]
    floats = table.has_floats
    if config.compare:
        rows = [
            {
                "variant": one.variant,
                "with": one.with_,
                "difference": _with("{:+.4f}", one.difference, one.half_interval),
                "": one.verdict or "",
                **({FLOAT: _with("{:+.4f}", one.float_difference, one.float_half_interval)} if floats else {}),
            }
            for one in table.comparisons[-len(config.compare) :]
        ]
        parts.append(_pipes(rows))
    return "\n\n".join([*parts, "\n".join(f"- {shown(note)}" for note in notes(table))]) + "\n"


def _pipes(rows: Sequence[Mapping[str, str]], bold: Sequence[str] = ()) -> str:
    """A table in Markdown; of a row whose variant is among ``bold``, the score is."""
    lines = [list(rows[0]), ["---"] * len(rows[0])]
    for row in rows:
        best = row["variant"] in bold
        cells = {key: _plain(value).replace("|", "\\|") for key, value in row.items()}
        lines.append([f"**{cell}**" if best and key == "BPB" else cell for key, cell in cells.items()])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _plain(text: str) -> str:
    """``text`` as Markdown that shows it as it is, in one line."""
    return re.sub(r"([\\`*\[<]|(?<!\w)_|_(?!\w))", r"\\\1", shown(text))


def as_csv(table: Table) -> str:
    """table.csv: the results of the variants with a header; what is not known is empty."""
    text = io.StringIO()
    writer = csv.DictWriter(text, [field.name for field in dataclasses.fields(VariantResult)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(vars(one) for one in table.variants)
    return text.getvalue()
