"""Hash embeddings: tables of vectors that are looked up by the hash of what came before a position or a chunk.

- ``NgramEmbedding``: each position also looks up vectors of the n-grams that end at it. After BLT (Pagnoni et al.,
  arXiv 2412.09871, section 3.2.1), where a rolling hash of the last n bytes picks a row of a table for each n. Ours are
  concatenated and pass through one linear map, so that rows can be narrow.
- ``ChunkHashEmbedding`` (ours): each chunk's vector also looks up the chunk that ended before it, as a whole. A chunk's
  start sees the bytes behind it through n-grams of a few fixed lengths, which begin anywhere and which a longer chunk
  outruns. Where boundaries fall in the same places of the same text, as a learned router's do, chunks recur, and a
  table of them is a vocabulary that nobody had to write down.

Legend: B batch, L positions, N lengths of n-grams (2 … longest), E width of a row, D width of the network, C chunks.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from bytegolf.config import ChunkHashConfig, NgramConfig
from bytegolf.model.layers import Linear, declare
from bytegolf.ops import native
from bytegolf.ops.rms_norm import NORM_EPS

BOS = 1
"""Id of the token that starts a document (formats.md), where ``ModelConfig.bos`` says nothing else."""

NOTHING = -1
"""What stands for the tokens before the first."""

BASE = 1_000_003
"""Base of the polynomial hash."""

MIXER = -7_046_029_254_386_353_131
"""2⁶⁴/φ, odd, as a signed integer: Fibonacci hashing takes the highest bits of a key's product with it."""


def hashed(key: Int[Tensor, "*B"], bits: int) -> Int[Tensor, "*B"]:
    """A number of ``bits`` bits for each key."""
    return ((key * MIXER) >> (64 - bits)) & ((1 << bits) - 1)


class RowTable(nn.Module):
    """A table of vectors, of which a batch looks up few. It starts at zero: what was never seen adds nothing.

    With ``sparse_gradients`` the table's gradient holds the rows of a batch only.
    """

    learning_rates: ClassVar = {"table": "ngram_lr"}

    def __init__(self, rows: int, dim: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.zeros(rows, dim))
        declare(self, "table", "table")
        self.sparse_gradients = False
        self.dropout = dropout

    def look_up(
        self, rows: Int[Tensor, "*B"], corrections: Float[Tensor, "*B E"] | None = None
    ) -> Float[Tensor, "*B E"]:
        """The vectors of ``rows`` with ``corrections``.

        In training a share ``dropout`` is left out, corrections and all (what one alone says of the text is what it is
        to hide), and the others make up for it.
        """
        found = F.embedding(rows, self.table, sparse=self.sparse_gradients)
        if corrections is not None:
            found = found + corrections
        if not (self.training and self.dropout > 0):
            return found
        kept = torch.rand(rows.shape, device=rows.device) >= self.dropout
        return found * (kept / (1 - self.dropout)).unsqueeze(-1)


def row_tables(model: nn.Module) -> list[RowTable]:
    """The tables in a model."""
    return [module for module in model.modules() if isinstance(module, RowTable)]


class NgramEmbedding(RowTable):
    """The sum over n of a learned map of ``tables[n][hash(last n ids)]``."""

    def __init__(self, config: NgramConfig, dim: int, bos: int = BOS) -> None:
        self.lengths = config.longest - 1
        super().__init__(self.lengths << config.bits, config.dim, config.dropout)
        self.config, self.bos = config, bos
        self.proj = Linear(self.lengths * config.dim, dim)
        self.left_out: Tensor | None = None
        """(F·M, E): what rows are without each of F folds of the training text, less what they are (counted_start)"""
        self._folds: Tensor | None = None

    @property
    def context(self) -> int:
        """How many ids before its own a position's n-grams reach back."""
        return self.config.longest - 1

    @contextlib.contextmanager
    def leaving_out(self, folds: Int[Tensor, " B"]) -> Iterator[None]:
        """Within the context sequences see the rows without the ``folds`` of the training text that they are from."""
        self._folds = folds
        try:
            yield
        finally:
            self._folds = None

    def rows(self, ids: Int[Tensor, "B M"], reset_at_bos: bool) -> Int[Tensor, "B L N"]:
        """The table's row for each n-gram that ends at one of the last L = M − context positions.

        An id of ``NOTHING`` stands before the first token; with ``reset_at_bos`` all ids before a BOS count as that.
        """
        # Each position's own id, then those before it. For the last position of "cats" and n-grams of up to 3: s t a,
        # each id plus 1, so that the id 0 counts too. The running sums of id·power are then keys of "s", "ts" and
        # "ats", of which the first is left to the embedding.
        back = ids.unfold(1, self.context + 1, 1).flip(-1) + 1
        if reset_at_bos:
            crossed = (back[..., :-1] == self.bos + 1).cumsum(-1) > 0
            back = torch.cat((back[..., :1], back[..., 1:].masked_fill(crossed, NOTHING + 1)), -1)
        powers = torch.tensor(ngram_powers(self.config.longest), device=ids.device)
        keys = (back * powers).cumsum(-1)[..., 1:]  # wraps around, as hashes do
        tables = torch.arange(self.lengths, device=ids.device) << self.config.bits
        return hashed(keys, self.config.bits) + tables

    def forward(self, ids: Int[Tensor, "B M"], reset_at_bos: bool, precision: torch.dtype) -> Float[Tensor, "B L D"]:
        """The embedding of the last L = M − context positions of ``ids`` in ``precision``."""
        rows = self.rows(ids, reset_at_bos)
        corrections = None
        if self.left_out is not None and self._folds is not None:
            corrections = F.embedding(rows + (self._folds * len(self.table)).view(-1, 1, 1), self.left_out)
        return self.proj(self.look_up(rows, corrections).flatten(-2).to(precision))


