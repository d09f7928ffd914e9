"""`prepare` and `check` of odd sources, through the command line: nothing is read in part without a word."""

from __future__ import annotations

import gzip
import io
import json
import lzma
import os
import shutil
import stat
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from commands import TinyRun, cli, good, refused, text
from corpora import PACK

NAMES = {"gz": "gzip", "xz": "xz", "bz2": "bzip2", "zst": "zstd"}


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test has a folder of its own, with four texts."""
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate("abcd"):
        Path(f"{name}.txt").write_text(text(2000, seed), encoding="utf-8")


def prepare(*arguments: object) -> tuple[dict[str, int], str]:
    """How many were left out, by reason and ending, and what was said."""
    ran = good("prepare", *arguments, "--val", "first:1", "--out", "out", "--json")
    shutil.rmtree("out")
    return {one["why"] + one["ending"]: one["count"] for one in ran.json["left_out"]}, ran.err


def in_folder(name: str, *files: str) -> Path:
    folder = Path(name)
    folder.mkdir(parents=True)
    for file in files:
        shutil.copy(file, folder)
    return folder


# ---------------------------------------------------------------------------------------------- folders


def test_links_to_folders_are_followed_once() -> None:
    in_folder("corpus", "a.txt", "b.txt")
    in_folder("disk2", "c.txt", "d.txt")
    Path("corpus/more").symlink_to("../disk2")
    assert "from 3 + 1 documents" in prepare("corpus")[1]
    Path("corpus/again").symlink_to("../disk2")
    Path("disk2/loop").symlink_to("../corpus")
    Path("corpus/up").symlink_to("..")
    left, said = prepare("corpus")
    assert "from 3 + 1 documents" in said
    assert left == {"known link": 2, "link above": 1}


def test_a_folder_without_permission_is_an_error() -> None:
    """The command as another user, as root may read everything."""
    folder = in_folder("locked/inner", "c.txt")
    shutil.copy("a.txt", "locked")
    shutil.copy("b.txt", "locked")
    if os.geteuid() == 0:
        if shutil.which("setpriv") is None:
            pytest.skip("root may read any folder, and there is no setpriv to be somebody else")
        os.chown(folder, 65534, 65534)
        folder.chmod(0o700)
        command = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"]
    else:
        folder.chmod(0)
        command = []
    try:
        run = [*command, sys.executable, "-m", "bytegolf", "prepare", "locked", "--val", "first:1", "--out", "out"]
        done = subprocess.run(run, capture_output=True, text=True, check=False)
    finally:
        folder.chmod(0o700)
    assert done.returncode == 2
    assert "cannot read the folder locked/inner: permission denied" in done.stderr
    assert "write" not in done.stderr
    assert not Path("out").exists()


def test_what_is_left_out_of_a_folder_is_said() -> None:
    mix = in_folder("mix", "a.txt", "b.txt")
    (mix / "c.txt.gz").write_bytes(gzip.compress(Path("c.txt").read_bytes()))
    (mix / "d.jsonl.xz").write_bytes(lzma.compress(b'{"text":"x y"}\n'))
    (mix / "e.json").write_text('{"text":"x y"}')
    (mix / "scan.pdf").write_bytes(b"%PDF")
    (mix / "photo.PDF").write_bytes(b"%PDF")
    (mix / ".git").mkdir()
    (mix / "gone.txt").symlink_to("nowhere")
    (mix / "itself.txt").symlink_to("itself.txt")
    os.mkfifo(mix / "pipe.txt")
    left, said = prepare("mix")
    assert left == {"ending.json": 1, "ending.pdf": 2, "hidden": 1, "dead link": 2, "pipe": 1}
    assert "from 3 + 1 documents" in said
    (line,) = [line for line in said.splitlines() if line.startswith("left out: ")]
    assert line == (
        "left out: 2 files ending in .pdf (for instance mix/photo.PDF), 1 file ending in .json (mix/e.json), 1 hidden "
        "file or folder (mix/.git), 2 links that lead nowhere (for instance mix/gone.txt), 1 named pipe (mix/pipe.txt)"
    )


def test_a_folder_without_anything_to_read_says_what_it_has() -> None:
    in_folder("books")
    Path("books/a.pdf").write_bytes(b"%PDF")
    assert "left out: 1 file ending in .pdf (books/a.pdf)" in refused("prepare", "books", "--out", "out")
    assert not Path("out").exists()


def test_all_of_it_is_said_in_the_manifest_and_another_tokenizer_may_join() -> None:
    in_folder("mix", "a.txt", "b.txt")
    Path("mix/x.pdf").write_bytes(b"%PDF")
    good("prepare", "mix", "--val", "first:1", "--out", "out")
    manifest = json.loads(Path("out/manifest.json").read_text())
    assert [(one["why"], one["count"]) for one in manifest["left_out"]] == [("ending", 1)]
    Path("mix/y.pdf").write_bytes(b"%PDF")
    good("prepare", "mix", "--val", "first:1", "--tokenizer", "sp400", "--out", "out")


@pytest.mark.parametrize("name", ["/dev/zero", "/dev/null"])
def test_a_device_is_no_text(name: str) -> None:
    assert "is a device, not a file" in refused("prepare", name, "--out", "out")


# ---------------------------------------------------------------------------------------------- compressed files


@pytest.mark.parametrize("ending", NAMES)
@pytest.mark.parametrize("kind", ["txt", "md", "jsonl", "ndjson", "json"])
def test_every_kind_of_text_in_every_compression(kind: str, ending: str) -> None:
    rows = b"".join(json.dumps({"text": f"text {number}"}).encode() + b"\n" for number in range(3))
    data = rows if "json" in kind else Path("a.txt").read_bytes()
    half = len(data) // 2
    Path(f"x.{kind}.{ending}").write_bytes(PACK[f".{ending}"](data[:half]) + PACK[f".{ending}"](data[half:]))
    count = 3 if "json" in kind else 1
    assert f"from {count} + 1 documents" in prepare("b.txt", f"x.{kind}.{ending}")[1]


@pytest.mark.parametrize("ending", NAMES)
@pytest.mark.parametrize("kind", ["txt", "jsonl"])
@pytest.mark.parametrize("damage", ["cut", "flipped", "garbage behind", "beginning", "empty"])
def test_a_damaged_file_is_one_sentence_and_nothing_stays(kind: str, ending: str, damage: str) -> None:
    rows = [json.dumps({"text": text(100, seed)}) for seed in range(300)]
    whole = PACK[f".{ending}"]("\n".join(rows).encode())
    middle = len(whole) // 2
    broken = {
        "cut": whole[: middle + 7],
        "flipped": whole[:middle] + bytes(byte ^ 0xFF for byte in whole[middle : middle + 4]) + whole[middle + 4 :],
        "garbage behind": whole + b"garbage",
        "beginning": b"x" + whole[1:],
        "empty": b"",
    }
    name = f"x.{kind}.{ending}"
    Path(name).write_bytes(broken[damage])
    said = refused("prepare", "a.txt", name, "--val", "first:1", "--out", "out")
    assert name in said
    if damage == "beginning":
        assert f"{name} is not {NAMES[ending]}, as its name says" in said
    elif damage != "flipped":  # which may show first as a line that is no JSON, or as no UTF-8
        assert f"{name} breaks off or is damaged behind" in said
    assert not Path("out").exists()


@pytest.mark.parametrize("ending", NAMES)
@pytest.mark.parametrize("name", ["x.txt", "x.jsonl", "x", "x.json"])
def test_a_compressed_file_without_its_ending_is_said_to_be_one(name: str, ending: str) -> None:
    Path(name).write_bytes(PACK[f".{ending}"](b"a text\n" * 20))
    said = refused("prepare", name, "--out", "out")
    assert f"{name} is {NAMES[ending]} by its first bytes, not text: end its name in .{ending}" in said
    other = next(one for one in NAMES if one != ending)
    shutil.move(name, f"x.txt.{other}")
    assert f"is {NAMES[ending]} by its first bytes" in refused("prepare", f"x.txt.{other}", "--out", "out")
    said = refused("prepare", "-", "--out", "out", stdin=PACK[f".{ending}"](b"a text\n" * 20))
    assert f"stdin is {NAMES[ending]} by its first bytes, not text: pipe it through `{NAMES[ending]} -d`" in said


def test_files_of_other_kinds_are_called_what_they_are() -> None:
    with tarfile.open("x.txt", "w") as archive:
        archive.add("a.txt")
    with zipfile.ZipFile("y.txt", "w") as packed:
        packed.write("a.txt")
    pq.write_table(pa.table({"text": ["a"]}), "z.txt")
    Path("u.txt").write_text("text", encoding="utf-16")
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        archive.add("a.txt")
    Path("w.tar.gz").write_bytes(buffer.getvalue())
    for name, kind in (("x", "a tar archive"), ("y", "a zip archive"), ("z", "Parquet"), ("u", "UTF-16 text")):
        assert f"{name}.txt is {kind} by its first bytes, not text" in refused("prepare", f"{name}.txt", "--out", "o")
    assert "w.tar.gz is read only when it is unpacked" in refused("prepare", "w.tar.gz", "--out", "o")


# ---------------------------------------------------------------------------------------------- rows


def test_null_rows_are_counted() -> None:
    Path("n.jsonl").write_text('{"text":"a b"}\n{"text":null}\n{"text":"c d"}\n{"text":" "}\n')
    left, said = prepare("n.jsonl")
    assert left == {"null text": 1, "blank": 1}
    assert "left out: 1 row whose text is null (n.jsonl, line 2), 1 document without text of 1 byte (n.jsonl)" in said
    assert "from 1 + 1 documents" in said
    Path("all.jsonl").write_text('{"text":null}\n{"text":null}\n')
    assert "2 rows whose text is null (for instance all.jsonl, line 1)" in refused("prepare", "all.jsonl", "--out", "o")


def test_with_workers_all_the_same() -> None:
    """Blocks that other processes read, and one that this process reads."""
    rows = [json.dumps({"text": None if number % 3 == 0 else f"text {number}"}) for number in range(300)]
    Path("n.jsonl").write_text("\n".join(rows))
    Path("m.jsonl.gz").write_bytes(gzip.compress("\n".join(rows).encode()))
    assert prepare("n.jsonl", "m.jsonl.gz", "--workers", "2")[0] == {"null text": 200}


def test_bytes_and_nested_columns() -> None:
    pq.write_table(pa.table({"text": pa.array([b"a b", b"c d", None], pa.binary())}), "b.parquet")
    assert prepare("b.parquet")[0] == {"null text": 1}
    pq.write_table(pa.table({"meta": [{"text": "a b"}, {"text": "c d"}]}), "s.parquet")
    assert "from 1 + 1 documents" in prepare("s.parquet", "--field", "meta.text")[1]
    assert "--field meta.text" in refused("prepare", "s.parquet", "--field", "meta", "--out", "o")
    assert "no column 'meta.txt'" in refused("prepare", "s.parquet", "--field", "meta.txt", "--out", "o")


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
def test_times_as_groups(unit: str) -> None:
    """pandas' nanoseconds, which Python has not, and years above 9999."""
    far = {"s": 10**12, "ms": 10**15, "us": 10**18, "ns": 10**18}[unit]
    times = pa.array([far * (number % 2) + number for number in range(40)], pa.timestamp(unit))
    pq.write_table(pa.table({"text": [f"row {number} of text" for number in range(40)], "when": times}), "t.parquet")
    ran = good("prepare", "t.parquet", "--group-field", "when", "--val", "group:0.3", "--out", "out", "--json")
    stats = ran.json["datasets"]["byte260"]
    assert stats["docs_train"] + stats["docs_val"] == 40
    assert min(stats["docs_train"], stats["docs_val"]) > 2


