"""Map the public scripts' parameter names (golden vectors) onto ours."""

from __future__ import annotations

import re

import torch
from torch import Tensor

_STAGES = {"encoder_stage": "network.encoder", "main_stage": "network.main", "decoder_stage": "network.decoder"}
_FIXED = {
    "tok_emb.weight": "embedding.weight",
    "routing0.q_proj.weight": "network.router.q_proj.weight",
    "routing0.k_proj.weight": "network.router.k_proj.weight",
    "residual_proj0.weight": "network.residual.weight",
}
_BIASES = {"boundary_proj.bias": "boundary_bias", "chunk_mixer.bias": "mixer_bias"}


def from_public(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Our state dict from public names: q, k and v are packed, everything else is renamed."""
    ours: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if name in _FIXED:
            ours[_FIXED[name]] = tensor
            continue
        stage, _, rest = name.partition(".")
        if stage == "chunker":
            layer, _, part = rest.removeprefix("layers.").partition(".")
            ours[f"soft.layers.{layer}.{_BIASES.get(part, part)}"] = tensor
            continue
        prefix = _STAGES.get(stage, "network")
        rest = rest if stage in _STAGES else name
        if re.search(r"attn\.c_[kv]\.weight$", rest):
            continue
        if rest.endswith("attn.c_q.weight"):
            parts = [tensors[name.replace("c_q", f"c_{part}")] for part in "qkv"]
            tensor, rest = torch.cat(parts), rest.replace("c_q", "qkv")
        ours[f"{prefix}.{rest}".replace("attn", "mixer")] = tensor
    return ours
