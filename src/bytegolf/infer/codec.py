"""Lossless compression of any bytes with a byte model, block by block.

A block's bytes are cut into streams of equal length that are coded side by side by one range coder; where that does not
make it smaller, the block is stored as it is. So memory is bounded by a block, and nothing grows by more than the
headers.

Both sides run one function (``code_streams``) and must get the same logits bit for bit. ``native_step.ExactModel``
gives these however tokens are grouped, so what is known, a text to encode, goes through it many positions at a time. A
model that it does not know goes through ``LanguageModel.step`` on both sides, on the same batches in the same order: a
forward pass over many tokens, or another number of sequences at once, would add up in another order.

The context is that of ``bytegolf eval``: windows of ``window`` tokens, each with a state of its own. Without ``stride``
a window begins with the token that the one before it ended with, and nothing else of the past. With ``stride`` it first
reads window − stride tokens again, in one call on both sides, and gives the distributions of the next ``stride``.

Legend: S streams, R of them that are still going, A symbols of the alphabet, L tokens (of the longest).
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt16
from torch import Tensor

from bytegolf.data.tokenizer import ByteTokenizer, byte_tokenizer
from bytegolf.errors import BytegolfError
from bytegolf.infer.format import BLOCK, Block, End, Header, Readable, Writable, damaged, read_part, read_up_to
from bytegolf.infer.frequencies import Coder, Decoder, Encoder, Mixture, probabilities
from bytegolf.infer.native_step import ExactModel, Stepper, stepper
from bytegolf.infer.numerics import MOST_THREADS, Numerics
from bytegolf.model.lm import LanguageModel

STATE_BYTES = 512_000_000
"""What the states of all streams may take."""

MOST_STREAMS = 256
"""Of them side by side a CPU's matrix products are no longer starved, and more would only take memory."""

AHEAD = 64
"""Positions of a known text that go through the model at once."""


@dataclass(frozen=True)
class Mode:
    """How much of the past a token's distribution depends on, as ``eval`` has it."""

    window: int
    """tokens that a window reads: ``train.seq_len``"""
    stride: int = 0
    """new tokens of each window but a stream's first; 0 is ``window``, so that windows do not overlap"""

    def __post_init__(self) -> None:
        if not 0 <= self.stride <= self.window:
            raise BytegolfError(
                f"stride {self.stride} must lie between 1 and the sequence length {self.window}, or be 0 for windows "
                "without overlap"
            )

    @property
    def ahead(self) -> int:
        """Tokens that every window but the first reads before its first distribution."""
        return 1 + (self.window - self.stride if self.stride else 0)

    def windows(self, targets: int) -> Iterator[tuple[int, int, int]]:
        """For each window over streams of 1 + ``targets`` tokens: its first token, its first target, and the one
        behind its last.
        """
        done = 0
        while done < targets:
            start = max(0, done + 1 - self.ahead)
            end = min(targets, start + self.window)
            yield start, done + 1, end + 1
            done = end


@torch.inference_mode()
def code_streams(
    model: LanguageModel,
    tokens: UInt16[np.ndarray, "S L"],
    lengths: Int[np.ndarray, " S"],
    mode: Mode,
    coder: Coder,
    first_id: int,
    progress: Callable[[int], None] | None = None,
) -> None:
    """Code the tokens behind the first of each stream: an encoder reads them from ``tokens``, a decoder fills them in.

    ``lengths`` are the streams' tokens, the first included (1 to L each). The alphabet is the ids from ``first_id`` on.
    ``progress`` is called with the number of tokens coded since the last call.
    """
    mixture, runner = Mixture(len(tokens)), stepper(model)
    ahead = AHEAD if isinstance(coder, Encoder) and isinstance(runner, ExactModel) else 1
    for start, first, end in mode.windows(int(lengths.max()) - 1):
        live = np.flatnonzero(lengths > first)
        following = _following(model, runner, tokens, live, (start, first, end), mode.window, ahead)
        for at, logits in zip(range(first, end), following, strict=True):
            going = lengths[live] > at
            rows = live[going]
            p = probabilities(logits, first_id)[going]
            symbols = coder.code(mixture.frequencies(p, rows), tokens[rows, at].astype(np.int64) - first_id)
            mixture.learn(p[np.arange(len(rows)), symbols], p.shape[1], rows)
            tokens[rows, at] = symbols + first_id
            if progress:
                progress(len(rows))