def test_json_that_is_no_lines() -> None:
    Path("x.json").write_text('[{"text": "a"}, {"text": "b"}, {"text": null}]')
    left, said = prepare("x.json")
    assert "from 1 + 1 documents" in said
    assert left == {"null text": 1}
    Path("x.json").write_text('{"data": [\n1]}')
    assert "line 1 is not JSON" in refused("prepare", "x.json", "--out", "o")
    Path("y.txt").write_text('{"text":"a"}\n{"text":"b"}\n')
    ran = good("prepare", "a.txt", "y.txt", "y.txt", "--val", "first:1", "--out", "out")
    warnings = [line for line in ran.err.splitlines() if line.startswith("warning: ")]
    assert warnings == [
        "warning: y.txt begins like JSON and is read as plain text: JSON lines end in .jsonl (stdin: -.jsonl)"
    ]
    shutil.rmtree("out")
    ran = good("prepare", "-", "a.txt", "--val", "first:1", "--out", "out", stdin=b'[{"text": "a"}]')
    assert "warning: stdin begins like JSON" in ran.err


def test_blank_pieces_of_a_cut_text_are_counted() -> None:
    Path("gap.txt").write_text("begin\n" + "\n" * 4500 + "end\n" * 200)
    left, said = prepare("gap.txt", "--cut", "300")
    assert left["blank"] > 10
    sizes = [line for line in said.splitlines() if "documents without text of 4," in line]
    assert sizes, said


