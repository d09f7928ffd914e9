"""Causal attention, full and local: of whole sequences, of what comes next, of the last positions; and what it keeps.

Legend: B sequences of a state, R of them in a call, L new positions of each, T slots of a cache, W window, G
key/value heads, K head width, D width, H query heads, N positions at the end. Activations are in the compute dtype
(bf16 or fp32) of the input; parameters stay fp32.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor, nn

from bytegolf.config import StackConfig
from bytegolf.model.layers import Cost, Linear, Mlp
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
from bytegolf.ops.rms_norm import NORM_EPS
from bytegolf.registry import register_mixer

# ------------------------------------------------------------------------------------------------- what attention keeps


@dataclass
class Cache:
    """One block's keys and values, (B, G, T, K) each. Local attention keeps a ring of the last W positions."""

    keys: Tensor
    values: Tensor
    ring: bool = False

    def __deepcopy__(self, memo: dict[int, Any]) -> Cache:
        """A cache that goes on by itself. Without a ring only slots behind the positions so far are written: both
        caches may have the tensors, as long as one is taken on at a time, and what it left is not read by the other.
        """
        return Cache(self.keys.clone(), self.values.clone(), True) if self.ring else Cache(self.keys, self.values)

    def grow(self, needed: int) -> None:
        """Make room for ``needed`` positions, doubling so that the copies cost O(1) per position."""
        have = self.keys.shape[2]
        if needed > have:
            extra = (0, 0, 0, max(needed, 2 * have) - have)
            self.keys, self.values = F.pad(self.keys, extra), F.pad(self.values, extra)


@dataclass
class SharedCache:
    """What the caches of a stack have in common: the rotary angles."""

    angles: Callable[[int, int], tuple[Tensor, Tensor]]
    """cos and sin of positions from … to, (n, half) each, in the compute dtype"""
    cos: Tensor
    sin: Tensor
    window: int
    table: StepTable | None = None
    """what ``native_step`` keeps between calls"""

    def __deepcopy__(self, memo: dict[int, Any]) -> SharedCache:
        """The same angles; the table is of other caches."""
        return SharedCache(self.angles, self.cos, self.sin, self.window)

    def make_room(self, caches: list[Cache], stored: int, end: int) -> None:
        """Have slots for ``stored`` positions, and the angles of those below ``end``."""
        if not self.window:
            for cache in caches:
                cache.grow(stored)
        have = self.cos.shape[0]
        if end > have:
            cos, sin = self.angles(have, max(end, 2 * have))
            self.cos, self.sin = torch.cat((self.cos, cos)), torch.cat((self.sin, sin))


