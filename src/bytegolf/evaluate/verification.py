"""Verify a score: every claim that a BPB makes, tested on the artifact as it would be shipped."""

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

import numpy as np
import torch
from jaxtyping import Bool, Int, UInt8, UInt32
from rich.text import Text
from torch import Tensor

from bytegolf.artifact.loading import LoadedModel
from bytegolf.artifact.opening import is_weights
from bytegolf.artifact.primer import training_text
from bytegolf.artifact.weights_file import WEIGHTS_FILE, write_weights
from bytegolf.bpb import Score
from bytegolf.data.manifest import validation_bytes
from bytegolf.data.shards import TokenStream, open_split
from bytegolf.data.tokenizer import ByteTokenizer
from bytegolf.errors import BytegolfError
from bytegolf.evaluate import checks
from bytegolf.evaluate.checks import Counting
from bytegolf.evaluate.modes import MemoryStream, ScoringMode
from bytegolf.evaluate.results import Check
from bytegolf.files import lines_of
from bytegolf.infer.frequencies import Decoder, Encoder
from bytegolf.infer.streams import Mode, code_streams
from bytegolf.mixing.coding import BitCoder, code_byte
from bytegolf.mixing.frequencies import TOTAL, frequencies_of
from bytegolf.mixing.mixer import Mixer
from bytegolf.mixing.primer import Primer
from bytegolf.progress import Reporter

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
    tried = checks.trials(model, seq_len, stride, mixed if mixed.on else None, primer)
    if configured.adapts:
        tried.append(checks.Trial("as configured", configured, exact=False))
    for trial in tried:
        tell(f"changing the future: {trial.name}")
        # learning makes a try many times as long: there the borders of windows must do
        yield checks.causality(model, tokenizer, sample, trial, 0 if trial.mode.in_order else effort.cuts)
    yield checks.normalisation(model, tokenizer, sample, ScoringMode(seq_len, batch=1), effort.places)

    if mixed.on:
        yield checks.mixed_normalisation(
            model, tokenizer, sample, ScoringMode(seq_len, batch=1, mix=mixed, primer=primer)
        )
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
