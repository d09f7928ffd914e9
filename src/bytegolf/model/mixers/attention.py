"""Causal attention, full and local: of whole sequences, of what comes next, of the last positions only.

Legend: B batch, L positions, D width, H query heads, G key/value heads, K head width, R rows of an extension,
N positions at the end.
Activations are in the compute dtype (bf16 or fp32) of the input; parameters stay fp32.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from bytegolf.config import StackConfig
from bytegolf.model.layers import Cost, Linear, Mlp
from bytegolf.model.mixers import attention_cache
from bytegolf.model.mixers.attention_cache import Cache, CacheSpan, SharedCache
from bytegolf.model.mixers.base import Mixer, Rows, StackState
from bytegolf.ops import native
from bytegolf.ops.attention import (
    AttentionShape,
    angles,
    as_bias,
    attention,
    causal,
    few_queries,
    local_attention,
    project,
)
from bytegolf.registry import register_mixer


def _shape_of(config: StackConfig) -> AttentionShape:
    return AttentionShape(
        config.heads,
        config.kv_heads,
        config.dim // config.heads,
        config.window,
        config.rope_base,
        config.rotary_dim,
        config.qk_norm,
        config.rotary_turn == "clockwise",
    )


def _is_s0(block: Any) -> bool:
    """Whether the kernel for a single position knows this block: S0's, with all of each head rotated."""
    mixer = block.mixer
    return mixer.q_gain is not None and mixer.shape.turned == mixer.width and isinstance(block.mlp, Mlp)


@register_mixer("attention")
class Attention(Mixer[Cache]):
    """Grouped-query attention with rotary positions, RMS-normalised q and k and a learned gain per head (S0); without
    norm and gain, and with fewer dimensions rotated, where the configuration has it so (S4).

    ``window`` 0 sees every earlier position; otherwise the last ``window`` ones, itself included, so that time and
    memory are linear in L.
    """

    def __init__(self, config: StackConfig) -> None:
        super().__init__(config)
        self.heads, self.groups = config.heads, config.kv_heads
        self.width = config.dim // config.heads
        self.window = config.window
        inner = self.groups * self.width
        self.qkv = Linear(config.dim, config.dim, inner, inner)
        self.proj = Linear(config.dim, config.dim, zero=True)
        self.q_gain = nn.Parameter(torch.full((config.heads,), config.qk_gain)) if config.qk_norm else None
        self.shape = _shape_of(config)
        """what ``ops.attention`` has to know besides parameters"""

    @property
    def receptive_field(self) -> int | None:
        return self.window - 1 if self.window else None

    def see(self, window: int) -> None:
        self.window = window
        self.shape = dataclasses.replace(self.shape, window=window)

    def cost(self, length: float) -> Cost:
        """Scores and weighted sums over what a query sees, on average half of the length, or the window.

        q and k are kept before and after their rotation; eager, norm, rotation and gain pass over them seven times.
        """
        rotated = (self.heads + self.groups) * self.width
        seen = min(self.window, length / 2) if self.window else length / 2
        return Cost(rotated, 2 * rotated, 14 * rotated, 4 * self.heads * self.width * seen)

    def forward(self, x: Float[Tensor, "B L D"], documents: Int[Tensor, "B L"] | None = None) -> Float[Tensor, "B L D"]:
        """Attend causally; ``documents`` numbers each position's document, and none sees another's."""
        return self.proj(attention(self.qkv(x), self.q_gain, documents, self.shape))

    def start(self, batch: int, device: torch.device, dtype: torch.dtype, length: int = 0) -> Cache:
        """An empty cache for ``batch`` sequences, with room for ``length`` positions before it has to grow."""
        shape = (batch, self.groups, self.window or max(length, 64), self.width)
        keys, values = (torch.zeros(shape, device=device, dtype=dtype) for _ in range(2))
        return Cache(keys, values, ring=self.window > 0)

    def extend(self, x: Float[Tensor, "R L D"], state: Cache, span: CacheSpan) -> Float[Tensor, "R L D"]:
        """The next positions of sequences whose earlier ones are in ``state``: the same result as ``forward``."""
        packed = self.qkv(x)
        q, k, v = project(packed, self.q_gain, span.cos, span.sin, self.shape)
        if span.order is not None:  # several positions join a ring: they overwrite what the first of them still see
            assert span.documents is not None
            keys, values = span.before(state)
            blank = q.new_zeros(q.shape[0], self.window, *q.shape[2:])
            q, keys, values = torch.cat((blank, q), 1), torch.cat((keys, k), 1), torch.cat((values, v), 1)
            out = local_attention(q, keys, values, self.window, span.documents)[:, self.window :]
            span.write(state, k, v)
        else:
            span.write(state, k, v)
            if span.fresh:
                return self.proj(attention(packed, self.q_gain, None, self.shape))
            out = few_queries(q, *span.read(state), span.bias)
        return self.proj(out.flatten(-2))

    def tail(
        self, x: Float[Tensor, "B L D"], documents: Int[Tensor, "B L"] | None, keep: int
    ) -> Float[Tensor, "B N D"]:
        """The last ``keep`` (N) positions of ``forward``."""
        length, packed = x.shape[1], self.qkv(x)
        # local attention costs little, and the native kernel less than a few queries do in single operations
        if self.window or (native.usable(packed) and 8 * keep >= length):
            return self.proj(attention(packed, self.q_gain, documents, self.shape)[:, length - keep :])
        q, k, v = project(packed, self.q_gain, *angles(length, self.shape, x.device, x.dtype), self.shape)
        bias = as_bias(causal(length, x.device, documents)[:, :, length - keep :], x.dtype)
        out = few_queries(q[:, length - keep :], k.transpose(1, 2), v.transpose(1, 2), bias)
        return self.proj(out.flatten(-2))

    @classmethod
    def share(cls, config: StackConfig, device: torch.device, dtype: torch.dtype, length: int) -> SharedCache:
        shape = _shape_of(config)

        def turn(start: int, end: int) -> tuple[Tensor, Tensor]:
            cos, sin = shape.angles(torch.arange(start, end, device=device), dtype)
            return cos.to(dtype), sin.to(dtype)

        return SharedCache(turn, *turn(0, max(length, 64)), config.window)

    @classmethod
    def span(
        cls, state: StackState, rows: Rows | None, counts: Rows | None, length: int, device: torch.device
    ) -> CacheSpan:
        return CacheSpan.of(state, rows, counts, length)

    @classmethod
    def native_step(
        cls, blocks: Sequence[Any], skip_weights: Tensor, x: Tensor, state: StackState, rows: Rows | None
    ) -> Float[Tensor, "1 1 D"] | None:
        if not native.one_position(x, skip_weights) or not all(_is_s0(block) for block in blocks):
            return None
        return attention_cache.native_step(blocks, skip_weights, x, state, 0 if rows is None else int(rows[0]))
