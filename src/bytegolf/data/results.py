"""What making and fetching data comes to; nothing here imports numpy, so that a verb's help answers at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from bytegolf.folders import LeftOut


@dataclass(frozen=True)
class Prepared:
    """A data folder."""

    out: str
    split: Any
    """the rule of the validation split"""
    datasets: dict[str, dict[str, Any]]
    """by tokenizer: tokenizer, vocab_size, docs_total, docs_train, docs_val, and likewise files_, tokens_, bytes_ and
    original_bytes_, the last two for train and val"""
    left_out: list[LeftOut]
    """what the sources hold and was not read"""


@dataclass(frozen=True)
class FetchResult:
    """What `fetch` has done, or would do."""

    out: str
    source: str
    files: int
    files_fetched: int
    bytes_present: int
    """of files that were there and right"""
    bytes_resumed: int
    """what earlier attempts had left of the files to fetch"""
    bytes_fetched: int
    """that came; of a dry run: that would come, files of unknown size not counted"""
    replaced: list[str]
    """paths of files that were there but not what is published"""
    exported: list[str]
    """variants that are made from the documents"""
    left_out: list[LeftOut]
    """documents without text, of which nothing could be made"""
    dry_run: bool
    seconds: float
    datasets: dict[str, dict[str, Any]]
    """by tokenizer: tokenizer, vocab_size, and the counts that `prepare` has"""
