"""One position of one sequence through a whole stack of attention blocks, natively (``kernels/step.cpp``).

The result is that of ``Stack.extend``, up to rounding. A block is a ``model.block.Block`` whose mixer is ``Attention``.

Legend: D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from bytegolf.model.mixers.attention_cache import SharedCache
from bytegolf.model.mixers.base import StackState
from bytegolf.ops import native
from bytegolf.ops.rms_norm import NORM_EPS


@dataclass(frozen=True)
class Table:
    """Where the kernel finds a stage's parameters and the caches of a state's first sequence."""

    addresses: Int[Tensor, "layers 11"]
    sizes: tuple[int, int, int, int]
    """layers, query heads, key/value heads, hidden width"""
    tensors: list[list[Tensor | None]]
    """what lies there: nothing of it is freed as long as the table is"""

    @staticmethod
    def of(blocks: Sequence[Any], skip_weights: Tensor, state: StackState) -> Table:
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
        return Table(table, sizes, rows)

    def fits(self, blocks: Sequence[Any], state: StackState) -> bool:
        """Whether parameters and caches are still where they were."""
        if not blocks:
            return True
        weight, keys = self.tensors[0][0], self.tensors[0][9]
        same = weight is not None and weight.data_ptr() == blocks[0].mixer.qkv.weight.data_ptr()
        return same and keys is state.blocks[0].keys


def step(
    blocks: Sequence[Any], skip_weights: Tensor, x: Float[Tensor, "1 1 D"], state: StackState, row: int
) -> Float[Tensor, "1 1 D"]:
    """The stage's output for the next position of the sequence ``row`` of ``state``, which takes it in."""
    at = int(state.lengths[row])
    shared: SharedCache = state.shared
    shared.make_room(state.blocks, at + 1, at + 1)
    table = shared.table
    if not isinstance(table, Table) or not table.fits(blocks, state):
        table = shared.table = Table.of(blocks, skip_weights, state)
    addresses, (layers, heads, groups, hidden) = table.addresses, table.sizes
    slots = state.blocks[0].keys.shape[2] if layers else 1
    if row and layers:
        keys = state.blocks[0].keys
        addresses = addresses.clone()
        addresses[:, 9:] += row * keys.stride(0) * keys.element_size()
    sizes = (layers, x.shape[-1], heads, groups, hidden)
    places = (slots, at % slots, min(at + 1, slots), at)
    x, out = x.contiguous(), torch.empty_like(x)
    native.call("stage_step", x, addresses, x, shared.cos, shared.sin, out, *sizes, *places, NORM_EPS)
    state.lengths[row] = at + 1
    return out
