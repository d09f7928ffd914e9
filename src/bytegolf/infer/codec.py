"""Lossless compression of any bytes with a byte model, block by block.

A block's bytes are cut into streams of equal length that are coded side by side (``infer.lockstep``) by one range
coder; where that does not make it smaller, the block is stored as it is. So memory is bounded by a block, and nothing
grows by more than the headers.

Legend: S streams, L tokens of the longest.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Int, UInt16

from bytegolf.data.tokenizer import ByteTokenizer
from bytegolf.errors import BytegolfError
from bytegolf.infer import lockstep
from bytegolf.infer.format import BLOCK, Block, End, Header, Readable, Writable, damaged, read_part, read_up_to
from bytegolf.infer.frequencies import Decoder, Encoder
from bytegolf.infer.lockstep import Mode
from bytegolf.infer.numerics import MOST_THREADS, Numerics
from bytegolf.model.lm import LanguageModel

SEAMS = 16
"""Streams of a block whose beginning is compared with going on."""

_BYTES = ByteTokenizer()

Progress = Callable[[int], None]


@dataclass
class Report:
    """What compressing came to.

    Attributes:
        original, compressed: bytes, headers included.
        coded_blocks, stored_blocks: how many blocks the model made smaller, and how many it did not.
        coded_bits: what the coded blocks should cost by their frequencies.
        streams: the most of a block.
        seam_bits: what it cost that streams begin without their past, estimated from ``SEAMS`` a block.
    """

    original: int = 0
    compressed: int = 0
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
        if self.model.config.vocab_size != _BYTES.vocab_size:
            raise BytegolfError(
                "only a model over bytes can compress any bytes: choose an artifact whose tokenizer is byte260"
            )

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
        report.compressed += target.write(Header(self.artifact, size, stride, most, numerics).pack())
        while block:
            count = min(most, self._streams(mode, len(block), streams))
            report.compressed += target.write(self._encode(block, mode, count, report, progress).pack())
            report.original += len(block)
            crc = zlib.crc32(block, crc)
            block = read_up_to(source, BLOCK)
        report.compressed += target.write(End(report.original, crc).pack())
        return report

    def _streams(self, mode: Mode, size: int, wanted: int) -> int:
        return max(1, min(wanted, size)) if wanted else lockstep.streams_for(self.model, mode, size)

    def _encode(self, block: bytes, mode: Mode, streams: int, report: Report, progress: Progress | None) -> Block:
        tokens, lengths = _cut(len(block), streams)
        tokens[_places(tokens, lengths)] = _BYTES.encode_bytes(block)
        coder = Encoder()
        lockstep.run(self.model, tokens, lengths, mode, coder, _BYTES.OFFSET, progress)
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
        tokens, lengths = _cut(part.size, part.streams)
        lockstep.run(self.model, tokens, lengths, mode, Decoder(part.payload), _BYTES.OFFSET, progress)
        return _BYTES.decode(tokens[_places(tokens, lengths)])


def _cut(size: int, streams: int) -> tuple[UInt16[np.ndarray, "S L"], Int[np.ndarray, " S"]]:
    """Room for ``size`` bytes in ``streams``, each behind a BOS, and the length of each; the first are the longer."""
    lengths = np.full(streams, 1 + size // streams)
    lengths[: size % streams] += 1
    tokens = np.zeros((streams, int(lengths[0])), np.uint16)
    tokens[:, 0] = _BYTES.BOS
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
    """The bits of ``text`` behind ``past`` in one forward pass, over the alphabet of bytes."""
    ids = torch.from_numpy(np.concatenate((past, text)).astype(np.int64)).unsqueeze(0)
    logits = model.cap(model(ids[:, :-1].to(model.embedding.weight.device)).logits)[0, len(past) - 1 :]
    found = torch.log_softmax(logits[:, _BYTES.OFFSET :].double(), -1).cpu()
    return -float(found.gather(1, ids[0, len(past) :, None] - _BYTES.OFFSET).sum()) / math.log(2)
