"""The public API: what `bytegolf.load` and `bytegolf.train` give is what the command line prints."""

from __future__ import annotations

import inspect
import math
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import TinyRun, good
from conftest import shapes_unchecked

import bytegolf
from bytegolf.api.model import Model

TEXT = "The quick brown fox. Naïve café!"


@pytest.fixture(scope="module")
def model(tiny_run: TinyRun) -> Model:
    return bytegolf.load(str(tiny_run.folder), precision="fp32")


def test_importing_the_package_loads_neither_torch_nor_numpy() -> None:
    code = "import sys, bytegolf; print(sorted({'torch', 'numpy', 'rich'} & set(sys.modules)), dir(bytegolf)[-1])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split()[0] == "[]"


def test_every_public_name_is_there_and_documented() -> None:
    for name in bytegolf.__all__:
        value = getattr(bytegolf, name)
        assert isinstance(value, str) or inspect.getdoc(value), name
    for name, member in inspect.getmembers(Model):
        if not name.startswith("_"):
            assert inspect.getdoc(member), name
    with pytest.raises(AttributeError, match="has no attribute 'lod'"):
        bytegolf.lod  # noqa: B018
    assert set(bytegolf.__all__) <= set(dir(bytegolf))


def test_logits_are_the_distributions_that_are_scored(model: Model) -> None:
    ids = [[model.tokenizer.BOS, *model.tokenizer.encode(TEXT).tolist()]]
    logits = model.logits(ids)
    assert logits.shape == (1, len(ids[0]), 260)
    assert logits.dtype == torch.float32
    assert float(logits.abs().max()) < model.config.model.softcap, "they are capped"
    losses = -torch.log_softmax(logits[0, :-1], -1).gather(1, torch.tensor(ids[0][1:]).unsqueeze(1))
    assert float(losses.sum()) == pytest.approx(model.score(TEXT).nats, rel=1e-5)


def test_log_probs_are_of_each_byte_before_it(model: Model) -> None:
    data = TEXT.encode()
    found = model.log_probs(TEXT)
    assert found.shape == (len(data), 256)
    assert (np.exp(found).sum(1) <= 1 + 1e-5).all()
    spent = -sum(float(found[at, value]) for at, value in enumerate(data))
    score = model.score(TEXT)
    assert spent == pytest.approx(score.nats, rel=1e-5)
    assert (score.bytes, score.tokens) == (len(data), len(data))
    assert score.bpb == pytest.approx(spent / math.log(2) / len(data), rel=1e-5)
    assert np.array_equal(found, model.log_probs(data)), "bytes and str are the same text"


def test_a_mixed_score_learns_from_the_text(model: Model) -> None:
    text = TEXT * 6
    plain, mixed = model.score(text), model.score(text, mix=True)
    assert mixed.bytes == mixed.tokens == plain.bytes
    assert mixed.bpb < 0.8 * plain.bpb
    first = model.score(TEXT[:1])
    assert model.score(TEXT[:1], mix=True).nats == pytest.approx(first.nats, abs=0.3), "weights begin near the model's"


def test_a_text_longer_than_a_window_is_scored_whole(model: Model) -> None:
    text = TEXT * 20
    assert len(text) > model.config.train.seq_len
    assert len(model.log_probs(text)) == model.score(text).bytes == len(text.encode())


def test_subwords_have_a_row_per_token(subword_run: TinyRun) -> None:
    model = bytegolf.load(subword_run.folder, data=subword_run.data)
    tokens = model.tokenizer.encode(TEXT).tolist()
    found = model.log_probs(TEXT)
    assert found.shape == (len(tokens), model.tokenizer.vocab_size)
    spent = -sum(float(found[at, token]) for at, token in enumerate(tokens))
    assert spent == pytest.approx(model.score(TEXT).nats, rel=1e-4)
    with pytest.raises(bytegolf.BytegolfError, match="UTF-8"):
        model.score(b"\xff\xfe")
    with pytest.raises(bytegolf.BytegolfError, match="byte260"):
        model.compress(TEXT)


def test_chunks_are_those_of_the_command_line(model: Model, tiny_run: TinyRun) -> None:
    with shapes_unchecked(), pytest.raises(bytegolf.BytegolfError, match="not int"):
        model.chunks(5)  # type: ignore[call-overload]  # bytes(5) would be five zeros
    told = good("segment", tiny_run.folder, TEXT, "--json").json
    assert model.boundaries(TEXT) == told["boundaries"]
    assert model.chunks(TEXT) == told["chunks"]
    assert model.levels == 1
    pieces = model.chunks(TEXT.encode())
    assert b"".join(pieces) == TEXT.encode()
    assert model.chunks(TEXT, 0) == model.chunks(TEXT)
    with pytest.raises(bytegolf.BytegolfError, match="levels 0 to 0, not 1"):
        model.chunks(TEXT, 1)
    with pytest.raises(bytegolf.BytegolfError, match="empty"):
        model.chunks("")


