"""Fetching published data from a folder, a web server and the hub, whatever goes wrong."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import threading
import time
import types
import urllib.parse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from commands import SUBWORDS, good, refused, small
from mirror import DOCUMENTS, REPOSITORY, SHARDS, SIDECAR, Fault, Handler, Server, digest, serving
from processes import until

from bytegolf.data.dataset import FETCHING, LOCK, MANIFEST, open_split, read_manifest
from bytegolf.data.prepare import prepare
from bytegolf.data.results import FetchResult
from bytegolf.data.tokenizer import load_tokenizer
from bytegolf.errors import BytegolfError
from bytegolf.files import only_one
from bytegolf.tools.fetch import download, export, published
from bytegolf.tools.fetch import job as fetching
from bytegolf.tools.fetch.record import RECORD

TRAIN = [f"{SHARDS}/fineweb_train_{index:06d}.bin" for index in range(5)]
VAL = f"{SHARDS}/fineweb_val_000000.bin"
MODEL = f"tokenizers/fineweb_{SUBWORDS[2:]}_bpe.model"
SHARD_BYTES = 1024 + 2 * 4000


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short waits."""
    monkeypatch.setattr(download, "DELAY", 0.001)
    monkeypatch.setattr(download, "LONGEST_DELAY", 0.01)


