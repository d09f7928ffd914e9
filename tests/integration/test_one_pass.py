"""One pass over a text in place of sliding windows: what it reads, how far attention sees, and what it is worth."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from commands import TinyRun, good, refused
from conftest import ModelMaker
from streams import BYTES, random_tokens, stream_of
from test_sliding import model_of

from bytegolf.errors import BytegolfError
from bytegolf.evaluate.modes import one_pass, with_receptive_field
from bytegolf.evaluate.score import score
from bytegolf.model.stack import Stack

NAMES = ["flat", "one-level", "two-level", "full outer attention"]


@pytest.mark.parametrize("name", NAMES)
def test_the_receptive_field_is_the_mean_number_of_positions_at_each_depth(name: str, tmp_path: Path) -> None:
    """Against a count, by forward passes one by one, over all 45 windows (fewer than are sampled)."""
    model = model_of(name, reset=False).eval()
    tokens = random_tokens(100)
    stream = stream_of(tmp_path, tokens)
    found = one_pass(model, stream, 64, 16)
    assert (found.stands_for, found.length, found.receptive_field[0]) == ((64, 16), 99, 56)
    with torch.no_grad():
        counts = [
            [int(trace.boundary.sum()) for trace in model(torch.tensor([tokens[at : at + 56]])).traces]
            for at in range(100 - 56 + 1)
        ]
    assert found.receptive_field[1:] == tuple(round(mean) for mean in np.mean(counts, 0).tolist() if counts[0])
    assert all(outer > inner for outer, inner in zip(found.receptive_field, found.receptive_field[1:], strict=False))


def test_what_is_read_at_a_time(make_model: ModelMaker, tmp_path: Path) -> None:
    """Sixteen windows, two of them again as context; never more than there is, or than is asked for."""
    model, stream = make_model("flat"), stream_of(tmp_path, random_tokens(3000))
    found = one_pass(model, stream, 64, 8)
    assert (found.length, found.stride) == (1024, 896)
    assert [one_pass(model, stream, 64, 8, limit).length for limit in (1, 500, 5000)] == [64, 500, 1024]
    short = one_pass(model, stream, 2990, 100)
    assert (short.length, short.stride) == (2999, 100)
    with pytest.raises(BytegolfError, match="2999 tokens to score, fewer than one sequence of 3000"):
        one_pass(model, stream, 3000, 100)


@pytest.mark.parametrize("name", NAMES)
def test_each_depth_has_its_own_receptive_field(name: str) -> None:
    model = model_of(name, reset=False)
    stages = [stage for stage in model.modules() if isinstance(stage, Stack)]
    before = [stage.config.window for stage in stages]
    depths = 1 + len(model.levels())
    sizes = tuple(range(30, 30 + depths))
    with with_receptive_field(model, sizes):
        levels = model.levels()
        innermost = levels[-1].main if levels else model.network
        assert isinstance(innermost, Stack)
        assert innermost.config.window == sizes[-1]
        for depth, level in enumerate(levels):
            for stage in (level.encoder, level.decoder):
                assert stage.config.window == (before[stages.index(stage)] or sizes[depth])
    with with_receptive_field(model, (9,)):
        assert {stage.config.window for stage in stages} <= {9, *before} - {0}
    assert [stage.config.window for stage in stages] == before
    wrong = with_receptive_field(model, (*sizes, 5))
    with pytest.raises(BytegolfError, match=f"a receptive field of {depths + 1} numbers for {depths} networks"), wrong:
        pass


@pytest.mark.parametrize("name", NAMES)
def test_no_target_is_scored_twice_and_none_sees_what_comes_later(name: str, tmp_path: Path) -> None:
    model = model_of(name, reset=False)
    tokens = random_tokens(2500)
    changed = [*tokens[:1700], *((token + 1) % 256 for token in tokens[1700:])]
    (tmp_path / "other").mkdir()
    streams = stream_of(tmp_path, tokens), stream_of(tmp_path / "other", changed)
    plan = one_pass(model, streams[0], 64, 8)
    booked: tuple[list[float], list[float]] = [], []
    with with_receptive_field(model, plan.receptive_field):
        for stream, losses in zip(streams, booked, strict=True):
            score(
                model,
                stream,
                BYTES,
                plan.length,
                stride=plan.stride,
                book=lambda _, nats, size, losses=losses: losses.extend(nats),  # type: ignore[misc]
            )
    assert len(booked[0]) == len(booked[1]) == 2499
    assert booked[0][:1699] == pytest.approx(booked[1][:1699], abs=1e-5)
    assert abs(booked[0][1699] - booked[1][1699]) > 1e-3


def test_eval_with_one_pass(tiny_run: TinyRun) -> None:
    """A trained model: what its windows give, nearly; chunks that it has are counted; the table says what was done."""
    windows = good("eval", tiny_run.folder, "--stride", 16, "--json").json
    told = good("eval", tiny_run.folder, "--stride", 16, "--one-pass", "--json")
    found = told.json
    size = windows["seq_len"]
    assert found["one_pass"] == {"seq_len": size, "stride": 16}
    assert windows["one_pass"] is None
    assert found["tokens"] == windows["tokens"]
    assert found["bytes"] == windows["bytes"]
    assert found["bpb"] == pytest.approx(windows["bpb"], abs=0.01)
    assert found["bpb"] != windows["bpb"]
    outer, inner = found["receptive_field"]
    assert 1 <= inner < outer == size - 8
    shown = good("eval", tiny_run.folder, "--stride", 16, "--one-pass", "--limit", 500)
    assert f"in one pass that stands for windows of {size}, stride 16" in shown.out


def test_what_one_pass_refuses(tiny_run: TinyRun) -> None:
    folder = tiny_run.folder
    assert "leave those two options out" in refused(
        "eval", folder, "--stride", 16, "--one-pass", "--receptive-field", 9
    )
    assert "(--stride of eval)" in refused("eval", folder, "--one-pass")
    assert "cannot learn on its way" in refused("eval", folder, "--stride", 16, "--one-pass", "--ttt", "sgd")
    fixed = ("--capacity", "fixed", "--capacity-divisor", 4)
    assert "choose exact" in refused("eval", folder, "--stride", 16, "--one-pass", *fixed)
