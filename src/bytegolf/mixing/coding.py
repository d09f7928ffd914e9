"""Bytes as a code of bits, each at the probability that a mixer gives it: an encoder and its decoder.

A binary arithmetic coder of 32 bits: the code so far is known up to a range low … high, of which a bit takes the lower
part if it is 1, in proportion to its probability, and the upper part if it is 0.

Legend: S streams, R of them that are coded, E experts, T bytes of each.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Int, UInt8, UInt32

from bytegolf.mixing.mixer import Kernel, Mixer

TOP = 0xFFFFFFFF


class BitCoder:
    """One side of the code: an encoder of up to ``room`` bytes, or the decoder of a ``payload``.

    Altered payloads decode to other bytes rather than to an error: whoever decodes compares checksums.
    """

    def __init__(self, room: int = 0, payload: bytes | None = None) -> None:
        self.decodes = payload is not None
        self.buffer = np.zeros(room, np.uint8) if payload is None else np.frombuffer(payload, np.uint8).copy()
        self.numbers = np.array([0, TOP, 0, 0, self.decodes], np.int64)
        """low, high, the four bytes that a decoder looks at, bytes written or read, and whether this is a decoder"""
        if payload is not None:
            self.numbers[2:4] = int.from_bytes(payload[:4].ljust(4, b"\0"), "big"), 4

    def code(self, bit: int, p: int) -> int:
        """One bit, a 1 of probability ``p``·2⁻¹⁶: an encoder is told it, a decoder finds it. As the kernel does it."""
        low, high, value, at, _ = self.numbers.tolist()
        # of 0 … 0xFFFFFFFF and p = 0.75 (49152): a 1 takes 0 … 0xBFFFFFFF, a 0 takes 0xC0000000 … 0xFFFFFFFF. Four 1s,
        # and the range has 0.75⁴ of its size, 1.66 bits less
        middle = low + ((high - low) * p >> 16)
        if self.decodes:
            bit = int(value <= middle)
        low, high = (low, middle) if bit else (middle + 1, high)
        while low >> 24 == high >> 24:  # the first byte is the same at both ends: nothing can change it any more
            if self.decodes:
                value = (value << 8 & TOP) | (int(self.buffer[at]) if at < len(self.buffer) else 0)
            elif at < len(self.buffer):
                self.buffer[at] = high >> 24
            at += 1
            low, high = low << 8 & TOP, (high << 8 & TOP) | 255
        self.numbers[:4] = low, high, value, at
        return bit

    def payload(self) -> bytes | None:
        """What was written, closed; None if there was no room for it.

        One byte more tells a number within the range from all others, as its ends differ in their first byte; and
        zeros at the end need not be written, as a decoder takes what is missing for zeros.
        """
        low, at = int(self.numbers[0]), int(self.numbers[3])
        if at + 1 > len(self.buffer):
            return None
        last = bytes([(low >> 24) + 1]) if low else b""
        return (self.buffer[:at].tobytes() + last).rstrip(b"\0")


def code_byte(mixer: Mixer, coder: BitCoder, byte: int, row: int = 0) -> int:
    """The next byte of stream ``row``, for which ``mixer.begin`` was called: an encoder is told it, a decoder finds it,
    and both give it back. It is not learned yet. It costs what ``mixer.run`` says, up to the coder's rounding.
    """
    node, rows = 1, np.array([row])
    for k in range(8):
        p = int(mixer.predict(np.array([node]), rows)[0])
        node = 2 * node + coder.code(byte >> 7 - k & 1, p)
    return node & 255


def code_bytes(
    mixer: Mixer,
    coder: BitCoder,
    data: UInt8[np.ndarray, "T R"],
    frequencies: UInt32[np.ndarray, "R E 256"] | None = None,
    rows: Int[np.ndarray, " R"] | None = None,
) -> None:
    """Code T bytes of each of ``rows`` (None: all) in turn, and learn them; a decoder fills ``data`` in.

    ``frequencies`` are the experts' distributions of the next byte: with experts, T is 1. The bytes of one step are
    predicted from the same knowledge, and learned in their order.
    """
    count = data.shape[1]
    rows = np.arange(count) if rows is None else rows
    if frequencies is None:
        frequencies = np.zeros((count, 0, 256), np.uint32)
    assert len(data) == 1 or frequencies.shape[1] == 0, "experts say one byte at a time"
    if isinstance(mixer.engine, Kernel):
        mixer.engine.code(rows, frequencies, data, coder.numbers, coder.buffer)
        return
    for step in data:
        mixer.begin(frequencies, rows=rows)
        for i in range(count):
            step[i] = code_byte(mixer, coder, int(step[i]), int(rows[i]))
        mixer.learn(step, rows)
