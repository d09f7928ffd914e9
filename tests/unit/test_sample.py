"""Sampling: the draw itself, and sequences sampled together that come out as if sampled alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from conftest import TINY, ModelMaker, shapes_unchecked

from bytegolf.data.tokenizer import ByteTokenizer
from bytegolf.infer.sample import choose, generate
from bytegolf.model.lm import LanguageModel

BYTES = ByteTokenizer()
PROMPTS = ["The quick brown fox", "", "é漢🙂", "a", "She said: Natural language processing has made progress"]


def texts(model: LanguageModel, prompts: list[str], seeds: list[int], **settings: Any) -> list[bytes]:
    found = [b""] * len(prompts)
    with shapes_unchecked():
        for row, piece in generate(model, BYTES, prompts, seeds, size=24, **settings):
            found[row] += piece
    return found


@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize("reset", [False, True])
def test_a_sample_does_not_depend_on_those_beside_it(name: str, reset: bool, make_model: ModelMaker) -> None:
    model = make_model(name, reset)
    with torch.no_grad():
        model.embedding.weight[BYTES.EOS] *= 1.5  # some end early, and the others go on without them
    model.precision = torch.float64
    prompts, seeds = PROMPTS, list(range(5))
    together = texts(model, prompts, seeds, temperature=1.5)
    assert together == [texts(model, [p], [s], temperature=1.5)[0] for p, s in zip(prompts, seeds, strict=True)]
    assert together == texts(model, prompts, seeds, temperature=1.5)
    assert len(set(together)) == 5


def test_some_end_early(make_model: ModelMaker, monkeypatch: pytest.MonkeyPatch) -> None:
    """The ends are a sequence's own, and more sequences than fit a batch are sampled one batch after another."""
    monkeypatch.setattr("bytegolf.infer.sample.BATCH", 3)
    model = make_model("one-level")
    model.precision = torch.float64
    seeds = list(range(7))
    found = texts(model, ["a"] * 7, seeds, temperature=6.0, top_p=1.0)
    assert len({len(text) for text in found}) > 1
    assert found == [texts(model, ["a"], [seed], temperature=6.0, top_p=1.0)[0] for seed in seeds]


@pytest.mark.parametrize("name", ["flat-local", "two-level"])
def test_greedy_is_the_likeliest_token_of_forward(name: str, make_model: ModelMaker) -> None:
    model = make_model(name)
    prompt = [BYTES.BOS, *BYTES.encode("The ").tolist()]
    (found,) = texts(model, ["The "], [0], temperature=0)
    tokens = list(prompt)
    for _ in range(24):
        with torch.no_grad():
            logits = model(torch.tensor([tokens])).logits[0, -1]
        logits[[BYTES.PAD, BYTES.UNK]] = float("-inf")
        tokens.append(int(logits.argmax()))
        if tokens[-1] in (BYTES.BOS, BYTES.EOS):
            break
    assert found == BYTES.decode([t for t in tokens[len(prompt) :] if t > 3])


def test_draws_land_in_proportion() -> None:
    """Evenly spaced draws hit each token as often as its probability says."""
    p = torch.tensor([0.1, 0.0, 0.4, 0.3, 0.2], dtype=torch.float64)
    draws = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000
    logits = p.log().expand(1000, 5)
    assert torch.bincount(choose(logits, 1.0, 1.0, draws), minlength=5).tolist() == [100, 0, 400, 300, 200]
    # of mass 0.6: 0.4 and 0.3, which share what the others had
    assert torch.bincount(choose(logits, 1.0, 0.6, draws), minlength=5).tolist() == [0, 0, 571, 429, 0]
    # in proportion to 1, 16, 9 and 4
    assert torch.bincount(choose(logits, 0.5, 1.0, draws), minlength=5).tolist() == [33, 0, 534, 300, 133]
    assert set(choose(logits, 1e-300, 1.0, draws).tolist()) == {2}
    assert set(choose(logits, 0, 1.0, draws).tolist()) == {2}
    assert choose(logits[:2], 1.0, 1.0, torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64)).tolist() == [0, 4]
