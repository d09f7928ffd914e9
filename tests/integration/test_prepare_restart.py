"""A `prepare` that is killed goes on where it stopped, and leaves the files of one that was not; so do its workers."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from corpora import TEXTS, files_of, lines, made_up
from independent_shards import independent_write
from numpy.typing import NDArray
from processes import gone, until

from bytegolf.data import blocks, tables
from bytegolf.data import prepare as module
from bytegolf.data.blocks import Texts
from bytegolf.data.dataset import MANIFEST, UNFINISHED, data_summary, read_manifest
from bytegolf.data.document import Document
from bytegolf.data.encoding import Encoder, encode_all
from bytegolf.data.prepare import CHECKPOINT, prepare
from bytegolf.data.split import Split
from bytegolf.data.tokenizer import ByteTokenizer
from bytegolf.errors import BytegolfError
from bytegolf.files import sha256

KILLED = """
import multiprocessing, os, signal, sys
from bytegolf.data import blocks, prepare
from bytegolf.data.dataset_writer import DatasetWriter

def main():
    source, out, specs, where, workers = sys.argv[1:]
    blocks.BLOCK_BYTES = 2000
    prepare.CHECKPOINT_SECONDS = 0.0

    def kill(*ignored, **also):
        print(*[process.pid for process in multiprocessing.active_children()], flush=True)
        os.kill(os.getpid(), signal.SIGKILL)

    left, write = int(where) if where.isdigit() else -1, DatasetWriter.add

    def add(self, *arguments):
        nonlocal left
        left -= 1
        if left == 0:
            write(self, *arguments)  # what is written behind the last checkpoint must not be there twice
            kill()
        write(self, *arguments)

    DatasetWriter.add = add
    if where == "close":
        DatasetWriter.done = kill
        prepare._write_manifest = kill
    prepare.prepare([source], prepare.Path(out), specs, "hash:0.3", shard_tokens=1000, workers=int(workers), quiet=True)

if __name__ == "__main__":
    main()
"""


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> str:
    return lines(tmp_path_factory.mktemp("source") / "docs.jsonl", TEXTS)


@pytest.fixture(scope="module")
def specs(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("specs") / "specs.json"
    sentencepiece = {"name": "sp_bpe_300", "dataset_suffix": "sp300", "vocab_size": 300}
    path.write_text(json.dumps({"tokenizers": [sentencepiece, {"kind": "byte"}]}))
    return str(path)


@pytest.fixture(scope="module")
def expected(source: str, specs: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What an export leaves that nothing has disturbed."""
    out = tmp_path_factory.mktemp("data") / "whole"
    prepare([source], out, specs, "hash:0.3", shard_tokens=1000, quiet=True)
    return files_of(out)


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 2000)


def killed(source: str, out: Path, specs: str, where: str, workers: int = 1) -> list[int]:
    """Have a process killed in the middle of an export; the processes that it had started."""
    command = [sys.executable, "-c", KILLED] if workers == 1 else [sys.executable, str(out.parent / "killed.py")]
    (out.parent / "killed.py").write_text(KILLED)  # workers import their parent's script
    done = subprocess.run([*command, source, str(out), specs, where, str(workers)], stdout=subprocess.PIPE, text=True)
    assert done.returncode == -signal.SIGKILL
    return [int(process) for process in done.stdout.split()]


