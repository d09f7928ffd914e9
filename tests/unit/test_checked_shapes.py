"""Annotated shapes are checked while tests run (`conftest.py`): what does not fit fails where it is passed."""

from __future__ import annotations

import pytest
import torch
from jaxtyping import TypeCheckError

from bytegolf.ops.cross_entropy import softcap_cross_entropy


def test_a_tensor_of_another_shape_or_dtype_than_annotated_fails() -> None:
    logits, targets = torch.zeros(3, 5), torch.tensor([0, 4, 2])
    assert softcap_cross_entropy(logits, targets, 30.0).shape == (3,)
    with pytest.raises(TypeCheckError):  # a fourth target: both are annotated with N
        softcap_cross_entropy(logits, torch.tensor([0, 4, 2, 1]), 30.0)
    with pytest.raises(TypeCheckError):  # targets are integers
        softcap_cross_entropy(logits, targets.float(), 30.0)
