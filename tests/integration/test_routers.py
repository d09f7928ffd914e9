"""Every kind of router behind the one interface: its rule, causality, step = forward, documents, capacities, export."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import SUBWORDS, good, refused, small
from conftest import scatter, shapes_unchecked, tiny_network
from torch import Tensor

from bytegolf.artifact.pack import read_artifact
from bytegolf.artifact.quantize import dequantize, plan_of, quantize
from bytegolf.config import (
    BpeConfig,
    CosineConfig,
    EntropyConfig,
    ExportConfig,
    HNetConfig,
    ModelConfig,
    RouterConfig,
    StackConfig,
    WhitespaceConfig,
)
from bytegolf.data.dataset import open_split
from bytegolf.data.tokenizer import ByteTokenizer, SentencePieceTokenizer, load_tokenizer
from bytegolf.errors import BytegolfError
from bytegolf.evaluate.sliding import last_losses
from bytegolf.model.embed import BOS
from bytegolf.model.layers import storage_kinds
from bytegolf.model.lm import LanguageModel
from bytegolf.model.routers.base import FixedRouter, Material, build_router
from bytegolf.model.routers.bpe import BpeRouter
from bytegolf.model.routers.random import RandomRouter
from bytegolf.model.routers.stride import StrideRouter
from bytegolf.model.routers.whitespace import WhitespaceRouter
from bytegolf.registry import ROUTERS
from bytegolf.training.setup import initial_model

KINDS = ROUTERS.built_in
FIXED = [kind for kind in KINDS if kind not in ("cosine", "topk")]
every_kind = pytest.mark.parametrize("kind", KINDS)
every_fixed = pytest.mark.parametrize("kind", FIXED)
BYTES = ByteTokenizer()
TEXT = "The state of the  union,\n\nunconstitutionally: café and people; the message of 1789 aaaaaaaaaaaa. Great war! "


@pytest.fixture(scope="module")
def material(tiny_data: Path) -> Material:
    return Material(BYTES, open_split(tiny_data, "byte260", "train", 260).slice(0, 20_000), tiny_data)


def settings(kind: str, **changes: object) -> RouterConfig:
    router = RouterConfig(3.5, kind=kind, bpe=BpeConfig(SUBWORDS), entropy=EntropyConfig(order=3, bits=10))
    return dataclasses.replace(router, **changes)  # type: ignore[arg-type]


def model_of(kind: str, material: Material, reset: bool = False, **changes: object) -> LanguageModel:
    """A tiny one-level model with a prepared router, and no parameter at a special value."""
    network = tiny_network("one-level")
    assert isinstance(network, HNetConfig)
    network = dataclasses.replace(network, router=settings(kind, **changes))
    model = LanguageModel(ModelConfig(network, embed_std=0.5, reset_at_bos=reset))
    scatter(model)
    model.levels()[0].router.prepare(material)
    return model.eval()  # topk looks ahead in training


def router_of(kind: str, material: Material, **changes: object) -> FixedRouter:
    router = build_router(settings(kind, **changes), 8, 260)
    assert isinstance(router, FixedRouter)
    router.prepare(material)
    return router


def ids_of(*texts: str, bos: bool = True) -> Tensor:
    return torch.tensor([i for text in texts for i in ([BOS] if bos else []) + BYTES.encode(text).tolist()])


def batch() -> Tensor:
    """Text with several documents, and ids at random, special ones among them."""
    random = torch.randint(0, 260, (96,))
    random[torch.randint(1, 96, (4,))] = BOS
    text = ids_of(TEXT, "Yes.", "", TEXT)[:96]
    return torch.stack((text, ids_of("x" * 5, TEXT)[:96], random))


def chunks(router: FixedRouter, text: str) -> list[str]:
    """The chunks of ``text`` without a BOS."""
    ids = ids_of(text, bos=False).unsqueeze(0)
    starts = np.flatnonzero(router.mark(ids, torch.zeros_like(ids, dtype=torch.bool))[0].numpy()).tolist()
    data = text.encode()
    return [data[a:b].decode(errors="replace") for a, b in zip(starts, [*starts[1:], len(data)], strict=True)]


# ---------------------------------------------------------------------------------------------- the highest of each


def test_topk_opens_as_many_chunks_in_each_training_sequence_and_remembers_where_it_cut() -> None:
    router = build_router(RouterConfig(4.0, kind="topk"), 8, 260)
    torch.manual_seed(0)
    x = torch.randn(3, 40, 8)
    p, marks = router(x)
    assert marks.sum(1).tolist() == [10, 10, 10]
    assert all(row[chosen].min() >= row[~chosen].max() for row, chosen in zip(p, marks, strict=True))
    lowest = torch.stack([row[chosen].min() for row, chosen in zip(p, marks, strict=True)]).mean()
    cut = router.get_buffer("cut")
    assert cut.item() == pytest.approx(0.9 * 0.5 + 0.1 * lowest.item(), abs=1e-6)
    router.eval()
    again, marks = router(x)
    assert torch.equal(marks, again >= cut)
    router(x)
    assert cut.item() == pytest.approx(0.9 * 0.5 + 0.1 * lowest.item(), abs=1e-6), "scoring moves nothing"


def test_topk_opens_a_chunk_with_every_document_and_draws_none() -> None:
    router = build_router(RouterConfig(10.0, kind="topk"), 8, 260)
    first = torch.zeros(1, 20, dtype=torch.bool)
    first[0, 3:9] = True
    marks = router(torch.randn(1, 20, 8), first)[1]
    assert marks[0, 3:9].all()
    with pytest.raises(BytegolfError, match="noise"):
        build_router(RouterConfig(10.0, kind="topk", cosine=CosineConfig(noise=1.0)), 8, 260)


def test_topk_keeps_where_it_cuts_in_an_artifact(material: Material) -> None:
    model = model_of("topk", material)
    model.levels()[0].router.get_buffer("cut").fill_(0.6251)
    state, export = model.state_dict(), ExportConfig(bits=4)
    kinds = plan_of(state, storage_kinds(model), export)
    name = "network.router.cut"
    assert dequantize(quantize(name, state[name], kinds[name])).item() == pytest.approx(0.6251, abs=1e-7)


# ---------------------------------------------------------------------------------------------- the rules


def test_whitespace_behind_and_at(material: Material) -> None:
    text = "The  old\n\ndog ran."
    assert chunks(router_of("whitespace", material), text) == ["The  ", "old\n\n", "dog ", "ran."]
    assert chunks(router_of("whitespace", material, whitespace=WhitespaceConfig("at")), text) == [
        "The",
        "  old",
        "\n\ndog",
        " ran.",
    ]


@pytest.mark.parametrize("convention", ["behind", "at"])
def test_over_subwords_a_leading_space_begins_a_chunk(convention: str, tiny_data: Path) -> None:
    tokenizer = load_tokenizer(SUBWORDS, tiny_data)
    router = build_router(settings("whitespace", whitespace=WhitespaceConfig(convention)), 8, tokenizer.vocab_size)  # type: ignore[arg-type]
    assert isinstance(router, WhitespaceRouter)
    router.prepare(Material(tokenizer, np.zeros(0, np.uint16), tiny_data))
    ids = tokenizer.encode("The treaty of the united states, and revenue.").astype(np.int64)
    assert isinstance(tokenizer, SentencePieceTokenizer)
    marks = router.mark(torch.from_numpy(ids)[None], torch.zeros(1, len(ids), dtype=torch.bool))[0]
    assert marks.tolist() == [at == 0 or tokenizer.leading_space[i] for at, i in enumerate(ids)]
    assert 4 < int(marks.sum()) < len(ids)


@pytest.mark.parametrize("target", [3.0, 5.25, 1.5])
def test_stride_opens_a_chunk_every_n_positions_of_a_document(target: float) -> None:
    router = StrideRouter(RouterConfig(target, kind="stride"), 8)
    first = torch.zeros(1, 400, dtype=torch.bool)
    first[0, 101] = True
    marks = router.mark(None, first)[0].tolist()
    for part in (marks[:101], marks[101:]):
        assert part == [t == 0 or int(t / target) > int((t - 1) / target) for t in range(len(part))]


@pytest.mark.parametrize("target", [2.0, 7.0, 20.0])
def test_random_keeps_its_rate_and_looks_like_a_coin(target: float) -> None:
    router = RandomRouter(RouterConfig(target, kind="random"), 8, 260)
    ids = ids_of(TEXT).repeat(8, 40)
    marks = router.mark(ids, torch.zeros_like(ids, dtype=torch.bool))[0].double()
    rate = float(marks.mean())
    assert rate == pytest.approx(1 / target, rel=0.1)
    for lag in (1, 2, 3, 109):  # 109: the text's period
        both = float((marks[lag:] * marks[:-lag]).mean())
        assert both == pytest.approx(rate**2, abs=4 * rate / len(marks) ** 0.5 + 0.002)


def test_edges_are_where_no_piece_goes_on(material: Material) -> None:
    """Against the definition, byte by byte, over the vocabulary's own bytes."""
    router = router_of("bpe", material)
    tokenizer = load_tokenizer(SUBWORDS, material.folder)
    prefixes = {text[:n] for i in range(400) for text in [tokenizer.decode([i], i)] for n in range(len(text) + 1)}
    found = chunks(router, TEXT)
    data, expected, start = TEXT.encode(), [0], 0
    for t in range(1, len(data)):
        if data[start : t + 1] not in prefixes:
            expected.append(t)
            start = t
    assert found == [data[a:b].decode(errors="replace") for a, b in zip(expected, [*expected[1:], None], strict=True)]
    assert {" people", "ation", " the"} & set(found) == {" people", " the"}


