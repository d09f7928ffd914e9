"""Windows that share their work against a full forward pass of each: losses token by token, boundaries, BPB."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import TinyRun, good, refused
from conftest import TINY, ModelMaker, scatter, tiny_network
from streams import BYTES, random_tokens, stream_of

from bytegolf.config import (
    ChunkHashConfig,
    HNetConfig,
    ModelConfig,
    NetworkConfig,
    NgramConfig,
    RouterConfig,
    StackConfig,
)
from bytegolf.evaluate import sliding
from bytegolf.evaluate.boundaries import BoundaryStats, collector
from bytegolf.evaluate.modes import with_receptive_field
from bytegolf.evaluate.score import score
from bytegolf.evaluate.sliding import last_losses
from bytegolf.model.embed import BOS
from bytegolf.model.hnet import HNet
from bytegolf.model.lm import LanguageModel
from bytegolf.model.stack import Stack


def stage(layers: int, window: int = 0, dim: int = 32) -> StackConfig:
    return StackConfig(layers, dim, heads=4, kv_heads=2, window=window)


NETWORKS = {
    **{name: tiny_network(name) for name in TINY},
    "local ngrams": tiny_network("flat-local"),
    "no outer blocks": HNetConfig(stage(0), RouterConfig(4.0), stage(3), stage(0)),
    "full outer attention": HNetConfig(stage(2), RouterConfig(4.0), stage(2), stage(3)),
    "local main": HNetConfig(stage(1, 4), RouterConfig(4.0), stage(3, 4, 48), stage(1, 8)),
    "local main, tables": HNetConfig(stage(0), RouterConfig(4.0), stage(2, 4), stage(1, 8), ChunkHashConfig(8, 8)),
    "local main, strides": HNetConfig(stage(1, 4), RouterConfig(4.0, kind="stride"), stage(2, 4), stage(1, 8)),
    "local main, words": HNetConfig(stage(0), RouterConfig(4.0, kind="whitespace"), stage(2, 4), stage(1, 8)),
    "few chunks": HNetConfig(
        stage(1, 8), RouterConfig(4.0, capacity="fixed", capacity_divisor=7.0), stage(2), stage(1, 8)
    ),
}


def model_of(name: str, reset: bool) -> LanguageModel:
    ngrams = NgramConfig(longest=6, bits=8, dim=8) if "tables" in name else NgramConfig()
    model = LanguageModel(ModelConfig(NETWORKS[name], embed_std=0.5, reset_at_bos=reset, ngrams=ngrams))
    scatter(model)
    return model


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("reset", [False, True])
@pytest.mark.parametrize(("length", "stride", "count"), [(96, 8, 7), (96, 40, 3), (96, 1, 5), (20, 6, 4), (96, 95, 1)])
def test_the_losses_are_those_of_full_windows(name: str, reset: bool, length: int, stride: int, count: int) -> None:
    model = model_of(name, reset and name != "few chunks")
    model.precision = torch.float64
    tokens = torch.tensor(random_tokens(length + (count - 1) * stride + 1))
    tokens[tokens == BOS] = torch.where(torch.rand(int((tokens == BOS).sum())) < 0.3, BOS, 7)
    windows = tokens.unfold(0, length + 1, stride)
    assert len(windows) == count
    with torch.no_grad():
        out = model(windows[:, :-1])
        wanted = model.losses(out, windows[:, 1:])[:, -stride:]
    found, shared = last_losses(model, tokens, length, stride)
    # rotary angles are fp32 whatever the precision, and a shared position is turned by others than a window's
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)
    assert len(shared.traces) == len(out.traces)
    for mine, theirs in zip(shared.traces, out.traces, strict=True):
        assert torch.equal(mine.boundary, theirs.boundary)
        assert torch.equal(mine.truncated(), theirs.truncated())
        torch.testing.assert_close(mine.p, theirs.p, rtol=0, atol=1e-5)


def test_an_encoder_runs_once_over_what_windows_share(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 10 windows of 96, at stride 8: 168 shared tokens and 15 of each window's own, instead of 960."""
    model = model_of("one-level", reset=False)
    read: list[int] = []
    inner = model.network.encoder.forward  # type: ignore[union-attr]

    def forward(x: torch.Tensor, *arguments: object) -> torch.Tensor:
        read.append(x.shape[0] * x.shape[1])
        return inner(x, *arguments)  # type: ignore[no-any-return]

    monkeypatch.setattr(model.network.encoder, "forward", forward)
    last_losses(model, torch.tensor(random_tokens(96 + 9 * 8 + 1)), 96, 8)
    assert read == [150, 168]


