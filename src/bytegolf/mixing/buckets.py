"""Buckets of contexts and their counters in plain Python, as the kernel looks for them, takes them over and learns.

A hash has two places, which differ in their last bit. A bucket is known by a part of its hash and by the generation of
the table: those of earlier generations count as empty.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from bytegolf.mixing.arithmetic import F
from bytegolf.mixing.state import State


def find(state: State, hash_: int) -> int | None:
    """The place of the bucket of a hash; None if it has none."""
    place = hash_ >> 64 - state.bits
    for one in (place, place ^ 1):
        if state.table[one, 0] == _head(state, hash_):
            return one
    return None


def claim(state: State, hash_: int) -> int:
    """The place of a hash's bucket; one that has none gets a stale one, or else the one that was seen less often."""
    found = find(state, hash_)  # there may be one since: of two contexts of a byte with one hash
    if found is not None:
        return found
    table, now = state.table, int(state.counts[0])
    one = hash_ >> 64 - state.bits
    other = one ^ 1
    # Visits of the first node (4 bits) say how often a bucket's context came. Example: the first place was visited 9
    # times, the other 2 times, both in this generation: the other goes, and with it what it knew.
    stale, other_stale = (int(table[each, 0]) >> 16 != now for each in (one, other))
    fewer = int(table[one, 1]) & 15 <= int(table[other, 1]) & 15
    taken = one if stale or (not other_stale and fewer) else other
    table[taken] = 0
    table[taken, 0] = _head(state, hash_)
    return taken


def _head(state: State, hash_: int) -> int:
    return hash_ & 0xFFFF | int(state.counts[0]) << 16


def learn_map(state: State, maps: NDArray[np.uint32], at: int | tuple[int, int, int], bit: bool | int) -> None:
    """A bit in what visits and probability, or a match's length, stand for."""
    value = int(maps[at])
    count, p = value & 1023, value >> 10
    p += ((4194303 if bit else 0) - p) * int(state.map_rate[count]) >> 16
    maps[at] = p << 10 | min(count + 1, 1023)


def correction_of(slot: int) -> int:
    """The upper 12 bits of a slot, signed."""
    return (slot >> 20 ^ 0x800) - 0x800  # 0xFFF is −1


def learn_slots(
    state: State, places: list[tuple[int, int]], bit: int, chance: int, corrected: np.float32 | None
) -> None:
    """A bit in the slots of all contexts, which are all read before any is written. By ``chance`` those of many visits
    count one more.
    """
    for c, (place, slot) in enumerate([(place, int(state.table[place])) for place in places]):
        seen, w = slot & 15, correction_of(slot)
        p = slot >> 4 & 65535 if seen else 32768
        if seen:
            learn_map(state, state.maps, (c, seen, int(state.bins[p >> 4])), bit)
        # the first visit moves p by 1/1.6 of the way, the next by 1/2.6, … to the last by 1 part of the most visits and
        # 1.6: a mean at first, and then one that forgets
        p += ((65535 if bit else 0) - p) * int(state.slot_rate[seen]) >> 15
        # class 12 (64 visits) is followed by 13 (128): it rises where the last 6 bits of ``chance`` are 0
        seen = min(seen + (not int(state.level_gaps[seen]) & chance), 15)
        if corrected is not None:
            w += int(np.rint((F(bit) - corrected) * state.boost[seen]))
        state.table[place] = (min(2047, max(-2048, w)) & 0xFFF) << 20 | p << 4 | seen
