"""A model's distribution as integers: what entropy coding and mixing both work on, so that what follows is exact.

Legend: R rows, A symbols of the alphabet.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, Int, UInt32
from torch import Tensor

from bytegolf.ops import native

PRECISION = 24
"""log₂ of ``TOTAL``, which constriction's categorical models have."""

TOTAL = 1 << PRECISION
"""What the frequencies of one distribution sum to."""


def quantised(p: Float[np.ndarray, "R A"]) -> Int[np.ndarray, "R A"]:
    """Integer frequencies near ``TOTAL``·p, each at least 1, that sum to ``TOTAL``.

    All are rounded down, and the likeliest symbol, to which it matters least, gets what is left.

    >>> quantised(np.array([[0.5, 0.5, 0.0]])).tolist()
    [[8388608, 8388607, 1]]
    """
    rows, symbols = p.shape
    found: Int[np.ndarray, "R A"] = (p * (TOTAL - symbols)).astype(np.int64) + 1
    found[np.arange(rows), p.argmax(1)] += TOTAL - found.sum(1)
    return found


def frequencies_of(logits: Float[Tensor, "R A"], cap: float) -> UInt32[np.ndarray, "R A"]:
    """The frequencies of softmax(cap·tanh(logits/cap)) (cap 0: of softmax(logits)), as ``quantised`` makes them.

    Natively in fp32, on one thread, in one pass over the cache; else in fp64. The two may differ by single units, as
    logits do from one machine to another: mixing is exact from here on.
    """
    if native.usable(logits):
        logits, out = logits.contiguous(), np.empty(logits.shape, np.uint32)
        native.call("frequencies", logits, logits, torch.from_numpy(out), *logits.shape, cap)
        return out
    z = logits.double()
    p = torch.softmax(cap * torch.tanh(z / cap) if cap > 0 else z, -1)
    return quantised(p.cpu().numpy()).astype(np.uint32)
