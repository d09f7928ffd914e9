"""What a score in bits per byte claims without saying so, put to the test by experiment.

- Causality: whatever is done to the tokens behind a position, the distributions up to it stay the same, bit for bit.
  Each distribution is compared whole: a model that looks one token ahead shows even where it changes no earlier loss.
- Normalisation: the probabilities that the losses stand for sum to 1 over all tokens.
- Counting: each target is scored once, and the bytes are those of the text.

All of it watches ``evaluate.score`` itself: the logits are those that its losses are made of, the windows those that
it reads.

Bit for bit needs sums in one order, and that depends on shapes. How many chunks a text has is a shape, unless there is
room for as many as positions: a fixed capacity with divisor 1, which truncates nothing. There, and under a real fixed
capacity, equality is exact. Under the exact and bucketed capacities the same sums are taken in shapes that depend on
the text, so there they are only compared up to rounding.

Legend: N tokens.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Int
from numpy.typing import NDArray
from torch import Tensor

from bytegolf.bpb import Score
from bytegolf.config import CapacityMode, MixConfig, TttConfig
from bytegolf.data.shards import TokenStream
from bytegolf.data.tokenizer import Tokenizer
from bytegolf.errors import BytegolfError
from bytegolf.evaluate.modes import MemoryStream, ScoringMode, watched
from bytegolf.evaluate.results import Check
from bytegolf.evaluate.windows import Window
from bytegolf.mixing.primer import Primer
from bytegolf.model.lm import Forward, LanguageModel
from bytegolf.model.trace import RouterTrace

LEARNING: tuple[Literal["lora", "sgd"], ...] = ("lora", "sgd")
"""Kinds of test-time training that are tried."""

ROUNDING = {torch.float64: 1e-9, torch.float32: 1e-3, torch.bfloat16: 0.5}
"""How far a logit may move where shapes depend on the text, by the compute dtype."""

MIXED_NORMALISED = 1e-9
"""The same of a mixed distribution: products of integers, in fp64."""

NORMALISED = 1e-4
"""How far the sum of all probabilities may lie from 1: a softmax in fp32 is within 1e-5."""


# ------------------------------------------------------------------------------------------------------ causality


@dataclass(frozen=True)
class Trial:
    """A mode of scoring in which the future is changed."""

    name: str
    mode: ScoringMode
    exact: bool = True
    """whether shapes do not depend on the text, so that equality is bit for bit"""


def trials(
    model: LanguageModel, seq_len: int, stride: int = 0, mix: MixConfig | None = None, primer: Primer | None = None
) -> list[Trial]:
    """Every mode in which ``model`` can be scored: without overlap and with (``stride`` tokens per window, or a quarter
    of one), in one pass, in each capacity that it can have, with test-time training, and all of these mixed as ``mix``
    says (None: never), by contexts that have read ``primer``.
    """
    overlap = stride if 0 < stride < seq_len else max(1, seq_len // 4)
    plain, sliding = ScoringMode(seq_len, batch=1), ScoringMode(seq_len, overlap, batch=1)
    named = (("plain", plain), (f"sliding, stride {overlap}", sliding))
    # any receptive field shows whether one reaches ahead: half a window of bytes, an eighth of as many chunks, …
    fields = tuple(max(1, seq_len // (2 * 4**depth)) for depth in range(1 + len(model.levels())))
    at_once = ScoringMode(2 * seq_len, seq_len, batch=1, receptive_field=fields)

    def all_chunks(mode: ScoringMode) -> ScoringMode:
        return dataclasses.replace(mode, capacity="fixed", capacity_divisor=1.0) if model.levels() else mode

    adapting = [
        Trial(
            f"learning from what was scored ({kind}), stride {overlap}",
            dataclasses.replace(all_chunks(sliding), ttt=TttConfig(mode=kind, chunk=overlap, reset="never")),
        )
        for kind in LEARNING
    ]
    adapting.append(Trial("one pass", all_chunks(at_once)))
    if mix:
        mixed = [
            ("mixed", plain),
            (f"mixed, stride {overlap}", sliding),
            *((f"mixed, {one.name}", one.mode) for one in adapting),
        ]
        mixed = [(name, dataclasses.replace(mode, mix=mix, primer=primer)) for name, mode in mixed]
        adapting += [Trial(name, all_chunks(mode)) for name, mode in mixed]
    if not model.levels():
        return [*(Trial(name, mode) for name, mode in named), *adapting]
    found = [Trial(f"{name}, room for all chunks", all_chunks(mode)) for name, mode in named]
    shapes: list[tuple[str, ScoringMode, CapacityMode]] = [(*one, "exact") for one in named]
    for name, mode, capacity in (*shapes, (*named[0], "bucketed")):
        found.append(Trial(f"{name}, {capacity} capacity", dataclasses.replace(mode, capacity=capacity), exact=False))
    if not model.config.reset_at_bos:
        divisor = model.levels()[0].capacity.divisor
        for name, mode in named:
            fixed = dataclasses.replace(mode, capacity="fixed", capacity_divisor=divisor)
            found.append(Trial(f"{name}, fixed capacity 1/{divisor:g}", fixed))
    return found + adapting


def causality(
    model: LanguageModel, tokenizer: Tokenizer, tokens: Int[np.ndarray, " N"], trial: Trial, cuts: int
) -> Check:
    """Replace, delete from and shuffle what lies behind each of some places: no distribution before may change.

    ``cuts`` places at random, half of them at odd tokens, and the two at the end of the first window.
    """
    mode = trial.mode
    tokens = tokens[: mode.fitting(len(tokens))]
    chance = np.random.Generator(np.random.PCG64(len(tokens)))
    last = len(tokens) - 2
    border = [mode.seq_len - 1, mode.seq_len]
    drawn = 2 * chance.integers(0, max(1, last // 2), cuts) + np.arange(cuts) % 2
    places = sorted({int(at) for at in (*drawn, *border) if 0 <= at < last})
    before = mode.target_logits(model, tokens, tokenizer)
    worst, changed, where = 0.0, 0, ""
    for at in places:
        for name, future in _futures(tokens[at + 1 :], model.config.vocab_size, chance):
            after = mode.target_logits(model, np.concatenate((tokens[: at + 1], future)), tokenizer)
            moved = _difference(before[: at + 1], after[: at + 1])
            if moved > worst:
                worst, where = moved, f"{name} behind token {at}"
            changed += bool((before[at + 1 :] != after[at + 1 :]).any())
    tried = 3 * len(places)
    limit = 0.0 if trial.exact else ROUNDING[model.precision]
    # a model that reads nothing would pass: the future's own distributions must have changed, but for shuffled repeats
    alive = changed > tried // 2
    how = "bit for bit" if not worst else f"up to {worst:.2g} (largest: {where})"
    evidence = f"{tried} futures changed, {3 * (sum(places) + len(places)):,} earlier distributions the same {how}"
    if moved_too_far := worst > limit:
        evidence = f"the future moves earlier distributions by up to {worst:.2g}, most when it is {where}"
    if not alive:
        evidence = f"only {changed} of {tried} changes of the future changed anything at all"
    return Check(f"causal: {trial.name}", alive and not moved_too_far, evidence)


def _futures(
    future: Int[np.ndarray, " N"], vocab_size: int, chance: np.random.Generator
) -> Iterator[tuple[str, Int[np.ndarray, " N"]]]:
    """Other tokens in the place of ``future``, as many."""
    # another token at every place: the first one's neighbour in the alphabet above all
    yield "replaced", (future + chance.integers(1, vocab_size, len(future))) % vocab_size
    cut = min(len(future), 1 + int(chance.integers(0, 3)))
    yield "deleted", np.concatenate((future[cut:], chance.integers(0, vocab_size, cut)))
    yield "shuffled", chance.permutation(future)


def _difference(a: Tensor, b: Tensor) -> float:
    """The largest difference; 0 only if the two are the same bits, and infinite where one is not a number."""
    if torch.equal(a, b):
        return 0.0
    return float((a.double() - b.double()).abs().nan_to_num(nan=float("inf")).max()) or 1e-300


# -------------------------------------------------------------------------------------------------- normalisation


def normalisation(
    model: LanguageModel, tokenizer: Tokenizer, tokens: Int[np.ndarray, " N"], mode: ScoringMode, places: int
) -> Check:
    """The model's own loss is asked for every token of the alphabet at some places: Σ exp(−loss) must be 1."""
    seen: list[Forward] = []
    with watched(model, seen.append):
        mode.score(model, MemoryStream(tokens[: mode.seq_len + 1]), tokenizer)
    logits = seen[0].logits
    at = torch.linspace(0, logits.shape[1] - 1, min(places, logits.shape[1])).long()
    out, total = Forward(logits[:1, at], []), torch.zeros(len(at), dtype=torch.float64)
    with torch.inference_mode():
        for token in range(model.config.vocab_size):
            targets = torch.full((1, len(at)), token, device=logits.device)
            total += torch.exp(-model.losses(out, targets)[0].double()).cpu()
    worst = _difference(total, torch.ones_like(total))
    return Check(
        "normalised",
        worst <= NORMALISED,
        f"Σp over all {model.config.vocab_size} tokens at {len(at)} places is 1 ± {worst:.1g}",
    )


