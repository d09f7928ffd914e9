"""To chunks and back: select the vectors at chunk starts; smooth what the main network makes of them, and expand it.

An example of one sequence of L = 6 positions in which there is room for C = 4 chunks (``model/chunk.py`` lays it out):

    boundary  1 0 0 1 1 0      a chunk starts at 0, 3 and 4
    chunk_of  0 0 0 1 2 2      the chunk of each position
    starts    0 3 4 0          the start of each chunk; the last is padding

``select`` takes x_0, x_3, x_4 and, for padding, x_0 again. ``dechunk`` smooths z_0 … z_2 and gives positions 0–2 the
first, 3 the second, 4 and 5 the third. Nothing reads a padding chunk, so it needs no mask, and it gets no gradient.

Legend: B batch, L positions, C chunks that there is room for, D width, T block of the smoothing.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from bytegolf.ops import native
from bytegolf.ops.autograd import Saved, differentiable, wide

P_FLOOR = 1e-4
"""Probabilities are clamped to [P_FLOOR, 1 − P_FLOOR] in the smoothing (S2)."""

_FORGET = -46.0
"""log of what a restart keeps of the past: e^−46 ≈ 1e−20 is below fp32's resolution, and finite unlike log 0."""

_BLOCK = 64

_SLICE = 256
"""Channels that a thread of the native kernel takes at a time; ``chunk.cpp`` has the same."""


def select(
    x: Float[Tensor, "B L D"], starts: Int[Tensor, "B C"], chunk_of: Int[Tensor, "B L"], boundary: Bool[Tensor, "B L"]
) -> Float[Tensor, "B C D"]:
    """x[b, starts[b, c]]: the vectors at the chunk starts (S2). Padding gets no gradient."""
    return (_native_select if native.usable(x) else _select)(x, starts, chunk_of, boundary)


def _take(x: Tensor, index: Tensor) -> Tensor:
    """x[b, index[b, i]] for x (B, L, D): whole rows are copied, which a gather with an index per element is not."""
    batch, length, width = x.shape
    flat = index + length * torch.arange(batch, device=x.device).unsqueeze(1)
    return x.reshape(-1, width).index_select(0, flat.flatten()).view(*index.shape, width)


def _select_forward(x: Tensor, starts: Tensor, chunk_of: Tensor, boundary: Tensor) -> tuple[Tensor, Saved, tuple[()]]:
    return _take(x, starts), (chunk_of, boundary), ()


def _select_backward(g: Tensor, chunk_of: Tensor, boundary: Tensor) -> tuple[Tensor]:
    # (why) the gradient is a gather too, since each start has its own chunk: nothing is scattered, so sums have one
    # order. In the example position 4 takes the gradient of its chunk 2; position 5 would too, and is masked.
    return (_take(g, chunk_of).mul_(boundary.unsqueeze(-1)),)


_select = differentiable(_select_forward, _select_backward)


def _native_select_forward(
    x: Tensor, starts: Tensor, chunk_of: Tensor, boundary: Tensor
) -> tuple[Tensor, Saved, tuple[()]]:
    y = x.new_empty(*starts.shape, x.shape[-1])
    sizes = (*boundary.shape, starts.shape[1], x.shape[-1])
    native.call("select_forward", x, x.contiguous(), starts.contiguous(), y, *sizes)
    return y, (chunk_of, boundary), ()


def _native_select_backward(g: Tensor, chunk_of: Tensor, boundary: Tensor) -> tuple[Tensor]:
    g, chunk_of, boundary = g.contiguous(), chunk_of.contiguous(), boundary.contiguous()
    dx = g.new_empty(*boundary.shape, g.shape[-1])
    native.call("select_backward", g, g, chunk_of, boundary, dx, *boundary.shape, *g.shape[1:])
    return (dx,)


_native_select = differentiable(_native_select_forward, _native_select_backward)


