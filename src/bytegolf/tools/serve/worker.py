"""One thread that does all work of models, in turns: the event loop never waits, and a short job never waits long.

A job is a generator: each ``next`` does a little work and may give a piece of the answer. Quick jobs come first, one
after the other: most of them, a letter that was typed, are done in a few milliseconds, and taking turns would only end
all of them late. Those that take long, or were thought to be quick and are not, take turns: one gets a slice whenever
nothing quick waits, and in any case behind every fourth quick one. So who types does not wait for whoever generates,
and whoever generates still gets on.

Three things bound what can pile up: the number of jobs, of each client's jobs, and of pieces that a client has not
taken yet; a job whose client is slow rests until they are.

A heavy job is one call that takes long (the codec's). It lets the others run from inside, by calling ``breathe``; no
second heavy job begins meanwhile.
"""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Coroutine, Generator
from typing import Any, Generic, Literal, TypeVar

import torch
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from bytegolf.errors import BytegolfError
from bytegolf.tools.serve.refusals import RefusedError

# -------------------------------------------------------------------------------------------- answers that take a while


# ----------------------------------------------------------------------------------------------------------- the worker


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


Kind = Literal["quick", "long", "heavy"]
"""How long a job is going to take; heavy is one call, which ``breathe``s."""

SLICE_SECONDS = 0.02

QUICK_SECONDS = 0.1
"""Of processor time, after which a job counts as one that takes long."""

QUICK_IN_A_ROW = 4
"""Quick jobs that are done before a slice of another one."""

MOST_PIECES = 64
"""Pieces of an answer that wait for a client."""


class ClientLeftError(Exception):
    """The client has left."""


class Job(Generic[Result]):
    """A job as its client sees it: ``pieces`` as they come, then ``result``; both on the event loop that made it."""

    def __init__(self, worker: Worker, client: str, steps: Generator[Any, None, Result], kind: Kind) -> None:
        self.steps, self.client, self.kind = steps, client, kind
        self.cancelled = False
        self.resting = False
        self.counted = True
        self.used = 0.0
        """seconds of processor time so far"""
        self._worker = worker
        self._loop = asyncio.get_running_loop()
        self._pieces: deque[Any] = deque()
        self._quicks = asyncio.Event()
        self._done: asyncio.Future[Result] = self._loop.create_future()
        self._done.add_done_callback(lambda done: done.cancelled() or done.exception())  # nobody may be there to ask

    async def result(self) -> Result:
        """What the job's generator returned; pieces that were not taken are lost. Raises what the generator raised."""
        async for _ in self.pieces():
            pass
        return await self._done

    async def pieces(self) -> AsyncIterator[Any]:
        """What the generator yields, but None."""
        while True:
            while self._pieces:
                piece = self._pieces.popleft()
                if self.resting and self.taken():
                    self._worker.wake(self)
                yield piece
            if self._done.done():
                return
            self._quicks.clear()
            await self._quicks.wait()

    def cancel(self) -> None:
        """The client has left: the job ends at its next step, and its generator is closed."""
        self.cancelled = True
        self._worker.wake(self)

    # called by the thread

    def give(self, piece: Any) -> bool:
        """Hand over a piece; whether there is room for more."""
        self._pieces.append(piece)
        self._tell(self._quicks.set)
        return len(self._pieces) < MOST_PIECES

    def taken(self) -> bool:
        """Whether the client has taken most of the pieces by now."""
        return len(self._pieces) < MOST_PIECES // 2

    def end(self, result: Result | None = None, error: BaseException | None = None) -> None:
        """No more steps."""

        def settle() -> None:
            if not self._done.done():
                self._done.set_exception(error) if error else self._done.set_result(result)  # type: ignore[arg-type]
            self._quicks.set()

        self._tell(settle)

    def _tell(self, what: Callable[[], Any]) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(what)


