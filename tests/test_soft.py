"""The probe of soft chunking, on models whose boundaries are known; and the verb."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import TinyRun, good, refused
from conftest import tiny_network

from bytegolf.analyze.soft import BINS, probe, shuffled
from bytegolf.config import ModelConfig, SoftConfig
from bytegolf.data.shards import ShardWriter, TokenStream, shard_paths
from bytegolf.data.tokenizer import ByteTokenizer
from bytegolf.model.lm import LanguageModel

TEXT = "aaa aaaaaa aaaa " * 60  # a space is a fifth of it, less the first of a word


@pytest.fixture
def stream(tmp_path: Path) -> TokenStream:
    with ShardWriter(tmp_path, "val") as writer:
        writer.write(np.array([ByteTokenizer.BOS, *ByteTokenizer().encode(TEXT)], dtype=np.uint16))
    return TokenStream(shard_paths(tmp_path, "val"), 260)


def model_with(bias: float, layers: int = 1) -> LanguageModel:
    """b is σ(bias) everywhere."""
    model = LanguageModel(ModelConfig(tiny_network("flat"), embed_std=0.5, soft=SoftConfig(layers=layers))).eval()
    assert model.soft is not None
    for layer in model.soft.stack:
        layer.boundary_proj.weight.data.zero_()
        layer.boundary_bias.data.fill_(bias)
    model.network.blocks[0].attn.proj.weight.data.normal_(std=0.2)  # type: ignore[union-attr, index]
    return model


def test_a_constant_b(stream: TokenStream) -> None:
    model = model_with(math.log(0.3 / 0.7), layers=2)
    found = probe(model, stream, ByteTokenizer(), 64, limit=512)
    assert found["tokens"] == found["bytes"] == 512
    assert model.soft is not None
    for layer in found["layers"]:
        assert layer["mean"] == pytest.approx(0.3)
        assert layer["std"] == pytest.approx(0, abs=1e-6)
        assert set(np.round(list(layer["quantiles"].values()), 5)) == {0.3}
        assert len(layer["histogram"]) == BINS
        assert sum(layer["histogram"]) == pytest.approx(1)
        assert sum(layer["histogram"][5:7]) == pytest.approx(1)
        assert layer["below_half"] == 1.0
        assert layer["boundaries"]["boundaries"] == 0
    assert found["bpb"]["shuffled"] == pytest.approx(found["bpb"]["as_is"], rel=1e-6)
    assert abs(found["bpb"]["open"] - found["bpb"]["as_is"]) > 1e-4
    assert abs(found["bpb"]["closed"] - found["bpb"]["as_is"]) > 1e-4
    # ‖W(blended − x)‖ / ‖W·x‖ with blended − x = 0.7·(x_{t−1} − x_t), in the first layer
    ids = torch.from_numpy(stream.slice(0, 512).astype(np.int64)).view(8, 64)
    with torch.no_grad():
        x = model.look_up(ids)
        weight = model.soft.stack[0].chunk_mixer.weight  # type: ignore[union-attr]
        moved, whole = 0.7 * (x[:, :-1] - x[:, 1:]) @ weight.T, x[:, 1:] @ weight.T
    assert found["layers"][0]["from_identity"] == pytest.approx(float(moved.norm() / whole.norm()), rel=1e-4)


def test_the_identity(stream: TokenStream) -> None:
    found = probe(model_with(50.0), stream, ByteTokenizer(), 64, limit=512)
    (layer,) = found["layers"]
    assert layer["from_identity"] < 1e-6
    assert layer["histogram"][-1] == 1.0
    assert found["bpb"]["open"] == found["bpb"]["as_is"]


def test_boundaries_at_spaces(stream: TokenStream) -> None:
    model = model_with(0.0)
    assert model.soft is not None
    with torch.no_grad():  # b is high at spaces and low elsewhere
        vectors = model.look_up(torch.tensor([[4 + ord(" "), 4 + ord("a"), 1]]))[0]
        own = torch.linalg.pinv(vectors) @ torch.tensor([6.0, -6.0, 0.0])
        model.soft.stack[0].boundary_proj.weight[0, 32:] = own
    found = probe(model, stream, ByteTokenizer(), 64)
    (layer,) = found["layers"]
    share = TEXT.count(" ") / len(TEXT)
    assert layer["whitespace"]["highest"] == 1.0
    assert layer["whitespace"]["all"] == pytest.approx(2 * share, abs=0.02), "a space, or behind one"
    assert layer["whitespace"]["lowest"] < 0.4
    assert layer["boundaries"]["rate"] == pytest.approx(share, abs=0.02)
    assert layer["boundaries"]["whitespace_agreement"] == 1.0
    assert layer["below_half"] == pytest.approx(1 - share, abs=0.02)
    assert abs(found["bpb"]["shuffled"] - found["bpb"]["as_is"]) > 1e-4


def test_shuffling_moves_within_a_window() -> None:
    b, forced = torch.rand(3, 50), torch.zeros(3, 50, dtype=torch.bool)
    forced[:, [0, 20]] = True
    override = shuffled()
    one, other = override(b, forced), override(b, forced)
    assert not torch.equal(one, b)
    assert not torch.equal(one, other)
    assert torch.equal(one.sort(1).values, b.sort(1).values)
    assert torch.equal(one[forced], b[forced])
    assert torch.equal(shuffled()(b, forced), one)


def test_the_verb(tiny_data: Path, soft_run: TinyRun, flat_run: TinyRun) -> None:
    run = soft_run.folder
    ran = good("probe", run, "--data", tiny_data, "--limit", "1000", "--json")
    assert ran.json.keys() == {"tokens", "bytes", "bpb", "layers", "history"}
    assert [row["step"] for row in ran.json["history"]] == [2, 4, 6, 8, 10]
    assert "with b = 1 everywhere" in ran.out
    from_file = good("probe", run / "artifact.bgolf", "--data", tiny_data, "--limit", "1000", "--json").json
    assert from_file == {**ran.json, "history": []}
    assert "no soft chunking to probe" in refused("probe", flat_run.folder, "--data", tiny_data)
