"""A run's folder: where each thing lies in it, and what it was made with."""

from __future__ import annotations

import contextlib
import os
import platform
import subprocess
import sys
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from bytegolf import __version__
from bytegolf.artifact.checkpoint import checkpoints
from bytegolf.config import Config, flatten, to_dict
from bytegolf.data.tokenizer import SentencePieceTokenizer, Tokenizer
from bytegolf.errors import BytegolfError
from bytegolf.files import clear_leftovers, disk_errors, make_folder, only_one, write_bytes, write_json

_MAY_CHANGE = {
    "about",
    "export.coder",
    "export.gptq",
    "export.gptq_damping",
    "export.gptq_seconds",
    "export.gptq_tokens",
    "train.max_seconds",
    "train.max_steps",
    "train.validate_every",
    "train.validate_tokens",
    "train.checkpoint_every",
    "train.keep_checkpoints",
    "train.log_every",
    "train.micro_batch",
    "train.tensorboard",
    "train.device",
    "data.path",
}
"""What a resumed run may have otherwise than before: its budget, its housekeeping, and all of how it is scored."""


class RunFolder:
    """The layout of a run's folder."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.toml"
        """the resolved configuration, which `train` takes as it is"""
        self.artifact = path / "artifact.bgolf"
        """the quantised model: what is shipped and scored"""
        self.tokenizer = path / "tokenizer.model"
        """a copy of the SentencePiece model, where the run uses one"""
        self.summary = path / "summary.json"
        """scores and sizes, for programs"""
        self.checkpoints = path / "checkpoints"

    def held(self) -> contextlib.AbstractContextManager[None]:
        """A context in which no other process trains in the folder or replaces its artifact; an error if one does."""
        sentence = f"another process is at work in {self.path}: wait for it, end it, or choose another --out"
        return only_one(self.path / "run.lock", sentence)

    def read_config(self, overrides: Iterable[str] = ()) -> Config:
        """The saved configuration, with ``overrides``; an error in words if ``path`` is no run."""
        if not self.config.exists():
            raise BytegolfError(
                f"{self.path} is no run folder (it has no {self.config.name}): train one with `bytegolf train`"
            )
        return Config.load(self.config, overrides)

    def prepare(self, config: Config, tokenizer: Tokenizer, command: list[str], resume: bool) -> None:
        """Make the folder, which is ``held``, ready for a new run, or check that it holds the run to be resumed.

        A run that ended before its first checkpoint has nothing to lose: it may start afresh, with other settings.
        """
        if self.config.exists() and (self.artifact.exists() or checkpoints(self.checkpoints)):
            if not resume:
                raise BytegolfError(
                    f"{self.path} already holds a run: add --resume to go on with it, or choose another --out"
                )
            self._check_same(config)
        make_folder(self.path)
        environment_file = self.path / "environment.json"
        clear_leftovers(self.config, environment_file, self.path / "metrics.jsonl", self.artifact, self.summary)
        write_bytes(self.config, config.to_toml().encode())
        write_json(environment_file, environment(command))
        if isinstance(tokenizer, SentencePieceTokenizer):
            with disk_errors(tokenizer.path, "read"):
                model = tokenizer.path.read_bytes()
            write_bytes(self.tokenizer, model)

    def _check_same(self, config: Config) -> None:
        before, now = flatten(to_dict(self.read_config())), flatten(to_dict(config))
        for key in sorted(before.keys() | now.keys()):
            if before.get(key) != now.get(key) and key not in _MAY_CHANGE and not key.startswith("eval."):
                raise BytegolfError(
                    f"{self.path} was trained with {key} = {before.get(key)!r}, not {now.get(key)!r}: resume it with "
                    f"the same settings (`bytegolf train {self.config} --resume`), or choose another --out"
                )


def environment(command: list[str]) -> dict[str, Any]:
    """What a run was made with: versions, hardware, git state and command."""
    packages = ("torch", "numpy", "sentencepiece", "safetensors")
    return {
        "bytegolf": __version__,
        "command": command,
        "python": sys.version.split()[0],
        "packages": {name: metadata.version(name) for name in packages},
        "platform": platform.platform(),
        "processor": _processor(),
        "cpus": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "git": _git_state(),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")


def _git_state() -> dict[str, Any] | None:
    """Commit and cleanliness of the package's own checkout; None where it is not one."""
    folder = Path(__file__).parent

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True, timeout=10
        ).stdout.strip()

    try:
        return {"commit": git("rev-parse", "HEAD"), "modified": bool(git("status", "--porcelain", "--", "."))}
    except (OSError, subprocess.SubprocessError):
        return None