@pytest.mark.parametrize(
    ("name", "reset", "stride", "alone"),
    [
        ("local main", False, 8, []),
        ("local main", True, 8, []),
        ("local main, tables", False, 8, []),
        ("local main, tables", True, 8, []),
        ("local main, strides", False, 8, []),
        ("local main, strides", False, 6, [5]),  # every other window counts its strides from elsewhere
        ("local main, words", False, 8, [6]),  # a word of 200 letters leaves some windows too few others
    ],
)
def test_a_local_main_network_runs_once(
    name: str, reset: bool, stride: int, alone: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where windows are long enough to hold, behind their first chunks, all that their last ones look at."""
    model = model_of(name, reset)
    model.precision = torch.float64
    text = b"the sea is so big " * 8 + 200 * b"a" + b"to us it is as if " * 10
    tokens = torch.tensor([byte + 4 for byte in text] if "words" in name else random_tokens(600))
    tokens = tokens[: 300 + 9 * stride + 1]
    windows = tokens.unfold(0, 301, stride)
    with torch.no_grad():
        out = model(windows[:, :-1])
        wanted = model.losses(out, windows[:, 1:])[:, -stride:]
    counted = by_window(monkeypatch)
    found, shared = last_losses(model, tokens, 300, stride)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)
    assert counted == [1, *alone], "the stretch as one window, and those that it does not hold"
    assert torch.equal(shared.traces[0].boundary, out.traces[0].boundary)


def by_window(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many windows are going to be worked out at a time, call by call."""
    counted: list[int] = []
    plain = HNet.run

    def count(level: HNet, one: Any) -> Any:
        if isinstance(one, sliding.Windows):
            counted.append(len(one.windows))
        return plain(level, one)

    monkeypatch.setattr(HNet, "run", count)
    return counted


def test_what_smoothing_forgets_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """With few chunks remembered the losses differ: 24 are not more than it takes."""
    model = model_of("one-level", reset=False)
    model.precision = torch.float64
    tokens = torch.tensor(random_tokens(96 + 8 + 1))
    exact, _ = last_losses(model, tokens, 96, 8)
    monkeypatch.setattr(sliding, "FORGOTTEN", 2)
    assert float((last_losses(model, tokens, 96, 8)[0] - exact).abs().max()) > 1e-4


@pytest.mark.parametrize("name", ["flat-local", "one-level", "two-level"])
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_the_score_and_the_boundaries_are_the_same(
    name: str, precision: torch.dtype, make_model: ModelMaker, tmp_path: Path
) -> None:
    """Of windows in batches, the first and the last of which are unlike the others."""
    model = make_model(name)
    model.precision = precision
    stream = stream_of(tmp_path, random_tokens(700))
    stats = BoundaryStats(), BoundaryStats()
    observers = [collector(one, BYTES) if name != "flat-local" else None for one in stats]
    fast, plain = (
        score(model, stream, BYTES, 64, stride=8, batch=11, share=share, observe=observe)
        for share, observe in zip((True, False), observers, strict=True)
    )
    assert (fast.tokens, fast.bytes) == (plain.tokens, plain.bytes) == (699, plain.bytes)
    if precision == torch.float32:
        assert fast.bpb == pytest.approx(plain.bpb, abs=1e-5)
        assert stats[0] == stats[1]
    else:  # these random weights are far less smooth than a trained model's, and a boundary may fall either way
        assert fast.bpb == pytest.approx(plain.bpb, abs=3e-2)


@pytest.mark.parametrize("name", ["flat", "one-level", "two-level"])
def test_a_reach_is_a_window(name: str, tmp_path: Path) -> None:
    """One pass over the text in which attention to everything is local is a model's that was made so."""
    reset = name == "one-level"
    stream = stream_of(tmp_path, random_tokens(400))
    model, local = model_of(name, reset), model_of(name, reset)
    for module in local.modules():
        if isinstance(module, Stack) and not module.config.window:
            module.config = dataclasses.replace(module.config, window=5)
    local = LanguageModel(dataclasses.replace(model.config, network=network_of(local.network)))
    local.load_state_dict(model.state_dict())
    whole = score(model, stream, BYTES, 64).bpb
    with with_receptive_field(model, (5,)):
        found = [score(model, stream, BYTES, 200, stride=stride).bpb for stride in (0, 150)]
    with with_receptive_field(model, ()):
        assert score(model, stream, BYTES, 64).bpb == whole
    wanted = [score(local, stream, BYTES, 200, stride=stride, share=False).bpb for stride in (0, 150)]
    assert found == pytest.approx(wanted, abs=1e-6)
    assert abs(found[0] - whole) > 1e-3


def test_eval_in_one_pass(tiny_run: TinyRun) -> None:
    limited = ("eval", tiny_run.folder, "--limit", 1500)
    found = good(*limited, "--length", 500, "--stride", 300, "--receptive-field", 9, "--json").json
    assert (found["seq_len"], found["stride"], found["receptive_field"], found["tokens"]) == (500, 300, [9], 1500)
    other = good(*limited, "--length", 500, "--stride", 300, "--json").json
    assert other["receptive_field"] == []
    assert other["bpb"] != found["bpb"]
    assert "shorter windows" in refused("eval", tiny_run.folder, "--length", 10**9)


def network_of(network: Stack | HNet) -> NetworkConfig:
    """The configuration of what its stages are now."""
    if isinstance(network, Stack):
        return network.config
    parts = {part: network_of(getattr(network, part)) for part in ("encoder", "main", "decoder")}
    return dataclasses.replace(network.config, **parts)  # type: ignore[arg-type]


def test_no_stride_takes_more_windows_than_fit(make_model: ModelMaker) -> None:
    tokens = torch.tensor(np.array(random_tokens(64 + 1)))
    losses, out = last_losses(make_model("one-level"), tokens, 64, 63)
    assert losses.shape == (1, 63)
    assert out.traces[0].boundary.shape == (1, 64)
