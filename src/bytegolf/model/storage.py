"""What the tensors of a model are for, declared where they are made; the artifact stores each accordingly.

A tensor that no module declares is a ``weight``:

    self.resid_mix = nn.Parameter(torch.empty(2, dim))
    declare(self, "control", "resid_mix")

The module keeps the declaration, not the parameter: an attribute of a parameter is lost by ``copy.deepcopy``, by
``load_state_dict(assign=True)`` and on the way from the meta device.
"""

from __future__ import annotations

from typing import Literal

from torch import nn

StorageKind = Literal["weight", "embedding", "table", "control", "rule"]
"""``weight``: a matrix that training learns, in ``export.bits``.
``embedding``: the tied one, in ``export.embedding_bits``.
``table``: many narrow rows that are looked up, in ``export.ngram_bits``, whose rows share scales in groups.
``control``: scales, gains and mixes of whole streams of activations, in fp32, as every vector and scalar is.
``rule``: what a router goes by and training leaves alone, no weight: a vector, or a matrix of −1, 0 and 1."""

_ATTRIBUTE = "_storage_kinds"


def declare(module: nn.Module, kind: StorageKind, *names: str) -> None:
    """Say what tensors of ``module`` are for; a name may reach into a submodule: ``"embedding.weight"``."""
    vars(module).setdefault(_ATTRIBUTE, {}).update(dict.fromkeys(names, kind))


def storage_kinds(model: nn.Module) -> dict[str, StorageKind]:
    """The declared kind of tensors by their full names; a tensor that is missing is a ``weight``."""
    return {
        f"{path}.{name}" if path else name: kind
        for path, module in model.named_modules()
        for name, kind in vars(module).get(_ATTRIBUTE, {}).items()
    }