@pytest.fixture
def small_blocks(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shards of ten blocks, and a small file as the tokenizer."""
    monkeypatch.setattr(download, "BLOCK_BYTES", 1000)
    (server.root / MODEL).write_bytes(b"no model")


def run(source: Path | str, out: Path, *variants: str, **options: Any) -> FetchResult:
    """Fetch, without progress."""
    return fetching.run(out, variants or [SUBWORDS], mirror=str(source), quiet=True, **options)


def as_published(root: Path, out: Path, paths: list[str]) -> bool:
    return all((out / path).read_bytes() == (root / path).read_bytes() for path in paths)


def of_shard(index: int, answer: Fault) -> Fault:
    """A fault of one training shard."""
    return lambda request, file, before: file.name == Path(TRAIN[index]).name and answer(request, file, before)


def broken_off(request: Handler, file: Path, before: int) -> bool:
    """Half a block, and the end of the connection."""
    request.answer(file.read_bytes(), stop=500)
    return True


def code(number: int, **headers: str) -> Fault:
    """An answer that is a status."""

    def answer(request: Handler, file: Path, before: int) -> bool:
        request.send_response(number)
        for name, value in {"Content-Length": "0", **headers}.items():
            request.send_header(name.replace("_", "-"), value)
        request.end_headers()
        return True

    return answer


def first(count: int, fault: Fault) -> Fault:
    """A fault of the first requests only."""
    return lambda request, file, before: before < count and fault(request, file, before)


def after(count: int, fault: Fault) -> Fault:
    """A fault of all requests behind the first."""
    return lambda request, file, before: before >= count and fault(request, file, before)


def add_hashes(root: Path) -> None:
    """What `prepare` itself writes into a manifest, and public scripts do not."""
    manifest = json.loads((root / MANIFEST).read_text())
    manifest["datasets"][0]["sha256"] = {path.name: digest(path) for path in (root / SHARDS).iterdir()}
    manifest["tokenizers"][0]["sha256"] = digest(root / MODEL)
    (root / MANIFEST).write_text(json.dumps(manifest))


def flip_a_bit(path: Path, at: int = -2) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


# ---------------------------------------------------------------------------------------------- what is fetched


def test_all_of_a_folder_and_then_nothing(published: Path, tmp_path: Path) -> None:
    out = tmp_path / "data"
    command = ("fetch", "--mirror", published, "--variant", SUBWORDS, "--with-docs", "--out", out, "--json")
    dry = good(*command, "--dry-run")
    assert dry.json["bytes_fetched"] > (published / DOCUMENTS).stat().st_size
    assert not out.exists()
    done = good(*command)
    assert as_published(published, out, [*TRAIN, VAL, MODEL, DOCUMENTS, SIDECAR])
    assert " free" in done.err
    assert done.json["files_fetched"] == done.json["files"] == 9
    there = {path: path.stat().st_mtime_ns for path in sorted(out.rglob("*"))}
    second = good(*command)
    assert (second.json["files_fetched"], second.json["bytes_fetched"]) == (0, 0)
    assert {path: path.stat().st_mtime_ns for path in sorted(out.rglob("*"))} == there
    assert not (out / FETCHING).exists()
    assert not list(out.rglob("*.part*"))


def test_the_first_shards_and_more_of_them_later(server: Server, tmp_path: Path) -> None:
    out = tmp_path / "data"
    run(server.address, out, train_shards=2)
    assert [path for path in TRAIN if (out / path).exists()] == TRAIN[:2]
    (entry,) = read_manifest(out)["datasets"]
    assert (entry["stats"]["files_train"], entry["stats"]["tokens_train"]) == (2, 8000)
    assert "docs_train" not in entry["stats"], "which nobody knows of two shards"
    assert entry["stats"]["docs_val"] == 10
    assert entry["published_stats"]["files_train"] == 5
    assert len(open_split(out, SUBWORDS, "train", 400)) == 8000
    server.asked.clear()
    assert run(server.address, out, train_shards=5).files_fetched == 3
    assert {path for path, _ in server.asked} == {MANIFEST, *TRAIN[2:]}
    assert read_manifest(out)["datasets"][0]["stats"]["docs_train"] == 90
    server.asked.clear()
    run(server.address, out, train_shards=1)
    assert {path for path, _ in server.asked} == {MANIFEST}, "a second run costs the manifest"
    assert read_manifest(out)["datasets"][0]["stats"]["files_train"] == 5, "all that training will read"
    with pytest.raises(BytegolfError, match="5 training shards"):
        run(server.address, out, train_shards=6)


def test_a_variant_of_two_and_both_in_one_manifest(mirror: Path, tmp_path: Path) -> None:
    manifest = json.loads((mirror / MANIFEST).read_text())
    for key in ("datasets", "tokenizers"):
        manifest[key].append(json.loads(json.dumps(manifest[key][0]).replace(SUBWORDS, "other")))
    (mirror / MANIFEST).write_text(json.dumps(manifest))
    shutil.copytree(mirror / SHARDS, mirror / "datasets" / "fineweb10B_other")
    run(mirror, tmp_path / "data", "other", train_shards=0)
    assert [entry["name"] for entry in read_manifest(tmp_path / "data")["datasets"]] == ["fineweb10B_other"]
    run(mirror, tmp_path / "data", train_shards=0)
    assert len(read_manifest(tmp_path / "data")["tokenizers"]) == 2
    assert open_split(tmp_path / "data", "other", "val", 400)


# ---------------------------------------------------------------------------------------------- byte260


def test_what_is_not_published_is_made_from_the_documents_in_one_command(server: Server, tmp_path: Path) -> None:
    out = tmp_path / "data"
    command = ("fetch", "--mirror", server.address, "--variant", f"{SUBWORDS},byte260", "--out", out)
    assert "add --export" in refused(*command)
    ran = good(*command, "--export", "--json")
    assert ran.json["exported"] == ["byte260"]
    assert "byte260 will be made here" in ran.err
    prepare([str(server.root / DOCUMENTS)], tmp_path / "own", "byte260", "first:10", quiet=True)
    made = "datasets/fineweb10B_byte260"
    assert as_published(tmp_path / "own", out, [f"{made}/fineweb_{split}_000000.bin" for split in ("train", "val")])
    subwords, byte = (entry["stats"] for entry in read_manifest(out)["datasets"])
    assert subwords["original_bytes_val"] == byte["original_bytes_val"] == byte["bytes_val"]
    assert sorted(path.name for path in out.iterdir() if path.is_dir()) == ["datasets", "tokenizers"]
    settings = ("cpu-demo", *small(), "train.max_steps=2", "--data", out, "--out", tmp_path / "run")
    assert good("train", *settings, "--json").json["bpb"] > 0
    first_words = load_tokenizer(SUBWORDS, out).decode(open_split(out, SUBWORDS, "val", 400).slice(0, 20))
    assert json.loads((out / DOCUMENTS).read_text().splitlines()[0])["text"].encode().startswith(first_words)
    before = (out / MANIFEST).read_bytes()
    assert good(*command, "--export", "--json").json["exported"] == []
    assert (out / MANIFEST).read_bytes() == before


def test_documents_without_text_are_told_of(mirror: Path, tmp_path: Path) -> None:
    documents = mirror / DOCUMENTS
    documents.write_text(documents.read_text() + '\n{"text": null}\n')
    sidecar = json.loads((mirror / SIDECAR).read_text())
    (mirror / SIDECAR).write_text(json.dumps({**sidecar, "docs_sha256": digest(documents)}))
    command = ("fetch", "--mirror", mirror, "--variant", "byte260", "--export", "--out", tmp_path / "data")
    ran = good(*command, "--json")
    assert [(one["why"], one["count"]) for one in ran.json["left_out"]] == [("null text", 1)]
    assert "left out: 1 row whose text is null" in ran.err


def test_an_export_goes_on_wherever_it_was_killed(
    published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class KilledError(Exception):
        pass

    def killed(*arguments: object) -> None:
        raise KilledError

    out = tmp_path / "data"
    for name in ("_move", "merge_manifest", "_remove"):
        with monkeypatch.context() as patch:
            patch.setattr(export, name, killed)
            with pytest.raises(KilledError):
                run(published, out, "byte260", export=True)
    run(published, out, "byte260", export=True)
    assert read_manifest(out)["datasets"][0]["stats"]["docs_val"] == 10
    assert not (out / export.WORK).exists()
    assert len(open_split(out, "byte260", "val", 260)) > 1000


def test_an_export_of_documents_that_have_changed_is_made_anew(mirror: Path, tmp_path: Path) -> None:
    out = tmp_path / "data"
    run(mirror, out, "byte260", export=True)
    lines = (mirror / DOCUMENTS).read_text().splitlines()[:50]
    (mirror / DOCUMENTS).write_text("\n".join(lines) + "\n")
    (mirror / SIDECAR).write_text(json.dumps({"docs_val": 5, "docs_sha256": digest(mirror / DOCUMENTS)}))
    done = run(mirror, out, "byte260", export=True)
    assert (done.exported, done.replaced) == (["byte260"], [DOCUMENTS])
    assert (done.datasets["byte260"]["docs_total"], done.datasets["byte260"]["docs_val"]) == (50, 5)


def test_names_that_nothing_can_make(published: Path, tmp_path: Path) -> None:
    for name in ("sp1024x", "../sp1024", "byte"):
        with pytest.raises(BytegolfError, match="is no tokenizer"):
            run(published, tmp_path / "data", name, export=True)
    assert not (tmp_path / "data" / DOCUMENTS).exists()


# ---------------------------------------------------------------------------------------------- going on


@pytest.mark.usefixtures("small_blocks")
def test_a_connection_that_breaks_off_again_and_again_still_gets_there(server: Server, tmp_path: Path) -> None:
    server.faults = [of_shard(0, lambda request, file, before: before % 3 > 0 and broken_off(request, file, before))]
    run(server.address, tmp_path / "data")
    assert as_published(server.root, tmp_path / "data", [*TRAIN, VAL])
    asked = [part for path, part in server.asked if path == TRAIN[0]]
    blocks = [f"bytes={at}-{min(at + 1000, SHARD_BYTES) - 1}" for at in range(0, SHARD_BYTES, 1000)]
    assert [asked.count(block) for block in blocks] == [1] + [3] * 8 + [1]


def test_a_kill_costs_what_was_not_noted(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "BLOCK_BYTES", 4000)
    out, killed = tmp_path / "data", threading.Event()
    # there is no third block of the documents before the kill
    server.faults = [lambda request, file, before: file.name == DOCUMENTS and before > 1 and not killed.wait()]
    script = (
        "import sys; from bytegolf.tools.fetch import download; download.BLOCK_BYTES, download.TIMEOUT = 4000, 9999\n"
    )
    script += "from bytegolf.cli import main; sys.argv = ['bytegolf', *sys.argv[1:]]; main()"
    options = ["--variant", SUBWORDS, "--with-docs", "--jobs", "2", "--mirror", server.address, "--out", str(out)]
    note = (out / DOCUMENTS).with_name(f".{DOCUMENTS}.part.json")
    process = subprocess.Popen([sys.executable, "-c", script, "fetch", *options])
    try:
        until(lambda: note.exists() and all((out / path).exists() for path in TRAIN), process)
    finally:
        process.kill()
        process.wait()
        killed.set()
    with note.with_suffix("").open("ab") as file:
        file.write(b"what a crash may leave behind what was flushed" * 3000)
    received = json.loads(note.read_text())["received"]
    preset = ("cpu-gpt", *small("cpu-gpt"), f"data.tokenizer={SUBWORDS}", f"model.vocab_size={SUBWORDS[2:]}")
    assert "unfinished" in refused("train", *preset, "--data", out, "--out", tmp_path / "run"), "half of the data"
    server.faults.clear()
    server.asked.clear()
    done = run(server.address, out, documents=True)
    assert done.bytes_resumed >= received > 0
    assert (DOCUMENTS, f"bytes={received}-{received + 3999}") in server.asked
    assert not {path for path, _ in server.asked} & set(TRAIN), "nothing twice"
    assert as_published(server.root, out, [*TRAIN, VAL, DOCUMENTS])


def half(server: Server, out: Path) -> None:
    """Have 4,000 bytes of the fourth training shard in ``out``; the server is in order again."""
    server.faults = [of_shard(3, after(4, broken_off))]
    with pytest.raises(BytegolfError, match="6 times in a row"):
        run(server.address, out, workers=1)
    server.faults.clear()
    server.asked.clear()
    assert (out / TRAIN[2]).exists()
    assert not (out / TRAIN[3]).exists()


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize(
    "damage",
    ["none", "changed", "shorter", "no note", "note is no note", "older file", "no ranges", "no tags", "other mirror"],
)
def test_a_part_is_used_if_it_is_what_it_was(server: Server, tmp_path: Path, damage: str) -> None:
    out, source = tmp_path / "data", server.address
    server.tags = damage != "no tags"
    if damage == "other mirror":
        add_hashes(server.root)
    half(server, out)
    part = (out / TRAIN[3]).with_name(f".{Path(TRAIN[3]).name}.part")
    note = part.with_name(f"{part.name}.json")
    if damage == "changed":
        flip_a_bit(part)
    elif damage == "shorter":
        part.write_bytes(part.read_bytes()[:-1])
    elif damage == "no note":
        note.unlink()
    elif damage == "note is no note":
        note.write_text('{"received": "many"}')
    elif damage == "older file":  # the same size, but another file
        file = server.root / TRAIN[3]
        file.write_bytes(file.read_bytes()[:-2] + b"\x07\x00")
    elif damage == "other mirror":
        source = str(server.root)
    server.ranges = damage != "no ranges"
    used = damage in ("none", "no ranges", "other mirror")
    assert (run(source, out).bytes_resumed >= 4000) == used
    assert as_published(server.root, out, [*TRAIN, VAL])
    asked = [part for path, part in server.asked if path == TRAIN[3]]
    if damage == "no ranges":
        assert asked[-1] is None, "and the server sends all of it"
    elif damage != "other mirror":
        assert asked[0] == ("bytes=4000-4999" if used else "bytes=0-999")


# ---------------------------------------------------------------------------------------------- what is wrong


def corrupted(request: Handler, file: Path, before: int) -> bool:
    data = file.read_bytes()
    request.answer(data[:5000] + bytes([data[5000] ^ 1]) + data[5001:], tag='"same"')
    return True


@pytest.mark.usefixtures("small_blocks")
def test_a_wrong_hash_is_fetched_once_more_and_then_refused(server: Server, tmp_path: Path) -> None:
    add_hashes(server.root)
    server.faults = [of_shard(1, first(10, corrupted))]
    run(server.address, tmp_path / "data")
    assert as_published(server.root, tmp_path / "data", TRAIN)
    server.faults = [of_shard(1, corrupted)]
    with pytest.raises(BytegolfError, match=r"000001\.bin from http.* SHA-256 .*twice"):
        run(server.address, tmp_path / "other", workers=1)
    assert not list((tmp_path / "other").rglob("*000001.bin*"))


@pytest.mark.usefixtures("small_blocks")
def test_a_file_that_changes_while_it_is_fetched_is_fetched_again(server: Server, tmp_path: Path) -> None:
    def change(request: Handler, file: Path, before: int) -> bool:
        if before == 5:
            file.write_bytes(file.read_bytes()[:-2] + b"\x07\x00")
        return False

    server.faults = [of_shard(1, change)]
    run(server.address, tmp_path / "data")
    assert as_published(server.root, tmp_path / "data", TRAIN)
    assert [part for path, part in server.asked if path == TRAIN[1]].count("bytes=0-999") == 2


def test_shards_that_are_none_are_refused_without_a_hash_too(server: Server, tmp_path: Path) -> None:
    shard = server.root / TRAIN[2]
    good_shard = shard.read_bytes()
    for bad, said in (
        (b"<html>log in first</html>".ljust(9024), "no token shard"),
        (good_shard[:-2], "announces 4000 tokens"),
        (good_shard[:-2] + b"\xff\xff", "token 65535"),
    ):
        shard.write_bytes(bad)
        with pytest.raises(BytegolfError, match=f"000002.bin from http.* is no good .*{said}.*twice"):
            run(server.address, tmp_path / "data")
        assert not (tmp_path / "data" / TRAIN[2]).exists()


def test_a_file_that_was_damaged_later_is_found(mirror: Path, tmp_path: Path) -> None:
    out = tmp_path / "data"
    run(mirror, out)
    flip_a_bit(out / TRAIN[0])
    assert run(mirror, out, dry_run=True).replaced == TRAIN[:1]
    assert run(mirror, out).replaced == TRAIN[:1]
    assert as_published(mirror, out, TRAIN)
    old = (out / TRAIN[1]).stat().st_mtime_ns
    flip_a_bit(out / TRAIN[1])
    os.utime(out / TRAIN[1], ns=(old, old))
    assert run(mirror, out).replaced == []
    assert run(mirror, out, verify=True).replaced == [TRAIN[1]], "by the hash of when it was fetched"
    assert as_published(mirror, out, TRAIN)


def test_what_lies_there_already_is_taken_over(published: Path, tmp_path: Path) -> None:
    out = tmp_path / "data"
    shutil.copytree(published / "datasets", out / "datasets")
    (out / TRAIN[3]).write_bytes(b"half of a copy")
    done = run(published, out)
    assert done.replaced == [TRAIN[3]]
    assert done.files_fetched == 3, "that one and the tokenizer"
    assert as_published(published, out, TRAIN)
    shutil.copy(published / TRAIN[0], out / SHARDS / "fineweb_train_000005.bin")
    with pytest.raises(BytegolfError, match=r"fineweb_train_000005\.bin, which .* does not publish"):
        run(published, out)


def test_data_of_ones_own_is_not_overwritten(tiny_data: Path, published: Path, tmp_path: Path) -> None:
    out = shutil.copytree(tiny_data, tmp_path / "data")
    with pytest.raises(BytegolfError, match=f"fineweb10B_{SUBWORDS} that was not fetched"):
        run(published, out)
    with pytest.raises(BytegolfError, match="fineweb10B_byte260 of other documents"):
        run(published, out, "byte260", export=True)
    with only_one(tmp_path / "other" / LOCK, "busy"), pytest.raises(BytegolfError, match="is at work in"):
        run(published, tmp_path / "other")


def test_room_is_told_and_refused(published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def free(count: int) -> None:
        monkeypatch.setattr(shutil, "disk_usage", lambda path: types.SimpleNamespace(free=count))

    out = tmp_path / "data"
    free(40_000)
    with pytest.raises(BytegolfError, match=r"292\.\d kB are needed in .* 40\.0 kB are free: .*$") as caught:
        run(published, out)
    assert not list(out.rglob("*.bin*"))
    assert "--train-shards" not in str(caught.value), "the tokenizer alone is too large"
    free(275_000)
    with pytest.raises(BytegolfError, match=r"or give --train-shards (\d)$") as caught:
        run(published, out)
    run(published, out, train_shards=int(str(caught.value)[-1]))
    free(1000)
    with pytest.raises(BytegolfError, match="are needed"):
        run(published, out)
    free(100_000)
    with pytest.raises(BytegolfError, match="are needed"):  # the documents fit, their shards do not
        run(published, out, "byte260", export=True)


# ---------------------------------------------------------------------------------------------- servers


@pytest.mark.parametrize("status", [429, 503])
def test_a_busy_server_is_asked_again(server: Server, tmp_path: Path, status: int) -> None:
    server.faults = [of_shard(0, first(3, code(status, Retry_After="3600")))]
    run(server.address, tmp_path / "data", train_shards=1)
    assert as_published(server.root, tmp_path / "data", TRAIN[:1])


@pytest.mark.parametrize(
    ("status", "headers", "said"),
    [
        (404, {}, "404.*check the mirror"),
        (403, {}, "403.*log in"),
        (400, {}, "answers 400"),
        (302, {"Location": "ftp://127.0.0.1/x"}, "nothing safe"),
    ],
)
def test_what_trying_again_does_not_cure(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: int, headers: dict[str, str], said: str
) -> None:
    retries = download.Retries()
    monkeypatch.setattr(fetching, "Retries", lambda said: retries)
    # the other shards come when the failure of the first one is known
    server.faults = [of_shard(0, code(status, **headers))]
    server.faults += [of_shard(shard, lambda *request: not retries.stop.wait()) for shard in range(1, 5)]
    with pytest.raises(BytegolfError, match=f"000000.bin.*{said}"):
        run(server.address, tmp_path / "data", workers=2)
    assert sum(path == TRAIN[0] for path, _ in server.asked) < 3
    assert not (tmp_path / "data" / TRAIN[4]).exists(), "a failure ends the other downloads"


def test_a_redirect_is_followed(server: Server, tmp_path: Path) -> None:
    with serving(server.root) as elsewhere:
        server.faults = [of_shard(0, code(307, Location=f"{elsewhere.address}/{TRAIN[0]}"))]
        run(server.address, tmp_path / "data", train_shards=1)
        assert {path for path, _ in elsewhere.asked} == {TRAIN[0]}
    assert as_published(server.root, tmp_path / "data", TRAIN[:1])


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("count", [900, 1100])
def test_an_answer_of_a_wrong_length_is_refused(server: Server, tmp_path: Path, count: int) -> None:
    def answer(request: Handler, file: Path, before: int) -> bool:
        request.send_response(206)
        request.send_header("Content-Length", str(count))
        request.end_headers()
        request.wfile.write(file.read_bytes()[:count])
        return True

    server.faults = [of_shard(0, answer)]
    with pytest.raises(BytegolfError, match=f"{count} bytes where 1000 were asked for, 6 times in a row"):
        run(server.address, tmp_path / "data", train_shards=1)


def test_a_server_that_says_no_length(server: Server, tmp_path: Path) -> None:
    server.lengths = server.ranges = False
    said: list[str] = []
    result = run(server.address, tmp_path / "data", tell=said.append)
    assert any("8 files of unknown size" in one for one in said)
    files = list(json.loads((tmp_path / "data" / RECORD).read_text())["files"])
    assert as_published(server.root, tmp_path / "data", [*TRAIN, VAL, MODEL])
    assert result.bytes_fetched == sum((server.root / path).stat().st_size for path in files), "what came"
    assert run(server.address, tmp_path / "data").bytes_fetched == 0
    assert "nothing to fetch" in good("fetch", *_subwords(server.address, tmp_path / "data")).out


def _subwords(mirror: Path | str, out: Path) -> list[object]:
    return ["--variant", SUBWORDS, "--mirror", mirror, "--out", out]


@pytest.mark.parametrize("name", ["my data", "a%20b", "a+b", "caf\u00e9", "a#b", "-x"])
def test_names_in_addresses(server: Server, tmp_path: Path, name: str) -> None:
    """A folder of any name, as it is and quoted; on a web server, and by file:// and as a path."""
    quoted = urllib.parse.quote(name)
    shutil.copytree(server.root, server.root / name)
    places = [server.root / name, f"file://{server.root}/{quoted}", f"file://localhost{server.root}/{quoted}"]
    web = [f"{server.address}/{quoted}"]
    if quoted != name and not set(name) & set("%#"):  # those must be quoted, as anywhere
        web += [f"{server.address}/{name}"]
        places += [f"file://{server.root}/{name}"]
    for number, place in enumerate([*places, *web]):
        assert run(str(place), tmp_path / str(number), train_shards=1).files_fetched == 4


@pytest.mark.parametrize("proxy", ["socks5://me:secret@127.0.0.1:1", "ftp://127.0.0.1:1", "127.0.0.1:1"])
@pytest.mark.parametrize("mirror", ["http://example.org/x", None])
def test_a_proxy_that_cannot_be_used_is_said_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, proxy: str, mirror: str | None
) -> None:
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, proxy)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)  # no socksio
    monkeypatch.setattr(download, "ATTEMPTS", 0)  # trying again would fail
    if mirror is None:
        pytest.importorskip("huggingface_hub")
    with pytest.raises(BytegolfError, match=r"https?_proxy names a .*proxy.*: set it") as caught:
        fetching.run(tmp_path / "data", [SUBWORDS], mirror=mirror, quiet=True)
    assert "secret" not in str(caught.value)


