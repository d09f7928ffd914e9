"""The whole-model step against the plain model, and the same bits however tokens are grouped."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from conftest import TINY, ModelMaker, scatter, shapes_unchecked
from torch import Tensor, nn

from bytegolf.artifact.quantize import quantize_rows
from bytegolf.config import (
    ChunkHashConfig,
    CosineConfig,
    HNetConfig,
    ModelConfig,
    NgramConfig,
    RouterConfig,
    SoftConfig,
    StackConfig,
)
from bytegolf.data.tokenizer import ByteTokenizer
from bytegolf.infer.native_step import ExactModel, Stepper, stepper
from bytegolf.infer.sample import generate
from bytegolf.infer.speculative import Acceptance
from bytegolf.model.embed import BOS
from bytegolf.model.layers import float_state
from bytegolf.model.lm import LanguageModel
from bytegolf.model.stack import maps_of_codes
from bytegolf.ops import native

pytestmark = pytest.mark.skipif(native.why_not() is not None, reason="no native kernels here")

TEXT = ("The quick brown fox jumps over the lazy dog. Größe, naïveté, 東京タワー; und so weiter. " * 3).encode()


def sequences(count: int, length: int) -> Tensor:
    """Different texts behind a BOS, a second document in some."""
    ids = torch.tensor([[BOS, *(byte + 4 for byte in TEXT[7 * i : 7 * i + length - 1])] for i in range(count)])
    ids[1::2, length // 2] = BOS
    return ids


def wide(reset: bool = False) -> LanguageModel:
    """Widths that are no multiple of a vector, an encoder without blocks, a sharp narrow router, a wider main network,
    windows shorter than a piece, rows left out in training: as cpu-demo and cpu-30min have them."""
    outer = StackConfig(1, 40, heads=2, kv_heads=1, window=19, mlp_mult=1.5)
    router = RouterConfig(3.0, cosine=CosineConfig(dim=12, sharpness=4.0, init="calibrated"))
    main = StackConfig(4, 72, heads=6, kv_heads=3, rope_base=1000.0)
    chunks = ChunkHashConfig(dim=5, bits=7, dropout=0.3)
    network = HNetConfig(StackConfig(0, 40, heads=2, kv_heads=1), router, main, outer, chunk_hash=chunks)
    ngrams = NgramConfig(longest=5, bits=7, dim=6, dropout=0.3)
    model = LanguageModel(ModelConfig(network, ngrams=ngrams, softcap=15.0, reset_at_bos=reset))
    scatter(model)
    return model.eval()


MODELS: list[str] = [*TINY, "wide"]


def made(name: str, make_model: ModelMaker, reset: bool = False) -> LanguageModel:
    return wide(reset) if name == "wide" else make_model(name, reset).eval()


def one_by_one(runner: Stepper, ids: Tensor) -> Tensor:
    with torch.inference_mode(), shapes_unchecked():
        state = runner.start(len(ids), ids.shape[1])
        return torch.stack([runner.step(column, state) for column in ids.unbind(1)], 1)


@pytest.mark.parametrize("reset", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_it_is_the_plain_step(name: str, reset: bool, make_model: ModelMaker) -> None:
    """To 1e-5 of the largest logit, the reference in fp64: several documents, and rings that come round."""
    model, ids = made(name, make_model, reset), sequences(3, 140)
    exact = stepper(model)
    assert isinstance(exact, ExactModel)
    found = one_by_one(exact, ids)
    model.precision = torch.float64
    with native.disabled():
        wanted = one_by_one(model, ids)
    torch.testing.assert_close(found.double(), wanted, rtol=0, atol=1e-5 * float(wanted.abs().max()))


@pytest.mark.parametrize("reset", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_the_same_bits_in_every_grouping(name: str, reset: bool, make_model: ModelMaker) -> None:
    """One by one, all at once, in uneven pieces, as some rows of a larger state, beside padding, on two threads."""
    exact, ids = stepper(made(name, make_model, reset)), sequences(20, 150)
    wanted = one_by_one(exact, ids[:5])
    with torch.inference_mode(), shapes_unchecked():
        assert torch.equal(exact.extend(ids, exact.start(20))[:5], wanted)
        state, pieces, at = exact.start(30), [], 0
        rows = np.array([28, 3, 17, 4, 0])
        for size in (1, 67, 2, 13, 67):
            pieces.append(exact.extend(ids[:5, at : at + size], state, rows))
            at += size
        assert torch.equal(torch.cat(pieces, 1), wanted)
        padded, counts = exact.start(5), np.array([9, 1, 80, 149, 0])
        found = exact.extend(ids[:5], padded, counts=counts)
        for row, count in enumerate(counts.tolist()):  # and behind padding each goes on by itself
            assert torch.equal(found[row, :count], wanted[row, :count])
            rest = exact.extend(ids[row : row + 1, count:], padded, np.array([row]))
            assert torch.equal(rest[0], wanted[row, count:])
        before = torch.get_num_threads()
        torch.set_num_threads(2)
        try:
            assert torch.equal(exact.extend(ids, exact.start(20))[:5], wanted)
        finally:
            torch.set_num_threads(before)


def test_it_is_as_near_to_fp64_as_the_plain_step() -> None:
    model, ids = wide(), sequences(1, 120)
    with native.disabled():
        rounded = one_by_one(model, ids)
    found = one_by_one(stepper(model), ids)
    model.precision = torch.float64
    with native.disabled():
        truth = one_by_one(model, ids)
    assert float((found - truth).abs().max()) < 2 * float((rounded - truth).abs().max()) + 1e-6


def halved(model: LanguageModel) -> LanguageModel:
    """Matrices in bf16, as imported weights are; vectors stay in fp32."""
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1 and not name.endswith(".conv"):
            parameter.data = parameter.data.bfloat16()
    return model


def coded(model: LanguageModel) -> LanguageModel:
    """Matrices of blocks as codes, as an artifact of S4's has them."""
    for layer in maps_of_codes(model).values():
        layer.take_codes(*quantize_rows(layer.weight.detach(), 8))
    return model


