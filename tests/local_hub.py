"""A small server that speaks the protocol of the Hugging Face hub for models: repositories, commits, LFS uploads."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import http.server
import json
import time
import urllib.parse
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import loopback
import pytest

LARGE = 2048
"""Bytes from which a file goes by LFS."""


@dataclass
class Repository:
    """Its commits, each a whole tree: names and contents."""

    private: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)

    def commit(self, changes: dict[str, bytes], message: str = "") -> str:
        """Add a commit on main; its name."""
        tree = {**self.commits.get(self.refs.get("main", ""), {}), **changes}
        told = repr((sorted(tree.items()), len(self.commits))).encode()
        name = hashlib.sha1(told).hexdigest()
        self.commits[name], self.refs["main"] = tree, name
        self.messages.append(message)
        return name


Fault = Callable[["Handler"], bool]
"""Whether it answered the request in the server's place."""


@dataclass
class Hub:
    """What the server holds and what it was asked."""

    address: str = ""
    repositories: dict[str, Repository] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)
    """uploaded by LFS, by SHA-256"""
    faults: list[Fault] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    """method and path of every request"""
    altered: dict[str, bytes] = field(default_factory=dict)
    """contents that are sent in place of the true ones, by name"""

    def add(self, name: str, files: dict[str, bytes]) -> str:
        """A commit in a repository; its name."""
        return self.repositories.setdefault(name, Repository()).commit(files)


