"""Chunking and its inverse: select the chunk starts, smooth the chunks' outputs, expand them to all positions.

The one representation of a ragged batch is ``Chunks``: sequences of chunks padded at the end to a common capacity.
Causal networks never look at padding from a chunk before it, and ``expand`` never reads it, so it needs no mask.

Legend: B batch, L positions, C chunks that there is room for, D width, T block of the smoothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from bytegolf.model.capacity import EXACT, Capacity
from bytegolf.ops import dechunk, native
from bytegolf.ops import primitives as ops

P_FLOOR = 1e-4
"""Probabilities are clamped to [P_FLOOR, 1 − P_FLOOR] in the smoothing (S2)."""

_FORGET = -46.0
"""log of what a restart keeps of the past: e^−46 ≈ 1e−20 is below fp32's resolution, and finite unlike log 0."""

_BLOCK = 64


@dataclass(frozen=True)
class Chunks:
    """Where the chunks of a padded batch lie."""

    boundary: Bool[Tensor, "B L"]
    """positions at which a chunk starts: the boundaries that there was room for; padding positions are False"""
    chunk_of: Int[Tensor, "B L"]
    """the chunk that each position belongs to"""
    starts: Int[Tensor, "B C"]
    """the position at which each chunk starts; 0 for padding chunks"""
    counts: Int[Tensor, " B"]
    """chunks in each sequence"""

    @staticmethod
    def of(boundary: Bool[Tensor, "B L"], capacity: Capacity = EXACT) -> Chunks:
        """Lay out the chunks of ``boundary``, whose first column must be True, in the room that ``capacity`` makes.

        Under a fixed capacity the boundaries that come too late are dropped, so that the last chunk goes on to the
        end, and nothing here depends on the data but values: no shape, and no wait for an accelerator.
        """
        batch, length = boundary.shape
        running = boundary.cumsum(1)
        room = capacity.limit(length)
        if room is None:
            room = capacity.room(length, int(running[:, -1].max()))
        else:
            boundary = boundary & (running <= room)
            running = running.clamp(max=room)
        numbers = torch.arange(1, room + 1, device=boundary.device).repeat(batch, 1)
        starts = torch.searchsorted(running, numbers)  # the first position at which so many chunks have begun
        starts = starts.masked_fill(starts == length, 0)
        return Chunks(boundary, running - 1, starts, running[:, -1])

    @property
    def valid(self) -> Bool[Tensor, "B C"]:
        """Which chunks are there, rather than padding."""
        return torch.arange(self.starts.shape[1], device=self.starts.device) < self.counts.unsqueeze(1)

    def select(self, x: Float[Tensor, "B L D"]) -> Float[Tensor, "B C D"]:
        """The vector at each chunk's start (S2: downsampling keeps the boundary positions)."""
        layout = (self.starts, self.chunk_of, self.boundary)
        return dechunk.select(x, *layout) if native.usable(x) else ops.select_rows(x, *layout)

    def select_values(self, x: Tensor) -> Tensor:
        """The same for one value a position, (B, L) → (B, C)."""
        return x.gather(1, self.starts)

    def expand(self, z: Float[Tensor, "B C D"]) -> Float[Tensor, "B L D"]:
        """Each position takes the vector of its chunk."""
        size = z.shape[1]
        offset = torch.arange(z.shape[0], device=z.device).unsqueeze(1) * size
        return F.embedding(self.chunk_of + offset, z.flatten(0, 1))

    def dechunk(
        self,
        z: Float[Tensor, "B C D"],
        p: Float[Tensor, "B L"],
        residual: Float[Tensor, "B L D"],
        first: Bool[Tensor, "B L"] | None = None,
    ) -> Float[Tensor, "B L D"]:
        """The residual plus each position's smoothed chunk, which ``p`` gets gradients through twice (S2).

        Once as the weights of the smoothing, at chunk starts, and once as the confidence, at all positions. ``first``
        marks the positions where a document starts.
        """
        if native.usable(z, residual):
            return dechunk.dechunk(z, p, residual, self.boundary, first, P_FLOOR)
        fresh = self.select_values(first) if first is not None else None
        smoothed = self.expand(smooth(z, self.select_values(p), fresh))
        return smoothed * confidence(p, self.boundary).unsqueeze(-1).to(z.dtype) + residual


def confidence(p: Float[Tensor, "B L"], boundary: Bool[Tensor, "B L"]) -> Float[Tensor, "B L"]:
    """1, with the gradient of c = p at boundaries and 1 − p elsewhere (straight-through; S2)."""
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
    on to the next is the same recurrence over blocks. The cost is O(C·T) a channel.
    """
    fresh = torch.zeros_like(p, dtype=torch.bool) if first is None else first.clone()
    fresh[:, 0] = True
    weight = smoothing_weight(p)
    keep = torch.where(fresh, torch.full_like(weight, _FORGET), torch.log1p(-weight))
    take = torch.where(fresh, torch.ones_like(weight), weight)

    chunks = z.shape[1]
    size = min(_BLOCK, chunks)
    short = -chunks % size
    z_blocks = torch.unflatten(F.pad(z, (0, 0, 0, short)), 1, (-1, size))
    take, keep = (torch.unflatten(F.pad(t, (0, short)), 1, (-1, size)) for t in (take, keep))

    inner = _decays(keep) * take.unsqueeze(-2)
    out = inner.to(z.dtype) @ z_blocks
    if out.shape[1] > 1:
        # z̄ at the end of each block if nothing came before it, then with what came before
        ends = out[:, :, -1]
        carried = _decays(keep.sum(-1)).to(z.dtype) @ ends
        before = F.pad(carried[:, :-1], (0, 0, 1, 0))
        out = torch.addcmul(out, keep.cumsum(-1).exp().to(z.dtype).unsqueeze(-1), before.unsqueeze(2))
    return out.flatten(1, 2)[:, :chunks]


def smooth_on(
    z: Float[Tensor, "B C D"], p: Float[Tensor, "B C"], before: Float[Tensor, "B D"], first: Bool[Tensor, " B"]
) -> Float[Tensor, "B C D"]:
    """``smooth`` of chunks behind others whose last z̄ is ``before``; ``first``: rows in which nothing came before."""
    if z.shape[1] == 1:
        weight = smoothing_weight(p).masked_fill(first.unsqueeze(1), 1).unsqueeze(-1)
        return torch.lerp(before.unsqueeze(1), z, weight.to(z.dtype))
    fresh = torch.zeros(z.shape[0], z.shape[1] + 1, dtype=torch.bool, device=z.device)
    fresh[:, 1] = first
    return smooth(torch.cat((before.unsqueeze(1), z), 1), F.pad(p, (1, 0), value=1.0), fresh)[:, 1:]


def _decays(keep: Float[Tensor, "*B T"]) -> Float[Tensor, "*B T T"]:
    """exp(Σ_{j<i≤c} keep_i) in row c and column j for j ≤ c, 0 above the diagonal.

    Each sum is taken by itself (Mamba-2's "segment sum"). The difference of two cumulative sums would lose in
    fp32 what they share: 1e-4 of the value after a few restarts, and more of the gradient.
    """
    size = keep.shape[-1]
    lower = torch.ones(size, size, dtype=torch.bool, device=keep.device).tril()
    rows = keep.unsqueeze(-1).expand(*keep.shape, size)
    sums = rows.masked_fill(~lower.tril(-1), 0).cumsum(-2)
    return sums.masked_fill(~lower, float("-inf")).exp()