def dechunk(
    z: Float[Tensor, "B C D"],
    p: Float[Tensor, "B L"],
    residual: Float[Tensor, "B L D"],
    starts: Int[Tensor, "B C"],
    chunk_of: Int[Tensor, "B L"],
    boundary: Bool[Tensor, "B L"],
    first: Bool[Tensor, "B L"] | None = None,
) -> Float[Tensor, "B L D"]:
    """The residual plus each position's smoothed chunk, which ``p`` gets gradients through twice (S2).

    Once as the weights of the smoothing, at chunk starts, and once as the confidence, at all positions. ``first``
    marks the positions where a document starts.
    """
    if native.usable(z, residual):
        return _native_dechunk(z, p, residual, boundary, first)
    fresh = first.gather(1, starts) if first is not None else None
    smoothed = expand(smooth(z, p.gather(1, starts), fresh), chunk_of)
    return smoothed * confidence(p, boundary).unsqueeze(-1).to(z.dtype) + residual


def expand(z: Float[Tensor, "B C D"], chunk_of: Int[Tensor, "B L"]) -> Float[Tensor, "B L D"]:
    """Each position takes the vector of its chunk."""
    offset = torch.arange(z.shape[0], device=z.device).unsqueeze(1) * z.shape[1]
    return F.embedding(chunk_of + offset, z.flatten(0, 1))


def confidence(p: Float[Tensor, "B L"], boundary: Bool[Tensor, "B L"]) -> Float[Tensor, "B L"]:
    """1, with the gradient of c = p at boundaries and 1 − p elsewhere (straight-through; S2).

    (why) The forward pass must not scale vectors by how sure the router is, but the router has to learn from the loss:
    where a chunk's vector helps, c should have been larger, so p rises at its boundary and falls within it.
    """
    chosen = torch.where(boundary, p, 1 - p)
    return chosen + (1 - chosen).detach()


def smoothing_weight(p: Float[Tensor, "*B"]) -> Float[Tensor, "*B"]:
    """P: the probability as the smoothing uses it, clamped."""
    return p.clamp(P_FLOOR, 1 - P_FLOOR)


def smooth(
    z: Float[Tensor, "B C D"], p: Float[Tensor, "B C"], first: Bool[Tensor, "B C"] | None = None
) -> Float[Tensor, "B C D"]:
    """z̄_0 = z_0, z̄_c = P_c·z_c + (1 − P_c)·z̄_{c−1}, in parallel (S2; arXiv 2507.07955, eq. 5).

    ``first`` marks chunks that start a document, where z̄ starts afresh. In blocks of T chunks the recurrence is a
    product with the lower triangular matrix P_j·∏_{j<i≤c}(1 − P_i), built in log space and fp32; what a block hands
    on to the next is the same recurrence over blocks. The cost is O(C·T) per channel.

    For P = (·, ½, ¼) a block's matrix, by which (z_0, z_1, z_2) are multiplied, is

        1          0         0
        ½          ½         0
        ½·¾        ½·¾       ¼
    """
    fresh = torch.zeros_like(p, dtype=torch.bool) if first is None else first.clone()
    fresh.select(1, 0).fill_(True)
    weight = smoothing_weight(p)
    keep = torch.where(fresh, torch.full_like(weight, _FORGET), torch.log1p(-weight))
    take = torch.where(fresh, torch.ones_like(weight), weight)

    # padded to whole blocks with P = 0: what is added keeps all of the past and takes nothing, and is cut off again
    chunks = z.shape[1]
    size = min(_BLOCK, chunks)
    short = -chunks % size
    z_blocks = torch.unflatten(F.pad(z, (0, 0, 0, short)), 1, (-1, size))
    take, keep = (torch.unflatten(F.pad(t, (0, short)), 1, (-1, size)) for t in (take, keep))

    inner = decays(keep) * take.unsqueeze(-2)
    out = inner.to(z.dtype) @ z_blocks
    if out.shape[1] > 1:
        # z̄ at the end of each block if nothing came before it, then with what came before
        ends = out.select(2, -1)
        carried = decays(keep.sum(-1)).to(z.dtype) @ ends
        before = F.pad(carried.narrow(1, 0, carried.shape[1] - 1), (0, 0, 1, 0))
        # what came before a block reaches its chunk c times all that was kept up to there: e^(Σ_{i≤c} keep_i)
        out = torch.addcmul(out, keep.cumsum(-1).exp().to(z.dtype).unsqueeze(-1), before.unsqueeze(2))
    return out.flatten(1, 2).narrow(1, 0, chunks)


