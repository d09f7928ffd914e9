"""Streams of made-up byte tokens, to be scored."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bytegolf.data.dataset import TokenStream
from bytegolf.data.dataset_writer import ShardWriter
from bytegolf.data.tokenizer import ByteTokenizer

BYTES = ByteTokenizer()


def stream_of(folder: Path, tokens: list[int] | NDArray[np.uint16], vocab_size: int = 260) -> TokenStream:
    """``tokens`` as a validation split in ``folder``."""
    with ShardWriter(folder, "val") as writer:
        writer.write(np.asarray(tokens, dtype=np.uint16))
    return TokenStream(writer.paths, vocab_size)


def random_tokens(count: int) -> list[int]:
    """Bytes, with every twelfth token the start of a document."""
    chance = np.random.default_rng(0)
    tokens = chance.integers(4, 40, count)
    tokens[::12] = BYTES.BOS
    return [int(token) for token in tokens]
