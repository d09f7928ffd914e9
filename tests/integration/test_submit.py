"""A submission runs without this package and says what it claims."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import TinyRun, cli, good, refused

from bytegolf.artifact.pack import read_artifact, write_artifact
from bytegolf.tools.bundle import script
from bytegolf.tools.submission import folder
from bytegolf.tools.submission.audit import audit

FIELDS = (
    "author github_id name blurb date track val_loss val_bpb pre_quant_val_bpb step_stop wallclock_seconds bytes_total "
    "bytes_model_int8_zlib bytes_code"
)
"""formats.md's, in its order."""

DRIVER = """
import os, runpy, sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("bytegolf", "jaxtyping", "rich", "cyclopts"):
            raise ImportError(f"{name} is not to be had here")

sys.meta_path.insert(0, Refuse())
path, native = sys.argv[1], ["1"]
for arguments in " ".join(sys.argv[2:]).split(" then "):
    os.environ["BYTEGOLF_NATIVE"] = "0" if arguments.startswith("plain ") else "1"
    sys.argv = [path, *arguments.removeprefix("plain ").split()]
    runpy.run_path(path, run_name="__main__")
assert "bytegolf" not in sys.modules
"""
"""Runs a script several times in one process in which bytegolf, and what a script must not need, cannot be imported."""


@dataclass(frozen=True)
class Submitted:
    """A submission, and what `submit` answered."""

    path: Path
    json: dict[str, Any]


@pytest.fixture(scope="session")
def submitted(tiny_run: TinyRun, tmp_path_factory: pytest.TempPathFactory) -> Submitted:
    """The submission of the tiny run."""
    out = tmp_path_factory.mktemp("submissions") / "tiny"
    ran = good("submit", tiny_run.folder, "--out", out, "--author", "Ada", "--github-id", "ada", "--json")
    return Submitted(out, ran.json)


def alone(path: Path, *runs: str) -> list[dict[str, Any]]:
    """What a script answers to each of ``runs`` of arguments, in one isolated process without bytegolf."""
    command = [sys.executable, "-I", "-c", DRIVER, path.name, *" then ".join(runs).split(" ")]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    environment |= {"OMP_NUM_THREADS": "1"}  # as the tests train
    ran = subprocess.run(command, cwd=path.parent, capture_output=True, text=True, check=False, env=environment)
    assert ran.returncode == 0, ran.stderr[-2000:]
    return [json.loads(line) for line in ran.stdout.splitlines()]


def test_the_script_alone_reproduces_the_score(submitted: Submitted, tiny_run: TinyRun, tmp_path: Path) -> None:
    """Scored with the kernels and without, trained again and scored again: the same bits per byte."""
    path, data = submitted.path / script.NAME, tiny_run.data
    losses, new, rounded = tmp_path / "losses.npy", tmp_path / "new", tmp_path / "bf16.bgolf"
    found = read_artifact(submitted.path / "artifact.bgolf")
    coarse = dataclasses.replace(found.config, train=dataclasses.replace(found.config.train, precision="bf16"))
    write_artifact(rounded, found.state, coarse, found.tokenizer, found.info)
    native, plain, trained, again, trained_in_bf16 = alone(
        path,
        f"eval --data {data} --losses {losses}",
        f"plain eval --data {data}",
        f"train --data {data} --out {new}",
        f"eval --data {data} --artifact {new / 'artifact.bgolf'}",
        f"plain eval --data {data} --artifact {rounded}",
    )
    claimed = submitted.json["val_bpb"]
    assert claimed == pytest.approx(tiny_run.ran.json["bpb"], abs=1e-9)
    for found in (native, plain, again):  # type: ignore[assignment]
        assert found["val_bpb"] == pytest.approx(claimed, abs=1e-4)  # type: ignore[index]
        assert found["tokens"] == native["tokens"]  # type: ignore[index]
    # in the one arithmetic that is the same on every machine, whatever the run was trained in
    assert (trained_in_bf16["precision"], trained_in_bf16["val_bpb"]) == ("float32", pytest.approx(claimed, abs=1e-6))
    assert trained["steps"] == 10
    before, after = (read_artifact(file).state for file in (tiny_run.folder / "artifact.bgolf", new / "artifact.bgolf"))
    assert all(bool((before[name] == after[name]).all()) for name in before), "the same weights"
    nats, sizes = np.load(losses).T
    scored = ~np.isnan(nats)
    assert int(scored.sum()) == native["tokens"]
    assert nats[scored].sum() / np.log(2) / sizes[scored].sum() == pytest.approx(native["val_bpb"], abs=1e-9)


