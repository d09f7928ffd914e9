"""Lossless compression of any bytes, block by block: context mixing, with or without a byte model.

What comes next is predicted by a mixer (``bytegolf.mixing``), which learns from the bytes so far, on both sides alike;
a model's distribution, if there is one, is one of those that it mixes. Each bit goes to a binary arithmetic coder at
the mixer's probability. A block that does not get smaller is stored as it is, and the mixer then starts afresh, so
memory is bounded and nothing grows by more than a few bytes.

Without a model a file is one stream, and what was learned is carried from block to block. With one, a block is cut into
streams that the model reads side by side (``streams.py``), which share what the mixer learns.

Legend: S streams, R of them that are still going, L tokens (of the longest).
"""

from __future__ import annotations

import dataclasses
import functools
import io
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import UInt8

from bytegolf.config import MixConfig
from bytegolf.errors import BytegolfError
from bytegolf.infer import layouts, words, x86
from bytegolf.infer.format import (
    ID_BYTES,
    MIB,
    Block,
    End,
    Header,
    Laid,
    ModelPart,
    Readable,
    Writable,
    damaged,
    read_parts,
    read_single,
    read_up_to,
)
from bytegolf.infer.frequencies import probabilities
from bytegolf.infer.guess import Guessing
from bytegolf.infer.layouts import Piece, in_order
from bytegolf.infer.numerics import MOST_THREADS, Numerics
from bytegolf.infer.streams import Mode, bytewise, cut, places, steps, streams_for
from bytegolf.mixing.coding import BitCoder, code_bytes
from bytegolf.mixing.frequencies import quantised
from bytegolf.mixing.mixer import Mixer
from bytegolf.mixing.samples import ALL_KINDS, Samples, mixer_for
from bytegolf.model.lm import LanguageModel

BLOCK, MODEL_BLOCK = MIB, 8 * MIB
"""Bytes of the original in a block, without a model and with one: more are more streams."""

PIECE = 1 << 14
"""Bytes that are coded at a time without a model, so that progress can be told."""

MEGABYTES_PER_MB, LEAST_MEGABYTES, MOST_MEGABYTES = 512, 16, 256
"""Memory for what mixing learns: of a file of 1 MB, and the limits."""

Progress = Callable[[int], None]


@dataclass
class Report:
    """What compressing came to, so far; as in ``results.Compression``."""

    original_bytes: int = 0
    compressed_bytes: int = 0
    coded_blocks: int = 0
    stored_blocks: int = 0
    streams: int = 0


