"""Compression without loss: every byte comes back, it costs what the model says, and what is wrong is refused."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
import struct
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from commands import sentences
from conftest import TINY, ModelMaker, shapes_unchecked
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bytegolf.data.tokenizer import ByteTokenizer
from bytegolf.errors import BytegolfError
from bytegolf.infer import codec as coding
from bytegolf.infer import format as layout
from bytegolf.infer import frequencies
from bytegolf.infer.codec import Codec, Mode, Report, seam_bits
from bytegolf.infer.frequencies import Encoder
from bytegolf.model.lm import LanguageModel
from bytegolf.ops import native

BYTES = ByteTokenizer()
WINDOW = 16
SCRIPTS = "Größe, naïveté — 東京タワー, Ну что ж, поехали! שלום עליכם مرحبا नमस्ते 🚀🚀 ½≠0.25"


@pytest.fixture(autouse=True)
def quick() -> Iterator[None]:
    with shapes_unchecked():
        yield


def codec(model: LanguageModel, window: int = WINDOW) -> Codec:
    return Codec(model.eval(), bytes(32), window)


def packed(codec: Codec, data: bytes, stride: int = 0, streams: int = 0) -> tuple[bytes, Report]:
    target = io.BytesIO()
    report = codec.compress(io.BytesIO(data), target, stride, streams)
    assert (report.original_bytes, report.compressed_bytes) == (len(data), len(target.getvalue()))
    return target.getvalue(), report


def unpacked(codec: Codec, data: bytes) -> bytes:
    target = io.BytesIO()
    size = codec.decompress(io.BytesIO(data), target, "the file")
    assert size == len(target.getvalue())
    return target.getvalue()


@pytest.mark.parametrize("stride", [0, 5])
@pytest.mark.parametrize("network", TINY)
def test_every_network_gives_back_what_it_took(network: str, stride: int, make_model: ModelMaker) -> None:
    """Streams of several windows and of different lengths, natively and by plain PyTorch."""
    data, mine = SCRIPTS.encode()[:90], codec(make_model(network))
    for streams, context in ((1, contextlib.nullcontext()), (4, contextlib.nullcontext()), (4, native.disabled())):
        with context:
            result, report = packed(mine, data, stride, streams)
            assert unpacked(mine, result) == data
            assert report.streams == (streams if report.coded_blocks else 0)


EDGES = [b"", b"a", bytes(300), bytes(range(256)), SCRIPTS.encode(), "﻿café\r\n".encode("utf-16"), b"\xff" * 9]


@pytest.mark.parametrize("data", EDGES, ids=[f"{len(data)} bytes" for data in EDGES])
def test_empty_single_binary_and_text(data: bytes, make_model: ModelMaker) -> None:
    mine = codec(make_model("one-level"))
    assert unpacked(mine, packed(mine, data)[0]) == data


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=40), st.integers(0, 5), st.sampled_from([0, 3]))
def test_any_bytes_come_back(make_model: ModelMaker, data: bytes, streams: int, stride: int) -> None:
    """``pytest tests/test_codec.py -k any_bytes --hypothesis-profile=thousand`` tries 1,000."""
    mine = codec(make_model("one-level"))
    assert unpacked(mine, packed(mine, data, stride, streams)[0]) == data


def test_noise_grows_by_less_than_a_percent(make_model: ModelMaker) -> None:
    noise = np.random.default_rng(0).bytes(1 << 16)
    mine = codec(make_model("one-level"), 64)
    result, report = packed(mine, noise, streams=1024)
    assert report.streams == 0
    assert report.stored_blocks == 1
    assert len(result) <= 1.01 * len(noise)
    assert unpacked(mine, result) == noise


def test_long_input_goes_block_by_block(make_model: ModelMaker, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of 100 bytes: text, noise, and a last one that is shorter; a pipe that hands out a few bytes at a time."""
    for module in (layout, coding):
        monkeypatch.setattr(module, "BLOCK", 100)
    data = b"a" * 200 + np.random.default_rng(0).bytes(100) + b"b" * 33

    class Pipe(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            return super().read(min(7, size or 0))

    told: list[Any] = []
    mine, target = codec(make_model("flat-local")), io.BytesIO()
    report = mine.compress(Pipe(data), target, streams=4, size=len(data), progress=told.append)
    assert report.coded_blocks + report.stored_blocks == 4
    assert report.coded_blocks >= 2
    assert sum(told) == len(data)
    out, shares = io.BytesIO(), []
    mine.decompress(Pipe(target.getvalue()), out, progress=lambda count, total: shares.append((count, total)))
    assert out.getvalue() == data
    assert {total for _, total in shares} == {len(data)}


@pytest.mark.parametrize("stride", [0, 1, 5, WINDOW])
@pytest.mark.parametrize("network", ["flat", "two-level"])
def test_it_costs_what_full_forward_passes_of_the_same_windows_say(
    network: str, stride: int, make_model: ModelMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So the windows are those of `eval`. Without the mixture, which such a model would leave to the uniform."""
    monkeypatch.setattr(frequencies, "SHARE", 0.0)
    model = make_model(network).eval()
    with torch.no_grad():
        model.embedding.weight.mul_(0.3)  # no probability so low that rounding up to 2⁻²⁴ shows
    text = " ".join(sentences(2)).encode()[: 3 * WINDOW + 2]
    tokens = np.concatenate(([1], BYTES.encode_bytes(text))).astype(np.uint16)[None]
    encoder = Encoder()
    coding.code_streams(model, tokens, np.array([len(text) + 1]), Mode(WINDOW, stride), encoder, BYTES.OFFSET)
    expected, done = 0.0, 0
    while done < len(text):
        new = stride or WINDOW
        start = max(0, done - (WINDOW - new))
        end = min(len(text), start + WINDOW)
        ids = torch.from_numpy(tokens[:, start : end + 1].astype(np.int64))
        with torch.no_grad():
            logits = model.cap(model(ids[:, :-1]).logits)[0, :, BYTES.OFFSET :].double()
        costs = -torch.log_softmax(logits, -1).gather(1, ids[0, 1:, None] - BYTES.OFFSET)
        expected += float(costs[done - start :].sum()) / np.log(2)
        done = end
    assert encoder.ideal_bits == pytest.approx(expected, rel=1e-4, abs=0.01)


def test_streams_are_reported_with_their_cost(make_model: ModelMaker) -> None:
    """A model that has seen nothing after BOS pays for each beginning what it knows better later on."""
    model = make_model("tables").eval()
    text = b"abcdefgh" * 40
    with torch.no_grad():  # the n-gram tables know what follows; BOS knows nothing
        model.embedding.weight[1] = 0
    mine = codec(model)
    one, many = packed(mine, text, streams=1)[1], packed(mine, text, streams=20)[1]
    assert one.seam_bits == 0
    assert many.seam_bits == pytest.approx(many.coded_bits - one.coded_bits, rel=0.35)


def test_streams_that_begin_as_they_would_go_on_cost_nothing(make_model: ModelMaker) -> None:
    model = make_model("flat").eval()
    tokens = np.full((4, 9), BYTES.BOS, np.uint16)
    tokens[:, 1:] = np.random.default_rng(0).integers(4, 260, (4, 8))
    tokens[:, -1] = BYTES.BOS  # going on from this is what beginning is
    assert seam_bits(model, tokens, np.full(4, 9), Mode(4)) == pytest.approx(0, abs=1e-3)


def test_as_many_streams_as_pay(make_model: ModelMaker, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model("one-level")
    assert coding.streams_for(model, Mode(WINDOW), 0) == 1
    assert coding.streams_for(model, Mode(WINDOW), WINDOW * 8 * 10) == 10
    assert coding.streams_for(model, Mode(WINDOW, 4), WINDOW * 32 * 10) == 10
    assert coding.streams_for(model, Mode(WINDOW), 10**9) == coding.MOST_STREAMS
    monkeypatch.setattr(coding, "STATE_BYTES", 3 * coding.state_bytes(model, WINDOW))
    assert coding.streams_for(model, Mode(WINDOW), 10**9) == 3


# ------------------------------------------------------------------------------------------------------- refused


@pytest.fixture
def mine(make_model: ModelMaker) -> Codec:
    return codec(make_model("one-level"))


@pytest.fixture
def whole(mine: Codec) -> bytes:
    return packed(mine, b"Four score and seven years ago" * 3, streams=2)[0]


def test_any_altered_byte_and_any_cut_is_refused(mine: Codec, whole: bytes) -> None:
    for at in [*range(12), *range(12, len(whole), 5), *range(len(whole) - 18, len(whole))]:
        altered = bytearray(whole)
        altered[at] ^= 1 << (at % 8)
        with pytest.raises(BytegolfError, match="the file"):
            unpacked(mine, bytes(altered))
        with pytest.raises(BytegolfError, match=r"ends too early|was not compressed"):
            unpacked(mine, whole[:at])
    with pytest.raises(BytegolfError, match="something follows"):
        unpacked(mine, whole + b"x")


def test_an_altered_payload_with_a_right_checksum_is_refused_too(mine: Codec, whole: bytes) -> None:
    header = layout.Header.read(source := io.BytesIO(whole), "")
    block = layout.read_part(source, 9, "")
    assert isinstance(block, layout.Block)
    other = dataclasses.replace(block, payload=block.payload[:-4] + os.urandom(4))
    file = header.pack() + other.pack() + source.read()
    with pytest.raises(BytegolfError, match="another length or checksum"):
        unpacked(mine, file)


def test_another_artifact_is_named(mine: Codec, whole: bytes) -> None:
    other = dataclasses.replace(mine, artifact=b"\xab" * 32)
    with pytest.raises(BytegolfError, match="begins with 0000000000000000; this one's begins with abababab"):
        unpacked(other, whole)


def test_other_rounding_is_refused_and_explained(mine: Codec, whole: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    header = layout.Header.read(source := io.BytesIO(whole), "")
    rest = source.read()
    elsewhere = dataclasses.replace(header.numerics, place="torch 1.0", probe=bytes(8))
    with pytest.raises(BytegolfError, match=r"rounds.*there torch 1\.0, here bytegolf.*same versions"):
        unpacked(mine, dataclasses.replace(header, numerics=elsewhere).pack() + rest)
    monkeypatch.setattr(native, "why_not", lambda: "no compiler")
    natively = dataclasses.replace(header.numerics, native=True)
    with pytest.raises(BytegolfError, match="with native kernels, and here are none"):
        unpacked(mine, dataclasses.replace(header, numerics=natively).pack() + rest)


def test_threads_and_kernels_are_those_of_the_file(mine: Codec) -> None:
    data = b"Ja, nein?"
    with native.disabled():
        torch.set_num_threads(2)
        try:
            plain = packed(mine, data, streams=3)[0]
        finally:
            torch.set_num_threads(1)
    how = layout.Header.read(io.BytesIO(plain), "").numerics
    assert (how.threads, how.native) == (2, False)
    assert unpacked(mine, plain) == data
    assert torch.get_num_threads() == 1


def test_sizes_are_checked_before_memory_is_taken(mine: Codec, whole: bytes) -> None:
    header = layout.Header.read(source := io.BytesIO(whole), "")
    start = source.tell()
    for kind, streams, size, stored in (
        (1, 2, 1 << 31, 8),
        (1, 2, 8, 1 << 31),
        (1, 3, 100, 8),
        (1, 0, 100, 8),
        (1, 2, 100, 7),
        (2, 0, 9, 8),
        (2, 1, 8, 8),
        (3, 2, 100, 8),
        (2, 0, 0, 0),
    ):
        part = struct.pack("<BHII", kind, streams, size, stored) + bytes(8)
        with pytest.raises(BytegolfError, match="a block declares"):
            unpacked(mine, whole[:start] + part + struct.pack("<I", zlib.crc32(part)))
    for change in ({"streams": 0}, {"streams": 5000}, {"stride": WINDOW + 1}):
        with pytest.raises(BytegolfError, match="it declares"):
            unpacked(mine, dataclasses.replace(header, **change).pack() + whole[start:])  # type: ignore[arg-type]
    for number in (0, 65, 1024):
        threads = dataclasses.replace(header, numerics=dataclasses.replace(header.numerics, threads=number))
        with pytest.raises(BytegolfError, match=f"it declares {number} threads"):
            unpacked(mine, threads.pack())
    with pytest.raises(BytegolfError, match="format version 513"):
        unpacked(mine, whole[:8] + b"\x01\x02" + whole[10:])


def test_only_models_over_bytes(make_model: ModelMaker) -> None:
    model = make_model("flat")
    model.config = dataclasses.replace(model.config, vocab_size=400)
    with pytest.raises(BytegolfError, match="only a model over bytes"):
        codec(model)
    with pytest.raises(BytegolfError, match="stride 17"):
        packed(codec(make_model("flat")), b"abc", stride=17)