def test_the_folder_is_whole(submitted: Submitted, tiny_run: TinyRun) -> None:
    files = {path.name: path for path in submitted.path.iterdir()}
    assert set(files) == {"README.md", "submission.json", "train.log", "train_gpt.py", "artifact.bgolf"}
    claims = json.loads(files["submission.json"].read_text())
    assert list(claims) == FIELDS.split()
    assert submitted.json == {"folder": str(submitted.path), **claims}
    assert claims["author"] == "Ada"
    assert claims["name"] == "cpu-demo"
    assert claims["step_stop"] == 10
    assert claims["bytes_code"] == files["train_gpt.py"].stat().st_size
    assert claims["bytes_model_int8_zlib"] == files["artifact.bgolf"].stat().st_size
    assert claims["bytes_total"] == claims["bytes_code"] + claims["bytes_model_int8_zlib"]
    assert claims["pre_quant_val_bpb"] == pytest.approx(claims["val_bpb"], abs=0.01)
    assert f"{claims['val_bpb']:.6f}" in files["README.md"].read_text()
    lines = [json.loads(line) for line in files["train.log"].read_text().splitlines()]
    rows = [line["kind"] for line in lines]
    assert (rows[0], *rows[-2:]) == ("environment", "summary", "script")
    assert lines[-1]["val_bpb"] == claims["val_bpb"], "a log has what is claimed, even of a run that was scored in bf16"
    assert {"train", "validation"} <= set(rows)


def test_export_counts_what_is_shipped(submitted: Submitted, tiny_run: TinyRun, tmp_path: Path) -> None:
    ledger = good("export", tiny_run.folder, "--out", tmp_path / "copy", "--json").json
    assert ledger["code_bytes"] == submitted.json["bytes_code"]
    assert tiny_run.ran.json["code_bytes"] == submitted.json["bytes_code"]


def test_a_packed_script_with_other_windows(submitted: Submitted, tiny_run: TinyRun, tmp_path: Path) -> None:
    """It is a third of the size, says by itself what is claimed, and an auditor can read it."""
    out = tmp_path / "packed"
    before = (tiny_run.folder / "artifact.bgolf").read_bytes()
    claims = good("submit", tiny_run.folder, "eval.stride=64", "--pack", "--out", out, "--json").json
    assert (tiny_run.folder / "artifact.bgolf").read_bytes() == before
    size = (out / script.NAME).stat().st_size
    assert claims["bytes_code"] == size < 0.4 * submitted.json["bytes_code"]
    assert claims["bytes_total"] == size + (out / "artifact.bgolf").stat().st_size
    scored = good("eval", tiny_run.folder, "--stride", 64, "--precision", "fp32", "--json").json
    assert claims["val_bpb"] == pytest.approx(scored["bpb"], abs=1e-6)
    assert claims["val_bpb"] < submitted.json["val_bpb"], "with more context"
    read = subprocess.run(
        ["sh", "-c", f"sed 's/^exec\\(.*\\)$/print(\\1.decode())/' {script.NAME} | '{sys.executable}'"],
        cwd=out, capture_output=True, text=True,
    )  # fmt: skip
    assert "sed 's/^exec" in (out / "README.md").read_text()
    assert read.stdout.rstrip("\n") == script.script(read_artifact(out / "artifact.bgolf").config).rstrip("\n")
    outcomes = {one.rule: one.outcome for one in audit(out, None).verdicts}
    assert "broken" not in outcomes.values()
    assert outcomes["validation unseen"] == outcomes["size"] == "shown", "what a search alone can show"
    assert good("check", out).code == 0


def test_overrides_of_a_submission(tiny_run: TinyRun, tmp_path: Path) -> None:
    assert "export.… or eval.…" in cli("submit", tiny_run.folder, "train.seed=3", "--out", tmp_path / "new").err
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_submitted(
    submitted: Submitted, tiny_run: TinyRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "exists already" in refused("submit", tiny_run.folder, "--out", submitted.path)
    assert "is no run folder" in refused("submit", tmp_path, "--out", tmp_path / "new")
    assert "no data folder" in refused("submit", tiny_run.folder, "--out", tmp_path / "new", "--data", tmp_path / "no")
    monkeypatch.setattr(folder, "LIMIT", 460_000)
    said = refused("submit", tiny_run.folder, "--out", tmp_path / "new")
    assert "more than the 460,000" in said
    assert "export.bits=6" in said
    assert not (tmp_path / "new").exists()
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_what_export_chose_by_itself_is_refused(tiny_run: TinyRun, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.toml").symlink_to(tiny_run.folder / "config.toml")
    found = read_artifact(tiny_run.folder / "artifact.bgolf")
    write_artifact(run / "artifact.bgolf", found.state, found.config, found.tokenizer, {**found.info, "fit_bytes": 1})
    assert "export --fit" in refused("submit", run, "--out", tmp_path / "new")