def test_edges_start_again_behind_special_tokens_and_unknown_bytes(material: Material) -> None:
    router = router_of("bpe", material)
    ids = torch.cat((ids_of(" peop"), ids_of("le"), torch.tensor([2, 4 + 0xFF, 4 + 0xFF])))[None]
    marks = router.mark(ids, torch.zeros_like(ids, dtype=torch.bool))[0].tolist()
    assert marks == [True, True, False, False, False, False, True, True, False, True, True, True]


def test_entropy_cuts_where_the_next_byte_is_hard_to_predict(material: Material) -> None:
    router = router_of("entropy", material, entropy=EntropyConfig(4, 14), target=4.0)
    ids = torch.from_numpy(open_split(material.folder, "byte260", "val", 260).slice(0, 4000).astype(np.int64))[None]
    marks = router.mark(ids, torch.zeros_like(ids, dtype=torch.bool))[0, 1:]
    assert float(marks.double().mean()) == pytest.approx(0.25, abs=0.08)
    behind_space = ids[0, :-1] == 4 + ord(" ")
    # any of forty words may come there, and within a word the next letter is nearly certain
    assert float(marks[behind_space].double().mean()) > 0.9
    assert float(marks[~behind_space].double().mean()) < 0.2


# ---------------------------------------------------------------------------- what all kinds must keep to


