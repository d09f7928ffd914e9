"""Generation by drafts: the text and the logits of plain generation, whatever the drafts are worth."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from conftest import ModelMaker
from torch import Tensor

from bytegolf.data.tokenizer import ByteTokenizer
from bytegolf.errors import BytegolfError
from bytegolf.infer.sample import generate
from bytegolf.infer.speculative import Acceptance
from bytegolf.model.lm import LanguageModel

NETWORKS = ("one-level", "two-level", "tables", "paper")
TEXT = "the state of the union"


@pytest.fixture
def plainly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plain generation by the model's own steps: drafts are verified by them, too."""
    monkeypatch.setattr("bytegolf.infer.sample.stepper", lambda model: model)


def text_of(
    model: LanguageModel, seed: int, temperature: float, draft: int, acceptance: Acceptance | None = None
) -> tuple[bytes, list[Tensor]]:
    """What is generated, and the logits of each token."""
    logits: list[Tensor] = []

    def watch(row: int, token: int, seen: Tensor) -> None:
        logits.append(seen)

    pieces = generate(
        model.double(),
        ByteTokenizer(),
        [TEXT],
        [seed],
        size=40,
        temperature=temperature,
        draft=draft,
        acceptance=acceptance,
        watch=watch,
    )
    return b"".join(piece for _, piece in pieces), logits


@pytest.mark.usefixtures("plainly")
@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("temperature", [0.0, 1.5])
def test_the_text_of_plain_generation(network: str, temperature: float, make_model: ModelMaker) -> None:
    model = make_model(network, seed=3)
    model.precision = torch.float64
    acceptance = Acceptance()
    plain, expected = text_of(model, 0, temperature, 0)
    assert len(plain) > 8
    for draft in (1, 3, 8):
        found, logits = text_of(model, 0, temperature, draft, acceptance)
        assert found == plain
        torch.testing.assert_close(torch.stack(logits), torch.stack(expected), rtol=1e-9, atol=1e-9)
    assert acceptance.rate > 0, "drafts are kept"
    if temperature:
        assert acceptance.rate < 1, "and not"
    assert acceptance.tokens_per_pass > 1


def within_a_chunk(model: LanguageModel) -> None:
    """Have no chunk open but the first."""
    for level in model.levels():
        route: Callable[..., tuple[Tensor, Tensor, Tensor]] = level.router.extend

        def never(*args: Tensor, route: Callable[..., tuple[Tensor, Tensor, Tensor]] = route) -> tuple[Tensor, ...]:
            p, boundary, memory = route(*args)
            return p, boundary & (p == 1), memory

        level.router.extend = never  # type: ignore[method-assign, assignment]


@pytest.mark.usefixtures("plainly")
@pytest.mark.parametrize("network", ["one-level", "tables"])
def test_within_a_chunk_every_draft_is_kept(network: str, make_model: ModelMaker) -> None:
    """The main network rests there anyway, so the outer networks alone are the whole model."""
    model = make_model(network, seed=3)
    within_a_chunk(model)
    model.precision = torch.float64
    acceptance = Acceptance()
    text_of(model, 0, 0.9, 5, acceptance)
    assert acceptance.rate == 1
    assert acceptance.tokens_per_pass == 6


def test_a_fork_leaves_the_original_as_it_was(make_model: ModelMaker) -> None:
    """Also where it goes on further than the room of the original's caches, and over a ring's end."""
    for network in ("flat", "flat-local", *NETWORKS):
        model = make_model(network, seed=3)
        ids = torch.randint(4, 260, (2, 24), generator=torch.Generator().manual_seed(0))
        state = model.start(2, 12)
        model.extend(ids[:, :8], state)
        fork = model.fork(state)
        model.extend(ids[:, 4:], fork)
        found = model.extend(ids[:, 8:], state)
        again = model.start(2, 32)
        expected = model.extend(ids, again)[:, 8:]
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5, msg=network)


def test_a_flat_model_has_no_drafts(make_model: ModelMaker) -> None:
    with pytest.raises(BytegolfError, match="no outer networks"):
        generate(make_model("flat"), ByteTokenizer(), [""], [0], size=8, draft=2)
    with pytest.raises(BytegolfError, match="draft is -1"):
        generate(make_model("one-level"), ByteTokenizer(), [""], [0], size=8, draft=-1)
