"""A made-up mirror of the published data: a folder with its layout, and a web server over it that fails as told."""

from __future__ import annotations

import contextlib
import hashlib
import http.server
import json
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from commands import SUBWORDS

VALIDATION_DOCUMENTS = 10
DOCUMENTS, SIDECAR = "docs_selected.jsonl", "docs_selected.source_manifest.json"
SHARDS = f"datasets/fineweb10B_{SUBWORDS}"


@pytest.fixture(scope="session")
def published(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six training shards and one of validation over subwords, their tokenizer, and the documents; as public scripts
    publish them, so without hashes. Look, but change nothing in it.
    """
    from bytegolf.data.prepare import prepare

    home = tmp_path_factory.mktemp("published")
    model = tiny_data / "tokenizers" / f"fineweb_{SUBWORDS[2:]}_bpe.model"
    specs = home / "specs.json"
    spec = {"name": f"{SUBWORDS}_bpe", "dataset_suffix": SUBWORDS, "vocab_size": 400, "reuse_model_path": str(model)}
    specs.write_text(json.dumps([spec]))
    source, root = tiny_data.parent / "corpus.jsonl", home / "mirror"
    manifest = prepare([str(source)], root, str(specs), "first:10", shard_tokens=4000, quiet=True)
    (entry,) = manifest["datasets"]
    assert entry["stats"]["files_train"] == 6 or entry["stats"]["files_train"] > 3
    entry["stats"] = {key: value for key, value in entry["stats"].items() if "bytes" not in key}
    del entry["sha256"]
    (tokenizer,) = manifest["tokenizers"]
    del tokenizer["sha256"], tokenizer["spec"]
    public = {"version": "10B", "datasets": [entry], "tokenizers": [tokenizer]}
    (root / "manifest.json").write_text(json.dumps(public))
    shutil.copy(source, root / DOCUMENTS)
    sidecar = {"docs_sha256": digest(source), "docs_val": VALIDATION_DOCUMENTS, "shuffle_seed": 1337}
    (root / SIDECAR).write_text(json.dumps(sidecar))
    return root


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def mirror(published: Path, tmp_path: Path) -> Path:
    """A copy of the mirror to damage."""
    return shutil.copytree(published, tmp_path / "mirror")


Fault = Callable[["Handler", Path, int], bool]
"""Given a request, the file that it asks for, and how often that was asked for before; whether it answered."""


@dataclass
class Server:
    """A web server over a folder, with ranges, entity tags and faults."""

    root: Path
    address: str = ""
    faults: list[Fault] = field(default_factory=list)
    asked: list[tuple[str, str | None]] = field(default_factory=list)
    """the paths and ranges of all requests"""
    sent: int = 0
    """bytes of bodies"""
    tags: bool = True
    ranges: bool = True
    if_range: bool = True
    pause: float = 0.0
    """seconds before each piece of a body"""
    headers: list[dict[str, str]] = field(default_factory=list)

    def whole(self) -> list[str]:
        """The files that were asked for from their beginning, and not just for their size."""
        return [path for path, part in self.asked if part is None]


class Handler(http.server.BaseHTTPRequestHandler):
    """One request."""

    server_state: Server
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        state, path = self.server_state, self.path.lstrip("/")
        before = sum(asked == path for asked, _ in state.asked)
        state.asked.append((path, self.headers.get("Range")))
        state.headers.append(dict(self.headers))
        file = state.root / path
        if any(fault(self, file, before) for fault in state.faults):
            return
        if not file.is_file():
            self.send_error(404)
            return
        self.answer(file.read_bytes())

    def answer(self, data: bytes, stop: int | None = None, tag: str | None = None) -> None:
        """Send a file as a good server does; ``stop``: break off after so many bytes of the body."""
        state = self.server_state
        tag = tag or f'"{hashlib.md5(data).hexdigest()}"'
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        start, end = 0, len(data)
        if wanted and state.ranges and (not state.if_range or self.headers.get("If-Range") in (None, tag)):
            start, end = int(wanted[1]), min(len(data), int(wanted[2] or len(data)) + 1)
            if start >= len(data):
                self.send_response(416)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{end - 1}/{len(data)}")
        else:
            self.send_response(200)
        if state.tags:
            self.send_header("ETag", tag)
        self.send_header("Content-Length", str(end - start))
        self.end_headers()
        body = data[start:end][:stop]
        for at in range(0, len(body), 1024):
            time.sleep(state.pause)
            self.wfile.write(body[at : at + 1024])
            state.sent += len(body[at : at + 1024])
        if stop is not None:
            self.close_connection = True

    def log_message(self, *parts: Any) -> None:
        """Nothing on stderr."""


@contextlib.contextmanager
def serving(root: Path) -> Iterator[Server]:
    """A server on loopback, while the context lasts."""
    state = Server(root)
    handler = type("OneServer", (Handler,), {"server_state": state})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        server.handle_error = lambda *request: None  # type: ignore[method-assign]  # clients that hang up are none
        state.address = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        try:
            yield state
        finally:
            server.shutdown()


@pytest.fixture
def server(mirror: Path) -> Iterator[Server]:
    """A server over a mirror of the test's own."""
    with serving(mirror) as state:
        yield state
