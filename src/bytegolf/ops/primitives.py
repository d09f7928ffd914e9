"""Differentiable primitives with hand-written backward passes: few passes over activations, statistics in fp32.

Each has its plain form in the docstring; `tests/test_ops.py` checks values and gradients against that form in fp64.

Legend: N rows (all leading axes), D width, B batch, L positions, C chunks.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd import Function

from bytegolf.ops import fused, native, plain
from bytegolf.ops.functions import NORM_EPS as NORM_EPS
from bytegolf.ops.functions import apply, first_order, rows_of, wide


def _column_sums(a: Tensor, b: Tensor) -> Tensor:
    """Σ over rows of a·b, (D,): through a product with ones, which accumulates in fp32 and beats ``sum(0)``."""
    product = rows_of(a * b)
    return (product.new_ones(1, product.shape[0]) @ product)[0]


def _mean_square(x: Tensor) -> Tensor:
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=wide(x.dtype))
    mean: Tensor = norm.square_().div_(x.shape[-1])
    return mean


class _RmsNorm(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        scale = torch.rsqrt_(_mean_square(x).add_(NORM_EPS)).to(x.dtype)
        y = x * scale
        ctx.save_for_backward(y, scale)
        return y

    @staticmethod
    @first_order
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (g,) = grads
        y, scale = ctx.saved_tensors
        dot = (g * y).sum(-1, keepdim=True, dtype=wide(y.dtype)).div_(-y.shape[-1]).to(y.dtype)
        return torch.addcmul(g, y, dot).mul_(scale)


@plain.when_compiled(plain.rms_norm)
def rms_norm(x: Float[Tensor, "... D"]) -> Float[Tensor, "... D"]:
    """x / sqrt(mean(x²) + ε) over the last axis, without a learned gain (S0)."""
    if native.usable(x):
        return fused.rms_norm(x)
    return apply(_RmsNorm, x)


def normed_embedding(ids: Int[Tensor, "*B"], weight: Float[Tensor, "V D"], dtype: torch.dtype) -> Float[Tensor, "*B D"]:
    """The RMS norm of weight[ids], in ``dtype`` (S0)."""
    if ids.numel() >= weight.shape[0] and native.usable(weight.new_empty(0, dtype=dtype)):
        return fused.normed_embedding(ids, weight, dtype)
    return rms_norm(F.embedding(ids, weight).to(dtype))


class _Mix(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, x0: Tensor, mix: Tensor) -> Tensor:
        ctx.save_for_backward(x, x0, mix)
        weights = mix.to(x.dtype)
        return torch.addcmul(x * weights[0], x0, weights[1])

    @staticmethod
    @first_order
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        (g,) = grads
        x, x0, mix = ctx.saved_tensors
        weights = mix.to(g.dtype)
        d_mix = torch.stack((_column_sums(g, x), _column_sums(g, x0))).to(mix.dtype)
        return g * weights[0], g * weights[1], d_mix


@plain.when_compiled(plain.mix)
def mix(x: Float[Tensor, "*B D"], x0: Float[Tensor, "*B D"], weights: Float[Tensor, "2 D"]) -> Float[Tensor, "*B D"]:
    """weights₀·x + weights₁·x0, per channel (S0's residual mix)."""
    return apply(_Mix, x, x0, weights)


class _AddScaled(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, scale: Tensor) -> Tensor:
        ctx.save_for_backward(y, scale)
        return torch.addcmul(x, y, scale.to(x.dtype))

    @staticmethod
    @first_order
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        (g,) = grads
        y, scale = ctx.saved_tensors
        return g, g * scale.to(g.dtype), _column_sums(g, y).to(scale.dtype)


@plain.when_compiled(plain.add_scaled)
def add_scaled(x: Float[Tensor, "*B D"], y: Float[Tensor, "*B D"], scale: Float[Tensor, " D"]) -> Float[Tensor, "*B D"]:
    """x + scale·y, per channel (S0's attention, MLP and skip scales)."""
    return apply(_AddScaled, x, y, scale)


class _ReluSquared(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        positive = torch.relu(x)
        ctx.save_for_backward(positive)
        return positive * positive

    @staticmethod
    @first_order
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (positive,) = ctx.saved_tensors
        gradient: Tensor = (grads[0] * positive).mul_(2)
        return gradient


@plain.when_compiled(plain.relu_squared)
def relu_squared(x: Float[Tensor, "*B D"]) -> Float[Tensor, "*B D"]:
    """relu(x)² (S0's MLP)."""
    if native.usable(x):
        return fused.relu_squared(x)
    return apply(_ReluSquared, x)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    half = x.shape[-1] // 2
    first, second = x[..., :half], x[..., half:]
    out = torch.empty_like(x)
    torch.mul(first, cos, out=out[..., :half])
    out[..., :half].addcmul_(second, sin)
    torch.mul(second, cos, out=out[..., half:])
    out[..., half:].addcmul_(first, sin, value=-1)
    return out


class _Rotary(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _rotate(x, cos.to(x.dtype), sin.to(x.dtype))

    @staticmethod
    @first_order
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        g = grads[0]
        back = _rotate(g, cos.to(g.dtype), -sin.to(g.dtype))  # a rotation's transpose: back by the angle
        return back, None, None


@plain.when_compiled(plain.rotary)
def rotary(
    x: Float[Tensor, "*B H K"], cos: Float[Tensor, "*P 1 half"], sin: Float[Tensor, "*P 1 half"]
) -> Float[Tensor, "*B H K"]:
    """Rotate the halves (u, v) of each head to (u·cos + v·sin, v·cos − u·sin); half = K/2, *P broadcasts to *B."""
    return apply(_Rotary, x, cos, sin)


class _ScaleGradient(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    @first_order
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0] * ctx.factor, None


def scale_gradient(x: Tensor, factor: float) -> Tensor:
    """The identity, whose gradient is multiplied by ``factor`` (S2's LR diff)."""
    return x if factor == 1 else apply(_ScaleGradient, x, factor)


def _take(x: Tensor, index: Tensor) -> Tensor:
    """x[b, index[b, i]] for x (B, L, D): whole rows are copied, which a gather with an index an element is not."""
    batch, length, width = x.shape
    flat = index + length * torch.arange(batch, device=x.device).unsqueeze(1)
    return x.reshape(-1, width).index_select(0, flat.flatten()).view(*index.shape, width)


class _SelectRows(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, starts: Tensor, chunk_of: Tensor, boundary: Tensor) -> Tensor:
        ctx.save_for_backward(chunk_of, boundary)
        return _take(x, starts)

    @staticmethod
    @first_order
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        chunk_of, boundary = ctx.saved_tensors
        # the gradient is a gather too, since each start has its own chunk: nothing is scattered
        return _take(grads[0], chunk_of).mul_(boundary.unsqueeze(-1)), None, None, None


def select_rows(
    x: Float[Tensor, "B L D"],
    starts: Int[Tensor, "B C"],
    chunk_of: Int[Tensor, "B L"],
    boundary: Tensor,
) -> Float[Tensor, "B C D"]:
    """x[b, starts[b, c]]: the vectors at the chunk starts. Padding (chunks that are not there) gets no gradient."""
    return apply(_SelectRows, x, starts, chunk_of, boundary)


class _SoftcapCrossEntropy(Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor, cap: float) -> Tensor:
        z = logits.to(wide(logits.dtype))
        if cap > 0:
            tanh = torch.tanh_(z / cap)
            z = tanh * cap
        losses = torch.logsumexp(z, -1) - z.gather(-1, targets.unsqueeze(-1)).squeeze(-1)
        if logits.requires_grad:
            grad = torch.softmax(z, -1)
            grad.scatter_add_(-1, targets.unsqueeze(-1), grad.new_full((), -1.0).expand(*targets.shape, 1))
            if cap > 0:
                grad.addcmul_(grad * tanh, tanh, value=-1)  # d cap·tanh(z/cap)/dz = 1 − tanh²
            ctx.save_for_backward(grad.to(logits.dtype))
        return losses

    @staticmethod
    @first_order
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (grad,) = ctx.saved_tensors
        return grad * grads[0].unsqueeze(-1).to(grad.dtype), None, None


def softcap_cross_entropy(logits: Float[Tensor, "N V"], targets: Int[Tensor, " N"], cap: float) -> Float[Tensor, " N"]:
    """−log softmax(cap·tanh(logits/cap))[target] a row, in nats and fp32 (S0); cap 0 = no cap."""
    if native.usable(logits):
        return fused.softcap_cross_entropy(logits, targets, cap)
    return apply(_SoftcapCrossEntropy, logits, targets, cap)