def test_a_server_that_says_nothing_and_nobody_there(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "TIMEOUT", 0.05)
    monkeypatch.setattr(download, "ATTEMPTS", 2)
    server.faults = [of_shard(0, lambda *request: bool(time.sleep(0.3)) or True)]  # type: ignore[func-returns-value]
    with pytest.raises(BytegolfError, match="2 times in a row: check the network"):
        run(server.address, tmp_path / "data", train_shards=1)
    with serving(tmp_path) as gone:
        address = gone.address
    with pytest.raises(BytegolfError, match="2 times in a row: check the network"):
        run(address, tmp_path / "data")


def test_a_manifest_that_is_too_long(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(published, "MANIFEST_BYTES", 100)
    with pytest.raises(BytegolfError, match=r"manifest\.json of http.* does not end"):
        run(server.address, tmp_path / "data")


@pytest.mark.parametrize(
    ("mirror", "said"),
    [
        ("ftp://example.org/x", "http or https"),
        ("http://me:secret@example.org", "without password"),
        ("http://example.org:port/", "is no address"),
        ("http://", "names no host"),
        ("nowhere", "there is no folder nowhere"),
        ("file:///no%20where", "there is no folder /no where"),
        ("http://example.org/a\nb", "no line breaks"),
    ],
)
def test_addresses_that_are_none(tmp_path: Path, mirror: str, said: str) -> None:
    with pytest.raises(BytegolfError, match=said) as caught:
        run(mirror, tmp_path / "data")
    assert "secret" not in str(caught.value)


def test_command_lines_that_are_wrong(tmp_path: Path) -> None:
    out = ("--out", tmp_path / "data")
    assert "leave one out" in refused("fetch", "--mirror", "x", "--repo", "a/b", *out)
    assert "names nothing" in refused("fetch", "--variant", ",", *out)
    assert "--train-shards" in refused("fetch", "--train-shards", "-1", *out)
    assert "--out" in refused("fetch")
    assert "same folder" in refused("fetch", "--mirror", tmp_path, "--out", tmp_path)


def test_a_record_that_is_none(published: Path, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / RECORD).write_text('{"files": []}')
    with pytest.raises(BytegolfError, match="no record of what was fetched"):
        run(published, tmp_path / "data")


# ---------------------------------------------------------------------------------------------- the hub


def from_hub(out: Path, repository: str = REPOSITORY, **options: Any) -> FetchResult:
    return fetching.run(out, [SUBWORDS], repository=repository, quiet=True, **options)


@pytest.fixture
def hub(server: Server, monkeypatch: pytest.MonkeyPatch) -> Server:
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "ENDPOINT", server.address)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", f"{server.address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    )
    monkeypatch.setenv("HF_TOKEN", "secret")
    return server


