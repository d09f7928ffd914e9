"""Trained low-rank adapters among a checkpoint's weights, and the weights that they make with them.

Legend: R rank, I inputs, O outputs.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

PREFIX = "adapters."
"""How their names begin: adapters.a.MAP is A (R, I) of the map MAP, adapters.b.MAP its B (O, R)."""


def merged(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A model's weights with the trained adapters among them, if any, added: W + B·A."""
    found = {name: tensor for name, tensor in state.items() if not name.startswith(PREFIX)}
    for name, a in state.items():
        if name.startswith(f"{PREFIX}a."):
            target = name.removeprefix(f"{PREFIX}a.")
            found[f"{target}.weight"] = found[f"{target}.weight"] + state[f"{PREFIX}b.{target}"] @ a
    return found
