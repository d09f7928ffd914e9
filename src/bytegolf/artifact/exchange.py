"""Models from elsewhere and to there: public H-Nets into files of ours, and our models in the public layout."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bytegolf.artifact.export import latest
from bytegolf.artifact.loading import is_ours, is_weights, locate, open_model, stored
from bytegolf.artifact.public.opening import open_public
from bytegolf.artifact.public.safetensors_file import write_safetensors
from bytegolf.artifact.results import HnetResult, ImportResult
from bytegolf.artifact.run_folder import RunFolder
from bytegolf.artifact.weights_file import ENDING, WEIGHTS_FILE, hash_of, write_weights
from bytegolf.config import Config, HNetConfig, ModelConfig, StackConfig, levels
from bytegolf.config.public_hnet import to_public
from bytegolf.data.tokenizer import RawByteTokenizer
from bytegolf.errors import BytegolfError
from bytegolf.files import make_folder, write_bytes, write_json
from bytegolf.model.public_names import public_names

CONFIG = "config.json"
"""What the configuration is called beside the weights, in the public layout."""


def import_model(source: str, out: Path, config: Path | None = None) -> ImportResult:
    """Write the public H-Net in ``source`` (a file, a folder, hf:owner/name) to ``out``: a folder or a .safetensors.

    ``config`` is its JSON; by default one beside the weights, or that of a released model. Weights keep their dtype.

    Raises BytegolfError before anything is written: the source is damaged or hostile, lacks a tensor, has one too many
    or of another shape, holds a NaN; or something is at ``out`` already.
    """
    target = out if out.suffix == ENDING else out / WEIGHTS_FILE
    if target.exists():
        raise BytegolfError(f"{target} is there already: choose another --out")
    found = locate(source)
    if is_ours(found.path):
        raise BytegolfError(f"{source} is a model of bytegolf's: load it as it is")
    if found.path.is_file() and not is_weights(found.path):
        raise BytegolfError(f"{source} is no .pt or .safetensors file: name one; an artifact is loaded as it is")
    model = open_public(found.path, config, found.name)
    for name, tensor in model.state.items():
        if not bool(torch.isfinite(tensor).all()):
            raise BytegolfError(f"{source} holds NaN or infinite values in {name}: get the weights again")
    told = {"imported_from": found.origin or model.files[0].name, "source_sha256": hash_of(model.files)}
    if target.parent == out:
        make_folder(out)
    write_weights(target, model.state, model.config, RawByteTokenizer().identity(), told)
    if target.parent == out:
        write_bytes(out / "config.toml", model.config.to_toml().encode())
    return ImportResult(
        target,
        source,
        found.origin.rpartition("@")[2],
        sum(tensor.numel() for tensor in model.state.values()),
        target.stat().st_size,
        sorted({str(tensor.dtype).removeprefix("torch.") for tensor in model.state.values()}),
        len(levels(model.config.model.network)),
        hash_of([target]),
    )


def export_public(
    config: Config, state: Mapping[str, Tensor], tokenizer: Mapping[str, object], out: Path, source: Path
) -> HnetResult:
    """Write a model in the public layout into the folder ``out``: config.json and model.safetensors.

    Raises BytegolfError, naming why, for a model that the layout cannot express; nothing has been written then.
    """
    public = public_config(config.model, tokenizer)
    if (out / WEIGHTS_FILE).exists() or (out / CONFIG).exists():
        raise BytegolfError(f"{out} holds a model already: choose another --out")
    tensors = {there.name: there.theirs(state[ours]) for ours, there in public_names(config.model).items()}
    make_folder(out)
    write_safetensors(out / WEIGHTS_FILE, tensors, {"format": "pt"})
    write_json(out / CONFIG, public)
    size = sum(tensor.numel() for tensor in tensors.values())
    return HnetResult(out, source, size, (out / WEIGHTS_FILE).stat().st_size, hash_of([out / WEIGHTS_FILE]))


def public_config(model: ModelConfig, tokenizer: Mapping[str, object]) -> dict[str, Any]:
    """The public JSON of a model. Raises BytegolfError, which names what the layout has no word for."""
    if why := inexpressible(model, tokenizer):
        raise BytegolfError(f"the public layout cannot express this model: {why}")
    return to_public(model)


def inexpressible(model: ModelConfig, tokenizer: Mapping[str, object]) -> str:
    """Why the public layout cannot express a model, the first reason; empty if none is known here."""
    if (tokenizer.get("kind"), tokenizer.get("vocab_size")) != ("byte", 256):
        return f"it reads {tokenizer.get('name')} tokens, and public H-Nets raw bytes (byte256)"
    for key, wanted in (("softcap", 0.0), ("embed_norm", False)):
        if getattr(model, key) != wanted:
            return f"model.{key} is {getattr(model, key)}, there it is {wanted}"
    if model.ngrams.longest > 1 or model.soft.layers:
        return "it has n-gram embeddings or soft chunking, which are not there"
    network, path = model.network, "model.network"
    stages: list[list[tuple[str, StackConfig]]] = []
    while isinstance(network, HNetConfig):
        if why := _level_differs(network, path):
            return why
        stages.append([(f"{path}.encoder", network.encoder), (f"{path}.decoder", network.decoder)])
        network, path = network.main, f"{path}.main"
    stages.append([(path, network)])
    return next((why for stage in stages if (why := _stage_differs(stage))), "")


def _level_differs(level: HNetConfig, path: str) -> str:
    router, cosine = level.router, level.router.cosine
    wanted: dict[str, tuple[Any, Any]] = {
        "router.kind": (router.kind, "cosine"),
        "router.smooth_from": (router.smooth_from, "zero"),
        "router.cosine.query": (cosine.query, "previous"),
        "router.cosine.strict": (cosine.strict, True),
        "router.cosine.dim": (cosine.dim, 0),
        "router.cosine.sharpness": (cosine.sharpness, 1.0),
        "residual_bias": (level.residual_bias, True),
        "residual_fp32": (level.residual_fp32, True),
        "chunk_hash.dim": (level.chunk_hash.dim, 0),
    }
    for key, (value, there) in wanted.items():
        if value != there:
            return f"{path}.{key} is {value!r}, there it is {there!r}"
    if cosine.init == "calibrated":
        return f"{path}.router.cosine.init is 'calibrated', which adds an offset that is not there"
    if router.capacity == "fixed":
        return f"{path}.router.capacity is 'fixed', and there no boundary is dropped"
    return ""


def _stage_differs(stacks: list[tuple[str, StackConfig]]) -> str:
    """``stacks``: the encoder and the decoder of one stage, which share its numbers there, or the innermost stack."""
    for path, stack in stacks:
        kinds, with_mlp = {kind for kind, _ in stack.order}, any(mlp != "none" for _, mlp in stack.order)
        wanted: dict[str, tuple[Any, Any]] = {
            "block": (stack.block, "prenorm"),
            "norm_eps": (stack.norm_eps, 1e-5),
            "final_norm": (stack.final_norm, True),
        }
        if with_mlp:
            wanted["mlp"] = (stack.mlp, "swiglu")
        if "attention" in kinds:
            wanted |= {
                "qk_norm": (stack.qk_norm, False),
                "kv_heads": (stack.kv_heads, stack.heads),
                "rope_base": (stack.rope_base, 10_000.0),
                "rotary_turn": (stack.rotary_turn, "counterclockwise"),
            }
        if "mamba2" in kinds:
            wanted["options.headdim"] = (stack.options.get("headdim", 64), 64)
        for key, (value, there) in wanted.items():
            if value != there:
                return f"{path}.{key} is {value!r}, there it is {there!r}"
        if other := kinds - {"attention", "mamba2"}:
            return f"{path} mixes positions by {min(other)!r}, which has no letter there"
    return ""


def export_hnet(source: Path, out: Path) -> HnetResult:
    """``export_public`` of a run's latest checkpoint, or of any other model in the dtypes of its file."""
    if RunFolder(source).checkpoints.exists():
        saved = latest(source)
        return export_public(saved.config, saved.state, saved.tokenizer.identity(), out, source)
    found = open_model(source)
    return export_public(found.artifact.config, stored(found), found.artifact.tokenizer, out, source)
