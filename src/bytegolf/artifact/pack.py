"""A trained model as one file: quantised weights, configuration, tokenizer identity; and back.

What ``read_artifact`` returns is all that a score may depend on: only scores of the reloaded file are reported.

Writing is ``artifact.encoding``, reading ``artifact.payload``.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bytegolf import __version__
from bytegolf.artifact import layout
from bytegolf.artifact.container import CoderName
from bytegolf.artifact.encoding import encode, pending
from bytegolf.artifact.layout import numbers_of
from bytegolf.artifact.payload import header_of, not_finite, open_payload, primer_in
from bytegolf.artifact.plan import Plan, plan_of
from bytegolf.artifact.quantize import QuantizedTensor, dequantize
from bytegolf.artifact.stored import ROW_BITS
from bytegolf.config import Config, stacks, to_dict
from bytegolf.errors import BytegolfError
from bytegolf.files import write_atomically
from bytegolf.mixing.primer import Primer
from bytegolf.model.outline import outline
from bytegolf.model.storage import storage_kinds


@dataclass(frozen=True)
class Summary:
    """The file that ``write_artifact`` wrote."""

    path: Path
    file_bytes: int
    sha256: str
    parameters: int
    """how many weights it holds"""


Stored = Tensor | QuantizedTensor
"""A weight as numbers, or as the file has it."""


@dataclass(frozen=True, eq=False)
class Artifact:
    """A model as read from its file."""

    config: Config
    """of the run that made it"""
    tokenizer: Mapping[str, object]
    """the tokenizer's identity, as it was given to ``write_artifact``"""
    stored: Mapping[str, Stored]
    """the weights by name on the CPU: matrices that models compute with as they are stored are so, see ``codes_stay``;
    all others of a quantised file fp32 and finite, of another file in its dtypes"""
    info: dict[str, Any]
    """what else was noted (steps, seconds); nothing is computed from it"""
    digest: Callable[[], str]
    """gives ``sha256``"""
    file_bytes: int
    version: str
    """of the bytegolf that wrote it"""
    primer: Primer | None = None
    """text for contexts to read first, if it carries some"""

    @property
    def state(self) -> dict[str, Tensor]:
        """The weights as numbers: what is stored as codes, which is large, is dequantised at each call."""
        return {
            name: dequantize(each) if isinstance(each, QuantizedTensor) else each for name, each in self.stored.items()
        }

    @functools.cached_property
    def sha256(self) -> str:
        """Of the file, in hexadecimal: of a large one taken when it is asked for."""
        return self.digest()


def write_artifact(
    path: Path,
    state: Mapping[str, Tensor | QuantizedTensor],
    config: Config,
    tokenizer: Mapping[str, object],
    info: Mapping[str, Any] | None = None,
    plan: Plan | None = None,
    coder: CoderName = "zlib",
    primer: Primer | None = None,
) -> Summary:
    """Quantise ``state`` and write it atomically to ``path``; equal arguments give equal bytes.

    Args:
        path: the file; an existing one is replaced once the new one is complete.
        state: the weights by dotted name, of any floating dtype, on any device; or what was quantised already, which
            is stored as it is.
        config: the resolved configuration of the run.
        tokenizer: plain JSON that identifies the tokenizer.
        info: further plain JSON for people, such as steps and seconds.
        plan: how each tensor is stored; by default as ``config.export`` says and the model of ``config`` declares.
        coder: what the payload is compressed with.
        primer: training text for contexts to read before they score; see ``artifact.primer``.

    Raises BytegolfError: a weight cannot be exported, a name or value cannot be stored, or writing failed.
    """
    for name in state:
        if not layout.NAME.fullmatch(name):
            raise BytegolfError(
                f"the tensor name {name!r} cannot be stored: use up to 200 ASCII letters, digits, _ and ."
            )
    kinds = storage_kinds(outline(config.model))
    plan = plan_of(state, kinds, config.export) if plan is None else plan
    stored = [pending(name, weight, plan) for name, weight in sorted(state.items())]
    header = {
        "bytegolf": __version__,
        "config": to_dict(config),
        "tokenizer": dict(tokenizer),
        "info": dict(info or {}),
    }
    rules = frozenset(name for name, kind in kinds.items() if kind == "rule")
    found: list[tuple[int, str]] = []
    write_atomically(path, lambda file: found.append(encode(file, path.parent, header, stored, coder, rules, primer)))
    parameters = sum(math.prod(weight.shape) for name, weight in state.items() if name not in rules)
    return Summary(path, *found[0], parameters)


def read_artifact(path: Path) -> Artifact:
    """Read the artifact at ``path``; the file may come from anywhere.

    The configuration is valid by its own rules, but may describe a model of any size: compare its weights'
    names and shapes with ``state`` before trusting it.

    Raises BytegolfError: the file is missing, no artifact, damaged, of an earlier format, or its configuration or a
    quantiser of its is unknown here.
    """
    opened, where = open_payload(path), str(path)
    box, header = opened.box, header_of(opened.box, where)
    stored: dict[str, Stored] = {}
    stays = codes_stay(header.config)
    for entry in opened.entries:
        data, scales = numbers_of(entry, opened.payload, where)
        scale = None if scales is None else torch.from_numpy(scales)
        quantized = QuantizedTensor(entry.name, entry.quantizer, torch.from_numpy(data), scale)
        found: Stored = quantized if stays(quantized) else dequantize(quantized)
        told = found.scale if isinstance(found, QuantizedTensor) else found
        if told is not None and not bool(torch.isfinite(told).all()):
            raise not_finite(entry, where)
        stored[entry.name] = found
    sha256 = box.sha256
    about = header.info, lambda: sha256, box.file_bytes, header.version, primer_in(box, where)
    return Artifact(header.config, header.tokenizer, stored, *about)


def codes_stay(config: Config) -> Callable[[QuantizedTensor], bool]:
    """Which tensors of a model are not dequantised when its file is read: matrices of codes with a scale for each row.

    They are those of models with pre-norm stacks (S4), as these can be large: the codes take a quarter of fp32, and are
    computed with where they lie in the file's payload.
    """
    large = any(stack.block == "prenorm" for stack in stacks(config.model.network))

    def stays(tensor: QuantizedTensor) -> bool:
        rows = tensor.quantizer in ROW_BITS and tensor.data.dim() == 2 and tensor.data.numel() > 0
        return large and rows and tensor.scale is not None and len(tensor.scale) == len(tensor.data)

    return stays
