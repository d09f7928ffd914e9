"""A second reader of the `range` coder, from docs/formats/artifact.md: one symbol at a time, in plain integers."""

from __future__ import annotations

import struct

TOTAL = 1 << 24
WORD = 1 << 32


class Stream:
    """The range decoder's state; ``symbol`` reads one symbol."""

    def __init__(self, stream: bytes) -> None:
        self.words = list(struct.unpack(f"<{len(stream) // 4}I", stream))
        self.shifts = 0
        self.low, self.range = 0, WORD * WORD - 1  # low with all its words: Python's integers are of any size

    def point(self) -> int:
        """The stream's first words as one number, as many as ``low`` has, and zeros behind the last."""
        found = 0
        for at in range(self.shifts, self.shifts + 2):
            found = found * WORD + (self.words[at] if at < len(self.words) else 0)
        return found

    def symbol(self, slots: list[int]) -> int:
        step = self.range // TOTAL
        slot = (self.point() - self.low) % (WORD * WORD) // step
        found = next(symbol for symbol in range(len(slots) - 1) if slots[symbol + 1] > slot)
        self.low += step * slots[found]
        self.range = step * (slots[found + 1] - slots[found])
        if self.range < WORD:
            self.low, self.range, self.shifts = self.low * WORD, self.range * WORD, self.shifts + 1
        return found

    def ended(self) -> bool:
        """Whether the words are those that an encoder ends with."""
        if not self.low and self.range == WORD * WORD - 1:
            return not self.words
        upper = (self.low + WORD - 1) // WORD
        words = [upper // WORD**at % WORD for at in range(self.shifts, -1, -1)]
        return self.words == words + [0] * ((self.low + self.range) // WORD == upper)


class Counts:
    """Adaptive counts, which become slots every 1,024 symbols, at the end of a step."""

    def __init__(self, prior: list[list[int]]) -> None:
        self.counts = [list(row) for row in prior]
        self.waiting: list[tuple[int, int]] = []
        self.make()

    def make(self) -> None:
        self.slots = []
        for row in self.counts:
            slots, below, total = [0], 0, sum(row)
            for symbol, count in enumerate(row):
                below += count
                slots.append(below * (TOTAL - 64 * len(row)) // total + 64 * (symbol + 1))
            self.slots.append(slots)

    def step(self, stream: Stream, contexts: list[int]) -> list[int]:
        found = [0] * len(contexts)
        for at in sorted(range(len(contexts)), key=lambda at: contexts[at]):  # Python's sort is stable
            found[at] = stream.symbol(self.slots[contexts[at]])
        self.waiting += zip(contexts, found, strict=True)
        if len(self.waiting) >= 1024:
            for context, symbol in self.waiting:
                self.counts[context][symbol] += 64
            for context in {context for context, _ in self.waiting}:
                if sum(self.counts[context]) > 1 << 20:
                    self.counts[context][:] = [count // 2 for count in self.counts[context]]
            self.waiting = []
            self.make()
        return found


def bounds() -> list[int]:
    found = [8]
    while found[-1] < 128 * 256:
        found.append(found[-1] * 1189 // 1000 + 1)
    return found


def prior(top: int) -> list[list[int]]:
    rows = []
    for mean in [4, *bounds()]:
        side = [1 << 32]
        for _ in range(top):
            side.append(side[-1] * mean // (mean + 256))
        whole = 2 * sum(side) - side[0]
        rows.append([128 * 64 * side[abs(code)] // whole for code in range(-top, top + 1)])
    return rows


class Reader:
    """Reads matrices and numbers in the header's order."""

    def __init__(self, stream: bytes, most: int) -> None:
        self.stream, self.most = Stream(stream), most
        self.codes: dict[int, Counts] = {}
        self.bytes: dict[tuple[int, int], Counts] = {}

    def values(self, number: int, width: int) -> bytes:
        """``number`` numbers of ``width`` bytes."""
        data = [bytearray(width) for _ in range(number)]
        for place in range(width - 1, -1, -1):
            counts = self.bytes.setdefault((width, place), Counts([[16] * 256] * 2))
            for start in range(0, number, 256):
                part = data[start : start + 256]
                contexts = [int(place < width - 1 and not any(item[place + 1 :])) for item in part]
                for item, found in zip(part, counts.step(self.stream, contexts), strict=True):
                    item[place] = found
        return b"".join(data)

    def matrix(self, rows: int, length: int, top: int, scales: bytes) -> list[list[int]]:
        """The codes of a matrix."""
        if not rows * length:
            return [[] for _ in range(rows)]
        words = struct.unpack(f"<{len(scales) // 2}H", scales)
        shared = words and rows % len(words) == 0
        kinds = [words[row // (rows // len(words))] // 256 % 128 if shared else 0 for row in range(rows)]
        counts = self.codes.setdefault(top, Counts(prior(top)))
        matrix: list[list[int]] = [[] for _ in range(rows)]
        column = [0] * length
        alike: dict[int, tuple[int, int]] = {}
        total = top // 4 + 1
        at_once = max(1, min(self.most, rows // 16))
        for start in range(0, rows, at_once):
            block = range(start, min(start + at_once, rows))
            mean = 256 * total // (start * length + 1) + 1
            before = dict(alike)
            sums = [(256 * column[at] + 4 * mean) // (start + 4) for at in range(length)]
            for at in range(length):
                contexts = []
                for row in block:
                    size, seen = before.get(kinds[row], (0, 0))
                    expected = (256 * size + 8 * mean) // (seen + 8)
                    sofar = sum(map(abs, matrix[row]))
                    guess = (256 * sofar + 4 * expected) // (at + 4) * sums[at] // mean
                    contexts.append(sum(bound < guess for bound in bounds()))
                for row, found in zip(block, counts.step(self.stream, contexts), strict=True):
                    matrix[row].append(found - top)
                    column[at] += abs(found - top)
            for row in block:
                size, seen = alike.get(kinds[row], (0, 0))
                alike[kinds[row]] = (size + sum(map(abs, matrix[row])), seen + length)
                total += sum(map(abs, matrix[row]))
        return matrix
