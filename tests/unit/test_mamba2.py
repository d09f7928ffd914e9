"""The Mamba-2 mixer: its recurrence as it stands, native kernels, states, documents, and models of any S4 shape."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from conftest import scatter, shapes_unchecked
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bytegolf.config import StackConfig
from bytegolf.config.public_hnet import from_public
from bytegolf.errors import BytegolfError
from bytegolf.model.lm import LanguageModel
from bytegolf.model.mixers.base import StackState
from bytegolf.model.mixers.mamba2 import Mamba2
from bytegolf.ops import mamba_cuda, native
from bytegolf.ops.causal_conv import causal_conv
from bytegolf.ops.ssd import SsdShape, ssd, ssd_on

TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-4, torch.bfloat16: 4e-2}


def mixed(shape: SsdShape, batch: int, length: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """channels, dt, log a, D."""
    kind = torch.promote_types(dtype, torch.float32)
    channels = torch.randn(batch, length, shape.inner + 2 * shape.state, dtype=torch.float64).to(dtype)
    dt, decay = (
        torch.rand(batch, length, shape.heads, dtype=kind),
        -2 * torch.rand(batch, length, shape.heads, dtype=kind),
    )
    return channels, dt, decay, torch.randn(shape.heads, dtype=kind)


def recurrence(
    channels: Tensor, dt: Tensor, decay: Tensor, skip: Tensor, first: Tensor, state: Tensor, shape: SsdShape
) -> tuple[Tensor, Tensor]:
    """y and the last state by the definition."""
    outputs = []
    for t in range(channels.shape[1]):
        x, b, c = channels[:, t].split((shape.inner, shape.state, shape.state), -1)
        x = x.view(len(x), shape.heads, shape.width)
        keep = torch.where(first[:, t, None], 0, decay[:, t].exp())[..., None, None]
        state = keep * state + torch.einsum("bh,bhp,bn->bhnp", dt[:, t], x, b)
        outputs.append((torch.einsum("bhnp,bn->bhp", state, c) + skip[:, None] * x).flatten(1))
    return torch.stack(outputs, 1), state


@settings(max_examples=40)
@given(
    length=st.integers(1, 150),
    heads=st.integers(1, 3),
    width=st.sampled_from([1, 8, 24, 64]),
    state=st.sampled_from([1, 5, 16, 33]),
    chunk=st.sampled_from([1, 7, 64]),
    documents=st.booleans(),
    kernels=st.booleans(),
)
def test_both_forms_are_the_recurrence(
    length: int, heads: int, width: int, state: int, chunk: int, documents: bool, kernels: bool
) -> None:
    torch.manual_seed(length)
    shape = SsdShape(heads, width, state, chunk)
    inputs: Any = tuple(t.requires_grad_() for t in mixed(shape, 2, length, torch.float64))
    first = torch.rand(2, length) < (0.1 if documents else 0)
    before = torch.randn(2, heads, state, width, dtype=torch.float64)
    g = torch.randn(2, length, shape.inner, dtype=torch.float64)
    wanted, _ = cast("Any", recurrence)(*inputs, first, torch.zeros_like(before), shape)
    gradients = torch.autograd.grad(wanted, inputs, g)

    def check() -> None:
        found = cast("Any", ssd)(*inputs, first if documents else None, shape)
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-10 * float(wanted.detach().abs().max()))
        for got, exact in zip(torch.autograd.grad(found, inputs, g), gradients, strict=True):
            torch.testing.assert_close(got, exact, rtol=0, atol=1e-10 * max(1.0, float(exact.abs().max())))
        with torch.no_grad():
            y, after = cast("Any", ssd_on)(*inputs, before, shape)
            exact_y, exact_after = cast("Any", recurrence)(*inputs, torch.zeros_like(first), before, shape)
        torch.testing.assert_close(y, exact_y, rtol=0, atol=1e-10 * float(exact_y.abs().max()))
        torch.testing.assert_close(after, exact_after, rtol=0, atol=1e-10 * float(exact_after.abs().max()))

    if kernels:
        check()
    else:
        with native.disabled():
            check()


@pytest.mark.skipif(native.why_not() is not None, reason=str(native.why_not()))
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("taps", [1, 2, 4, 9])
def test_native_kernels_are_the_plain_forms(dtype: torch.dtype, taps: int) -> None:
    """Of part of a packed projection, in several documents; for sequences longer than a block of the kernel."""
    shape, kind = SsdShape(3, 64, 20, 16), torch.promote_types(dtype, torch.float32)
    first = torch.rand(2, 150) < 0.05
    width = shape.inner + 2 * shape.state
    packed = torch.randn(2, 150, width + 9, dtype=torch.float64).to(dtype)
    _, dt, decay, skip = mixed(shape, 2, 150, dtype)
    weights = torch.randn(taps, width, dtype=kind), torch.randn(width, dtype=kind)
    inputs: Any = tuple(t.requires_grad_() for t in (packed, *weights, dt, decay, skip))

    def run(packed: Tensor, taps: Tensor, bias: Tensor, *rest: Any) -> Tensor:
        run_ssd: Any = ssd
        found: Tensor = run_ssd(causal_conv(packed[..., 4 : 4 + width], taps, bias, first), *rest, first, shape)
        return found

    def results() -> list[Tensor]:
        y = run(*inputs)
        g = torch.randn(y.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64).to(dtype)
        return [y.detach(), *torch.autograd.grad(y, inputs, g)]

    ours = results()
    with native.disabled():
        plain = results()
    for got, wanted in zip(ours, plain, strict=True):
        assert got.dtype == wanted.dtype
        torch.testing.assert_close(got, wanted, rtol=0, atol=TOLERANCE[dtype] * float(wanted.abs().max()))


@pytest.mark.parametrize("threads", [2, 3])
def test_the_number_of_threads_changes_no_bit(threads: int) -> None:
    shape = SsdShape(5, 16, 8, 16)
    inputs: Any = tuple(t.requires_grad_() for t in mixed(shape, 3, 200, torch.float32))

    def results() -> list[Tensor]:
        y = cast("Any", ssd)(*inputs, None, shape)
        return [y, *torch.autograd.grad(y.square().sum(), inputs)]

    wanted, before = results(), torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        found = results()
    finally:
        torch.set_num_threads(before)
    assert all(map(torch.equal, found, wanted))


PUBLIC = {
    "arch_layout": ["m1t1", ["T1m1", ["M1"], "t1"], "M1"],
    "d_model": [64, 96, 128],
    "d_intermediate": [100, 130, 40],
    "vocab_size": 256,
    "ssm_cfg": {"chunk_size": 8, "d_conv": 4, "d_state": 7, "expand": 2},
    "attn_cfg": {"num_heads": [2, 4, 2], "rotary_emb_dim": [0, 8, 4], "window_size": [5, -1, 2]},
    "tie_embeddings": True,
}


def model_in(dtype: torch.dtype, reset: bool = False) -> LanguageModel:
    config = from_public(PUBLIC)
    model = LanguageModel(config.__class__(**{**vars(config), "reset_at_bos": reset}))
    scatter(model)
    model.precision = dtype
    return (model.double() if dtype == torch.float64 else model).eval()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("reset", [False, True])
@pytest.mark.parametrize("kernels", [False, True])
@torch.no_grad()
def test_steps_and_extensions_are_the_forward_pass(dtype: torch.dtype, reset: bool, kernels: bool) -> None:
    """At every prefix; of sequences whose chunks begin at different times, extended by different numbers of bytes."""
    model, draw = model_in(dtype, reset), np.random.default_rng(3)
    text = ("Fellow citizens of the Senate, the House; and Größe: " * 2).encode()[:72]
    ids = torch.tensor([list(text), list(text[::-1]), [7] * len(text)])
    ids[0, 20] = ids[1, 33] = ids[1, 34] = model.config.bos
    tolerance = TOLERANCE[dtype]
    if not kernels:
        with native.disabled(), shapes_unchecked():
            _check_prefixes(model, ids, draw, tolerance)
    else:
        with shapes_unchecked():
            _check_prefixes(model, ids, draw, tolerance)


def _check_prefixes(model: LanguageModel, ids: Tensor, draw: np.random.Generator, tolerance: float) -> None:
    out = model(ids)
    wanted, tolerance = out.logits, tolerance * float(out.logits.abs().max())
    assert len({int(n) for n in out.traces[0].boundary.sum(1)}) > 1
    state = model.start(len(ids))
    for t in range(ids.shape[1]):
        torch.testing.assert_close(model.step(ids[:, t], state), wanted[:, t], rtol=0, atol=tolerance)
    state, at = model.start(len(ids)), np.zeros(len(ids), np.int64)
    while (at < ids.shape[1]).any():
        rows = np.flatnonzero(at < ids.shape[1])
        counts = np.minimum(draw.integers(1, 12, len(rows)), ids.shape[1] - at[rows])
        padded = torch.full((len(rows), int(counts.max())), 9)
        for index, (row, count) in enumerate(zip(rows, counts, strict=True)):
            padded[index, :count] = ids[row, at[row] : at[row] + count]
        found = model.extend(padded, state, rows, counts)
        for index, (row, count) in enumerate(zip(rows, counts, strict=True)):
            exact = wanted[row, at[row] : at[row] + count]
            torch.testing.assert_close(found[index, :count], exact, rtol=0, atol=tolerance)
        at[rows] += counts


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_the_future_moves_no_earlier_bit(dtype: torch.dtype) -> None:
    model, ids = model_in(dtype), torch.randint(256, (1, 90))
    encoder: Any = model.network.encoder
    before = encoder(model.embed(ids))
    for t in (0, 1, 5, 63, 64, 88):
        changed = ids.clone()
        changed[:, t + 1 :] = torch.randint(256, changed[:, t + 1 :].shape)
        after = encoder(model.embed(changed))
        assert torch.equal(after[:, : t + 1], before[:, : t + 1])
        assert not torch.equal(after[:, t + 1 :], before[:, t + 1 :])


@torch.no_grad()
def test_documents_do_not_see_one_another() -> None:
    """Each is what it is alone, convolution and state included, to the last bit of fp64's rounding."""
    mixer = Mamba2(StackConfig(1, 64, kind="mamba2", options={"d_state": 6, "d_conv": 5})).double()
    scatter(mixer)
    x = torch.randn(1, 90, 64, dtype=torch.float64)
    documents = torch.tensor([[0] * 30 + [1] + [2] * 59])
    for kernels in (True, False):
        if kernels:
            together = mixer(x, documents)
        else:
            with native.disabled():
                together = mixer(x, documents)
        alone = torch.cat([mixer(part) for part in x.split((30, 1, 59), 1)], 1)
        torch.testing.assert_close(together, alone, rtol=0, atol=1e-12)


