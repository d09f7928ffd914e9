"""Mamba-2's state: S_t = a_t·S_{t−1} + dt_t·x_t⊗B_t, y_t = S_t C_t + D·x_t, one state per head (arXiv 2405.21060).

The plain form is the paper's "state space duality": within chunks of T positions the recurrence is a product with a
lower triangular matrix, from chunk to chunk it is the recurrence itself.

    y_t = Σ_{s ≤ t in the chunk} (C_t·B_s)·exp(Σ_{s<i≤t} log a_i)·dt_s·x_s  +  exp(Σ_{i≤t} log a_i)·S_before C_t

For T = 2 and one channel: y_0 = (C_0·B_0)·dt_0·x_0 + a_0·S C_0, and
y_1 = (C_1·B_0)·a_1·dt_0·x_0 + (C_1·B_1)·dt_1·x_1 + a_0·a_1·S C_1.
The cost is linear in L: O(T + N) per position and channel.

Legend: B batch, L positions, H heads, P head width, N state size, C = H·P + 2N channels [x | B | C] (of which all heads
share B and C), T positions of a chunk, n chunks.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from bytegolf.ops import native
from bytegolf.ops.autograd import Saved, differentiable, wide
from bytegolf.ops.chunking import decays


@dataclass(frozen=True)
class SsdShape:
    """What the recurrence has to know besides its inputs."""

    heads: int
    width: int
    state: int
    chunk: int
    """T of the plain form"""

    @property
    def inner(self) -> int:
        """H·P."""
        return self.heads * self.width


def ssd(
    channels: Float[Tensor, "B L C"],
    dt: Float[Tensor, "B L H"],
    decay: Float[Tensor, "B L H"],
    skip: Float[Tensor, " H"],
    first: Bool[Tensor, "B L"] | None,
    shape: SsdShape,
) -> Float[Tensor, "B L HP"]:
    """y of whole sequences. ``decay`` is log a; ``first`` marks positions before which the state is 0."""
    if native.usable(channels):
        return _native(channels, dt, decay, skip, first, shape)
    return ssd_reference(channels, dt, decay, skip, first, None, shape)[0]


def ssd_on(
    channels: Float[Tensor, "B L C"],
    dt: Float[Tensor, "B L H"],
    decay: Float[Tensor, "B L H"],
    skip: Float[Tensor, " H"],
    before: Float[Tensor, "B H N P"],
    shape: SsdShape,
) -> tuple[Float[Tensor, "B L HP"], Float[Tensor, "B H N P"]]:
    """y of positions behind others that left the state ``before``, and the state behind them."""
    if not torch.is_grad_enabled() and native.usable(channels):
        return _native_on(channels, dt, decay, skip, before, shape)
    if channels.shape[1] == 1:
        return _step(channels, dt, decay, skip, before, shape)
    return ssd_reference(channels, dt, decay, skip, None, before, shape)


def _step(
    channels: Tensor, dt: Tensor, decay: Tensor, skip: Tensor, before: Tensor, shape: SsdShape
) -> tuple[Tensor, Tensor]:
    """The recurrence as it stands, for a single position."""
    x, b, c = (
        part.to(before.dtype) for part in channels.select(1, 0).split((shape.inner, shape.state, shape.state), -1)
    )
    x = torch.unflatten(x, -1, (shape.heads, shape.width))
    added = b.unsqueeze(1).unsqueeze(-1) * (dt.select(1, 0).unsqueeze(-1) * x).unsqueeze(2)
    state = before * decay.select(1, 0).exp().unsqueeze(-1).unsqueeze(-1) + added
    y = (c.unsqueeze(1).unsqueeze(1) @ state).squeeze(2) + skip.to(x.dtype).unsqueeze(-1) * x
    return y.flatten(1).unsqueeze(1).to(channels.dtype), state


def ssd_reference(
    channels: Float[Tensor, "B L C"],
    dt: Float[Tensor, "B L H"],
    decay: Float[Tensor, "B L H"],
    skip: Float[Tensor, " H"],
    first: Bool[Tensor, "B L"] | None,
    before: Float[Tensor, "B H N P"] | None,
    shape: SsdShape,
) -> tuple[Float[Tensor, "B L HP"], Float[Tensor, "B H N P"]]:
    """The chunked matrix form; states and decays in at least fp32, products in the channels' dtype."""
    length = channels.shape[1]
    kind, size = wide(channels.dtype), min(shape.chunk, length)
    short = -length % size
    blocks = (length + short) // size
    x, b, c = channels.split((shape.inner, shape.state, shape.state), -1)
    x = torch.unflatten(x, -1, (shape.heads, shape.width))
    # padding has dt = 0 and a = 1: it adds nothing to the state and takes nothing from it
    weighted = F.pad((x.to(kind) * dt.unsqueeze(-1)).to(x.dtype), (0, 0, 0, 0, 0, short))
    weighted = torch.unflatten(weighted, 1, (blocks, size)).transpose(2, 3)  # (B, n, H, T, P)
    b, c = (torch.unflatten(F.pad(part, (0, 0, 0, short)), 1, (blocks, size)) for part in (b, c))  # (B, n, T, N)
    kept = torch.unflatten(F.pad(decay, (0, 0, 0, short)), 1, (blocks, size)).transpose(2, 3)  # (B, n, H, T)

    within = decays(kept)  # (B, n, H, T, T)
    from_start, to_end = kept.cumsum(-1).exp(), within.select(-2, -1)
    through = from_start.select(-1, -1)
    if first is not None:
        # documents of a chunk, numbered; 0 is the one that was there before the chunk
        number = torch.unflatten(F.pad(first, (0, short)), 1, (blocks, size)).cumsum(-1).unsqueeze(2)
        within = within * (number.unsqueeze(-1) == number.unsqueeze(-2))
        to_end = within.select(-2, -1)
        from_start = from_start * (number == 0)
        through = through * (number.select(-1, -1) == 0)

    scores = (c @ b.mT).unsqueeze(2)  # (B, n, 1, T, T)
    y = (scores * within).to(x.dtype) @ weighted
    added = b.mT.unsqueeze(2).to(kind) @ (weighted.to(kind) * to_end.unsqueeze(-1))  # (B, n, H, N, P)
    state = torch.zeros_like(added.select(1, 0)) if before is None else before
    states = []
    for block in range(blocks):
        states.append(state)
        state = state * through.select(1, block).unsqueeze(-1).unsqueeze(-1) + added.select(1, block)
    earlier = c.unsqueeze(2) @ torch.stack(states, 1).to(c.dtype)  # (B, n, H, T, P)
    y = y + (earlier.to(kind) * from_start.unsqueeze(-1)).to(x.dtype)
    y = y.transpose(2, 3).flatten(1, 2).narrow(1, 0, length)
    return (y + skip.to(x.dtype).unsqueeze(-1) * x).flatten(2), state


