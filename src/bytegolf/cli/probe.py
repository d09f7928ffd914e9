"""The verb that looks into soft chunking."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from bytegolf.cli.common import COUNT, Data, Json, Model, app, finish, screen


@app.command(sort_key=45)
def probe(
    model: Model,
    /,
    *,
    data: Data = None,
    limit: Annotated[
        int, Parameter(help="Look at about this many validation tokens; 0 = all.", validator=COUNT)
    ] = 65_536,
    json: Json = False,
) -> None:
    """Tell whether soft chunking chunks, or is the identity.

    How b is distributed, how far the layer's output is from that of b = 1,
    and the score with b as it is, forced to 1 (open) and to 0 (closed), and
    shuffled among the positions of a window.

    Example: bytegolf probe runs/soft

    JSON keys: tokens, bytes, bpb (as_is, open, closed, shuffled), layers (a list:
    mean, std, quantiles by percent, histogram (shares of 20 parts of 0 to 1),
    below_half, from_identity, whitespace (share of positions that touch it: all,
    lowest and highest tenth of b), boundaries (b of one half or more, the keys of
    eval's)), history (rows of metrics.jsonl, 20 at most: step, and for each layer
    b, std, gradient; empty for an artifact file).
    """
    from bytegolf.analyze import probing
    from bytegolf.artifact import loading as opening
    from bytegolf.progress import Reporter

    opened = opening.load_model(model, data)
    reporter = Reporter()
    with reporter:
        result = probing.probe(opened, data or Path(opened.config.data.path), model, limit, reporter)
    probing.show(screen(), result)
    finish(json, result)
