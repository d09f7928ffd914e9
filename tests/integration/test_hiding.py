"""What code can hide: what an auditor cannot read it says, with the line; and it accuses nobody for his style."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from commands import cli
from hidden_code import ENDLESS, HIDING, HONEST_LINES, TO_VALIDATION
from packed_submissions import PLAIN, folder_of

from bytegolf.errors import BytegolfError
from bytegolf.tools.submission import searches
from bytegolf.tools.submission.audit import audit
from bytegolf.tools.submission.verdict import Audit, markdown

STEP = 1 if os.environ.get("BYTEGOLF_SLOW_TESTS") else 3
"""Of the longest lists, every third: a line is a tenth of a second."""


def audited(home: Path, script: str, files: dict[str, str] | None = None) -> Audit:
    folder = folder_of(home, script)
    for name, text in (files or {}).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    return audit(folder, None)


def outcome(found: Audit, rule: str) -> str:
    return next(row.outcome for row in found.verdicts if row.rule == rule)


def test_what_hides_is_broken_or_not_proved(tmp_path: Path) -> None:
    assert outcome(audited(tmp_path / "honest", PLAIN), "validation unseen") == "shown"
    for number, (way, (lines, files)) in list(enumerate(HIDING.items()))[::STEP]:
        found = audited(tmp_path / str(number), f"{PLAIN}\n{lines}\n", files)
        assert found.verdict == "broken" or outcome(found, "validation unseen") == "not proved", way


def test_honest_lines_are_not_accused(tmp_path: Path) -> None:
    for number, (way, (lines, files)) in list(enumerate(HONEST_LINES.items()))[::STEP]:
        found = audited(tmp_path / str(number), f"{PLAIN}\n{lines}\n", files)
        assert found.verdict == "unproved", (way, found.summary)
        assert outcome(found, "validation unseen") == "shown", way


@pytest.mark.parametrize("way", ["own folder", "own source file", "own source logged"])
def test_a_script_may_read_its_own_folder(way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever that lies: folders of the system are free to all, and so is the one of this test."""
    monkeypatch.setattr(searches, "SYSTEM", ("/proc",))
    lines, files = HONEST_LINES[way]
    assert audited(tmp_path / "own", f"{PLAIN}\n{lines}\n", files).verdict == "unproved"
    elsewhere = f"from pathlib import Path\nPath({str(tmp_path)!r}, 'x').read_text()"
    found = audited(tmp_path / "other", f"{PLAIN}\n{elsewhere}\n")
    assert outcome(found, "self-contained") == "broken"


def test_validation_tokens_by_any_name(tmp_path: Path) -> None:
    for number, (way, expression) in enumerate(TO_VALIDATION.items()):
        script = "import os\nP='fineweb_'+'val_*.bin'\n" + PLAIN.replace('read("fineweb_train_*.bin")', expression)
        assert outcome(audited(tmp_path / str(number), script), "validation unseen") != "shown", way


def test_work_and_memory_are_bounded(tmp_path: Path) -> None:
    """In processor time, of which all of them together take some seconds: a single one would take for ever."""
    signal.setitimer(signal.ITIMER_VIRTUAL, 120)  # ends the process
    try:
        for number, lines in enumerate(ENDLESS.values()):
            audited(tmp_path / str(number), f"{PLAIN}\n{lines}\n")
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)


UNCOUNTED = {
    "a log that any name may open": ("import os\nopen(os.environ['X']).read()", "train.log"),
    "notes that a pattern finds": ("[open(f).read() for f in glob.glob('*.md')]", "notes.md"),
    "a picture in a list of files": ("import os\nopen(os.listdir('.')[0], 'rb').read()", "curve.png"),
}


@pytest.mark.parametrize("way", UNCOUNTED)
def test_texts_that_may_be_weights(way: str, tmp_path: Path) -> None:
    lines, name = UNCOUNTED[way]
    folder = folder_of(tmp_path / "x", f"{PLAIN}\n{lines}\n")
    (folder / "model.bin").write_bytes(bytes(8_000_000))
    assert outcome(audit(folder, None), "size") == "shown"
    text = np.random.default_rng(0).integers(97, 122, (90_000, 100), np.uint8)
    text[:, -1] = 10
    (folder / name).write_bytes(text.tobytes())
    assert outcome(audit(folder, None), "size") == "not proved"


def _names() -> Iterator[bytes]:
    yield from (b"[bold]x[y].py", b"a\nb.py", "a\u2028b.py".encode(), b"-rf.py", b"caf\xe9.py", b"a\x7fb.py")
    yield from (b"a\x1b[31mb.py", b"a`'\"|b.py", b"%s.py", b"x" * 240 + b".py", b" .py", "a\u202eb.py".encode())


@pytest.mark.parametrize("name", list(_names()), ids=repr)
def test_a_script_of_any_name(name: bytes, tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "x", PLAIN)
    (folder / "train_gpt.py").rename(os.fsdecode(os.fsencode(folder) + b"/" + name))
    ran = cli("audit", folder, "--json")
    assert ran.json["script"].encode(errors="surrogateescape") == name
    summary = markdown(audit(folder, None))
    assert len(summary.split("\n")) == 17
    assert all(one.isprintable() for one in summary.replace("\n", ""))


ODD: dict[str, Callable[[Path], object]] = {
    "a link to itself": lambda folder: (folder / "me").symlink_to("me"),
    "a link back up": lambda folder: (folder / "up").symlink_to(".."),
    "a device": lambda folder: (folder / "z.bin").symlink_to("/dev/zero"),
    "deep claims": lambda folder: (folder / "submission.json").write_text("[" * 100_000),
    "claims of any type": lambda folder: (folder / "submission.json").write_text(
        json.dumps({"author": ["a"], "name": {"x": 1}, "date": 1.5, "val_bpb": True, "seed_results": {"1": None}})
    ),
    "claims beyond numbers": lambda folder: (folder / "submission.json").write_text(
        '{"author":"\\ud800","name":"[bold]","date":"\\u2028","val_bpb":1e400}'
    ),
    "a README that is slow to search": lambda folder: (folder / "README.md").write_text("python " * 140_000),
    "a script in UTF-16": lambda folder: (folder / "train_gpt.py").write_bytes(PLAIN.encode("utf-16")),
    "a script of no encoding": lambda folder: (folder / "train_gpt.py").write_bytes(b"# coding: nonsense\nx = 1\n"),
    "a log of 20 GB": lambda folder: os.truncate(folder / "train.log", 20 << 30),
    "names that no file can have": lambda folder: (folder / "train_gpt.py").write_text(
        PLAIN + "\nopen('\\ud800')\nopen('a\\0b')\nexec('\\ud800')\n"
    ),
}


@pytest.mark.parametrize("what", ODD)
def test_odd_folders_are_answered(what: str, tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "x", PLAIN)
    ODD[what](folder)
    assert cli("audit", folder, "--json").code in (1, 3)


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "x", PLAIN)
    os.mkfifo(folder / "more.log")
    with pytest.raises(BytegolfError, match="pipe"):
        audit(folder, None)