def test_the_hub_at_one_commit_with_its_hashes(hub: Server, tmp_path: Path) -> None:
    said: list[str] = []
    done = from_hub(tmp_path / "data", tell=said.append)
    assert done.source == "hf://datasets/someone/golf@c0ffeec0ffee/datasets"
    assert as_published(hub.root, tmp_path / "data", [*TRAIN, VAL, MODEL])
    assert not any("no hash is published" in one for one in said)
    shown = {
        headers.get("Authorization") for (path, _), headers in zip(hub.asked, hub.headers, strict=True) if path in TRAIN
    }
    assert shown == {"Bearer secret"}
    hub.faults = [of_shard(0, corrupted)]
    with pytest.raises(BytegolfError, match="SHA-256"):
        from_hub(tmp_path / "other")


def test_a_token_is_shown_to_the_hub_alone(hub: Server, tmp_path: Path) -> None:
    with serving(hub.root) as elsewhere:
        # another port is another host
        hub.faults = [of_shard(0, code(302, Location=f"{elsewhere.address}/{TRAIN[0]}"))]
        from_hub(tmp_path / "data", train_shards=1)
        assert {path for path, _ in elsewhere.asked} == {TRAIN[0]}
        assert not any("Authorization" in headers for headers in elsewhere.headers)


