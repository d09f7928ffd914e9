"""The verb that serves models."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter, validators

from bytegolf.cli.common import COUNT, INSIDE, Data, app, screen
from bytegolf.errors import BytegolfError, install


@app.command(group=INSIDE, sort_key=24)
def serve(
    *models: Annotated[Path, Parameter(help="Runs' folders or artifact files; two of them can be compared.")],
    host: Annotated[str, Parameter(help="The address to listen at; 0.0.0.0 is all of them.")] = "127.0.0.1",
    port: Annotated[
        int, Parameter(help="The port; 0 is any that is free.", validator=validators.Number(gte=0, lt=65536))
    ] = 8000,
    token: Annotated[
        str | None, Parameter(help="What requests must carry. By default one is made up, but for loopback.")
    ] = None,
    allow_host: Annotated[
        tuple[str, ...], Parameter(help="Another name of this machine in a browser's address; may be repeated.")
    ] = (),
    bpe: Annotated[
        str, Parameter(help="SentencePiece tokenizer to show beside the chunks: a .model file or a name in the data.")
    ] = "",
    limit: Annotated[
        int, Parameter(help="Bytes of a text or a file, at most.", validator=validators.Number(gte=1))
    ] = 262_144,
    cache: Annotated[int, Parameter(help="Megabytes to remember texts in.", validator=COUNT)] = 256,
    queue: Annotated[int, Parameter(help="Requests that may wait.", validator=validators.Number(gte=1))] = 64,
    threads: Annotated[int, Parameter(help="For the model's work; 0 leaves one core free.", validator=COUNT)] = 0,
    data: Data = None,
) -> None:
    """Serve models to a browser and to programs.

    The page shows a text in chunks as it is typed: p of each boundary, surprisal,
    the next byte's candidates, bits per byte beside the usual compressors, and what
    an edit changes. It generates, compresses and compares models. Programs get
    the same as JSON, and /v1/completions as OpenAI's clients expect it; see
    /openapi.json. Needs `pip install 'bytegolf[serve]'`.

    Example: bytegolf serve runs/cpu-demo
    Example: bytegolf serve runs/cpu-demo runs/other --port 0
    """
    try:
        import starlette  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise BytegolfError(f"serving needs {error.name}: {install('serve')}") from error
    from bytegolf.tools.serve.routes import serve as run
    from bytegolf.tools.serve.served import Collection

    found = Collection.open(models, data, bpe, limit, cache * 1_000_000)
    found.warm_up()
    console = screen()

    def tell(address: str) -> None:
        console.print(f"serving {', '.join(found.models)} at {address} (Ctrl-C stops it)", soft_wrap=True)

    run(
        found,
        host=host,
        port=port,
        token=token,
        names=allow_host,
        threads=threads,
        most_jobs=queue,
        most_per_client=min(8, queue),
        tell=tell,
    )
