"""`bytegolf serve`: how long from a key to the picture, and what fifty clients at once do to it.

    python benchmarks/serving.py page --model runs/cpu-demo     # in a headless Chromium; beside others, as nice -n -12
    python benchmarks/serving.py load --model runs/cpu-demo --seconds 20

`page` types into a text of 2,000 bytes: at its end, in its middle, at its beginning. The time runs from the key to
the painted frame, by the browser's own clock; up to 16 ms of it are waiting for the frame.

`load` has, of every ten clients, six that type into 2 kB, one that has texts continued, one that reads its stream
slowly, one that pastes 10 MB or sends what is no UTF-8, and one that leaves in the middle of its request.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import os
import random
import statistics
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import browser

WORDS = ("the", "of", "people", "and", "government", "congress", "states", "public", "great", "present", "united")
TYPED = 2000
"""Bytes of a text that is typed into."""


@contextlib.contextmanager
def served(model: Path, *options: str) -> Iterator[tuple[str, int, int]]:
    """A server of its own; its host, port and process number."""
    command = [sys.executable, "-m", "bytegolf", "serve", str(model), "--port", "0", *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout
    try:
        while " at http://" not in (line := process.stdout.readline()):
            assert line, "the server ended"
        host, _, port = line.split(" at http://")[1].split("/")[0].partition(":")
        yield host, int(port), process.pid
        assert process.poll() is None, "the server has ended"
    finally:
        process.terminate()
        process.wait(30)


def processor(process: int) -> float:
    """Milliseconds of processor time that a process and its children have used so far (Linux)."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    used = 1e3 * (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    return used + sum(processor(int(child)) for child in children)


def prefer(process: int) -> None:
    """Give all threads of a process and its children this one's priority (Linux): a browser sets its own to 0, so that
    beside others the benchmark would measure these.
    """
    for task in Path(f"/proc/{process}/task").iterdir():
        with contextlib.suppress(OSError):  # it may have ended
            os.setpriority(os.PRIO_PROCESS, int(task.name), os.getpriority(os.PRIO_PROCESS, 0))
            for child in (task / "children").read_text().split():
                prefer(int(child))