def counted(monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """How many documents have been read since."""
    read, whole = 0, tables.record

    def record(*arguments: Any) -> Document:
        nonlocal read
        read += 1
        return whole(*arguments)

    monkeypatch.setattr(tables, "record", record)
    return lambda: read


# an export adds to two data sets a block: 2 is before the first checkpoint, but the tokenizer is trained
@pytest.mark.parametrize(("where", "most"), [("2", 80), ("13", 40), ("close", 20)])
@pytest.mark.usefixtures("small_blocks")
def test_what_a_killed_export_has_finished_is_not_done_again(
    source: str,
    specs: str,
    expected: dict[str, bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    where: str,
    most: int,
) -> None:
    out = tmp_path / "out"
    killed(source, out, specs, where)
    assert (out / UNFINISHED).exists()
    assert not (out / MANIFEST).exists()
    read = counted(monkeypatch)
    prepare([source], out, specs, "hash:0.3", shard_tokens=1000, quiet=True)
    assert files_of(out) == expected
    assert read() <= most


@pytest.mark.usefixtures("small_blocks")
def test_workers_end_with_the_process_that_they_work_for(
    source: str, specs: str, expected: dict[str, bytes], tmp_path: Path
) -> None:
    workers = killed(source, tmp_path / "out", specs, "5", workers=2)
    assert workers
    until(lambda: all(map(gone, workers)))
    prepare([source], tmp_path / "out", specs, "hash:0.3", shard_tokens=1000, quiet=True)
    assert files_of(tmp_path / "out") == expected


class Deadly(ByteTokenizer):
    def encode_documents(self, documents: Sequence[bytes]) -> tuple[NDArray[np.uint16], NDArray[np.int64]]:
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError


def test_a_worker_that_is_killed_is_said() -> None:
    found = encode_all(Encoder(Split.parse("first:1"), [Deadly()]), [Texts([Document(b"text", "")], 4)] * 9, 2)
    with pytest.raises(BytegolfError, match="a worker of prepare was ended from outside"):
        next(found)


def test_a_document_that_shared_memory_has_no_room_for(tmp_path: Path) -> None:
    texts = ["a few words " * 600_000, "short", *made_up(3)]
    source = lines(tmp_path / "d.jsonl", texts)
    for workers in (1, 2):
        prepare([source], tmp_path / str(workers), val="first:1", workers=workers, quiet=True)
    assert files_of(tmp_path / "1") == files_of(tmp_path / "2")
    assert data_summary(tmp_path / "2")["byte260"]["bytes_val"] == len(texts[0])


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("change", ["text", "split", "tokenizer", "shards", "temporary", "finished", "checkpoint"])
def test_a_checkpoint_of_something_else_is_not_used(
    source: str, specs: str, expected: dict[str, bytes], tmp_path: Path, change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other text, another command, or files that are gone: everything is done again, as if nothing had been there."""
    out, copy = tmp_path / "out", lines(tmp_path / "docs.jsonl", TEXTS)
    with monkeypatch.context() as broken:
        broken.setattr(module, "CHECKPOINT_SECONDS", 0.0)
        broken.setattr(module, "_write_manifest", lambda *ignored: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            prepare([copy], out, "byte260", "first:9", shard_tokens=1000, quiet=True)
    folder = out / "datasets" / "fineweb10B_byte260"
    assert json.loads((out / CHECKPOINT).read_text())["blocks"] > 3
    how: dict[str, Any] = {"tokenizers": "byte260", "val": "first:9", "shard_tokens": 1000}
    if change == "text":
        lines(tmp_path / "docs.jsonl", [text.upper() for text in TEXTS])
    elif change == "split":
        how["val"] = "first:8"
    elif change == "tokenizer":
        how["tokenizers"] = specs
    elif change == "shards":
        how["shard_tokens"] = 900
    elif change == "temporary":
        (folder / ".fineweb_val_documents.npy.tmp").unlink()
    elif change == "finished":
        (folder / "fineweb_train_000001.bin").unlink()
    else:
        (out / CHECKPOINT).write_text('{"job": ')
    prepare([copy], out, **how, quiet=True)
    prepare([copy], tmp_path / "again", **how, quiet=True)
    assert files_of(out) == files_of(tmp_path / "again")


@pytest.mark.usefixtures("small_blocks")
def test_what_was_left_out_before_a_kill_is_counted_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = tmp_path / "docs.jsonl"
    copy.write_text("".join(json.dumps({"text": each}) + "\n" for text in TEXTS for each in (text, None, " ")))
    with monkeypatch.context() as broken:
        broken.setattr(module, "CHECKPOINT_SECONDS", 0.0)
        broken.setattr(module, "_check", lambda *ignored: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            prepare([copy], tmp_path / "out", val="first:9", quiet=True)
    assert json.loads((tmp_path / "out" / CHECKPOINT).read_text())["left_out"][0]["count"] > 10
    manifest = prepare([copy], tmp_path / "out", val="first:9", quiet=True)
    assert manifest == prepare([copy], tmp_path / "again", val="first:9", quiet=True)
    assert [(one["why"], one["count"]) for one in manifest["left_out"]] == [("null text", 80), ("blank", 80)]


# ---------------------------------------------------------------------------------------------- published documents


def published(folder: Path, **about: Any) -> str:
    path = folder / "docs_selected.jsonl"
    lines(path, TEXTS)
    (folder / "docs_selected.source_manifest.json").write_text(json.dumps(about))
    return str(path)


def test_the_sidecar_of_published_documents_says_the_split(tmp_path: Path) -> None:
    right = sha256(Path(lines(tmp_path / "docs.jsonl", TEXTS)))
    source = published(tmp_path, docs_val=7, num_docs=80, docs_sha256=right, shuffle_seed=1337)
    manifest = prepare([source], tmp_path / "d", quiet=True)
    assert manifest["split"] == "first:7"
    assert manifest["corpus"]["docs_sha256"] == right
    assert manifest["corpus"]["shuffle_seed"] == 1337
    assert data_summary(tmp_path / "d")["byte260"]["docs_val"] == 7


@pytest.mark.parametrize(
    ("about", "words"),
    [
        ({"docs_sha256": "0" * 64}, r"docs_selected\.jsonl has the SHA-256 \w+…, but its sidecar says 0000"),
        ({"num_docs": 81}, "holds 80 documents with text, but its sidecar says 81"),
        ({"docs_val": 80}, "leaves none for training"),
        ({"docs_val": "many"}, "source_manifest.json: docs_val is 'many'"),
    ],
)
def test_documents_that_are_not_those_of_the_sidecar_are_refused(
    tmp_path: Path, about: dict[str, Any], words: str
) -> None:
    with pytest.raises(BytegolfError, match=words):
        prepare([published(tmp_path, **about)], tmp_path / "d", quiet=True)
    assert not (tmp_path / "d" / MANIFEST).exists()


@pytest.mark.parametrize("docs_val", [9, 10])
def test_an_export_joins_a_published_data_folder(tmp_path: Path, docs_val: int) -> None:
    """Its shards and its manifest's words stay, if they are of as many documents."""
    entry = {"name": "fineweb10B_sp1024", "tokenizer_name": "sp_bpe_1024", "stats": {"docs_val": docs_val}}
    tokenizer = {"name": "sp_bpe_1024", "model_path": "tokenizers/fineweb_1024_bpe.model"}
    folder = tmp_path / "datasets" / "fineweb10B_sp1024"
    folder.mkdir(parents=True)
    independent_write(folder / "fineweb_val_000000.bin", [1, 5])
    (tmp_path / MANIFEST).write_text(json.dumps({"seed": 1, "datasets": [entry], "tokenizers": [tokenizer]}))
    before = files_of(tmp_path)
    source = lines(tmp_path / "docs.jsonl", TEXTS)
    if docs_val == 10:
        with pytest.raises(BytegolfError, match="the documents are not those that"):
            prepare([source], tmp_path, val="first:9", quiet=True)
        assert read_manifest(tmp_path)["datasets"] == [entry]
        return
    manifest = prepare([source], tmp_path, val="first:9", quiet=True)
    assert manifest["seed"] == 1
    assert (manifest["datasets"][0], manifest["tokenizers"][0]) == (entry, tokenizer)
    assert set(data_summary(tmp_path)) == {"sp1024", "byte260"}
    assert files_of(tmp_path)["datasets/fineweb10B_sp1024/fineweb_val_000000.bin"] == next(
        data for name, data in before.items() if name.endswith(".bin")
    )


def test_without_ray_it_is_said_how_to_get_it(source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(BytegolfError, match=r"--ray needs the package ray: `pip install .*\[ray\]'`, or leave"):
        prepare([source], tmp_path / "d", ray=True, quiet=True)
