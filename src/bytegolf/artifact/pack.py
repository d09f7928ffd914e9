"""A trained model as one file: quantised weights, configuration, tokenizer identity; and back.

What :func:`read_artifact` returns is all that a score may depend on: only scores of the reloaded file are
reported.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bytegolf import __version__
from bytegolf.artifact import container, layout, payload
from bytegolf.artifact.coders import CoderName
from bytegolf.artifact.plan import Plan, plan_of
from bytegolf.artifact.quantize import QuantizedTensor, dequantize, quantize
from bytegolf.config import Config, to_dict
from bytegolf.errors import BytegolfError
from bytegolf.files import write_bytes
from bytegolf.model.outline import outline
from bytegolf.model.storage import storage_kinds
from bytegolf.registry import UnknownNameError


@dataclass(frozen=True)
class Summary:
    """What :func:`write_artifact` wrote.

    Attributes:
        path: the file.
        file_bytes: its size.
        sha256: of the file, in hexadecimal.
        parameters: how many weights it holds.
    """

    path: Path
    file_bytes: int
    sha256: str
    parameters: int


@dataclass(frozen=True, eq=False)
class Artifact:
    """A model as read from its file.

    Attributes:
        config: the configuration of the run that made it.
        tokenizer: the tokenizer's identity, as it was given to :func:`write_artifact`.
        state: the dequantised weights by name, fp32 on the CPU, all finite.
        info: what else was noted (steps, seconds); nothing is computed from it.
        sha256: of the file, in hexadecimal.
        file_bytes: its size.
        version: the bytegolf version that wrote it.
    """

    config: Config
    tokenizer: dict[str, Any]
    state: dict[str, Tensor]
    info: dict[str, Any]
    sha256: str
    file_bytes: int
    version: str


def write_artifact(
    path: Path,
    state: Mapping[str, Tensor | QuantizedTensor],
    config: Config,
    tokenizer: Mapping[str, Any],
    info: Mapping[str, Any] | None = None,
    plan: Plan | None = None,
    coder: CoderName = "zlib",
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

    Raises:
        BytegolfError: a weight cannot be exported, a name or value cannot be stored, or writing failed.
    """
    for name in state:
        if not layout.NAME.fullmatch(name):
            raise BytegolfError(
                f"the tensor name {name!r} cannot be stored: use up to 200 ASCII letters, digits, _ and ."
            )
    kinds = storage_kinds(outline(config.model))
    plan = plan_of(state, kinds, config.export) if plan is None else plan
    stored = [
        weight if isinstance(weight, QuantizedTensor) else quantize(name, weight, plan[name])
        for name, weight in sorted(state.items())
    ]
    header = {
        "bytegolf": __version__,
        "config": to_dict(config),
        "tokenizer": dict(tokenizer),
        "info": dict(info or {}),
    }
    rules = frozenset(name for name, kind in kinds.items() if kind == "rule")
    data = payload.encode(header, stored, coder, rules)
    write_bytes(path, data)
    parameters = sum(math.prod(tensor.shape) for tensor in stored if tensor.name not in rules)
    return Summary(path, len(data), hashlib.sha256(data).hexdigest(), parameters)


def config_of(table: dict[str, Any], version: str, where: str) -> Config:
    """The configuration in the header of the artifact ``where``, written by the bytegolf ``version``.

    Raises:
        BytegolfError: this version does not know it.
    """
    try:
        return Config.from_tables(table)
    except UnknownNameError as error:
        raise UnknownNameError(f"the artifact {where} needs what is missing: {str(error)[:400]}") from error
    except (BytegolfError, RecursionError, OverflowError) as error:
        raise BytegolfError(
            f"the configuration in the artifact {where} is not one this bytegolf knows ({str(error)[:300]}): "
            f"use bytegolf {version[:40]}, which wrote it"
        ) from error


def read_artifact(path: Path) -> Artifact:
    """Read the artifact at ``path``; the file may come from anywhere.

    The configuration is valid by its own rules, but may describe a model of any size: compare its weights'
    names and shapes with ``state`` before trusting it.

    Raises:
        BytegolfError: the file is missing, no artifact, damaged, of an earlier format, or its configuration or a
            quantiser of its is unknown here.
    """
    opened, where = payload.open_payload(path), str(path)
    box = opened.box
    tables: dict[str, dict[str, Any]] = {}
    for key in ("config", "tokenizer", "info"):
        table = box.header.get(key)
        if not isinstance(table, dict):
            raise container.damaged(where, f"its header has no {key}")
        tables[key] = table
    version = box.header.get("bytegolf")
    if not isinstance(version, str):
        raise container.damaged(where, "its header names no bytegolf version")
    config = config_of(tables["config"], version, where)
    state: dict[str, Tensor] = {}
    for entry in opened.entries:
        weight = dequantize(layout.load(entry, opened.payload, where))
        if not bool(torch.isfinite(weight).all()):
            raise container.damaged(where, f"its tensor {entry.name} holds NaN or infinite values")
        state[entry.name] = weight
    return Artifact(config, tables["tokenizer"], state, tables["info"], box.sha256, box.file_bytes, version)
