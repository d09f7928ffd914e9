"""The server itself: uvicorn around the application, with an address to open and a token where one is needed."""

from __future__ import annotations

import logging
import secrets
import socket
from collections.abc import Callable, Iterable

import uvicorn

from bytegolf.errors import BytegolfError
from bytegolf.tools.serve.guard import is_loopback
from bytegolf.tools.serve.routes import application
from bytegolf.tools.serve.served import Collection
from bytegolf.tools.serve.worker import Worker

MOST_CONNECTIONS = 512
KEEP_ALIVE_SECONDS = 30
GRACE_SECONDS = 3
"""What running answers get when the server is stopped."""

EVERYWHERE = ("", "0.0.0.0", "::")


def bound(host: str, port: int) -> socket.socket:
    """A socket that listens there; 0 is any free port. Raises BytegolfError if that cannot be."""
    try:
        family = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0][0]
        made = socket.socket(family, socket.SOCK_STREAM)
        try:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            made.bind((host, port))
        except OSError:
            made.close()
            raise
    except (OSError, OverflowError) as error:
        why = getattr(error, "strerror", None) or error
        raise BytegolfError(f"cannot listen at {host}:{port} ({why}): choose another --host or --port") from error
    return made


def address(host: str, port: int, token: str) -> str:
    """What to open in a browser. The token is in the fragment, which no server and no log gets to see."""
    shown = socket.gethostname() if host in EVERYWHERE else f"[{host}]" if ":" in host else host
    return f"http://{shown}:{port}/{f'#token={token}' if token else ''}"


def serve(
    models: Collection,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    token: str | None = None,
    names: Iterable[str] = (),
    threads: int = 0,
    most_jobs: int = 64,
    most_per_client: int = 8,
    tell: Callable[[str], None] = print,
) -> None:
    """Answer until Ctrl-C. ``tell`` is told the address once it answers.

    ``token``: None makes one where ``host`` is not loopback; "" asks for none. ``names``: further names of this machine
    in Host headers. ``threads``: of torch, for the model's work; 0 leaves one core to the server and the browser.
    Raises BytegolfError if it cannot listen there.
    """
    logging.getLogger("asyncio").setLevel(logging.ERROR)  # it warns of each piece for a client that has just left
    if token is None:
        token = "" if is_loopback(host) else secrets.token_urlsafe(18)
    with bound(host, port) as listening:
        port = listening.getsockname()[1]
        worker = Worker(most_jobs, most_per_client, threads)
        own = {socket.gethostname(), socket.getfqdn()} if not is_loopback(host) else set()
        app = application(models, worker, listens=host, token=token, names={*own, *names})
        config = uvicorn.Config(
            app,
            log_level="warning",
            limit_concurrency=MOST_CONNECTIONS,
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=GRACE_SECONDS,
            server_header=False,
            lifespan="on",
        )
        server = _Server(config, lambda: tell(address(host, port, token)))
        server.run(sockets=[listening])


class _Server(uvicorn.Server):
    """Tells when it answers."""

    def __init__(self, config: uvicorn.Config, ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._ready()
