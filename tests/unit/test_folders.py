"""Folders of every kind: what is read and what is said to be left out is, together, what is there."""

from __future__ import annotations

import json
import os
import shutil
import stat
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import pytest
from corpora import PACK
from hypothesis import given, settings
from hypothesis import strategies as st

from bytegolf.data import blocks, corpus
from bytegolf.data.document import Reading
from bytegolf.errors import BytegolfError
from bytegolf.folders import LeftOut, Tally, in_words, walk

READ = [f"{kind}{ending}" for kind in (".txt", ".md", ".jsonl", ".NDJSON") for ending in PACK]
NOT_READ = [".pdf", ".json", ".json.gz", ".parquet.xz", ".gz", "", ".Jpeg", ".a long ending"]

KINDS = [*["folder"] * 4, *["file"] * 5, *["other"] * 2, *["link"] * 5, "pipe", "hidden", "hidden folder"]
STEPS = st.lists(
    st.tuples(
        st.sampled_from(KINDS),
        st.integers(0, 99),  # in which of the folders so far
        st.integers(0, 99),  # of what kind, or which target
    ),
    min_size=3,
    max_size=16,
)


def make(top: Path, steps: list[tuple[str, int, int]]) -> Path:
    """A tree in ``top``, with folders and files outside of it that links may lead to; its root.

    A link may lead to any folder or file, also around or outside of the root, to a pipe, nowhere, or to itself.
    """
    root, outside = top / "around" / "root", top / "outside"
    inner = outside / "inner"
    folders = [root, outside, inner]
    targets = [root.parent, root, outside, inner, outside, inner, top / "nowhere", top / "x.txt" / "below"]
    for folder in folders:
        folder.mkdir(parents=True)
    for number, (kind, where, which) in enumerate(steps):
        parent = folders[where % len(folders)]
        path = parent / f"{'.' if kind.startswith('hidden') else ''}{number:02d}"
        if kind in ("folder", "hidden folder"):
            path.mkdir()
            folders.append(path)
        elif kind in ("file", "hidden"):
            ending = READ[which % len(READ)]
            text = f"text {number}"
            data = json.dumps({"text": text}) if "json" in ending.lower() else text
            path = path.with_name(path.name + ending)
            path.write_bytes(PACK["." + ending.split(".")[2] if ending.count(".") > 1 else ""](data.encode()))
        elif kind == "other":
            path = path.with_name(path.name + NOT_READ[which % len(NOT_READ)])
            path.write_text(f"text {number}")
        elif kind == "pipe":
            path = path.with_name(f"{path.name}.txt")
            os.mkfifo(path)
        else:
            target = [*targets, path][which % (len(targets) + 1)]
            path = path.with_name(path.name + ("".join(target.suffixes) or ("", ".txt")[which % 2]))
            path.symlink_to(target if which % 3 else os.path.relpath(target, parent))
        targets.append(path)
    return root


def expected(root: Path) -> tuple[set[str], Counter[tuple[str, str]], int, int, set[str]]:
    """By the definition, over real paths: files to read; what is left out but links to what is read anyway; how many
    links lead to what could be read; the fewest of them that are followed; folders to enter.
    """
    above = {str(parent) for parent in root.resolve().parents}
    enter, found = {str(root.resolve())}, [root.resolve()]
    links: list[Path] = []
    plain: set[str] = set()
    left: Counter[tuple[str, str]] = Counter()
    for folder in found:
        for path in folder.iterdir():
            real = os.path.realpath(path)
            if path.name.startswith("."):
                left["hidden", ""] += 1
            elif not os.path.exists(path):  # noqa: PTH110 (False, too, for a link to itself)
                left["dead link", ""] += 1
            elif os.path.isdir(real) and path.is_symlink() and real in above:  # noqa: PTH112
                left["link above", ""] += 1
            elif path.is_dir():
                links += [path] * path.is_symlink()
                if real not in enter:
                    enter.add(real)
                    found.append(Path(real))
            elif stat.S_ISFIFO(path.stat().st_mode):
                left["pipe", ""] += 1
            elif not path.name.lower().endswith(tuple(map(str.lower, READ))):
                ending = path.suffix.lower()
                left["ending", ending if len(ending) < 8 else ""] += 1
            elif path.is_symlink():
                links.append(path)
            else:
                plain.add(real)
    real_of = [os.path.realpath(link) for link in links]
    files = {real for real in real_of if os.path.isfile(real)}  # noqa: PTH113
    reached = {real for real in enter if os.path.dirname(real) not in enter} - {str(root.resolve())}  # noqa: PTH120
    return plain | files, left, len(links), len(files - plain) + len(reached), enter


def text_of(file: str) -> str:
    """What `make` wrote into it."""
    return f"text {int(Path(file).name.lstrip('.')[:2])}"