def test_the_endpoint_of_the_environment(server: Server, tmp_path: Path) -> None:
    pytest.importorskip("huggingface_hub")
    command = ["fetch", "--repo", REPOSITORY, "--variant", SUBWORDS, "--out", str(tmp_path / "data")]
    for offline, answer in (("1", 2), ("0", 0)):
        environment = {**os.environ, "HF_ENDPOINT": server.address, "HF_HUB_OFFLINE": offline}
        done = subprocess.run([sys.executable, "-m", "bytegolf", *command], env=environment, capture_output=True)
        assert done.returncode == answer, done.stderr
    assert as_published(server.root, tmp_path / "data", TRAIN)


def test_a_hub_that_is_not_there(hub: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BytegolfError, match=r"someone/else.*log in"):
        from_hub(tmp_path / "data", "someone/else")
    (hub.root / TRAIN[1]).unlink()
    with pytest.raises(BytegolfError, match=r"train_000001\.bin does not exist"):
        from_hub(tmp_path / "data")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(BytegolfError, match=r"pip install .*\[hub\]'.*--mirror"):
        from_hub(tmp_path / "data")


# ---------------------------------------------------------------------------------------------- manifests


@pytest.mark.parametrize(
    "path",
    [
        *("../x", "/etc/passwd", "datasets/../../x", "datasets//x", "datasets/.hidden", "datasets", "manifest.json"),
        *("datasets\\x/y", "C:/x", "datasets/x\0", "datasets/%2e%2e/x", "tokenizers/a b", "", 7, None, ["datasets/x"]),
    ],
)
def test_paths_that_lead_elsewhere(path: Any) -> None:
    with pytest.raises(BytegolfError, match="is not one below datasets/ or tokenizers/"):
        published.safe_path(path, "the mirror")


