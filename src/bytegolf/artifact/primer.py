"""Which training text an artifact carries for contexts to read before they score (``mixing.primer``).

It is taken from the training split and from nothing else: pieces that begin where documents do, spread evenly over the
split, so that all kinds of text are in it. Which ones depends on the split's tokens and the number of bytes alone, so
that anybody who has the data can make it again (`bytegolf verify` does).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from bytegolf.config import Config
from bytegolf.data.shards import TokenStream, open_split
from bytegolf.data.tokenizer import ByteTokenizer, Tokenizer
from bytegolf.errors import BytegolfError
from bytegolf.mixing.primer import Primer

PIECE = 1 << 16
"""Bytes of each piece: most of a long document, a few dozens of short ones."""

LOOK = 1 << 20
"""Tokens behind a place in which a document's start is looked for."""


def primer_of(config: Config, tokenizer: Tokenizer, data: Path) -> Primer | None:
    """The primer that ``config`` asks for, of the training split in ``data``; None if it asks for none.

    Raises BytegolfError for a model of subwords, whose scores cannot be mixed.
    """
    if not config.export.primer:
        return None
    if not isinstance(tokenizer, ByteTokenizer):
        raise BytegolfError(
            f"a primer is for mixing, which needs a model over bytes, and this one is over {tokenizer.name}: leave it "
            "out (export.primer=0)"
        )
    stream = open_split(data, tokenizer.name, "train", tokenizer.vocab_size)
    return Primer.of(training_text(stream, tokenizer, config.export.primer))


def training_text(stream: TokenStream, tokenizer: Tokenizer, size: int) -> bytes:
    """``size`` bytes of a split, or all of it if it has no more: pieces at equal distances, each from a document's
    start on. They are fewer where the last document begins too late for what is left.

    Example: 200,000 bytes of 1,000,000 tokens are four pieces of 50,000, looked for at 0, 250,000, 500,000 and 750,000.
    If documents begin at 0, 240,000, 260,000 and 700,000, the second piece begins at 260,000 and the third at 700,000;
    behind 750,000 none begins, so the fourth begins there, where the third has ended.
    """
    if size >= len(stream):
        return tokenizer.decode(stream.slice(0, len(stream)))[:size]
    count = -(-size // PIECE)
    parts: list[bytes] = []
    done = left = 0
    for number in range(count):
        place = max(done, len(stream) * number // count)
        ahead = stream.slice(place, min(len(stream), place + LOOK))
        starts = np.flatnonzero(ahead == tokenizer.BOS)
        start = place + (int(starts[0]) if len(starts) else 0)
        wanted = size * (number + 1) // count - size * number // count + left
        tokens = stream.slice(start, min(len(stream), start + 2 * wanted))  # of which some are the BOS of a document
        kept = np.flatnonzero(tokenizer.byte_counts(tokens, tokens))[:wanted]
        done, left = start + (int(kept[-1]) + 1 if len(kept) else 0), wanted - len(kept)
        parts.append(tokenizer.decode(tokens[kept]))
    return b"".join(parts)
