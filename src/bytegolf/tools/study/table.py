"""The tables of a study: pure functions of its rows, as Markdown, CSV and plain data.

Scores are compared in bits per byte of the *original* text where every run knows it, so that a tokenizer that
normalises text gains nothing by it. Differences are paired: same seed against same seed.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from bytegolf.tools.study.definition import Study
from bytegolf.tools.study.plan import Job
from bytegolf.tools.study.results import Row
from bytegolf.tools.study.statistics import Difference, paired, spread

FLOAT = "float"
"""AttentionShape what was scored before quantisation."""

SAME, BETTER, WORSE, UNKNOWN = "=", "better", "worse", "?"
"""Verdicts: the interval holds zero; below it; above it; too few pairs for an interval."""


@dataclass(frozen=True)
class Line:
    """A variant over its seeds; None where there is nothing to say."""

    variant: str
    n: int
    missing: int
    """seeds without a result"""
    failed: int
    """of these, seeds whose run failed"""
    bpb: tuple[float, float | None] | None
    """mean and standard deviation of the compared score"""
    best: bool
    """whether no complete variant has a lower mean"""
    difference: Difference | None
    """to the control"""
    verdict: str
    fits: bool | None
    """whether every artifact keeps to the limit of 16,000,000 bytes, code included"""
    means: dict[str, float | None]
    """means over the seeds of COLUMNS"""


COLUMNS: dict[str, Callable[[Mapping[str, Any]], float | None]] = {
    "bpb_pieces": lambda summary: summary["bpb"],
    "bpb_original": lambda summary: summary["bpb_original"],
    "bpb_float": lambda summary: _float_score(summary),
    "total_bytes": lambda summary: summary["total_bytes"],
    "params": lambda summary: summary["params"],
    "train_seconds": lambda summary: summary["train_seconds"],
    "steps": lambda summary: summary["steps"],
    "train_bytes": lambda summary: summary["train_bytes"],
    "train_bytes_per_second": lambda summary: summary["train_bytes_per_second"],
    "rate": lambda summary: (summary["boundaries"] or {}).get("rate"),
    "whitespace_agreement": lambda summary: (summary["boundaries"] or {}).get("whitespace_agreement"),
    "cv": lambda summary: (summary["boundaries"] or {}).get("cv"),
    "mean_chunk_bytes": lambda summary: (summary["boundaries"] or {}).get("mean_chunk_bytes"),
}
"""What a table averages, from summary.json."""


@dataclass(frozen=True)
class Comparison:
    """Two variants, seed by seed."""

    variant: str
    other: str
    difference: Difference | None
    float_difference: Difference | None
    """the same before quantisation, where that was scored"""

    @property
    def verdict(self) -> str:
        """How the difference reads."""
        return verdict(self.difference)


@dataclass(frozen=True)
class Table:
    """All that is known of a study."""

    study: Study
    score: str
    """bpb_original, or bpb where some run does not know the original bytes"""
    subset: bool
    lines: list[Line]
    comparisons: list[Comparison]
    """with the control, then those that the file asks for"""
    errors: dict[str, str]
    """run → why it failed"""
    commits: list[str]
    versions: list[str]

    @property
    def has_floats(self) -> bool:
        """Whether some run was scored before quantisation as well (``eval.unquantised``)."""
        return any(line.means["bpb_float"] is not None for line in self.lines)


def _float_score(summary: Mapping[str, Any]) -> float | None:
    """Bits per byte before quantisation, over the bytes of ``bpb_original`` where that is known; None if not scored."""
    found = summary.get("bpb_unquantised")
    return None if found is None else float(found) * ((summary["bpb_original"] or summary["bpb"]) / summary["bpb"])


def tabulate(study: Study, rows: Mapping[Job, Row]) -> Table:
    """The table of ``rows``, the latest row of each job that has one."""
    done = {job: row["summary"] for job, row in rows.items() if row["status"] == "done"}
    score = "bpb_original" if all(s["bpb_original"] is not None for s in done.values()) else "bpb"
    scores: dict[str, dict[int, float]] = {variant.name: {} for variant in study.variants}
    floats: dict[str, dict[int, float]] = {variant.name: {} for variant in study.variants}
    for job, summary in done.items():
        scores[job.variant.name][job.seed] = float(summary[score])
        if (before := _float_score(summary)) is not None:
            floats[job.variant.name][job.seed] = before
    seeds = study.config.seeds
    means = {name: fmean(found.values()) for name, found in scores.items() if len(found) == len(seeds)}
    best = min(means, key=lambda name: means[name]) if means else None
    lines = []
    for variant in study.variants:
        name, found = variant.name, scores[variant.name]
        own = [summary for job, summary in done.items() if job.variant.name == name]
        failures = [row for job, row in rows.items() if job.variant.name == name and row["status"] == "failed"]
        gap = None if name == study.config.control else _paired(scores[study.config.control], found)
        lines.append(
            Line(
                name,
                len(found),
                len(seeds) - len(found),
                len(failures),
                spread(list(found.values())) if found else None,
                name == best,
                gap,
                verdict(gap),
                all(summary["fits"] for summary in own) if own else None,
                {key: _mean([value(summary) for summary in own]) for key, value in COLUMNS.items()},
            )
        )
    comparisons = [
        Comparison(first, second, *(_paired(found[second], found[first]) for found in (scores, floats)))
        for first, second in study.pairs()
    ]
    return Table(
        study,
        score,
        any(summary["subset"] for summary in done.values()),
        lines,
        comparisons,
        {job.label: row["error"] for job, row in rows.items() if row["status"] == "failed"},
        sorted({_commit(row.get("git")) for row in rows.values() if row["status"] == "done"}),
        sorted({f"torch {row['versions']['torch']}" for row in rows.values() if row["status"] == "done"}),
    )


def _paired(control: dict[int, float], candidate: dict[int, float]) -> Difference | None:
    seeds = sorted(control.keys() & candidate.keys())
    return paired([control[seed] for seed in seeds], [candidate[seed] for seed in seeds]) if seeds else None


def verdict(gap: Difference | None) -> str:
    """How a difference in bits per byte reads: lower is better, and an interval that holds zero is noise."""
    if gap is None:
        return ""
    if gap.half is None:
        return UNKNOWN
    return SAME if not gap.told_apart else BETTER if gap.mean < 0 else WORSE


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None


def _commit(git: Mapping[str, Any] | None) -> str:
    if git is None:
        return "no git checkout"
    return f"{git['commit'][:12]}{' with uncommitted changes' if git['modified'] else ''}"


# ------------------------------------------------------------------------------------------------ as text


def cells(table: Table) -> list[dict[str, str]]:
    """The table as text, a row a variant: what people read."""
    found, floats = [], table.has_floats
    for line in table.lines:
        means = line.means
        before = {FLOAT: _number(means["bpb_float"], ".4f")} if floats else {}
        found.append(
            {
                "variant": line.variant,
                "n": f"{line.n}" + (f" ({line.failed} failed)" if line.failed else ""),
                "BPB": _score(line),
                **before,
                "− control": difference(line.difference),
                "": line.verdict,
                "artifact bytes": _whole(means["total_bytes"]),
                "≤ 16 MB": "" if line.fits is None else "yes" if line.fits else "NO",
                "train s": _number(means["train_seconds"], ".0f"),
                "steps": _whole(means["steps"]),
                "bytes/s": _whole(means["train_bytes_per_second"]),
                "rate": _number(means["rate"], ".3f"),
                "at whitespace": _number(means["whitespace_agreement"], ".1%"),
                "CV": _number(means["cv"], ".2f"),
                "chunk bytes": _number(means["mean_chunk_bytes"], ".2f"),
            }
        )
    return found


def _score(line: Line) -> str:
    if line.bpb is None:
        return "-"
    mean, deviation = line.bpb
    text = f"{mean:.4f}" + ("" if deviation is None else f" ± {deviation:.4f}")
    return f"**{text}**" if line.best else text


def difference(gap: Difference | None) -> str:
    """−0.0123 ± 0.0045: the mean and half of its 95 % interval."""
    if gap is None:
        return "-"
    return f"{gap.mean:+.4f}" + ("" if gap.half is None else f" ± {gap.half:.4f}")


def _whole(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f}"


def _number(value: float | None, spec: str) -> str:
    return "-" if value is None else format(value, spec)


def notes(table: Table) -> list[str]:
    """What has to be known to read the table."""
    study = table.study
    original = "the original text" if table.score == "bpb_original" else "the tokens' text"
    scope = "a SUBSET of the validation split" if table.subset else "the full validation split"
    lines = [
        f"BPB: bits per byte of {original} over {scope}, mean ± standard deviation over seeds; the best in bold. "
        f"Budget of each run: {study.config.budget}, {study.config.threads} thread"
        f"{'s' if study.config.threads > 1 else ''}.",
        f"− control: paired difference to {study.config.control!r} over the same seeds ± half its 95 % interval "
        f"(Student's t); {SAME} within noise.",
    ]
    if table.has_floats:
        lines.append(f"{FLOAT}: the same before quantisation, a score or a paired difference.")
    lines += [
        f"Missing: {line.missing} of {len(study.config.seeds)} seeds of {line.variant!r}."
        for line in table.lines
        if line.missing
    ]
    lines += [f"Failed: {label}: {why}" for label, why in table.errors.items()]
    made = ", ".join([*table.commits, *table.versions]) or "nothing yet"
    return [*lines, f"Made by `bytegolf study run {study.path.name}`; code: {made}."]


def markdown(table: Table) -> str:
    """table.md: the question, the variants, comparisons that the file asks for, and notes."""
    study = table.study
    parts = [f"# {study.config.name}", study.config.question, _pipes(cells(table))]
    if study.config.compare:
        rows = [
            {
                "variant": one.variant,
                "with": one.other,
                "difference": difference(one.difference),
                "": one.verdict,
                **({FLOAT: difference(one.float_difference)} if table.has_floats else {}),
            }
            for one in table.comparisons[-len(study.config.compare) :]
        ]
        parts.append(_pipes(rows))
    return "\n\n".join([*parts, "\n".join(f"- {note}" for note in notes(table))]) + "\n"


def _pipes(rows: Sequence[Mapping[str, str]]) -> str:
    lines = ["| " + " | ".join(rows[0]) + " |", "|" + "---|" * len(rows[0])]
    lines += ["| " + " | ".join(value.replace("|", "\\|") for value in row.values()) + " |" for row in rows]
    return "\n".join(lines)


def plain(table: Table) -> list[dict[str, Any]]:
    """A row a variant with numbers: for JSON and CSV."""
    found = []
    for line in table.lines:
        mean, deviation = line.bpb or (None, None)
        gap = line.difference
        found.append(
            {
                "variant": line.variant,
                "n": line.n,
                "missing": line.missing,
                "failed": line.failed,
                "bpb": mean,
                "bpb_std": deviation,
                "best": line.best,
                "difference": gap.mean if gap else None,
                "difference_half_interval": gap.half if gap else None,
                "verdict": line.verdict or None,
                **line.means,
                "fits": line.fits,
            }
        )
    return found


def as_csv(table: Table) -> str:
    """table.csv: ``plain`` with a header; what is not known is empty."""
    rows, text = plain(table), io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
