"""What followed each n-gram of a text, added up as vectors. No gradients flow here.

Legend: T tokens, N lengths of n-grams, V alphabet, E width of a code, M rows of all lengths' tables.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from bytegolf.ops import native

CHUNK = 1 << 16
"""Tokens that the plain form takes at a time."""


def add_code_sums(
    sums: Float[Tensor, "M E"],
    counts: Float[Tensor, " M"],
    ids: Int[Tensor, " T"],
    codes: Float[Tensor, "N V E"],
    powers: tuple[int, ...],
    mixer: int,
    bos: int,
    rows: Callable[[Int[Tensor, "1 S"]], Int[Tensor, "1 L N"]],
) -> None:
    """For each position t and length n, in place: the row of the n-gram that ends at t takes in the code, among those
    of n, of the token at t + 1, and its count grows by 1.

    ``rows`` gives the rows of the last positions of ids, as many as are left behind the first ``len(powers) − 1``; the
    kernel works them out itself, by ``powers``, ``mixer`` and ``bos`` (−2: no token is one).
    """
    lengths, alphabet, width = codes.shape
    bits = (sums.shape[0] // lengths).bit_length() - 1
    if ids.device.type == "cpu" and sums.dtype == torch.float32 and native.usable(sums):
        sizes = (alphabet, lengths, bits, width)
        powered = torch.tensor(powers)
        native.call(
            "code_sums", sums, ids.contiguous(), len(ids), powered, mixer, bos, codes.contiguous(), *sizes, sums, counts
        )
        return
    reach = len(powers) - 1
    ids = torch.cat((ids.new_full((reach,), -1), ids))
    for start in range(0, len(ids) - reach - 1, CHUNK):
        seen = ids[start : start + reach + CHUNK + 1]
        found, follows = rows(seen[:-1].unsqueeze(0))[0], seen[reach + 1 :]
        for n in range(lengths):
            sums.index_add_(0, found[:, n], codes[n][follows])
            counts.index_add_(0, found[:, n], counts.new_ones(()).expand(len(follows)))
