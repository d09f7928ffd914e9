"""Attention on a GPU: flash attention where every position sees all before it, FlexAttention for windows and documents.

On a CPU FlexAttention has no backward and materialises the scores: the tests use that to compare.

Legend: B batch, L positions, H query heads, G key/value heads, K head width.
"""

from __future__ import annotations

import functools
from typing import Any, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from bytegolf.ops import native

LEAST_WIDTH = 16
"""Of a head: Triton's matrix product, of which the kernel is made, takes no narrower ones (torch 2.13)."""


def flex_attention(
    q: Float[Tensor, "B L H K"],
    k: Float[Tensor, "B L G K"],
    v: Float[Tensor, "B L G K"],
    window: int = 0,
    documents: Int[Tensor, "B L"] | None = None,
) -> Float[Tensor, "B L H K"]:
    """Causal attention to the last ``window`` positions (0: all) of the same document; q carries the scale already.

    With a window or documents K is at least ``LEAST_WIDTH``.
    """
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))
    # (why) FlexAttention compiles itself, which nothing can under FakeTensorMode; flash attention's result has the same
    # shape, dtype and device, and like it needs no memory for scores
    if native.is_fake(q) or (documents is None and not 0 < window < q.shape[2]):
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=1.0, enable_gqa=True)
    else:
        mask = block_mask(q.shape[2], window, documents, q.device)
        out = _flex_attention(q.device.type)(q, k, v, block_mask=mask, scale=1.0, enable_gqa=True)
    return out.transpose(1, 2)


def block_mask(length: int, window: int, documents: Tensor | None, device: torch.device) -> Any:
    """Which blocks of keys a block of queries sees, as FlexAttention wants it (a BlockMask).

    FlexAttention works through 128 × 128 tiles of the scores and skips those without a visible pair. With a window of
    200, queries 256 … 383 see keys 57 … 383: of the tiles of keys 0 … 127, 128 … 255 and 256 … 383 none is skipped; for
    queries 384 … 511 the first is.
    """
    if torch.compiler.is_compiling():  # part of the graph, in which equal masks are made once
        return _block_mask(length, window, documents, device)
    if documents is None:
        return _recurring(length, window, device)
    if _latest.get("documents") is not documents or _latest["window"] != window:  # the other blocks of a stack
        _latest.update(documents=documents, window=window, mask=_block_mask(length, window, documents, device))
    return _latest["mask"]


_latest: dict[str, Any] = {}
"""The mask over the documents seen last. (why) Every block of a stack asks for the same one within a pass, and making
it costs more than attending; the next batch has other documents, so one is enough."""


def _block_mask(length: int, window: int, documents: Tensor | None, device: torch.device) -> Any:
    from torch.nn.attention.flex_attention import create_block_mask  # its import takes a second

    seen = window or length
    if documents is None:
        return create_block_mask(
            lambda b, h, q, k: (k <= q) & (q - k < seen), None, None, length, length, device=device
        )
    return create_block_mask(
        lambda b, h, q, k: (k <= q) & (q - k < seen) & (documents[b, q] == documents[b, k]),
        documents.shape[0],
        None,
        length,
        length,
        device=device,
    )


@functools.lru_cache(maxsize=64)
def _recurring(length: int, window: int, device: torch.device) -> Any:
    # (why) One that validation makes, in inference mode, could not be saved for the backward pass of a later step.
    with torch.inference_mode(False):
        return _block_mask(length, window, None, device)


def _flex_attention(device: str) -> Any:
    """FlexAttention, compiled into one kernel where there is a GPU, unless what calls it is being compiled already."""
    from torch.nn.attention.flex_attention import flex_attention

    if device == "cpu" or torch.compiler.is_compiling():
        return flex_attention
    return _compiled(flex_attention)


@functools.cache
def _compiled(function: Any) -> Any:
    return cast("Any", torch.compile(function))