@dataclass(frozen=True)
class CacheSpan:
    """L new positions of R sequences of a state: the same for every block of a stage, so worked out once."""

    cos: Float[Tensor, "*P 1 half"]
    sin: Float[Tensor, "*P 1 half"]
    fresh: bool
    """nothing came before in any of the sequences"""
    rows: Tensor | None
    """the sequences (None: all of the state)"""
    used: int
    """slots of a cache that hold anything once the new positions are in it"""
    slots: slice | None
    """where the new positions go, if that is the same for all sequences and without a gap"""
    moves: tuple[Tensor, Tensor, Tensor, Tensor] | None
    """otherwise: sequence and slot of each position that is kept, and its row and column among the new ones"""
    bias: Float[Tensor, "_ 1 L T"] | None
    """what is added to the scores of the cache's used slots; None: every new position sees them all"""
    order: Int[Tensor, "R W"] | None
    """slots of a ring from the oldest to the latest, where several positions join it"""
    documents: Int[Tensor, "R X"] | None
    """1 for positions that are there, 0 for what a ring has not seen yet, for these W and the new ones (X = W + L)"""

    @staticmethod
    def of(state: StackState, rows: Rows | None, counts: Rows | None, length: int) -> CacheSpan:
        """Where ``length`` positions go, of which the first ``counts`` (None: all) are there and the rest padding.

        What the new positions see, by how many positions their sequences have had (``at``):

        | case                            | ``fresh`` | ``order`` | ``bias`` | keys and values are read from          |
        |---------------------------------|-----------|-----------|----------|----------------------------------------|
        | all at 0, L > 1                 | True      | None      | None     | the new positions themselves           |
        | all at the same number, L = 1   | False     | None      | None     | the cache: every used slot             |
        | at different numbers, L = 1     | False     | None      | given    | the cache, each sequence to its end    |
        | L > 1 behind others, all seen   | False     | None      | given    | the cache, each position to its own    |
        | L > 1 behind others, a window   | False     | given     | None     | the ring in the order of time, then new |

        They are written into the cache before it is read, except in the last case: there the last ones overwrite what
        the first ones still see. For instance, W = 4 and at = 6: positions 2 3 4 5 lie in slots 2 3 0 1 (their number
        modulo 4). L = 3 new ones, 6 7 8, go to slots 2 3 0, over 2 3 4; but position 6 sees 3 4 5. So ``order`` is
        2 3 0 1, and attention runs over 2 3 4 5 6 7 8 before anything is written.

        Where they go: ``slots`` is one slice where all sequences are at the same number, nothing is padding and the
        slice does not run past the ring's end (here 6 % 4 + 3 = 5 > 4 does); ``moves`` is it position by position.
        """
        shared: SharedCache = state.shared
        device, dtype, window = shared.cos.device, shared.cos.dtype, shared.window
        at = state.lengths if rows is None else state.lengths[rows]
        first = int(at[0])
        uniform = bool((at == first).all())
        latest = first if uniform else int(at.max())
        ends = at + (length if counts is None else counts)
        end = int(ends.max())
        shared.make_room(state.blocks, end, latest + length)
        size = window or max((cache.keys.shape[2] for cache in state.blocks), default=end)
        used = min(end, size)

        if uniform:
            cos, sin = shared.cos[first : first + length], shared.sin[first : first + length]
        else:
            positions = _to(at[:, None] + np.arange(length), device)
            cos, sin = shared.cos[positions], shared.sin[positions]

        start = first % size
        contiguous = uniform and counts is None and start + length <= size
        fresh = uniform and first == 0 and length > 1
        ordered = bool(window) and not fresh and length > 1
        bias = None
        if not fresh and not ordered and not (uniform and length == 1):
            query = _to(at[:, None, None, None] + np.arange(length)[:, None], device)
            seen = torch.arange(used, device=device) <= query  # a ring that has come round is full
            bias = as_bias(seen, dtype)
        # The positions that a ring holds, in the order of time; negative ones have not been. W = 4 and at = 2 make
        # −2 −1 0 1, so slots 2 3 0 1, of which the first two are masked as another document.
        before = at[:, None] - window + np.arange(window)
        known = np.concatenate((before >= 0, np.ones((len(at), length), np.bool_)), 1) if ordered else None
        return CacheSpan(
            cos=cos.unsqueeze(-2),
            sin=sin.unsqueeze(-2),
            fresh=fresh,
            rows=None if rows is None else _to(rows, device),
            used=used,
            slots=slice(start, start + length) if contiguous else None,
            moves=None if contiguous else _moves(at, rows, ends, length, size, device),
            bias=bias,
            order=_to(before % window, device) if ordered else None,
            documents=None if known is None else _to(known.astype(np.int64), device),
        )

    def write(self, cache: Cache, keys: Float[Tensor, "R L G K"], values: Float[Tensor, "R L G K"]) -> None:
        """Put the new positions into the cache."""
        for target, new in ((cache.keys, keys), (cache.values, values)):
            if self.slots is not None and self.rows is None:
                target[:, :, self.slots] = new.transpose(1, 2)
            elif self.slots is not None:
                target[self.rows, :, self.slots] = new.transpose(1, 2)
            elif self.moves is not None:
                row, slot, from_row, column = self.moves
                target[row, :, slot] = new[from_row, column]

    def read(self, cache: Cache) -> tuple[Float[Tensor, "R G T K"], Float[Tensor, "R G T K"]]:
        """Keys and values of the used slots."""
        if self.rows is None:
            return cache.keys[:, :, : self.used], cache.values[:, :, : self.used]
        return cache.keys[self.rows, :, : self.used], cache.values[self.rows, :, : self.used]

    def before(self, cache: Cache) -> tuple[Float[Tensor, "R W G K"], Float[Tensor, "R W G K"]]:
        """A ring's keys and values in the order of time."""
        assert self.order is not None
        rows = torch.arange(self.order.shape[0], device=self.order.device) if self.rows is None else self.rows
        index = (rows.unsqueeze(1), slice(None), self.order)
        return cache.keys[index], cache.values[index]


