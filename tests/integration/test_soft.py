"""The probe of soft chunking, on models whose boundaries are known; and the verb."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import SUBWORDS, TinyRun, good, refused
from conftest import tiny_network

from bytegolf.analyze.reading import read
from bytegolf.analyze.results import Extremes
from bytegolf.analyze.soft import BINS, extremes, layers, of_texts, probe, shuffled
from bytegolf.artifact.loading import load_own
from bytegolf.config import ModelConfig, SoftConfig
from bytegolf.data.dataset import TokenStream, shard_paths
from bytegolf.data.dataset_writer import ShardWriter
from bytegolf.data.tokenizer import ByteTokenizer
from bytegolf.errors import BytegolfError
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
    model.network.blocks[0].mixer.proj.weight.data.normal_(std=0.2)  # type: ignore[union-attr, index]
    return model


def test_a_constant_b(stream: TokenStream) -> None:
    model = model_with(math.log(0.3 / 0.7), layers=2)
    found = probe(model, stream, ByteTokenizer(), 64, limit=512)
    assert found.tokens == found.bytes == 512
    assert model.soft is not None
    for layer in found.layers:
        assert layer.mean == pytest.approx(0.3)
        assert layer.std == pytest.approx(0, abs=1e-6)
        assert set(np.round(list(layer.quantiles.values()), 5)) == {0.3}
        assert len(layer.histogram) == BINS
        assert sum(layer.histogram) == pytest.approx(1)
        assert sum(layer.histogram[5:7]) == pytest.approx(1)
        assert layer.below_half == 1.0
        assert layer.boundaries.boundaries == 0
    assert found.bpb.shuffled == pytest.approx(found.bpb.as_is, rel=1e-6)
    assert abs(found.bpb.open - found.bpb.as_is) > 1e-4
    assert abs(found.bpb.closed - found.bpb.as_is) > 1e-4
    # ‖W(blended − x)‖ / ‖W·x‖ with blended − x = 0.7·(x_{t−1} − x_t), in the first layer
    ids = torch.from_numpy(stream.slice(0, 512).astype(np.int64)).view(8, 64)
    with torch.no_grad():
        x = model.look_up(ids)
        weight = model.soft.stack[0].chunk_mixer.weight  # type: ignore[union-attr]
        moved, whole = 0.7 * (x[:, :-1] - x[:, 1:]) @ weight.T, x[:, 1:] @ weight.T
    assert found.layers[0].from_identity == pytest.approx(float(moved.norm() / whole.norm()), rel=1e-4)


def test_the_identity(stream: TokenStream) -> None:
    found = probe(model_with(50.0), stream, ByteTokenizer(), 64, limit=512)
    (layer,) = found.layers
    assert layer.from_identity < 1e-6  # type: ignore[operator]
    assert layer.histogram[-1] == 1.0
    assert found.bpb.open == found.bpb.as_is


def test_boundaries_at_spaces(stream: TokenStream) -> None:
    model = model_with(0.0)
    assert model.soft is not None
    with torch.no_grad():  # b is high at spaces and low elsewhere
        vectors = model.look_up(torch.tensor([[4 + ord(" "), 4 + ord("a"), 1]]))[0]
        own = torch.linalg.pinv(vectors) @ torch.tensor([6.0, -6.0, 0.0])
        model.soft.stack[0].boundary_proj.weight[0, 32:] = own
    found = probe(model, stream, ByteTokenizer(), 64)
    (layer,) = found.layers
    share = TEXT.count(" ") / len(TEXT)
    assert layer.whitespace.highest == 1.0
    assert layer.whitespace.all == pytest.approx(2 * share, abs=0.02), "a space, or behind one"
    assert layer.whitespace.lowest < 0.4  # type: ignore[operator]
    assert layer.boundaries.rate == pytest.approx(share, abs=0.02)
    assert layer.boundaries.whitespace_agreement == 1.0
    assert layer.below_half == pytest.approx(1 - share, abs=0.02)
    assert abs(found.bpb.shuffled - found.bpb.as_is) > 1e-4


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
    assert "b = 1 everywhere" in ran.err
    from_file = good("probe", run / "artifact.bgolf", "--data", tiny_data, "--limit", "1000", "--json").json
    assert from_file == {**ran.json, "history": []}
    assert "no soft chunking to probe" in refused("probe", flat_run.folder, "--data", tiny_data)


def test_a_reading_begins_chunks_where_b_reaches_the_threshold(soft_run: TinyRun) -> None:
    one = load_own(soft_run.folder, precision="fp32")
    length = one.config.train.seq_len
    ids = np.concatenate(([ByteTokenizer.BOS], ByteTokenizer().encode(TEXT))).astype(np.int64)[: 2 * length]
    with torch.no_grad():
        (trace,) = one.model.embed_traced(torch.from_numpy(ids).view(2, length))[1]
    b = trace.b.flatten().numpy()[1:]
    middle = float(np.median(b))
    (level,) = read(one.model, one.tokenizer, ids, length, threshold=middle).levels
    np.testing.assert_allclose(level.p, b, rtol=1e-6)
    assert np.array_equal(level.boundary[1:], (b >= middle)[1:])
    assert level.candidates.sum() == 2 * length - 3, "not BOS, the byte behind it, and the second window's first"
    assert 0 < level.chosen.sum() < level.candidates.sum()


def test_texts_one_behind_the_other_are_read_as_one(soft_run: TinyRun, stream: TokenStream) -> None:
    one = load_own(soft_run.folder, precision="fp32")
    ids = stream.slice(0, 512).astype(np.int64)
    whole = layers(one.model, one.tokenizer, of_texts([ids], 128))
    halves = layers(one.model, one.tokenizer, of_texts([ids[:256], ids[256:]], 128))
    assert halves == whole
    ragged = layers(one.model, one.tokenizer, of_texts([ids[:200], ids[200:201]], 128))
    assert ragged[0].boundaries.bytes == 200, "a text of one token has no free position"
    with pytest.raises(BytegolfError, match="so short that no b"):
        layers(one.model, one.tokenizer, of_texts([ids[:1]], 128))


def test_extremes_of_b() -> None:
    b, having = np.linspace(0, 1, 40, dtype=np.float32), np.zeros(40, np.bool_)
    having[-3:] = having[0] = True
    assert extremes(b, having) == Extremes(all=0.1, lowest=0.25, highest=0.75)
    assert extremes(b[:0], having[:0]) == Extremes(None, None, None)


def test_analyze_tells_of_soft_chunking(soft_run: TinyRun, tiny_run: TinyRun, tmp_path: Path) -> None:
    page, rest = tmp_path / "page.html", ("--data", soft_run.data, "--limit", 1024, "--json")
    ran = good("analyze", soft_run.folder, tiny_run.folder, "--bpe", SUBWORDS, "--history", "--html", page, *rest)
    soft, hnet = ran.json["models"]
    assert (soft["chunking"], hnet["chunking"], hnet["soft"]) == ("soft", "router", None)
    assert soft["soft"]["bpb"]["as_is"] == soft["bpb"]
    assert len({round(value, 9) for value in soft["soft"]["bpb"].values()}) == 4
    (layer,), (level,) = soft["soft"]["layers"], soft["levels"]
    assert layer["boundaries"]["boundaries"] == pytest.approx(level["boundaries"], abs=1), "the byte behind BOS"
    assert set(layer["bpe"]) == set(layer["whitespace"]) == {"all", "lowest", "highest"}
    assert [point["what"] for point in soft["history"]] == ["untrained", "step 10", "artifact"]
    assert all(0 < point["b"] < 1 for point in soft["history"])
    assert all(point["b"] is None for point in hnet["history"])
    assert "Soft chunking cuts nothing: where its b is 0.5 or more" in ran.json["note"]
    assert "b = 0 everywhere" in ran.err
    assert "b = 0 everywhere" in page.read_text()
    for title in (f"{soft_run.folder.name}, untrained: ", f"{soft_run.folder.name}, artifact: "):
        assert title in page.read_text(), "two sentences side by side"


def test_the_threshold(soft_run: TinyRun, tiny_run: TinyRun, flat_run: TinyRun) -> None:
    rest = ("--data", soft_run.data, "--limit", 512, "--json")
    rates = [
        good("analyze", soft_run.folder, *rest, "--threshold", value).json["models"][0]["levels"][0]["rate"]
        for value in (0, 1)
    ]
    assert rates == [1.0, 0.0]
    assert "which no model here has" in refused("analyze", tiny_run.folder, flat_run.folder, "--threshold", 0.6)
    assert "--threshold" in refused("analyze", soft_run.folder, "--threshold", 1.5)
    cut = good("segment", soft_run.folder, "The quick brown fox", "--json").json
    assert "".join(cut["chunks"]) == "The quick brown fox"
    assert "levels 0 to 0, not 1" in refused("segment", soft_run.folder, "--level", 1)