def test_widths_that_do_not_fit_are_said() -> None:
    with pytest.raises(BytegolfError, match="do not split into heads"):
        Mamba2(StackConfig(1, 40, kind="mamba2"))
    with pytest.raises(BytegolfError, match="d_state"):
        Mamba2(StackConfig(1, 64, kind="mamba2", options={"d_state": 0}))
    with pytest.raises(BytegolfError, match="d_stat"):
        Mamba2(StackConfig(1, 64, kind="mamba2", options={"d_stat": 3}))


def test_on_gpus_the_packages_kernels_get_the_same_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stand-ins with the signatures of causal-conv1d and mamba-ssm compute what we hand them by the definition."""

    def causal_conv1d_fn(x: Tensor, weight: Tensor, bias: Tensor, seq_idx: Tensor | None, activation: str) -> Tensor:
        assert activation == "silu"
        assert x.stride(1) == 1
        first = None if seq_idx is None else torch.nn.functional.pad(seq_idx.diff(dim=1) > 0, (1, 0), value=True)
        return causal_conv(x.transpose(1, 2), weight.t(), bias, first).transpose(1, 2)

    def mamba_chunk_scan_combined(
        x: Tensor, dt: Tensor, rate: Tensor, b: Tensor, c: Tensor, chunk_size: int, **others: Tensor
    ) -> tuple[Tensor, Tensor]:
        assert others.pop("return_final_states")
        shape = SsdShape(x.shape[2], x.shape[3], b.shape[3], chunk_size)
        numbers, before = others["seq_idx"], others["initial_states"]
        first = torch.zeros(dt.shape[:2], dtype=torch.bool)
        if numbers is not None:
            first[:, 1:] = numbers.diff(dim=1) > 0
        state = torch.zeros(len(x), shape.heads, shape.state, shape.width) if before is None else before.mT
        y, after = recurrence(
            torch.cat((x.flatten(2), b[:, :, 0], c[:, :, 0]), -1), dt, dt * rate, others["D"], first, state, shape
        )
        return y.view(x.shape), after.mT

    mixer = Mamba2(StackConfig(1, 64, kind="mamba2", options={"d_state": 8, "d_conv": 4, "chunk_size": 16}))
    scatter(mixer)
    x, documents = torch.randn(2, 40, 64), torch.randint(0, 4, (2, 40)).sort(1).values
    wanted, alone = mixer(x, documents), mixer(x)
    modules = {
        mamba_cuda.CONV: SimpleNamespace(causal_conv1d_fn=causal_conv1d_fn),
        mamba_cuda.SCAN: SimpleNamespace(mamba_chunk_scan_combined=mamba_chunk_scan_combined),
    }
    monkeypatch.setattr(mamba_cuda, "_here", lambda *_: True)
    monkeypatch.setattr(mamba_cuda, "_module", modules.__getitem__)
    torch.testing.assert_close(mixer(x, documents), wanted, rtol=0, atol=1e-5)
    state = StackState(np.zeros(2, np.int64), [mixer.start(2, x.device, x.dtype)], None)
    parts = []
    with torch.no_grad():
        for part in x.split((7, 1, 32), 1):
            parts.append(mixer.extend(part, state.blocks[0], mixer.span(state, None, None, part.shape[1], x.device)))
            state.lengths += part.shape[1]
    torch.testing.assert_close(torch.cat(parts, 1), alone, rtol=0, atol=1e-5)


@pytest.mark.gpu
@pytest.mark.parametrize("documents", [False, True])
def test_on_a_gpu_it_is_what_it_is_on_a_cpu(documents: bool) -> None:
    mixer = Mamba2(StackConfig(1, 64, kind="mamba2", options={"d_state": 16, "chunk_size": 32}))
    scatter(mixer)
    x = torch.randn(2, 100, 64)
    numbers = torch.randint(0, 4, (2, 100)).sort(1).values if documents else None
    y = mixer(x, numbers)
    wanted = torch.autograd.grad(y.square().sum(), list(mixer.parameters()))
    mixer = mixer.cuda()
    found = mixer(x.cuda(), None if numbers is None else numbers.cuda())
    torch.testing.assert_close(found.cpu(), y, rtol=1e-3, atol=1e-3)
    for got, exact in zip(torch.autograd.grad(found.square().sum(), list(mixer.parameters())), wanted, strict=True):
        torch.testing.assert_close(got.cpu(), exact, rtol=1e-2, atol=1e-2 * float(exact.abs().max()))