@every_kind
@pytest.mark.parametrize("reset", [False, True])
def test_step_is_forward(kind: str, reset: bool, material: Material) -> None:
    """Logits, p and boundaries at every prefix: step by step, and in pieces of odd sizes."""
    model, ids = model_of(kind, material, reset), batch()
    with torch.no_grad(), shapes_unchecked():
        out = model(ids)
        wanted = model.cap(out.logits)
        state = model.start(3)
        steps, marks = [], []
        for t in range(ids.shape[1]):
            steps.append(model.step(ids[:, t], state))
            marks.append(state.traces[0].boundary[:, 0])
        torch.testing.assert_close(torch.stack(steps, 1), wanted, rtol=0, atol=1e-4)
        assert torch.equal(torch.stack(marks, 1), out.traces[0].boundary)
        state, at = model.start(3), 0
        for size in (1, 7, 30, 2, 56):
            found = model.extend(ids[:, at : at + size], state)
            torch.testing.assert_close(found, wanted[:, at : at + size], rtol=0, atol=1e-4)
            at += size
    assert 0.05 < float(out.traces[0].rate()) < 0.95


@every_fixed
def test_padding_in_an_extension_leaves_no_trace(kind: str, material: Material) -> None:
    model, ids = model_of(kind, material), batch()
    counts = np.array([20, 3, 11])
    with torch.no_grad(), shapes_unchecked():
        state = model.start(3)
        model.extend(ids[:, :20], state, counts=counts)
        for row, count in enumerate(counts.tolist()):
            wanted = model.cap(model(ids[row : row + 1, : count + 9]).logits)[:, count:]
            found = model.extend(ids[row : row + 1, count : count + 9], state, np.array([row]))
            torch.testing.assert_close(found, wanted, rtol=0, atol=1e-4)


