"""`bytegolf serve` as a process: clients that leave, that do not read, that talk nonsense; tokens; its end."""

from __future__ import annotations

import contextlib
import http.client
import json
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from commands import TinyRun
from processes import LONGEST_WAIT, until

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")

LONG = {"prompt": "The ", "max_tokens": 4096, "temperature": 3, "stream": True, "logprobs": 20, "n": 8}


@dataclass
class Server:
    """A process that serves."""

    process: subprocess.Popen[str]
    port: int
    token: str

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any]:
        """One request: the status, and the answer from its JSON."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=LONGEST_WAIT)
        headers = {"authorization": f"Bearer {self.token}", **headers}
        connection.request(method, path, body if isinstance(body, bytes) or body is None else json.dumps(body), headers)
        answer = connection.getresponse()
        found = answer.status, json.loads(answer.read())
        connection.close()
        return found

    def raw(self, content: bytes) -> socket.socket:
        """A connection on which that was sent."""
        found = socket.create_connection(("127.0.0.1", self.port), timeout=LONGEST_WAIT)
        found.sendall(content)
        return found

    def post(self, path: str, body: bytes, size: int | None = None) -> socket.socket:
        """A request whose body is said to have ``size`` bytes."""
        head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {self.token}\r\n"
        return self.raw(f"{head}Content-Length: {len(body) if size is None else size}\r\n\r\n".encode() + body)

    def idle(self) -> bool:
        """Wait until no job is left."""
        until(lambda: not self.ask("GET", "/health")[1]["waiting"])
        return True


@contextlib.contextmanager
def serving(run: TinyRun, *options: str) -> Iterator[Server]:
    command = [sys.executable, "-m", "bytegolf", "serve", str(run.folder), "--port", "0", "--threads", "1", *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout
    line = process.stdout.readline()
    try:
        assert " at http://" in line, process.stderr and process.stderr.read()
        address, _, token = line.split(" at http://")[1].split(" ")[0].partition("/")
        yield Server(process, int(address.rpartition(":")[2]), token.removeprefix("#token="))
    finally:
        process.kill()
        process.wait()


def test_whatever_clients_do_it_answers_the_next_one(tiny_run: TinyRun) -> None:
    with serving(tiny_run, "--host", "0.0.0.0", "--limit", "20000", "--queue", "12") as server:
        assert len(server.token) >= 20, "anything but loopback asks for a token"
        assert server.ask("GET", "/v1/models", authorization="Bearer wrong")[0] == 401
        assert server.ask("GET", "/v1/models", host="evil.example")[0] == 403
        assert server.ask("POST", "/segment", {"text": "The people"})[1]["bytes"] == 10

        # one that leaves in the middle of its answer
        leaver = server.post("/v1/completions", json.dumps(LONG).encode())
        assert leaver.recv(1000).startswith(b"HTTP/1.1 200")
        assert server.ask("GET", "/health")[1]["waiting"] == 1
        leaver.close()
        assert server.idle()

        # some that do not read, while another is answered
        slow = [server.post("/v1/completions", json.dumps(LONG).encode()) for _ in range(4)]
        assert server.ask("POST", "/segment", {"text": "The people"})[0] == 200
        # more of one client than it may have
        statuses = {server.ask("POST", "/score", {"text": "a"})[0] for _ in range(3)}
        more = [server.post("/v1/completions", json.dumps(LONG).encode()) for _ in range(8)]
        answers = {one.recv(1000).split(b" ", 2)[1] for one in more}
        assert statuses == {200}
        assert b"429" in answers
        for one in (*slow, *more):
            one.close()
        assert server.idle()

        # ones that are no clients at all
        for content in (b"\xff\xfe\x00nonsense\r\n\r\n", b"GET / HTTP/1.1\r\n", b"POST /segment HTTP/9.9\r\n\r\n", b""):
            server.raw(content).close()
        half = server.post("/segment", b'{"text": "', size=5000)
        large = server.post("/segment", b"x" * 3_000_000)
        assert large.recv(1000).startswith(b"HTTP/1.1 413")
        half.close()
        large.close()
        assert server.idle()
        assert server.ask("POST", "/segment", {"text": "The people"})[1]["bytes"] == 10
        assert server.process.poll() is None


def test_a_signal_ends_it_also_while_it_works(tiny_run: TinyRun) -> None:
    with serving(tiny_run) as server:
        assert server.token == "", "this machine needs none"
        client = server.post("/v1/completions", json.dumps(LONG).encode())
        assert client.recv(1000).startswith(b"HTTP/1.1 200")
        server.process.send_signal(signal.SIGTERM)
        _, said = server.process.communicate(timeout=LONGEST_WAIT)
        assert server.process.returncode == 128 + signal.SIGTERM
        assert said.strip() == "stopped by SIGTERM"
        client.close()