@dataclass(frozen=True)
class Codec:
    """Compression by context mixing, alone or with ``model``.

    That is of the artifact whose file has the SHA-256 ``artifact``, and reads windows of ``window`` tokens.

    Raises BytegolfError for a model that is not over bytes.
    """

    model: LanguageModel | None = None
    artifact: bytes = b""
    window: int = 0

    def __post_init__(self) -> None:
        if self.model is not None:
            bytewise(self.model)

    def compress(
        self,
        source: Readable,
        target: Writable,
        stride: int = 0,
        streams: int = 0,
        size: int | None = None,
        progress: Progress | None = None,
    ) -> Report:
        """Compress what is left of ``source``, in ``streams`` a block (0: as many as pay; without a model, one).

        ``size`` is how many bytes that should be. ``progress`` is called with the bytes coded since the last call.
        """
        report = Report()
        most = BLOCK if self.model is None else MODEL_BLOCK
        block = read_up_to(source, most)
        if len(block) < most:  # that is all of it
            size = None
        header = self._header(len(block), most, stride, streams, size)
        pieces = self._pieces(block, source, most)
        piece, following = next(pieces, None), next(pieces, None)
        if self.model is None and piece and not following:
            header = dataclasses.replace(header, single=True)
        report.compressed_bytes += target.write(packed := header.pack())
        crc, coding = zlib.crc32(packed), _Coding(self, header)
        while piece is not None:
            part = coding.encode(piece, report.original_bytes, streams, progress)
            report.coded_blocks += part.streams > 0
            report.stored_blocks += part.streams == 0
            report.streams = max(report.streams, part.streams)
            report.compressed_bytes += target.write(part.single() if header.single else part.pack())
            report.original_bytes += len(piece.data)
            crc = zlib.crc32(piece.data, crc)
            piece, following = following, next(pieces, None)
        report.compressed_bytes += target.write(End(crc).pack()[header.single :])
        return report

    def _pieces(self, first: bytes, source: Readable, most: int) -> Iterator[Piece]:
        """A file whose ``first`` bytes are read, in blocks; with a model whatever is in it."""
        ahead = io.BytesIO(first)

        def blocks(size: int) -> bytes:
            found = ahead.read(size)
            return found if len(found) == size or len(first) < most else found + read_up_to(source, size - len(found))

        if self.model is None:
            yield from layouts.pieces(blocks, most)
            return
        while data := blocks(most):
            yield Piece(data)

    def _header(self, first: int, block: int, stride: int, streams: int, size: int | None) -> Header:
        """The header of a file whose first block has ``first`` bytes."""
        # the next power of 2 above 512 bytes of tables per byte of text: 100 kB want 51, so 64 megabytes
        wanted = MEGABYTES_PER_MB * (first if size is None and first < block else size or 1 << 62) // 1_000_000
        megabytes = min(MOST_MEGABYTES, max(LEAST_MEGABYTES, 1 << wanted.bit_length()))
        if self.model is None:
            return Header(block, megabytes, 1, size)
        mode = Mode(self.window, stride)
        torch.set_num_threads(min(torch.get_num_threads(), MOST_THREADS))
        most = self.streams(mode, first, streams)
        return Header(
            block, megabytes, most, size, ModelPart(self.artifact[:ID_BYTES], stride, Numerics.here(self.model, most))
        )

    def streams(self, mode: Mode, size: int, wanted: int) -> int:
        """How many streams a block of ``size`` bytes is cut into, if a user ``wanted`` so many (0: does not say)."""
        assert self.model is not None
        return max(1, min(wanted, size)) if wanted else streams_for(self.model, mode, size)

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
        self._check(header, where)
        if header.model is None or self.model is None:
            return self._decompress(header, source, target, where, progress)
        with header.model.numerics.running():
            header.model.numerics.check(self.model, header.streams, where)
            return self._decompress(header, source, target, where, progress)

    def _decompress(
        self,
        header: Header,
        source: Readable,
        target: Writable,
        where: str,
        progress: Callable[[int, int | None], None] | None,
    ) -> int:
        size, crc, coding = 0, zlib.crc32(header.pack()), _Coding(self, header)

        def tell(count: int) -> None:
            if progress:
                progress(count, header.size)

        parts = iter(read_single(source, header, where) if header.single else read_parts(source, header, where))
        while isinstance(part := next(parts), Block):
            block = coding.decode(part, size, where, tell)
            size, crc = size + len(block), zlib.crc32(block, crc)
            target.write(block)
        if crc != part.crc:
            raise damaged(where, "what it decompresses to has another checksum than the original")
        return size

    def _check(self, header: Header, where: str) -> None:
        """Raise unless this is the codec that compressed a file."""
        if header.model is None and self.model is not None:
            raise BytegolfError(f"{where} was compressed without a model: leave out --model")
        if header.model is None:
            return
        named = header.model.artifact.hex()
        if self.model is None:
            raise BytegolfError(
                f"{where} was compressed with a model: name the artifact whose sha256 begins with {named}"
            )
        if self.artifact[:ID_BYTES] != header.model.artifact:
            raise BytegolfError(
                f"{where} was compressed with another model: name the artifact whose sha256 begins with {named}; this "
                f"one's begins with {self.artifact.hex()[: 2 * ID_BYTES]}"
            )
        if header.model.stride > self.window:
            raise damaged(where, f"it declares a stride of {header.model.stride}")


