"""Fetching published data: from a folder and a web server with the published layout, whatever goes wrong."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from commands import SUBWORDS, good, refused, small
from mirror import DOCUMENTS, SHARDS, SIDECAR, Handler, Server, digest, serving

from bytegolf.data.manifest import FETCHING, LOCK, MANIFEST, read_manifest
from bytegolf.data.prepare import prepare
from bytegolf.data.published import File, find, parse_manifest, parse_sidecar, safe_path
from bytegolf.data.shards import open_split
from bytegolf.errors import BytegolfError
from bytegolf.tools.fetch import download, mirrors
from bytegolf.tools.fetch import files as fetch
from bytegolf.tools.fetch import job as fetching
from bytegolf.tools.fetch.record import RECORD

TRAIN = [f"{SHARDS}/fineweb_train_{index:06d}.bin" for index in range(5)]
VAL = f"{SHARDS}/fineweb_val_000000.bin"
MODEL = f"tokenizers/fineweb_{SUBWORDS[2:]}_bpe.model"


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "DELAY", 0.001)


def run(source: Path | str, out: Path, *variants: str, **options: Any) -> dict[str, Any]:
    """Fetch, without progress."""
    return fetching.run(out, variants or [SUBWORDS], mirror=str(source), quiet=True, **options)


def as_published(published: Path, out: Path, paths: list[str]) -> bool:
    return all((out / path).read_bytes() == (published / path).read_bytes() for path in paths)


def of_shard(index: int, answer: Callable[[Handler, Path, int], bool]) -> Callable[[Handler, Path, int], bool]:
    """A fault of one training shard, where it is asked for as a whole or from some byte on."""

    def fault(request: Handler, file: Path, before: int) -> bool:
        mine = file.name == Path(TRAIN[index]).name and request.headers.get("Range") != "bytes=0-0"
        return mine and answer(request, file, before)

    return fault


def broken_off(after: int) -> Callable[[Handler, Path, int], bool]:
    def answer(request: Handler, file: Path, before: int) -> bool:
        request.answer(file.read_bytes(), stop=after)
        return True

    return answer


# ---------------------------------------------------------------------------------------------- what is fetched


def test_all_of_a_folder_and_then_nothing(published: Path, tmp_path: Path) -> None:
    out = tmp_path / "data"
    command = ("fetch", "--mirror", published, "--variant", SUBWORDS, "--with-docs", "--out", out, "--json")
    first = good(*command)
    assert as_published(published, out, [*TRAIN, VAL, MODEL, DOCUMENTS, SIDECAR])
    assert "9 files, " in first.out
    assert " free" in first.out
    assert first.json["files_fetched"] == first.json["files"] == 9
    there = {path: path.stat().st_mtime_ns for path in sorted(out.rglob("*")) if path.name != LOCK}
    second = good(*command)
    assert (second.json["files_fetched"], second.json["bytes_fetched"]) == (0, 0)
    assert {path: path.stat().st_mtime_ns for path in sorted(out.rglob("*")) if path.name != LOCK} == there
    assert not (out / FETCHING).exists()
    assert not list(out.rglob("*.part*"))


def test_the_folder_trains_and_scores(published: Path, tmp_path: Path) -> None:
    run(published, tmp_path / "data", train_shards=2)
    changes = (f"data.tokenizer={SUBWORDS}", f"model.vocab_size={SUBWORDS[2:]}", "train.max_steps=2")
    out = tmp_path / "run"
    preset = ("cpu-gpt", *small("cpu-gpt"), *changes)
    scored = good("train", *preset, "--data", tmp_path / "data", "--out", out, "--json").json
    assert scored["bpb"] > 0


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
    assert run(server.address, out, train_shards=5)["files_fetched"] == 3
    assert sorted(set(server.whole())) == sorted([MANIFEST, *TRAIN[2:]])
    assert read_manifest(out)["datasets"][0]["stats"]["docs_train"] == 90
    server.asked.clear()
    run(server.address, out, train_shards=1)
    assert server.asked == [(MANIFEST, None)], "a second run costs the manifest"
    assert read_manifest(out)["datasets"][0]["stats"]["files_train"] == 5, "all that training will read"


def test_a_variant_of_two_and_both_in_one_manifest(mirror: Path, tmp_path: Path) -> None:
    manifest = json.loads((mirror / MANIFEST).read_text())
    other = json.loads(json.dumps(manifest["datasets"][0]).replace(SUBWORDS, "other"))
    manifest["datasets"].append(other)
    manifest["tokenizers"].append(json.loads(json.dumps(manifest["tokenizers"][0]).replace(SUBWORDS, "other")))
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
    said = refused(*command)
    assert f"no shards of byte260, only of {SUBWORDS}: add --export" in said
    ran = good(*command, "--export", "--json")
    assert ran.json["exported"] == ["byte260"]
    assert "byte260 will be made here from the documents" in ran.out
    prepare([str(server.root / DOCUMENTS)], tmp_path / "own", "byte260", "first:10", quiet=True)
    made = "datasets/fineweb10B_byte260"
    assert as_published(tmp_path / "own", out, [f"{made}/fineweb_{split}_000000.bin" for split in ("train", "val")])
    subwords, byte = (entry["stats"] for entry in read_manifest(out)["datasets"])
    assert subwords["original_bytes_val"] == byte["original_bytes_val"] == byte["bytes_val"]
    assert sorted(path.name for path in out.iterdir() if path.is_dir()) == ["datasets", "tokenizers"]
    preset = ("cpu-demo", *small(), "train.max_steps=2", "--data", out, "--out", tmp_path / "run")
    assert good("train", *preset, "--json").json["bpb"] > 0
    before = (out / MANIFEST).read_bytes()
    assert good(*command, "--export", "--json").json["exported"] == []
    assert (out / MANIFEST).read_bytes() == before


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
            patch.setattr(fetching, name, killed)
            with pytest.raises(KilledError):
                run(published, out, "byte260", export=True)
    run(published, out, "byte260", export=True)
    assert read_manifest(out)["datasets"][0]["stats"]["docs_val"] == 10
    assert not (out / fetching.EXPORT).exists()
    assert len(open_split(out, "byte260", "val", 260)) > 1000


def test_an_export_of_documents_that_have_changed_is_made_anew(mirror: Path, tmp_path: Path) -> None:
    out = tmp_path / "data"
    run(mirror, out, "byte260", export=True)
    lines = (mirror / DOCUMENTS).read_text().splitlines()[:50]
    (mirror / DOCUMENTS).write_text("\n".join(lines) + "\n")
    sidecar = {"docs_val": 5, "docs_sha256": digest(mirror / DOCUMENTS)}
    (mirror / SIDECAR).write_text(json.dumps(sidecar))
    done = run(mirror, out, "byte260", export=True)
    assert (done["exported"], done["replaced"]) == (["byte260"], [DOCUMENTS])
    assert done["datasets"]["byte260"]["docs_total"] == 50
    assert done["datasets"]["byte260"]["docs_val"] == 5


def test_names_that_nothing_can_make(published: Path, tmp_path: Path) -> None:
    for name in ("sp1024x", "../sp1024", "byte"):
        with pytest.raises(BytegolfError, match=r"is no tokenizer: give byte260"):
            run(published, tmp_path / "data", name, export=True)
    assert not (tmp_path / "data" / DOCUMENTS).exists()


# ---------------------------------------------------------------------------------------------- going on


def test_a_connection_that_breaks_off_again_and_again_still_gets_there(server: Server, tmp_path: Path) -> None:
    server.faults = [of_shard(0, broken_off(1500))]
    run(server.address, tmp_path / "data")
    assert as_published(server.root, tmp_path / "data", [*TRAIN, VAL])
    starts = [part for path, part in server.asked if path == TRAIN[0]]
    assert starts == ["bytes=0-0", None, *(f"bytes={at}-" for at in range(1500, 9024, 1500))]


def test_what_was_received_before_a_failure_is_not_fetched_again(server: Server, tmp_path: Path) -> None:
    server.faults = [of_shard(0, lambda request, file, before: broken_off(0 if before > 2 else 3000)(request, file, 0))]
    with pytest.raises(BytegolfError, match=r"000000\.bin broke off after 6000 of 9024 bytes, 6 times in a row: check"):
        run(server.address, tmp_path / "data")
    assert not (tmp_path / "data" / TRAIN[0]).exists()
    refused("train", "cpu-demo", "--data", tmp_path / "data", "--out", tmp_path / "run")
    server.faults.clear()
    server.asked.clear()
    assert run(server.address, tmp_path / "data")["bytes_resumed"] >= 6000
    assert (TRAIN[0], "bytes=6000-") in server.asked
    assert as_published(server.root, tmp_path / "data", [*TRAIN, VAL])


SLOW = """
import sys
from bytegolf.tools.fetch import download
from bytegolf.cli import main
download.NOTE_BYTES = 1024
sys.argv = ["bytegolf", *sys.argv[1:]]
main()
"""


def test_a_kill_costs_what_was_not_noted(server: Server, tmp_path: Path) -> None:
    out, server.pause = tmp_path / "data", 0.02
    options = ["--variant", SUBWORDS, "--with-docs", "--jobs", "2", "--mirror", server.address, "--out", str(out)]
    process = subprocess.Popen([sys.executable, "-c", SLOW, "fetch", *options], stderr=subprocess.PIPE)
    note = (out / DOCUMENTS).with_name(f".{DOCUMENTS}.part.json")
    while not note.exists() and process.poll() is None:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, process.stderr and process.stderr.read()
    part = note.with_suffix("")
    with part.open("ab") as file:
        file.write(b"what a crash may leave behind what was flushed" * 3000)
    received = json.loads(note.read_text())["received"]
    said = refused("eval", "no-model", "--data", out)
    assert said
    finished = [path for path in TRAIN if (out / path).exists()]
    assert finished
    server.pause = 0.0
    server.asked.clear()
    done = run(server.address, out, documents=True)
    assert done["bytes_resumed"] >= received > 0
    assert (DOCUMENTS, f"bytes={received}-") in server.asked
    assert not {path for path, _ in server.asked} & set(finished), "nothing twice"
    assert as_published(server.root, out, [*TRAIN, VAL, DOCUMENTS])


@pytest.fixture
def half(server: Server, tmp_path: Path) -> Path:
    """A data folder that has 4,000 bytes of the fourth training shard; the server is in order again."""

    def answer(request: Handler, file: Path, before: int) -> bool:
        return broken_off(4000 if before < 2 else 0)(request, file, before)

    server.faults = [of_shard(3, answer)]
    with pytest.raises(BytegolfError):
        run(server.address, tmp_path / "data", workers=1)
    server.faults.clear()
    server.asked.clear()
    assert (tmp_path / "data" / TRAIN[2]).exists()
    return tmp_path / "data"


def again(server: Server, half: Path) -> list[str | None]:
    """Fetch the rest; the ranges that were asked for of the fourth shard."""
    server.asked.clear()
    run(server.address, half)
    assert as_published(server.root, half, [*TRAIN, VAL])
    return [part for path, part in server.asked if path == TRAIN[3] and part != "bytes=0-0"]


def part_of(half: Path, ending: str = "part") -> Path:
    return (half / TRAIN[3]).with_name(f".{Path(TRAIN[3]).name}.{ending}")


def test_a_part_is_used(server: Server, half: Path) -> None:
    assert again(server, half) == ["bytes=4000-"]


@pytest.mark.parametrize("damage", ["changed", "shorter", "no note", "note is no note", "older file"])
def test_a_part_that_is_not_what_it_was_is_not_used(server: Server, half: Path, damage: str) -> None:
    part, note = part_of(half), part_of(half, "part.json")
    if damage == "changed":
        part.write_bytes(part.read_bytes()[:-1] + b"?")
    elif damage == "shorter":
        part.write_bytes(part.read_bytes()[:-1])
    elif damage == "no note":
        note.unlink()
    elif damage == "note is no note":
        note.write_text('{"received": "many"}')
    else:  # the same size, but another file
        file = server.root / TRAIN[3]
        file.write_bytes(file.read_bytes()[:-2] + b"\x07\x00")
    assert again(server, half) == [None]


def test_a_server_without_ranges_sends_all_of_it(server: Server, half: Path) -> None:
    server.ranges = False
    assert again(server, half) == ["bytes=4000-"]


def test_a_server_that_ignores_what_a_range_is_of_is_found_out(server: Server, half: Path) -> None:
    planned = {}

    def answer(request: Handler, file: Path, before: int) -> bool:  # the file changes between the two questions
        planned.setdefault("before", file.read_bytes())
        file.write_bytes(planned["before"][:-2] + b"\x07\x00")
        server.if_range = False
        return False

    server.faults = [of_shard(3, answer)]
    assert again(server, half)[-1] is None


def test_without_tags_nobody_can_tell_what_a_part_is_of(server: Server, tmp_path: Path) -> None:
    server.tags = False
    server.faults = [of_shard(3, lambda request, file, before: broken_off(4000 if before < 2 else 0)(request, file, 0))]
    with pytest.raises(BytegolfError):
        run(server.address, tmp_path / "data", workers=1)
    server.faults.clear()
    assert again(server, tmp_path / "data") == [None]


def test_another_mirror_goes_on_with_what_has_a_hash(server: Server, tmp_path: Path) -> None:
    add_hashes(server.root)
    server.faults = [of_shard(0, lambda request, file, before: broken_off(3000 if before < 2 else 0)(request, file, 0))]
    with pytest.raises(BytegolfError):
        run(server.address, tmp_path / "data")
    assert run(server.root, tmp_path / "data")["bytes_resumed"] >= 3000
    assert as_published(server.root, tmp_path / "data", TRAIN)


def add_hashes(root: Path) -> None:
    """What `prepare` itself writes into a manifest, and public scripts do not."""
    manifest = json.loads((root / MANIFEST).read_text())
    manifest["datasets"][0]["sha256"] = {path.name: digest(path) for path in (root / SHARDS).iterdir()}
    manifest["tokenizers"][0]["sha256"] = digest(root / MODEL)
    (root / MANIFEST).write_text(json.dumps(manifest))


# ---------------------------------------------------------------------------------------------- what is wrong


def corrupted(times: int) -> Callable[[Handler, Path, int], bool]:
    def answer(request: Handler, file: Path, before: int) -> bool:
        data = file.read_bytes()
        request.answer(data[:5000] + bytes([data[5000] ^ 1]) + data[5001:] if before <= times else data, tag='"same"')
        return True

    return answer


def test_a_wrong_hash_is_fetched_once_more_and_then_refused(server: Server, tmp_path: Path) -> None:
    add_hashes(server.root)
    server.faults = [of_shard(1, corrupted(1))]
    run(server.address, tmp_path / "data")
    assert as_published(server.root, tmp_path / "data", TRAIN)
    server.faults = [of_shard(1, corrupted(9))]
    with pytest.raises(BytegolfError, match=r"000001\.bin from http.* has the SHA-256 .*…, not .*…, twice: choose"):
        run(server.address, tmp_path / "other", workers=1)
    assert not list((tmp_path / "other").rglob("*000001.bin*"))


def test_shards_that_are_none_are_refused_without_a_hash_too(server: Server, tmp_path: Path) -> None:
    shard = server.root / TRAIN[2]
    good_shard = shard.read_bytes()
    for bad, said in (
        (b"<html>log in first</html>".ljust(9024), "it begins with .* it is no token shard"),
        (good_shard[:-2], "it announces 4000 tokens"),
        (good_shard[:-2] + b"\xff\xff", "it holds the token 65535, but the vocabulary has 400"),
    ):
        shard.write_bytes(bad)
        with pytest.raises(BytegolfError, match=f"000002.bin from http.* is no good .{said}.*twice"):
            run(server.address, tmp_path / "data")
        assert not (tmp_path / "data" / TRAIN[2]).exists()


def test_a_file_that_was_damaged_later_is_found(mirror: Path, tmp_path: Path) -> None:
    out = tmp_path / "data"
    run(mirror, out)
    data = bytearray((out / TRAIN[0]).read_bytes())
    data[-2] ^= 1
    (out / TRAIN[0]).write_bytes(data)
    assert run(mirror, out, dry_run=True)["replaced"] == TRAIN[:1]
    assert run(mirror, out)["replaced"] == TRAIN[:1]
    assert as_published(mirror, out, TRAIN)


def test_verify_reads_all_again(published: Path, tmp_path: Path) -> None:
    out = tmp_path / "data"
    run(published, out)
    old = (out / TRAIN[1]).stat().st_mtime_ns
    data = bytearray((out / TRAIN[1]).read_bytes())
    data[-2] ^= 1
    (out / TRAIN[1]).write_bytes(data)
    os.utime(out / TRAIN[1], ns=(old, old))
    assert run(published, out)["replaced"] == []
    assert run(published, out, verify=True)["replaced"] == [TRAIN[1]], "by the hash of when it was fetched"
    assert as_published(published, out, TRAIN)


def test_what_lies_there_already_is_taken_over(published: Path, tmp_path: Path) -> None:
    out = tmp_path / "data"
    shutil.copytree(published / "datasets", out / "datasets")
    (out / TRAIN[3]).write_bytes(b"half of a copy")
    done = run(published, out)
    assert done["replaced"] == [TRAIN[3]]
    assert done["files_fetched"] == 3, "that one and the tokenizer"
    assert as_published(published, out, TRAIN)


def test_shards_that_nobody_published_are_not_trained_on(published: Path, tmp_path: Path) -> None:
    stray = tmp_path / "data" / SHARDS / "fineweb_train_000005.bin"
    stray.parent.mkdir(parents=True)
    shutil.copy(published / TRAIN[0], stray)
    with pytest.raises(BytegolfError, match=r"holds fineweb_train_000005\.bin, which .* move it away"):
        run(published, tmp_path / "data")


def test_data_of_ones_own_is_not_overwritten(tiny_data: Path, published: Path, tmp_path: Path) -> None:
    out = shutil.copytree(tiny_data, tmp_path / "data")
    with pytest.raises(BytegolfError, match=f"holds fineweb10B_{SUBWORDS} that was not fetched: choose another --out"):
        run(published, out)
    with pytest.raises(BytegolfError, match="holds fineweb10B_byte260 of other documents: choose another --out"):
        run(published, out, "byte260", export=True)


def test_two_at_once_in_one_folder(published: Path, tmp_path: Path) -> None:
    from bytegolf.files import only_one

    with only_one(tmp_path / "data" / LOCK, "busy"), pytest.raises(BytegolfError, match="is at work in"):
        run(published, tmp_path / "data")


def test_room_is_told_and_refused(published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetching.shutil, "disk_usage", lambda path: types.SimpleNamespace(free=40_000))
    out = tmp_path / "data"
    with pytest.raises(BytegolfError, match=r"292\.\d kB are needed in .* 40\.0 kB are free: .*$") as caught:
        run(published, out)
    assert not list(out.rglob("*.bin*"))
    assert "--train-shards" not in str(caught.value), "the tokenizer alone is too large"
    monkeypatch.setattr(fetching.shutil, "disk_usage", lambda path: types.SimpleNamespace(free=275_000))
    with pytest.raises(BytegolfError, match=r"or give --train-shards (\d)$") as caught:
        run(published, out)
    run(published, out, train_shards=int(str(caught.value)[-1]))
    monkeypatch.setattr(fetching.shutil, "disk_usage", lambda path: types.SimpleNamespace(free=1000))
    with pytest.raises(BytegolfError, match="are needed"):
        run(published, out)
    monkeypatch.setattr(fetching.shutil, "disk_usage", lambda path: types.SimpleNamespace(free=100_000))
    with pytest.raises(BytegolfError, match="are needed"):  # the documents fit, their shards do not
        run(published, out, "byte260", export=True)


# ---------------------------------------------------------------------------------------------- servers


def code(number: int, **headers: str) -> Callable[[Handler, Path, int], bool]:
    """The first answer is a status; later ones are good."""

    def answer(request: Handler, file: Path, before: int) -> bool:
        if before > 2:
            return False
        request.send_response(number)
        for name, value in {"Content-Length": "0", **headers}.items():
            request.send_header(name.replace("_", "-"), value)
        request.end_headers()
        return True

    return answer


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503])
def test_a_busy_server_is_asked_again(
    server: Server, tmp_path: Path, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "LONGEST_DELAY", 0.01)
    server.faults = [of_shard(0, code(status, Retry_After="3600"))]
    run(server.address, tmp_path / "data", train_shards=1)
    assert as_published(server.root, tmp_path / "data", TRAIN[:1])


@pytest.mark.parametrize(
    ("status", "headers", "said"),
    [
        (404, {}, "does not exist .404.: check the mirror"),
        (403, {}, "refuses access .403.: log in"),
        (400, {}, "answers 400: check the address"),
        (302, {"Location": "file:///etc/passwd"}, "redirects in a circle, or to nothing safe"),
        (302, {"Location": "ftp://127.0.0.1/x"}, "redirects to ftp:, which is not followed"),
        (302, {"Location": ""}, "redirects in a circle, or to nothing safe"),
        (200, {"Content-Encoding": "gzip"}, "comes gzip-encoded"),
    ],
)
def test_what_trying_again_does_not_cure(
    server: Server, tmp_path: Path, status: int, headers: dict[str, str], said: str
) -> None:
    server.faults = [of_shard(0, lambda request, file, before: code(status, **headers)(request, file, 0))]
    with pytest.raises(BytegolfError, match=f"000000.bin.* {said}"):
        run(server.address, tmp_path / "data")
    assert sum(path == TRAIN[0] for path, _ in server.asked) < 20


def test_a_failure_ends_the_other_downloads(server: Server, tmp_path: Path) -> None:
    server.pause = 0.01
    server.faults = [of_shard(0, lambda request, file, before: code(404)(request, file, 0))]
    with pytest.raises(BytegolfError, match="does not exist"):
        run(server.address, tmp_path / "data")
    assert server.sent < (server.root / MODEL).stat().st_size


def test_a_redirect_is_followed(server: Server, tmp_path: Path) -> None:
    with serving(server.root) as elsewhere:
        server.faults = [
            of_shard(0, lambda request, *_: code(307, Location=f"{elsewhere.address}/{TRAIN[0]}")(request, *_[:1], 0))
        ]
        run(server.address, tmp_path / "data", train_shards=1)
        assert elsewhere.whole() == [TRAIN[0]]
    assert as_published(server.root, tmp_path / "data", TRAIN[:1])


@pytest.mark.parametrize("announced", [9000, 10_000])
def test_a_wrong_length(server: Server, tmp_path: Path, announced: int) -> None:
    def answer(request: Handler, file: Path, before: int) -> bool:
        request.send_response(200)
        request.send_header("Content-Length", str(announced))
        request.end_headers()
        request.wfile.write(file.read_bytes()[:announced])
        request.close_connection = True
        return True

    server.faults = [of_shard(0, answer)]
    with pytest.raises(BytegolfError, match=rf"has {announced} bytes now, not 9024 as announced, 6 times in a row"):
        run(server.address, tmp_path / "data", train_shards=1)


def test_a_server_that_says_no_length(server: Server, tmp_path: Path) -> None:
    def answer(request: Handler, file: Path, before: int) -> bool:
        request.send_response(200)
        request.end_headers()
        request.wfile.write(file.read_bytes())
        request.close_connection = True
        return True

    server.faults = [lambda request, file, before: file.is_file() and answer(request, file, before)]
    said: list[str] = []
    run(server.address, tmp_path / "data", tell=said.append)
    assert any("8 files of unknown size" in one for one in said)
    assert as_published(server.root, tmp_path / "data", [*TRAIN, VAL, MODEL])


def test_a_server_that_hardly_sends(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "PACE_SECONDS", 0.02)
    monkeypatch.setattr(download, "PACE_BYTES", 1 << 20)

    def answer(request: Handler, file: Path, before: int) -> bool:
        server.pause = 0.011
        request.answer(file.read_bytes())
        server.pause = 0.0
        return True

    server.faults = [of_shard(0, answer)]
    run(server.address, tmp_path / "data", train_shards=1, workers=1)
    assert sum(path == TRAIN[0] for path, _ in server.asked) > 2, "another connection may do better"
    assert as_published(server.root, tmp_path / "data", TRAIN[:1])


def test_a_server_that_says_nothing(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mirrors, "TIMEOUT", 0.05)
    monkeypatch.setattr(download, "ATTEMPTS", 2)
    server.faults = [of_shard(0, lambda *request: bool(time.sleep(0.3)) or True)]
    with pytest.raises(BytegolfError, match="sent nothing for 0 s, 2 times in a row"):
        run(server.address, tmp_path / "data", train_shards=1)


def test_nobody_there(tmp_path: Path) -> None:
    with serving(tmp_path) as gone:
        address = gone.address
    with pytest.raises(BytegolfError, match=r"cannot be reached .*refused.*, 6 times in a row: check the network"):
        run(address, tmp_path / "data")


def test_a_server_that_never_ends_its_manifest(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "_SMALL_FILE", 100)
    with pytest.raises(BytegolfError, match=r"manifest\.json of http.* does not end"):
        run(server.address, tmp_path / "data")


@pytest.mark.parametrize(
    ("mirror", "said"),
    [
        ("ftp://example.org/x", "give an http or https address, or a folder"),
        ("http://me:secret@example.org", "give an address without password"),
        ("http://example.org:port/", "is no address"),
        ("http://", "give an address without"),
        ("nowhere", "there is no folder nowhere"),
    ],
)
def test_addresses_that_are_none(tmp_path: Path, mirror: str, said: str) -> None:
    with pytest.raises(BytegolfError, match=said) as caught:
        run(mirror, tmp_path / "data")
    assert "secret" not in str(caught.value)


# ---------------------------------------------------------------------------------------------- the hub


class Hub(types.ModuleType):
    """What is used of huggingface_hub, over a repository whose files lie on a server."""

    def __init__(self, server: Server) -> None:
        super().__init__("huggingface_hub")
        self.server = server
        self.utils = types.SimpleNamespace(build_hf_headers=lambda: {"authorization": "Bearer secret"})

    def HfApi(self) -> Hub:  # noqa: N802
        return self

    def repo_info(self, repository: str, repo_type: str) -> types.SimpleNamespace:
        class RepositoryNotFoundError(Exception):
            pass

        if repository != "someone/golf":
            raise RepositoryNotFoundError("404: no such repository")
        return types.SimpleNamespace(sha="c0ffee" * 6)

    def get_paths_info(self, repository: str, paths: list[str], repo_type: str, revision: str) -> list[Any]:
        assert (repository, repo_type, revision) == ("someone/golf", "dataset", "c0ffee" * 6)
        files = [(path, self.server.root / path.removeprefix("datasets/")) for path in paths]
        return [
            types.SimpleNamespace(
                path=path,
                size=130,
                lfs=types.SimpleNamespace(size=file.stat().st_size, sha256=digest(file)),
            )
            for path, file in files
            if file.is_file()
        ]

    def hf_hub_url(self, repository: str, file: str, repo_type: str, revision: str) -> str:
        return f"{self.server.address}/{file.removeprefix('datasets/')}"


@pytest.fixture
def hub(server: Server, monkeypatch: pytest.MonkeyPatch) -> Hub:
    module = Hub(server)
    monkeypatch.setitem(sys.modules, "huggingface_hub", module)
    return module


def from_hub(out: Path, repository: str = "someone/golf", **options: Any) -> dict[str, Any]:
    return fetching.run(out, [SUBWORDS], repository=repository, quiet=True, **options)


def test_the_hub_at_one_commit_with_its_hashes(hub: Hub, tmp_path: Path) -> None:
    said: list[str] = []
    done = from_hub(tmp_path / "data", tell=said.append)
    assert done["source"] == "hf://datasets/someone/golf@c0ffeec0ffee/datasets"
    assert as_published(hub.server.root, tmp_path / "data", [*TRAIN, VAL, MODEL])
    assert not any("no hash is published" in one for one in said)
    assert all(headers["Authorization"] == "Bearer secret" for headers in hub.server.headers)
    hub.server.faults = [of_shard(0, corrupted(9))]
    with pytest.raises(BytegolfError, match="has the SHA-256"):
        from_hub(tmp_path / "other")


def test_a_token_is_shown_to_the_hub_alone(hub: Hub, tmp_path: Path) -> None:
    with serving(hub.server.root) as elsewhere:

        def away(request: Handler, file: Path, before: int) -> bool:
            return code(302, Location=f"{elsewhere.address}/{request.path.lstrip('/')}")(request, file, 0)

        hub.server.faults = [of_shard(0, away)]
        from_hub(tmp_path / "data", train_shards=1)
        assert elsewhere.whole() == [TRAIN[0]]
        assert not any("Authorization" in headers for headers in elsewhere.headers)


def test_a_hub_that_is_not_there(hub: Hub, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BytegolfError, match=r"gives no dataset someone/else .*: check --repo"):
        from_hub(tmp_path / "data", "someone/else")
    (server.root / TRAIN[1]).unlink()
    with pytest.raises(BytegolfError, match=r"has no file .*train_000001\.bin: check --repo and --root"):
        from_hub(tmp_path / "data")
    monkeypatch.setattr(hub, "repo_info", lambda *what, **more: 1 / 0)
    with pytest.raises(BytegolfError, match=r"the hub does not answer .*, 6 times in a row"):
        from_hub(tmp_path / "data")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(BytegolfError, match=r"pip install 'bytegolf\[hub\]'.*--mirror"):
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
        safe_path(path, "the mirror")


def test_a_mirror_cannot_write_outside_the_folder(mirror: Path, tmp_path: Path) -> None:
    manifest = json.loads((mirror / MANIFEST).read_text())
    manifest["tokenizers"][0]["vocab_path"] = "tokenizers/../../../escaped"
    (mirror / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(BytegolfError, match=r"the tokenizer .* names the path"):
        run(mirror, tmp_path / "data")
    manifest["datasets"][0]["path"] = "/tmp"
    (mirror / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(BytegolfError, match=r"the data set .* names the path '/tmp'"):
        run(mirror, tmp_path / "data")


@pytest.mark.parametrize("data", [b"", b"<html>", b"[]", b'{"datasets": 3, "tokenizers": []}', b"[" * 100_000, b"\xff"])
def test_manifests_that_are_none(data: bytes) -> None:
    with pytest.raises(BytegolfError, match=r"the manifest\.json of there .*: choose another mirror"):
        parse_manifest(data, "there")


@pytest.mark.parametrize("data", [b"", b"[]", b"{}", b'{"docs_val": true}', b'{"docs_val": 0}', b'{"docs_val": "5"}'])
def test_sidecars_that_are_none(data: bytes) -> None:
    with pytest.raises(BytegolfError, match="choose another mirror"):
        parse_sidecar(data, "the sidecar")


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("name", "fineweb10B_../x", "which is no folder's name"),
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
        find({"datasets": [entry], "tokenizers": [{"name": "t"}]}, variant, "there")


def test_a_manifest_of_other_shards(mirror: Path, tmp_path: Path) -> None:
    manifest = json.loads((mirror / MANIFEST).read_text())
    manifest["datasets"][0]["stats"]["tokens_val"] += 1
    (mirror / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(BytegolfError, match=r"the val shards of .* hold 1877 tokens, but the manifest .* says 1878"):
        run(mirror, tmp_path / "data")
    assert not (tmp_path / "data" / MANIFEST).exists()


def test_more_shards_than_there_are(published: Path, tmp_path: Path) -> None:
    with pytest.raises(BytegolfError, match=r"has 5 training shards .* give --train-shards 5 or fewer, not 6"):
        run(published, tmp_path / "data", train_shards=6)


def test_a_record_that_is_none(published: Path, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / RECORD).write_text('{"files": []}')
    with pytest.raises(BytegolfError, match="is no record of what was fetched: delete it"):
        run(published, tmp_path / "data")


def test_command_lines_that_are_wrong(tmp_path: Path) -> None:
    out = ("--out", tmp_path / "data")
    assert "leave one out" in refused("fetch", "--mirror", "x", "--repo", "a/b", *out)
    assert "names nothing" in refused("fetch", "--variant", ",", *out)
    assert "--train-shards" in refused("fetch", "--train-shards", "-1", *out)
    assert "--out" in refused("fetch")
    assert "same folder" in refused("fetch", "--mirror", tmp_path, "--out", tmp_path)


def test_hashes_that_disagree() -> None:
    file = File(VAL, "a" * 64)
    with pytest.raises(BytegolfError, match="is published with two hashes"):
        fetch._wanted(file, mirrors.Remote(1, "b" * 64))
