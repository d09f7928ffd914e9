"""Answers that take a while: whoever leaves is noticed, whoever does not read is left."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Coroutine
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from bytegolf.errors import BytegolfError
from bytegolf.tools.serve.refusals import RefusedError
from bytegolf.tools.serve.worker import ClientLeftError, Job

Result = TypeVar("Result")

STALL_SECONDS = 60.0
"""How long a client may leave a piece of its answer lying."""


async def result_of(job: Job[Any], request: Request, made: Coroutine[Any, Any, Result] | None = None) -> Result:
    """What ``job`` comes to, or what is ``made`` of it; if the client leaves before, the job is cancelled.

    Raises ClientLeftError then.
    """
    leaving = asyncio.create_task(_left(request.receive))
    waiting: asyncio.Task[Result] = asyncio.create_task(made or job.result())
    try:
        await asyncio.wait((leaving, waiting), return_when=asyncio.FIRST_COMPLETED)
        if not waiting.done():
            raise ClientLeftError
        return waiting.result()
    finally:
        job.cancel()  # changes nothing where it is done
        leaving.cancel()
        waiting.cancel()


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class Events(Response):
    """Server-sent events: each piece of ``events`` as JSON, and ``[DONE]`` at the end, as OpenAI's clients expect it.

    An error that comes after the first event is an event of its own. ``job`` is cancelled if the client leaves.
    """

    media_type = "text/event-stream"

    def __init__(self, events: AsyncIterator[Any], job: Job[Any]) -> None:
        super().__init__()
        self.events, self.job = events, job
        del self.headers["content-length"]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send them."""

        async def put(text: str, more: bool = True) -> None:
            async with asyncio.timeout(STALL_SECONDS):
                await send({"type": "http.response.body", "body": text.encode(), "more_body": more})

        async def tell() -> None:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            try:
                async for event in self.events:
                    await put(f"data: {json.dumps(event, ensure_ascii=False)}\n\n")
            except RefusedError as refusal:
                await put(f"data: {json.dumps(refusal.body())}\n\n")
            except BytegolfError as error:
                await put(f"data: {json.dumps(RefusedError(400, str(error)).body())}\n\n")
            await put("data: [DONE]\n\n", more=False)

        telling, leaving = asyncio.create_task(tell()), asyncio.create_task(_left(receive))
        try:
            await asyncio.wait((telling, leaving), return_when=asyncio.FIRST_COMPLETED)
            if telling.done():
                telling.result()
        except (TimeoutError, OSError):
            pass  # whoever does not read is left: the connection closes
        except ClientLeftError:
            pass
        finally:
            self.job.cancel()
            telling.cancel()
            leaving.cancel()
