"""Causal attention, full and local, and its step.

Legend: B batch, L positions, D width, H query heads, G key/value heads, K head width, W window, R rows of a step.
Activations are in the compute dtype (bf16 or fp32) of the input; parameters stay fp32.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from bytegolf.config import StageConfig
from bytegolf.model import flexible, native, ops
from bytegolf.model.attend import Heads, attend, rotary_angles
from bytegolf.model.functions import wide
from bytegolf.model.layers import Linear

NEVER = float("-inf")

DENSE_LENGTH = 512
"""Up to this length full attention on a CPU is two batched products: its fused kernel's backward is several times
slower there (LOG.md, 2026-11-22)."""


@dataclass
class AttentionState:
    """Keys and values seen so far, (B, G, T, K) each. Local attention keeps a ring of the last W positions."""

    keys: Tensor
    values: Tensor

    def grow(self, needed: int) -> None:
        """Make room for ``needed`` positions, doubling so that the copies cost O(1) a position."""
        have = self.keys.shape[2]
        if needed > have:
            extra = (0, 0, 0, max(needed, 2 * have) - have)
            self.keys, self.values = F.pad(self.keys, extra), F.pad(self.values, extra)


class Attention(nn.Module):
    """Grouped-query attention with rotary positions, RMS-normalised q and k and a learned gain a head (S0).

    ``window`` 0 sees every earlier position; otherwise the last ``window`` ones, itself included, so that time and
    memory are linear in L.
    """

    def __init__(self, config: StageConfig) -> None:
        super().__init__()
        self.heads, self.groups = config.heads, config.kv_heads
        self.width = config.dim // config.heads
        self.window, self.base = config.window, config.rope_base
        inner = self.groups * self.width
        self.qkv = Linear(config.dim, config.dim, inner, inner)
        self.proj = Linear(config.dim, config.dim, zero=True)
        self.q_gain = nn.Parameter(torch.full((config.heads,), config.qk_gain))

    def _project(
        self, packed: Tensor, positions: Tensor
    ) -> tuple[Float[Tensor, "*B H K"], Float[Tensor, "*B G K"], Float[Tensor, "*B G K"]]:
        """q (with gain and the 1/√K of the scores), k and v of ``qkv``'s result; q and k normalised and rotated."""
        packed = torch.unflatten(packed, -1, (-1, self.width))
        qk = ops.rms_norm(packed[..., : self.heads + self.groups, :])
        cos, sin = rotary_angles(positions, self.width, self.base)
        qk = ops.rotary(qk, cos.unsqueeze(-2), sin.unsqueeze(-2))
        gain = (self.q_gain.to(wide(packed.dtype)) * self.width**-0.5).to(packed.dtype)
        q = qk[..., : self.heads, :] * gain.unsqueeze(-1)
        return q, qk[..., self.heads :, :], packed[..., self.heads + self.groups :, :]

    def forward(self, x: Float[Tensor, "B L D"], documents: Int[Tensor, "B L"] | None = None) -> Float[Tensor, "B L D"]:
        """Attend causally; ``documents`` numbers each position's document, and none sees another's."""
        packed = self.qkv(x)
        if native.usable(packed):
            heads = Heads(self.heads, self.groups, self.width, self.window, self.base)
            out = attend(packed, self.q_gain, documents, heads)
        else:
            out = self._attend(packed, documents)
        return self.proj(out)  # type: ignore[no-any-return]

    def _attend(self, packed: Tensor, documents: Tensor | None) -> Float[Tensor, "B L D"]:
        """The plain form of ``attend.attend``."""
        length = packed.shape[1]
        q, k, v = self._project(packed, torch.arange(length, device=packed.device))
        if 0 < self.window < length:
            out = _local(q, k, v, self.window, documents)
        else:
            out = _full(q, k, v, documents)
        return out.flatten(-2)

    def start(self, batch: int, device: torch.device, dtype: torch.dtype) -> AttentionState:
        """An empty state for ``batch`` sequences."""
        shape = (batch, self.groups, self.window or 64, self.width)
        return AttentionState(
            torch.zeros(shape, device=device, dtype=dtype), torch.zeros(shape, device=device, dtype=dtype)
        )

    def step(
        self, x: Float[Tensor, "R D"], state: AttentionState, rows: Int[Tensor, " R"], at: Int[Tensor, " R"]
    ) -> Float[Tensor, "R D"]:
        """One position for the sequences ``rows``, each at its own position ``at``: the same result as ``forward``."""
        q, k, v = self._project(self.qkv(x), at)
        slots = at
        if self.window:
            slots = at % self.window
        else:
            state.grow(int(at.max()) + 1)
        state.keys[rows, :, slots] = k
        state.values[rows, :, slots] = v
        used = min(int(at.max()) + 1, state.keys.shape[2])
        keys, values = state.keys[rows, :, :used], state.values[rows, :, :used]
        grouped = torch.unflatten(q, 1, (self.groups, -1))
        scores = grouped @ keys.mT
        empty = torch.arange(used, device=x.device) > at.unsqueeze(1)  # a ring that has come round is never empty
        scores = scores.masked_fill(empty[:, None, None], NEVER)
        out = torch.softmax(scores, -1) @ values
        return self.proj(out.flatten(1))  # type: ignore[no-any-return]


