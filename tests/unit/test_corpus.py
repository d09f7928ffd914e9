"""Documents from every kind of source, the pieces of long texts, and what is said when something is wrong."""

from __future__ import annotations

import gzip
import io
import json
import lzma
import os
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st
from processes import in_own_process

from bytegolf.data import blocks, compression, corpus
from bytegolf.data.corpus import total_bytes
from bytegolf.data.document import Advance, Document, Reading
from bytegolf.errors import BytegolfError
from bytegolf.folders import Tally

TEXTS = ["One.\n", "zwei — drei", "四 五\n\nseis", '\t\\ "seven" 🙂']


def expand(sources: list[str], tally: Tally | None = None) -> list[str]:
    return corpus.expand(sources, tally or Tally())


def documents(files: list[str], reading: Reading, advance: Advance = lambda count: None) -> Iterator[Document]:
    return blocks.documents(blocks.of_files(files, reading), advance)


def read(source: str | Path, reading: Reading | None = None) -> list[Document]:
    return list(documents(expand([str(source)]), reading or Reading()))


def texts_of(found: list[Document]) -> list[str]:
    return [document.text for document in found]


def json_lines(texts: list[str], **more: object) -> bytes:
    return b"".join(json.dumps({"text": text, **more}).encode() + b"\n" for text in texts)


def refused(path: Path, reading: Reading | None = None) -> str:
    with pytest.raises(BytegolfError) as caught:
        read(path, reading)
    said = str(caught.value)
    assert str(path) in said
    assert "\n" not in said
    return said


# ---------------------------------------------------------------------------------------------- each kind of source


