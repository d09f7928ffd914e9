"""Bits per byte: by hand on known models, window by window, and for every way that it can go wrong."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ModelMaker
from numpy.typing import NDArray
from streams import BYTES, random_tokens, stream_of
from test_tokenizer import made_up_documents

from bytegolf.bpb import Score, bits_per_byte
from bytegolf.data.specs import parse_tokenizer, train_sentencepiece
from bytegolf.errors import BytegolfError
from bytegolf.evaluate.score import Window, score, windows
from bytegolf.model.lm import Forward, LanguageModel


def uniform(model: LanguageModel) -> LanguageModel:
    """The model with an embedding of zeros: all logits are 0, so every token costs log V."""
    torch.nn.init.zeros_(model.embedding.weight)
    return model


def test_by_hand() -> None:
    assert bits_per_byte(math.log(2) * 12, 8) == 1.5
    total = Score(math.log(2) * 3, 2, 1) + Score(math.log(2) * 5, 2, 3)
    assert (total.tokens, total.bytes) == (4, 4)
    assert total.bpb == pytest.approx(2.0, rel=1e-15)
    assert total.val_loss == pytest.approx(2 * math.log(2), rel=1e-15)
    with pytest.raises(BytegolfError, match="no bytes"):
        bits_per_byte(1.0, 0)


@pytest.mark.parametrize("network", ["flat", "one-level"])
def test_a_uniform_model_costs_the_log_of_the_alphabet_and_specials_are_no_bytes(
    network: str, make_model: ModelMaker, tmp_path: Path
) -> None:
    tokens = random_tokens(16 * 5 + 1)
    stream = stream_of(tmp_path, tokens)
    result = score(uniform(make_model(network)), stream, BYTES, 16)
    specials = sum(token < 4 for token in tokens[1:])
    assert specials == 6
    assert result.tokens == 80
    assert result.bytes == 80 - specials
    assert result.val_loss == pytest.approx(math.log(260), rel=1e-6)
    assert result.bpb == pytest.approx(80 * math.log2(260) / (80 - specials), rel=1e-6)


def test_sentencepiece_bytes_are_those_of_the_text(make_model: ModelMaker, tmp_path: Path) -> None:
    """The tokens of whole documents stand for the documents' own bytes, so BPB is over them."""
    spec = parse_tokenizer("sp360-identity")
    tokenizer = train_sentencepiece(iter(made_up_documents()), spec, tmp_path / "tiny", threads=1)
    texts = made_up_documents()[:3]
    tokens = [part for text in texts for part in (tokenizer.BOS, *tokenizer.encode(text).tolist())]
    stream = stream_of(tmp_path, tokens, tokenizer.vocab_size)
    # a byte model's alphabet has room for the ids up to 259 only, so widen the embedding
    model = make_model("flat")
    model.embedding = torch.nn.Embedding(tokenizer.vocab_size, model.embedding.embedding_dim)
    result = score(uniform(model), stream, tokenizer, 32, stride=32)
    assert result.tokens == len(tokens) - 1
    assert result.bytes == sum(len(text.encode()) for text in texts)
    assert result.val_loss == pytest.approx(math.log(tokenizer.vocab_size), rel=1e-6)


@torch.no_grad()
def by_the_window(model: LanguageModel, tokens: list[int], plan: list[Window]) -> list[float]:
    """The loss of each target, from a forward pass of each window by itself."""
    found = []
    for window in plan:
        ids = torch.tensor([tokens[window.start : window.start + window.length + 1]])
        z = model.cap(model(ids[:, :-1]).logits[0]).double()
        loss = torch.logsumexp(z, -1) - z.gather(1, ids[0, 1:, None])[:, 0]
        found += loss[window.length - window.scored :].tolist()
    return found


@pytest.mark.parametrize("network", ["flat-local", "two-level"])
@pytest.mark.parametrize("stride", [0, 1, 5, 16])
@pytest.mark.parametrize("share", [False, True])
def test_each_target_has_the_loss_of_its_own_window(
    network: str, stride: int, share: bool, make_model: ModelMaker, tmp_path: Path
) -> None:
    model = make_model(network)
    tokens = random_tokens(16 * 3 + 8)
    nats: list[float] = []

    def book(window: Window, found: NDArray[np.float64], sizes: NDArray[np.int64]) -> None:
        nats.extend(found.tolist())

    result = score(model, stream_of(tmp_path, tokens), BYTES, 16, stride=stride, batch=3, share=share, book=book)
    expected = by_the_window(model, tokens, list(windows(len(tokens) - 1, 16, stride)))
    assert result.tokens == len(expected) == len(tokens) - 1
    assert nats == pytest.approx(expected, rel=1e-4, abs=1e-5)
    assert result.nats == pytest.approx(math.fsum(expected), rel=1e-6)


def test_the_batch_does_not_change_the_score(make_model: ModelMaker, tmp_path: Path) -> None:
    model, stream = make_model("one-level"), stream_of(tmp_path, random_tokens(200))
    results = [score(model, stream, BYTES, 16, stride=8, batch=batch) for batch in (0, 1, 2, 7, 64)]
    for result in results[1:]:
        assert (result.tokens, result.bytes) == (results[0].tokens, results[0].bytes)
        assert result.nats == pytest.approx(results[0].nats, rel=1e-6)


def test_sums_are_in_float64(make_model: ModelMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Losses whose sum fp32 cannot hold: 2²⁴ and then ones."""
    model, stream = make_model("flat"), stream_of(tmp_path, random_tokens(33))

    def losses(out: Forward, targets: torch.Tensor) -> torch.Tensor:
        values = torch.ones(targets.shape)
        values[0, 0] = 2.0**24
        return values

    monkeypatch.setattr(model, "losses", losses)
    assert score(model, stream, BYTES, 16, batch=1).nats == 2 * (2.0**24 + 15)


def test_limit_progress_and_the_model_is_left_as_it_was(make_model: ModelMaker, tmp_path: Path) -> None:
    model, stream = make_model("flat").train(), stream_of(tmp_path, random_tokens(100))
    seen: list[int] = []
    result = score(model, stream, BYTES, 16, batch=2, limit=70, progress=lambda total: seen.append(total.tokens))
    assert result.tokens == 70
    assert seen == [32, 64, 70]
    assert model.training
    whole = score(model, stream, BYTES, 16)
    assert score(model, stream, BYTES, 16, limit=10_000) == whole
    assert score(model, stream, BYTES, 16, limit=1).tokens == 16  # never less than a window
    assert score(model, stream, BYTES, 16, drop_tail=True).tokens == 96


def test_what_cannot_be_scored_is_said(make_model: ModelMaker, tmp_path: Path) -> None:
    model, short = make_model("flat"), stream_of(tmp_path / "a", random_tokens(16))
    with pytest.raises(BytegolfError, match="15 tokens to score, fewer than one sequence of 16"):
        score(model, short, BYTES, 16)
    stream = stream_of(tmp_path / "b", random_tokens(50))
    with pytest.raises(BytegolfError, match="batches of -1"):
        score(model, stream, BYTES, 16, batch=-1)
    model.train()
    torch.nn.init.constant_(model.embedding.weight, math.nan)
    with pytest.raises(BytegolfError, match="not finite in the window at token 0"):
        score(model, stream, BYTES, 16)
    assert model.training
