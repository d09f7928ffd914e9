"""One position of one sequence, natively (``kernels/step.cpp``): a step is mostly the cost of starting operations.

Each function is the plain form beside its caller, up to rounding: ``step`` a whole ``Stack.extend``, ``probability``
what the cosine router compares, ``embed`` an id's embedding with its n-grams.

Legend: D width, M width of a router's vectors, H ids that n-grams reach back.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from bytegolf.model.block import Block
from bytegolf.model.cache import StackState
from bytegolf.model.embed import BASE, BOS, MIXER, NOTHING, NgramEmbedding
from bytegolf.ops import native
from bytegolf.ops.boundary import COSINE_EPS
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
    def of(blocks: Sequence[Block], skip_weights: Tensor, state: StackState) -> Table:
        """The table of ``blocks``, the second half of which adds skips scaled by ``skip_weights`` (one row each)."""
        pushed, rows = len(skip_weights), []
        for index, (block, cache) in enumerate(zip(blocks, state.blocks, strict=True)):
            attn, mlp = block.attn, block.mlp
            skip = skip_weights[index - pushed] if pushed <= index < 2 * pushed else None
            weights = [attn.qkv.weight, attn.proj.weight, attn.q_gain, mlp.fc.weight, mlp.proj.weight]
            weights += [block.attn_scale, block.mlp_scale, block.resid_mix]
            rows.append([*(weight.detach().float().contiguous() for weight in weights), skip, cache.keys, cache.values])
        addresses = [[0 if tensor is None else tensor.data_ptr() for tensor in row] for row in rows]
        table = torch.tensor(addresses, dtype=torch.int64).view(-1, 11)
        sizes = [(len(blocks), b.attn.heads, b.attn.groups, b.mlp.fc.weight.shape[0]) for b in blocks[:1]]
        return Table(table, (sizes or [(0, 1, 1, 0)])[0], rows)

    def fits(self, blocks: Sequence[Block], state: StackState) -> bool:
        """Whether parameters and caches are still where they were."""
        if not blocks:
            return True
        weight, keys = self.tensors[0][0], self.tensors[0][9]
        same = weight is not None and weight.data_ptr() == blocks[0].attn.qkv.weight.data_ptr()
        return same and keys is state.blocks[0].keys


def usable(x: Tensor, dtype: torch.dtype | None = None) -> bool:
    """Whether the kernels can take ``x`` (R, L, D), or ids (R, L) into ``dtype``: one position of one sequence, on a
    CPU, in fp32 or fp64.
    """
    if x.shape[:2] != (1, 1) or (dtype or x.dtype) not in (torch.float32, torch.float64):
        return False
    return native.usable(x if dtype is None else x.new_empty(0, dtype=dtype))


def step(
    blocks: Sequence[Block], skip_weights: Tensor, x: Float[Tensor, "1 1 D"], state: StackState, row: int
) -> Float[Tensor, "1 1 D"]:
    """The stage's output for the next position of the sequence ``row`` of ``state``, which takes it in."""
    at = int(state.lengths[row])
    state.make_room(at + 1, at + 1)
    table = state.table
    if not isinstance(table, Table) or not table.fits(blocks, state):
        table = state.table = Table.of(blocks, skip_weights, state)
    addresses, (layers, heads, groups, hidden) = table.addresses, table.sizes
    slots = state.blocks[0].keys.shape[2] if layers else 1
    if row and layers:
        keys = state.blocks[0].keys
        addresses = addresses.clone()
        addresses[:, 9:] += row * keys.stride(0) * keys.element_size()
    sizes = (layers, x.shape[-1], heads, groups, hidden)
    places = (slots, at % slots, min(at + 1, slots), at)
    x, out = x.contiguous(), torch.empty_like(x)
    native.call("stage_step", x, addresses, x, state.cos, state.sin, out, *sizes, *places, NORM_EPS)
    state.lengths[row] = at + 1
    return out


def probability(
    x: Float[Tensor, "1 1 D"], query: Float[Tensor, "M D"], key: Float[Tensor, "M D"], memory: Float[Tensor, "1 M"]
) -> tuple[Float[Tensor, "1 1"], Float[Tensor, "1 1 M"]]:
    """½(1 − cos(query·x, memory)), and key·x, with which the next position is compared."""
    keys, p = x.new_empty(1, 1, len(key)), x.new_empty(1, 1)
    x, memory = x.contiguous(), memory.contiguous()
    native.call("router_step", x, x, query, key, memory, keys, p, x.shape[-1], len(key), COSINE_EPS)
    return p, keys


def embed(
    token: int,
    history: Int[Tensor, " H"],
    weight: Float[Tensor, "V D"],
    ngrams: NgramEmbedding | None,
    reset_at_bos: bool,
    dtype: torch.dtype,
) -> Float[Tensor, "1 1 D"]:
    """The norm of the embedding of ``token`` plus its n-grams; ``history`` is the ids before it, and takes it in."""
    out = torch.empty(1, 1, weight.shape[1], dtype=dtype)
    tables: tuple[Tensor | None, ...] = (None, None)
    sizes = (0, 0, 0)
    if ngrams is not None:
        tables = (ngrams.table, ngrams.proj.weight)
        sizes = (ngrams.lengths, ngrams.config.bits, ngrams.config.dim)
    ids = (BASE, MIXER, NOTHING, BOS if reset_at_bos else NOTHING - 1)
    native.call("embed_step", out, weight, token, history, *tables, *ids, out, weight.shape[1], *sizes, NORM_EPS)
    return out