def _moves(
    at: Rows, rows: Rows | None, ends: Rows, length: int, size: int, device: torch.device
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Which new positions are kept, as ``Span.moves``: no padding, and the last ``size`` of each sequence at most."""
    position = at[:, None] + np.arange(length)
    # W = 4, at = 6, L = 6: positions 6 … 11, of which 8 … 11 are kept; 6 and 7 would be overwritten by 10 and 11
    row, column = ((position < ends[:, None]) & (position >= ends[:, None] - size)).nonzero()
    sequence = row if rows is None else rows[row]
    slot = position[row, column] % size
    return _to(sequence, device), _to(slot, device), _to(row, device), _to(column, device)


def _to(values: NDArray[np.int64], device: torch.device) -> Tensor:
    return torch.from_numpy(values).to(device)


@dataclass(frozen=True)
class StepTable:
    """Where ``native_step``  finds a stage's parameters and the caches of a state's first sequence."""

    addresses: Int[Tensor, "layers 11"]
    sizes: tuple[int, int, int, int]
    """layers, query heads, key/value heads, hidden width"""
    tensors: list[list[Tensor | None]]
    """what lies there: nothing of it is freed as long as the table is"""

    @staticmethod
    def of(blocks: Sequence[Any], skip_weights: Tensor, state: StackState) -> StepTable:
        """The table of ``blocks``, the second half of which adds skips scaled by ``skip_weights`` (one row each)."""
        pushed, rows = len(skip_weights), []
        for index, (block, cache) in enumerate(zip(blocks, state.blocks, strict=True)):
            attn, mlp = block.mixer, block.mlp
            skip = skip_weights[index - pushed] if pushed <= index < 2 * pushed else None
            weights = [attn.qkv.weight, attn.proj.weight, attn.q_gain, mlp.fc.weight, mlp.proj.weight]
            weights += [block.mixer_scale, block.mlp_scale, block.resid_mix]
            rows.append([*(weight.detach().float().contiguous() for weight in weights), skip, cache.keys, cache.values])
        addresses = [[0 if tensor is None else tensor.data_ptr() for tensor in row] for row in rows]
        table = torch.tensor(addresses, dtype=torch.int64).view(-1, 11)
        sizes = (0, 1, 1, 0)
        if blocks:
            attn = blocks[0].mixer
            sizes = (len(blocks), attn.heads, attn.groups, blocks[0].mlp.fc.weight.shape[0])
        return StepTable(table, sizes, rows)

    def fits(self, blocks: Sequence[Any], state: StackState) -> bool:
        """Whether parameters and caches are still where they were."""
        if not blocks:
            return True
        weight, keys = self.tensors[0][0], self.tensors[0][9]
        same = weight is not None and weight.data_ptr() == blocks[0].mixer.qkv.weight.data_ptr()
        return same and keys is state.blocks[0].keys


def native_step(
    blocks: Sequence[Any], skip_weights: Tensor, x: Float[Tensor, "1 1 D"], state: StackState, row: int
) -> Float[Tensor, "1 1 D"]:
    """The stack's output for the next position of the sequence ``row`` of ``state``, which takes it in.

    One kernel (``kernels/step.cpp``) runs all ``blocks``, each a ``Block`` whose mixer is ``Attention``. The
    result is that of ``Stack.extend`` up to rounding.
    """
    at = int(state.lengths[row])
    shared: SharedCache = state.shared
    shared.make_room(state.blocks, at + 1, at + 1)
    table = shared.table
    if table is None or not table.fits(blocks, state):
        table = shared.table = StepTable.of(blocks, skip_weights, state)
    addresses, (layers, heads, groups, hidden) = table.addresses, table.sizes
    slots = state.blocks[0].keys.shape[2] if layers else 1
    if row and layers:
        keys = state.blocks[0].keys
        # the table is of sequence 0; keys and values, its last two columns, lie `row` sequences further on
        addresses = addresses.clone()
        addresses[:, 9:] += row * keys.stride(0) * keys.element_size()
    sizes = (layers, x.shape[-1], heads, groups, hidden)
    places = (slots, at % slots, min(at + 1, slots), at)
    x, out = x.contiguous(), torch.empty_like(x)
    native.call("stage_step", x, addresses, x, shared.cos, shared.sin, out, *sizes, *places, NORM_EPS)
    state.lengths[row] = at + 1
    return out


# ------------------------------------------------------------------------------------------------------------ attention


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
        return native_step(blocks, skip_weights, x, state, 0 if rows is None else int(rows[0]))
