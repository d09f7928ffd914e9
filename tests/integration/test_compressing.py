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


def test_a_file_there_and_back_with_a_model(tiny_run: TinyRun, text: Path, tmp_path: Path) -> None:
    small, back, model = tmp_path / "small", tmp_path / "back", ("--model", tiny_run.folder)
    ran = good("compress", *model, text, "-o", small, "--streams", 8, "--json")
    (file,) = ran.json["files"]
    assert (file["source"], file["target"]) == (str(text), str(small))
    assert file["original_bytes"] == ran.json["original_bytes"] == len(TEXT)
    assert file["compressed_bytes"] == ran.json["compressed_bytes"] == small.stat().st_size
    assert file["bits_per_byte"] == 8 * small.stat().st_size / len(TEXT)
    assert file["streams"] == 8
    assert f"{len(TEXT):,} → {small.stat().st_size:,} bytes" in ran.err
    assert good("decompress", *model, small, "-o", back, "--json").json["original_bytes"] == len(TEXT)
    assert back.read_bytes() == TEXT
    assert "compressed with a model" in refused("decompress", small, "-o", tmp_path / "no")


def test_names_get_a_suffix_and_lose_it(text: Path, tmp_path: Path) -> None:
    """Several files at once, in place and into a folder; sources stay unless --rm says otherwise."""
    other, folder = tmp_path / "-strange name.tar.bgz.txt", tmp_path / "folder"
    other.write_bytes(bytes(1000))
    folder.mkdir()
    ran = good("compress", text, other, "-k", "--json")
    packed = [tmp_path / f"{each.name}.bgz" for each in (text, other)]
    assert [file["target"] for file in ran.json["files"]] == [str(each) for each in packed]
    assert other.exists()
    good("decompress", *packed, "-o", folder)
    assert (folder / text.name).read_bytes() == TEXT
    text.unlink()
    good("compress", "-d", packed[0], "--rm")
    assert text.read_bytes() == TEXT
    assert not packed[0].exists()
    good("compress", text, "--rm", "-k")
    assert text.exists()
    assert "ends in .bgz already" in refused("compress", packed[0])
    good("compress", packed[0], "-f")
    assert "does not end in .bgz" in refused("decompress", text)
    assert "name a folder" in refused("compress", text, other, "-o", tmp_path / "one")
    assert "one stdout" in refused("compress", text, other, "-c")
    assert "leave one out" in refused("compress", text, "-c", "-o", tmp_path / "one")


def test_one_bad_file_of_several_keeps_none_back(text: Path, tmp_path: Path) -> None:
    with pytest.raises(BytegolfError, match="1 of 2 files failed, cannot read"):
        files.compress([tmp_path / "nothing", text], files.Settings(), Reporter(quiet=True))
    assert (tmp_path / "letter.txt.bgz").exists()


@pytest.mark.slow
def test_through_pipes_and_in_processes_of_their_own() -> None:
    def run(*arguments: str, data: bytes) -> bytes:
        command = [sys.executable, "-m", "bytegolf", *arguments]
        return subprocess.run(command, input=data, stdout=subprocess.PIPE, check=True).stdout

    small = run("compress", data=TEXT[:200])
    assert run("compress", "-d", "-c", "-", data=small) == TEXT[:200]
    assert "stdin is damaged" in refused("decompress", stdin=small[:-1])


