"""The benchmarks: what they count is right. How fast anything is, no test says."""

from __future__ import annotations

import ast
import importlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from conftest import tiny_network
from tiny_run import tiny_config
from torch import Tensor

from bytegolf.config import Config, ModelConfig
from bytegolf.model.lm import LanguageModel

FOLDER = Path(__file__).parents[2] / "benchmarks"
Benchmark = Callable[[str], Any]


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> Benchmark:
    """``benchmark("train_step")``: a script of ``benchmarks/`` as a module."""
    monkeypatch.syspath_prepend(FOLDER)

    def module(name: str) -> ModuleType:
        return importlib.import_module(name)

    return module


def test_a_step_is_timed_in_parts_at_the_wanted_rate(benchmark: Benchmark) -> None:
    train_step = benchmark("train_step")
    result = train_step.measure(tiny_config("two-level"), 2, 0.25, None, False, "wall")
    assert set(result["seconds"]) == {"data", "forward", "backward", "optimiser"}
    assert all(seconds > 0 for seconds in result["seconds"].values())
    assert result["rates"] == [0.25, 0.25]
    assert result["bytes_per_second"] == result["tokens_per_second"] > 0
    json.dumps(result)


def test_boundaries_are_drawn_at_the_wanted_rate(benchmark: Benchmark) -> None:
    train_step = benchmark("train_step")
    model = LanguageModel(ModelConfig(tiny_network("one-level")))
    train_step.fix_rates(model, 0.3)
    out = model(torch.randint(4, 260, (8, 256)))
    assert float(out.traces[0].rate()) == pytest.approx(0.3, abs=0.05)


def test_random_weights_chunk_at_the_presets_rate(benchmark: Benchmark) -> None:
    model = LanguageModel(ModelConfig(tiny_network("two-level")))
    benchmark("models").calibrate(model)
    with torch.no_grad():
        traces = model(torch.randint(4, 260, (8, 512))).traces
    assert [float(trace.rate()) for trace in traces] == pytest.approx([1 / 3, 1 / 2], rel=0.2)


@pytest.mark.parametrize("preset", ["cpu-demo", "cpu-gpt", "hnet-2stage", "study2-byte"])
def test_every_width_is_a_model(benchmark: Benchmark, preset: str) -> None:
    scaling = benchmark("scaling")
    for width, changes in scaling.width_points(Config.load(preset), [128, 256, 512]).items():
        found = scaling.stages(Config.load(preset, changes).model.network)
        assert next(iter(found.values())).dim == int(width)


def test_lengths_keep_the_tokens_of_a_step(benchmark: Benchmark) -> None:
    points = benchmark("scaling").sequence_points([1024, 4096], 8192, ["a=b"])
    for changes in points.values():
        assert Config.load("cpu-demo", changes[:-1]).train.batch_tokens == 8192


def test_compressors_profit_from_the_training_text(benchmark: Benchmark) -> None:
    words = b" ".join(b"%d" % (7**n % 1000) for n in range(2000))
    for name, compress in benchmark("compressors").compressors(8, 1 << 24).items():
        alone, before, both = (len(compress(text)) for text in (words, words, words + words))
        assert both - before < alone / 2, name


def test_peak_memory_is_the_process_own(benchmark: Benchmark) -> None:
    """What was let go counts, and what the larger process that started it holds does not."""
    measuring = benchmark("measuring")
    code = "import measuring; a = measuring.peak_memory(); bytearray(50_000_000); print(a, measuring.peak_memory())"
    done = subprocess.run([sys.executable, "-c", code], cwd=FOLDER, check=True, capture_output=True, text=True)
    before, after = map(int, done.stdout.split())
    assert before < 60e6 < measuring.peak_memory()
    assert after - before > 40e6


def test_a_table_has_a_row_a_line(benchmark: Benchmark) -> None:
    text = benchmark("measuring").table([{"a": 1234, "b": 0.12345}, {"a": None, "b": "x"}])
    assert text.splitlines() == ["| a | b |", "|---|---|", "| 1,234 | 0.1235 |", "| - | x |"]