class Worker:
    """The thread, and the jobs that wait for it."""

    def __init__(self, most_jobs: int = 64, most_per_client: int = 8, threads: int = 0) -> None:
        """``threads``: of torch; 0 is one less than there are cores, which is left to everything else."""
        self.most_jobs, self.most_per_client = most_jobs, most_per_client
        self.threads = threads or max(1, torch.get_num_threads() - 1)
        self._quick: deque[Job[Any]] = deque()
        self._long: deque[Job[Any]] = deque()
        self._row = 0
        """quick jobs since the last slice of another"""
        self._clients: Counter[str] = Counter()
        """unfinished jobs of each client"""
        self._changed = threading.Condition()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="model", daemon=True)
        self._current: list[Job[Any]] = []
        """the job that runs; behind it, one that runs within it"""

    def start(self) -> None:
        """Let it work."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread at its next step; jobs that are left are cancelled."""
        with self._changed:
            self._stopping = True
            for job in [*self._quick, *self._long, *self._current]:
                job.cancelled = True
            self._changed.notify()
        if self._thread.is_alive():
            self._thread.join(timeout=10)

    @property
    def waiting(self) -> int:
        """Jobs that somebody waits for."""
        return self._clients.total()

    def submit(self, client: str, steps: Generator[Any, None, Result], kind: Kind = "quick") -> Job[Result]:
        """Have a job done.

        Raises RefusedError with 429 if ``client`` has too many already, or 503 if all have together.
        """
        with self._changed:
            if self._clients[client] >= self.most_per_client:
                raise RefusedError(
                    429,
                    f"{self.most_per_client} requests of yours are not finished yet: wait for one of them",
                    code="rate_limit_exceeded",
                )
            if self.waiting >= self.most_jobs or self._stopping:
                raise RefusedError(
                    503, f"{self.most_jobs} requests are waiting: try again in a moment", code="overloaded"
                )
            self._clients[client] += 1
            job = Job(self, client, steps, kind)
            self._put(job)
        return job

    def wake(self, job: Job[Any]) -> None:
        """Let a resting job go on, or one that was cancelled end at once."""
        with self._changed:
            if job.resting:
                job.resting = False
                self._put(job)
            elif job.cancelled and job in self._long:
                self._long.remove(job)
                self._put(job)
            if job.cancelled:
                self._free(job)

    def breathe(self, piece: Any = None) -> None:
        """Called inside a heavy job: do what is quick, and a slice of another; ClientLeftError if the client left.

        ``piece`` goes to the heavy job's client, unless too many wait for it.
        """
        mine = self._current[-1]
        if mine.cancelled:
            raise ClientLeftError
        if piece is not None and mine.taken():
            mine.give(piece)
        for _ in range(QUICK_IN_A_ROW + 1):
            job = self._next(light=True)
            if job is None:
                return
            self._advance(job)

    def _put(self, job: Job[Any]) -> None:
        if job.cancelled:
            self._quick.appendleft(job)
        else:
            (self._quick if job.kind == "quick" and job.used <= QUICK_SECONDS else self._long).append(job)
        self._changed.notify()

    def _run(self) -> None:
        torch.set_num_threads(self.threads)  # a thread has its own number
        while True:
            with self._changed:
                while not self._quick and not self._long and not self._stopping:
                    self._changed.wait()
                if not self._quick and not self._long:
                    return
            if job := self._next():
                self._advance(job)

    def _next(self, light: bool = False) -> Job[Any] | None:
        with self._changed:
            if self._quick and (self._row < QUICK_IN_A_ROW or not self._long):
                self._row += 1
                return self._quick.popleft()
            self._row = 0
            for at, job in enumerate(self._long):
                if not (light and job.kind == "heavy"):
                    del self._long[at]
                    return job
            return self._quick.popleft() if self._quick else None

    def _advance(self, job: Job[Any]) -> None:
        """Give a job its slice."""
        since = time.thread_time()
        slice_ = QUICK_SECONDS if job.kind == "quick" and job.used <= QUICK_SECONDS else SLICE_SECONDS
        self._current.append(job)
        try:
            while not job.cancelled:
                piece = next(job.steps)
                room = piece is None or job.give(piece)
                used = time.thread_time() - since
                if not room or used > slice_:
                    job.used += used
                    with self._changed:
                        if room or job.cancelled or job.taken():
                            self._put(job)
                        else:
                            job.resting = True
                    return
            raise ClientLeftError
        except StopIteration as done:
            self._end(job, result=done.value)
        except BaseException as error:
            self._end(job, error=error)
        finally:
            self._current.pop()

    def _end(self, job: Job[Any], result: Any = None, error: BaseException | None = None) -> None:
        job.steps.close()
        with self._changed:
            self._free(job)
        job.end(result, error)

    def _free(self, job: Job[Any]) -> None:
        """A job no longer counts among those that wait: it is done, or nobody waits for it."""
        if job.counted:
            job.counted = False
            self._clients[job.client] -= 1
            if not self._clients[job.client]:
                del self._clients[job.client]
