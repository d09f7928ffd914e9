"""Token shards against a reader and a writer that know only the format's description."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np
import pytest
from independent_shards import independent_read, independent_write

from bytegolf.data import dataset
from bytegolf.data.dataset import TokenStream, read_shard, shard_paths
from bytegolf.data.dataset_writer import ShardWriter
from bytegolf.errors import BytegolfError


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_an_independent_reader_reads_our_shards(tmp_path: Path) -> None:
    tokens = np.arange(2500, dtype=np.uint16) * 26
    with ShardWriter(tmp_path, "val", shard_tokens=1000) as writer:
        for start in range(0, 2500, 300):
            writer.write(tokens[start : start + 300])
    names = ["fineweb_val_000000.bin", "fineweb_val_000001.bin", "fineweb_val_000002.bin"]
    assert names_in(tmp_path) == names
    assert writer.tokens == 2500
    read = [independent_read(tmp_path / name) for name in names]
    assert [len(shard) for shard in read] == [1000, 1000, 500]
    assert [token for shard in read for token in shard] == tokens.tolist()


def test_shards_of_an_independent_writer_load(tmp_path: Path) -> None:
    first = independent_write(tmp_path / "fineweb_train_000000.bin", [1, 5, 259, 65535])
    second = independent_write(tmp_path / "fineweb_train_000001.bin", [7, 8])
    assert read_shard(first).tolist() == [1, 5, 259, 65535]
    stream = TokenStream(shard_paths(tmp_path, "train"), vocab_size=65536)
    assert stream.paths == [first, second]
    assert len(stream) == 6
    for start in range(7):
        for stop in range(start, 7):
            assert stream.slice(start, stop).tolist() == [1, 5, 259, 65535, 7, 8][start:stop]
    with pytest.raises(IndexError):
        stream.slice(0, 7)


def test_a_shorter_export_removes_the_longer_one_s_shards(tmp_path: Path) -> None:
    with ShardWriter(tmp_path, "train", shard_tokens=10) as writer:
        writer.write(np.ones(35, dtype=np.uint16))
    with ShardWriter(tmp_path, "val", shard_tokens=10) as writer:
        writer.write(np.ones(5, dtype=np.uint16))
    with ShardWriter(tmp_path, "train", shard_tokens=10) as writer:
        writer.write(np.zeros(15, dtype=np.uint16))
    assert [path.name for path in shard_paths(tmp_path, "train")] == [
        "fineweb_train_000000.bin",
        "fineweb_train_000001.bin",
    ]
    assert len(shard_paths(tmp_path, "val")) == 1


def test_an_interrupted_export_leaves_no_half_shard(tmp_path: Path) -> None:
    def export() -> None:
        with ShardWriter(tmp_path, "train", shard_tokens=10) as writer:
            writer.write(np.ones(15, dtype=np.uint16))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export()
    assert names_in(tmp_path) == ["fineweb_train_000000.bin"]


def test_a_full_disk_leaves_no_half_shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with (
        pytest.raises(BytegolfError, match=r"fineweb_train_000000\.bin: the disk is full"),
        ShardWriter(tmp_path, "train") as writer,
    ):
        writer.write(np.ones(15, dtype=np.uint16))
    assert names_in(tmp_path) == []


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (
            lambda path: os.truncate(path, path.stat().st_size - 1),
            r"announces 4 tokens .*, but has 1031",
        ),
        (lambda path: os.truncate(path, 1000), r"has 1000 bytes, fewer than a shard's header"),
        (lambda path: independent_write(path, [1, 2], magic=7), r"begins with 7, not 20240520"),
        (lambda path: independent_write(path, [1, 2], version=2), r"version 2, but only version 1"),
        (lambda path: path.unlink(), r"no such file"),
    ],
)
def test_a_damaged_shard_is_named(tmp_path: Path, damage, words: str) -> None:  # type: ignore[no-untyped-def]
    path = independent_write(tmp_path / "fineweb_val_000000.bin", [1, 5, 6, 7])
    damage(path)
    with pytest.raises(BytegolfError, match=words) as caught:
        read_shard(path)
    assert "fineweb_val_000000.bin" in str(caught.value)


def test_ids_outside_the_vocabulary_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good = independent_write(tmp_path / "fineweb_val_000000.bin", [1, 5, 259])
    bad = independent_write(tmp_path / "fineweb_val_000001.bin", [1, 300, 6])
    words = r"fineweb_val_000001\.bin holds the token 300, but the vocabulary has 260"
    with pytest.raises(BytegolfError, match=words):
        read_shard(bad, vocab_size=260)
    with pytest.raises(BytegolfError, match=words):
        TokenStream([good, bad], vocab_size=260)
    monkeypatch.setattr(dataset, "EAGER_CHECK_TOKENS", 0)  # as for a stream too long to scan
    stream = TokenStream([good, bad], vocab_size=260)
    assert stream.slice(0, 4).tolist() == [1, 5, 259, 1]
    with pytest.raises(BytegolfError, match=words):
        stream.slice(0, 5)


def test_only_a_few_shards_are_open_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process may have 1,024 files, and a trillion tokens are 10,000 shards."""
    monkeypatch.setattr(dataset, "OPEN_SHARDS", 3)
    paths = [independent_write(tmp_path / f"fineweb_train_{n:06d}.bin", [n, n + 100]) for n in range(40)]
    stream = TokenStream(paths, 260)
    descriptors = Path("/proc/self/fd")
    if descriptors.is_dir():
        # of these only: other tests' streams may not have been collected yet
        assert not [link for link in descriptors.iterdir() if link.exists() and link.resolve().parent == tmp_path]
    for index in [*range(40), 7, 7, 0, 39]:
        assert stream.slice(2 * index, 2 * index + 2).tolist() == [index, index + 100]
        assert len(stream._mapped) <= 3
    assert list(stream._mapped) == [7, 0, 39], "the last ones used"
    assert stream.slice(0, 80).tolist() == [value for n in range(40) for value in (n, n + 100)]
    independent_write(paths[20], [1, 2, 3])
    with pytest.raises(BytegolfError, match=r"000020\.bin was replaced while it was in use"):
        stream.slice(40, 41)


def test_an_empty_shard_is_an_empty_stream(tmp_path: Path) -> None:
    empty = independent_write(tmp_path / "fineweb_val_000000.bin", [])
    more = independent_write(tmp_path / "fineweb_val_000001.bin", [4, 5])
    assert TokenStream([empty, more], 260).slice(0, 2).tolist() == [4, 5]