def mixed_normalisation(
    model: LanguageModel, tokenizer: Tokenizer, tokens: Int[np.ndarray, " N"], mode: ScoringMode
) -> Check:
    """Every mixed distribution of a window must sum to 1, and give each token something."""
    found = mode.target_logits(model, tokens[: mode.seq_len + 1], tokenizer).exp()
    worst = float((found.sum(1) - 1).abs().max())
    return Check(
        "normalised, mixed",
        worst <= MIXED_NORMALISED and float(found.min()) > 0,
        f"Σp over all {found.shape[1]} tokens at {len(found):,} places is 1 ± {worst:.1g}, none below "
        f"{float(found.min()):.1g}",
    )


# ------------------------------------------------------------------------------------------------------- counting


class Counting:
    """Watches ``evaluate.score`` for which targets it scores."""

    def __init__(self, stream: TokenStream, tokenizer: Tokenizer) -> None:
        self._stream, self._tokenizer = stream, tokenizer
        self._times = np.zeros(len(stream) - 1, np.int64)
        self._bytes = 0

    def observe(self, window: Window, tokens: NDArray[np.int64], traces: list[RouterTrace], row: int) -> None:
        """An ``Observer``."""
        tokens = tokens[: len(tokens) - window.blank]
        start, counted = window.start + window.length - window.scored, window.scored - window.blank
        self._times[start : start + counted] += 1
        self._bytes += len(self._tokenizer.decode(tokens[-counted:], int(tokens[-counted - 1])))
        if (tokens != self._stream.slice(window.start, window.start + len(tokens))).any():
            raise BytegolfError("the score read other tokens than its windows say")

    def check(self, total: Score, original: int | None) -> Check:
        """Whether ``total`` counts what was seen, each target once, and the split's bytes are ``original``'s (known for
        byte tokens, which do not normalise).
        """
        scored = int((self._times > 0).sum())
        ends = int(np.flatnonzero(self._times)[-1]) + 1 if scored else 0
        wrong = []
        if self._times.max(initial=0) > 1:
            wrong.append(f"{int((self._times > 1).sum()):,} targets are scored more than once")
        if scored < ends:
            wrong.append(f"{ends - scored:,} targets before the last are left out")
        if total.tokens != self._times.sum():
            wrong.append(f"{total.tokens:,} tokens are claimed")
        if total.bytes != self._bytes:
            wrong.append(f"{total.bytes:,} bytes are claimed, and the scored tokens decode to {self._bytes:,}")
        whole = self._stream.slice(0, len(self._stream))
        counted = int(self._tokenizer.byte_counts(whole[1:], whole[:-1]).sum())
        decoded = len(self._tokenizer.decode(whole[1:], int(whole[0])))
        if counted != decoded:
            wrong.append(f"{counted:,} bytes are counted in the split, which decodes to {decoded:,}")
        if original is not None and self._tokenizer.kind == "byte" and decoded != original:
            wrong.append(f"the split decodes to {decoded:,} bytes, and its documents have {original:,}")
        seen = f"{scored:,} targets scored once each, {self._bytes:,} bytes; {len(self._times) - scored:,} not scored"
        return Check("counted once", not wrong, f"{seen}; " + "; ".join(wrong) if wrong else seen)
