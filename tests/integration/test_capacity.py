"""Room for chunks: exact, bucketed and fixed give the chunks, shapes, logits and counts that they promise."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from commands import TinyRun, good, refused
from conftest import ModelMaker, shapes_unchecked
from hypothesis import example, given
from hypothesis import strategies as st
from tiny_run import make_trainer, rows, tiny_config
from torch import Tensor, nn

from bytegolf.artifact.loading import LoadedModel, load_own
from bytegolf.config import Config, HNetConfig, NetworkConfig
from bytegolf.errors import BytegolfError
from bytegolf.model.chunk import GRAIN, Capacity, Chunks
from bytegolf.model.embed import BOS
from bytegolf.model.lm import Forward, LanguageModel
from bytegolf.model.routers.cosine import CosineRouter
from bytegolf.model.routers.losses import ratio_loss
from bytegolf.ops import native

HNETS = ("one-level", "two-level")
DIVISORS = {"one-level": [4.0], "two-level": [2.5, 4.0]}
"""Fixed capacities that truncate some of these models' sequences at each level, not all."""


def fix_capacity(model: LanguageModel, name: str) -> None:
    for level, divisor in zip(model.levels(), DIVISORS[name], strict=True):
        level.capacity = level.capacity.changed("fixed", divisor)


def tokens(batch: int, length: int) -> Tensor:
    """Random tokens behind a BOS; the last sequence repeats one token, so that it has few chunks."""
    ids = torch.randint(4, 40, (batch, length))
    ids[:, 0] = BOS
    ids[-1, 1:] = 7
    return ids


def lengths(model: LanguageModel) -> list[list[int]]:
    """From now on, the length that each level's main network sees, call by call."""
    seen: list[list[int]] = [[] for _ in model.levels()]

    def noting(calls: list[int]) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        return lambda _, arguments: calls.append(arguments[0].shape[1])

    for level, calls in zip(model.levels(), seen, strict=True):
        level.main.register_forward_pre_hook(noting(calls))
    return seen


def gradients(model: LanguageModel, ids: Tensor) -> tuple[Forward, list[Tensor]]:
    out = model(ids[:, :-1])
    loss = model.objective(out, model.losses(out, ids[:, 1:]))
    wanted = [p for p in model.parameters() if p.numel()]
    return out, [loss.detach(), *torch.autograd.grad(loss, wanted)]


# ---------------------------------------------------------------------------------------------- rules


@given(length=st.integers(1, 5000), target=st.floats(1.01, 100), buckets=st.integers(1, 20), share=st.floats(0, 1))
@example(length=1, target=2.0, buckets=8, share=0.0)
@example(length=2048, target=6.0, buckets=8, share=1.0)
def test_a_ladder_is_short_and_its_steps_are_enough(length: int, target: float, buckets: int, share: float) -> None:
    rule = Capacity("bucketed", target=target, buckets=buckets)
    ladder = rule.ladder(length)
    assert ladder == sorted(set(ladder))
    assert 1 <= len(ladder) <= buckets
    assert ladder[-1] == length
    assert all(size % GRAIN == 0 for size in ladder[:-1])
    needed = max(1, round(share * length))
    room = rule.room(length, needed)
    assert room in ladder
    assert room >= needed
    assert not any(needed <= size < room for size in ladder)


def test_a_ladder_wastes_little() -> None:
    """Around the target rate a step is at most half as much again, beside the rounding."""
    ladder = Capacity("bucketed", target=7.0).ladder(1024)
    assert ladder == [80, 112, 160, 240, 336, 496, 704, 1024]
    assert ladder[0] < 1024 / 7 < ladder[3]


@given(length=st.integers(1, 5000), divisor=st.floats(1, 100))
def test_a_fixed_capacity_is_a_share_of_the_length(length: int, divisor: float) -> None:
    limit = Capacity("fixed", divisor).limit(length)
    assert limit is not None
    assert limit == 1 or limit * divisor <= length
    assert (limit + 1) * divisor > length
    assert Capacity("exact").limit(length) is Capacity("bucketed").limit(length) is None