class Handler(http.server.BaseHTTPRequestHandler):
    """One request."""

    hub: Hub
    protocol_version = "HTTP/1.1"
    body: bytes

    def do_GET(self) -> None:
        self.answer()

    def do_HEAD(self) -> None:
        self.answer()

    def do_POST(self) -> None:
        self.answer()

    def do_PUT(self) -> None:
        self.answer()

    def answer(self) -> None:
        path = urllib.parse.unquote(self.path.partition("?")[0])
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.hub.asked.append(f"{self.command} {path}")
        if any(fault(self) for fault in self.hub.faults):
            return
        parts = path.strip("/").split("/")
        if path == "/api/repos/create":
            self.create()
        elif path == "/api/validate-yaml":
            self.json({"errors": [], "warnings": []})
        elif parts[0] == "objects":
            self.hub.objects[parts[1]] = self.body
            self.json({})
        elif path.endswith(".git/info/lfs/objects/batch"):
            self.batch()
        elif parts[:2] == ["api", "models"] and len(parts) >= 4:
            self.api("/".join(parts[2:4]), parts[4:])
        elif len(parts) > 4 and parts[2] == "resolve":
            self.resolve("/".join(parts[:2]), parts[3], "/".join(parts[4:]))
        else:
            self.send_error(404)

    def create(self) -> None:
        told = json.loads(self.body)
        name = f"{told.get('organization')}/{told['name']}"
        if not self.headers.get("Authorization"):
            self.json({"error": "Invalid user token"}, 401)
        elif name in self.hub.repositories:
            self.json({"error": "You already created this model repo", "url": f"{self.hub.address}/{name}"}, 409)
        else:
            self.hub.repositories[name] = Repository(told.get("visibility") == "private" or told.get("private") is True)
            self.hub.repositories[name].commit({".gitattributes": b""})
            self.json({"url": f"{self.hub.address}/{name}"})

    def batch(self) -> None:
        answers = []
        for wanted in json.loads(self.body)["objects"]:
            answer = {"oid": wanted["oid"], "size": wanted["size"]}
            if wanted["oid"] not in self.hub.objects:
                answer["actions"] = {"upload": {"href": f"{self.hub.address}/objects/{wanted['oid']}", "header": {}}}
            answers.append(answer)
        self.json({"transfer": "basic", "objects": answers})

    def api(self, name: str, rest: list[str]) -> None:
        repository = self.hub.repositories.get(name)
        if repository is None:
            self.json({"error": "Repository not found"}, 401, {"X-Error-Code": "RepoNotFound"})
            return
        if rest[:1] == ["preupload"]:
            files = json.loads(self.body)["files"]
            mode = ["lfs" if file["size"] >= LARGE else "regular" for file in files]
            self.json({"files": [{"path": file["path"], "uploadMode": way, "shouldIgnore": False}
                                 for file, way in zip(files, mode, strict=True)]})  # fmt: skip
            return
        if rest[:1] == ["commit"]:
            self.commit(name, repository)
            return
        revision = rest[1] if rest[:1] in (["revision"], ["tree"]) else "main"
        commit = repository.refs.get(revision, revision)
        if commit not in repository.commits:
            self.json({"error": "Invalid rev id"}, 404, {"X-Error-Code": "RevisionNotFound"})
            return
        files = [self.described(path, data) for path, data in sorted(repository.commits[commit].items())]
        if rest[:1] == ["tree"]:
            self.json(
                [{"type": "file", "path": file["rfilename"], "oid": file["blobId"], "size": file["size"]}
                 | ({"lfs": {"oid": file["lfs"]["sha256"], "size": file["size"], "pointerSize": 130}}
                    if "lfs" in file else {}) for file in files]
            )  # fmt: skip
            return
        self.json({"id": name, "sha": commit, "private": repository.private, "tags": [], "siblings": files})

    def described(self, path: str, data: bytes) -> dict[str, Any]:
        blob = hashlib.sha1(b"blob %d\0%s" % (len(data), data)).hexdigest()
        found = {"rfilename": path, "size": len(data), "blobId": blob}
        if len(data) >= LARGE:
            found["lfs"] = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 130}
        return found

    def commit(self, name: str, repository: Repository) -> None:
        lines = [json.loads(line) for line in self.body.splitlines() if line]
        changes = {}
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                changes[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                changes[value["path"]] = self.hub.objects[value["oid"]]
        done = repository.commit(changes, lines[0]["value"]["summary"])
        self.json({"commitOid": done, "commitUrl": f"{self.hub.address}/{name}/commit/{done}"})

    def resolve(self, name: str, revision: str, path: str) -> None:
        repository = self.hub.repositories.get(name)
        commit = repository.refs.get(revision, revision) if repository else ""
        data = repository.commits.get(commit, {}).get(path) if repository else None
        if data is None:
            self.json({"error": "Entry not found"}, 404, {"X-Error-Code": "EntryNotFound"})
            return
        told = self.described(path, data)
        tag = told["lfs"]["sha256"] if "lfs" in told else told["blobId"]
        data = self.hub.altered.get(path, data)
        start = int((self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").partition("-")[0])
        self.send_response(206 if start else 200)
        for key, value in {"ETag": f'"{tag}"', "X-Repo-Commit": commit, "Content-Length": str(len(data) - start),
                           "Accept-Ranges": "bytes"}.items():  # fmt: skip
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data[start:])

    def json(self, value: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        for key, text in {
            "Content-Length": str(len(body)),
            "Content-Type": "application/json",
            **(headers or {}),
        }.items():
            self.send_header(key, text)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *parts: Any) -> None:
        """Nothing on stderr."""


@contextlib.contextmanager
def serving() -> Iterator[Hub]:
    """A server on loopback, while the context lasts."""
    state = Hub()
    handler = type("OneHub", (Handler,), {"hub": state})
    with loopback.serving(handler) as state.address:
        yield state


class Impatient:
    """In place of huggingface_hub's ``time``: it tries again at once."""

    def __getattr__(self, name: str) -> Any:
        return getattr(time, name)

    def sleep(self, seconds: float) -> None:
        """Not at all."""


@pytest.fixture
def local_hub(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    """The hub that huggingface_hub talks to in this process, with a cache of its own."""
    constants = pytest.importorskip("huggingface_hub.constants")
    cache = str(tmp_path_factory.mktemp("hub"))
    with serving() as state:
        monkeypatch.setattr(constants, "ENDPOINT", state.address)
        template = f"{state.address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", cache)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)  # whatever the first test that imported it had set
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # its storage is not spoken here
        monkeypatch.setattr("huggingface_hub.utils._http.time", Impatient())
        monkeypatch.setenv("HF_TOKEN", "secret")
        yield state