@functools.cache
def ngram_powers(number: int) -> tuple[int, ...]:
    """The powers of the hash's base, one for each id that it reaches."""
    powers = [1]
    while len(powers) < number:
        powers.append(powers[-1] * BASE % (1 << 62))
    return tuple(powers)


def embed_step(
    token: int,
    history: Int[Tensor, " H"],
    weight: Float[Tensor, "V D"],
    ngrams: NgramEmbedding | None,
    reset_at_bos: bool,
    dtype: torch.dtype,
) -> Float[Tensor, "1 1 D"]:
    """The norm of the embedding of ``token`` plus its n-grams, by one kernel; where ``native.one_position``.

    ``history`` is the H = context ids before it, the oldest first, and takes it in.
    """
    out = torch.empty(1, 1, weight.shape[1], dtype=dtype)
    tables: tuple[Tensor | None, ...] = (None, None)
    sizes = (0, 0, 0)
    if ngrams is not None:
        tables = (ngrams.table, ngrams.proj.weight)
        sizes = (ngrams.lengths, ngrams.config.bits, ngrams.config.dim)
    # (why) without the reset no id may count as a BOS: one below NOTHING stands for it, which is nobody's
    ids = (BASE, MIXER, NOTHING, ngrams.bos if ngrams is not None and reset_at_bos else NOTHING - 1)
    native.call("embed_step", out, weight, token, history, *tables, *ids, out, weight.shape[1], *sizes, NORM_EPS)
    return out


_WRAP = 1 << 64
_INVERSE = pow(BASE, -1, _WRAP)
"""What undoes a product with the hash's base, modulo 2⁶⁴."""


class ChunkHashEmbedding(RowTable):
    """A learned map of ``table[hash(the last whole chunk)]``."""

    def __init__(self, config: ChunkHashConfig, dim: int) -> None:
        super().__init__(1 << config.bits, config.dim, config.dropout)
        self.config = config
        self.proj = Linear(config.dim, dim)

    def follow(
        self,
        tokens: Int[Tensor, "B L"],
        boundary: Bool[Tensor, "B L"],
        first: Bool[Tensor, "B L"] | None = None,
        before: Int[Tensor, " B"] | None = None,
    ) -> tuple[Int[Tensor, "B L"], Int[Tensor, "B L"]]:
        """The hashes of the chunks that would have ended before each position, and of those so far with it.

        ``before`` is the hash of what came earlier, and 0 that of nothing (None: nothing did). Nothing ended before the
        ``first`` positions of documents (None: the sequences are one document each).
        """
        if before is None:
            before = tokens.new_zeros(len(tokens))
        keys = self._keys(tokens, boundary, before)
        ended = torch.cat((before.unsqueeze(1), keys[:, :-1]), 1)
        return ended if first is None else ended.masked_fill(first, 0), keys

    def _keys(
        self, tokens: Int[Tensor, "B L"], boundary: Bool[Tensor, "B L"], before: Int[Tensor, " B"]
    ) -> Int[Tensor, "B L"]:
        """Σ (id_i + 1)·base^(t−i) over the positions i ≤ t of the chunk of t, modulo 2⁶⁴."""
        ids, carried = tokens + 1, before.unsqueeze(1) * BASE
        if tokens.shape[1] == 1:
            return torch.where(boundary, ids, ids + carried)
        # with the powers of an odd base, which have inverses, it is a difference of prefix sums
        up, down = (_powers(base, tokens.shape[1], tokens.device) for base in (BASE, _INVERSE))
        sums = (ids * down).cumsum(1)
        index = torch.arange(tokens.shape[1], device=tokens.device).expand(tokens.shape)
        start = torch.where(boundary, index, -1).cummax(1).values
        earlier = torch.where(start > 0, sums.gather(1, (start - 1).clamp(min=0)), 0)
        return (sums - earlier + torch.where(start < 0, carried, 0)) * up

    def forward(self, ended: Int[Tensor, "B C"], precision: torch.dtype) -> Float[Tensor, "B C D"]:
        """What is added to the vectors of chunks before which those of the hashes ``ended`` lie."""
        return self.proj(self.look_up(hashed(ended, self.config.bits)).to(precision))


def _powers(base: int, length: int, device: torch.device) -> Int[Tensor, " L"]:
    """base⁰ … base^(length−1) modulo 2⁶⁴."""
    factors = torch.full((length,), base - _WRAP if base >= _WRAP // 2 else base, device=device)
    factors[:1] = 1
    return factors.cumprod(0)
