"""Test-time training: legal by experiment (a changed future moves no booked score), and does what it says."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import TinyRun, good, refused
from conftest import ModelMaker, shapes_unchecked
from numpy.typing import NDArray
from streams import BYTES, stream_of

from bytegolf.config import ModelConfig, SoftConfig, StackConfig, TttConfig
from bytegolf.errors import BytegolfError
from bytegolf.evaluate import score as bpb
from bytegolf.evaluate import ttt
from bytegolf.evaluate.score import Window
from bytegolf.evaluate.ttt import Pace, score_adapting
from bytegolf.model.embed import BOS
from bytegolf.model.lm import LanguageModel
from bytegolf.model.lora import adaptable_maps

SEQ_LEN = 32
LENGTHS = (70, 5, 64, 21)
"""Of the documents, BOS included: longer than a window and shorter, and a window's edge at a document's end."""

SETTINGS = {
    "lora": TttConfig("lora", lora_lr=0.02, rank=2),
    "lora, 3 documents at once": TttConfig("lora", lora_lr=0.02, rank=2, documents=3),
    "lora, carried on, two steps": TttConfig("lora", reset="never", lora_lr=0.02, rank=2, steps=2),
    "sgd": TttConfig("sgd", sgd_lr=0.01, ngram_lr=0.3),
    "sgd, carried on, chunks of 80": TttConfig("sgd", chunk=80, reset="never", sgd_lr=0.01, ngram_lr=0.3),
    "sgd, chunks of 12": TttConfig("sgd", chunk=12, sgd_lr=0.01, ngram_lr=0.3),
    "sgd by size": TttConfig("sgd", chunk=12, rms_lr=0.003, ngram_lr=0.3),
}
every_setting = pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS.keys())


def documents(lengths: tuple[int, ...] = LENGTHS, seed: int = 0) -> list[int]:
    """Random documents of a small alphabet."""
    chance = np.random.default_rng(seed)
    return [token for length in lengths for token in (BOS, *chance.integers(4, 40, length - 1).tolist())]


def static(model: LanguageModel) -> LanguageModel:
    """The model with room for as many chunks as there are positions, so that no shape depends on a text."""
    for level in model.levels():
        level.capacity = dataclasses.replace(level.capacity, mode="bucketed", buckets=1)
    return model


@pytest.fixture
def booked(tmp_path: Path) -> Callable[..., NDArray[np.float64]]:
    """``booked(model, tokens, settings, ...)``: the loss of each target, in the order of the stream."""
    found: dict[int, float] = {}

    def book(window: Window, nats: NDArray[np.float64], sizes: NDArray[np.int64]) -> None:
        first = window.start + window.length - window.scored + 1
        for place, loss in enumerate(nats):
            assert first + place not in found, "scored twice"
            found[first + place] = float(loss)

    def run(model: LanguageModel, tokens: list[int], settings: TttConfig, **options: Any) -> NDArray[np.float64]:
        found.clear()
        with shapes_unchecked():
            stream = stream_of(tmp_path, tokens)
            result = score_adapting(model, stream, BYTES, SEQ_LEN, settings, book=book, **options)
        assert sorted(found) == list(range(1, len(tokens)))
        assert result.tokens == len(tokens) - 1
        assert result.bytes == sum(token >= 4 for token in tokens[1:])
        losses = np.array([found[place] for place in sorted(found)])
        assert result.nats == pytest.approx(losses.sum(), rel=1e-12)
        return losses

    return run


Booked = Callable[..., NDArray[np.float64]]


def futures(tokens: list[int], t: int) -> Iterator[list[int]]:
    """Other texts with the same tokens up to ``t``: shuffled, changed (documents too), and cut off."""
    chance = np.random.default_rng(t)
    past, rest = tokens[: t + 1], tokens[t + 1 :]
    yield past + chance.permutation(rest).tolist()
    yield past + chance.integers(1, 40, len(rest)).tolist()
    yield past + rest[: len(rest) // 2]


def moved(booked: Booked, model: LanguageModel, settings: TttConfig, places: tuple[int, ...]) -> float:
    """How far the scores of tokens up to t move at most if those behind it are others."""
    tokens = documents()
    before = booked(model, tokens, settings, share=False)
    worst = 0.0
    for t in places:
        for other in futures(tokens, t):
            after = booked(model, other, settings, share=False)
            worst = max(worst, float(np.abs(after[:t] - before[:t]).max()))
    return worst


@every_setting
def test_the_future_moves_no_earlier_score_by_a_bit(
    settings: TttConfig, make_model: ModelMaker, booked: Booked
) -> None:
    assert moved(booked, static(make_model("tables")), settings, (36, 100)) == 0


@pytest.mark.parametrize("name", ["two-level", "flat-local"])
def test_other_networks_and_overlapping_windows(name: str, make_model: ModelMaker, booked: Booked) -> None:
    """In fp64, where rounding is 1e-14 and a leak of 1e-11 would show; chunks have just the room that they need."""
    model, tokens = make_model(name).double(), documents()
    model.precision = torch.float64
    settings = TttConfig("lora", lora_lr=0.02, documents=2)
    options = {"stride": 16, "share": False}
    before = booked(model, tokens, settings, **options)
    for t in (36, 100):
        for other in futures(tokens, t):
            np.testing.assert_allclose(booked(model, other, settings, **options)[:t], before[:t], rtol=0, atol=1e-11)


@pytest.mark.parametrize("mode", ["lora", "sgd"])
def test_training_before_the_score_would_be_seen(
    mode: str, make_model: ModelMaker, booked: Booked, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The planted fault: each chunk is learned from first, and scored then."""
    model, settings = static(make_model("tables")), SETTINGS[mode]
    assert moved(booked, model, settings, (40,)) == 0
    inner, made = bpb.read_group, ttt.adapter_for
    learner: list[ttt.TestTimeAdapter] = []

    class Peeking:
        def __init__(self, *arguments: Any) -> None:
            self.context = made(*arguments)

        def __enter__(self) -> ttt.TestTimeAdapter:
            learner[:] = [self.context.__enter__()]
            return learner[0]

        def __exit__(self, *error: Any) -> None:
            self.context.__exit__(*error)

    def peek(model: LanguageModel, group: list[Window], tokens: NDArray[np.int64], *rest: Any) -> Any:
        ids = torch.from_numpy(tokens)
        learner[0].step(ids[:, :-1], ids[:, 1:], torch.ones(ids[:, 1:].shape, dtype=torch.bool))
        return inner(model, group, tokens, *rest)

    monkeypatch.setattr(ttt, "adapter_for", Peeking)
    monkeypatch.setattr(ttt, "read_group", peek)
    assert moved(booked, model, settings, (40,)) > 1e-4


