"""Causal attention, full and local: of whole sequences, of what comes next, of the last positions only.

Legend: B batch, L positions, D width, H query heads, G key/value heads, K head width, W window, R rows of an
extension, T keys.
Activations are in the compute dtype (bf16 or fp32) of the input; parameters stay fp32.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from bytegolf.config import StackConfig
from bytegolf.model.cache import Cache, Span, as_bias
from bytegolf.model.layers import Linear
from bytegolf.ops import flexible, native
from bytegolf.ops import primitives as ops
from bytegolf.ops.attend import AttentionShape, attend, rotary_angles
from bytegolf.ops.functions import wide

DENSE_LENGTH = 512
"""Up to this length full attention on a CPU is two batched products: its fused kernel's backward is several times
slower there (LOG.md, 2026-11-22)."""


class Attention(nn.Module):
    """Grouped-query attention with rotary positions, RMS-normalised q and k and a learned gain a head (S0).

    ``window`` 0 sees every earlier position; otherwise the last ``window`` ones, itself included, so that time and
    memory are linear in L.
    """

    def __init__(self, config: StackConfig) -> None:
        super().__init__()
        self.heads, self.groups = config.heads, config.kv_heads
        self.width = config.dim // config.heads
        self.window, self.base = config.window, config.rope_base
        inner = self.groups * self.width
        self.qkv = Linear(config.dim, config.dim, inner, inner)
        self.proj = Linear(config.dim, config.dim, zero=True)
        self.q_gain = nn.Parameter(torch.full((config.heads,), config.qk_gain))

    def _project(
        self, packed: Tensor, cos: Tensor, sin: Tensor
    ) -> tuple[Float[Tensor, "*B H K"], Float[Tensor, "*B G K"], Float[Tensor, "*B G K"]]:
        """q (with gain and the 1/√K of the scores), k and v of ``qkv``'s result; q and k normalised and rotated."""
        packed = torch.unflatten(packed, -1, (-1, self.width))
        qk = ops.rotary(ops.rms_norm(packed[..., : self.heads + self.groups, :]), cos, sin)
        gain = (self.q_gain.to(wide(packed.dtype)) * self.width**-0.5).to(packed.dtype)
        q = qk[..., : self.heads, :] * gain.unsqueeze(-1)
        return q, qk[..., self.heads :, :], packed[..., self.heads + self.groups :, :]

    def _angles(self, length: int, device: torch.device) -> tuple[Float[Tensor, "L 1 half"], Float[Tensor, "L 1 half"]]:
        cos, sin = rotary_angles(torch.arange(length, device=device), self.width, self.base)
        return cos.unsqueeze(-2), sin.unsqueeze(-2)

    def forward(self, x: Float[Tensor, "B L D"], documents: Int[Tensor, "B L"] | None = None) -> Float[Tensor, "B L D"]:
        """Attend causally; ``documents`` numbers each position's document, and none sees another's."""
        return self.proj(self._mixed(self.qkv(x), documents))

    def _mixed(self, packed: Tensor, documents: Tensor | None) -> Float[Tensor, "B L D"]:
        if native.usable(packed):
            heads = AttentionShape(self.heads, self.groups, self.width, self.window, self.base)
            return attend(packed, self.q_gain, documents, heads)
        return self._attend(packed, documents)

    def _attend(self, packed: Tensor, documents: Tensor | None) -> Float[Tensor, "B L D"]:
        """The plain form of ``attend.attend``."""
        length = packed.shape[1]
        q, k, v = self._project(packed, *self._angles(length, packed.device))
        if 0 < self.window < length:
            out = _local(q, k, v, self.window, documents)
        else:
            out = _full(q, k, v, documents)
        return out.flatten(-2)

    def start(self, batch: int, device: torch.device, dtype: torch.dtype, length: int = 0) -> Cache:
        """An empty cache for ``batch`` sequences, with room for ``length`` positions before it has to grow."""
        shape = (batch, self.groups, self.window or max(length, 64), self.width)
        return Cache(torch.zeros(shape, device=device, dtype=dtype), torch.zeros(shape, device=device, dtype=dtype))

    def extend(self, x: Float[Tensor, "R L D"], cache: Cache, span: Span) -> Float[Tensor, "R L D"]:
        """The next positions of sequences whose earlier ones are in ``cache``: the same result as ``forward``."""
        packed = self.qkv(x)
        q, k, v = self._project(packed, span.cos, span.sin)
        if span.order is not None:  # several positions join a ring: they overwrite what the first of them still see
            assert span.documents is not None
            keys, values = span.before(cache)
            blank = q.new_zeros(q.shape[0], self.window, *q.shape[2:])
            q, keys, values = torch.cat((blank, q), 1), torch.cat((keys, k), 1), torch.cat((values, v), 1)
            out = _local(q, keys, values, self.window, span.documents)[:, self.window :]
            span.write(cache, k, v)
        else:
            span.write(cache, k, v)
            if span.fresh:
                return self.proj(self._mixed(packed, None))
            out = _few(q, *span.read(cache), span.bias)
        return self.proj(out.flatten(-2))

    def tail(
        self, x: Float[Tensor, "B L D"], documents: Int[Tensor, "B L"] | None, keep: int
    ) -> Float[Tensor, "B N D"]:
        """The last ``keep`` (N) positions of ``forward``."""
        length, packed = x.shape[1], self.qkv(x)
        # local attention costs little, and the native kernel less than a few queries do in single operations
        if self.window or (native.usable(packed) and 8 * keep >= length):
            return self.proj(self._mixed(packed, documents)[:, length - keep :])
        q, k, v = self._project(packed, *self._angles(length, x.device))
        bias = as_bias(_causal(length, x.device, documents)[:, :, length - keep :], x.dtype)
        out = _few(q[:, length - keep :], k.transpose(1, 2), v.transpose(1, 2), bias)
        return self.proj(out.flatten(-2))


def _few(
    q: Float[Tensor, "B N H K"],
    k: Float[Tensor, "B G T K"],
    v: Float[Tensor, "B G T K"],
    bias: Float[Tensor, "_ 1 N T"] | None,
) -> Float[Tensor, "B N H K"]:
    """Attention of a few queries to many keys, in two products; q carries the scale already."""
    batch, queries, heads, width = q.shape
    groups = k.shape[1]
    q = q.view(batch, queries, groups, -1, width).permute(0, 2, 3, 1, 4).reshape(batch, groups, -1, width)
    scores = q @ k.mT
    if bias is not None:
        scores = (scores.view(batch, heads, queries, -1) + bias).view(scores.shape)
    out = (torch.softmax(scores, -1) @ v).view(batch, heads, queries, width)
    return out.transpose(1, 2)


def _full(q: Tensor, k: Tensor, v: Tensor, documents: Tensor | None) -> Float[Tensor, "B L H K"]:
    """Full causal attention; q carries the scale already."""
    if q.device.type == "cuda":
        return flexible.attend(q, k, v, documents=documents)
    if q.device.type == "cpu" and q.shape[1] <= DENSE_LENGTH:
        bias = as_bias(_causal(q.shape[1], q.device, documents))
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
    return as_bias(seen)
