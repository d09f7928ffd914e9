"""What a wrong command line is told, where texts come from, and what they are called."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from commands import VERBS, TinyRun, cli, good, refused, small, text
from hypothesis import given, settings
from hypothesis import strategies as st

from bytegolf.analyze.plots import PNG
from bytegolf.analyze.report import called
from bytegolf.analyze.segment import LEAST, MOST, excerpt
from bytegolf.errors import BytegolfError
from bytegolf.files import check_replaceable

# ---------------------------------------------------------------------------------------------- wrong command lines


def test_a_verb_that_is_none(tmp_path: Path) -> None:
    said = refused("evla")
    assert "did you mean eval?" in said
    assert all(verb in said for verb in VERBS)
    assert "prove" not in said
    assert "did you mean list?" in refused("study", "lst")


@pytest.mark.parametrize("words", ["- milk", "-5 degrees", "-- a", "—", "-\n"])
@pytest.mark.parametrize("verb", ["sample", "segment"])
def test_texts_that_begin_with_a_dash(verb: str, words: str, tiny_run: TinyRun) -> None:
    more = ("--bytes", 2) if verb == "sample" else ()
    if words.startswith("-"):
        said = refused(verb, tiny_run.folder, *more, words)
        assert "begins with a dash" in said
        assert "put -- before" in said
    answer = good(verb, tiny_run.folder, *more, "--json", "--", words).json
    assert (answer["samples"][0]["prompt"] if verb == "sample" else "".join(answer["chunks"])) == words


def test_options_that_are_none_or_lack_a_value(tiny_run: TinyRun) -> None:
    assert "there is no option --coutn (did you mean --count?)" in refused("sample", "m", "--coutn", 3)
    assert "--out needs a value" in refused("train", "cpu-demo", "--out")
    assert "--file=-" in refused("analyze", "m", "--file")
    assert "MODEL is missing" in refused("segment")


def test_numbers_that_are_none_or_out_of_range() -> None:
    assert "--limit is 0.5: give a whole number" in refused("eval", "m", "--limit", "0.5")  # 0 would mean all
    assert "--bytes is 'x': give a whole number" in refused("sample", "m", "--bytes", "x")
    assert "--threshold is 'x': give a number" in refused("analyze", "m", "--threshold", "x")
    assert "--threshold is nan: give a number" in refused("analyze", "m", "--threshold", "nan")
    assert "--cut is -3: give a number >= 0" in refused("prepare", "--out", "d", "--cut", "-3")
    assert "--tail is 'x': give one of auto, drop, score" in refused("eval", "m", "--tail", "x")


def test_ctrl_c_while_modules_are_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    class Interrupted:
        def __getattr__(self, name: str) -> None:
            raise KeyboardInterrupt

    monkeypatch.setitem(sys.modules, "bytegolf.cli.run", Interrupted())
    ran = cli("presets")
    assert (ran.code, ran.out, ran.err) == (130, "", "interrupted\n")


def test_a_folder_that_may_not_be_written_to_is_told_before_work_starts(
    tiny_run: TinyRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path)  # root may write anywhere
    for page in (tmp_path / "page.html", tmp_path / "new" / "page.html"):
        assert "permission denied" in refused("analyze", tiny_run.folder, "--html", page)
    assert list(tmp_path.iterdir()) == []


EMPTY = (
    "prepare x --out=",
    "prepare @ --out y",
    "train cpu-demo --data @",
    "check @",
    "check x @",
    "analyze m --file @",
    "compress @",
    "compress x -o @",
    "eval @",
    "audit @",
)


@pytest.mark.parametrize("words", EMPTY)
def test_an_empty_path_is_not_the_folder_that_one_is_in(
    words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``--out "$UNSET"`` would write into it, and ``Path("")`` is it."""
    monkeypatch.chdir(tmp_path)
    assert "is empty: name a path" in refused(*("" if word == "@" else word for word in words.split(" ")))
    assert not list(tmp_path.iterdir())


def test_what_is_written_replaces_its_own_kind_alone(tiny_run: TinyRun, tmp_path: Path) -> None:
    """A page, a card or an artifact is made anew where it was; a letter or a model is not replaced by one."""
    source = tmp_path / "text.html"
    source.write_text("<!doctype html>a page that is read")
    for number, words in enumerate(
        (
            ("export", tiny_run.folder, "--out"),
            ("push", tiny_run.folder, "a/b", "--licence", "mit", "--card"),
            ("analyze", tiny_run.folder, "--file", source, "--html"),
        )
    ):
        letter, out = tmp_path / f"letter{number}", tmp_path / f"new{number}"
        letter.write_text("the only copy")
        assert "is of another kind" in refused(*words, letter)
        assert letter.read_text() == "the only copy"
        for _ in range(2):
            good(*words, out)
    assert "would replace the text that is read" in refused(*words, source)
    with pytest.raises(BytegolfError, match="another kind"):
        check_replaceable(letter, PNG)


