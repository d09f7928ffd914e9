"""A run's folder: where each thing lies in it, and what it was made with."""

from __future__ import annotations

import contextlib
import os
import platform
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from bytegolf import __version__
from bytegolf.artifact.checkpoint_folder import Progress, checkpoints, progress_of
from bytegolf.config import Config, flatten, to_dict
from bytegolf.data.dataset import DataIdentity
from bytegolf.data.tokenizer import SentencePieceTokenizer, Tokenizer
from bytegolf.errors import BytegolfError
from bytegolf.files import clear_leftovers, disk_errors, make_folder, only_one, write_bytes, write_json
from bytegolf.results import to_json

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
}
"""What a resumed run may have otherwise than before: its budget, its housekeeping, and all of how it is scored."""

_BUDGET = {"train.max_steps": "step", "train.max_seconds": "seconds"}
"""What training may use up, and where ``Progress`` has how much of it that is."""


CONFIG_FILE, ARTIFACT_FILE = "config.toml", "artifact.bgolf"


def no_run(path: Path) -> BytegolfError:
    """What is said of a folder that is no run."""
    return BytegolfError(f"{path} is no run folder (it has no {CONFIG_FILE}): train one with `bytegolf train`")


class RunFolder:
    """The layout of a run's folder."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / CONFIG_FILE
        """the resolved configuration, which `train` takes as it is"""
        self.artifact = path / ARTIFACT_FILE
        """the quantised model: what is shipped and scored"""
        self.tokenizer = path / "tokenizer.model"
        """a copy of the SentencePiece model, where the run uses one"""
        self.summary = path / "summary.json"
        """scores and sizes, for programs"""
        self.checkpoints = path / "checkpoints"
        self.data = path / "data.json"
        """which splits it is trained and validated on, and where they lay (``DataIdentity``)"""
        self.environment = path / "environment.json"
        """versions, hardware, git state and command; written when a run begins or goes on"""

    def held(self) -> contextlib.AbstractContextManager[None]:
        """A context in which no other process trains in the folder or replaces its artifact; an error if one does."""
        sentence = f"another process is at work in {self.path}: wait for it, end it, or choose another --out"
        return only_one(self.path / "run.lock", sentence)

    def read_config(self, overrides: Iterable[str] = ()) -> Config:
        """The saved configuration, with ``overrides``; an error in words if ``path`` is no run."""
        if not self.config.exists():
            raise no_run(self.path)
        return Config.load(self.config, overrides)

    def check(self, config: Config, resume: bool) -> list[str]:
        """Whether a run with ``config`` can begin in the folder, which is ``held``, or go on with the run in it.

        Nothing is written. Returns sentences that people should read: what goes on otherwise than before, or that a
        run which was killed begins anew, as it has left no checkpoint. Such a one has nothing to lose, and may have
        other settings.

        Raises BytegolfError where what is there would be overwritten or mixed with something else: without ``resume``,
        for other data, for settings that decide what the steps so far have done, for a budget that they have used up.
        """
        if not self.config.exists():
            return []
        saved = checkpoints(self.checkpoints)
        if not saved and not self.artifact.exists():
            killed = f"{self.path} holds a run that ended before its first checkpoint, so it begins anew"
            return [killed] if self.environment.exists() else []  # a study writes the configuration first
        if not resume:
            raise BytegolfError(
                f"{self.path} already holds a run: add --resume to go on with it, or choose another --out"
            )
        if not saved:
            raise BytegolfError(
                f"{self.path} has an artifact, but no checkpoint to go on from: choose another --out for a new run"
            )
        before = self.read_config()
        self._check_data(before, config)
        changed = self._check_same(before, config)
        self._check_budget(before, config, progress_of(saved[-1]))
        return [f"resuming with {', '.join(changed)}"] if changed else []

    def prepare(self, config: Config, tokenizer: Tokenizer, command: list[str]) -> None:
        """Write what a run is made with into its folder, which is ``held`` and ``check``ed."""
        make_folder(self.path)
        written = self.config, self.data, self.environment, self.path / "metrics.jsonl", self.artifact, self.summary
        clear_leftovers(*written)
        write_bytes(self.config, config.to_toml().encode())
        folder = Path(config.data.path)
        beside = os.path.relpath(folder.absolute(), self.path.absolute())
        write_json(self.data, {**vars(DataIdentity.of(folder, config.data.tokenizer)), "beside": beside})
        write_json(self.environment, to_json(environment(command)))
        if isinstance(tokenizer, SentencePieceTokenizer):
            with disk_errors(tokenizer.path, "read"):
                model = tokenizer.path.read_bytes()
            write_bytes(self.tokenizer, model)

    def _check_data(self, before: Config, now: Config) -> None:
        """Raise unless the data of ``now`` are those that the run was trained on, wherever they lie."""
        recorded = DataIdentity.read(self.data)
        found = DataIdentity.of(Path(now.data.path), now.data.tokenizer)
        same = before.data.path == now.data.path
        if recorded is not None:
            same = (recorded.train, recorded.val) == (found.train, found.val)
        if not same:
            was = recorded.folder if recorded else before.data.path
            where = f"{was}, and what lies there is not that any more" if was == found.folder else was
            raise BytegolfError(
                f"{self.path} was trained on other data than {now.data.path} holds ({where}): resume it on the same, "
                "or choose another --out for a new run"
            )

    def _check_same(self, config: Config, wanted: Config) -> list[str]:
        """What ``wanted`` changes, in words; BytegolfError if that is more than a run may change."""
        before, now = flatten(to_dict(config)), flatten(to_dict(wanted))
        changed = []
        for key in sorted(before.keys() | now.keys()):
            if before.get(key) == now.get(key) or key == "data.path":
                continue
            if key not in _MAY_CHANGE and not key.startswith("eval."):
                raise BytegolfError(
                    f"{self.path} was trained with {key} = {before.get(key)!r}, not {now.get(key)!r}: resume it with "
                    f"the same settings (`bytegolf train {self.config} --resume`), or choose another --out"
                )
            changed.append(f"{key} = {now.get(key)!r} (was {before.get(key)!r})")
        return changed

    def _check_budget(self, before: Config, now: Config, progress: Progress) -> None:
        """Raise if the run has used up more than a new budget allows: what is written of it would not be true."""
        old, new = flatten(to_dict(before)), flatten(to_dict(now))
        for key, name in _BUDGET.items():
            used = getattr(progress, name)
            if new[key] != old[key] and 0 < new[key] < used:
                raise BytegolfError(
                    f"{self.path} has had {used:,.6g} {'steps' if name == 'step' else 'seconds'} of training, more "
                    f"than {key} = {new[key]:,.6g}: give it a budget of at least that, or choose another --out"
                )


def data_folder(run: Path, config: Config) -> Path | None:
    """Where the data of the run in the folder ``run`` lie; None if they are nowhere to be found.

    Looked for as configured, seen from here; where they lay when the run was made; and where they would lie if run and
    data were moved together. With a record of what they were, the validation split must be the one that it was.

    Raises BytegolfError where there are data, but others.
    """
    places, recorded = [Path(config.data.path)], DataIdentity.read(RunFolder(run).data)
    if recorded is None or recorded.tokenizer != config.data.tokenizer:  # of another model, beside which it was put
        return places[0] if places[0].is_dir() else None
    places += [Path(recorded.folder), run / recorded.beside]
    others = []
    for place in places:
        try:
            found = DataIdentity.of(place, recorded.tokenizer)
        except BytegolfError:  # not there, or without that tokenizer
            continue
        if found.val == recorded.val:
            return place
        others.append(place)
    if others:
        raise BytegolfError(
            f"{others[0]} holds another validation split than that of {run}: name the folder to use with --data"
        )
    return None


@dataclass(frozen=True)
class GitState:
    """Of the package's own checkout."""

    commit: str
    modified: bool


@dataclass(frozen=True)
class Environment:
    """What a run was made with: environment.json."""

    bytegolf: str
    command: list[str]
    python: str
    packages: dict[str, str]
    platform: str
    processor: str
    cpus: int | None
    torch_threads: int
    cuda: str | None
    """the GPU's name"""
    git: GitState | None
    """None where the package is no checkout"""


def environment(command: list[str]) -> Environment:
    """What a run that begins now is made with."""
    import torch  # a second, which nothing else in this module needs

    packages = ("torch", "numpy", "sentencepiece", "safetensors")
    return Environment(
        bytegolf=__version__,
        command=command,
        python=sys.version.split()[0],
        packages={name: metadata.version(name) for name in packages},
        platform=platform.platform(),
        processor=_processor(),
        cpus=os.cpu_count(),
        torch_threads=torch.get_num_threads(),
        cuda=torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        git=_git_state(),
    )


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")


def _git_state() -> GitState | None:
    folder = Path(__file__).parent

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True, timeout=10
        ).stdout.strip()

    try:
        return GitState(git("rev-parse", "HEAD"), bool(git("status", "--porcelain", "--", ".")))
    except (OSError, subprocess.SubprocessError):
        return None