# ------------------------------------------------------------------------------------------------- native
#
# The recurrence itself, with tiles of the state in registers (``kernels/ssd.cpp``): no matrix of T × T decays is made,
# and nothing but the inputs is kept for the backward pass.


def _native_forward(
    channels: Tensor, dt: Tensor, decay: Tensor, skip: Tensor, first: Tensor | None, shape: SsdShape
) -> tuple[Tensor, Saved, tuple[SsdShape]]:
    channels, dt, decay = channels.contiguous(), dt.contiguous(), decay.contiguous()
    skip = skip.detach().to(dt.dtype).contiguous()
    first = None if first is None else first.contiguous()
    y = channels.new_empty(*channels.shape[:2], shape.inner)
    native.call("ssd_forward", channels, *_problem(channels, dt, decay, skip, first, shape), None, None, y)
    return y, (channels, dt, decay, skip, first), (shape,)


def _native_backward(
    g: Tensor, channels: Tensor, dt: Tensor, decay: Tensor, skip: Tensor, first: Tensor | None, shape: SsdShape
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    batch, length, _ = channels.shape
    groups = min(shape.heads, -(-_LEAST_TASKS // batch))
    d_x = channels.new_empty(batch, length, shape.inner)
    d_inputs = dt.new_empty(groups, batch, length, 2 * shape.state)
    d_dt, d_decay, d_skip = torch.empty_like(dt), torch.empty_like(dt), dt.new_empty(batch, shape.heads)
    results = (g.contiguous(), groups, d_x, d_inputs, d_dt, d_decay, d_skip)
    native.call("ssd_backward", channels, *_problem(channels, dt, decay, skip, first, shape), *results)
    return torch.cat((d_x, d_inputs.sum(0).to(d_x.dtype)), -1), d_dt, d_decay, d_skip.sum(0)


_LEAST_TASKS = 4
"""Into how many the backward pass is cut, if one sequence has as many heads: each has sums for B and C of its own."""


def _native_on(
    channels: Tensor, dt: Tensor, decay: Tensor, skip: Tensor, before: Tensor, shape: SsdShape
) -> tuple[Tensor, Tensor]:
    channels, dt, decay, before = (t.contiguous() for t in (channels, dt, decay, before))
    skip, after = skip.detach().to(dt.dtype).contiguous(), torch.empty_like(before)
    y = channels.new_empty(*channels.shape[:2], shape.inner)
    native.call("ssd_forward", channels, *_problem(channels, dt, decay, skip, None, shape), before, after, y)
    return y, after


def _problem(
    channels: Tensor, dt: Tensor, decay: Tensor, skip: Tensor, first: Tensor | None, shape: SsdShape
) -> tuple[Tensor | int | None, ...]:
    """What both kernels take first."""
    sizes = (*channels.shape[:2], shape.heads, shape.width, shape.state)
    return channels, dt, decay, skip, first, *sizes


_native = differentiable(_native_forward, _native_backward)
