"""One position of one sequence, natively (``kernels/step.cpp``): a step is mostly the cost of starting operations.

Each function is the plain form beside its caller, up to rounding: ``probability`` what the cosine router compares,
``embed`` an id's embedding with its n-grams. ``mixers.attention_step`` has the step of a whole stack.

Legend: D width, M width of a router's vectors, H ids that n-grams reach back.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from bytegolf.model.embed import BASE, BOS, MIXER, NOTHING, NgramEmbedding
from bytegolf.ops import native
from bytegolf.ops.boundary import COSINE_EPS
from bytegolf.ops.rms_norm import NORM_EPS


def usable(x: Tensor, dtype: torch.dtype | None = None) -> bool:
    """Whether the kernels can take ``x`` (R, L, D), or ids (R, L) into ``dtype``: one position of one sequence, on a
    CPU, in fp32 or fp64.
    """
    if x.shape[:2] != (1, 1) or (dtype or x.dtype) not in (torch.float32, torch.float64):
        return False
    return native.usable(x if dtype is None else x.new_empty(0, dtype=dtype))


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