@pytest.mark.parametrize("store", [halved, coded])
def test_stored_weights_are_read_where_they_lie(
    make_model: ModelMaker, store: Callable[[LanguageModel], LanguageModel]
) -> None:
    """The same logits as of these weights in fp32, and the same bits in any grouping; nothing of them is copied."""
    model, ids = store(make_model("paper").eval()), sequences(3, 70) % 256
    exact = stepper(model)
    assert isinstance(exact, ExactModel)
    there = {tensor.data_ptr() for tensor in exact._there}
    narrow = [p for name, p in model.named_parameters() if p.dtype.itemsize < 4 and name != "embedding.weight"]
    assert {parameter.data_ptr() for parameter in narrow} <= there
    found = one_by_one(exact, ids)
    with torch.inference_mode():
        assert torch.equal(exact.extend(ids, exact.start(3)), found)
        state = model.start(3)
        plain = torch.stack([model.step(column, state) for column in ids.unbind(1)], 1)
    torch.testing.assert_close(plain, found, rtol=0, atol=1e-5 * float(found.abs().max()))
    wanted = make_model("paper").eval()
    wanted.load_state_dict({name: tensor.float() for name, tensor in float_state(model).items()})
    torch.testing.assert_close(found, one_by_one(stepper(wanted), ids), rtol=0, atol=1e-5 * float(found.abs().max()))


@pytest.mark.parametrize("name", ["two-level", "tables", "paper"])
@pytest.mark.parametrize("temperature", [0.0, 1.2])
def test_drafts_give_the_text_of_plain_generation(name: str, temperature: float, make_model: ModelMaker) -> None:
    """To the bit, as a pass over a draft has the bits of single steps; forks share what only grows."""
    model, acceptance = make_model(name, seed=3).eval(), Acceptance()
    texts = []
    with shapes_unchecked():
        for draft in (0, 1, 4, 9):
            pieces = generate(
                model,
                ByteTokenizer(),
                ["state of"],
                [5],
                size=90,
                temperature=temperature,
                draft=draft,
                acceptance=acceptance,
            )
            texts.append(b"".join(piece for _, piece in pieces))
    assert len(texts[0]) > 20
    assert texts.count(texts[0]) == len(texts)
    assert acceptance.rate > 0


def test_a_fork_leaves_the_original_as_it_was(make_model: ModelMaker) -> None:
    for name in MODELS:
        exact, ids = stepper(made(name, make_model)), sequences(2, 150)
        assert isinstance(exact, ExactModel)
        with torch.inference_mode():
            state = exact.start(2)
            exact.extend(ids[:, :60], state)
            fork = exact.fork(state)
            exact.extend(ids[:, 30:], fork)
            found = exact.extend(ids[:, 60:], state)
            assert torch.equal(found, exact.extend(ids, exact.start(2))[:, 60:]), name
        assert exact.positions(state)[0][0] == 150


def test_new_weights_are_packed_again(make_model: ModelMaker) -> None:
    model, ids = make_model("one-level"), sequences(1, 9)
    first = stepper(model)
    assert stepper(model) is first
    with torch.no_grad():
        model.network.get_parameter("main.blocks.0.mlp.fc.weight").mul_(2)
    second = stepper(model)
    assert second is not first
    with native.disabled():
        wanted = one_by_one(model, ids)
    torch.testing.assert_close(one_by_one(second, ids), wanted, rtol=1e-5, atol=1e-5)
    assert not torch.equal(one_by_one(first, ids), one_by_one(second, ids))  # as it was packed


def test_ids_outside_the_alphabet(make_model: ModelMaker) -> None:
    exact = stepper(make_model("flat"))
    with pytest.raises(IndexError, match="id 260"):
        exact.step(torch.tensor([260]), exact.start(1))


def other_dtype(model: LanguageModel) -> None:
    model.precision = torch.bfloat16


def other_weights(model: LanguageModel) -> None:
    model.double()


def fixed_capacity(model: LanguageModel) -> None:
    model.set_capacity("fixed", 2.0)


def another_part(model: LanguageModel) -> None:
    model.network.get_submodule("decoder").register_parameter("mine", nn.Parameter(torch.ones(3)))


@pytest.mark.parametrize("change", [other_dtype, other_weights, fixed_capacity, another_part])
def test_what_it_does_not_know_is_left_to_the_model(
    change: Callable[[LanguageModel], None], make_model: ModelMaker
) -> None:
    model = make_model("one-level")
    assert isinstance(stepper(model), ExactModel)
    change(model)
    assert stepper(model) is model


@pytest.mark.parametrize("kind", ["stride", "whitespace"])
def test_other_routers_and_soft_chunks_are_left_to_the_model(kind: str) -> None:
    stage = StackConfig(1, 16, heads=2, kv_heads=1)
    ruled = LanguageModel(ModelConfig(HNetConfig(stage, RouterConfig(3.0, kind=kind), stage, stage)))
    soft = LanguageModel(ModelConfig(stage, soft=SoftConfig(layers=1)))
    assert (stepper(ruled), stepper(soft)) == (ruled, soft)


def test_without_kernels_the_model_steps(make_model: ModelMaker) -> None:
    model = make_model("flat")
    with native.disabled():
        assert stepper(model) is model
