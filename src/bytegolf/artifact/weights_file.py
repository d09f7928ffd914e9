"""A model as it is, not quantised: safetensors by our names, with all that an artifact's header says as its note.

Weights keep the dtype that they were given in. They are memory-mapped when the file is opened: nothing is read before
it is computed with, and what another process has read is shared.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bytegolf import __version__
from bytegolf.artifact.pack import Artifact
from bytegolf.artifact.payload import config_of
from bytegolf.artifact.public.safetensors_file import read_notes, read_safetensors, write_safetensors
from bytegolf.artifact.quantize import steers
from bytegolf.config import Config, to_dict
from bytegolf.errors import BytegolfError
from bytegolf.files import parse_json, sha256
from bytegolf.model.layers import storage_kinds
from bytegolf.model.lm import outline

WEIGHTS_FILE, ENDING = "model.safetensors", ".safetensors"
"""What the file is called in a folder of its own, and how any such file's name ends."""

_NOTE = "bytegolf"


def write_weights(
    path: Path,
    state: Mapping[str, Tensor],
    config: Config,
    tokenizer: Mapping[str, object],
    info: Mapping[str, Any],
) -> None:
    """Write the weights ``state`` as they are, atomically; the rest as ``pack.write_artifact`` has it."""
    header = {"bytegolf": __version__, "config": to_dict(config), "tokenizer": dict(tokenizer), "info": dict(info)}
    write_safetensors(path, state, {_NOTE: json.dumps(header, ensure_ascii=False, sort_keys=True)})


def is_noted(path: Path) -> bool:
    """Whether ``path`` is such a file, and not anyone's safetensors."""
    return path.suffix == ENDING and _NOTE in read_notes(path)


def read_weights(path: Path) -> Artifact:
    """Open such a file; it may come from anywhere. Raises BytegolfError if it is none, or damaged."""
    tensors, notes = read_safetensors(path)
    try:
        header = parse_json(notes.get(_NOTE, ""))
        version, table, tokenizer, info = (header[key] for key in ("bytegolf", "config", "tokenizer", "info"))
        whole = all(isinstance(each, dict) for each in (table, tokenizer, info)) and isinstance(version, str)
    except (ValueError, KeyError, TypeError):
        whole = False
    if not whole:
        raise BytegolfError(f"{path} has no bytegolf header: import it with `bytegolf import`")
    config = config_of(table, version, str(path))
    return opened([path], tensors, config, tokenizer, info, version)


def opened(
    files: Sequence[Path],
    state: Mapping[str, Tensor],
    config: Config,
    tokenizer: Mapping[str, object],
    info: dict[str, Any],
    version: str = __version__,
) -> Artifact:
    """An artifact of weights that lie in ``files``, mapped. Its hash is taken only if it is asked for.

    Vectors and other tensors that steer (``artifact.quantize``) become fp32, which holds them exactly: they are small,
    and are computed with in fp32.
    """
    kinds = storage_kinds(outline(config.model))
    mine = {
        name: tensor.float() if steers(kinds.get(name, "weight"), tuple(tensor.shape)) and _half(tensor) else tensor
        for name, tensor in state.items()
    }
    size = sum(path.stat().st_size for path in files)
    return Artifact(config, tokenizer, mine, info, functools.partial(hash_of, tuple(files)), size, version)


def hash_of(files: Sequence[Path]) -> str:
    """The SHA-256 of a model's file; of several files, of their hashes."""
    found = [sha256(path) for path in files]
    return found[0] if len(found) == 1 else hashlib.sha256("".join(found).encode()).hexdigest()


def _half(tensor: Tensor) -> bool:
    return tensor.dtype in (torch.bfloat16, torch.float16)
