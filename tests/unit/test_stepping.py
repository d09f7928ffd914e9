"""A step as one native kernel against the same step in single operations, on every kind of stage."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import scatter, shapes_unchecked
from torch import Tensor

from bytegolf.config import StackConfig
from bytegolf.model.mixers import attention
from bytegolf.model.stack import Stack
from bytegolf.ops import native

pytestmark = pytest.mark.skipif(native.why_not() is not None, reason="no native kernels here")


def stage(layers: int, window: int = 0, dim: int = 24, mlp: float = 2.0) -> Stack:
    module = Stack(StackConfig(layers, dim, heads=4, kv_heads=2, window=window, mlp_mult=mlp))
    scatter(module)
    return module


@torch.no_grad()
def steps(module: Stack, x: Tensor, rows: list[int]) -> tuple[list[Tensor], int]:
    """The outputs of single positions of the sequences ``rows`` in turn, and how many went through the kernel."""
    state = module.start(3, x.device, x.dtype)
    calls, inner = 0, attention.native_step

    def counted(*arguments: object) -> Tensor:
        nonlocal calls
        calls += 1
        return inner(*arguments)  # type: ignore[arg-type]

    attention.native_step = counted  # type: ignore[assignment]
    try:
        with shapes_unchecked():
            return [module.extend(x[i : i + 1, None], state, np.array([row])) for i, row in enumerate(rows)], calls
    finally:
        attention.native_step = inner


@pytest.mark.parametrize("window", [0, 5])
@pytest.mark.parametrize("layers", [1, 2, 3, 4, 5])
@pytest.mark.parametrize(("dtype", "exact"), [(torch.float64, 1e-11), (torch.float32, 2e-5)])
def test_the_kernel_is_the_step(layers: int, window: int, dtype: torch.dtype, exact: float) -> None:
    """Sequences at different positions, rings that come round and caches that grow (and so move)."""
    module = stage(layers, window)
    rows = torch.randint(3, (210,)).tolist()
    x = torch.randn(len(rows), 24, dtype=dtype)
    found, calls = steps(module, x, rows)
    assert calls == len(rows)
    with native.disabled():
        wanted, calls = steps(module, x, rows)
    assert calls == 0
    torch.testing.assert_close(torch.cat(found), torch.cat(wanted), rtol=0, atol=exact)


def test_wide_stages_are_shared_by_threads() -> None:
    threads = torch.get_num_threads()
    module = stage(3, dim=512, mlp=1.5)
    x = torch.randn(9, 512, dtype=torch.float64)
    torch.set_num_threads(2)
    try:
        found, _ = steps(module, x, [0] * 9)
    finally:
        torch.set_num_threads(threads)
    with native.disabled():
        wanted, _ = steps(module, x, [0] * 9)
    torch.testing.assert_close(torch.cat(found), torch.cat(wanted), rtol=0, atol=1e-11)


@pytest.mark.parametrize("replaced", [False, True])
def test_new_weights_are_seen(replaced: bool) -> None:
    """Changed in place, or put in another's place, between two steps of one state."""
    module = stage(2)
    weight = module.blocks[0].get_parameter("mixer.qkv.weight")
    x, new = torch.randn(1, 1, 24), torch.randn_like(weight)
    with torch.no_grad(), shapes_unchecked():
        state, plain = module.start(1, x.device, x.dtype), module.start(1, x.device, x.dtype)
        first = module.extend(x, state)
        with native.disabled():
            module.extend(x, plain)
        if replaced:
            weight.data = new
        else:
            weight.copy_(new)
        with native.disabled():
            wanted = module.extend(x, plain)
        torch.testing.assert_close(module.extend(x, state), wanted, rtol=0, atol=1e-5)
    assert float((wanted - first).abs().max()) > 0.01