def _following(
    model: LanguageModel,
    runner: Stepper,
    tokens: UInt16[np.ndarray, "S L"],
    live: Int[np.ndarray, " R"],
    span: tuple[int, int, int],
    window: int,
    ahead: int,
) -> Iterator[Float[Tensor, "R V"]]:
    """The logits of each target of a window (``span``: its first token, its first target, the one behind its last).

    A target's tokens are read once its logits are asked for: up to ``ahead`` of them at a time. A stream that is over
    stays until the window ends, with the zeros behind it on both sides.
    """
    start, first, end = span
    state = runner.start(len(live), window)
    yield runner.extend(_ids(model, tokens[live, start:first]), state)[:, -1]
    for at in range(first, end - 1, ahead):
        found = runner.extend(_ids(model, tokens[live, at : min(at + ahead, end - 1)]), state)
        yield from found.unbind(1)


def _ids(model: LanguageModel, tokens: UInt16[np.ndarray, "*S"]) -> Tensor:
    return torch.from_numpy(tokens.astype(np.int64)).to(model.embedding.weight.device)


def streams_for(model: LanguageModel, mode: Mode, size: int) -> int:
    """How many streams to cut ``size`` tokens into: as many as pay, and as memory is for.

    A stream begins without a past. That costs little where windows share none either, and more where they do.
    """
    least = mode.window * (32 if mode.stride else 8)
    return max(1, min(MOST_STREAMS, STATE_BYTES // state_bytes(model, mode.window), size // least))


def state_bytes(model: LanguageModel, window: int) -> int:
    """The memory of one sequence's keys, values and rotary angles."""
    found: list[object] = [model.start(1, window).network]
    total = 0
    while found:
        part = found.pop()
        if isinstance(part, Tensor):
            total += part.nbytes
        elif isinstance(part, list):
            found += part
        elif hasattr(part, "__dataclass_fields__"):
            found += vars(part).values()
    return max(1, total)


SEAMS = 16
"""Streams of a block whose beginning is compared with going on."""

Progress = Callable[[int], None]


@dataclass
class Report:
    """What compressing came to, so far; as in ``results.Compression``."""

    original_bytes: int = 0
    compressed_bytes: int = 0
    coded_blocks: int = 0
    stored_blocks: int = 0
    coded_bits: float = 0.0
    streams: int = 0
    seam_bits: float = 0.0


@dataclass(frozen=True)
class Codec:
    """Compression with ``model``, of the artifact whose file has the SHA-256 ``artifact``, in windows of ``window``.

    Raises BytegolfError for a model that is not over bytes.
    """

    model: LanguageModel
    artifact: bytes
    window: int

    def __post_init__(self) -> None:
        _bytewise(self.model)

    def compress(
        self,
        source: Readable,
        target: Writable,
        stride: int = 0,
        streams: int = 0,
        size: int | None = None,
        progress: Progress | None = None,
    ) -> Report:
        """Compress what is left of ``source``, in ``streams`` a block (0: as many as pay).

        ``size`` is how many bytes that should be, for whoever decompresses and wants to know how long it takes.
        ``progress`` is called with the bytes coded since the last call.
        """
        mode, report, crc = Mode(self.window, stride), Report(), 0
        torch.set_num_threads(min(torch.get_num_threads(), MOST_THREADS))
        block = read_up_to(source, BLOCK)
        most = self._streams(mode, len(block), streams)
        numerics = Numerics.here(self.model, most)
        report.compressed_bytes += target.write(Header(self.artifact, size, stride, most, numerics).pack())
        while block:
            count = min(most, self._streams(mode, len(block), streams))
            report.compressed_bytes += target.write(self._encode(block, mode, count, report, progress).pack())
            report.original_bytes += len(block)
            crc = zlib.crc32(block, crc)
            block = read_up_to(source, BLOCK)
        report.compressed_bytes += target.write(End(report.original_bytes, crc).pack())
        return report

    def _streams(self, mode: Mode, size: int, wanted: int) -> int:
        return max(1, min(wanted, size)) if wanted else streams_for(self.model, mode, size)

    def _encode(self, block: bytes, mode: Mode, streams: int, report: Report, progress: Progress | None) -> Block:
        tokens, lengths = _cut(len(block), streams, _bytewise(self.model).BOS)
        tokens[_places(tokens, lengths)] = _bytewise(self.model).values(block)
        coder = Encoder()
        code_streams(self.model, tokens, lengths, mode, coder, _bytewise(self.model).OFFSET, progress)
        payload = coder.payload()
        if len(payload) >= len(block):
            report.stored_blocks += 1
            return Block(0, len(block), block)
        report.coded_blocks += 1
        report.coded_bits += coder.ideal_bits
        report.streams = max(report.streams, streams)
        report.seam_bits += seam_bits(self.model, tokens, lengths, mode)
        return Block(streams, len(block), payload)

    def decompress(
        self,
        source: Readable,
        target: Writable,
        where: str = "the input",
        progress: Callable[[int, int | None], None] | None = None,
    ) -> int:
        """Write the original of ``source``, called ``where`` in errors, to ``target``; how many bytes it has.

        ``progress`` is called with the bytes done since the last call, and how many there are in all (None: unknown).

        What was written before an error is not the original. Raises BytegolfError for a file that was not compressed
        by this, was cut short or altered, was made with another artifact, or on a machine that computes otherwise.
        """
        header = Header.read(source, where)
        if header.artifact != self.artifact:
            raise BytegolfError(
                f"{where} was compressed with another model: name the artifact whose sha256 begins with "
                f"{header.artifact.hex()[:16]}; this one's begins with {self.artifact.hex()[:16]}"
            )
        if header.stride > self.window:
            raise damaged(where, f"it declares a stride of {header.stride}")
        mode, size, crc = Mode(self.window, header.stride), 0, 0

        def tell(count: int) -> None:
            if progress:
                progress(count, header.size)

        with header.numerics.running():
            header.numerics.check(self.model, header.streams, where)
            while isinstance(part := read_part(source, header.streams, where), Block):
                block = self._decode(part, mode, tell) if part.streams else part.payload
                size, crc = size + len(block), zlib.crc32(block, crc)
                target.write(block)
        if (size, crc) != (part.size, part.crc):
            raise damaged(where, "what it decompresses to has another length or checksum than the original")
        return size

    def _decode(self, part: Block, mode: Mode, progress: Progress | None) -> bytes:
        tokens, lengths = _cut(part.size, part.streams, _bytewise(self.model).BOS)
        code_streams(self.model, tokens, lengths, mode, Decoder(part.payload), _bytewise(self.model).OFFSET, progress)
        found = tokens[_places(tokens, lengths)] - _bytewise(self.model).OFFSET
        return bytes(found.astype(np.uint8))


def _bytewise(model: LanguageModel) -> ByteTokenizer:
    """The tokenizer. Every byte is coded as the token of its value, also one that means something else in text.

    Raises BytegolfError for a model that is not over bytes.
    """
    bytewise = byte_tokenizer(model.config.vocab_size)
    if bytewise is None:
        raise BytegolfError(
            "only a model over bytes can compress any bytes: choose an artifact whose tokenizer is byte260 or byte256"
        )
    return bytewise


def _cut(size: int, streams: int, bos: int) -> tuple[UInt16[np.ndarray, "S L"], Int[np.ndarray, " S"]]:
    """Room for ``size`` bytes in ``streams``, each behind a BOS, and the length of each; the first are the longer."""
    lengths = np.full(streams, 1 + size // streams)
    lengths[: size % streams] += 1
    tokens = np.zeros((streams, int(lengths[0])), np.uint16)
    tokens[:, 0] = bos
    return tokens, lengths


def _places(tokens: UInt16[np.ndarray, "S L"], lengths: Int[np.ndarray, " S"]) -> Bool[np.ndarray, "S L"]:
    """Where bytes stand: behind each stream's BOS."""
    at = np.arange(tokens.shape[1])
    return (at > 0) & (at < lengths[:, None])


@torch.inference_mode()
def seam_bits(
    model: LanguageModel, tokens: UInt16[np.ndarray, "S L"], lengths: Int[np.ndarray, " S"], mode: Mode
) -> float:
    """What it costs in bits that all streams but the first begin without their past.

    Estimated from up to ``SEAMS`` of them, evenly spread: the model's bits for a stream's first tokens behind BOS, less
    those behind what a window would have read before them in one single stream.
    """
    if len(tokens) == 1:
        return 0.0
    chosen = np.unique(np.linspace(1, len(tokens) - 1, SEAMS, dtype=np.int64))
    total = 0.0
    for row in chosen:
        past = tokens[row - 1, max(0, lengths[row - 1] - mode.ahead) : lengths[row - 1]]
        begun = tokens[row, 1 : min(lengths[row], 1 + mode.window + 1 - mode.ahead)]
        total += _bits(model, tokens[row, :1], begun) - _bits(model, past, begun)
    return total * (len(tokens) - 1) / len(chosen)


def _bits(model: LanguageModel, past: UInt16[np.ndarray, " P"], text: UInt16[np.ndarray, " N"]) -> float:
    """The bits of ``text`` behind ``past``, over the alphabet of bytes."""
    ids, runner, offset = np.concatenate((past, text)), stepper(model), _bytewise(model).OFFSET
    found = runner.extend(_ids(model, ids[None, :-1]), runner.start(1, len(ids) - 1))[0, len(past) - 1 :]
    p = probabilities(found, offset)[np.arange(len(text)), text.astype(np.int64) - offset]
    return -float(np.log2(np.maximum(p, np.finfo(np.float64).tiny)).sum())
