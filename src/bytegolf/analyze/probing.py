"""What the soft chunking of an artifact does: over validation text, over its run's training, and on any texts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from bytegolf.analyze import soft
from bytegolf.analyze.reading import Reading, join
from bytegolf.artifact.loading import LoadedModel
from bytegolf.data.shards import open_split
from bytegolf.progress import Reporter
from bytegolf.training.metrics import read_metrics

HISTORY = 20
"""Rows of a run's history that are told."""


def probe(opened: LoadedModel, data: Path, source: Path, limit: int, reporter: Reporter) -> dict[str, Any]:
    """What ``analyze.soft.probe`` finds, and ``history``: rows of the run ``source``'s metrics.jsonl, spread evenly."""
    tokenizer = opened.tokenizer
    stream = open_split(data, tokenizer.name, "val", tokenizer.vocab_size)
    result = soft.probe(
        opened.model,
        stream,
        tokenizer,
        opened.config.train.seq_len,
        limit=limit,
        progress=lambda name, total: reporter.progress(f"{name} · {total.tokens:,} tokens · bpb {total.bpb:.4f}"),
    )
    rows = [row for row in read_metrics(source / "metrics.jsonl") if "soft" in row] if source.is_dir() else []
    count = min(HISTORY, len(rows))
    picked = [rows[round(index * (len(rows) - 1) / max(1, count - 1))] for index in range(count)]
    return {**result, "history": [{"step": row["step"], "layers": row["soft"]} for row in picked]}


def on_texts(
    opened: LoadedModel,
    texts: Sequence[NDArray[np.int64]],
    found: Sequence[Reading],
    edges: Bool[np.ndarray, " N"] | None,
    threshold: float,
    again: Callable[[NDArray[np.int64], str], Reading],
) -> dict[str, Any] | None:
    """What a model's soft chunking does on ``texts``, whose readings are ``found``; None without it.

    ``again`` reads a text anew, and is told why. Keys: threshold, bpb (as_is, open, closed, shuffled) and layers, each
    with the keys of ``soft.layers`` and edges (``soft.extremes`` of the BPE token starts ``edges`` of the joined texts;
    None without them, or behind a router).
    """
    model = opened.model
    if model.soft is None:
        return None
    whole = join(found)
    bpb = {}
    for name, (what, override) in soft.forcings().items():
        with model.soft.forced(override):
            bpb[name] = join([again(ids, what) for ids in texts]).bpb if override else whole.bpb
    layers = soft.layers(model, opened.tokenizer, soft.of_texts(texts, opened.config.train.seq_len), threshold)
    for number, layer in enumerate(layers):
        layer["edges"] = None
        if edges is not None and not model.levels():
            cut = whole.level(number)
            layer["edges"] = soft.extremes(cut.p[cut.candidates], edges[cut.candidates])
    return {"threshold": threshold, "bpb": bpb, "layers": layers}


def show(console: Console, result: dict[str, Any]) -> None:
    """The probe as tables: the scores, then each layer."""
    bpb = result["bpb"]
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    table.add_row("bits per byte", f"{bpb['as_is']:.4f} over {result['tokens']:,} tokens, {result['bytes']:,} bytes")
    for name, (what, override) in soft.forcings().items():
        if override:
            table.add_row("", f"{bpb[name]:.4f} ({bpb[name] - bpb['as_is']:+.4f}) with {what}")
    for number, layer in enumerate(result["layers"]):
        quantiles, white, chunks = layer["quantiles"], layer["whitespace"], layer["boundaries"]
        table.add_row(
            f"layer {number}: b",
            f"mean {layer['mean']:.3f}, standard deviation {layer['std']:.3f}; {layer['below_half']:.1%} below ½",
        )
        table.add_row("", "quantiles " + ", ".join(f"{at} %: {value:.3f}" for at, value in quantiles.items()))
        table.add_row("from identity", f"{layer['from_identity']:.4f} of ‖W·x‖")
        table.add_row(
            "at whitespace",
            f"{white['highest']:.1%} of the highest tenth of b, {white['lowest']:.1%} of the lowest, "
            f"{white['all']:.1%} of all positions",
        )
        mean = chunks["mean_chunk_bytes"]
        if mean is not None:
            table.add_row("b ≥ ½", f"{chunks['rate']:.1%} of positions, chunks of {mean:.2f} bytes")
    for title, row in zip(("first row", "last row"), (result["history"][:1], result["history"][-1:]), strict=True):
        for told in row:
            layers = "; ".join(
                f"b {one['b']:.3f} ± {one['std']:.3f}, gradient {one['gradient']:.2e}" for one in told["layers"]
            )
            table.add_row(f"{title} of training", f"step {told['step']}: {layers}")
    console.print(table)
