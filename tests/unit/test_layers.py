"""Attention, MLP, block and stage against the plain formulas of systems.md (S0), in fp64."""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

import numpy as np
import pytest
import torch
from conftest import scatter
from torch import Tensor

from bytegolf.config import StackConfig
from bytegolf.model.layers import Linear, Mlp
from bytegolf.model.mixers.attention import Attention
from bytegolf.model.stack import Block, Stack, Stream
from bytegolf.ops import native
from bytegolf.ops.rms_norm import NORM_EPS
from bytegolf.ops.rotary import rotary, rotary_angles

D, H, G = 16, 4, 2
K = D // H


def attention(window: int = 0, kv_heads: int = G) -> Attention:
    module = Attention(StackConfig(1, D, H, kv_heads, window=window, rope_base=100.0))
    scatter(module)
    return module


def norm(x: Tensor) -> Tensor:
    return x * (x.pow(2).mean(-1, keepdim=True) + NORM_EPS).rsqrt()


def rotate(x: Tensor, base: float = 100.0) -> Tensor:
    """Rotary positions 0, 1, … along the second axis of (B, L, heads, K), through complex numbers."""
    half = x.shape[-1] // 2
    frequencies = base ** (-torch.arange(half, dtype=torch.float64) / half)
    angles = torch.arange(x.shape[1], dtype=torch.float64)[:, None, None] * frequencies
    turned = torch.complex(x[..., :half], x[..., half:]) * torch.polar(torch.ones_like(angles), -angles)
    return torch.cat((turned.real, turned.imag), -1)


def plain_attention(module: Attention, x: Tensor, documents: Tensor | None = None) -> Tensor:
    """One query at a time over the keys it may see."""
    batch, length, _ = x.shape
    q, k, v = torch.split(x @ module.qkv.weight.double().T, list(module.qkv.splits), -1)
    q, k, v = (t.view(*x.shape[:2], -1, module.width) for t in (q, k, v))
    assert module.q_gain is not None
    q = rotate(norm(q), module.shape.base) * module.q_gain.double()[:, None]
    k = rotate(norm(k), module.shape.base)
    out = torch.zeros_like(q)
    for b in range(batch):
        for t in range(length):
            oldest = max(0, t - module.window + 1) if module.window else 0
            seen = [s for s in range(oldest, t + 1) if documents is None or documents[b, s] == documents[b, t]]
            for h in range(module.heads):
                shared = h // (module.heads // module.groups)
                scores = k[b, seen, shared] @ q[b, t, h] / module.width**0.5
                out[b, t, h] = torch.softmax(scores, 0) @ v[b, seen, shared]
    return out.flatten(-2) @ module.proj.weight.double().T


DOCUMENTS = torch.tensor([[0] * 3 + [1] * 1 + [2] * 9 + [3] * 1 + [4] * 9, [1] * 12 + [2] * 11])


@pytest.fixture(params=["dense", "fused", "native"])
def kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Attention in turn through two products, PyTorch's kernel (which is for long sequences) and our own."""
    if request.param == "native":
        yield
        return
    if request.param == "fused":
        monkeypatch.setattr("bytegolf.ops.attention.DENSE_LENGTH", 0)
    with native.disabled():
        yield


@pytest.mark.usefixtures("kernel")
@pytest.mark.parametrize("with_documents", [False, True], ids=["", "documents"])
@pytest.mark.parametrize("length", [1, 2, 5, 10, 15, 23])
@pytest.mark.parametrize("window", [0, 1, 2, 5, 22, 23, 64])
def test_attention_is_the_plain_formula(window: int, length: int, with_documents: bool) -> None:
    """Full and local, windows smaller and larger than the sequence and not dividing it."""
    module = attention(window)
    x = torch.randn(2, length, D, dtype=torch.float64)
    documents = DOCUMENTS[:, -length:] if with_documents else None
    with torch.no_grad():
        got, wanted = module(x, documents), plain_attention(module, x, documents)
    torch.testing.assert_close(got, wanted, rtol=0, atol=2e-6)  # the angles are fp32