@every_setting
def test_what_is_learned_depends_on_what_was_scored(
    settings: TttConfig, make_model: ModelMaker, booked: Booked
) -> None:
    """The counterpart, so that the tests above cannot pass for want of learning: the past does move later scores."""
    model, tokens = static(make_model("flat-local")), documents((120,))
    for index in range(1, 20):  # out of the reach of what is looked at, but through the weights
        tokens[index] = 45 + index % 3
    before = booked(model, documents((120,)), settings)
    after = booked(model, tokens, settings)
    assert np.abs(after[96:] - before[96:]).max() > 1e-6


@every_setting
def test_the_model_is_as_it_was(settings: TttConfig, make_model: ModelMaker, booked: Booked) -> None:
    model, tokens = make_model("tables").train(), documents()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    wanted = [p.requires_grad for p in model.parameters()]
    first = booked(model, tokens, settings)
    assert np.array_equal(booked(model, tokens, settings), first)
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert [p.requires_grad for p in model.parameters()] == wanted
    assert not any(module._forward_hooks for module in model.modules())
    assert model.training
    assert all(p.grad is None for p in model.parameters())
    assert model.ngrams is not None
    assert not model.ngrams.sparse_gradients


def test_a_broken_loss_is_said_and_leaves_the_model_whole(make_model: ModelMaker, tmp_path: Path) -> None:
    model = make_model("tables")
    weight = model.network.main.blocks[0].mlp.fc.weight  # type: ignore[index, union-attr]
    shipped = weight.detach().clone()
    with pytest.raises(BytegolfError, match=r"not finite in the window at token 64.* learning rate"):
        score_adapting(
            model, stream_of(tmp_path, documents()), BYTES, SEQ_LEN, TttConfig("sgd", reset="never", sgd_lr=1e30)
        )
    assert torch.equal(weight, shipped)


