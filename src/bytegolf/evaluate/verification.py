"""A score verified: what a BPB claims without saying so, put to the test on the artifact as it would be shipped.

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
import itertools
import json
import math
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Int, UInt8, UInt32
from numpy.typing import NDArray
from rich.text import Text
from torch import Tensor

from bytegolf.artifact.export import training_text
from bytegolf.artifact.loading import LoadedModel, is_weights
from bytegolf.artifact.weights_file import WEIGHTS_FILE, write_weights
from bytegolf.bpb import Score
from bytegolf.config import CapacityMode, MixConfig, TttConfig
from bytegolf.data.dataset import TokenStream, open_split, validation_bytes
from bytegolf.data.tokenizer import ByteTokenizer, Tokenizer
from bytegolf.errors import BytegolfError
from bytegolf.evaluate.modes import MemoryStream, ScoringMode, watched
from bytegolf.evaluate.results import Check
from bytegolf.evaluate.score import Window
from bytegolf.files import lines_of
from bytegolf.infer.frequencies import Decoder, Encoder
from bytegolf.infer.streams import Mode, code_streams
from bytegolf.mixing.coding import BitCoder, code_byte
from bytegolf.mixing.frequencies import TOTAL, frequencies_of
from bytegolf.mixing.mixer import Mixer
from bytegolf.mixing.primer import Primer
from bytegolf.model.lm import Forward, LanguageModel
from bytegolf.model.trace import RouterTrace
from bytegolf.progress import Reporter

# -------------------------------------------------------------------------------------------------------- single checks


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


# ------------------------------------------------------------------------------------------------- a whole verification


CODED_MORE = 0.005
"""How much longer than claimed the code of a sample may be."""

PRIMED_SAMPLE = 256
"""Bytes of a validation document's beginning that are looked for in a primer."""

LAST_WORDS = 64
"""Bits that a range coder may need at its end."""

SAME_BPB = 1e-4
"""How far two scores of one artifact on the same tokens may differ."""

AGAIN = 8
"""How many times as many tokens as without overlap may be worked out for overlapping windows."""


