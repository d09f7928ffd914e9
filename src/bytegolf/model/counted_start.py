"""Tables of n-grams that start from counts: a row begins as the mean code of the tokens that followed its n-grams.

A code is a random vector of a row's width for each token of the alphabet. The mean of the codes of what followed an
n-gram is a linear sketch of its distribution of the next token, (Σ codes) / (n + κ): near 0 where it was hardly seen or
says nothing, near one token's code where that always follows. It costs an addition per n-gram, so all of the training
text can be counted in the time of a few steps, of which a short training reads a part only.

What a row says of a text in which it was counted is too good: an n-gram that occurs once *is* followed by what follows
it. So the text is cut into folds, and a sequence in training sees the rows as they are without its own fold:

    row as trained + (Σ of the other folds / (n of these + κ) − Σ of all / (n of all + κ))

The second part is kept for each fold, and no gradient moves it. Outside training a row is what it is. (The idea of
leaving out is that of cross-fitting, and of deleted estimation in n-gram models: Jelinek and Mercer 1980.)

Legend: T tokens, N lengths of n-grams, V alphabet, E width of a row, M rows of all tables, F folds, B sequences.
"""

from __future__ import annotations

import functools
import itertools
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from bytegolf.model.embed import MIXER, NOTHING, NgramEmbedding, ngram_powers
from bytegolf.ops.code_sums import add_code_sums

DOUBT = 1.0
"""κ: how often a row counts as having been seen with nothing behind it."""

PIECE = 1 << 20
"""Tokens that are counted at a time."""


@runtime_checkable
class Text(Protocol):
    """The training split."""

    def __len__(self) -> int: ...

    def slice(self, start: int, stop: int) -> NDArray[np.uint16]:
        """The tokens from ``start`` up to ``stop``."""


def fold_of(starts: Int[Tensor, " B"], length: int, folds: int) -> Int[Tensor, " B"]:
    """The fold in which the sequences begin that lie at ``starts`` of a text of ``length`` tokens.

    A sequence that reaches into the next fold sees what was counted there: F − 1 of an epoch's sequences may.
    """
    return starts * folds // length


def count(ngrams: NgramEmbedding, text: Text, alphabet: int, reset_at_bos: bool, fresh: bool) -> None:
    """Give ``ngrams`` what it leaves out of each fold of ``text`` and, if ``fresh``, its first rows.

    (why) On the CPU wherever the model is: a GPU adds up in any order, and ranks would begin with different rows.
    """
    config, table = ngrams.config, ngrams.table
    codes, powers = _codes(text, alphabet, ngrams.lengths, config.dim), ngram_powers(config.longest)
    sums = [torch.zeros(table.shape) for _ in range(config.folds)]
    seen = [torch.zeros(len(table)) for _ in sums]
    bounds = [-(-len(text) * fold // config.folds) for fold in range(config.folds + 1)]
    bos = ngrams.bos if reset_at_bos else NOTHING - 1
    for fold, (first, end) in enumerate(itertools.pairwise(bounds)):
        for start in range(first, end, PIECE):  # n-grams do not reach from one piece into the next
            ids = torch.from_numpy(text.slice(start, min(start + PIECE, end)).astype(np.int64))
            rows = functools.partial(ngrams.rows, reset_at_bos=reset_at_bos)
            add_code_sums(sums[fold], seen[fold], ids, codes, powers, MIXER, bos, rows)
    total, times = sum(sums[1:], sums[0].clone()), sum(seen[1:], seen[0].clone())
    mean = total / (times + DOUBT).unsqueeze(1)
    # A row of two folds: fold 0 saw it 3 times with codes that sum to 6, fold 1 once with 4. Without doubt (DOUBT = 0)
    # its mean is 10/4, without fold 0 4/1 and without fold 1 6/3: what is left out is kept as differences to the mean,
    # +1.5 and −0.5, since text of fold 0 must not see what it itself taught the row.
    for part, n in zip(sums, seen, strict=True):
        part.neg_().add_(total).div_((times - n + DOUBT).unsqueeze(1)).sub_(mean)
    ngrams.left_out = torch.cat(sums).mul_(config.scale).to(table.device)
    if fresh:
        with torch.no_grad():
            table.copy_(mean.mul_(config.scale))


def _codes(text: Text, alphabet: int, lengths: int, width: int) -> Float[Tensor, "N V E"]:
    """A code for each token and length, whose elements have mean 0 and variance 1 over the text's beginning."""
    codes = torch.randn(lengths, alphabet, width, generator=torch.Generator().manual_seed(0))
    sample = text.slice(0, min(len(text), PIECE)).astype(np.int64)
    share = torch.from_numpy(np.bincount(sample, minlength=alphabet) / len(sample)).float()
    codes -= torch.einsum("v,nve->ne", share, codes).unsqueeze(1)
    return codes / torch.einsum("v,nve->ne", share, codes.square()).sqrt().unsqueeze(1)
