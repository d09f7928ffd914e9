"""`compress` and `decompress` as people meet them: files, pipes, comparisons, refusals that leave nothing behind."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from commands import TinyRun, good, refused, sentences
from conftest import shapes_unchecked

from bytegolf.data.tokenizer import ByteTokenizer
from bytegolf.errors import BytegolfError
from bytegolf.infer import files
from bytegolf.infer.files import split_text
from bytegolf.progress import Reporter

TEXT = " ".join(sentences(6)).encode()


@pytest.fixture(autouse=True)
def quick() -> Iterator[None]:
    with shapes_unchecked():
        yield


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "letter.txt"
    path.write_bytes(TEXT)
    return path


def test_a_file_there_and_back(tiny_run: TinyRun, text: Path, tmp_path: Path) -> None:
    small, back = tmp_path / "small", tmp_path / "back"
    ran = good("compress", tiny_run.folder, text, small, "--streams", 8, "--json")
    assert ran.json["original_bytes"] == len(TEXT)
    assert ran.json["compressed_bytes"] == small.stat().st_size
    assert ran.json["bits_per_byte"] == 8 * small.stat().st_size / len(TEXT)
    assert ran.json["streams"] == 8
    assert ran.json["coded_bits"] < 8 * len(TEXT)
    assert f"{len(TEXT):,} → {small.stat().st_size:,} bytes" in ran.out
    assert good("decompress", tiny_run.folder, small, back, "--json").json["original_bytes"] == len(TEXT)
    assert back.read_bytes() == TEXT


@pytest.mark.slow
def test_through_pipes_and_in_processes_of_their_own(tiny_run: TinyRun, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "bytegolf"]
    small = subprocess.run(
        [*command, "compress", tiny_run.folder, "-", "-"], input=TEXT[:200], capture_output=True, check=True
    )
    back = subprocess.run(
        [*command, "decompress", tiny_run.folder, "-", "-"], input=small.stdout, capture_output=True, check=True
    )
    assert back.stdout == TEXT[:200]
    cut = subprocess.run(
        [*command, "decompress", tiny_run.folder, "-", "-"], input=small.stdout[:-1], capture_output=True, check=False
    )
    assert (cut.returncode, cut.stdout) == (2, b"")
    assert b"stdin is damaged" in cut.stderr


def test_a_table_against_the_usual_compressors(tiny_run: TinyRun, text: Path) -> None:
    ran = good("compress", tiny_run.folder, "--bench", text, tiny_run.data, "--streams", 128, "--json")
    rows = ran.json["rows"]
    names = {row["compressor"] for row in rows}
    assert {"zlib -9", "bzip2 -9", "xz -9e", "zstd --ultra -22", "cpu-demo"} <= names
    assert len(rows) == 2 * len(names)
    assert all(row["bits_per_byte"] == 8 * row["compressed_bytes"] / row["bytes"] for row in rows)
    validation = ByteTokenizer().encode_bytes(split_text(tiny_run.data, "val"))
    assert {row["bytes"] for row in rows} == {len(TEXT), len(validation)}
    assert all(name in ran.out for name in names)


def test_what_is_refused_leaves_nothing_behind(
    tiny_run: TinyRun, flat_run: TinyRun, subword_run: TinyRun, text: Path, tmp_path: Path
) -> None:
    small, back = tmp_path / "small", tmp_path / "back"
    good("compress", tiny_run.folder, text, small, "--streams", 32)
    packed = small.read_bytes()
    assert "was compressed with another model" in refused("decompress", flat_run.folder, small, back)
    small.write_bytes(packed[:-20] + bytes([packed[-20] ^ 1]) + packed[-19:])
    assert f"{small} is damaged (a checksum" in refused("decompress", tiny_run.folder, small, back)
    small.write_bytes(packed[:-5])
    assert f"{small} is damaged (it ends too early)" in refused("decompress", tiny_run.folder, small, back)
    assert "was not compressed by bytegolf" in refused("decompress", tiny_run.folder, text, back)
    assert "no such file" in refused("decompress", tiny_run.folder, tmp_path / "nothing", back)
    assert "normalises text" in refused("compress", subword_run.folder, text, back)
    assert "no such file" in refused("compress", tiny_run.folder, tmp_path / "nothing", back)
    assert "name a file to compress" in refused("compress", tiny_run.folder, text)
    assert "leave one out" in refused("compress", tiny_run.folder, text, back, "--bench", text)
    assert "--json" in refused("compress", tiny_run.folder, text, "-", "--json")
    assert "stride 129" in refused("compress", tiny_run.folder, text, back, "--stride", 129)
    (tmp_path / "empty").touch()
    assert "is empty" in refused("compress", tiny_run.folder, "--bench", tmp_path / "empty")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "letter.txt", "small"]
    assert "that is a folder" in refused("compress", tiny_run.folder, tmp_path, back)
    assert "it is a folder" in refused("compress", tiny_run.folder, text, tmp_path)


# ---------------------------------------------------------------------------------------------- manners of a file tool


def test_rights_and_time_are_the_sources(tiny_run: TinyRun, tmp_path: Path) -> None:
    source, packed, again = tmp_path / "secret.txt", tmp_path / "secret.bgz", tmp_path / "again.txt"
    source.write_bytes(b"of nobody else's business")
    source.chmod(0o600)
    os.utime(source, (1_000_000_000, 1_000_000_001))
    good("compress", tiny_run.folder, source, packed)
    good("decompress", tiny_run.folder, packed, again)
    for file in (packed, again):
        assert file.stat().st_mode & 0o777 == 0o600
        assert int(file.stat().st_mtime) == 1_000_000_001
    assert again.read_bytes() == source.read_bytes()


def test_nothing_is_replaced_unasked(tiny_run: TinyRun, tmp_path: Path) -> None:
    source, other, packed = tmp_path / "a.txt", tmp_path / "b.txt", tmp_path / "a.bgz"
    source.write_text("a text")
    other.write_text("another text")
    good("compress", tiny_run.folder, source, packed)
    for verb, read, written in (("compress", source, other), ("decompress", packed, other)):
        assert "--force" in refused(verb, tiny_run.folder, read, written)
        assert other.read_text() == "another text"
    good("compress", tiny_run.folder, source, other, "--force")
    good("decompress", tiny_run.folder, other, source, "-f")
    assert source.read_text() == "a text"


@pytest.mark.parametrize("link", ["none", "symbolic", "hard"])
def test_a_file_is_never_its_own_target(link: str, tiny_run: TinyRun, tmp_path: Path) -> None:
    source, target = tmp_path / "only.txt", tmp_path / "link.txt"
    source.write_text("the only copy")
    if link == "symbolic":
        target.symlink_to(source)
    elif link == "hard":
        target.hardlink_to(source)
    else:
        target = tmp_path / "." / "only.txt"
    for verb in ("compress", "decompress"):
        assert "is the file that is read" in refused(verb, tiny_run.folder, source, target, "--force")
    assert source.read_text() == "the only copy"


def test_no_binary_on_a_terminal(tiny_run: TinyRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "a.txt"
    source.write_text("a text")

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(sys, "stdout", Terminal())
    with pytest.raises(BytegolfError, match="terminal"):
        files.compress(tiny_run.folder, source, files.PIPE, 0, 0, Reporter(quiet=True))
