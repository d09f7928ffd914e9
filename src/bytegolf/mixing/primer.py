"""A primer: text that contexts have read before the first byte is scored.

An artifact may carry some of the training text for it (``export.primer``). What it brings is what a model of a few
million weights cannot hold: what follows rare words and long strings. Reading it is counting only, without predicting a
byte, so it takes a fifth of the time of mixing.
"""

from __future__ import annotations

import functools
import hashlib
import lzma
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import UInt8
from numpy.typing import NDArray

MOST_BYTES = 1 << 28
"""Of a primer's text: what a stranger's file may unpack to."""

MOST_MEMORY = 1 << 28
"""Bytes that unpacking may take: the largest dictionary of xz's presets is a quarter of it."""


class BadPrimerError(Exception):
    """A primer that is not what was declared; the reason in words."""


@dataclass(frozen=True, eq=False)
class Primer:
    """A text in one .xz stream (``packed``), ``size`` bytes with the SHA-256 ``sha256`` in hexadecimal."""

    packed: bytes
    size: int
    sha256: str

    @staticmethod
    def of(text: bytes) -> Primer:
        """Pack a text, at its smallest."""
        packed = lzma.compress(text, preset=9 | lzma.PRESET_EXTREME)
        return Primer(packed, len(text), hashlib.sha256(text).hexdigest())

    @functools.cached_property
    def text(self) -> bytes:
        """The text. Raises BadPrimerError if it is another than was packed; no more than its size is unpacked."""
        try:
            stream = lzma.LZMADecompressor(lzma.FORMAT_XZ, MOST_MEMORY)
            found = stream.decompress(self.packed, self.size + 1)
            while not stream.eof and len(found) <= self.size and not stream.needs_input:
                found += stream.decompress(b"", self.size + 1 - len(found))
        except (lzma.LZMAError, MemoryError) as error:
            raise BadPrimerError(f"its primer does not decompress: {error}") from error
        if not stream.eof or stream.unused_data or hashlib.sha256(found).hexdigest() != self.sha256:
            raise BadPrimerError(f"its primer is not the declared {self.size:,} bytes")
        return found

    def check(self) -> None:
        """Raise BadPrimerError unless it unpacks to what was packed."""
        if len(self.text) != self.size:
            raise BadPrimerError(f"its primer is not the declared {self.size:,} bytes")

    @property
    def data(self) -> UInt8[np.ndarray, " n"]:
        """The text as an array."""
        return np.frombuffer(self.text, np.uint8)

    @functools.cached_property
    def known(self) -> dict[tuple[Any, ...], tuple[NDArray[Any], ...] | None]:
        """What mixers of some kinds know when they have read it; None until it is read again (``Mixer.read``)."""
        return {}

    @functools.cached_property
    def readers(self) -> dict[tuple[Any, ...], Any]:
        """Mixers by kind that have read it ahead and wait to be used (``Mixer.prepare``)."""
        return {}
