"""What the pretended device lets through and what it refuses: as a GPU would."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from gpu_runs import CUDA, trainer_on

from bytegolf.ops.flex_attention import block_mask
from pretend_cuda import flex
from pretend_cuda.tensors import PretendTensor, waits

HERE, THERE = torch.arange(6.0), torch.arange(6.0, device="cuda")
SCALAR, INDEX = torch.tensor(2.0), torch.tensor([1, 0])

REFUSED: dict[str, Callable[[], object]] = {
    "a sum": lambda: THERE + HERE,
    "a product": lambda: THERE.view(2, 3) @ HERE.view(3, 2),
    "joining": lambda: torch.cat((THERE, HERE)),
    "a number joined": lambda: torch.stack((THERE[0], SCALAR)),
    "a lookup in a table": lambda: torch.nn.functional.embedding(INDEX, THERE.view(3, 2)),
    "gathering": lambda: THERE.gather(0, INDEX),
    "a mask": lambda: THERE.masked_fill(HERE > 2, 0.0),
    "a choice": lambda: torch.where(HERE > 2, THERE, 0.0),
    "in place": lambda: HERE.add_(THERE),
    "in place, a number": lambda: torch.zeros(()).add_(THERE[0]),
    "indices on the device into the CPU": lambda: HERE[INDEX.to("cuda")],
    "values from the CPU put at indices": lambda: torch.zeros(6, device="cuda").index_put_((INDEX,), HERE[:2]),
    "several at once": lambda: torch._foreach_add([THERE], [HERE]),
}

ALLOWED: dict[str, Callable[[], torch.Tensor]] = {
    "a number of the CPU's": lambda: THERE * SCALAR,
    "indices of the CPU's": lambda: THERE[INDEX],
    "a copy there": lambda: torch.zeros(6, device="cuda").copy_(HERE),
    "moving": lambda: HERE.to(THERE.device),
    "moving through pinned memory": lambda: HERE.pin_memory().to("cuda", non_blocking=True),
    "made of numbers": lambda: torch.tensor([1.0, 2.0], device="cuda"),
    "made like another": lambda: torch.zeros_like(THERE),
    "a part": lambda: THERE.view(2, 3)[:, 1:],
    "the opposite": lambda: ~(THERE > 2),
    "in inference mode": torch.inference_mode()(lambda: THERE.view(2, 3).chunk(2)[0] + THERE[:3]),
}


@pytest.mark.parametrize("what", REFUSED)
def test_a_mixture_is_refused(what: str) -> None:
    with pytest.raises(RuntimeError, match="same device"):
        REFUSED[what]()


@pytest.mark.parametrize("what", ALLOWED)
def test_a_gpu_allows_this_too(what: str) -> None:
    found = ALLOWED[what]()
    assert isinstance(found, PretendTensor)
    assert found.device == CUDA


def test_values_reach_the_host_only_when_they_are_copied() -> None:
    with pytest.raises(TypeError, match="numpy"):
        THERE.numpy()
    with pytest.raises(TypeError, match="numpy"):
        np.asarray(THERE)
    assert THERE.cpu().numpy().tolist() == THERE.tolist() == HERE.tolist()
    assert float(THERE.sum()) == 15


def test_autograd() -> None:
    x = torch.randn(3, 4, device="cuda", requires_grad=True)
    module = torch.nn.Linear(4, 2).to("cuda")
    ((module(x) * 2)[0] ** 2).sum().backward()
    assert x.grad is not None
    assert module.weight.grad is not None
    assert x.grad.device == module.weight.grad.device == CUDA
    plain, linear = x.detach().cpu().requires_grad_(), torch.nn.functional.linear
    ((linear(plain, module.weight.detach().cpu(), module.bias.detach().cpu()) * 2)[0] ** 2).sum().backward()
    assert plain.grad is not None
    assert torch.equal(x.grad.cpu(), plain.grad)


def test_waiting_is_counted() -> None:
    waits.clear()
    _ = THERE + 1, THERE.view(2, 3), THERE.to(torch.bfloat16), torch.zeros_like(THERE)
    assert not waits
    _ = THERE.cpu(), THERE.sum().item(), THERE[THERE > 2], THERE.tolist()
    assert waits.total() == 4


def test_a_step_with_a_fixed_capacity_waits_for_nothing(tiny_data: Path) -> None:
    """Every shape is known beforehand, so that the host can run ahead of the device."""
    changes = ("model.network.router.capacity=fixed", "train.log_every=100")
    trainer = trainer_on("cuda", "cpu-demo", tiny_data, *changes)
    trainer.step()
    waits.clear()
    trainer.step()
    trainer.step()
    assert not waits, waits
    exact = trainer_on("cuda", "cpu-demo", tiny_data, "train.log_every=100")
    exact.step()
    waits.clear()
    exact.step()
    assert waits.total() == 1, "one level, whose chunks are counted once"


def attend(width: int = 16, length: int = 40, made_for: int = 40, device: str = "cuda") -> None:
    q, k, v = (torch.randn(2, heads, length, width, device="cuda") for heads in (4, 2, 2))
    mask = block_mask(made_for, 8, None, torch.device(device, 0) if device == "cuda" else torch.device(device))
    flex.flex_attention(q, k, v, block_mask=mask, scale=1.0, enable_gqa=True)


def test_flex_attentions_arguments_are_checked() -> None:
    attend()
    for wrong in ({"width": 8}, {"made_for": 41}, {"device": "cpu"}):
        with pytest.raises(AssertionError):
            attend(**wrong)


def test_a_mask_that_validation_makes_serves_training() -> None:
    with torch.inference_mode():
        attend(length=53, made_for=53)
    q, k, v = (torch.randn(1, 2, 53, 16, device="cuda", requires_grad=True) for _ in range(3))
    flex.flex_attention(q, k, v, block_mask=block_mask(53, 8, None, CUDA), scale=1.0, enable_gqa=True).sum().backward()


def test_threads_have_the_device_too() -> None:
    with ThreadPoolExecutor(1) as threads:
        assert threads.submit(lambda: torch.zeros(2, device="cuda") + THERE[:2]).result().device == CUDA
