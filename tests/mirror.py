"""A made-up mirror of the published data: a folder with its layout, and a web server over it that fails as told.

The server speaks HTTP with ranges and entity tags, and as much of the Hugging Face hub's protocol as huggingface_hub
needs to list a dataset repository and to read its files.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.server
import json
import re
import shutil
import urllib.parse
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import loopback
import pytest
from commands import SUBWORDS

VALIDATION_DOCUMENTS = 10
DOCUMENTS, SIDECAR = "docs_selected.jsonl", "docs_selected.source_manifest.json"
SHARDS = f"datasets/fineweb10B_{SUBWORDS}"
REPOSITORY, COMMIT = "someone/golf", "c0ffee" * 6 + "c0ff"
"""The dataset repository that the server holds, its files in the folder ``datasets``, and its only commit."""


@pytest.fixture(scope="session")
def published(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five training shards and one of validation over subwords, their tokenizer, and the documents; as public scripts
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
    assert entry["stats"]["files_train"] == 5
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
"""Given a GET request, the file that it asks for, and how often that was asked for before; whether it answered."""


@dataclass
class Server:
    """A web server over a folder, with ranges, entity tags and faults."""

    root: Path
    address: str = ""
    faults: list[Fault] = field(default_factory=list)
    asked: list[tuple[str, str | None]] = field(default_factory=list)
    """the paths and ranges of all GET requests"""
    headers: list[dict[str, str]] = field(default_factory=list)
    tags: bool = True
    ranges: bool = True
    lengths: bool = True


class Handler(http.server.BaseHTTPRequestHandler):
    """One request."""

    server_state: Server
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        state, path = self.server_state, urllib.parse.unquote(self.path).lstrip("/").partition("?")[0]
        if path.startswith("api/datasets/"):
            self.hub(path.removeprefix("api/datasets/"))
            return
        path = path.removeprefix(f"datasets/{REPOSITORY}/resolve/{COMMIT}/datasets/")
        file = state.root / path
        if self.command == "GET":
            before = sum(asked == path for asked, _ in state.asked)
            state.asked.append((path, self.headers.get("Range")))
            state.headers.append({name.title(): value for name, value in self.headers.items()})
            if any(fault(self, file, before) for fault in state.faults):
                return
        if not file.is_file():
            self.send_error(404)
            return
        self.answer(file.read_bytes())

    def hub(self, question: str) -> None:
        """What the hub's API says of the repository, and of a folder in it."""
        name, _, folder = question.partition(f"/tree/{COMMIT}/datasets")
        if name.removesuffix(f"/revision/{COMMIT}") != REPOSITORY:
            self.json({"error": "Repository not found"}, 401, {"X-Error-Code": "RepoNotFound"})
            return
        if not folder and "/tree/" not in question:
            self.json({"id": REPOSITORY, "sha": COMMIT, "private": False, "tags": []})
            return
        files = [path for path in sorted((self.server_state.root / folder.strip("/")).iterdir()) if path.is_file()]
        self.json(
            [
                {
                    "type": "file",
                    "oid": hashlib.sha1(path.read_bytes()).hexdigest(),
                    "size": path.stat().st_size,
                    "path": f"datasets/{path.relative_to(self.server_state.root).as_posix()}",
                    "lfs": {"oid": digest(path), "size": path.stat().st_size, "pointerSize": 130},
                }
                for path in files
            ]
        )

    def json(self, value: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        for name, text in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, text)
        self.end_headers()
        self.wfile.write(body)

    def answer(self, data: bytes, stop: int | None = None, tag: str | None = None) -> None:
        """Send a file as a good server does; ``stop``: break off after so many bytes of the body."""
        state = self.server_state
        tag = tag or f'"{hashlib.md5(data).hexdigest()}"'
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        start, end = 0, len(data)
        if wanted and state.ranges:
            start, end = int(wanted[1]), min(len(data), int(wanted[2] or len(data)) + 1)
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{end - 1}/{len(data)}")
        else:
            self.send_response(200)
        if state.tags:
            self.send_header("ETag", tag)
        self.send_header("X-Repo-Commit", COMMIT)
        if state.lengths:
            self.send_header("Content-Length", str(end - start))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data[start:end][:stop])
        self.close_connection = stop is not None or not state.lengths

    def log_message(self, *parts: Any) -> None:
        """Nothing on stderr."""


@contextlib.contextmanager
def serving(root: Path) -> Iterator[Server]:
    """A server on loopback, while the context lasts."""
    state = Server(root)
    handler = type("OneServer", (Handler,), {"server_state": state})
    with loopback.serving(handler) as state.address:
        yield state


@pytest.fixture
def server(mirror: Path) -> Iterator[Server]:
    """A server over a mirror of the test's own."""
    with serving(mirror) as state:
        yield state
