"""Public H-Nets, opened where they lie: which files a model is, its configuration, and its tensors by our names.

A tensor of ours is a view of the file's, so opening copies nothing. The configuration is the JSON that the public code
reads (``config.public_hnet``): beside the weights, named, or that of a released model, known by its name.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bytegolf.artifact.public.safetensors_file import read_safetensors
from bytegolf.artifact.public.torch_file import read_torch_file
from bytegolf.config import Config, ModelConfig, stacks, to_dict
from bytegolf.config.public_hnet import from_public
from bytegolf.data.tokenizer import RawByteTokenizer
from bytegolf.errors import BytegolfError
from bytegolf.files import disk_errors, read_json
from bytegolf.model.public_names import PublicName, public_names

SAFE, PICKLED = (".safetensors",), (".pt", ".pth", ".bin", ".ckpt")
"""Endings of weights' names."""

BUDGET = {"seq_len": 8192, "batch_tokens": 256 * 8192, "max_steps": 100_000_000_000 // (256 * 8192)}
"""On which the published models were trained (arXiv 2507.07955): 100 B bytes."""

MOST_NAMED = 3
"""Tensors that an error names."""


def _released(
    layout: list[Any], widths: list[int], hidden: list[int], heads: Sequence[int] = (16, 16, 16)
) -> dict[str, Any]:
    """A public configuration: heads of which half is rotated, a window of 1,023 and oneself but innermost."""
    stages = len(widths)
    attention = {
        "num_heads": list(heads[:stages]),
        "rotary_emb_dim": [width // of // 2 for width, of in zip(widths, heads, strict=False)],
        "window_size": [*[1023] * (stages - 1), -1],
    }
    ssm = {"chunk_size": 256, "d_conv": 4, "d_state": 128, "expand": 2}
    return {
        "arch_layout": layout,
        "d_model": widths,
        "d_intermediate": hidden,
        "vocab_size": 256,
        "ssm_cfg": ssm,
        "attn_cfg": attention,
        "tie_embeddings": False,
    }


def _two_stages(blocks: int) -> dict[str, Any]:
    arch = ["m4", ["T1m4", [f"T{blocks}"], "m4T1"], "m4"]
    return _released(arch, [1024, 1536, 2048], [0, 4096, 5504])


RELEASED: dict[str, dict[str, Any]] = {
    "hnet_1stage_L": _released(["m4", ["T22"], "m4"], [1024, 1536], [0, 4096]),
    "hnet_1stage_XL": _released(["m4", ["T24"], "m4"], [1024, 2048], [0, 5504]),
    "hnet_2stage_L": _released(["m4", ["T1m4", ["T26"], "m4T1"], "m4"], [1024, 1024, 1536], [0, 2816, 4096]),
    "hnet_2stage_XL": _two_stages(27),
    "hnet_2stage_XL_chinese": _two_stages(30),
    "hnet_2stage_XL_code": _two_stages(28),
}
"""The configurations of the models that the paper's authors released, by their repositories' names, which hold none."""


@dataclass(frozen=True)
class PublicModel:
    """A public H-Net, opened."""

    files: tuple[Path, ...]
    config: Config
    state: dict[str, Tensor]
    """by our names, in the file's dtypes"""


def weights_among(names: Iterable[str], where: str) -> list[str]:
    """Which of a folder's files are a model's weights: all safetensors, else the only pickled file.

    Raises BytegolfError where there are none, or more than one could be meant.
    """
    outer = [name for name in names if "/" not in name]
    safe = [name for name in outer if name.endswith(SAFE)]
    pickled = [name for name in outer if name.endswith(PICKLED)]
    if not safe and len(pickled) > 1:
        raise BytegolfError(
            f"{where} holds {', '.join(pickled[:MOST_NAMED])}, any of which may be meant: name one file"
        )
    if not safe and not pickled:
        raise BytegolfError(f"{where} holds no model: neither an artifact.bgolf nor *.safetensors nor *.pt")
    return safe or pickled


def open_public(source: Path, config: Path | None = None, name: str = "") -> PublicModel:
    """Open the public model in a file or folder; ``config`` is its JSON (None: see the module), ``name`` its own.

    Raises BytegolfError: something is missing, too much, damaged, or of another shape; nothing has been written.
    """
    if source.is_dir():
        files = tuple(source / each for each in weights_among((path.name for path in source.iterdir()), str(source)))
    else:
        files = (source,)
    with disk_errors(files[0], "read"):
        files[0].stat()
    model = _model_config(config, files, name)
    tensors: dict[str, Tensor] = {}
    for path in files:
        found = read_safetensors(path)[0] if path.suffix in SAFE else read_torch_file(path)
        if twice := tensors.keys() & found.keys():
            raise BytegolfError(f"{source} holds the tensor {min(twice)} in two files: name one of them")
        tensors |= found
    return PublicModel(files, _run_config(name or files[0].stem, model), renamed(tensors, model, str(source)))


def _model_config(named: Path | None, files: tuple[Path, ...], name: str) -> ModelConfig:
    if named is not None:
        return _from_json(named)
    folder = files[0].parent
    beside = [path for path in sorted(folder.glob("*.json")) if _is_public_config(path)]
    own = [path for path in beside if path.stem == files[0].stem]
    if own or len(beside) == 1:
        return _from_json((own or beside)[0])
    released = next((RELEASED[each] for each in (name, files[0].stem) if each in RELEASED), None)
    if released is None:
        why = f"{len(beside)} configurations lie beside it" if beside else "no configuration lies beside it"
        raise BytegolfError(f"{files[0]} holds weights alone and {why}: name its JSON with --config")
    return from_public(released)


def _is_public_config(path: Path) -> bool:
    try:
        found = read_json(path, "configuration")
    except BytegolfError:
        return False
    return isinstance(found, dict) and "arch_layout" in found


def _from_json(path: Path) -> ModelConfig:
    try:
        return from_public(read_json(path, "configuration"))
    except BytegolfError as error:
        raise BytegolfError(f"{path}: {error}") from error


def _run_config(name: str, model: ModelConfig) -> Config:
    """The configuration around a model that was trained elsewhere: how it is scored, and no budget."""
    if model.vocab_size != RawByteTokenizer().vocab_size:
        raise BytegolfError(
            f"the configuration has vocab_size {model.vocab_size}, but the public H-Nets read raw bytes: give 256"
        )
    tables = {
        "name": name,
        "about": f"public H-Net {name}",
        "model": to_dict(model),
        "train": BUDGET,
        "data": {"tokenizer": RawByteTokenizer().name},
    }
    return Config.from_tables(tables)


def renamed(tensors: Mapping[str, Tensor], model: ModelConfig, where: str) -> dict[str, Tensor]:
    """A public model's tensors by our names, as views. Raises BytegolfError where they are not those of ``model``."""
    if sum(stack.layers for stack in stacks(model.network)) > len(tensors):  # before so many are outlined
        raise _misfit(where, "it names more blocks than there are tensors")
    names = public_names(model)
    wanted = {there.name: there for there in names.values()}
    tensors = dict(tensors)
    if model.tied and "lm_head.weight" in tensors:  # published twice
        head = tensors.pop("lm_head.weight")
        there = tensors.get("embeddings.weight")
        if there is None or head.shape != there.shape or not torch.equal(head, there):
            raise _misfit(where, "its lm_head.weight is not its embeddings.weight, though tie_embeddings is true")
    _check(tensors, wanted, where)
    return {ours: there.ours(tensors[there.name]) for ours, there in names.items()}


def _check(tensors: Mapping[str, Tensor], wanted: Mapping[str, PublicName], where: str) -> None:
    for what, names in (
        ("lacks", sorted(wanted.keys() - tensors.keys())),
        ("has, unknown to it,", sorted(tensors.keys() - wanted.keys())),
    ):
        if names:
            more = f" and {len(names) - MOST_NAMED:,} more" if len(names) > MOST_NAMED else ""
            raise _misfit(where, f"it {what} {', '.join(names[:MOST_NAMED])}{more}")
    for name, there in wanted.items():
        tensor = tensors[name]
        if tuple(tensor.shape) != there.shape:
            raise _misfit(where, f"its {name} has the shape {tuple(tensor.shape)}, not {there.shape}")
        if not tensor.is_floating_point() or tensor.dtype.itemsize < 2:
            raise _misfit(where, f"its {name} is of {tensor.dtype}, which no weights are here")


def _misfit(where: str, why: str) -> BytegolfError:
    return BytegolfError(f"{where} does not fit its configuration ({why}): name the JSON that it was published with")
