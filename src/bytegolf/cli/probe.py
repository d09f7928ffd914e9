"""The verb that looks into soft chunking."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter

from bytegolf.cli.common import COUNT, INSIDE, Data, Json, Model, answers, app, finish, screen
from bytegolf.errors import counted


@app.command(group=INSIDE, sort_key=23)
@answers("bytegolf.analyze.results:Probe")
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
    """
    from bytegolf.analyze.soft import probe_run
    from bytegolf.analyze.tables import of_probe
    from bytegolf.artifact import opening
    from bytegolf.artifact.loading import data_of
    from bytegolf.progress import Reporter

    opened = opening.load_model(model, data)
    reporter = Reporter()
    with reporter:
        result = probe_run(opened, data_of(opened, data), model, limit, reporter)
    console = screen(json)
    for grid in of_probe(result):
        console.print(grid.drawn())
    console.print(f"over {counted(result.tokens, 'token')}, {counted(result.bytes, 'byte')}")
    finish(json, result)
