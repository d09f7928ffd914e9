"""Chunk boundaries that a model places in a text, and their statistics over a whole split.

Legend: L tokens of a window.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from bytegolf.analyze.boundaries import BoundaryStats, token_boundaries_to_bytes
from bytegolf.data.tokenizer import ByteTokenizer, Tokenizer
from bytegolf.errors import BytegolfError
from bytegolf.evaluate.bpb import Observer
from bytegolf.evaluate.windows import Window
from bytegolf.model.lm import LanguageModel
from bytegolf.model.trace import LevelTrace


@dataclass(frozen=True)
class Segmentation:
    """A text and the chunks that a model cuts it into."""

    data: bytes
    """what the tokens stand for: the text, as far as the tokenizer keeps it"""
    boundaries: NDArray[np.bool_]
    """for each byte, whether it starts a chunk; the first one always does"""
    candidates: NDArray[np.bool_]
    """for each byte, whether it starts a token, so that a chunk could start there"""

    def offsets(self) -> list[int]:
        """The byte offsets at which chunks start."""
        return np.flatnonzero(self.boundaries).tolist()

    def stats(self) -> BoundaryStats:
        """The metrics of this text on its own."""
        stats = BoundaryStats()
        if self.data:
            window = np.frombuffer(self.data, np.uint8)
            stats.add(window, self.boundaries, candidates=self.candidates, whole=True)
        return stats


def encode(tokenizer: Tokenizer, data: bytes, where: str) -> NDArray[np.uint16]:
    """The tokens of ``data``; byte tokenizers take any bytes, others need UTF-8 (``where`` is named in the error)."""
    if isinstance(tokenizer, ByteTokenizer):
        return tokenizer.encode_bytes(data)
    try:
        return tokenizer.encode(data.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise BytegolfError(
            f"{where} is not UTF-8 (byte {error.start}): {tokenizer.name} reads text only; convert it, or use a "
            "byte-level model"
        ) from error


@torch.inference_mode()
def segment(
    model: LanguageModel, tokenizer: Tokenizer, data: bytes, seq_len: int, where: str = "the text", level: int = 0
) -> Segmentation:
    """Cut ``data`` into the chunks of a chunking ``level`` (0 = outermost), reading it in windows of ``seq_len``.

    The text is read as one document behind a BOS, whose own chunk is not counted: the first byte opens one.

    Raises BytegolfError for an empty text, a flat model, or a level that the model does not have.
    """
    if not data:
        raise BytegolfError(f"{where} is empty: give some text to segment")
    ids = np.concatenate(([tokenizer.BOS], encode(tokenizer, data, where))).astype(np.int64)
    found: list[NDArray[np.bool_]] = []
    for start in range(0, len(ids), seq_len):
        window = torch.from_numpy(ids[start : start + seq_len]).to(model.embedding.weight.device)
        found.append(_byte_level(model(window.unsqueeze(0)).traces, 0, level))
    sizes = tokenizer.byte_counts(ids[1:], ids[:-1])
    chosen = np.concatenate(found)[1:]
    boundaries = token_boundaries_to_bytes(sizes, chosen)
    boundaries[:1] = True
    candidates = token_boundaries_to_bytes(sizes, np.ones(len(sizes), np.bool_))
    return Segmentation(tokenizer.decode(ids[1:]), boundaries, candidates)


def _byte_level(traces: list[LevelTrace], row: int, level: int) -> NDArray[np.bool_]:
    """The boundaries of ``level`` as positions of the outermost sequence: an inner chunk starts where the outer
    chunk that it starts with does.
    """
    if not traces:
        raise BytegolfError("this is a flat model: it has no router, so there are no chunks to show")
    if not 0 <= level < len(traces):
        raise BytegolfError(f"this model has chunking levels 0 to {len(traces) - 1}, not {level}")
    mask: NDArray[np.bool_] = traces[0].boundary[row].cpu().numpy()
    for trace in traces[1 : level + 1]:
        starts = np.flatnonzero(mask)
        inner = trace.boundary[row].cpu().numpy()[: len(starts)]
        mask = np.zeros_like(mask)
        mask[starts[inner]] = True
    return mask


def collector(stats: BoundaryStats, tokenizer: Tokenizer, level: int = 0) -> Observer:
    """An observer for ``evaluate.bpb.score`` that adds the windows that it is shown to ``stats``.

    Where windows overlap it takes those that do not, as they come: a byte counts once at most.
    """
    covered = 0

    def observe(window: Window, tokens: NDArray[np.int64], traces: list[LevelTrace], row: int) -> None:
        nonlocal covered
        if window.start < covered:
            return
        covered = window.start + window.length
        mask = _byte_level(traces, row, level)
        # the window's first token has no byte before it here: its leading space, if any, belongs to it all the same
        previous = np.concatenate(([tokenizer.BOS], tokens[: window.length - 1]))
        inputs = tokens[: window.length]
        data = tokenizer.decode(inputs)
        sizes = tokenizer.byte_counts(inputs, previous)
        stats.add(
            np.frombuffer(data, np.uint8),
            token_boundaries_to_bytes(sizes, mask),
            candidates=token_boundaries_to_bytes(sizes, np.ones(len(sizes), np.bool_)),
        )

    return observe
