"""The server: what can be asked at which path, the schema of it (OpenAPI 3.1), and uvicorn around it."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import dataclasses
import functools
import logging
import secrets
import socket
import time
import types
import typing
from collections.abc import AsyncIterator, Callable, Generator, Iterable
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from bytegolf import __version__
from bytegolf.analyze.packing import ShownText
from bytegolf.analyze.page import POLICY, live_page
from bytegolf.errors import BytegolfError
from bytegolf.results import documentation, to_json
from bytegolf.tools.serve import answers, completions
from bytegolf.tools.serve.bodies import bytes_of, read_body, read_fields
from bytegolf.tools.serve.guard import Guard, is_loopback
from bytegolf.tools.serve.refusals import no_such_route
from bytegolf.tools.serve.served import COMPRESSED_HEADER, Collection, Served, milliseconds, packed_by_others
from bytegolf.tools.serve.worker import Events, Job, Kind, Worker, result_of

# ----------------------------------------------------------------------------------------------------------- the schema


PLAIN: dict[Any, dict[str, Any]] = {
    str: {"type": "string"},
    int: {"type": "integer"},
    float: {"type": "number"},
    bool: {"type": "boolean"},
    type(None): {"type": "null"},
}
FILE = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
POSTS = {
    "/segment": ("The chunks of a text, at every level", answers.TextRequest, answers.Segmented),
    "/score": ("The bits of a text, beside the usual compressors", answers.TextRequest, answers.Scored),
    "/read": ("All that the page draws of a text, packed", answers.ReadRequest, answers.ReadText),
    "/v1/completions": ("Texts continued, as OpenAI's clients expect it", answers.CompletionRequest, None),
}
REFUSALS = {
    400: "something in the request is wrong",
    401: "a token is needed",
    403: "the Host or the Origin is not this server",
    404: "there is no such model",
    413: "the text is too long",
    429: "too many requests of this client are not finished",
    503: "too many requests are waiting",
}


@functools.cache
def schema() -> dict[str, Any]:
    """The document."""
    parts: dict[str, Any] = {}
    error = {
        "type": "object",
        "properties": {
            "error": {
                "type": "object",
                "properties": {name: {"type": ["string", "null"]} for name in ("message", "type", "param", "code")},
            }
        },
    }
    refusals = {
        str(status): {"description": said, "content": {"application/json": {"schema": error}}}
        for status, said in REFUSALS.items()
    }

    def answer(kind: type | None) -> dict[str, Any]:
        found = {"type": "object"} if kind is None else _object(kind, parts)
        return {"200": {"description": "the answer", "content": {"application/json": {"schema": found}}}, **refusals}

    paths: dict[str, Any] = {
        "/v1/models": {"get": {"summary": "The models", "responses": answer(answers.Models)}},
        "/v1/models/{name}": {
            "get": {
                "summary": "One model",
                "parameters": [{"name": "name", "in": "path", "required": True, "schema": PLAIN[str]}],
                "responses": answer(answers.Model),
            }
        },
    }
    for path, (summary, asked, found) in POSTS.items():
        body = {"required": True, "content": {"application/json": {"schema": _object(asked, parts)}}}
        paths[path] = {"post": {"summary": summary, "requestBody": body, "responses": answer(found)}}
    for path, summary in (("/compress", "A file compressed"), ("/decompress", "A compressed file's original")):
        paths[path] = {
            "post": {
                "summary": summary,
                "parameters": [{"name": "model", "in": "query", "schema": PLAIN[str]}],
                "requestBody": {"required": True, "content": FILE},
                "responses": {"200": {"description": "the file", "content": FILE}, **refusals},
            }
        }
    return {
        "openapi": "3.1.0",
        "info": {"title": "bytegolf serve", "version": __version__},
        "paths": paths,
        "components": {
            "schemas": parts,
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{}, {"token": []}],
    }


def _object(kind: type, parts: dict[str, Any]) -> dict[str, Any]:
    """A reference to a dataclass, which is put among the ``parts``."""
    if kind.__name__ not in parts:
        parts[kind.__name__] = {}  # against endless recursion
        hints, said = typing.get_type_hints(kind), documentation(kind)
        properties = {}
        for one in dataclasses.fields(kind):
            found = _typed(hints[one.name], parts)
            if one.name in said:
                found = {**found, "description": said[one.name]}
            properties[one.name.rstrip("_")] = found
        required = [
            one.name.rstrip("_")
            for one in dataclasses.fields(kind)
            if one.default is dataclasses.MISSING and one.default_factory is dataclasses.MISSING
        ]
        parts[kind.__name__] = {"type": "object", "description": kind.__doc__ or "", "properties": properties}
        if required:
            parts[kind.__name__]["required"] = required
    return {"$ref": f"#/components/schemas/{kind.__name__}"}


def _typed(hint: Any, parts: dict[str, Any]) -> dict[str, Any]:
    if dataclasses.is_dataclass(hint):
        return _object(typing.cast(type, hint), parts)
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if isinstance(hint, types.UnionType):
        return {"anyOf": [_typed(one, parts) for one in arguments]}
    if origin is list:
        return {"type": "array", "items": _typed(arguments[0], parts)}
    if origin is dict:
        return {"type": "object", "additionalProperties": _typed(arguments[1], parts)}
    return PLAIN[hint]


# ------------------------------------------------------------------------------------------------------------ the paths


COMPARING = 2
"""Texts that go through the usual compressors at once, each in a thread of its own: they need no model."""


class Routes:
    """The answers; ``worker`` does what models do."""

    def __init__(self, models: Collection, worker: Worker) -> None:
        self.models, self.worker = models, worker
        self._comparing = asyncio.Semaphore(COMPARING)

    def table(self) -> list[Route]:
        """Path, method and what answers."""
        gets: dict[str, Callable[..., Any]] = {
            "/health": self.health,
            "/openapi.json": self.openapi,
            "/v1/models": self.list_models,
            "/v1/models/{name:path}": self.one_model,
        }
        posts: dict[str, Callable[..., Any]] = {
            "/v1/completions": self.complete,
            "/segment": self.segment,
            "/score": self.score,
            "/read": self.read,
            "/compress": self.compress,
            "/decompress": self.decompress,
        }
        pages = [Route(path, _file(body, kind)) for path, (body, kind) in live_page().items()]
        return [
            *pages,
            *(Route(path, each, methods=["GET"]) for path, each in gets.items()),
            *(Route(path, each, methods=["POST"]) for path, each in posts.items()),
        ]

    async def health(self, request: Request) -> Response:
        """Whether it is there, and how much waits."""
        return JSONResponse({"status": "ok", "waiting": self.worker.waiting})

    async def openapi(self, request: Request) -> Response:
        """The schema of all this."""
        return JSONResponse(schema())

    async def list_models(self, request: Request) -> Response:
        """The models."""
        return JSONResponse(to_json(self.models.about()))

    async def one_model(self, request: Request) -> Response:
        """One of them."""
        return JSONResponse(to_json(self.models.named(request.path_params["name"]).about()))

    async def segment(self, request: Request) -> Response:
        """The chunks of a text."""
        served, data = await self._text(request)
        return JSONResponse(to_json(await result_of(self._job(request, served.segmented(data)), request)))

    async def score(self, request: Request) -> Response:
        """The bits of a text, beside what compressors need."""
        served, data = await self._text(request)
        found = to_json(await result_of(self._job(request, served.scored(data)), request))
        async with self._comparing:
            found["compressors"] = to_json(await asyncio.to_thread(packed_by_others, data))
        return JSONResponse(found)

    async def read(self, request: Request) -> Response:
        """What the page draws."""
        asked = await read_fields(request, answers.ReadRequest, self.models.limit)
        served, data = self.models.named(asked.model), bytes_of(asked.text, asked.base64, self.models.limit)
        job = self._job(request, self._reading(served, data, asked.from_))
        return JSONResponse(to_json(await result_of(job, request)))

    def _reading(self, served: Served, data: bytes, start: int) -> Generator[None, None, answers.ReadText]:
        since = time.perf_counter()
        live = yield from served.read(data)
        excerpt = ShownText.of(live, served.model.tokenizer, self.models.reference)
        # what lies before the change may be otherwise all the same: subwords look ahead, a fixed capacity is a share
        start = min(max(0, start), len(data)) if served.bytewise and served.reader.stepwise else 0
        packed, kept = excerpt.packed(start), live.reading.data
        return answers.ReadText(
            model=served.name,
            from_=start,
            bytes=len(kept),
            data=None if kept == data else base64.b64encode(kept).decode(),
            bits=packed.pop("bits"),
            levels=[answers.ReadLevel(**level) for level in packed.pop("levels")],
            expected=answers.Expected(**packed.pop("expected")),
            **packed,
            computed=live.computed,
            milliseconds=milliseconds(since),
        )

    async def complete(self, request: Request) -> Response:
        """Continue texts."""
        asked = await read_fields(request, answers.CompletionRequest, self.models.limit)
        order = completions.Order.of(asked, self.models.named(asked.model), self.models.limit)
        job = self._job(request, completions.drawing(order), "long")
        if asked.stream:
            return Events(completions.stream(order, job), job)
        return JSONResponse(await result_of(job, request, completions.whole(order, job)))

    async def compress(self, request: Request) -> Response:
        """A file compressed."""
        data = await read_body(request, self.models.limit)
        return await self._file_job(request, lambda served, tell: served.compressed(data, tell))

    async def decompress(self, request: Request) -> Response:
        """A compressed file's original."""
        limit = self.models.limit
        data = await read_body(request, limit + COMPRESSED_HEADER)
        return await self._file_job(request, lambda served, tell: served.decompressed(data, limit, tell))

    async def _file_job(
        self, request: Request, work: Callable[[Served, Callable[[Any], None]], Generator[Any, None, bytes]]
    ) -> Response:
        served = self.models.named(request.query_params.get("model", ""))
        job = self._job(request, work(served, self.worker.breathe), "heavy")
        if request.query_params.get("events"):
            return Events(_progress(job), job)
        return Response(await result_of(job, request), media_type="application/octet-stream")

    async def _text(self, request: Request) -> tuple[Served, bytes]:
        asked = await read_fields(request, answers.TextRequest, self.models.limit)
        return self.models.named(asked.model), bytes_of(asked.text, asked.base64, self.models.limit)

    def _job(self, request: Request, steps: Generator[Any, None, Any], kind: Kind = "quick") -> Job[Any]:
        """Hand a job to the worker, in the name of the address, and of the page within it, that it is for."""
        address = request.client.host if request.client else ""
        return self.worker.submit(f"{address} {request.headers.get('x-client', '')[:64]}", steps, kind)


def _file(body: str, kind: str) -> Callable[[Request], Any]:
    async def serve(request: Request) -> Response:
        return Response(body, media_type=kind, headers={"content-security-policy": POLICY})

    return serve


async def _progress(job: Job[bytes]) -> AsyncIterator[dict[str, Any]]:
    """How far a file is, and at last its bytes."""
    async for done in job.pieces():
        yield {"done": done}
    yield {"base64": base64.b64encode(await job.result()).decode()}


def application(
    models: Collection, worker: Worker, *, listens: str = "localhost", token: str = "", names: Iterable[str] = ()
) -> Starlette:
    """The application that answers at the address ``listens``; ``worker`` runs for as long as it does.

    ``token``: what a request must carry. ``names``: hosts that it may be asked as, besides that address.
    """

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        worker.start()
        yield
        await asyncio.to_thread(worker.stop)

    guard = Middleware(Guard, listens=listens, token=token, names=tuple(names))
    return Starlette(
        routes=Routes(models, worker).table(),
        middleware=[guard],
        lifespan=lifespan,
        exception_handlers={HTTPException: no_such_route},
    )


# ----------------------------------------------------------------------------------------------------------- the server


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
