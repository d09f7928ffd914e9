"""The table of what soft chunking does."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from bytegolf.analyze.grid import Grid, number, percent
from bytegolf.analyze.soft import forcings


def soft_chunking(models: list[dict[str, Any]]) -> Iterator[Grid]:
    """What soft chunking does, a column a layer; the scores are a model's, and stand in its first column."""
    found = []
    for model in models:
        layers = model["soft"]["layers"] if model["soft"] else []
        for place, layer in enumerate(layers):
            name = f"{model['name']} · layer {place}" if len(layers) > 1 else model["name"]
            found.append((name, None if place else model["soft"]["bpb"], layer))
    if not found:
        return
    scores, layers = [bpb for _, bpb, _ in found], [layer for _, _, layer in found]
    rows = [["bits per byte, b as it is", *(number(bpb and bpb["as_is"], 4) for bpb in scores)]]
    for key, (what, override) in forcings().items():
        if override:
            rows.append([f"· {what}", *(_against(bpb, key) for bpb in scores)])
    rows += [
        ["b, mean ± std", *(f"{one['mean']:.3f} ± {one['std']:.3f}" for one in layers)],
        *([f"· {at} % of them below", *(f"{one['quantiles'][at]:.3f}" for one in layers)] for at in ("10", "50", "90")),
        ["· below ½", *(percent(one["below_half"]) for one in layers)],
        ["from the identity", *(number(one["from_identity"], 3) for one in layers)],
    ]
    for what, key in (("at whitespace", "whitespace"), ("at BPE edges", "edges")):
        if any(one[key] for one in layers):
            rows.append([f"highest tenth of b {what}", *(_beside_all(one[key], "highest") for one in layers)])
            rows.append([f"· lowest tenth {what}", *(_beside_all(one[key], "lowest") for one in layers)])
    yield Grid(
        "soft chunking; in brackets the change, or what all positions have", ["", *(name for name, _, _ in found)], rows
    )


def _against(bpb: dict[str, float] | None, key: str) -> str:
    return f"{bpb[key]:.4f} ({bpb[key] - bpb['as_is']:+.4f})" if bpb else "–"


def _beside_all(shares: dict[str, float] | None, key: str) -> str:
    return f"{percent(shares[key])} ({percent(shares['all'])})" if shares else "–"
