"""Boundaries of soft chunking fitted, before training, to where tokens start: the first cure that PR #1191 names.

Over bytes a BPE tokenizer, trained here on the training text, says where they do; over subwords it is words that start.
Its own look ahead is no leak: what is fitted sees two positions, and is only where training begins.

Legend: B windows, L positions of a window, T tokens of a stream, D width.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Integer
from torch import Tensor

from bytegolf.data.bpe_boundaries import stream_starts, word_starts
from bytegolf.data.specs import parse_tokenizer, train_sentencepiece
from bytegolf.data.tokenizer import ByteTokenizer, SentencePieceTokenizer, Tokenizer
from bytegolf.errors import BytegolfError
from bytegolf.model.lm import LanguageModel
from bytegolf.model.soft_chunk import SoftLayer

TEXT_TOKENS = 500_000
"""The tokenizer is trained on so much of the text."""

WINDOW, WINDOWS = 256, 128
"""What b is fitted on: 32,768 positions."""

ITERATIONS = 60
"""Of L-BFGS, which has long converged by then."""

DECAY = 1e-4
"""Weight of the sum of the predictor's squares: where starts are separable, b would otherwise saturate."""


def bpe_starts(
    tokenizer: Tokenizer, ids: Integer[np.ndarray, " T"], text: Integer[np.ndarray, " X"], vocab: int
) -> Bool[np.ndarray, " T"]:
    """For each token of ``ids``, whether a token of BPE starts there, trained on ``text`` with ``vocab`` pieces; where
    the tokens are subwords themselves, whether a word does.
    """
    if isinstance(tokenizer, SentencePieceTokenizer):
        return word_starts(tokenizer, ids)
    spec = parse_tokenizer(f"sp{vocab}-identity")
    with tempfile.TemporaryDirectory() as folder:
        try:
            trained = train_sentencepiece(_documents(text), spec, Path(folder) / "bpe", threads=1)
        except BytegolfError as error:
            raise BytegolfError(
                f"the training text makes no BPE tokenizer of model.soft.bpe_vocab = {vocab} pieces: choose another "
                f"number, or leave out model.soft.init=bpe ({error})"
            ) from error
        return stream_starts(trained, ids)


def _documents(ids: Integer[np.ndarray, " X"]) -> Iterator[str]:
    """The texts of a stream of byte260 ids."""
    bytewise = ByteTokenizer()
    for part in np.split(ids, np.flatnonzero(ids == ByteTokenizer.BOS)):
        yield bytewise.decode(part).decode("utf-8", errors="ignore")


def fit_to_bpe(model: LanguageModel, tokenizer: Tokenizer, sample: Integer[np.ndarray, " X"]) -> list[float]:
    """Fit each layer's boundary predictor, in place, to the BPE boundaries of ``sample``, a window of tokens or more.

    A layer takes the output of the fitted layer before it. Returns each layer's share of positions on the right side
    of ½. Nothing is drawn.
    """
    assert model.soft is not None
    count = min(WINDOWS, len(sample) // WINDOW) or 1
    length = min(WINDOW, len(sample))
    ids = sample[: count * length].astype(np.int64)
    found = bpe_starts(tokenizer, ids, sample[:TEXT_TOKENS], model.config.soft.bpe_vocab)
    starts = torch.from_numpy(found).view(count, length)
    tokens = torch.from_numpy(ids).view(count, length)
    with torch.no_grad():
        x = model.look_up(tokens)
    shares = []
    for layer in model.soft.stack:
        shares.append(_fit(layer, x, starts))
        with torch.no_grad():
            first = torch.zeros_like(starts)
            first[:, 0] = True
            x, _ = layer(x, first)
    return shares


def _fit(layer: SoftLayer, x: Float[Tensor, "B L D"], starts: Bool[Tensor, "B L"]) -> float:
    """Logistic regression of ``starts``; the share of positions on the right side of ½."""
    nothing, wanted = torch.zeros_like(x[:, 0]), starts.to(x.dtype)
    parameters = [layer.get_parameter(name) for name in layer.boundary_names()]
    optimizer = torch.optim.LBFGS(parameters, max_iter=ITERATIONS, line_search_fn="strong_wolfe")

    def closure() -> float:
        optimizer.zero_grad()
        loss = F.binary_cross_entropy_with_logits(layer.logits(x, nothing)[:, 1:], wanted[:, 1:])
        loss = loss + DECAY * torch.stack([parameter.square().sum() for parameter in parameters]).sum()
        torch.autograd.backward(loss)
        return float(loss.detach())

    optimizer.step(closure)
    optimizer.zero_grad()
    with torch.no_grad():
        right = (layer.logits(x, nothing)[:, 1:] >= 0) == starts[:, 1:]
    return float(right.float().mean())
