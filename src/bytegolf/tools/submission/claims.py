"""What a submission's files are called, and what its submission.json claims."""

from __future__ import annotations

from dataclasses import dataclass

CLAIMS = "submission.json"
LOG = "train.log"
README = "README.md"


@dataclass(frozen=True)
class Claims:
    """submission.json: the fields that the public ones have."""

    author: str
    github_id: str
    name: str
    blurb: str
    date: str
    """in UTC"""
    track: str
    val_loss: float
    """nats per token, as the script scores the artifact"""
    val_bpb: float
    pre_quant_val_bpb: float
    """of the weights before quantisation"""
    step_stop: int | None
    wallclock_seconds: float | None
    """of training"""
    bytes_total: int
    bytes_model_int8_zlib: int
    """the model's, whatever it is coded with"""
    bytes_code: int


@dataclass(frozen=True)
class Submission(Claims):
    """A submission that was made, and what it claims."""

    folder: str
