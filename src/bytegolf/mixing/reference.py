"""Context mixing in plain Python and NumPy: what ``ops/kernels/exact_mixing.cpp`` computes, to the last bit.

It is for tests, and for machines without a compiler (some kilobytes per second). Integers are Python's, cut to 64 bits
where hashes need it; what the kernel does in fp32 is done in fp32 here, in the same order.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from bytegolf.mixing import tables
from bytegolf.mixing.alone import learn_alone, learn_trust, predict_alone
from bytegolf.mixing.arithmetic import (
    MASK,
    F,
    clip,
    confidence,
    dot,
    hashed,
    length_class,
    letter,
    log,
    mixed,
    rough_length,
    second,
    squash,
    whole,
)
from bytegolf.mixing.buckets import claim, correction_of, find, learn_map, learn_slots
from bytegolf.mixing.frame import Frame
from bytegolf.mixing.state import GIVEN_SET, HISTORY, MOST_GIVEN, State


class Reference:
    """The engine of ``mixer.Mixer`` in plain Python."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._frames = [Frame() for _ in range(state.streams)]

    # ------------------------------------------------------------------------------------------------ history

    def _history(self, row: int) -> dict[str, int]:
        numbers = self._state.history[row].tolist()
        unsigned = dict(zip(HISTORY, (number & MASK for number in numbers), strict=False))
        return unsigned | {"pending": numbers[HISTORY.index("pending")]}

    def _expected(self, h: dict[str, int]) -> int:
        if not h["match_bytes"]:
            return -1
        return int(self._state.text[divmod(h["match_at"], self._state.ring)])

    def _advance(self, row: int, opens: bool) -> None:
        state, h = self._state, self._history(row)
        byte = h["pending"]
        if byte < 0:
            return
        h["pending"] = -1
        h["before16"] = (h["before16"] << 8 | h["before8"] >> 56) & MASK
        h["before8"] = (h["before8"] << 8 | h["last8"] >> 56) & MASK
        h["last8"] = (h["last8"] << 8 | byte) & MASK
        if c := letter(byte):
            h["word"] = mixed(h["word"] + c + 1)
        elif h["word"]:
            h["word_before"], h["word"] = h["word"], 0
        if opens:
            h["chunk_before"], h["chunk"], h["chunk_bytes"] = h["chunk"], 0, 0
        h["chunk"] = mixed(h["chunk"] + byte + 1)
        h["chunk_bytes"] += 1
        mask = state.ring - 1
        if self._expected(h) == byte:
            stream, after = h["match_at"] // state.ring, (h["match_at"] + 1) & mask
            h["match_at"] = stream * state.ring + after
            # another stream's match is over where that stream ends: what lies behind is not written yet, or a whole
            # ring old. (Its own end a stream never meets: that moves on with it.)
            over = stream != row and after == int(state.history[stream, HISTORY.index("length")]) & mask
            h["match_bytes"] = 0 if over else h["match_bytes"] + 1
        else:
            h["match_bytes"] = 0
        state.text[row, h["length"] & mask] = byte
        h["length"] += 1
        if h["length"] >= state.shortest:
            self._match(row, h)
        signed = [value - (1 << 64) if value > MASK >> 1 else value for value in h.values()]
        state.history[row, : len(signed)] = signed

    def _match(self, row: int, h: dict[str, int]) -> None:
        state, mask = self._state, self._state.ring - 1
        place = mixed(h["last8"] << 64 - 8 * state.shortest) >> 64 - state.position_bits
        latest = int(state.positions[place])
        if not h["match_bytes"] and latest:
            stream, at = divmod(latest - 1, state.ring)
            read = h["length"] if stream == row else int(state.history[stream, HISTORY.index("length")])
            # compared from the last byte backwards, as far as both have bytes: a stream that has read more than its
            # ring has 32 before any place
            most, same = min(32, h["length"], 32 if read > state.ring else at), 0
            theirs, own = state.text[stream], state.text[row]
            while same < most and theirs[at - 1 - same & mask] == own[h["length"] - 1 - same & mask]:
                same += 1
            if same >= state.shortest:
                h["match_bytes"], h["match_at"] = same, latest - 1
        state.positions[place] = row * state.ring + (h["length"] & mask) + 1

    # ------------------------------------------------------------------------------------------------ the engine

    def begin(self, rows: NDArray[np.int64], frequencies: NDArray[np.uint32], opens: NDArray[np.bool_]) -> None:
        for i, row in enumerate(rows.tolist()):
            self._advance(row, bool(opens[i]))
            frame = self._frames[row]
            self._look(frame, row)
            frame.trees = []
            for leaves in frequencies[i].tolist():
                tree = [0] * 256 + leaves
                for node in range(255, 0, -1):
                    tree[node] = tree[2 * node] + tree[2 * node + 1]
                frame.trees.append(tree)
            if frame.trees:
                tree = frame.trees[0]
                frame.unsure = min(15, int((log(tree[1]) - log(max(tree[256:]))) * F(5.770780)))

    def _look(self, frame: Frame, row: int) -> None:
        """What a stream's next byte is predicted from, but for the experts."""
        state = self._state
        h = frame.history = self._history(row)
        frame.hashes = [hashed(h, c, kind, state.given) for c, kind in enumerate(state.contexts)]
        frame.order2 = mixed(h["last8"] & 0xFFFF) >> 32
        frame.chance = mixed(h["length"] + 1)
        frame.expected = self._expected(h)
        frame.x = np.zeros((8, state.inputs), np.float32)

    def predict(self, rows: NDArray[np.int64], nodes: NDArray[np.int64]) -> NDArray[np.int32]:
        found = [
            self._predict(self._frames[row], node) for row, node in zip(rows.tolist(), nodes.tolist(), strict=True)
        ]
        return np.array(found, np.int32)

    def nodes(self, rows: NDArray[np.int64]) -> NDArray[np.int32]:
        out = np.zeros((len(rows), 256), np.int32)
        # The nodes of a byte's tree: 1 before its first bit, 1b behind a bit b, … up to 1bbbbbbb; for the byte 0x61 =
        # 01100001 they are 1, 10, 101, 1011, then 10110, 101100, 1011000, 10110000 (in binary). Each second half by
        # itself: buckets are looked for at its first node.
        order = [
            *range(1, 16),
            *(high << deep | low for high in range(16, 32) for deep in range(4) for low in range(1 << deep)),
        ]
        for i, row in enumerate(rows.tolist()):
            for node in order:
                out[i, node] = self._predict(self._frames[row], node)
        return out

    def learn(self, rows: NDArray[np.int64], data: NDArray[np.uint8]) -> None:
        pairs = list(zip(rows.tolist(), data.tolist(), strict=True))
        for row, byte in pairs:
            self._walk(self._frames[row], byte)
        for row, byte in pairs:
            self._learn(self._frames[row], byte)
            self._state.history[row, HISTORY.index("pending")] = byte

    def prime(self, row: int, data: NDArray[np.uint8]) -> None:
        frame = Frame()
        for byte in data.tolist():
            self._advance(row, False)
            self._look(frame, row)
            self._count(frame, byte, None)
            if frame.expected >= 0:
                self._learn_match(frame.expected, frame.history["match_bytes"], byte)
            self._state.history[row, HISTORY.index("pending")] = byte

    def run(
        self, row: int, frequencies: NDArray[np.uint32], opens: NDArray[np.bool_], data: NDArray[np.uint8]
    ) -> NDArray[np.uint16]:
        out, rows = np.empty((len(data), 8), np.uint16), np.array([row])
        for t, byte in enumerate(data.tolist()):
            self.begin(rows, frequencies[t : t + 1], opens[t : t + 1])
            out[t] = self._walk(self._frames[row], byte)
            self._learn(self._frames[row], byte)
            self._state.history[row, HISTORY.index("pending")] = byte
        return out

    def _walk(self, frame: Frame, byte: int) -> list[int]:
        ones = [self._predict(frame, (byte | 256) >> 8 - k) for k in range(8)]
        return [p if byte >> 7 - k & 1 else 65536 - p for k, p in enumerate(ones)]

    # ------------------------------------------------------------------------------------------------ prediction

    def _select(self, frame: Frame, kind: int, k: int, node: int, hits: int, bit: int, sure: int) -> int:
        h = frame.history
        size = rough_length(h["match_bytes"])
        known = min(hits, 15)
        match kind:
            case 0:
                return node
            case 1:
                return h["last8"] & 255
            case 2:
                return h["last8"] >> 8 & 255
            case 3:
                return (((0 if bit < 0 else size) + 8 * (bit == 1)) * 8 + sure) * 8 + k
            case 4:
                return (k * 16 + known) * 8 + size
            case 5:
                return (k * 16 + frame.unsure) * 16 + known
            case outside if outside >= GIVEN_SET:
                return int(self._state.given[MOST_GIVEN + outside - GIVEN_SET]) * 8 + k
            case _:
                return (min(h["chunk_bytes"], 15) * 8 + k) * 16 + frame.unsure

    def _predict(self, frame: Frame, node: int) -> int:
        state, h = self._state, frame.history
        half = (k := node.bit_length() - 1) // 4
        # a bucket has the 15 nodes of half a byte: node 10110 (k = 4) is the first of its bucket, 1, and 101100 (k = 5)
        # is 10, as 1 and 10 are of the first half's
        own = node & (1 << k - 4) - 1 | 1 << k - 4 if half else node
        if k in (0, 4):
            frame.buckets[half] = [find(self._state, second(each, node) if half else each) for each in frame.hashes]
        hits, correction = self._context_inputs(frame, k, own)
        bit = self._match_inputs(frame, k, node)
        x, at = frame.x[k], state.alone_inputs
        corrected = x[at] = clip(F(correction) * F(2**-8))
        for e, tree in enumerate(frame.trees):
            x[at + 1 + e] = clip(log(tree[2 * node + 1]) - log(tree[2 * node]))
        alone = F(0)
        if state.chained:
            alone = x[at + 1 + state.experts] = predict_alone(state, frame, k, node, hits, bit)
        expert = x[at + 1] if frame.trees else F(0)
        sure = confidence(expert) if frame.trees else rough_length(h["match_bytes"])
        frame.corrected[k] = squash(clip(expert + corrected))
        p = whole(self._combine(frame, k, node, hits, bit, sure))
        frame.shares[k] = p, whole(squash(clip(alone)))
        if not state.chained:
            return p
        share = state.trust[1]
        return int(F(p) * share + F(frame.shares[k][1]) * (F(1) - share) + F(0.5))

    def _context_inputs(self, frame: Frame, k: int, own: int) -> tuple[int, int]:
        """What contexts give a bit's mixers: how many are known, and the sum of their corrections."""
        state, buckets, x = self._state, frame.buckets[k // 4], frame.x[k]
        x[:] = 0
        correction = 0
        for c, bucket in enumerate(buckets):
            slot = 0 if bucket is None else int(state.table[bucket, own])
            if slot & 15:
                value = int(state.maps[c, slot & 15, state.bins[slot >> 8 & 4095]])
                x[c] = tables.stretch()[value >> 20]
                x[len(buckets) + c] = F(value >> 10) * F(2**-21) - F(1)
                correction += correction_of(slot)
        return sum(bucket is not None for bucket in buckets), correction

    def _match_inputs(self, frame: Frame, k: int, node: int) -> int:
        """The inputs of the match, and a 1; the bit that it expects, −1 if none."""
        x, at, bit, size = frame.x[k], 2 * len(frame.hashes), -1, frame.history["match_bytes"]
        if frame.expected >= 0 and (frame.expected | 256) >> 8 - k == node:
            bit = frame.expected >> 7 - k & 1
            sign = F(1 if bit else -1)
            x[at] = sign * tables.stretch()[int(self._state.match_maps[length_class(size)]) >> 20]
            x[at + 1] = sign * (F(min(size, 32)) * F(0.0625))
        x[at + 2] = F(0.3)
        return bit

    def _combine(self, frame: Frame, k: int, node: int, hits: int, bit: int, sure: int) -> np.float32:
        state = self._state
        frame.final_set[k] = k * 8 + sure
        frame.sets[k], frame.out[k], total = [], [], F(0)
        for s, (kind, offset) in enumerate(zip(state.selectors, state.set_offsets, strict=True)):
            chosen = offset + self._select(frame, kind, k, node, hits, bit, sure)
            out = clip(dot(frame.x[k], state.weights[chosen]))
            frame.sets[k].append(chosen)
            frame.out[k].append(out)
            total = total + out * state.final_weights[frame.final_set[k], s]
        total = clip(total)
        p = frame.p[k] = squash(total)
        # 33 supporting points lie half a logit apart: a total of 0.8 is z = 17.6, that is 0.4 of point 17 and 0.6 of
        # 18, and point 18, the nearer, is the one that learns
        z = (clip(total, F(7.99)) + F(8)) * F(2)
        j = int(z)
        share = z - F(j)
        last = frame.history["last8"] & 255
        rows = (node | last << 8, 65536 + (((frame.order2 + node & 0xFFFFFFFF) * 0x9E3779B1 & 0xFFFFFFFF) >> 16))
        refined = []
        for line in (state.apm[row] for row in rows):
            refined.append((F(line[j]) * (F(1) - share) + F(line[j + 1]) * share) * F(2**-16))
        frame.cells[k] = [(row, j + int(share > F(0.5))) for row in rows]
        numbers = state.numbers
        return p * numbers[5] + (refined[0] + refined[1]) * numbers[6]  # type: ignore[no-any-return]  # an fp32

    # ------------------------------------------------------------------------------------------------ learning

    def _learn(self, frame: Frame, byte: int) -> None:
        state, numbers = self._state, self._state.numbers
        rate = numbers[1] + numbers[0] / (F(1) + F(state.counts[1]) * numbers[2])
        for k in range(8):
            bit = byte >> 7 - k & 1
            final = state.final_weights[frame.final_set[k]]
            # d(cost)/d(weight) is (p − bit)·input, in both layers: the last one's inputs are the first one's logits,
            # and each set of the first learns from the p that it alone would have given
            step = (F(bit) - frame.p[k]) * numbers[3]
            for s, (chosen, out) in enumerate(zip(frame.sets[k], frame.out[k], strict=True)):
                final[s] = final[s] + step * out
                state.weights[chosen] += frame.x[k] * ((F(bit) - squash(out)) * rate)
            for cell in frame.cells[k]:
                value = int(state.apm[cell])
                state.apm[cell] = value + ((65535 if bit else 0) - value >> 6)
        if state.chained:
            learn_alone(state, frame, byte)
            learn_trust(state, frame, byte)
        if frame.expected >= 0:
            self._learn_match(frame.expected, frame.history["match_bytes"], byte)
        self._count(frame, byte, frame.corrected)
        state.counts[1] += 1

    def _learn_match(self, expected: int, size: int, byte: int) -> None:
        at = length_class(size)
        for k in range(8):
            if (expected | 256) >> 8 - k != (byte | 256) >> 8 - k:
                break
            learn_map(self._state, self._state.match_maps, at, (expected ^ byte) >> 7 - k & 1 == 0)

    def _count(self, frame: Frame, byte: int, corrected: list[np.float32] | None) -> None:
        """A byte's counters, a bit at a time; ``corrected`` is None while priming: contexts alone predict there."""
        state = self._state
        predicts = state.chained and corrected is None
        for half in (0, 1):
            wanted = [second(first, 16 | byte >> 4) for first in frame.hashes] if half else frame.hashes
            found = frame.buckets[half] = [find(state, each) for each in wanted]
            nodes = {k: (byte | 256) >> 8 - k for k in range(4 * half, 4 * half + 4)}
            owns = {k: node & (1 << k - 4) - 1 | 1 << k - 4 if half else node for k, node in nodes.items()}
            for k in nodes if predicts else ():
                hits, _ = self._context_inputs(frame, k, owns[k])
                predict_alone(state, frame, k, nodes[k], hits, self._match_inputs(frame, k, nodes[k]))
            buckets = [claim(state, each) if at is None else at for each, at in zip(wanted, found, strict=True)]
            for k, own in owns.items():
                slots, chance = [(bucket, own) for bucket in buckets], frame.chance >> 5 * k & 0xFFFFFFFF
                learn_slots(state, slots, byte >> 7 - k & 1, chance, corrected[k] if corrected else None)
        if predicts:
            learn_alone(state, frame, byte)
