"""Hash embeddings of n-grams and of whole chunks, as the package defines them (after BLT, arXiv 2412.09871)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from specified_transformer import Matrix, Vector

BOS = 1
"""The id that begins a document."""
HASH_BASE = 1_000_003
HASH_MIXER = 11_400_714_819_323_198_485
"""⌊2⁶⁴/φ⌋, odd: Fibonacci hashing."""


def hash_row(key: int, bits: int) -> int:
    """The highest ``bits`` bits of key·MIXER mod 2⁶⁴: a row of a table of 2^bits."""
    return (key * HASH_MIXER % 2**64) >> (64 - bits)


@dataclass(frozen=True)
class Ngrams:
    """Embeddings of the n-grams, 2 ≤ n ≤ longest, that end at a position."""

    longest: int
    bits: int
    table: Matrix  # ((longest − 1)·2^bits, E): the bigrams' rows first
    w: Matrix  # (D, (longest − 1)·E)


@dataclass(frozen=True)
class ChunkHash:
    """Embeddings of whole chunks."""

    bits: int
    table: Matrix  # (2^bits, E)
    w: Matrix  # (D_main, E)


def ngram_key(ids: Sequence[int], t: int, n: int, reset_at_bos: bool) -> int:
    """Σ_{j<n} (id_{t−j} + 1)·(base^j mod 2⁶²); tokens before the first, or before the document's BOS, add 0."""
    key = 0
    for j in range(n):
        if t - j < 0:
            break
        key += (ids[t - j] + 1) * (pow(HASH_BASE, j) % 2**62)
        if reset_at_bos and ids[t - j] == BOS:
            break
    return key % 2**64


def ngram_embedding(ngrams: Ngrams, ids: Sequence[int], t: int, reset_at_bos: bool) -> Vector:
    """W·[the row of each n-gram that ends at t, from the bigram on]."""
    rows = []
    for n in range(2, ngrams.longest + 1):
        row = hash_row(ngram_key(ids, t, n, reset_at_bos), ngrams.bits)
        rows.append(ngrams.table[(n - 2) * 2**ngrams.bits + row])
    return ngrams.w @ np.concatenate(rows)  # type: ignore[no-any-return]


def ended_chunks(ids: Sequence[int], boundary: Sequence[bool], starts: Sequence[bool]) -> list[int]:
    """At each chunk start the key of the chunk that ended before it, Σ_i (id_i + 1)·base^(last − i) mod 2⁶⁴.

    Where a document starts nothing has ended, which has the key 0.
    """
    found, key = [], 0
    for t in range(len(ids)):
        found.append(0 if starts[t] else key)
        key = ((0 if boundary[t] else key * HASH_BASE) + ids[t] + 1) % 2**64
    return found


def chunk_embedding(chunk_hash: ChunkHash, key: int) -> Vector:
    """W·(the row of a chunk)."""
    return chunk_hash.w @ chunk_hash.table[hash_row(key, chunk_hash.bits)]  # type: ignore[no-any-return]
