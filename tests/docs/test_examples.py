"""The scripts of examples/ run, at a size for tests, and say what they promise."""

from __future__ import annotations

import json
import re
import runpy
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from commands import TinyRun, small, text

EXAMPLES = Path(__file__).parents[2] / "examples"

Script = Callable[..., str]


def tiny() -> list[str]:
    """A tiny model, whose budget the script sets."""
    return [change for change in small() if not change.startswith(("train.max_", "train.log_every"))]


@pytest.fixture
def script(
    tmp_path: Path, tiny_data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Script:
    """``script("own_text", *arguments)``: what it prints, in an empty folder where the tiny corpus is the default."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(EXAMPLES)
    Path("data").mkdir()
    Path("data/default").symlink_to(tiny_data)

    def run(name: str, *arguments: object) -> str:
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *map(str, arguments)])
        runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
        return capsys.readouterr().out

    return run


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_examples_are_short_and_explain_themselves(path: Path) -> None:
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    assert len(lines) <= 60
    assert f"python examples/{path.name}" in lines[1], "how to run it comes first"


def test_load_and_look(script: Script, tiny_run: TinyRun) -> None:
    said = script("load_and_look", tiny_run.folder, "--text", "The quick brown fox")
    assert "<bytegolf.Model cpu-demo" in said
    assert re.search(r"boundaries +\[0", said)
    assert re.search(r"\d nats over 19 bytes: \d\.\d+ bits per byte", said)


def test_own_text(script: Script) -> None:
    Path("notes.txt").write_text(text(40_000), encoding="utf-8")
    said = script("own_text", "notes.txt", "--out", "mine", "--seconds", 0, "--set", "train.max_steps=3", *tiny())
    assert "3 steps" in said
    assert re.search(r"validation: \d\.\d+ bits per byte", said)
    assert Path("mine/run/artifact.bgolf").exists()


def test_own_loop_has_the_losses_of_train(script: Script) -> None:
    said = script("own_loop", "--steps", 5, "--set", *tiny())
    assert "5 losses, equal to those of bytegolf.train in every bit" in said
    assert re.search(r"with a z-loss of 0.0001: \d\.\d+ bits per byte", said)


def test_own_router_is_compared_with_the_cosine_router(script: Script) -> None:
    said = script("own_router", "--steps", 3, "--seeds", 1, 2, "--set", *tiny())
    rows = re.findall(r"^(cosine|pair) +(\d\.\d+) ± (\d\.\d+) +\S+$", said, re.MULTILINE)
    assert [row[0] for row in rows] == ["cosine", "pair"]
    assert rows[0][1] != rows[1][1]


def test_compress_file(script: Script, tiny_run: TinyRun) -> None:
    Path("runs").mkdir()
    Path("runs/quick").symlink_to(tiny_run.folder)  # the run that it would train
    Path("letter.txt").write_text(text(400), encoding="utf-8")
    assert "letter.bgz gives them back" in script("compress_file", "runs/quick", "letter.txt", "--keep", "letter.bgz")
    assert "compress_file.py.bgz gives them back" in script("compress_file")


def test_own_quantizer(script: Script) -> None:
    said = script("own_quantizer", "--steps", 3, "--set", "train.validate_tokens=0", *tiny())
    rows = dict(re.findall(r"^(4-bit rows|ternary) +(\d\.\d+) +[\d,]+$", said, re.MULTILINE))
    assert rows.keys() == {"4-bit rows", "ternary"}


NOTEBOOK = EXAMPLES / "tour.ipynb"


@pytest.mark.slow
def test_the_notebook_runs_from_top_to_bottom(script: Script) -> None:
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    (parameters,) = (cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", ()))
    parameters.source += f"\nsteps, settings = 3, {tiny()}"
    done = nbclient.NotebookClient(notebook, timeout=900, kernel_name="python3").execute()
    said = "".join(output.get("text", "") for cell in done.cells for output in cell.get("outputs", ()))
    assert re.search(r"\d\.\d+ bits per byte, an artifact of [\d,]+ bytes", said)
    assert re.search(r"\d bytes: [\d,]+ with this model", said)


def test_the_notebook_holds_its_outputs_and_nothing_of_the_machine_that_ran_it() -> None:
    written = NOTEBOOK.read_text(encoding="utf-8")
    assert len(written) < 50_000
    assert "/tmp" not in written
    for cell in json.loads(written)["cells"]:
        if cell["cell_type"] == "code":
            kinds = {output["output_type"] for output in cell["outputs"]}
            assert kinds <= {"stream", "execute_result"}, "no errors, no traces of progress"
            assert cell["execution_count"]
