"""How far a `prepare` is: what a killed one leaves, and the same command run again goes on from."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypedDict

from bytegolf.data import blocks
from bytegolf.data.dataset_writer import WriterState
from bytegolf.data.sources import Source
from bytegolf.data.specs import TokenizerSpec
from bytegolf.data.split import Split
from bytegolf.errors import BytegolfError
from bytegolf.files import read_json, write_json
from bytegolf.folders import LeftOut

CHECKPOINT = "prepare.progress.json"


class Job(TypedDict):
    """All that the files of an export depend on: a checkpoint is for the same job only."""

    version: int
    corpus: dict[str, Any]
    """``Source.description``"""
    files: list[tuple[str, int, int]]
    """name, size and time of change in ns"""
    split: str
    tokenizers: list[dict[str, Any]]
    """as in a manifest"""
    shard_tokens: int
    block_bytes: int


def job_of(source: Source, split: Split, specs: Sequence[TokenizerSpec], shard_tokens: int) -> Job:
    """The job of a `prepare`, with its files as they are now."""
    status = {file: Path(file).stat() for file in source.files if Path(file).is_file()}
    return {
        "version": 2,
        "corpus": source.description,
        "files": [(file, its.st_size, its.st_mtime_ns) for file, its in status.items()],
        "split": str(split),
        "tokenizers": [spec.to_json() for spec in specs],
        "shard_tokens": shard_tokens,
        "block_bytes": blocks.BLOCK_BYTES,
    }


@dataclasses.dataclass
class Checkpoint:
    """What is finished of a job."""

    job: Job
    models: dict[str, str] = dataclasses.field(default_factory=dict)
    """the hashes of the SentencePiece models that are trained, by the suffix of their data sets"""
    blocks: int = 0
    """how many blocks are written"""
    digest: str = bytes(32).hex()
    """the hash of their documents (`manifest.DIGEST`)"""
    groups: list[str] = dataclasses.field(default_factory=list)
    """which of the groups that the split names were met"""
    left_out: list[LeftOut] = dataclasses.field(default_factory=list)
    """their documents without text"""
    writers: list[WriterState] = dataclasses.field(default_factory=list)
    """one per tokenizer"""

    def save(self, out: Path) -> None:
        """Write it to the folder ``out``."""
        write_json(out / CHECKPOINT, dataclasses.asdict(self))

    @staticmethod
    def load(out: Path, job: Job) -> Checkpoint:
        """What ``out`` holds of ``job``; nothing finished where it holds none of it, or what cannot be read."""
        with contextlib.suppress(BytegolfError, TypeError, KeyError):
            if (out / CHECKPOINT).exists():
                value = read_json(out / CHECKPOINT, "checkpoint")
                writers = [WriterState(**one) for one in value["writers"]]
                left_out = [LeftOut(**one) for one in value["left_out"]]
                found = Checkpoint(**{**value, "writers": writers, "left_out": left_out})
                if found.job == json.loads(json.dumps(job)):
                    return found
        return Checkpoint(job)