@torch.no_grad()
def plain(model: LanguageModel, tokens: list[int], stride: int) -> list[float]:
    """The loss of each target, each document by itself, from a forward pass of each prefix that a window has."""
    starts = [place for place, token in enumerate(tokens) if token == BOS]
    found = []
    for start, end in zip(starts, [*starts[1:], len(tokens) - 1], strict=True):
        done = start
        while done < end:
            scored = SEQ_LEN if done == start else stride
            begin, until = done + scored - SEQ_LEN, min(done + scored, end)
            ids = torch.tensor([tokens[begin : until + 1]])
            losses = model.losses(model(ids[:, :-1]), ids[:, 1:])[0]
            found += losses[done - begin :].tolist()
            done = until
    return found


@pytest.mark.parametrize("stride", [0, 8])
@pytest.mark.parametrize("share", [False, True])
@pytest.mark.parametrize("mode", ["lora", "sgd"])
def test_without_a_learning_rate_documents_are_read_by_themselves(
    stride: int, share: bool, mode: Any, make_model: ModelMaker, booked: Booked
) -> None:
    model, tokens = make_model("one-level"), documents()
    settings = TttConfig(mode, lora_lr=0.0, sgd_lr=0.0, documents=2)
    found = booked(model, tokens, settings, stride=stride, share=share)
    np.testing.assert_allclose(found, plain(model, tokens, stride or SEQ_LEN), rtol=0, atol=2e-4)


def test_documents_at_once_learn_what_they_learn_alone(make_model: ModelMaker, booked: Booked) -> None:
    model, tokens = make_model("tables"), documents()
    alone = booked(model, tokens, SETTINGS["lora"])
    np.testing.assert_allclose(booked(model, tokens, SETTINGS["lora, 3 documents at once"]), alone, rtol=0, atol=5e-3)
    still = booked(model, tokens, dataclasses.replace(SETTINGS["lora"], lora_lr=0.0))
    assert np.abs(still - alone).max() > 0.05


@pytest.mark.parametrize("mode", ["lora", "sgd"])
def test_a_reset_forgets(mode: Any, make_model: ModelMaker, booked: Booked) -> None:
    """The same document twice: the same scores after a reset; carried on, the second is cheaper."""
    model, document = static(make_model("tables")), documents((90,))
    rates = {"lora_lr": 0.01, "sgd_lr": 6e-4, "ngram_lr": 0.03}
    reset = booked(model, document * 2 + [BOS], TttConfig(mode, **rates))  # type: ignore[arg-type]
    assert np.array_equal(reset[:90], reset[90:])
    carried = booked(model, document * 2 + [BOS], TttConfig(mode, reset="never", **rates))  # type: ignore[arg-type]
    assert carried[90:].sum() < reset[90:].sum() - 1


@pytest.mark.parametrize("mode", ["lora", "sgd"])
@pytest.mark.parametrize("matrices", ["all", "attention", "mlp"])
@pytest.mark.parametrize("soft", [False, True])
def test_it_learns(soft: bool, mode: Any, matrices: Any, make_model: ModelMaker, booked: Booked) -> None:
    """A document that repeats itself gets cheaper than without learning."""
    model = make_model("one-level")
    if soft:
        torch.manual_seed(0)
        model = LanguageModel(ModelConfig(StackConfig(3, 32, 4, 2), embed_std=0.5, soft=SoftConfig(layers=1)))
    tokens = [BOS, *(documents((24,))[1:] * 10)]
    settings = TttConfig(mode, matrices=matrices, lora_lr=0.01, sgd_lr=6e-4)
    found, still = (
        booked(model, tokens, one) for one in (settings, dataclasses.replace(settings, lora_lr=0.0, sgd_lr=0.0))
    )
    assert found[150:].mean() < still[150:].mean() - 0.05