@contextmanager
def tree(steps: list[tuple[str, int, int]]) -> Iterator[Path]:
    top = Path(tempfile.mkdtemp())
    try:
        yield make(top, steps)
    finally:
        shutil.rmtree(top)


@given(STEPS, st.integers(0, 99))
@settings(max_examples=500)
def test_what_is_read_and_what_is_left_out_is_what_is_there(steps: list[tuple[str, int, int]], locked: int) -> None:
    with tree(steps) as root:
        files, left, links, followed, entered = expected(root)
        tally = Tally()
        if not files:
            with pytest.raises(BytegolfError, match="holds no file to read"):
                corpus.expand([str(root)], tally)
        else:
            read = corpus.expand([str(root)], tally)
            assert sorted(os.path.realpath(file) for file in read) == sorted(files), "each real file once"
            documents = blocks.documents(blocks.of_files(read, Reading()), lambda count: None)
            assert {document.text for document in documents} == {text_of(file) for file in files}
        found = Counter({(one.why, one.ending): one.count for one in tally.all()})
        known = found.pop(("known link", ""), 0)
        assert found == left
        assert links - len(entered) - len(files) <= known <= links - followed, "a link is followed, or said"

        # the same with one folder that may not be read (tests may run as root, who may read any)
        real = sorted(entered)[locked % len(entered)]
        whole = os.listdir

        def listdir(path: str) -> list[str]:
            if os.path.realpath(path) == real:
                raise PermissionError(13, "Permission denied")
            return whole(path)

        with (
            mock.patch("os.listdir", listdir),
            pytest.raises(BytegolfError, match=r"cannot read the folder .*: permission denied: ask its owner"),
        ):
            corpus.expand([str(root)], Tally())


def test_a_folder_that_may_not_be_read(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may read any folder; the generated trees above have one that may not be read")
    (tmp_path / "a.txt").write_text("a")
    locked = tmp_path / "locked"
    locked.mkdir()
    locked.chmod(0)
    try:
        with pytest.raises(BytegolfError, match=f"cannot read the folder {locked}: permission denied"):
            corpus.expand([str(tmp_path)], Tally())
    finally:
        locked.chmod(0o700)


def test_a_link_inside_a_folder_that_another_link_leads_to(tmp_path: Path) -> None:
    """The inner folder is entered by the first link, and not again with the one around it."""
    inner = tmp_path / "outside" / "inner"
    inner.mkdir(parents=True)
    (inner / "a.txt").write_text("a")
    (inner.parent / "b.txt").write_text("b")
    root = tmp_path / "root"
    root.mkdir()
    (root / "1").symlink_to(inner)
    (root / "2").symlink_to(inner.parent)
    (root / "3.txt").symlink_to(inner / "a.txt")
    tally = Tally()
    assert corpus.expand([str(root)], tally) == [str(root / "1" / "a.txt"), str(root / "2" / "b.txt")]
    assert [(one.why, one.example) for one in tally.all()] == [("known link", str(root / "3.txt"))]


def test_hard_links_are_files_of_their_own(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / "b.txt").hardlink_to(tmp_path / "a.txt")
    assert len(corpus.expand([str(tmp_path)], Tally())) == 2


def test_a_file_that_is_called_otherwise_elsewhere(tmp_path: Path) -> None:
    """As caches of the hub have it: links with readable names to files without."""
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshot"
    for folder in (blobs, snapshot):
        folder.mkdir()
    (blobs / "0123").write_text("text")
    (snapshot / "a.txt").symlink_to(blobs / "0123")
    tally = Tally()
    assert corpus.expand([str(tmp_path)], tally) == [str(snapshot / "a.txt")]
    assert in_words(tally.all()) == f"left out: 1 file without an ending ({blobs / '0123'})"


def test_folders_that_are_whole_are_not_entered(tmp_path: Path) -> None:
    (tmp_path / "run" / "inner").mkdir(parents=True)
    found = [folder for folder, _ in walk(tmp_path, Tally(), whole=lambda folder: folder.name == "run")]
    assert found == [tmp_path, tmp_path / "run"]


def test_one_line_whatever_there_is() -> None:
    tally = Tally()
    for number in range(30):
        tally.add("ending", f"x.{number}", f".{number}")
    tally.add("pipe", "q")
    tally.add("pipe", "r")
    tally.add("blank", "a.txt", size=1)
    said = in_words(tally.all())
    assert said.startswith("left out: 1 file ending in .0 (x.0), ")
    assert said.endswith(", 25 more for other reasons")
    assert in_words([LeftOut("pipe", "", 2, "q", 0)]) == "left out: 2 named pipes (for instance q)"
    assert in_words([LeftOut("blank", "", 1, "a.txt", 1)]) == "left out: 1 document without text of 1 byte (a.txt)"
    assert in_words([]) == ""