@pytest.mark.usefixtures("kernel")
@pytest.mark.parametrize("with_documents", [False, True], ids=["", "documents"])
@pytest.mark.parametrize("window", [0, 5])
def test_later_positions_change_nothing_by_a_bit(window: int, with_documents: bool) -> None:
    module = attention(window)
    x = torch.randn(2, 23, D)
    documents = DOCUMENTS if with_documents else None
    with torch.no_grad():
        before = module(x, documents)
        for t in range(0, 22, 3):
            changed = x.clone()
            changed[:, t + 1 :] = torch.randn_like(changed[:, t + 1 :]) * 100
            assert torch.equal(module(changed, documents)[:, : t + 1], before[:, : t + 1])


@pytest.mark.usefixtures("kernel")
@pytest.mark.parametrize("window", [0, 4])
def test_gradients_of_attention(window: int) -> None:
    module = attention(window)
    x = torch.randn(2, 11, D, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(2, 11, D, dtype=torch.float64)
    documents = DOCUMENTS[:, :11]
    inputs = (x, *module.parameters())
    ours = torch.autograd.grad((module(x, documents) * weights).sum(), inputs)
    plain = torch.autograd.grad((plain_attention(module, x, documents) * weights).sum(), inputs)
    for got, wanted in zip(ours, plain, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("window", [0, 3])
def test_documents_are_attended_one_by_one(window: int) -> None:
    """Although their positions count on: rotary attention sees distances only."""
    module = attention(window)
    x = torch.randn(1, 23, D, dtype=torch.float64)
    lengths = DOCUMENTS[0].bincount().tolist()
    with torch.no_grad():
        together = module(x, DOCUMENTS[:1])
        apart = torch.cat([module(part) for part in torch.split(x, lengths, 1)], 1)
    torch.testing.assert_close(together, apart, rtol=0, atol=2e-6)


@pytest.mark.usefixtures("kernel")
@pytest.mark.parametrize("window", [0, 4])
def test_grouped_queries_are_repeated_heads(window: int) -> None:
    grouped, plain = attention(window), attention(window, kv_heads=H)
    with torch.no_grad():
        q, k, v = torch.split(grouped.qkv.weight, list(grouped.qkv.splits))
        k, v = (t.view(G, K, D).repeat_interleave(H // G, 0).flatten(0, 1) for t in (k, v))
        plain.qkv.weight.copy_(torch.cat((q, k, v)))
        plain.proj.weight.copy_(grouped.proj.weight)
        assert plain.q_gain is not None
        assert grouped.q_gain is not None
        plain.q_gain.copy_(grouped.q_gain)
        x = torch.randn(2, 13, D)
        torch.testing.assert_close(grouped(x), plain(x), rtol=0, atol=1e-6)


@pytest.mark.usefixtures("kernel")
@pytest.mark.parametrize("window", [0, 4])
def test_attention_in_bf16_is_near_fp32(window: int) -> None:
    module = attention(window)
    x = torch.randn(2, 11, D).bfloat16()
    got, wanted = module(x, DOCUMENTS[:, :11]), module(x.float(), DOCUMENTS[:, :11])
    assert got.dtype == torch.bfloat16
    torch.testing.assert_close(got.float(), wanted, rtol=0, atol=0.03 * float(wanted.detach().abs().max()))


def test_rotary_scores_depend_on_the_distance_only() -> None:
    q, k = torch.randn(1, 1, 1, 8), torch.randn(1, 1, 1, 8)

    def score(query: int, key: int) -> float:
        turned = []
        for x, position in ((q, query), (k, key)):
            cos, sin = rotary_angles(torch.tensor([position]), 8, 10_000.0)
            turned.append(rotary(x, cos.unsqueeze(-2), sin.unsqueeze(-2)))
        return float((turned[0] * turned[1]).sum())

    assert score(7, 3) == pytest.approx(score(104, 100), abs=1e-4)
    assert score(7, 3) == pytest.approx(score(2004, 2000), abs=1e-3)
    assert score(7, 3) != pytest.approx(score(3, 7), abs=1e-2)
    assert score(5, 5) == pytest.approx(float((q * k).sum()), abs=1e-5)


def test_extensions_of_a_stage_with_rows_at_different_positions() -> None:
    """A ring that comes round, a cache that grows, rows that take part in some calls only, and padding behind some."""
    chance = np.random.default_rng(0)
    for window, length in ((5, 47), (0, 140)):
        module = Stack(StackConfig(2, D, 2, 1, window=window))
        scatter(module)
        x = torch.randn(3, length, D)
        with torch.no_grad():
            wanted = module(x)
            state = module.start(3, x.device, x.dtype)
            at = np.zeros(3, np.int64)
            while (at < length).any():
                rows = np.flatnonzero((chance.random(3) < 0.7) & (at < length))
                if not len(rows):
                    continue
                counts = np.minimum(chance.choice([1, 2, 4, 9, 20], len(rows)), length - at[rows])
                more = torch.full((len(rows), int(counts.max()), D), 1e3)
                for i, (row, count) in enumerate(zip(rows, counts, strict=True)):
                    more[i, :count] = x[row, at[row] : at[row] + count]
                got = module.extend(more, state, rows, counts)
                for i, (row, count) in enumerate(zip(rows, counts, strict=True)):
                    found = wanted[row, at[row] : at[row] + count]
                    torch.testing.assert_close(got[i, :count], found, rtol=0, atol=1e-5)
                at[rows] += counts
            assert state.lengths.tolist() == [length] * 3


@pytest.mark.parametrize("window", [0, 5, 64])
@pytest.mark.parametrize("layers", [0, 1, 2, 3])
@pytest.mark.parametrize("keep", [1, 4, 20, 40])
def test_the_tail_of_a_stage_is_the_end_of_its_forward(window: int, layers: int, keep: int) -> None:
    module = Stack(StackConfig(layers, D, 2, 1, window=window))
    scatter(module)
    x = torch.randn(2, 40, D)
    documents = (torch.rand(2, 40) < 0.1).cumsum(1)
    with torch.no_grad():
        for given in (None, documents):
            wanted = module(x, given)[:, -keep:]
            torch.testing.assert_close(module.tail(x, given, keep), wanted, rtol=0, atol=1e-5)
            if (before := module.receptive_field) is not None and keep + before < 40:
                cut = None if given is None else given[:, -keep - before :]
                found = module.tail(x[:, -keep - before :], cut, keep)
                torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)


def test_linear_uses_its_fp32_weight_in_the_dtype_of_x() -> None:
    linear = Linear(3, 2, 5)
    assert linear.splits == (2, 5)
    x = torch.randn(4, 3)
    torch.testing.assert_close(linear(x), x @ linear.weight.T)
    assert linear(x.bfloat16()).dtype == torch.bfloat16
    assert linear.weight.dtype == torch.float32


def plain_mlp(module: Mlp, x: Tensor) -> Tensor:
    return (x @ module.fc.weight.double().T).clamp(min=0).square() @ module.proj.weight.double().T


def plain_block(block: Block, x: Tensor, x0: Tensor) -> Tensor:
    mix0, mix1 = block.resid_mix.double()
    x = mix0 * x + mix1 * x0
    x = x + block.mixer_scale.double() * plain_attention(block.mixer, norm(x))  # type: ignore[arg-type]
    return x + block.mlp_scale.double() * plain_mlp(cast("Mlp", block.mlp), norm(x))


@pytest.mark.parametrize("layers", [0, 1, 2, 4, 5])
def test_stage_is_the_plain_formula(layers: int) -> None:
    """The first half of the blocks pushes, the second pops the last pushed first; an odd one is plain."""
    stage = Stack(StackConfig(layers, D, H, G, mlp_mult=1.5))
    scatter(stage)
    x = torch.randn(2, 6, D, dtype=torch.float64)
    half = layers // 2
    with torch.no_grad():
        got = stage(x)
        y = y0 = norm(x)
        pushed: list[Tensor] = []
        for index in range(layers):
            block = stage.blocks[index]
            assert isinstance(block, Block)
            if index >= half and pushed:
                y = y + stage.skip_weights[index - half].double() * pushed.pop()
            y = plain_block(block, y, y0)
            if index < half:
                pushed.append(y)
    assert not pushed
    torch.testing.assert_close(got, norm(y), rtol=0, atol=1e-5)


def test_an_untrained_block_adds_nothing() -> None:
    """Output projections start at zero (S0)."""
    block = Block(StackConfig(1, D, H, G))
    x = torch.randn(2, 6, D)
    assert torch.equal(block(Stream(x), torch.randn(2, 6, D), None).sum(), x)