def test_inner_levels_have_chunks_of_their_own(two_level_run: TinyRun) -> None:
    model = bytegolf.load(two_level_run.folder)
    outer, inner = set(model.boundaries(TEXT, 0)), set(model.boundaries(TEXT, 1))
    assert inner <= outer


def test_generation_is_that_of_the_command_line(model: Model, tiny_run: TinyRun) -> None:
    told = good("sample", tiny_run.folder, "The", "--bytes", 30, "--seed", 3, "--json").json
    text = model.generate("The", 30, seed=3)
    assert text == told["samples"][0]["text"]
    assert "".join(model.generate("The", 30, seed=3, stream=True)) == text
    assert model.generate("The", 30, temperature=0) == model.generate("The", 30, temperature=0, seed=9)
    with pytest.raises(bytegolf.BytegolfError, match="temperature"):
        model.generate("The", temperature=-1, stream=True)


def test_a_fixed_capacity_stays_as_it_is_while_text_is_written(tiny_run: TinyRun) -> None:
    model = bytegolf.load(tiny_run.folder)
    model.module.set_capacity("fixed", 4.0)
    before = model.score(TEXT)
    pieces = model.generate("The", 20, stream=True)
    next(iter(pieces))
    assert model.score(TEXT) == before
    assert len("".join(pieces)) > 0


def test_what_was_compressed_comes_back(model: Model) -> None:
    for data in (b"", b"x", TEXT.encode() * 3, bytes(range(256))):
        packed = model.compress(data)
        assert model.decompress(packed) == data
        assert len(packed) <= len(data) + 200
    with pytest.raises(bytegolf.BytegolfError):
        model.decompress(b"no such thing")


def test_evaluate_is_eval(model: Model, tiny_run: TinyRun) -> None:
    told = good("eval", tiny_run.folder, "--stride", 32, "--limit", 512, "--precision", "fp32", "--json").json
    found = model.evaluate(tiny_run.data, model.mode(stride=32), limit=512)
    assert (found.bpb, found.stride, found.tokens, found.subset) == (told["bpb"], 32, told["tokens"], True)
    assert found.boundaries
    assert found.boundaries.chunks == told["boundaries"]["chunks"]


def test_saving_what_was_loaded_is_the_very_file(model: Model, tmp_path: Path) -> None:
    path = model.save(tmp_path / "copy.bgolf")
    assert path.read_bytes() == model.path.read_bytes()
    again = bytegolf.load(path)
    assert (again.sha256, again.name, again.parameters) == (model.sha256, model.name, model.parameters)


def test_changed_weights_are_quantised_anew(tiny_run: TinyRun, tmp_path: Path) -> None:
    model = bytegolf.load(tiny_run.folder)
    with torch.no_grad():
        model.module.embedding.weight *= 1.5
    again = bytegolf.load(model.save(tmp_path / "other.bgolf"))
    assert again.sha256 != model.sha256
    torch.testing.assert_close(again.module.embedding.weight, model.module.embedding.weight, rtol=0.1, atol=0.01)


def test_a_subword_model_is_saved_with_its_tokenizer(subword_run: TinyRun, tmp_path: Path) -> None:
    model = bytegolf.load(subword_run.folder)
    path = model.save(tmp_path / "elsewhere" / "copy.bgolf")
    assert bytegolf.load(path).score(TEXT).nats == model.score(TEXT).nats


def test_training_gives_a_run(tiny_run: TinyRun, tmp_path: Path) -> None:
    """The configuration of a run, trained again from Python, comes to the same artifact."""
    config = bytegolf.Config.load(tiny_run.folder / "config.toml")
    run = bytegolf.train(config, tiny_run.data, tmp_path / "run", quiet=True)
    assert run.summary
    assert run.summary.bpb == tiny_run.ran.json["bpb"]
    assert run.config.train == config.train
    assert run.load().chunks(TEXT) == bytegolf.load(tiny_run.folder).chunks(TEXT)
    losses = [row["loss"] for row in run.metrics() if row["kind"] == "train"]
    assert losses[-1] < losses[0]
    with pytest.raises(bytegolf.BytegolfError, match="already holds a run"):
        bytegolf.train(config, tiny_run.data, tmp_path / "run", quiet=True)


def test_what_cannot_be_loaded_is_said(tiny_run: TinyRun, tmp_path: Path) -> None:
    with pytest.raises(bytegolf.BytegolfError, match="no such file"):
        bytegolf.load(tmp_path / "nothing.bgolf")
    shutil.copyfile(tiny_run.folder / "config.toml", tmp_path / "config.toml")
    with pytest.raises(bytegolf.BytegolfError, match="no artifact yet"):
        bytegolf.load(tmp_path)
    with pytest.raises(bytegolf.BytegolfError, match="from 0 to 259"):
        bytegolf.load(tiny_run.folder).logits([[1, 260]])
    with pytest.raises(bytegolf.BytegolfError, match="dimensions"):
        bytegolf.load(tiny_run.folder).logits(torch.tensor([1, 2]))
