"""What can be asked, at which path."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Generator, Iterable
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from bytegolf.analyze.packing import ShownText
from bytegolf.analyze.page import POLICY, live_page
from bytegolf.results import to_json
from bytegolf.tools.serve import answers, completions
from bytegolf.tools.serve.bodies import bytes_of, read_body, read_fields
from bytegolf.tools.serve.events import Events, result_of
from bytegolf.tools.serve.guard import Guard
from bytegolf.tools.serve.openapi import schema
from bytegolf.tools.serve.refusals import no_such_route
from bytegolf.tools.serve.served import COMPRESSED_HEADER, Collection, Served, milliseconds, packed_by_others
from bytegolf.tools.serve.worker import Job, Kind, Worker

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