def test_a_name_that_no_file_can_have(tmp_path: Path) -> None:
    long = tmp_path / ("x" * 300)
    (tmp_path / "a.txt").write_text("a b\n")
    for words in (("prepare", tmp_path / "a.txt", "--out"), ("check",), ("eval",), ("audit",), ("compress",)):
        assert "too long" in refused(*words, long)


@pytest.mark.parametrize("name", ["../../x", "..", ".hidden", "a/b", "a\\b", "", "a\nb", "\x7f"])
def test_a_name_leads_nowhere_else(name: str, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "one" / "two"
    home.mkdir(parents=True)
    monkeypatch.chdir(home)
    config = good("presets", "cpu-demo", *small(), "train.max_steps=1").out
    toml = name.replace("\\", "\\\\").replace("\n", "\\n").replace("\x7f", "\\u007F")
    Path("mine.toml").write_text(config.replace('name = "cpu-demo"', f'name = "{toml}"'))
    assert "name is" in refused("train", "mine.toml", "--data", tiny_data)
    assert "name is" in refused("train", "cpu-demo", *small(), f'name="{toml}"', "--data", tiny_data)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["mine.toml", "one", "two"]
    good("train", "mine.toml", "--data", tiny_data, "--out", "run")


# ---------------------------------------------------------------------------------------------- where texts come from


def test_segment_reads_stdin(tiny_run: TinyRun) -> None:
    words = "two words and café"
    wanted = good("segment", tiny_run.folder, words).out
    assert good("segment", tiny_run.folder, stdin=words.encode()).out == wanted
    assert good("segment", tiny_run.folder, "--file", "-", stdin=words.encode()).out == wanted
    assert good("segment", tiny_run.folder, words, stdin=b"something else").out == wanted


def test_analyze_reads_stdin(tiny_run: TinyRun, tmp_path: Path) -> None:
    words = text(700, 8).encode()
    (tmp_path / "text").write_bytes(words)
    wanted = good("analyze", tiny_run.folder, "--file", tmp_path / "text", "--json").json
    for options in (["--file", "-"], []):
        found = good("analyze", tiny_run.folder, tiny_run.folder, *options, "--json", stdin=words).json
        assert [one["bpb"] for one in found["models"]] == [wanted["models"][0]["bpb"]] * 2
        assert found["texts"] == [{"name": "stdin", "bytes": len(words)}]
    split = good("analyze", tiny_run.folder, "--json").json
    assert split["texts"][0]["name"] == "the validation split of data"
    assert good("analyze", tiny_run.folder, "--data", tiny_run.data, "--json", stdin=words).json == split


def test_a_pipe_that_is_slow_is_waited_for_and_told_of(tiny_run: TinyRun) -> None:
    command = [sys.executable, "-c", "from bytegolf.files import piped_input; print(piped_input())"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stderr
        assert b"reading the text from stdin" in process.stderr.readline()  # it tells, and goes on waiting
        out, _ = process.communicate(b"late")
    assert out == b"b'late'\n"


@pytest.mark.parametrize("stdin", ["closed", os.devnull])
def test_no_stdin_is_no_text(stdin: str) -> None:
    code = "from bytegolf.files import piped_input; print(piped_input())"
    redirection = "<&-" if stdin == "closed" else f"<{stdin}"
    ran = subprocess.run(["sh", "-c", f"'{sys.executable}' -c '{code}' {redirection}"], capture_output=True, text=True)
    assert ran.stdout == "b''\n", ran.stderr


def test_files_of_one_name_are_told_apart(tiny_run: TinyRun, tmp_path: Path) -> None:
    for number, folder in enumerate(("p", "q")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "x.txt").write_text(text(400, number))
    files = [tmp_path / "p" / "x.txt", tmp_path / "q" / "x.txt"]
    found = good("analyze", tiny_run.folder, *(word for file in files for word in ("--file", file)), "--json").json
    assert [one["name"] for one in found["texts"]] == [str(file) for file in files]
    assert called([Path("p/x"), Path("q/x"), Path("y")]) == ["p/x", "q/x", "y"]


@settings(max_examples=100)
@given(st.one_of(st.text(max_size=400).map(lambda words: words.encode("utf-8", "ignore")), st.binary(max_size=400)))
def test_an_excerpt_is_a_beginning_of_whole_characters(data: bytes) -> None:
    found = excerpt(data)
    assert data.strip().startswith(found)
    assert len(found) <= MOST
    assert found or not data.strip() or len(data.strip()) > MOST
    if len(data.strip()) > MOST:
        assert not found or len(found) >= LEAST - 3 or not found.decode("utf-8", "replace").isascii()
    try:
        data.decode()
    except UnicodeDecodeError:
        return
    found.decode()


def test_excerpts_end_with_sentences() -> None:
    assert (
        excerpt(b"A first sentence of forty bytes and more. " * 9)
        == (b"A first sentence of forty bytes and more. " * 3)[:-1]
    )
    assert excerpt("汉字很好看。".encode() * 20).decode() == "汉字很好看。" * 8
    assert excerpt(b"word " * 50) == (b"word " * 32)[:-1]