@dataclass(frozen=True)
class Effort:
    """How much is tried."""

    cuts: int
    """places behind which the future is changed, besides those at the borders of windows"""
    places: int
    """distributions that are summed up"""
    streams: int
    """parts of the split that are coded"""
    tokens: int
    """tokens that are scored (0: the whole split); fewer where windows overlap, each token being worked out anew in
    every window, so that no more than ``AGAIN`` times as many are worked out"""

    def limit(self, seq_len: int, stride: int) -> int:
        """Tokens to score in windows of ``seq_len`` with ``stride`` new ones each (0: all are new)."""
        return min(self.tokens, AGAIN * stride * self.tokens // seq_len or 1) if stride else self.tokens


QUICK = Effort(cuts=4, places=16, streams=16, tokens=1 << 16)
THOROUGH = Effort(cuts=32, places=128, streams=128, tokens=0)


def verify(
    opened: LoadedModel,
    data: Path,
    effort: Effort = QUICK,
    *,
    claim: float | None = None,
    fresh: bool = True,
    reporter: Reporter | None = None,
) -> Iterator[Check]:
    """Check after check, on the validation split in ``data``, in the mode in which ``eval`` scores the artifact.

    ``claim`` is a BPB over the whole split that the score must come to, whatever ``effort`` says. Without ``fresh`` no
    other process is started.
    """
    model, tokenizer = opened.model, opened.tokenizer
    seq_len, stride = opened.config.train.seq_len, opened.config.eval.stride
    stream = open_split(data, tokenizer.name, "val", tokenizer.vocab_size)
    if len(stream) <= seq_len:
        raise BytegolfError(
            f"the validation split in {data} has {len(stream)} tokens, fewer than one sequence of {seq_len} and its "
            "last target: use a larger split"
        )
    tell = reporter.progress if reporter else (lambda text: None)
    sample = stream.slice(0, min(len(stream), 4 * seq_len + 1)).astype(np.int64)
    mixed = opened.config.eval.mix
    if isinstance(tokenizer, ByteTokenizer) and not mixed.on:
        mixed = dataclasses.replace(mixed, on=True, megabytes=1)  # what is tried does not depend on the room
    primer = opened.artifact.primer if opened.config.eval.mix.on and mixed.primer else None
    configured = dataclasses.replace(ScoringMode.configured(opened.config, primer), batch=1)
    # documents that are read side by side take rows as others end, so here one is read at a time
    configured = dataclasses.replace(configured, ttt=dataclasses.replace(configured.ttt, documents=1))
    tried = trials(model, seq_len, stride, mixed if mixed.on else None, primer)
    if configured.adapts:
        tried.append(Trial("as configured", configured, exact=False))
    for trial in tried:
        tell(f"changing the future: {trial.name}")
        # learning makes a try many times as long: there the borders of windows must do
        yield causality(model, tokenizer, sample, trial, 0 if trial.mode.in_order else effort.cuts)
    yield normalisation(model, tokenizer, sample, ScoringMode(seq_len, batch=1), effort.places)

    if mixed.on:
        yield mixed_normalisation(model, tokenizer, sample, ScoringMode(seq_len, batch=1, mix=mixed, primer=primer))
    if opened.artifact.primer and isinstance(tokenizer, ByteTokenizer):
        yield _primed(opened.artifact.primer, opened.config.export.primer, data, tokenizer)

    tell("scoring")
    limit = 0 if claim is not None else effort.limit(seq_len, stride)
    if configured.adapts:
        limit = limit // AGAIN
    counting = Counting(stream, tokenizer)
    mode = ScoringMode.configured(opened.config, primer)
    total = mode.score(model, stream, tokenizer, limit=limit, observer=lambda: counting.observe)
    yield counting.check(total, validation_bytes(data, tokenizer.name))
    tell("coding a sample")
    yield from _coded(opened, stream, effort.streams)
    if mixed.on:
        tell("coding it mixed")
        yield _coded_mixed(opened, sample, dataclasses.replace(configured, mix=mixed))
    if fresh:
        tell("scoring in a process of its own")
        yield _recomputed(opened, data, total, limit)
    if claim is not None:
        passed = abs(total.bpb - claim) <= SAME_BPB
        yield Check("as claimed", passed, f"{total.bpb:.6f} over the whole split, {claim:.6f} claimed")


class _Checked(Encoder):
    """An encoder that looks at every distribution first."""

    def __init__(self) -> None:
        super().__init__()
        self.distributions, self.wrong = 0, 0

    def code(self, frequencies: Int[np.ndarray, "R A"], symbols: Int[np.ndarray, " R"]) -> Int[np.ndarray, " R"]:
        self.distributions += len(frequencies)
        self.wrong += int(((frequencies.sum(1) != TOTAL) | (frequencies.min(1) < 1)).sum())
        return super().code(frequencies, symbols)


def _coded(opened: LoadedModel, stream: TokenStream, most: int) -> Iterator[Check]:
    """Code parts of the split by the model alone, over the whole alphabet, and decode them; what `eval` claims for
    these parts is what they may cost.
    """
    model, tokenizer = opened.model, opened.tokenizer
    mode = Mode(opened.config.train.seq_len, opened.config.eval.stride)
    scoring = ScoringMode(mode.window, mode.stride, batch=1)
    size = scoring.fitting(len(stream), windows=3 if mode.stride else 1)
    count = max(1, min(most, len(stream) // size))
    starts = np.linspace(0, len(stream) - size, count, dtype=np.int64)
    tokens = np.stack([stream.slice(int(start), int(start) + size) for start in starts])
    claimed = 0.0
    for part in tokens.astype(np.int64):
        claimed += scoring.score(model, MemoryStream(part), tokenizer).nats / math.log(2)

    precision, lengths = model.precision, np.full(count, size)
    model.precision = torch.float32  # as `compress` does: native steps are in fp32
    try:
        encoder = _Checked()
        code_streams(model, tokens.copy(), lengths, mode, encoder, 0)
        payload = encoder.payload()
        decoded = np.zeros_like(tokens)
        decoded[:, 0] = tokens[:, 0]  # a decoder knows no more than each stream's first token
        code_streams(model, decoded, lengths, mode, Decoder(payload), 0)
    finally:
        model.precision = precision
    yield Check(
        "frequencies",
        not encoder.wrong,
        f"{encoder.distributions:,} distributions of integers sum to 2^24 exactly, none below 1"
        + (f"; {encoder.wrong:,} do not" if encoder.wrong else ""),
    )
    bits = 8 * len(payload)
    more = bits / claimed - 1
    yield Check(
        "coded size",
        more <= CODED_MORE,
        f"{count * (size - 1):,} tokens take {bits:,} bits, {more:+.3%} of the {claimed:,.0f} claimed for them",
    )
    same = bool((decoded == tokens).all())
    yield Check("decoded", same, "every token came back" if same else "the decoded tokens are not those coded")


def _primed(primer: Primer, asked: int, data: Path, tokenizer: ByteTokenizer) -> Check:
    """Make the primer of ``asked`` bytes again, from the training split and nothing else, and look for the validation
    split's documents in it.
    """
    train, val = (open_split(data, tokenizer.name, split, tokenizer.vocab_size) for split in ("train", "val"))
    same = training_text(train, tokenizer, asked) == primer.text
    tokens = val.slice(0, len(val))
    starts = np.flatnonzero(tokens == tokenizer.BOS)
    found = 0
    for start, end in itertools.pairwise([*starts.tolist(), len(tokens)]):
        head = tokenizer.decode(tokens[start:end])[:PRIMED_SAMPLE]
        found += len(head) == PRIMED_SAMPLE and head in primer.text
    evidence = (
        f"{primer.size:,} bytes, " + ("those" if same else "NOT those") + f" that the training split in {data} gives"
    )
    return Check(
        "primer", same and not found, f"{evidence}; {found} of {len(starts):,} validation documents begin in it"
    )


def _coded_mixed(opened: LoadedModel, tokens: Int[np.ndarray, " N"], scoring: ScoringMode) -> Check:
    """Code some text with mixed probabilities, bit by bit, and decode it again, from nothing but the code and what the
    model said of each byte (which ``_coded`` decodes); it must take what its mixed score claims.
    """
    model, tokenizer, mix = opened.model, opened.tokenizer, scoring.mix
    assert isinstance(tokenizer, ByteTokenizer)
    offset = tokenizer.OFFSET
    seen: list[tuple[UInt32[np.ndarray, "n V"], Bool[np.ndarray, " n"]]] = []
    size = scoring.fitting(len(tokens), windows=3)

    def see(logits: Tensor, opens: Bool[np.ndarray, " n"]) -> None:
        seen.append((frequencies_of(logits, model.config.softcap), opens))

    claimed = scoring.score_shown(model, MemoryStream(tokens[:size]), tokenizer, see).nats / math.log(2)
    frequencies, opened_chunk = (np.concatenate(parts) for parts in zip(*seen, strict=True))
    wanted = np.arange(size - 1)[tokens[1:size] >= offset]
    special = np.delete(np.arange(size - 1), wanted)
    free = -np.log2(frequencies[special, tokens[1 + special]] / TOTAL).sum()
    free -= np.log2(1 - frequencies[wanted, :offset].sum(1) / TOTAL).sum()

    def code(coder: BitCoder, data: UInt8[np.ndarray, " n"]) -> UInt8[np.ndarray, " n"]:
        found = data.copy()
        mixer = Mixer.behind(scoring.primer, mix, length=size)
        for number, at in enumerate(range(size - 1)):
            mixer.begin(frequencies[at : at + 1, None, offset:], opened_chunk[at : at + 1])
            token = int(tokens[1 + at])  # a special one is not coded here: its cost is in ``free``
            if number in places:
                place = places[number]
                found[place] = code_byte(mixer, coder, int(data[place]))
                mixer.learn(found[place, None])
                token = int(found[place]) + offset
            if token == tokenizer.BOS and mix.reset == "document":
                mixer.begin_anew(scoring.primer)
        return found

    places = {int(at): place for place, at in enumerate(wanted)}
    data, encoder = (
        (tokens[1 + wanted] - offset).astype(np.uint8),
        BitCoder(16 * len(wanted) + 8),
    )  # a bit costs 16 at most
    code(encoder, data)
    payload = encoder.payload()
    assert payload is not None, "there is room for the dearest bits"
    same = bool((code(BitCoder(payload=payload), np.zeros_like(data)) == data).all())
    bits = 8 * len(payload) + free
    more = bits / claimed - 1
    evidence = f"{size - 1:,} tokens take {bits:,.0f} bits, {more:+.3%} of the {claimed:,.0f} of their mixed score"
    return Check(
        "coded size, mixed",
        same and bool(bits <= (1 + CODED_MORE) * claimed + LAST_WORDS),
        evidence + ("" if same else "; other bytes came back"),
    )


def _recomputed(opened: LoadedModel, data: Path, total: Score, limit: int) -> Check:
    """`eval` of a copy of the artifact, alone in a folder, by a new process."""
    with tempfile.TemporaryDirectory() as name:
        copy = Path(name) / ("artifact.bgolf" if not is_weights(opened.path) else WEIGHTS_FILE)
        if is_weights(opened.path):  # perhaps public ones, whose configuration lies elsewhere
            write_weights(copy, opened.artifact.state, opened.config, opened.artifact.tokenizer, opened.artifact.info)
        else:
            shutil.copyfile(opened.path, copy)
        beside = opened.path.parent / "tokenizer.model"
        if beside.exists():
            shutil.copyfile(beside, copy.parent / beside.name)
        precision = "bf16" if opened.model.precision == torch.bfloat16 else "fp32"
        device = opened.model.embedding.weight.device.type
        command = [sys.executable, "-m", "bytegolf", "eval", str(copy), "--data", str(data.resolve()), "--json"]
        command += ["--limit", str(limit), "--precision", precision, "--device", device]
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=name)
    if done.returncode:
        return Check("recomputed", False, f"`eval` of the artifact fails: {done.stderr.strip()[-300:]}")
    found = json.loads(lines_of(done.stdout)[-1])
    same = abs(found["bpb"] - total.bpb) <= SAME_BPB and found["tokens"] == total.tokens
    return Check(
        "recomputed",
        same,
        f"{found['bpb']:.6f} over {found['tokens']:,} tokens from the artifact alone in a new process, "
        f"{total.bpb:.6f} over {total.tokens:,} here",
    )


def verdict(check: Check) -> Text:
    """A check in a line: green or red on a terminal."""
    said = Text.assemble(("pass" if check.passed else "FAIL", "bold green" if check.passed else "bold red"))
    return said.append(f"  {check.name}: {check.evidence}", style="not bold")