def smooth_on(
    z: Float[Tensor, "B C D"], p: Float[Tensor, "B C"], before: Float[Tensor, "B D"], first: Bool[Tensor, " B"]
) -> Float[Tensor, "B C D"]:
    """``smooth`` of chunks behind others whose last z̄ is ``before``; ``first``: rows in which nothing came before."""
    if z.shape[1] == 1:
        weight = smoothing_weight(p).masked_fill(first.unsqueeze(1), 1).unsqueeze(-1)
        return torch.lerp(before.unsqueeze(1), z, weight.to(z.dtype))
    fresh = F.pad(first.unsqueeze(1), (1, z.shape[1] - 1))  # the first of these, behind ``before``
    smoothed = smooth(torch.cat((before.unsqueeze(1), z), 1), F.pad(p, (1, 0), value=1.0), fresh)
    return smoothed.narrow(1, 1, z.shape[1])


def decays(keep: Float[Tensor, "*B T"]) -> Float[Tensor, "*B T T"]:
    """exp(Σ_{j<i≤c} keep_i) in row c and column j for j ≤ c, 0 above the diagonal.

    Each sum is taken by itself (Mamba-2's "segment sum"). The difference of two cumulative sums would lose in
    fp32 what they share: 1e-4 of the value after a few restarts, and more of the gradient.
    """
    size = keep.shape[-1]
    lower = torch.ones(size, size, dtype=torch.bool, device=keep.device).tril()
    rows = keep.unsqueeze(-1).expand(*keep.shape, size)
    sums = rows.masked_fill(lower.tril(-1).logical_not(), 0).cumsum(-2)
    return sums.masked_fill(lower.logical_not(), float("-inf")).exp()


# (why) One thread walks a sequence's positions as the recurrence says, with 256 channels at a time in its cache: the
# smoothing costs one pass, where the matrices above cost T products per chunk to be parallel on a GPU.


def _native_forward(
    z: Tensor, p: Tensor, residual: Tensor, boundary: Tensor, first: Tensor | None
) -> tuple[Tensor, Saved, tuple[()]]:
    z, boundary, residual = z.contiguous(), boundary.contiguous(), residual.contiguous()
    weights = p.to(wide(z.dtype)).contiguous()
    first = None if first is None else first.contiguous()
    smoothed = torch.empty_like(z, dtype=weights.dtype)
    out = torch.empty_like(residual)
    sizes = (*boundary.shape, *z.shape[1:], P_FLOOR)
    native.call("dechunk_forward", z, z, weights, boundary, first, smoothed, *sizes, residual, out)
    return out, (z, weights, boundary, first, smoothed), ()


def _native_backward(
    g: Tensor, z: Tensor, weights: Tensor, boundary: Tensor, first: Tensor | None, smoothed: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    g, dz = g.contiguous(), torch.empty_like(z)
    # every slice of channels adds to the gradient of each p: its own row, so that threads share no sum
    dp = weights.new_empty(-(-z.shape[2] // _SLICE), *weights.shape)
    sizes = (*boundary.shape, *z.shape[1:], P_FLOOR)
    native.call("dechunk_backward", z, z, weights, boundary, first, smoothed, *sizes, g, dz, dp)
    return dz, dp.sum(0), g


_native_dechunk = differentiable(_native_forward, _native_backward)