def test_a_router_does_not_learn_and_says_so_where_nothing_is_left(make_model: ModelMaker) -> None:
    model = make_model("tables")
    names = adaptable_maps(model, "all")
    assert {"ngrams.proj", "network.residual", "network.main.blocks.0.mixer.qkv"} <= names.keys()
    assert not any("router" in name for name in names)
    assert {name.split(".")[-2] for name in adaptable_maps(model, "mlp")} == {"mlp"}
    soft = LanguageModel(ModelConfig(StackConfig(1, 8, 2, 1), soft=SoftConfig(layers=1)))
    assert {name for name in adaptable_maps(soft, "all") if "soft" in name} == {"soft.layers.0.chunk_mixer"}
    with pytest.raises(BytegolfError, match="no maps of the kind mlp"):
        adaptable_maps(LanguageModel(ModelConfig(StackConfig(0, 8, 2, 1))), "mlp")


@pytest.mark.parametrize(("stride", "chunk"), [(32, 32), (8, 32), (5, 40), (32, 70), (12, 12), (1, 3), (7, 100)])
def test_chunks_cover_a_text_once_wherever_it_ends(stride: int, chunk: int) -> None:
    pace = Pace(SEQ_LEN, stride, chunk)
    endless = [window for group in pace.chunks(10, 1000) for window in group]
    for end in range(11, 200, 7):
        groups = list(pace.chunks(10, end))
        found = [window for group in groups for window in group]
        assert sum(window.scored - window.blank for window in found) == end - 10
        assert [dataclasses.replace(window, blank=0) for window in found] == endless[: len(found)]
        assert not any(window.blank for window in found[:-1])
        for group in groups[:-1]:
            learned = sum(window.scored for window in group)
            assert chunk <= learned <= pace.lessons * SEQ_LEN
    assert endless[0].start == 10


def test_the_command_line(flat_run: TinyRun, tiny_run: TinyRun) -> None:
    off = good("eval", tiny_run.folder, "--limit", "1500", "--tail", "score", "--json").json
    assert off["ttt"] is None
    for mode, options in (("lora", ("--ttt-rank", "2", "--ttt-lr", "0.01")), ("sgd", ("--ttt-reset", "never"))):
        ran = good("eval", tiny_run.folder, "--limit", "1500", "--ttt", mode, *options, "--json")
        assert "learned" in ran.err
        assert ran.json["tokens"] == off["tokens"]
        assert ran.json["ttt"]["mode"] == mode
        assert ran.json["bpb"] != off["bpb"]
        assert ran.json["boundaries"]["bytes"] > 1000
    assert ran.json["ttt"]["reset"] == "never"
    assert good("eval", flat_run.folder, "--limit", "500", "--ttt", "lora", "--json").json["boundaries"] is None
    for options, words in (  # type: ignore[assignment]
        (("--ttt", "sgd", "--ttt-rank", "2"), "--ttt-rank means nothing with test-time training sgd"),
        (("--ttt", "lora", "--ttt-ngram-lr", "2"), "choose --ttt sgd"),
        (("--ttt-chunk", "64"), "--ttt-chunk means nothing with test-time training off"),
        (("--ttt", "lora", "--tail", "drop"), "no tail can be dropped"),
        (("--ttt", "lora", "--stride", "64", "--ttt-chunk", "32"), "learn every 32 tokens while windows score 64"),
        (("--ttt", "lora", "--stride", "1000"), "stride 1000"),
        (("--ttt", "adam"), "ttt"),
        (("--ttt", "sgd", "--ttt-lr", "-1"), "give a number >= 0"),
        (("--ttt", "sgd", "--ttt-steps", "0"), "give a number >= 1"),
    ):
        assert words in refused("eval", tiny_run.folder, *options), options
