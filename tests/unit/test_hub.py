"""Repositories on the hub: files of one commit, compared with the hub's hashes; offline; pushed and pushed again."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from local_hub import Handler, Hub, serving

from bytegolf import hub
from bytegolf.errors import BytegolfError

LARGE = bytes(range(256)) * 400
FILES = {"model.safetensors": LARGE, "config.json": b"{}", "other.bin": LARGE[::-1]}


def choose(names: Sequence[str]) -> list[str]:
    return [name for name in names if name in ("model.safetensors", "config.json")]


def test_addresses() -> None:
    assert hub.address("runs/demo") is None
    assert hub.address(Path("hf:a-b/c.d_e")) == hub.Address("a-b/c.d_e")
    assert hub.address("hf:a/b@v1.0/x") == hub.Address("a/b", "v1.0/x")
    assert str(hub.Address("a/b", "v1")) == "hf:a/b@v1"
    for wrong in ("hf:", "hf:a", "hf:a/b/c", "hf:a/b@", "hf://a/b", "hf:a/b c", "hf:a/b@../x"):
        with pytest.raises(BytegolfError, match="names no repository"):
            hub.address(wrong)


def test_files_of_one_commit_and_only_those_wanted(local_hub: Hub) -> None:
    old = local_hub.add("a/b", FILES)
    new = local_hub.add("a/b", {"config.json": b'{"x": 1}'})
    found = hub.fetch(hub.Address("a/b"), choose)
    assert found.commit == new
    assert found.folder.name == new
    assert (found.folder / "model.safetensors").read_bytes() == LARGE
    assert (found.folder / "config.json").read_bytes() == b'{"x": 1}'
    assert not (found.folder / "other.bin").exists()
    pinned = hub.fetch(hub.Address("a/b", old), choose)
    assert (pinned.commit, (pinned.folder / "config.json").read_bytes()) == (old, b"{}")
    local_hub.asked.clear()
    hub.fetch(hub.Address("a/b"), choose)
    assert not any(asked.startswith("GET /a/b/resolve") for asked in local_hub.asked), "what is cached is not fetched"


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_file_that_is_not_what_the_hub_says(local_hub: Hub, name: str) -> None:
    local_hub.add("a/b", FILES)
    local_hub.altered[name] = FILES[name][:-1] + b"!"
    with pytest.raises(BytegolfError, match=f"{name} of hf:a/b came with another hash"):
        hub.fetch(hub.Address("a/b"), choose)
    local_hub.altered.clear()
    folder = hub.fetch(hub.Address("a/b"), choose).folder
    assert (folder / name).read_bytes() == FILES[name], "the wrong one was not kept"


def broken_off(handler: Handler) -> bool:
    """The first GET of the large file ends halfway."""
    if handler.command != "GET" or "resolve" not in handler.path or not handler.path.endswith("model.safetensors"):
        return False
    if sum(asked == f"GET {handler.path}" for asked in handler.hub.asked) > 1:
        return False
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(LARGE)))
    handler.end_headers()
    handler.wfile.write(LARGE[: len(LARGE) // 2])
    handler.close_connection = True
    return True


def test_a_connection_that_breaks_off_goes_on_where_it_was(local_hub: Hub) -> None:
    local_hub.add("a/b", FILES)
    local_hub.faults = [broken_off]
    found = hub.fetch(hub.Address("a/b"), choose)
    assert (found.folder / "model.safetensors").read_bytes() == LARGE
    gets = [asked for asked in local_hub.asked if asked.startswith("GET /a/b/resolve") and "model" in asked]
    assert len(gets) == 2


def test_without_the_hub_the_cache_answers(local_hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    commit = local_hub.add("a/b", FILES)
    hub.fetch(hub.Address("a/b"), choose)
    local_hub.add("a/b", {"config.json": b"newer"})

    def down(handler: Handler) -> bool:
        handler.send_error(500)
        return True

    local_hub.faults = [down]
    assert hub.fetch(hub.Address("a/b"), choose).commit == commit
    with pytest.raises(BytegolfError, match="hf:a/c is not in the cache, and the hub cannot be asked"):
        hub.fetch(hub.Address("a/c"), choose)


def test_the_environment_is_honoured(tmp_path: Path) -> None:
    """$HF_ENDPOINT, $HF_HOME and $HF_HUB_OFFLINE, in a process of its own each."""
    pytest.importorskip("huggingface_hub")
    code = "from bytegolf import hub; print(hub.fetch(hub.Address('a/b'), lambda names: names).commit)"
    with serving() as state:
        commit = state.add("a/b", FILES)
        environment = {**os.environ, "HF_ENDPOINT": state.address, "HF_HOME": str(tmp_path)}
        online = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
        assert online.stdout.split() == [commit], online.stderr
        state.add("a/b", {"config.json": b"newer"})
        state.asked.clear()
        environment["HF_HUB_OFFLINE"] = "1"
        offline = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
        assert offline.stdout.split() == [commit], offline.stderr
        assert not state.asked


def test_what_is_not_there(local_hub: Hub) -> None:
    local_hub.add("a/b", FILES)
    with pytest.raises(BytegolfError, match="hf:no/such"):
        hub.fetch(hub.Address("no/such"), choose)
    with pytest.raises(BytegolfError, match="hf:a/b@v9 does not exist"):
        hub.fetch(hub.Address("a/b", "v9"), choose)


def written(folder: Path, *names: str) -> dict[str, Path]:
    for name, data in FILES.items():
        (folder / name).write_bytes(data)
    return {name: folder / name for name in names or FILES}


def test_a_folder_is_pushed_as_one_commit(local_hub: Hub, tmp_path: Path) -> None:
    commit, where = hub.push(written(tmp_path, "config.json", "model.safetensors"), "me/new", "a model", False)
    repository = local_hub.repositories["me/new"]
    assert repository.refs["main"] == commit
    assert commit in where
    assert repository.commits[commit] == {".gitattributes": b"", "config.json": b"{}", "model.safetensors": LARGE}
    assert repository.messages[-1] == "a model"
    found = hub.fetch(hub.Address("me/new"), choose)
    assert (found.folder / "model.safetensors").read_bytes() == LARGE


def test_an_interrupted_push_sends_nothing_twice(
    local_hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_commit(handler: Handler) -> bool:
        if "/commit/" in handler.path:
            handler.send_error(503)
            return True
        return False

    local_hub.faults = [no_commit]
    with pytest.raises(BytegolfError, match="run the same command again"):
        hub.push(written(tmp_path), "me/new", "a model", False)
    sent = [asked for asked in local_hub.asked if asked.startswith("PUT")]
    assert len(sent) == 2
    local_hub.faults.clear()
    commit, _ = hub.push(written(tmp_path), "me/new", "a model", False)
    assert [asked for asked in local_hub.asked if asked.startswith("PUT")] == sent
    assert FILES.items() <= local_hub.repositories["me/new"].commits[commit].items()


def test_pushing_needs_a_name_and_a_login(local_hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BytegolfError, match="write owner/name"):
        hub.push({}, "new", "", False)
    monkeypatch.setenv("HF_TOKEN", "")
    with pytest.raises(BytegolfError, match="log in"):
        hub.push(written(tmp_path), "me/new", "", False)