def test_commas_in_the_groups_of_a_split() -> None:
    shutil.copy("a.txt", "a,b.txt")
    arguments = ("prepare", "a,b.txt", "c.txt", "d.txt", "--out", "out", "--val")
    assert r"a comma in a name is written \," in refused(*arguments, "groups:a,b.txt")
    ran = good(*arguments, r"groups:a\,b.txt,c.txt", "--json")
    assert ran.json["datasets"]["byte260"]["docs_val"] == 2
    assert ran.json["split"] == r"groups:a\,b.txt,c.txt"


def test_a_tokenizer_that_came_out_smaller() -> None:
    ran = good("prepare", "a.txt", "b.txt", "--val", "first:1", "--tokenizer", "sp2000", "--out", "out", "--json")
    size = ran.json["datasets"]["sp2000"]["vocab_size"]
    assert size < 2000
    assert f"the tokenizer has {size:,} ids and not 2,000: the text gave no more" in ran.err


# ---------------------------------------------------------------------------------------------- check


def test_check_enters_each_folder_once(tiny_run: TinyRun) -> None:
    for home in ("one", "two"):
        inner = Path(home) / "x"
        inner.mkdir(parents=True)
        shutil.copy(tiny_run.folder / "artifact.bgolf", home)
    Path("one/x/up").symlink_to("..")
    for name in "pq":
        Path(f"two/x/{name}").symlink_to("..")
    shutil.copy("a.txt", "two")
    os.mkfifo("two/pipe")
    assert stat.S_ISFIFO(Path("two/pipe").stat().st_mode)
    assert good("check", "one", "--json").json["checked"] == 1
    ran = good("check", "two", "--json")
    assert ran.json["checked"] == 1
    assert [(one["why"], one["count"]) for one in ran.json["left_out"]] == [
        ("ending", 1),
        ("known link", 2),
        ("pipe", 1),
    ]
    assert "left out: 1 file ending in .txt (two/a.txt)" in ran.err


def test_check_waits_for_no_pipe(tiny_run: TinyRun) -> None:
    os.mkfifo("f")
    assert "f is a named pipe, not a file" in refused("check", "f")
    assert "/dev/zero is a device, not a file" in refused("check", "/dev/zero")
    shutil.copytree(tiny_run.folder, "run")
    Path("run/artifact.bgolf").unlink()
    os.mkfifo("run/artifact.bgolf")
    os.mkfifo("run/pipe")
    ran = cli("check", "run", "--json")
    assert ran.code == 1
    assert any("pipe" in one["evidence"] for one in ran.json["verdicts"] if one["finding"] == "damaged")
