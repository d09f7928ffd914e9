"""One position of one sequence through a whole stage, as one native kernel (``kernels/step.cpp``).

It is ``Stage.extend`` by a single position, up to rounding, where a step is mostly the cost of starting operations.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from bytegolf.model import native
from bytegolf.model.block import Block
from bytegolf.model.cache import StageState
from bytegolf.model.functions import NORM_EPS


@dataclass(frozen=True)
class Table:
    """Where the kernel finds a stage's parameters and the caches of a state's first sequence."""

    addresses: Int[Tensor, "layers 11"]
    tensors: list[list[Tensor | None]]
    """what lies there: nothing of it is freed as long as the table is"""

    @staticmethod
    def of(blocks: Sequence[Block], skip_weights: Tensor, state: StageState) -> Table:
        """The table of ``blocks``, the second half of which adds skips scaled by ``skip_weights`` (one row each)."""
        pushed, rows = len(skip_weights), []
        for index, (block, cache) in enumerate(zip(blocks, state.blocks, strict=True)):
            attn, mlp = block.attn, block.mlp
            skip = skip_weights[index - pushed] if pushed <= index < 2 * pushed else None
            weights = [attn.qkv.weight, attn.proj.weight, attn.q_gain, mlp.fc.weight, mlp.proj.weight]
            weights += [block.attn_scale, block.mlp_scale, block.resid_mix]
            rows.append([*(weight.detach().float().contiguous() for weight in weights), skip, cache.keys, cache.values])
        addresses = [[0 if tensor is None else tensor.data_ptr() for tensor in row] for row in rows]
        return Table(torch.tensor(addresses), rows)

    def fits(self, blocks: Sequence[Block], state: StageState) -> bool:
        """Whether parameters and caches are still where they were."""
        weight, keys = self.tensors[0][0], self.tensors[0][9]
        same = weight is not None and weight.data_ptr() == blocks[0].attn.qkv.weight.data_ptr()
        return same and keys is state.blocks[0].keys


def usable(x: Tensor, blocks: Sequence[Block]) -> bool:
    """Whether the kernel can take ``x`` (R, L, D): one position of one sequence, in fp32 or fp64."""
    return x.shape[:2] == (1, 1) and x.dtype != torch.bfloat16 and len(blocks) > 0 and native.usable(x)


def step(
    blocks: Sequence[Block], skip_weights: Tensor, x: Float[Tensor, "1 1 D"], state: StageState, row: int
) -> Float[Tensor, "1 1 D"]:
    """The stage's output for the next position of the sequence ``row`` of ``state``, which takes it in."""
    at = int(state.lengths[row])
    state.make_room(at + 1, at + 1)
    table = state.table
    if not isinstance(table, Table) or not table.fits(blocks, state):
        table = state.table = Table.of(blocks, skip_weights, state)
    addresses, cache, attn = table.addresses, state.blocks[0], blocks[0].attn
    if row:
        addresses = addresses.clone()
        addresses[:, 9:] += row * cache.keys.stride(0) * cache.keys.element_size()
    slots = cache.keys.shape[2]
    sizes = (len(blocks), x.shape[-1], attn.heads, attn.groups, blocks[0].mlp.fc.weight.shape[0])
    places = (slots, at % slots, min(at + 1, slots))
    x, out = x.contiguous(), torch.empty_like(x)
    native.call("stage_step", x, addresses, x, state.cos[at], state.sin[at], out, *sizes, *places, NORM_EPS)
    state.lengths[row] = at + 1
    return out
