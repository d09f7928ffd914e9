"""Log-likelihoods of texts, in batches: of continuations behind a context, and of whole texts; greedy continuations.

A context is read behind a BOS. Where both do not fit into a window of L tokens, the context loses its beginning. A
continuation that by itself is longer than a window is read in several, which score each of its tokens once:

    L = 4, context ^ a (^ is BOS), continuation b c d e f g h
    reads   ^ a b c      scores   b c d      as much as fits behind the context
            d e f g      scores   e f g h    the next L; the last window ends with the text and so reads all it can

Legend: L tokens of a window.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from bytegolf.api.model import Model
from bytegolf.bpb import Score
from bytegolf.data.tokenizer import ByteTokenizer
from bytegolf.errors import BytegolfError
from bytegolf.evaluate.modes import MemoryStream

Tokens = NDArray[np.int64]


class Continuation(NamedTuple):
    """What a model makes of a text behind another."""

    log_likelihood: float
    """nats"""
    greedy: bool
    """whether each token is the likeliest"""
    tokens: int


@dataclass(frozen=True)
class _Piece:
    """A forward pass of one text: the tokens that it reads, of which the last ones are followed by ``targets``."""

    text: int
    inputs: Tokens
    targets: Tokens


class Likelihood:
    """Asks a model. ``batch`` texts go through it at once, of similar lengths; equal questions are asked once."""

    def __init__(self, model: Model, batch: int = 16, length: int = 0) -> None:
        """``length`` is how many tokens a window reads; 0: as many as in training.

        Raises BytegolfError for a batch below 1 or a length below 2.
        """
        if batch < 1 or length < 0 or length == 1:
            raise BytegolfError(f"batch {batch} and length {length}: give a batch of 1 or more, and 2 or more tokens")
        self.model, self.batch = model, batch
        self.length = length or model.config.train.seq_len

    # ------------------------------------------------------------------------------------------ continuations

    def pair(self, context: str, continuation: str) -> tuple[Tokens, Tokens]:
        """The tokens of a context, BOS first, and of what follows it.

        Subwords are those of the whole text, less those of the context by itself; spaces at the context's end belong to
        what follows, as pieces begin with theirs. Bytes are bytes.
        """
        tokenizer = self.model.tokenizer
        bos = np.array([tokenizer.BOS], np.int64)
        if isinstance(tokenizer, ByteTokenizer):
            before, after = (tokenizer.encode(text).astype(np.int64) for text in (context, continuation))
            return np.concatenate((bos, before)), after
        stripped = context.rstrip(" ")
        whole = tokenizer.encode(context + continuation).astype(np.int64)
        count = len(tokenizer.encode(stripped)) if stripped else 0
        return np.concatenate((bos, whole[:count])), whole[count:]

    def continuations(self, pairs: Sequence[tuple[str, str]]) -> list[Continuation]:
        """Of each (context, continuation), in their order; an empty continuation has the log-likelihood 0."""
        distinct = list(dict.fromkeys(pairs))
        found = dict(zip(distinct, self.of_tokens([self.pair(*each) for each in distinct]), strict=True))
        return [found[each] for each in pairs]

    def of_tokens(self, pairs: Sequence[tuple[Tokens, Tokens]]) -> list[Continuation]:
        """The same for tokens; a context has one at least."""
        pieces = [_Piece(at, *each) for at, pair in enumerate(pairs) for each in self._windows(*pair)]
        pieces.sort(key=lambda piece: (-len(piece.inputs), piece.text))
        nats, greedy = np.zeros(len(pairs)), np.ones(len(pairs), np.bool_)
        with self.model.module.capacity("exact"):  # a fixed one is a share of a window that is full
            for start in range(0, len(pieces), self.batch):
                some = pieces[start : start + self.batch]
                for piece, (loss, likeliest) in zip(some, self._scores(some), strict=True):
                    nats[piece.text] += loss
                    greedy[piece.text] &= likeliest
        sizes = [len(after) for _, after in pairs]
        return [Continuation(*each) for each in zip((-nats).tolist(), greedy.tolist(), sizes, strict=True)]

    def _windows(self, before: Tokens, after: Tokens) -> Iterator[tuple[Tokens, Tokens]]:
        """Inputs and targets of each window."""
        whole, done = np.concatenate((before, after)), len(before)
        size = len(whole)
        while done < size:
            if len(after) <= self.length:
                end = size
            elif done == len(before):  # a long context keeps half of the first window
                end = max(self.length + 1, done + self.length // 2)
            else:
                end = min(size, done + self.length)
            yield whole[max(0, end - 1 - self.length) : end - 1], whole[done:end]
            done = end

    @torch.inference_mode()
    def _scores(self, pieces: Sequence[_Piece]) -> list[tuple[float, bool]]:
        """The nats of each piece's targets, and whether all of them are the likeliest."""
        module, device = self.model.module, self.model.device
        ids = np.full((len(pieces), max(len(piece.inputs) for piece in pieces)), self.model.tokenizer.PAD, np.int64)
        for row, piece in enumerate(pieces):
            ids[row, : len(piece.inputs)] = piece.inputs  # padding comes last, where nothing before it looks
        logits = module.cap(module(torch.from_numpy(ids).to(device)).logits)
        found = []
        for row, piece in enumerate(pieces):
            end = len(piece.inputs)
            log_probs = torch.log_softmax(logits[row, end - len(piece.targets) : end].double(), -1)
            targets = torch.from_numpy(piece.targets).to(device)
            nats = -log_probs.gather(1, targets.unsqueeze(1)).sum()
            found.append((float(nats), bool((log_probs.argmax(1) == targets).all())))
        return found

    # ------------------------------------------------------------------------------------------ whole texts

    def rolling(self, texts: Iterable[str], **mode: Any) -> list[Score]:
        """The score of each text by itself, behind a BOS: every token once, none dropped.

        ``mode`` are changes of the mode in which the model is evaluated (``ScoringMode``: stride, capacity, …). A text
        that fits into one window is read in one; the last window of a longer one ends with the text.
        """
        return [self._rolling(text, mode) for text in texts]

    def _rolling(self, text: str, changes: dict[str, Any]) -> Score:
        tokenizer = self.model.tokenizer
        tokens = np.concatenate(([tokenizer.BOS], tokenizer.encode(text))).astype(np.int64)
        if len(tokens) == 1:
            return Score()
        mode = self.model.mode(**{"seq_len": self.length, "tail": "score", **changes})
        size = min(mode.seq_len, len(tokens) - 1)
        mode = self.model.mode(**{**vars(mode), "seq_len": size, "stride": min(mode.stride, size)})
        return mode.score(self.model.module, MemoryStream(tokens), tokenizer)

    # ------------------------------------------------------------------------------------------ generation

    def generate(
        self, prompts: Sequence[str], until: Sequence[str], size: int, temperature: float = 0.0, top_p: float = 1.0
    ) -> list[str]:
        """A continuation of each prompt of up to ``size`` bytes, which ends before the first of ``until``.

        A prompt that would not leave ``size`` tokens of a window loses its beginning.
        """
        found: list[str] = []
        for start in range(0, len(prompts), self.batch):
            some = [self._fitting(prompt, size) for prompt in prompts[start : start + self.batch]]
            found += self._generate(some, [stop for stop in until if stop], size, temperature, top_p)
        return found

    def _fitting(self, prompt: str, size: int) -> str:
        room = max(1, self.length - size - 1)
        if len(self.model.tokenizer.encode(prompt)) <= room:
            return prompt
        if isinstance(self.model.tokenizer, ByteTokenizer):
            return prompt.encode()[-room:].decode(errors="ignore")
        while len(self.model.tokenizer.encode(prompt)) > room:
            prompt = prompt[math.ceil(len(prompt) / 64) :]
        return prompt

    def _generate(
        self, prompts: Sequence[str], until: Sequence[str], size: int, temperature: float, top_p: float
    ) -> list[str]:
        texts, stopped = [b""] * len(prompts), [False] * len(prompts)
        stops = [stop.encode() for stop in until]
        drawn = self.model.generate_bytes(prompts, range(len(prompts)), size, temperature, top_p)
        for at, piece in drawn:
            if not stopped[at]:
                texts[at] += piece
                hits = [where for stop in stops if (where := texts[at].find(stop)) >= 0]
                if hits:
                    texts[at], stopped[at] = texts[at][: min(hits)], True
                    if all(stopped):
                        break
        return [text.decode(errors="ignore") for text in texts]