@every_kind
@pytest.mark.parametrize("reset", [False, True])
def test_later_tokens_change_no_earlier_boundary_by_a_bit(kind: str, reset: bool, material: Material) -> None:
    """And no earlier logit, bit for bit while the shapes inside are the same: a row that is all chunks sees to that."""
    model, ids = model_of(kind, material, reset, capacity="bucketed", capacity_buckets=1), batch()
    with torch.no_grad(), shapes_unchecked():
        before = model(ids)
        for t in (0, 1, 4, 9, 33, 60, 94):
            changed = ids.clone()
            changed[:, t + 1 :] = torch.randint(0, 260, changed[:, t + 1 :].shape)
            after = model(changed)
            assert torch.equal(after.logits[:, : t + 1], before.logits[:, : t + 1])
            for one, other in zip(before.traces, after.traces, strict=True):
                assert torch.equal(one.boundary[:, : t + 1], other.boundary[:, : t + 1])
                assert torch.equal(one.p[:, : t + 1], other.p[:, : t + 1])


@every_kind
def test_documents_do_not_see_each_other(kind: str, material: Material) -> None:
    model = model_of(kind, material, reset=True)
    documents = [ids_of(text).unsqueeze(0) for text in (TEXT[:40], "", "Yes.", TEXT[5:30])]
    with torch.no_grad():
        together = model(torch.cat(documents, 1))
        apart = [model(document) for document in documents]
    torch.testing.assert_close(together.logits, torch.cat([out.logits for out in apart], 1), rtol=0, atol=1e-4)
    assert torch.equal(together.traces[0].boundary, torch.cat([out.traces[0].boundary for out in apart], 1))


@every_fixed
def test_a_fixed_rule_is_certain_and_asks_for_nothing(kind: str, material: Material) -> None:
    """p is 0 or 1, no loss, no parameters; everything else still learns."""
    model, ids = model_of(kind, material, surprisal_weight=0.5), batch()
    out = model(ids[:, :-1])
    trace = out.traces[0]
    assert torch.equal(trace.p, trace.boundary.float())
    assert bool(trace.boundary[:, 0].all())
    losses = model.losses(out, ids[:, 1:])
    objective = model.objective(out, losses)
    assert float(objective.detach()) == float(losses.detach().mean())
    objective.backward()
    assert not list(model.levels()[0].router.parameters())
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None or not parameter.requires_grad, name


@every_fixed
@pytest.mark.parametrize("mode", ["exact", "bucketed", "fixed"])
def test_capacities(kind: str, mode: str, material: Material) -> None:
    model, ids = model_of(kind, material, capacity=mode, capacity_divisor=6.0), batch()
    with torch.no_grad(), shapes_unchecked():
        out = model(ids)
        state = model.start(3, ids.shape[1])
        found = torch.stack([model.step(ids[:, t], state) for t in range(ids.shape[1])], 1)
    torch.testing.assert_close(found, model.cap(out.logits), rtol=0, atol=1e-4)
    assert bool(out.traces[0].truncated().any()) == (mode == "fixed")


@every_fixed
@pytest.mark.parametrize("reset", [False, True])
def test_sliding_windows_share_their_work_with_every_kind(kind: str, reset: bool, material: Material) -> None:
    """A fixed rule may count from a window's start, where the next window counts otherwise."""
    model = model_of(kind, material, reset)
    model.precision = torch.float64
    tokens = torch.cat((ids_of(TEXT), ids_of(TEXT)))[: 96 + 5 * 8 + 1]
    windows = tokens.unfold(0, 97, 8)
    with torch.no_grad(), shapes_unchecked():
        out = model(windows[:, :-1])
        wanted = model.losses(out, windows[:, 1:])[:, -8:]
        found, shared = last_losses(model, tokens, 96, 8)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)
    assert torch.equal(shared.traces[0].boundary, out.traces[0].boundary)


@every_kind
def test_a_run_is_exported_reloaded_scored_and_segmented(kind: str, material: Material, tmp_path: Path) -> None:
    """The artifact's own router cuts as the one in training did, though its tables were quantised."""
    router = "model.network.router"
    changes = [
        f"{router}.kind={kind}",
        f"{router}.bpe.tokenizer={SUBWORDS}",
        f"{router}.entropy.order=2",
        f"{router}.entropy.bits=8",
    ]
    run = tmp_path / "run"
    summary = good(
        "train", "cpu-demo", *small(), *changes, "train.max_steps=2", "--data", material.folder, "--out", run, "--json"
    ).json
    assert summary["bpb"] > 0
    artifact = read_artifact(run / "artifact.bgolf")
    shipped = LanguageModel(artifact.config.model)
    shipped.load_state_dict(artifact.state)
    if kind != "cosine":
        trained = initial_model(artifact.config, BYTES, open_split(material.folder, "byte260", "train", 260))
        ids, x = batch(), torch.zeros(3, 96, 32)
        wanted, found = (model.levels()[0].router(x, None, ids)[1] for model in (trained, shipped))
        assert torch.equal(found, wanted)
        assert 0.05 < float(found.double().mean()) < 0.8
    text = "The great nation of peace."
    answer = good("segment", run, text, "--json").json
    assert "".join(answer["chunks"]) == text


