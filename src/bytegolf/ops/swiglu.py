"""The gate of a SwiGLU MLP: silu(g)·v from packed values and gates [v, g] (arXiv 2002.05202; S4: values first).

Legend: H hidden width, P = 2H.
"""

from __future__ import annotations

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def swiglu(x: Float[Tensor, "*B P"]) -> Float[Tensor, "*B H"]:
    """silu(g)·v."""
    return swiglu_reference(x)


def swiglu_reference(x: Float[Tensor, "*B P"]) -> Float[Tensor, "*B H"]:
    """The formula."""
    v, g = x.chunk(2, -1)
    return F.silu(g) * v
