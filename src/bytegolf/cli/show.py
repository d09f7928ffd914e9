"""What the verbs print for people: aligned tables, coloured chunks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from bytegolf.analyze.segment import titled
from bytegolf.api.results import Evaluation, Summary, scope
from bytegolf.api.run import Run
from bytegolf.config import MixConfig, TttConfig
from bytegolf.errors import counted
from bytegolf.evaluate.results import BoundaryFigures, Truncation
from bytegolf.infer.results import Compression


def score(console: Console, result: Evaluation) -> None:
    """A score as a table of two columns."""
    table = _facts()
    over = scope(result.subset, result.scored_share)
    rest = " (--tail score reads the rest too)" if over.endswith("% of the validation split") else ""
    table.add_row("bits per byte", f"{result.bpb:.4f} over {over}{rest}")
    if result.bpb_original is not None and abs(result.bpb_original - result.bpb) > 5e-5:
        table.add_row("", f"{result.bpb_original:.4f} over the original bytes, before normalisation")
    table.add_row("loss", f"{result.val_loss:.4f} nats per token")
    overlap = f", stride {result.stride}" if result.stride else ""
    dropped = f" ({result.tokens_dropped:,} not scored)" if result.tokens_dropped else ""
    table.add_row(
        "scored",
        f"{counted(result.tokens, 'token')}, {counted(result.bytes, 'byte')}{dropped} in windows of "
        f"{result.seq_len}{overlap}",
    )
    if result.one_pass:
        windows = f"windows of {result.one_pass.seq_len}, stride {result.one_pass.stride}"
        seen = ", then ".join(f"{positions:,}" for positions in result.receptive_field)
        table.add_row("", f"in one pass that stands for {windows}; attention sees {seen} positions")
    if result.ttt:
        table.add_row("learned", _learned(result.ttt, result.seq_len))
    if result.mix:
        table.add_row("mixed", _mixed(result.mix))
    table.add_row("speed", f"{result.bytes_per_second:,} bytes/s, {result.seconds:.1f} s")
    table.add_row("parameters", f"{result.params:,}")
    verdict = "fits" if result.fits else "TOO LARGE"
    table.add_row(
        "size",
        f"{result.artifact_bytes:,} model + {result.code_bytes:,} code = {result.total_bytes:,} of "
        f"{counted(result.limit_bytes, 'byte')}: {verdict}",
    )
    for row in (*_chunk_rows(result.boundaries), *_capacity_rows(result.capacity)):
        table.add_row(*row)
    console.print(table)


def _learned(ttt: TttConfig, seq_len: int) -> str:
    """What test-time training did, in words."""
    size = counted(ttt.chunk or seq_len, "token")
    how = f"LoRA of rank {ttt.rank}, rate {ttt.lora_lr:g}"
    if ttt.mode == "sgd":
        how = f"SGD, rate {ttt.sgd_lr:g}" if not ttt.rms_lr else f"SGD by gradients' size, rate {ttt.rms_lr:g}"
    reset = "afresh in each document" if ttt.reset == "document" else "carried on"
    return f"{how}, from each {size} after their score, {reset}"


def _mixed(mix: MixConfig) -> str:
    """What mixing did, in words."""
    reset = "afresh in each document" if mix.reset == "document" else "carried on"
    return f"with {len(mix.contexts)} contexts of what was scored before, {reset}"


def _chunk_rows(chunks: BoundaryFigures | None) -> Iterator[tuple[str, str]]:
    """What the chunks look like; a ratio is None where there was nothing to count."""
    if chunks is None:
        return
    mean, cv, rate = chunks.mean_chunk_bytes, chunks.cv, chunks.boundaries_per_256
    agreement, chance = chunks.whitespace_agreement, chunks.random_agreement
    if mean is None or cv is None or rate is None:
        yield "chunks", "none of them begins and ends within a window: the router hardly ever opens one"
    else:
        yield "chunks", f"{mean:.2f} bytes on average, CV {cv:.2f}, {rate:.1f} boundaries per 256 bytes"
    if agreement is not None and chance is not None:
        yield (
            "at whitespace",
            f"{agreement:.1%} of boundaries (before or behind a whitespace byte); placed at random {chance:.1%}",
        )


def _capacity_rows(levels: list[Truncation]) -> Iterator[tuple[str, str]]:
    """What fixed capacities dropped, a row each."""
    for level, counts in enumerate(levels):
        if counts.capacity == "fixed":
            yield (
                "capacity" if len(levels) == 1 else f"capacity {level}",
                f"1/{counts.divisor:g} of a window: truncated "
                f"{counted(counts.truncated_boundaries, 'boundary', 'boundaries')} in "
                f"{counts.truncated_windows / counts.windows:.1%} of windows",
            )


def compression(console: Console, result: Compression) -> None:
    """What `compress` came to as a table of two columns."""
    table = _facts()
    table.add_row("file", result.target)
    ratio = "" if result.bits_per_byte is None else f": {result.bits_per_byte:.4f} bits per byte"
    table.add_row("size", f"{result.original_bytes:,} → {counted(result.compressed_bytes, 'byte')}{ratio}")
    if result.artifact_sha256 and result.coded_blocks:
        table.add_row("streams", f"{result.streams}")
    if result.stored_blocks:
        table.add_row("stored", f"{counted(result.stored_blocks, 'block')}, which do not get smaller")
    table.add_row("speed", f"{result.bytes_per_second:,.0f} bytes/s, {result.seconds:.1f} s")
    console.print(table)


def rows(found: Sequence[Any]) -> Table:
    """Dataclasses of one type as a table with their fields' names as headings; numbers to the right."""
    table = Table(box=None, pad_edge=False)
    for key, value in vars(found[0]).items():
        table.add_column(key.replace("_", " "), justify="left" if isinstance(value, str) else "right")
    for row in found:
        table.add_row(*(_cell(value) for value in vars(row).values()))
    return table


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def outcome(console: Console, result: Run, summary: Summary) -> None:
    """The end of `train`: the score of the reloaded artifact, and a sentence's chunks before and after."""
    console.print()
    console.print(
        f"{summary.name}: {counted(summary.steps, 'step')}, {counted(summary.train_bytes, 'byte')} in "
        f"{summary.train_seconds:.0f} s of training ({summary.train_bytes_per_second or 0:,} bytes/s)"
        + (", stopped early" if summary.stopped_early else ""),
        soft_wrap=True,
    )
    score(console, summary)
    console.print(_quantisation_line(summary))
    for title, found in (("untrained", result.before), ("trained", result.after)):
        if found:
            titled(console, title, found)
    console.print(f"artifact: {summary.artifact}", soft_wrap=True)


def _quantisation_line(summary: Summary) -> str:
    """What quantising cost: on the whole split if that was scored before it too, else on training's sample."""
    pairs = (
        ("over what is scored", summary.bpb_unquantised, summary.bpb),
        ("on training's sample", summary.validation_bpb_unquantised_sample, summary.validation_bpb_sample),
    )
    for where, before, after in pairs:
        if before is not None and after is not None:
            spent = f"; GPTQ took {summary.gptq_seconds:.1f} s" if summary.gptq_seconds else ""
            cost = round(after - before, 4) + 0.0  # no -0.0000
            return f"quantisation: {before:.4f} → {after:.4f} bits per byte {where} ({cost:+.4f}){spent}"
    return "quantisation: what it cost was not measured (train.validate_tokens = 0)"


def _facts() -> Table:
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    return table
