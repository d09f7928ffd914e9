"""What a model's linear maps are fed: the second moments of their inputs over windows of *training* text, for GPTQ.

Legend: I inputs of a map.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from bytegolf.data.shards import TokenStream
from bytegolf.model.layers import Linear
from bytegolf.model.lm import LanguageModel


@torch.no_grad()
def second_moments(
    model: LanguageModel, train: TokenStream, seq_len: int, tokens: int, names: Collection[str]
) -> dict[str, Tensor]:
    """Σ x·xᵀ (I, I) over the inputs x of each linear map whose weight is among ``names``, in fp32.

    The windows lie evenly over the stream, ``tokens`` of it in all (a window at least). They are run one by one with
    room for exactly their own chunks: padding never counts.
    """
    found: dict[str, Tensor] = {}
    count = max(1, min(-(-tokens // seq_len), (len(train) - 1) // seq_len))
    device = model.embedding.weight.device
    last = len(train) - seq_len - 1
    with model.capacity("exact"), _watched(model, names, found):
        for index in range(count):
            start = index * last // max(1, count - 1)
            window = torch.from_numpy(train.slice(start, start + seq_len).astype("int64"))
            model(window.unsqueeze(0).to(device))
    return found


@contextlib.contextmanager
def _watched(model: LanguageModel, names: Collection[str], found: dict[str, Tensor]) -> Iterator[None]:
    """Have the maps add to ``found`` what they are fed within the context."""
    handles: list[RemovableHandle] = []
    for path, module in model.named_modules():
        name = f"{path}.weight"
        if isinstance(module, Linear) and name in names:
            handles.append(module.register_forward_pre_hook(_adder(found, name)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _adder(found: dict[str, Tensor], name: str) -> Callable[[Linear, tuple[Tensor, ...]], None]:
    def add(module: Linear, inputs: tuple[Tensor, ...]) -> None:
        x = inputs[0].flatten(0, -2).to(torch.float32)
        if name in found:
            found[name].addmm_(x.mT, x)
        else:
            found[name] = x.mT @ x

    return add
