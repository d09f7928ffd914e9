"""Attention as a GPU computes it, against the blocks of batched products: here without its kernels, there with them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from bytegolf.device import prepare_device
from bytegolf.ops.attention import full_attention, local_attention
from bytegolf.ops.flex_attention import block_mask, flex_attention

CASES = [(0, False), (8, False), (0, True), (8, True), (64, True)]
"""window, and whether there are several documents"""


def inputs(length: int, several: bool) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """q, k, v in fp32 and documents, for 2 sequences and 4 heads that share 2."""
    q, k, v = (torch.randn(2, length, heads, 16) for heads in (4, 2, 2))
    documents = (torch.rand(2, length) < 0.1).cumsum(1) if several else None
    return q, k, v, documents


def reference(q: Tensor, k: Tensor, v: Tensor, window: int, documents: Tensor | None) -> Tensor:
    if 0 < window < q.shape[1]:
        return local_attention(q, k, v, window, documents)
    return full_attention(q, k, v, documents)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize(("window", "several"), CASES)
@pytest.mark.parametrize("length", [37, 130])
def test_it_is_the_block_path(window: int, several: bool, length: int) -> None:
    q, k, v, documents = inputs(length, several)
    with torch.no_grad():
        found = flex_attention(q, k, v, window, documents)
    torch.testing.assert_close(found, reference(q, k, v, window, documents), rtol=1e-4, atol=1e-5)


def test_a_mask_is_made_once_for_the_blocks_of_a_stage() -> None:
    _, _, _, documents = inputs(40, True)
    cpu = torch.device("cpu")
    first = block_mask(40, 8, documents, cpu)
    assert block_mask(40, 8, documents, cpu) is first
    assert block_mask(40, 4, documents, cpu) is not first
    assert documents is not None
    assert block_mask(40, 4, documents.clone(), cpu) is not block_mask(40, 4, documents, cpu)
    assert block_mask(40, 8, None, cpu) is block_mask(40, 8, None, cpu)


@pytest.mark.gpu
@pytest.mark.parametrize(("window", "several"), CASES)
def test_a_gpu_gives_the_same_values_and_gradients(window: int, several: bool) -> None:
    prepare_device(torch.device("cuda"))
    *tensors, documents = inputs(130, several)
    found = []
    for device in ("cpu", "cuda"):
        moved = [tensor.detach().to(device, torch.bfloat16).requires_grad_() for tensor in tensors]
        there = documents if documents is None else documents.to(device)
        out = reference(*moved, window, there)  # type: ignore[arg-type, call-arg]
        out.float().square().sum().backward()
        found.append([out.detach().cpu(), *(tensor.grad.cpu() for tensor in moved if tensor.grad is not None)])
    torch.testing.assert_close(found[1], found[0], rtol=0.05, atol=0.05)
