"""Tables that start from counts: a row is what followed its n-grams, and in training says nothing of its own fold."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from bytegolf.config import NgramConfig
from bytegolf.model import counted_start
from bytegolf.model.counted_start import DOUBT, count, fold_of
from bytegolf.model.embed import NOTHING, NgramEmbedding
from bytegolf.ops import native

FOLDS, LONGEST, ALPHABET, SCALE = 3, 4, 9, 0.5


class Text:
    """A text of few different tokens, in which n-grams recur."""

    def __init__(self, tokens: NDArray[np.uint16]) -> None:
        self.tokens = tokens

    def __len__(self) -> int:
        return len(self.tokens)

    def slice(self, start: int, stop: int) -> NDArray[np.uint16]:
        return self.tokens[start:stop]


def text(size: int = 100) -> Text:
    return Text(np.random.default_rng(0).integers(1, ALPHABET, size).astype(np.uint16))


def counted(given: Text, reset: bool = False) -> NgramEmbedding:
    config = NgramConfig(longest=LONGEST, bits=6, dim=5, start="counts", folds=FOLDS, scale=SCALE)
    torch.manual_seed(0)
    ngrams = NgramEmbedding(config, 8)
    count(ngrams, given, ALPHABET, reset, fresh=True)
    return ngrams


def means(ngrams: NgramEmbedding, given: Text, reset: bool, without: int | None) -> torch.Tensor:
    """What the table should be, one n-gram at a time; ``without`` a fold."""
    codes = counted_start._codes(given, ALPHABET, ngrams.lengths, 5)
    sums, seen = torch.zeros(ngrams.table.shape), torch.zeros(len(ngrams.table))
    bounds = [-(-len(given) * fold // FOLDS) for fold in range(FOLDS + 1)]
    for fold in set(range(FOLDS)) - {without}:
        part = given.tokens[bounds[fold] : bounds[fold + 1]].astype(np.int64)
        padded = torch.tensor([[NOTHING] * ngrams.context + part.tolist()])
        rows = ngrams.rows(padded, reset)[0]
        for at, following in enumerate(part[1:]):
            for n in range(ngrams.lengths):
                sums[rows[at, n]] += codes[n, following]
                seen[rows[at, n]] += 1
    return SCALE * sums / (seen + DOUBT).unsqueeze(1)


@pytest.mark.parametrize("reset", [False, True])
@pytest.mark.parametrize("plain", [False, True])
def test_rows_are_means_of_what_followed_with_and_without_each_fold(plain: bool, reset: bool) -> None:
    given = text()
    if plain:
        with native.disabled():
            ngrams = counted(given, reset)
    else:
        ngrams = counted(given, reset)
    torch.testing.assert_close(ngrams.table.detach(), means(ngrams, given, reset, None))
    assert ngrams.left_out is not None
    for fold, change in enumerate(ngrams.left_out.chunk(FOLDS)):
        torch.testing.assert_close(ngrams.table.detach() + change, means(ngrams, given, reset, fold))


def test_a_sequence_in_training_sees_nothing_of_its_own_fold() -> None:
    """Whatever follows its n-grams there: only the other folds' sequences change."""
    one, other = text(), text()
    other.tokens[70:] = other.tokens[70:][::-1].copy()  # the third fold, but for its first tokens
    ids = torch.tensor([[NOTHING] * (LONGEST - 1) + one.tokens[:30].tolist()] * FOLDS)
    found = []
    for each in (one, other):
        ngrams = counted(each)
        with ngrams.leaving_out(torch.arange(FOLDS)):
            found.append(ngrams(ids, False, torch.float32))
        assert not ngrams(ids, False, torch.float32).equal(found[-1]), "behind the context all folds are seen"
    codes = [counted_start._codes(each, ALPHABET, LONGEST - 1, 5) for each in (one, other)]
    assert codes[0].equal(codes[1]), "they have the same tokens"
    torch.testing.assert_close(found[0][2], found[1][2])
    for fold in (0, 1):
        assert (found[0][fold] - found[1][fold]).abs().max() > 1e-3


def test_a_sequence_belongs_to_the_fold_in_which_it_begins() -> None:
    starts = torch.tensor([0, 33, 34, 66, 67, 99])
    assert fold_of(starts, 100, FOLDS).tolist() == [0, 0, 1, 1, 2, 2]
