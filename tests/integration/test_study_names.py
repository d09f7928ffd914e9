"""Whatever a study's variants and question are called: they are shown, written and read as they are."""

from __future__ import annotations

import csv
import io
import re
import unicodedata
from pathlib import Path

import pytest
import tomli_w
from commands import cli, good, refused
from hypothesis import example, given, settings
from hypothesis import strategies as st

from bytegolf.config import Config
from bytegolf.console import PlainConsole
from bytegolf.errors import BytegolfError, shown
from bytegolf.tools.check import results as check_results
from bytegolf.tools.study import report
from bytegolf.tools.study.definition import Identity, Job, is_study, jobs, read_study
from bytegolf.tools.study.results import Row, append_row, read_rows
from bytegolf.tools.study.table import as_csv, markdown, tabulate

AWKWARD = [
    "[off]",
    "[/on]",
    "**",
    "|",
    "\u2028",
    "\x85",
    "\x7f",
    "\x1b[2J",
    ",",
    "../",
    "-",
    "_",
    "`",
    "é",
    "e\u0301",
    " ",
]
NAMES = st.lists(
    st.one_of(st.sampled_from(AWKWARD), st.text(st.characters(codec="utf-8"), max_size=3)), min_size=1, max_size=4
).map("".join)

SUMMARY = {
    **{"bpb": 1.0, "bpb_original": 1.0, "subset": False, "total_bytes": 9, "fits": True, "params": 1, "steps": 3},
    **{"train_seconds": 1.0, "train_bytes": 9, "train_bytes_per_second": 9, "boundaries": None},
}


def study_file(folder: Path, first: str, second: str, question: str = "?") -> Path:
    settings = {"name": "s", "question": question, "preset": "cpu-demo", "control": first, "seeds": [1]}
    rates = {first: 0.1, second: 0.2}
    variants = {name: {"overrides": {"optim.muon_lr": rate}} for name, rate in rates.items()}
    path = folder / "s.toml"
    path.write_text(tomli_w.dumps({**settings, "budget": {"steps": 1}, "variants": variants}), encoding="utf-8")
    return path


@settings(max_examples=500)
@given(NAMES, NAMES, NAMES)
@example("guide [off]", "guide [/on]", "is [x] or [/y] better?")
@example("low\u2028rate", "low\\u2028rate", "?")
def test_any_names(tmp_path_factory: pytest.TempPathFactory, first: str, second: str, question: str) -> None:
    if first == second:
        return
    home = tmp_path_factory.mktemp("study")
    path = study_file(home, first, second, question)
    looks = [" ".join(shown(unicodedata.normalize("NFKC", name)).split()) for name in (first, second)]
    blank = not first.strip() or not second.strip()
    if blank or looks[0] == looks[1] or {"\n", "\r"} & {*first, *second}:
        with pytest.raises(BytegolfError, match=r"called|alike"):
            read_study(path)
        return
    study = read_study(path)
    made = {"status": "done", "summary": SUMMARY, "git": None, "versions": {"torch": "2"}}
    config = Config.load("cpu-demo")
    planned = [Job(one, Identity("d", 1, "x"), config, home) for one in study.variants]
    for job in planned:
        about = {**job.identity._asdict(), "study": "s", "variant": job.variant.name}
        append_row(study, Row.of({**about, **made}, "a row"))
    read = read_rows(study)
    assert [row.line["variant"] for row in read] == [first, second]
    assert check_results(study.folder / "results.jsonl").finding == "whole"
    table = tabulate(study, dict(zip(planned, read, strict=True)))
    assert [row["variant"] for row in csv.DictReader(io.StringIO(as_csv(table)))] == [first, second]
    out = io.StringIO()
    console = PlainConsole(width=4000)
    console.file = out
    console.print(report._screen_table(table))
    words = " ".join(out.getvalue().split())
    assert all(" ".join(shown(name).split()) in words for name in (first, second))
    assert out.getvalue().count("\n") == 3
    lines = markdown(table).split("\n")
    first_row = next(at for at, line in enumerate(lines) if line.startswith("| variant | n |")) + 2
    rows = lines[first_row : first_row + 2]
    assert lines[first_row + 2] == "", "two rows of a line each"
    cells = [re.findall(r"(?:\\.|[^|\\])+", row)[0] for row in rows]
    assert [re.sub(r"\\(.)", r"\1", cell)[1:-1] for cell in cells] == [shown(name) for name in (first, second)]


def test_names_that_look_alike_are_refused(tmp_path: Path) -> None:
    for other in ("caf\u00e9  one", "cafe\u0301 one", "café\u00a0one"):
        with pytest.raises(BytegolfError, match="look alike"):
            read_study(study_file(tmp_path, "café one", other))


def test_a_row_with_line_separators_is_one_row_however_often_it_is_looked_at(tmp_path: Path) -> None:
    path = study_file(tmp_path, "a", "low\u2028rate\x85")
    study = read_study(path)
    made = {"status": "done", "summary": SUMMARY, "git": None, "versions": {"torch": "2"}}
    for job in jobs(study, without_data=True):
        append_row(study, Row.of({**job.identity._asdict(), "variant": job.variant.name, **made}, "a row"))
    before = (study.folder / "results.jsonl").read_bytes()
    for _ in range(2):
        assert good("study", "show", path, "--json").json["done"] == 2
    assert (study.folder / "results.jsonl").read_bytes() == before
    assert "2 rows, each with its checksum" in good("check", study.folder / "results.jsonl").out


def test_a_list_passes_over_what_is_no_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("pyproject.toml").write_text('[build-system]\nrequires = ["hatchling"]\n')
    Path("mine.toml").write_text('extends = "cpu-demo"\nname = "mine"\n')
    assert "no study file" in refused("study", "list", ".")
    study_file(tmp_path, "a", "b", "is [x] or [/y] better?")
    ran = good("study", "list", ".", "--json")
    assert [one["file"] for one in ran.json["studies"]] == ["s.toml"]
    assert "is [x] or [/y] better?" in ran.err
    assert "not read" not in ran.err
    Path("broken.toml").write_text('question = "?"\ncontrol = 3\n')
    Path("half.toml").write_text("question = ")
    ran = good("study", "list", ".", "--json")
    assert len(ran.json["studies"]) == 1
    assert set(ran.json["unreadable"]) == {"broken.toml", "half.toml"}
    assert ran.err.count("not read: ") == 2


def test_a_preset_is_no_study(tmp_path: Path) -> None:
    (tmp_path / "preset.toml").write_text(good("presets", "cpu-demo").out)
    assert not is_study(tmp_path / "preset.toml")
    assert is_study(study_file(tmp_path, "a", "b"))
    assert cli("study", "show", tmp_path / "preset.toml").code == 2
