"""Buckets of contexts in plain Python, as the kernel looks for them and takes them over.

A hash has two places, which differ in their last bit. A bucket is known by a part of its hash and by the generation of
the table: those of earlier generations count as empty.
"""

from __future__ import annotations

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