def test_nothing_half_written_when_stopped(text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C in the middle of a file: neither the target nor a temporary file is there, and the source still is."""

    def stop(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("bytegolf.infer.codec.code_bytes", stop)
    with pytest.raises(KeyboardInterrupt):
        files.compress([text], files.Settings(remove=True), Reporter(quiet=True))
    assert [path.name for path in tmp_path.iterdir()] == [text.name]


def test_a_table_against_the_usual_compressors(tiny_run: TinyRun, text: Path) -> None:
    ran = good("compress", "--model", tiny_run.folder, "--bench", text, tiny_run.data, "--streams", 128, "--json")
    rows = ran.json["rows"]
    names = {row["compressor"] for row in rows}
    assert {"zlib -9", "bzip2 -9", "xz -9e", "zstd --ultra -22", "bytegolf, cpu-demo"} <= names
    assert len(rows) == 2 * len(names)
    assert all(row["bits_per_byte"] == 8 * row["compressed_bytes"] / row["bytes"] for row in rows)
    validation = ByteTokenizer().encode_bytes(split_text(tiny_run.data, "val"))
    assert {row["bytes"] for row in rows} == {len(TEXT), len(validation)}


def test_what_is_refused_leaves_nothing_behind(
    tiny_run: TinyRun, flat_run: TinyRun, subword_run: TinyRun, text: Path, tmp_path: Path
) -> None:
    small, back = tmp_path / "small", tmp_path / "back"
    good("compress", "-m", tiny_run.folder, text, "-o", small, "--streams", 32)
    packed = small.read_bytes()
    assert "was compressed with another model" in refused("decompress", "-m", flat_run.folder, small, "-o", back)
    small.write_bytes(packed[:-20] + bytes([packed[-20] ^ 1]) + packed[-19:])
    assert f"{small} is damaged (a checksum" in refused("decompress", "-m", tiny_run.folder, small, "-o", back)
    small.write_bytes(packed[:-5])
    assert f"{small} is damaged (it ends too early)" in refused("decompress", "-m", tiny_run.folder, small, "-o", back)
    assert "was not compressed by bytegolf" in refused("decompress", text, "-o", back)
    assert "no such file" in refused("decompress", tmp_path / "nothing.bgz")
    assert "normalises text" in refused("compress", "-m", subword_run.folder, text, "-o", back)
    assert "no such file" in refused("compress", tmp_path / "nothing")
    assert "leave one out" in refused("compress", text, "--bench", text)
    assert "--json" in refused("compress", text, "-c", "--json")
    assert "stride 129" in refused("compress", "-m", tiny_run.folder, text, "-o", back, "--stride", 129)
    (tmp_path / "empty").touch()
    assert "is empty" in refused("compress", "--bench", tmp_path / "empty")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "letter.txt", "small"]
    assert "that is a folder" in refused("compress", tmp_path, "-o", back)


# ---------------------------------------------------------------------------------------------- manners of a file tool


def test_rights_and_time_are_the_sources(tmp_path: Path) -> None:
    source, packed, again = tmp_path / "secret.txt", tmp_path / "secret.bgz", tmp_path / "again.txt"
    source.write_bytes(b"of nobody else's business")
    source.chmod(0o600)
    os.utime(source, (1_000_000_000, 1_000_000_001))
    good("compress", source, "-o", packed)
    good("decompress", packed, "-o", again)
    for file in (packed, again):
        assert file.stat().st_mode & 0o777 == 0o600
        assert int(file.stat().st_mtime) == 1_000_000_001
    assert again.read_bytes() == source.read_bytes()


def test_an_option_that_is_none_is_no_file(tmp_path: Path) -> None:
    source = tmp_path / "a.txt"
    source.write_text("a text")
    for verb, option in (("compress", "-9"), ("decompress", "--nothing")):
        assert f"{option} is no option" in refused(verb, source, option)
    assert list(tmp_path.iterdir()) == [source], "the other file was not compressed meanwhile"


def test_nothing_is_replaced_unasked(tmp_path: Path) -> None:
    source, other, packed = tmp_path / "a.txt", tmp_path / "b.txt", tmp_path / "a.bgz"
    source.write_text("a text")
    other.write_text("another text")
    good("compress", source, "-o", packed)
    for verb, read, written in (("compress", source, other), ("decompress", packed, other)):
        assert "--force" in refused(verb, read, "-o", written)
        assert other.read_text() == "another text"
    good("compress", source, "-o", other, "--force")
    good("decompress", other, "-o", source, "-f")
    assert source.read_text() == "a text"


@pytest.mark.parametrize("link", ["none", "symbolic", "hard"])
def test_a_file_is_never_its_own_target(link: str, tmp_path: Path) -> None:
    source, target = tmp_path / "only.txt", tmp_path / "link.txt"
    source.write_text("the only copy")
    if link == "symbolic":
        target.symlink_to(source)
    elif link == "hard":
        target.hardlink_to(source)
    else:
        target = tmp_path / "." / "only.txt"
    for verb in ("compress", "decompress"):
        assert "is the file that is read" in refused(verb, source, "-o", target, "--force")
    assert source.read_text() == "the only copy"


def test_no_binary_on_a_terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "a.txt"
    source.write_text("a text")

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(sys, "stdout", Terminal())
    with pytest.raises(BytegolfError, match="terminal"):
        files.compress([source], files.Settings(output=files.PIPE), Reporter(quiet=True))