def test_attention_is_timed_in_both_forms(benchmark: Benchmark, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock on which the plain form's passes take 1 and 2 s, the native form's 3 and 4 s."""
    module = benchmark("attention")
    time = 0.0
    seconds = {"plain": (1.0, 2.0), "native": (3.0, 4.0)}
    steps: Iterator[float] = iter(())

    def form(name: str, inner: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def run(*arguments: object) -> Tensor:
            nonlocal steps
            steps = iter(seconds[name])
            return inner(*arguments)

        return run

    def clock() -> float:
        nonlocal time
        time += next(steps, 0.0)
        return time

    monkeypatch.setattr(module, "attention_reference", form("plain", module.attention_reference))
    monkeypatch.setattr(module, "attention", form("native", module.attention))
    monkeypatch.setitem(module.CLOCKS, "made up", clock)
    row = module.measure((2, 20, 4, 2, 8, 5), torch.float32, 3, "made up")
    assert {name: row.pop(f"{name} forward") for name in seconds} == {"plain": 1000, "native": 3000}
    assert {name: row.pop(f"{name} backward") for name in seconds} == {"plain": 2000, "native": 4000}
    distance = torch.arange(20).unsqueeze(1) - torch.arange(20)
    pairs = int(((distance >= 0) & (distance < 5)).sum())
    # q·k and its weighted sum, a multiplication and an addition each, over 2 sequences, 4 heads of 8; 3 times in all
    assert row == {"GFLOP/s": pytest.approx(3 * 2 * 2 * pairs * 2 * 4 * 8 / 7 / 1e9)}


def test_hollow_shards_are_read_as_full_ones_and_take_no_room(benchmark: Benchmark, tmp_path: Path) -> None:
    webscale = benchmark("webscale")
    found = webscale.measure(tmp_path, 5_000_000, 8, shard_tokens=1_000_000)
    assert (found["shards"], found["tokens"], found["ranks"]) == (5, 5_000_000, 8)
    assert found["same_batch"] == "yes"
    assert found["sequences_a_rank"] == 32
    used = sum(path.stat().st_blocks * 512 for path in tmp_path.glob("*.bin"))
    assert used < 100_000, "holes"


def test_lines_are_told_apart(benchmark: Benchmark) -> None:
    text = (
        '"""What it is.\n\nLong."""\n\nimport os\n\n# why\nx = 1  # for people\ny = 2  # noqa: E501\n"""what y is"""\n'
    )
    found = benchmark("measures").kinds_of(text)
    assert found == {"docstring": 3, "blank": 3, "import": 1, "comment": 1, "code": 2, "remarks": 2}


def test_there_is_one_pass_through_an_hnet(benchmark: Benchmark) -> None:
    measures = benchmark("measures")
    assert measures.Sources(FOLDER.parent / "src").passes() == ["hnet.run"]
    called = "def f(self): return self.decoder.extend(self.main(self.encoder(x)))"
    assert measures.parts_run(ast.parse(called)) == {"main", "decoder"}
    assert not measures.parts_run(ast.parse("def f(self): return self.main.start(1), self.decoder.start(1)"))


@pytest.mark.slow
@pytest.mark.slow
@pytest.mark.skipif("BYTEGOLF_SLOW_TESTS" not in os.environ, reason="a quarter of a minute: set BYTEGOLF_SLOW_TESTS=1")
def test_the_table_of_a_gpu_is_filled_on_a_trial_too(tiny_data: Path, tmp_path: Path) -> None:
    script = [sys.executable, str(FOLDER / "gpu.py"), "--dry-run", "--no-tests", "--presets", "study1-byte"]
    command = [*script, "--data", str(tiny_data), "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    found = json.loads((tmp_path / "gpu.json").read_text())
    (row,) = found["steps"]
    assert float(row["ms"]) > 0
    assert float(found["trained"]["BPB"]) > 0
    assert found["trained"]["steps"] == 4
    assert (tmp_path / "gpu.md").read_text().count("| study1-byte |") == 2


def test_a_step_of_the_table_that_fails_is_told_and_is_not_the_end(benchmark: Benchmark) -> None:
    job = benchmark("gpu").Job(True)
    assert job.run("good", sys.executable, "-c", "print('x'); print('{\"a\": 1}')") == {"a": 1}
    assert job.run("bad", sys.executable, "-c", "raise SystemExit('no memory')") == {}
    assert job.run("slow", sys.executable, "-c", "import time; time.sleep(60)", limit=0.5) == {}
    assert [bool(step["error"]) for step in job.steps] == [False, True, True]
    assert "no memory" in job.steps[1]["error"]