def words(count: int, seed: int) -> str:
    """A text of so many bytes."""
    draw = random.Random(seed)
    return " ".join(draw.choices(WORDS, k=count // 4))[:count]


def row(*cells: object) -> None:
    """A line of a table."""
    print("| " + " | ".join(str(cell) for cell in cells) + " |", flush=True)


def quantiles(found: list[float]) -> tuple[str, str, str]:
    """Median, 95 % and the largest, in whole milliseconds."""
    ranked = sorted(found)
    return tuple(f"{value:.0f}" for value in (statistics.median(ranked), ranked[int(0.95 * len(ranked))], ranked[-1]))  # type: ignore[return-value]


def page(model: Path, keys: int) -> None:
    """Type, and print a table."""
    with served(model) as (host, port, process), browser.running() as found:
        found.open(f"http://{host}:{port}/")
        found.until("typeof live !== 'undefined' && live.panes.length > 0 && live.panes[0].reading && !busy")
        head = (
            "typed",
            "keys",
            "median ms",
            "95 %",
            "most",
            "of it the model's",
            "tokens computed",
            "processor ms: server",
        )
        row(*head, "browser")
        row(*["---"] * 9)
        places = (("at the end", 1.0), ("in the middle", 0.5), ("at the beginning", 0.0))
        for seed, (name, share) in enumerate(places, 1):
            text = words(TYPED, seed)  # of its own: nothing of it is known
            found.run(f"editor.value = {json.dumps(text)}; changed()")
            found.until(f"!busy && live.panes[0].reading.data.length === {len(text)}")
            found.run(f"editor.focus(); editor.setSelectionRange({int(share * TYPED)}, {int(share * TYPED)})")
            found.run("performance.clearMeasures()")
            prefer(found.process)
            time.sleep(0.5)
            before = [processor(process), processor(found.process)]
            for letter, size in zip(itertools.cycle("and so "), range(TYPED + 1, TYPED + keys + 1), strict=False):
                found.type(letter)
                found.until(f"performance.getEntriesByName('key to picture').at(-1)?.detail.bytes === {size}")
                time.sleep(0.3)  # what comes behind the picture (the compressors) is not part of the next key
            measured = found.run(
                "performance.getEntriesByName('key to picture').map((one) => [one.duration, one.detail])"
            )
            times = [duration for duration, _ in measured]
            server = statistics.median(detail["milliseconds"] for _, detail in measured)
            computed = statistics.median(detail["computed"] for _, detail in measured)
            used = [
                (now - then) / keys
                for now, then in zip((processor(process), processor(found.process)), before, strict=True)
            ]
            row(name, len(times), *quantiles(times), *(f"{value:.0f}" for value in (server, computed, *used)))


class Load:
    """Fifty clients, and what they were answered."""

    def __init__(self, host: str, port: int, until: float) -> None:
        self.host, self.port, self.until = host, port, until
        self.times: dict[str, list[float]] = defaultdict(list)
        self.statuses: dict[str, Counter[int]] = defaultdict(Counter)

    async def ask(
        self, kind: str, client: int, path: str, body: bytes, pause: float = 0, leave: float | None = None
    ) -> bytes:
        """One request on a connection of its own. ``pause``: seconds before each piece of the answer is taken;
        ``leave``: seconds after which the connection is closed.
        """
        since = time.perf_counter()
        reader, writer = await asyncio.open_connection(self.host, self.port)
        try:
            head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nX-Client: {client}\r\n"
            writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
            if leave is not None:
                await asyncio.sleep(leave)
                self.statuses[kind][0] += 1
                return b""
            await writer.drain()
            answer = b""
            while piece := await reader.read(1 << 10 if pause else 1 << 16):
                answer += piece
                await asyncio.sleep(pause)
            self.statuses[kind][int(answer.split(b" ", 2)[1])] += 1
            self.times[kind].append(1e3 * (time.perf_counter() - since))
            return answer
        except (ConnectionError, IndexError):
            self.statuses[kind][-1] += 1
            return b""
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()

    async def client(self, number: int) -> None:
        """One client, until time is over."""
        draw, text = random.Random(number), words(TYPED, number)
        while time.monotonic() < self.until:
            role = number % 10
            if role < 6:
                text += draw.choice("abc ")
                asked = json.dumps({"text": text, "from": len(text) - 1}).encode()
                await self.ask("types into 2 kB", number, "/read", asked)
                await asyncio.sleep(draw.uniform(0.1, 0.3))
            elif role == 6:
                asked = json.dumps({"prompt": text[:200], "max_tokens": 200, "stream": True}).encode()
                await self.ask("generates 200 bytes", number, "/v1/completions", asked)
            elif role == 7:
                asked = json.dumps({"prompt": text[:200], "max_tokens": 200, "stream": True, "logprobs": 5}).encode()
                await self.ask("reads its stream slowly", number, "/v1/completions", asked, pause=0.2)
            elif role == 8 and draw.random() < 0.5:
                await self.ask("pastes 10 MB", number, "/read", b'{"text": "' + b"x" * 10_000_000 + b'"}')
                await asyncio.sleep(0.5)
            elif role == 8:
                await self.ask("sends no UTF-8", number, "/segment", draw.randbytes(2000))
                await asyncio.sleep(0.2)
            else:
                asked = json.dumps({"prompt": text[:200], "max_tokens": 2000, "stream": True}).encode()
                await self.ask("leaves", number, "/v1/completions", asked, leave=draw.uniform(0, 0.5))


def resident(process: int) -> int:
    """Megabytes of memory that a process has (Linux)."""
    pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") // 1_000_000


def load(model: Path, clients: int, seconds: float) -> None:
    """Have them all ask at once, and print a table."""
    with served(model) as (host, port, process):

        async def run() -> tuple[Load, list[int]]:
            found, memory = Load(host, port, time.monotonic() + seconds), [resident(process)]
            before = processor(process)
            asking = asyncio.gather(*(found.client(number) for number in range(clients)))
            while not asking.done():
                await asyncio.sleep(0.25)
                memory.append(resident(process))
            await asking
            used = (processor(process) - before) / 1000
            print(f"{clients} clients for {seconds:.0f} seconds; the server got {used:.1f} seconds of processor time")
            await asyncio.sleep(2)
            alone = time.perf_counter()
            await found.ask("alone, afterwards", 0, "/read", json.dumps({"text": words(TYPED, 0)}).encode())
            assert time.perf_counter() - alone < 60
            return found, [*memory, resident(process)]

        found, memory = asyncio.run(run())
        row("client", "requests", "answers", "median ms", "95 %", "most")
        row(*["---"] * 6)
        for kind, statuses in found.statuses.items():
            named = {0: "left", -1: "cut off"}
            answers = ", ".join(f"{named.get(status, status)}: {count}" for status, count in sorted(statuses.items()))
            times = quantiles(found.times[kind]) if found.times[kind] else ("–",) * 3
            row(kind, statuses.total(), answers, *times)
        print(f"memory: {memory[0]} MB before, {max(memory)} MB at most, {memory[-1]} MB afterwards; it still answers")


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("page", "load"))
    parser.add_argument("--model", type=Path, default=Path("runs/cpu-demo"))
    parser.add_argument("--keys", type=int, default=40)
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=20)
    arguments = parser.parse_args()
    if arguments.what == "page":
        page(arguments.model, arguments.keys)
    else:
        load(arguments.model, arguments.clients, arguments.seconds)


if __name__ == "__main__":
    main()
