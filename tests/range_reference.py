"""A second reader of the `range` coder, from docs/formats/artifact.md: one symbol per step, in plain integers."""

from __future__ import annotations

import struct

TOTAL = 1 << 18


class Lanes:
    """The stream's lanes; ``symbol`` reads one symbol from one of them. Words come in the order of the symbols."""

    def __init__(self, stream: bytes, lanes: int) -> None:
        self.states = list(struct.unpack_from(f"<{lanes}Q", stream))
        self.words = list(struct.unpack_from(f"<{len(stream) // 4 - 2 * lanes}I", stream, 8 * lanes))[::-1]

    def symbol(self, lane: int, slots: list[int]) -> int:
        x = self.states[lane]
        slot = x % TOTAL
        found = next(symbol for symbol in range(len(slots) - 1) if slots[symbol + 1] > slot)
        x = (slots[found + 1] - slots[found]) * (x // TOTAL) + slot - slots[found]
        self.states[lane] = x if x >= 1 << 31 else x << 32 | self.words.pop()
        return found

    def ended(self) -> bool:
        return not self.words and set(self.states) <= {1 << 31}


class Counts:
    """Adaptive counts, which become slots every 1,024 symbols, at the end of a step."""

    def __init__(self, prior: list[list[int]]) -> None:
        self.counts = [list(row) for row in prior]
        self.waiting: list[tuple[int, int]] = []
        self.make()

    def make(self) -> None:
        self.slots = []
        for row in self.counts:
            slots, below, total = [0], 0, max(sum(row), 1)
            for symbol, count in enumerate(row):
                below += count
                slots.append(below * (TOTAL - len(row)) // total + symbol + 1)
            self.slots.append([*slots[:-1], TOTAL])

    def step(self, lanes: Lanes, contexts: list[int]) -> list[int]:
        found = [lanes.symbol(lane, self.slots[context]) for lane, context in enumerate(contexts)]
        self.waiting += zip(contexts, found, strict=True)
        if len(self.waiting) >= 1024:
            for context, symbol in self.waiting:
                self.counts[context][symbol] += 64
            for row in self.counts:
                if sum(row) > 1 << 20:
                    row[:] = [count // 2 for count in row]
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

    def __init__(self, stream: bytes, lanes: int) -> None:
        self.lanes, self.number = Lanes(stream, lanes), lanes
        self.codes: dict[int, Counts] = {}
        self.bytes: dict[tuple[int, int], Counts] = {}

    def values(self, number: int, width: int) -> bytes:
        """``number`` numbers of ``width`` bytes."""
        data = [bytearray(width) for _ in range(number)]
        for place in range(width - 1, -1, -1):
            counts = self.bytes.setdefault((width, place), Counts([[16] * 256] * 2))
            for start in range(0, number, self.number):
                part = data[start : start + self.number]
                contexts = [int(place < width - 1 and not any(item[place + 1 :])) for item in part]
                for item, found in zip(part, counts.step(self.lanes, contexts), strict=True):
                    item[place] = found
        return b"".join(data)

    def matrix(self, rows: int, length: int, top: int, scales: bytes) -> list[list[int]]:
        """The codes of a matrix."""
        if not rows * length:
            return [[] for _ in range(rows)]
        words = struct.unpack(f"<{len(scales) // 2}H", scales)
        kinds = [words[row // (rows // len(words))] // 256 % 128 for row in range(rows)]
        counts = self.codes.setdefault(top, Counts(prior(top)))
        matrix: list[list[int]] = [[] for _ in range(rows)]
        column = [0] * length
        alike: dict[int, tuple[int, int]] = {}
        total = top // 4 + 1
        at_once = max(1, min(self.number, rows // 16))
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
                for row, found in zip(block, counts.step(self.lanes, contexts), strict=True):
                    matrix[row].append(found - top)
                    column[at] += abs(found - top)
            for row in block:
                size, seen = alike.get(kinds[row], (0, 0))
                alike[kinds[row]] = (size + sum(map(abs, matrix[row])), seen + length)
                total += sum(map(abs, matrix[row]))
        return matrix
