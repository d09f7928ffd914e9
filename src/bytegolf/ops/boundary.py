"""The cosine router's boundary probability: how far a position points away from the one before it.

    p_t = ½(1 − cos(q_t, k_{t−1})), p_0 = 1        (S2; S4 takes q of t − 1 and k of t)

Same direction: p = 0; at right angles: ½, the threshold of a boundary; opposite: 1.

Legend: B batch, L positions, D width, M width of a router's vectors.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from bytegolf.ops import native
from bytegolf.ops.autograd import Saved, differentiable, wide

COSINE_EPS = 1e-8
"""Shorter vectors count as this long in a cosine (``torch.cosine_similarity``'s default)."""


def boundary_probability(q: Float[Tensor, "B L D"], k: Float[Tensor, "B L D"]) -> Float[Tensor, "B L"]:
    """½(1 − cos(q_t, k_{t−1})) at each position t, in at least fp32; 1 at the first."""
    if native.usable(q, k):
        return _native(q, k)
    later = q.shape[1] - 1
    return F.pad(cosine_probability(q.narrow(1, 1, later), k.narrow(1, 0, later)), (1, 0), value=1.0)


def cosine_probability(q: Float[Tensor, "*B D"], k: Float[Tensor, "*B D"]) -> Float[Tensor, "*B"]:
    """½(1 − cos(q, k)), in at least fp32."""
    q, k = (t.to(wide(t.dtype)) for t in (q, k))
    cosine = torch.cosine_similarity(q, k, dim=-1, eps=COSINE_EPS)
    return (0.5 * (1 - cosine)).clamp(0, 1)  # (why) rounding makes a cosine of 1 + 1e-7: p must not be negative


def boundary_step(
    x: Float[Tensor, "1 1 D"], query: Float[Tensor, "M D"], key: Float[Tensor, "M D"], memory: Float[Tensor, "1 M"]
) -> tuple[Float[Tensor, "1 1"], Float[Tensor, "1 1 M"]]:
    """½(1 − cos(query·x, memory)), and key·x, with which the next position is compared; where ``native.one_position``.

    The memory is key·x of the position before: all that a router needs of the past.
    """
    keys, p = x.new_empty(1, 1, len(key)), x.new_empty(1, 1)
    x, memory = x.contiguous(), memory.contiguous()
    native.call("router_step", x, x, query, key, memory, keys, p, x.shape[-1], len(key), COSINE_EPS)
    return p, keys


def _native_forward(q: Tensor, k: Tensor) -> tuple[Tensor, Saved, tuple[()]]:
    q, k = q.contiguous(), k.contiguous()
    p = q.new_empty(q.shape[:2], dtype=wide(q.dtype))
    native.call("boundary_forward", q, q, k, p, p.numel(), *q.shape[1:], COSINE_EPS)
    return p, (q, k), ()


def _native_backward(g: Tensor, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
    dq, dk = torch.empty_like(q), torch.empty_like(k)
    native.call("boundary_backward", q, g.contiguous(), q, k, dq, dk, g.numel(), *q.shape[1:], COSINE_EPS)
    return dq, dk


_native = differentiable(_native_forward, _native_backward)
