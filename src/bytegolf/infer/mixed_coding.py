"""Entropy coding of mixed bytes: eight binary decisions per byte, each with the mixer's probability.

Legend: R streams.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Int, UInt8

from bytegolf.infer.frequencies import Coder
from bytegolf.mixing.frequencies import TOTAL
from bytegolf.mixing.mixer import Mixer
from bytegolf.mixing.tables import SHARES


def code_bytes(
    mixer: Mixer, coder: Coder, data: UInt8[np.ndarray, " R"], rows: Int[np.ndarray, " R"] | None = None
) -> UInt8[np.ndarray, " R"]:
    """Code the next byte of each of ``rows`` (None: all), for which ``mixer.begin`` was called, and learn it.

    An encoder is told the bytes, a decoder finds them; both give them back. A byte costs what ``mixer.run`` says, up to
    what a range coder rounds away.
    """
    nodes = np.ones(len(data), np.int64)
    for bit in range(8):
        ones = mixer.predict(nodes, rows).astype(np.int64) * (TOTAL // SHARES)
        nodes = 2 * nodes + coder.code(np.stack((TOTAL - ones, ones), 1), data.astype(np.int64) >> (7 - bit) & 1)
    found = (nodes & 255).astype(np.uint8)
    mixer.learn(found, rows)
    return found