def test_changing_a_rule_leaves_what_is_not_named() -> None:
    rule = Capacity("fixed", 4.0, 6.0, 3)
    assert rule.changed("", 0.0) == rule
    assert rule.changed("exact", 0.0) == Capacity("exact", 4.0, 6.0, 3)
    assert rule.changed("", 2.0) == Capacity("fixed", 2.0, 6.0, 3)


@given(
    rows=st.lists(st.lists(st.booleans(), min_size=23, max_size=23), min_size=1, max_size=4), limit=st.integers(1, 24)
)
def test_beyond_the_capacity_the_last_chunk_goes_on(rows: list[list[bool]], limit: int) -> None:
    chunks = Chunks.of(torch.tensor([[True, *row] for row in rows]), Capacity("fixed", 24 / limit))
    assert chunks.starts.shape == (len(rows), limit)
    for row, opens in enumerate(rows):
        starts = [0, *(t + 1 for t, boundary in enumerate(opens) if boundary)][:limit]
        assert chunks.boundary[row].nonzero().flatten().tolist() == starts
        assert chunks.counts[row] == len(starts)
        assert chunks.starts[row].tolist() == starts + [0] * (limit - len(starts))
        assert chunks.valid[row].tolist() == [c < len(starts) for c in range(limit)]
        assert chunks.chunk_of[row].tolist() == [sum(start <= t for start in starts) - 1 for t in range(24)]


# ---------------------------------------------------------------------------------------------- models


@pytest.mark.parametrize("name", HNETS)
@pytest.mark.parametrize("mode", ["bucketed", "fixed"])
def test_room_to_spare_changes_nothing(name: str, mode: str, make_model: ModelMaker) -> None:
    """Logits, losses and every gradient: padding is behind all chunks."""
    model, ids = make_model(name), tokens(3, 61)
    wanted, wanted_gradients = gradients(model, ids)
    seen = lengths(model)
    model.set_capacity(mode, 1.0)  # type: ignore[arg-type]
    out, found = gradients(model, ids)
    torch.testing.assert_close(out.logits, wanted.logits, rtol=0, atol=2e-5)
    for got, expected in zip(found, wanted_gradients, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-3, atol=2e-5)
    for calls, trace in zip(seen, out.traces, strict=True):
        assert calls[0] > int(trace.boundary.sum(1).max()), "there was padding"
        assert not trace.truncated().any()


def test_bucketed_shapes_are_few(make_model: ModelMaker) -> None:
    """Over batches of all sizes and rates; with exact capacity there are many more."""
    model = make_model("one-level")
    (seen,) = lengths(model)
    batches = [tokens(1 + seed % 3, 64) for seed in range(40)]
    for seed, ids in enumerate(batches):
        ids[:, 1 + seed :] = ids[:, 1 + seed :] % 3 + 7
    with torch.no_grad(), shapes_unchecked():
        for ids in batches:
            model(ids)
        assert len(set(seen)) > 8
        seen.clear()
        model.set_capacity("bucketed")
        for ids in batches:
            model(ids)
    (level,) = model.levels()
    assert set(seen) <= set(level.capacity.ladder(64)) == {16, 32, 48, 64}