@pytest.mark.parametrize("bits", [3, 8])
def test_few_bits_and_pruning_leave_tables_as_they_are(bits: int, material: Material) -> None:
    """Large enough to be stored as rows of codes; marks are those of the router as it was made."""
    model = model_of("entropy", material, entropy=EntropyConfig(5, 14))
    state, export = model.state_dict(), ExportConfig(bits=bits, prune=0.9)
    stored = {
        name: quantize(name, state[name], storage)
        for name, storage in plan_of(state, storage_kinds(model), export).items()
    }
    assert stored["network.router.verdicts"].quantizer == "int3_row"
    shipped = model_of("entropy", material, entropy=EntropyConfig(5, 14))
    shipped.load_state_dict({name: dequantize(tensor) for name, tensor in stored.items()})
    ids, first = batch(), torch.zeros(3, 96, dtype=torch.bool)
    found, wanted = (other.levels()[0].router for other in (shipped, model))
    assert isinstance(found, FixedRouter)
    assert isinstance(wanted, FixedRouter)
    assert torch.equal(found.mark(ids, first), wanted.mark(ids, first))


# ---------------------------------------------------------------------------------------------- what is refused


def level(router: RouterConfig, inner: RouterConfig) -> HNetConfig:
    stage = StackConfig(1, 16, 2, 1)
    return HNetConfig(stage, router, HNetConfig(stage, inner, stage, stage), stage)


@pytest.mark.parametrize("kind", ["whitespace", "random", "bpe", "entropy"])
def test_inner_levels_see_no_tokens(kind: str) -> None:
    with pytest.raises(BytegolfError, match=r"main.router.kind is .* an inner level sees chunks and no tokens"):
        level(settings("cosine"), settings(kind))


def test_inner_levels_have_no_surprisal() -> None:
    with pytest.raises(BytegolfError, match=r"main.router.surprisal_weight is 0.1, but only tokens have a loss"):
        level(settings("cosine"), settings("cosine", surprisal_weight=0.1))


def test_an_inner_level_may_have_a_stride(material: Material) -> None:
    model = LanguageModel(ModelConfig(level(settings("whitespace"), settings("stride", target=2.0)), embed_std=0.5))
    scatter(model)
    ids = batch()
    with torch.no_grad(), shapes_unchecked():
        out = model(ids)
        state = model.start(3)
        found = torch.stack([model.step(ids[:, t], state) for t in range(ids.shape[1])], 1)
    torch.testing.assert_close(found, model.cap(out.logits), rtol=0, atol=1e-4)
    outer, inner = (trace.boundary.sum(1) for trace in out.traces)
    assert torch.equal(inner, (outer + 1) // 2)


def test_edges_want_bytes_pieces_and_room(material: Material) -> None:
    with pytest.raises(BytegolfError, match="'bpe', which cuts bytes, but vocab_size is 400"):
        ModelConfig(level(settings("bpe"), settings("cosine")), 400)
    with pytest.raises(BytegolfError, match=rf"the pieces of {SUBWORDS} take .* more than router.bpe.room = 100"):
        router_of("bpe", material, bpe=BpeConfig(SUBWORDS, 100))
    with pytest.raises(BytegolfError, match=r"router.bpe.tokenizer is 'byte260', which has no pieces"):
        router_of("bpe", material, bpe=BpeConfig("byte260"))
    overrides = [*small(), "model.network.router.kind=bpe", "model.network.router.bpe.tokenizer=sp999"]
    message = refused("train", "cpu-demo", *overrides, "--data", material.folder, "--out", material.folder / "no")
    assert "holds no data for the tokenizer 'sp999'" in message


def test_an_unprepared_edge_router_makes_every_byte_a_chunk() -> None:
    router = BpeRouter(settings("bpe"), 8, 260)
    assert chunks(router, "abc") == ["a", "b", "c"]