def changed(mirror: Path, change: Callable[[dict[str, Any]], Any]) -> Path:
    manifest = json.loads((mirror / MANIFEST).read_text())
    change(manifest)
    (mirror / MANIFEST).write_text(json.dumps(manifest))
    return mirror


def test_a_mirror_cannot_write_outside_the_folder(mirror: Path, tmp_path: Path) -> None:
    changed(mirror, lambda manifest: manifest["tokenizers"][0].update(vocab_path="tokenizers/../../../escaped"))
    with pytest.raises(BytegolfError, match=r"the tokenizer .* names the path"):
        run(mirror, tmp_path / "data")
    changed(mirror, lambda manifest: manifest["datasets"][0].update(path="/tmp"))
    with pytest.raises(BytegolfError, match=r"the data set .* names the path '/tmp'"):
        run(mirror, tmp_path / "data")


@pytest.mark.parametrize("data", [b"", b"<html>", b"[]", b'{"datasets": 3, "tokenizers": []}', b"[" * 100_000, b"\xff"])
def test_manifests_that_are_none(data: bytes) -> None:
    with pytest.raises(BytegolfError, match=r"the manifest\.json of there"):
        published.parse_manifest(data, "there")


@pytest.mark.parametrize("data", [b"", b"[]", b"{}", b'{"docs_val": true}', b'{"docs_val": 0}', b'{"docs_val": "5"}'])
def test_sidecars_that_are_none(data: bytes) -> None:
    with pytest.raises(BytegolfError, match="choose another mirror"):
        published.parse_sidecar(data, "the sidecar")


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("name", "fineweb10B_../x", "no folder's name"),
        ("tokenizer_name", "none", "has no tokenizer"),
        ("stats", None, "files_train is None"),
        ("stats", {"files_train": -1, "files_val": 1}, "files_train is -1"),
        ("stats", {"files_train": True, "files_val": 1}, "files_train is True"),
        ("stats", {"files_train": 10**9, "files_val": 1}, "files_train is 1000000000"),
        ("stats", {"files_train": 1, "files_val": 0}, "files_val is 0"),
        ("vocab_size", 70_000, "vocab_size is 70000"),
    ],
)
def test_entries_that_cannot_be(key: str, value: Any, said: str) -> None:
    entry = {"name": "fineweb10B_x", "tokenizer_name": "t", "stats": {"files_train": 1, "files_val": 1}, key: value}
    variant = str(entry["name"]).removeprefix("fineweb10B_")
    with pytest.raises(BytegolfError, match=said):
        published.find({"datasets": [entry], "tokenizers": [{"name": "t"}]}, variant, "there")


def test_a_manifest_of_other_shards(mirror: Path, tmp_path: Path) -> None:
    changed(mirror, lambda manifest: manifest["datasets"][0]["stats"].update(tokens_val=1878))
    with pytest.raises(BytegolfError, match=r"the val shards of .* hold 1877 tokens, but the manifest .* says 1878"):
        run(mirror, tmp_path / "data")
    assert not (tmp_path / "data" / MANIFEST).exists()


def test_hashes_that_disagree() -> None:
    with pytest.raises(BytegolfError, match="two hashes"):
        fetching._wanted(published.File(VAL, "a" * 64), download.Remote(1, "b" * 64))
