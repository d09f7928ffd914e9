"""Public H-Nets at toy size: configurations and random tensors by the public names."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bytegolf.config.public_hnet import from_public
from bytegolf.model.public_names import public_names


def public(
    arch_layout: list[Any] | None = None, d_model: tuple[int, ...] = (64, 96), tied: bool = False, **changes: Any
) -> dict[str, Any]:
    """A public configuration; ``changes`` are of ``ssm_cfg`` and ``attn_cfg``, or ``d_intermediate``."""
    stages = len(d_model)
    hidden = changes.pop("d_intermediate", [130] * stages)
    attention = {"num_heads": [4] * stages, "rotary_emb_dim": [8] * stages, "window_size": [*[15] * (stages - 1), -1]}
    ssm = {"chunk_size": 16, "d_conv": 4, "d_state": 16, "expand": 2}
    for key, value in changes.items():
        (ssm if key in ssm else attention)[key] = value
    return {
        "arch_layout": arch_layout or ["m1", ["T1"], "m1"],
        "d_model": list(d_model),
        "d_intermediate": hidden,
        "vocab_size": 256,
        "ssm_cfg": ssm,
        "attn_cfg": attention,
        "tie_embeddings": tied,
    }


def weights(config: dict[str, Any], dtype: torch.dtype = torch.float32, seed: int = 0) -> dict[str, Tensor]:
    """Random tensors by the public names, of magnitudes with which a model does something."""
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for there in public_names(from_public(config)).values():
        spread = 0.5 if there.name.startswith("embeddings") else 0.15
        tensor = torch.randn(there.shape, generator=generator) * spread
        if "norm" in there.name or there.name.endswith(".D"):
            tensor += 1
        if there.name.endswith("dt_bias"):
            tensor -= 3
        found[there.name] = tensor.to(dtype)
    return found


def write(folder: Path, config: dict[str, Any], tensors: Mapping[str, Any], name: str = "model") -> Path:
    """A .pt with its JSON beside it; the .pt's path."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(tensors, folder / f"{name}.pt")
    (folder / f"{name}.json").write_text(json.dumps(config))
    return folder / f"{name}.pt"