def _full(q: Tensor, k: Tensor, v: Tensor, documents: Tensor | None) -> Float[Tensor, "B L H K"]:
    """Full causal attention; q carries the scale already."""
    if q.device.type == "cuda":
        return flexible.attend(q, k, v, documents=documents)
    if q.device.type == "cpu" and q.shape[1] <= DENSE_LENGTH:
        bias = _as_bias(_causal(q.shape[1], q.device, documents))
        return _in_blocks(q, k.unsqueeze(1), v.unsqueeze(1), bias)
    # the CPU kernel's backward is more than twice as slow with enable_gqa as with repeated keys (LOG.md, 2026-11-22)
    repeats = q.shape[2] // k.shape[2]
    k, v = k.repeat_interleave(repeats, 2), v.repeat_interleave(repeats, 2)
    mask = _causal(q.shape[1], q.device, documents) if documents is not None else None
    out = F.scaled_dot_product_attention(
        q.transpose(1, 2),
        k.transpose(1, 2),
        v.transpose(1, 2),
        attn_mask=mask,
        is_causal=mask is None,
        scale=1.0,
    )
    return out.transpose(1, 2)


def _causal(length: int, device: torch.device, documents: Tensor | None) -> Bool[Tensor, "_ 1 L L"]:
    """Whether a query (row) may see a key: one at or before it, of its own document."""
    seen = torch.ones(1, length, length, dtype=torch.bool, device=device).tril()
    if documents is not None:
        seen = seen & (documents.unsqueeze(2) == documents.unsqueeze(1))
    return seen.unsqueeze(1)


def _as_bias(seen: Bool[Tensor, "*S"]) -> Float[Tensor, "*S"]:
    """0 where a query may see a key, −∞ elsewhere: what is added to the scores."""
    return torch.zeros(seen.shape, device=seen.device).masked_fill_(~seen, NEVER)


def _with_previous(x: Tensor, blocks: int) -> Tensor:
    """(B, n·W, ...) → (B, n, 2W, ...): each block behind the one before it (zeros before the first)."""
    x = torch.unflatten(x, 1, (blocks, -1))
    before = torch.cat((torch.zeros_like(x[:, :1]), x[:, :-1]), 1)
    return torch.cat((before, x), 2)


def _local(q: Tensor, k: Tensor, v: Tensor, window: int, documents: Tensor | None) -> Float[Tensor, "B L H K"]:
    """Causal attention to the last ``window`` positions, in blocks of that size that see themselves and the last."""
    if q.device.type == "cuda":
        return flexible.attend(q, k, v, window, documents)
    length = q.shape[1]
    blocks = math.ceil(length / window)
    short = blocks * window - length
    if short:
        q, k, v = (F.pad(t, (0, 0, 0, 0, 0, short)) for t in (q, k, v))
    bias = _block_bias(blocks, window, q.device, documents, short)
    return _in_blocks(q, _with_previous(k, blocks), _with_previous(v, blocks), bias)[:, :length]


def _in_blocks(
    q: Float[Tensor, "B M H K"],
    k: Float[Tensor, "B n S G K"],
    v: Float[Tensor, "B n S G K"],
    bias: Float[Tensor, "_ n T S"],
) -> Float[Tensor, "B M H K"]:
    """Attention of n blocks of T queries (M = n·T) to S keys each, as one batched product a step.

    One matrix a block and key/value head: the query heads that share the keys stand below each other in it.
    """
    batch, length, heads, width = q.shape
    blocks, keys, groups = k.shape[1:4]
    size = length // blocks
    q = q.view(batch, blocks, size, groups, heads // groups, width).permute(0, 1, 3, 4, 2, 5)
    q = q.reshape(batch * blocks * groups, -1, width)
    k = k.permute(0, 1, 3, 4, 2).reshape(batch * blocks * groups, width, keys)
    v = v.transpose(2, 3).reshape(batch * blocks * groups, keys, width)
    scores = torch.bmm(q, k).view(batch, blocks, groups, -1, size, keys) + bias[:, :, None, None].to(q.dtype)
    out = torch.bmm(torch.softmax(scores, -1).view(q.shape[0], -1, keys), v)
    out = out.view(batch, blocks, groups, -1, size, width).permute(0, 1, 4, 2, 3, 5)
    return out.reshape(batch, length, heads, width)


def _block_bias(
    blocks: int, window: int, device: torch.device, documents: Tensor | None, short: int
) -> Float[Tensor, "_ n W X"]:
    """0 where a query of a block may see a key of the block before it or its own (X = 2W), −∞ elsewhere."""
    query = torch.arange(window, device=device).unsqueeze(1)
    key = torch.arange(2 * window, device=device)
    seen = ((key > query) & (key <= query + window)).repeat(blocks, 1, 1)
    seen[0] &= key >= window  # nothing stands before the first block
    seen = seen.unsqueeze(0)
    if documents is not None:
        padded = F.pad(documents, (0, short), value=-1)
        same = torch.unflatten(padded, 1, (blocks, -1)).unsqueeze(3) == _with_previous(padded, blocks).unsqueeze(2)
        seen = seen & same
        # a padded query sees itself, so that no softmax is over nothing
    return _as_bias(seen)