class _Coding:
    """One file's mixers, on either side: one for each kind of samples, and one for all else."""

    def __init__(self, codec: Codec, header: Header) -> None:
        self._codec, self._header = codec, header
        self._mode = Mode(codec.window, header.model.stride) if header.model else None
        self._mixers: dict[str, Mixer] = {}
        self._samples: Samples | None = None
        self._order = 0
        self._guess = Guessing()

    @functools.cached_property
    def _mixer(self) -> Mixer:
        header = self._header
        settings = MixConfig(megabytes=header.megabytes, contexts=ALL_KINDS)
        if header.model is None:
            return words.read(Mixer(settings, experts=0, length=1 << 24))
        # matches are found as far back as two blocks of one stream: a block more than the one that is coded
        return Mixer(settings, streams=header.streams, length=2 * -(-header.block // header.streams))

    def encode(self, piece: Piece, place: int, streams: int, progress: Progress | None) -> Block:
        """The part of a file for the ``piece`` that begins at ``place`` of the original."""
        data = np.frombuffer(piece.data, np.uint8)
        calls = self._mode is None and piece.found is None and x86.pays(data)
        if self._mode is None and not calls:
            piece = self._guess.piece(piece)
        found = piece.found
        coder, size = BitCoder(room=len(data) - 1), len(data)
        laid = None
        if self._mode is not None:
            streams = min(self._header.streams, self._codec.streams(self._mode, size, streams))
            self._through_model(data.copy(), coder, streams, progress)
        elif found is not None:
            streams = 1
            laid = Laid(None) if piece.goes_on and self._samples else Laid(piece.layout, found.order)
            self._laid(laid, data, coder, progress)
        else:
            streams = 1
            self._alone(x86.absolute(data, place) if calls else data.copy(), coder, progress)
        payload = coder.payload()
        if payload is None:
            self._forget()
            return Block(0, size, piece.data)
        return Block(streams, size, payload, calls, laid)

    def decode(self, part: Block, place: int, where: str, progress: Progress | None) -> bytes:
        """The block of which ``encode`` made ``part``."""
        if not part.streams:
            self._forget()
            return part.payload
        data, coder = np.zeros(part.size, np.uint8), BitCoder(payload=part.payload)
        if self._mode is not None:
            self._through_model(data, coder, part.streams, progress)
        elif part.laid is not None:
            if part.laid.layout is None and self._samples is None:
                raise damaged(where, "samples go on that never began")
            data = self._laid(part.laid, data, coder, progress)
        else:
            self._alone(data, coder, progress)
            if part.x86:
                data = x86.absolute(data, place, back=True)
        return data.tobytes()

    def _forget(self) -> None:
        """Know nothing: a decoder does not learn what is stored."""
        self._mixer.reset()
        if self._mode is None:
            words.read(self._mixer)
        self._mixers.clear()
        self._samples = None

    def _laid(
        self, laid: Laid, data: UInt8[np.ndarray, " n"], coder: BitCoder, progress: Progress | None
    ) -> UInt8[np.ndarray, " n"]:
        """Code samples; the bytes as they are in the file."""
        if laid.layout is not None:
            kind = laid.layout.kind
            if kind not in self._mixers:
                self._mixers[kind] = mixer_for(laid.layout, self._header.megabytes)
            self._samples, self._order = Samples(laid.layout, self._mixers[kind]), laid.order
        samples, begins = self._samples, laid.layout is not None
        assert samples is not None
        layout = samples.layout if begins else dataclasses.replace(samples.layout, start=0)
        changed = data.copy() if coder.decodes else in_order(data, layout, self._order)
        for start in range(0, len(data), PIECE):
            piece = changed[start : start + PIECE]
            samples.code(coder, piece)
            if progress:
                progress(len(piece))
        return in_order(changed, layout, self._order, back=True) if coder.decodes else changed

    def _alone(self, data: UInt8[np.ndarray, " n"], coder: BitCoder, progress: Progress | None) -> None:
        for start in range(0, len(data), PIECE):
            piece = data[start : start + PIECE]
            code_bytes(self._mixer, coder, piece[:, None])
            if progress:
                progress(len(piece))

    def _through_model(
        self, data: UInt8[np.ndarray, " n"], coder: BitCoder, streams: int, progress: Progress | None
    ) -> None:
        model, mode = self._codec.model, self._mode
        assert model is not None
        assert mode is not None
        tokenizer = bytewise(model)
        tokens, lengths = cut(len(data), streams, tokenizer.BOS)
        where = places(tokens, lengths)
        tokens[where] = data.astype(np.uint16) + tokenizer.OFFSET
        for at, rows, logits in steps(model, tokens, lengths, mode, not coder.decodes):
            frequencies = quantised(probabilities(logits, tokenizer.OFFSET)).astype(np.uint32)
            found = (tokens[None, rows, at] - tokenizer.OFFSET).astype(np.uint8)
            code_bytes(self._mixer, coder, found, frequencies[:, None], rows)
            # an encoder writes what is there; a decoder has just learned it, and the next step reads it
            tokens[rows, at] = found[0].astype(np.uint16) + tokenizer.OFFSET
            if progress:
                progress(len(rows))
        data[:] = (tokens[where] - tokenizer.OFFSET).astype(np.uint8)