@pytest.mark.parametrize("name", HNETS)
def test_fixed_is_exact_over_the_first_boundaries(
    name: str, make_model: ModelMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against a router that proposes no more boundaries than there is room for; its ratio loss alone differs."""
    model, ids = make_model(name), tokens(4, 60)
    seen = lengths(model)
    fix_capacity(model, name)
    with torch.no_grad():
        out = model(ids)
    room = {"one-level": [15], "two-level": [24, 6]}[name]
    assert seen == [[size] for size in room]
    for trace, size in zip(out.traces, room, strict=True):
        assert trace.truncated().tolist() == (trace.proposed.sum(1) - size).clamp(min=0).tolist()
        assert torch.equal(trace.boundary.sum(1), trace.proposed.sum(1).clamp(max=size))
        assert 0 < int((trace.truncated() > 0).sum()) < 4, "some sequences are truncated, not all"

    def first(self: CosineRouter, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        p, boundary = forward(self, *inputs)
        sizes = {60: room[0], room[0]: room[-1]}
        return p, boundary & (boundary.cumsum(1) <= sizes[boundary.shape[1]])

    forward = CosineRouter.forward
    monkeypatch.setattr(CosineRouter, "forward", first)
    model.set_capacity("exact")
    with torch.no_grad():
        wanted = model(ids)
    torch.testing.assert_close(out.logits, wanted.logits, rtol=0, atol=2e-5)
    for trace, other in zip(out.traces, wanted.traces, strict=True):
        assert torch.equal(trace.boundary, other.boundary)
        assert not other.truncated().any()
        assert float(trace.loss) != float(other.loss)


def test_the_ratio_loss_is_of_what_the_router_proposes_and_confidence_of_what_is_kept(
    make_model: ModelMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With one chunk kept, every later position is within it: its confidence is that of 1 − p, whatever p is."""
    model, ids = make_model("one-level"), tokens(2, 60)
    model.set_capacity("fixed", 60.0)
    given_boundaries: list[Tensor] = []

    def confidence(p: Tensor, boundary: Tensor) -> Tensor:
        given_boundaries.append(boundary)
        return torch.ones_like(p)

    monkeypatch.setattr("bytegolf.ops.chunking.confidence", confidence)
    with torch.no_grad(), native.disabled():
        (trace,) = model(ids).traces
    assert given_boundaries[0].sum(1).tolist() == [1, 1]
    assert trace.proposed.sum(1).min() >= 1
    assert trace.proposed.sum() > 10
    (level,) = model.levels()
    settings = level.config.router
    assert float(trace.loss) == pytest.approx(
        settings.loss_weight * float(ratio_loss(trace.p, trace.proposed, None, settings.target))
    )
    rate, truncated, cut = trace.figures().tolist()
    assert rate == pytest.approx(float(trace.proposed.sum()) / 120)
    assert truncated == pytest.approx(float(trace.proposed.sum() - 2) / 2)
    assert cut == pytest.approx(float((trace.proposed.sum(1) > 1).float().mean()))


@pytest.mark.parametrize("name", HNETS)
@pytest.mark.parametrize("mode", ["fixed", "bucketed"])
def test_later_tokens_change_no_earlier_logit_by_a_bit(name: str, mode: str, make_model: ModelMaker) -> None:
    """Fixed: always, as its shapes never change. Bucketed: where the batch stays in its bucket."""
    model, ids = make_model(name), tokens(3, 72)
    fix_capacity(model, name) if mode == "fixed" else model.set_capacity("bucketed")
    seen = lengths(model)
    compared = truncated = 0
    with torch.no_grad():
        before = model(ids)
        for t in (0, 6, 7, 8, 16, 33, 45, 60, 70):
            changed = ids.clone()
            changed[:, t + 1 :] = torch.randint(1, 60, changed[:, t + 1 :].shape)
            after = model(changed)
            same = all(calls[0] == calls[-1] for calls in seen)
            assert same or mode == "bucketed"
            if same:
                compared += 1
                assert torch.equal(after.logits[:, : t + 1], before.logits[:, : t + 1]), t
                assert not torch.equal(after.logits[:, t + 1 :], before.logits[:, t + 1 :])
            for part in ("p", "proposed", "boundary"):
                left, right = (getattr(out.traces[0], part)[:, : t + 1] for out in (before, after))
                assert torch.equal(left, right)
            truncated += int(after.traces[0].truncated().sum())
    assert compared >= (9 if mode == "fixed" else 3)
    assert (truncated > 0) == (mode == "fixed")


@pytest.mark.parametrize("name", HNETS)
def test_step_is_forward_under_a_fixed_capacity(name: str, make_model: ModelMaker) -> None:
    model, ids = make_model(name), tokens(4, 50)
    fix_capacity(model, name)
    with torch.no_grad():
        out = model(ids)
    assert all(bool(trace.truncated().any()) for trace in out.traces)
    state = model.start(4, length=50)
    opened: list[list[bool]] = [[] for _ in range(4)]
    for t in range(50):
        logits = model.step(ids[:, t], state)
        torch.testing.assert_close(logits, model.cap(out.logits[:, t]), rtol=0, atol=1e-4)
        for row, opens in enumerate(state.traces[0].boundary[:, 0].tolist()):
            opened[row].append(opens)
    assert opened == out.traces[0].boundary.tolist()
    with pytest.raises(BytegolfError, match="started for sequences of 50 tokens"):
        model.step(ids[:, 0], state)


def test_step_under_a_fixed_capacity_must_know_the_length(make_model: ModelMaker) -> None:
    model = make_model("two-level")
    model.set_capacity("fixed")
    with pytest.raises(BytegolfError, match="say the length"):
        model.start(1)
    model.set_capacity("exact")
    state = model.start(1, length=1)
    for _ in range(3):  # a length that no capacity depends on is no limit
        model.step(torch.tensor([BOS]), state)


def test_a_capacity_for_a_while(make_model: ModelMaker) -> None:
    model = make_model("two-level")
    before = [level.capacity for level in model.levels()]
    with contextlib.suppress(ZeroDivisionError), model.capacity("fixed", 3.0):
        assert [(level.capacity.mode, level.capacity.divisor) for level in model.levels()] == [("fixed", 3.0)] * 2
        raise ZeroDivisionError
    assert [level.capacity for level in model.levels()] == before
    assert [rule.target for rule in before] == [3.0, 2.0]


def test_documents_and_a_fixed_capacity_do_not_go_together(make_model: ModelMaker) -> None:
    with pytest.raises(BytegolfError, match="reset_at_bos is on"):
        make_model("one-level", reset_at_bos=True).set_capacity("fixed")


@pytest.mark.parametrize("shape", [(0, 5), (3, 0)])
def test_an_empty_batch_is_refused(shape: tuple[int, int], make_model: ModelMaker) -> None:
    with pytest.raises(BytegolfError, match=f"batch of {shape[0]} sequences of {shape[1]} tokens is empty"):
        make_model("one-level")(torch.zeros(shape, dtype=torch.long))


# ---------------------------------------------------------------------------------------------- training, scoring


def fixed(network: NetworkConfig, divisor: float) -> NetworkConfig:
    """The network with fixed capacities at every level."""
    if not isinstance(network, HNetConfig):
        return network
    router = dataclasses.replace(network.router, capacity="fixed", capacity_divisor=divisor)
    return dataclasses.replace(network, router=router, main=fixed(network.main, divisor))


def with_capacity(config: Config, divisor: float, **scored: str) -> Config:
    model = dataclasses.replace(config.model, network=fixed(config.model.network, divisor))
    return dataclasses.replace(config, model=model, eval=dataclasses.replace(config.eval, **scored))  # type: ignore[arg-type]


def test_training_tells_what_was_truncated(tmp_path: Path) -> None:
    config = with_capacity(tiny_config("two-level", log_every=2), 32.0)
    trainer = make_trainer(config, tmp_path / "data", tmp_path / "run")
    trainer.fit()
    for row in rows(tmp_path / "run"):
        outer = round(row["rates"][0] * 32 * 8) - 8  # a chunk in each of 8 sequences of 32 is kept
        assert row["truncated"] == [outer, 0]
        assert row["truncated_sequences"][0] * 8 in range(1, 9)
        assert outer >= row["truncated_sequences"][0] * 8
        assert row["truncated_sequences"][1] == 0
    assert not any("truncated" in row["text"] for row in rows(tmp_path / "run", "alarm"))


def test_an_alarm_if_training_goes_on_truncating(tmp_path: Path) -> None:
    trainer = make_trainer(with_capacity(tiny_config(), 32.0), tmp_path / "data", tmp_path / "run")
    trainer.fit()
    (alarm,) = (row for row in rows(tmp_path / "run", "alarm") if "truncated" in row["text"])
    assert alarm["step"] == 5
    row = rows(tmp_path / "run")[4]
    told = f"truncated {row['truncated'][0]} boundaries in {row['truncated_sequences'][0]:.0%} of sequences"
    assert f"the capacity of level 0 {told}" in alarm["text"]


def test_validation_is_with_the_capacity_of_the_score(tmp_path: Path) -> None:
    """What it sets does not last; with another one the sample scores otherwise."""
    found = []
    for scored in ("", "exact", "bucketed"):
        run = tmp_path / (scored or "as-trained")
        trainer = make_trainer(with_capacity(tiny_config(max_steps=2), 16.0, capacity=scored), tmp_path / "data", run)
        trainer.fit()
        assert [level.capacity.mode for level in trainer.model.levels()] == ["fixed"]
        found += [row["bpb"] for row in rows(run, "validation")]
    assert found[1] == pytest.approx(found[2], rel=1e-5)
    assert abs(found[0] - found[1]) > 1e-4


def test_eval_counts_what_it_truncates(tiny_run: TinyRun) -> None:
    exact = good("eval", tiny_run.folder, "--json").json
    (counts,) = exact["capacity"]
    assert counts["capacity"] == "exact"
    assert counts["divisor"] is None
    assert counts["truncated_boundaries"] == counts["truncated_windows"] == 0
    bucketed = good("eval", tiny_run.folder, "--capacity", "bucketed", "--json").json
    assert bucketed["bpb"] == pytest.approx(exact["bpb"], rel=1e-5)
    assert bucketed["boundaries"] == exact["boundaries"]
    ran = good("eval", tiny_run.folder, "--capacity", "fixed", "--capacity-divisor", "64", "--json")
    (counts,) = ran.json["capacity"]
    assert (counts["capacity"], counts["divisor"]) == ("fixed", 64.0)
    assert 0 < counts["truncated_windows"] <= counts["windows"] == ran.json["tokens"] // 128
    lost = exact["boundaries"]["boundaries"] - ran.json["boundaries"]["boundaries"]
    assert counts["truncated_boundaries"] == pytest.approx(lost, abs=counts["windows"])
    assert abs(ran.json["bpb"] - exact["bpb"]) > 1e-5
    assert f"1/64 of a window: truncated {counts['truncated_boundaries']:,} boundaries in " in ran.err


def test_a_divisor_without_a_fixed_capacity_is_refused(tiny_run: TinyRun, flat_run: TinyRun) -> None:
    for run in (tiny_run, flat_run):
        said = refused("eval", run.folder, "--capacity-divisor", "3")
        assert "belongs to a fixed capacity" in said


def test_an_artifact_opens_with_the_capacity_of_the_score_and_is_sampled_without_one(
    tiny_run: TinyRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = load_own(tiny_run.folder)
    scored = dataclasses.replace(opened.config.eval, capacity="fixed", capacity_divisor=5.0)
    artifact = dataclasses.replace(opened.artifact, config=dataclasses.replace(opened.config, eval=scored))
    monkeypatch.setattr("bytegolf.artifact.loading.read_artifact", lambda path: artifact)
    (level,) = load_own(tiny_run.folder).model.levels()
    assert (level.capacity.mode, level.capacity.divisor) == ("fixed", 5.0)
    assert isinstance(opened, LoadedModel)
    assert good("sample", tiny_run.folder, "The", "--bytes", "5", "--json").json["bytes"] <= 5