@pytest.mark.parametrize("name", ["a.txt", "a.md", "a.unknown", "noending"])
def test_a_text_file_is_a_document(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes("first\r\n\r\nsecond, naïve\n".encode())
    assert read(path) == [Document("first\r\n\r\nsecond, naïve\n".encode(), name)]


def compressed(name: str, data: bytes) -> bytes:
    half = data.index(b"\n") + 5  # inside a line
    if name.endswith(".gz"):
        return gzip.compress(data[:half]) + gzip.compress(data[half:])
    if name.endswith(".zst"):
        frame = zstandard.ZstdCompressor().compress
        skipped = b"\x50\x2a\x4d\x18\x03\x00\x00\x00abc"  # a skippable frame, as seekable zstd files have
        return frame(data[:half]) + skipped + frame(b"") + frame(data[half:])
    return data


@pytest.mark.parametrize("name", ["d.jsonl", "d.ndjson", "d.jsonl.gz", "d.jsonl.zst", "D.JSONL.ZST"])
def test_json_lines_plain_and_compressed_in_several_parts(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    data = json_lines(TEXTS[:2]) + b"\n  \n" + json_lines(TEXTS[2:]).rstrip(b"\n")  # blank lines; no end of line
    path.write_bytes(compressed(name.lower(), data))
    found = read(path)
    assert texts_of(found) == TEXTS
    assert {document.group for document in found} == {name}


def test_a_long_window_of_zstd(tmp_path: Path) -> None:
    """What `zstd --long=31` writes, as large dumps are."""
    path = tmp_path / "d.jsonl.zst"
    wide = zstandard.ZstdCompressionParameters.from_level(1, window_log=30)
    data = json_lines(TEXTS)
    stream = zstandard.ZstdCompressor(compression_params=wide).compressobj()  # of unknown size: the window stays wide
    path.write_bytes(stream.compress(data) + stream.flush())
    assert texts_of(read(path)) == TEXTS


def test_parquet_in_several_row_groups(tmp_path: Path) -> None:
    path = tmp_path / "d.parquet"
    texts = [f"row {number} —" for number in range(700)]
    pq.write_table(pa.table({"id": range(700), "text": texts}), path, row_group_size=100)
    found = read(path)
    assert texts_of(found) == texts


class Stdin:
    def __init__(self, data: bytes) -> None:
        self.buffer = io.BytesIO(data)


def test_stdin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", Stdin("one\ntwo é".encode()))
    assert read("-") == [Document("one\ntwo é".encode(), "stdin")]
    monkeypatch.setattr("sys.stdin", Stdin(json_lines(TEXTS)))
    found = read("-.jsonl")
    assert texts_of(found) == TEXTS
    assert total_bytes(["-"]) is None


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes")
@pytest.mark.parametrize(("name", "data"), [("p.txt", b"text"), ("p.jsonl", b'{"text": "text"}\n')])
def test_a_pipe_comes_once_and_without_size(tmp_path: Path, name: str, data: bytes) -> None:
    """As a shell's <(zcat …) does."""
    path = tmp_path / name
    os.mkfifo(path)
    assert total_bytes([str(path)]) is None
    writer = threading.Thread(target=lambda: path.write_bytes(data), daemon=True)
    writer.start()
    assert texts_of(read(path)) == ["text"]
    writer.join()


def test_folders_are_read_recursively_sorted_and_without_strangers(tmp_path: Path) -> None:
    for name in ("b.txt", "a/z.md", "a/B.TXT", "c.jsonl"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(json_lines([name]) if name.endswith(".jsonl") else name.encode())
    for name in ("image.png", "no-ending", ".hidden.txt", ".git/config.txt"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"\xff\xfe")
    (tmp_path / "folder.txt").mkdir()
    assert texts_of(read(tmp_path)) == ["a/B.TXT", "a/z.md", "b.txt", "c.jsonl"]
    assert total_bytes(expand([str(tmp_path)])) == len("a/B.TXTa/z.mdb.txt") + len(json_lines(["c.jsonl"]))


def test_a_hidden_folder_is_read_when_it_is_named(tmp_path: Path) -> None:
    folder = tmp_path / ".cache"
    folder.mkdir()
    (folder / "a.txt").write_text("text")
    assert texts_of(read(folder)) == ["text"]


def test_several_sources_keep_their_order(tmp_path: Path) -> None:
    paths = [tmp_path / "b.txt", tmp_path / "a.txt"]
    for path in paths:
        path.write_text(path.name)
    files = expand([str(path) for path in paths])
    assert [document.text for document in documents(files, Reading())] == ["b.txt", "a.txt"]


def test_blank_documents_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    path.write_bytes(json_lines(["", "a", " \n\t", "\u3000", "b"]))
    assert texts_of(read(path)) == ["a", "b"]
    (tmp_path / "empty.txt").write_bytes(b"")
    assert read(tmp_path / "empty.txt") == []


def test_fields_and_groups(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    path.write_text('{"body": "a", "by": "X"}\n{"by": 7, "body": "b", "text": 1}\n')
    found = read(path, Reading("body", "by"))
    assert [(document.text, document.group) for document in found] == [("a", "X"), ("b", "7")]
    table = tmp_path / "d.parquet"
    pq.write_table(pa.table({"body": ["a", "b"], "by": ["X", "Y"]}), table)
    assert [document.group for document in read(table, Reading("body", "by"))] == ["X", "Y"]


@pytest.mark.parametrize("name", ["d.txt", "d.jsonl", "d.jsonl.gz", "d.jsonl.zst", "d.parquet"])
def test_progress_adds_up_to_the_files_size(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    texts = [f"{number} " * 200 for number in range(600)]
    if name == "d.parquet":
        pq.write_table(pa.table({"text": texts}), path)
    else:
        path.write_bytes(compressed(name, json_lines(texts)))
    steps: list[int] = []
    assert list(documents([str(path)], Reading(), steps.append))
    assert min(steps) >= 0
    assert sum(steps) == path.stat().st_size == total_bytes([str(path)])


# ---------------------------------------------------------------------------------------------- pieces


def pieces(text: str, cut: int) -> list[str]:
    return [document.text for document in corpus._texts(io.BytesIO(text.encode()), "f", cut, lambda count: None)]


@given(st.text(st.sampled_from("ab é—🙂\n"), max_size=200), st.integers(4, 60))
def test_pieces_are_the_text_cut_between_characters(text: str, cut: int) -> None:
    """Were a character split, its piece would be no UTF-8 and refused."""
    found = pieces(text, cut)
    assert "".join(found) == text
    sizes = [len(piece.encode()) for piece in found]
    assert all(size <= cut for size in sizes)
    assert all(2 * size >= cut or size > cut - 4 for size in sizes[:-1]), "only the last may be short"
    assert len(found) <= 1 or cut < len(text.encode())


def test_pieces_end_where_paragraphs_lines_or_words_do() -> None:
    assert pieces("a b\nc d e\n\ne f\ng h i j", 16) == ["a b\nc d e\n\n", "e f\ng h i j"]
    assert pieces("a b\nc d\ne f g h i j", 12) == ["a b\nc d\n", "e f g h i j"]
    assert pieces("aaa bbb ccc ddd", 10) == ["aaa bbb ", "ccc ddd"]
    assert pieces("abcdefgh", 4) == ["abcd", "efgh"]
    assert pieces("🙂🙂🙂", 7) == ["🙂", "🙂", "🙂"]


def test_pieces_do_not_depend_on_how_the_file_is_read(tmp_path: Path) -> None:
    """Cut at once in memory, and by the blocks of a file of several megabytes."""
    text = "".join(f"line {number} —\n" + "\n" * (number % 7 == 0) for number in range(150_000))
    path = tmp_path / "a.txt"
    path.write_text(text, encoding="utf-8")
    found = read(path, Reading(cut=5000))
    data, expected, begin = text.encode(), [], 0
    while len(data) - begin > 5000:
        end = corpus._cut_at(data, begin, 5000)
        expected.append(data[begin:end].decode())
        begin = end
    assert texts_of(found) == [*expected, data[begin:].decode()]
    assert {document.group for document in found} == {"a.txt"}


def test_a_text_above_the_limit_is_cut_unasked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.txt"
    path.write_text("some words " * 30)
    assert len(read(path)) == 1
    monkeypatch.setattr(corpus, "PIECE_BYTES", 100)
    for reading in (Reading(), Reading(cut=1000)):
        found = texts_of(read(path, reading))
        assert "".join(found) == "some words " * 30
        assert len(found) == 4
    assert len(read(path, Reading(cut=50))) == 7


@pytest.mark.parametrize("cut", [-1, 1, 3])
def test_an_impossible_cut(cut: int) -> None:
    with pytest.raises(BytegolfError, match=f"cut to {cut} bytes: give 4 or more"):
        Reading(cut=cut)


# ---------------------------------------------------------------------------------------------- what is wrong


@pytest.mark.parametrize("at", [0, 1, 99, 100, 101, 777, 999])
def test_not_utf8_names_the_byte_in_the_file(tmp_path: Path, at: int) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"x" * at + b"\xe9" + b"y" * (1000 - at))
    for cut in (0, 100):
        assert f"is not UTF-8 (at byte {at})" in refused(path, Reading(cut=cut))


def test_a_character_that_the_file_s_end_cuts_off(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes("äöü".encode()[:-1])
    assert "(at byte 4)" in refused(path)


def test_continuation_bytes_without_end(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"\x80" * 50)
    assert "(at byte 0)" in refused(path, Reading(cut=20))


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b'{"text": "a"', "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (b'["text"]', "has no text under 'text'"),
        (b'{"txt": "a"}', "has no text under 'text'"),
        (b'{"text": ["a"]}', "has no text under 'text', but a list: name the right field with --field"),
        (b'{"text": {"a": "b"}}', "but an object of a: name one of these, FIELD.a for instance, with --field"),
        (b'{"text": "caf\xe9"}', "is not UTF-8 (at its byte 13)"),
        (b'{"text": "\\ud800"}', "half a surrogate pair"),
    ],
)
def test_a_wrong_line_is_named(tmp_path: Path, line: bytes, words: str) -> None:
    path = tmp_path / "d.jsonl"
    path.write_bytes(json_lines(["a"]) + b"\n" + line + b"\n" + json_lines(["b"]))
    said = refused(path)
    assert f"{path}, line 3 " in said
    assert words in said


def test_a_missing_group_is_named(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    path.write_bytes(json_lines(["a"], by="X") + json_lines(["b"]))
    assert f"{path}, line 2 has no 'by': name the right field with --group-field" in refused(
        path, Reading("text", "by")
    )
    table = tmp_path / "d.parquet"
    pq.write_table(pa.table({"text": ["a"]}), table)
    assert "no column 'by' (it has text): name it with --group-field" in refused(table, Reading("text", "by"))
    assert "no column 'body' (it has text): name it with --field" in refused(table, Reading("body"))


def flip(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes(byte ^ 0xFF for byte in data[middle : middle + 8]) + data[middle + 8 :]


@pytest.mark.parametrize("name", ["d.jsonl.gz", "d.jsonl.zst"])
@pytest.mark.parametrize(
    "damage", [lambda data: data[:-3], lambda data: data[: len(data) // 2], flip, lambda data: data + b"x" * 20]
)
def test_damaged_compression_is_no_end_of_file(tmp_path: Path, name: str, damage: Callable[[bytes], bytes]) -> None:
    path = tmp_path / name
    data = json_lines([f"{number} {number * 7919 % 1009}" for number in range(20_000)])
    whole = gzip.compress(data) if name.endswith("gz") else zstandard.ZstdCompressor(write_checksum=True).compress(data)
    path.write_bytes(damage(whole))
    said = refused(path)
    assert "line" in said, "either the decompressor or the JSON reader stumbles"


def test_a_truncated_zstd_file_says_how_far_it_went(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl.zst"
    path.write_bytes(zstandard.ZstdCompressor().compress(json_lines(["a"] * 1000))[:-1])
    assert "breaks off or is damaged behind line" in refused(path)


def test_memory_that_is_lacking_is_no_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compression, "MEMORY_BYTES", 1 << 16)
    path = tmp_path / "d.jsonl.xz"
    path.write_bytes(lzma.compress(json_lines(["a"])))
    assert "unpack it with `xz -d` before" in refused(path)


def test_gzip_with_a_broken_code(tmp_path: Path) -> None:
    """zlib has its own error, which is neither gzip's nor an OSError."""
    path = tmp_path / "d.jsonl.gz"
    path.write_bytes(gzip.compress(b"")[:10] + b"\xff" * 100)
    assert "breaks off or is damaged behind line 0" in refused(path)


def test_damaged_parquet(tmp_path: Path) -> None:
    path = tmp_path / "d.parquet"
    path.write_bytes(b"PAR1 and nothing else")
    assert "no readable Parquet file" in refused(path)
    pq.write_table(pa.table({"text": ["text " * 50 + str(number) for number in range(500)]}), path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    assert "no readable Parquet file" in refused(path)
    path.write_bytes(whole[:4] + b"\xff" * 3000 + whole[3004:])
    assert "no readable Parquet file" in refused(path)


def test_parquet_that_is_not_utf8_or_not_text(tmp_path: Path) -> None:
    path = tmp_path / "d.parquet"
    wrong = pa.Array.from_buffers(pa.string(), 1, pa.array([b"caf\xe9"], pa.binary()).buffers())
    pq.write_table(pa.table({"text": wrong}), path)
    assert "row 1 is not UTF-8 (at its byte 3)" in refused(path)
    pq.write_table(pa.table({"text": [["a"]]}), path)
    assert "has no text in column 'text', but list<" in refused(path)


def test_sources_that_are_not_there(tmp_path: Path) -> None:
    assert "there is no file or folder" in refused(tmp_path / "nowhere.txt")
    (tmp_path / "folder").mkdir()
    assert "holds no file to read" in refused(tmp_path / "folder")
    with pytest.raises(BytegolfError, match="cannot read"):
        expand(["text instead of a path " * 100])


def test_a_file_that_goes_away(tmp_path: Path) -> None:
    for name in ("a.txt", "a.jsonl", "a.parquet"):
        path = tmp_path / name
        path.write_bytes(b"")
        files = expand([str(path)])
        path.unlink()
        with pytest.raises(BytegolfError, match=name):
            list(documents(files, Reading()))


# ---------------------------------------------------------------------------------------------- memory


def sizes_and_peaks(files: list[str]) -> list[tuple[int, int]]:
    """Of each file: the length of its documents, and the most bytes that Python's objects take while it is read."""
    found = []
    for file in files:
        tracemalloc.start()
        total = sum(len(document.text) for document in documents([file], Reading(cut=20_000)))
        found.append((total, tracemalloc.get_traced_memory()[1]))
        tracemalloc.stop()
    return found


def test_memory_holds_documents_and_not_the_file(tmp_path: Path) -> None:
    data = json_lines([("a few words " * 8 + "\n") * 200] * 50)  # 1 MB
    paths = [tmp_path / name for name in ("d.txt", "d.jsonl", "d.jsonl.gz", "d.jsonl.zst")]
    for path in paths:
        path.write_bytes(compressed(path.name, data) * 30)
    found = in_own_process(sizes_and_peaks, [str(path) for path in paths])
    for path, (total, peak) in zip(paths, found, strict=True):
        assert total > 28_000_000, path.name
        assert peak < 6_000_000, path.name
