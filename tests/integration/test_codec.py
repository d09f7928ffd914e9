"""Compression without loss: every byte comes back, it costs what the model says, and what is wrong is refused."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
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
from bytegolf.infer import streams, words, x86
from bytegolf.infer.codec import Codec, Report
from bytegolf.infer.frequencies import Encoder
from bytegolf.infer.numerics import NATIVE, PLAIN, WHOLE
from bytegolf.infer.streams import Mode, code_streams, streams_for
from bytegolf.mixing.frequencies import TOTAL
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
    for count, context in ((1, contextlib.nullcontext()), (4, contextlib.nullcontext()), (4, native.disabled())):
        with context:
            result, report = packed(mine, data, stride, count)
            assert unpacked(mine, result) == data
            assert report.streams == (count if report.coded_blocks else 0)


LETTER = b"Four score and seven years ago" * 3
EDGES = [b"", b"a", bytes(300), bytes(range(256)), SCRIPTS.encode(), "﻿café\r\n".encode("utf-16"), b"\xff" * 9]


@pytest.mark.parametrize("data", EDGES, ids=[f"{len(data)} bytes" for data in EDGES])
def test_empty_single_binary_and_text(data: bytes, make_model: ModelMaker) -> None:
    mine = codec(make_model("one-level"))
    assert unpacked(mine, packed(mine, data)[0]) == data


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(st.binary(max_size=40), st.integers(0, 5), st.sampled_from([0, 3]))
def test_any_bytes_come_back(make_model: ModelMaker, data: bytes, count: int, stride: int) -> None:
    """``pytest tests/test_codec.py -k any_bytes --hypothesis-profile=thousand`` tries 1,000."""
    mine = codec(make_model("one-level"))
    assert unpacked(mine, packed(mine, data, stride, count)[0]) == data


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
    for module, name in ((layout, "MIB"), (coding, "BLOCK"), (coding, "MODEL_BLOCK")):
        monkeypatch.setattr(module, name, 100)
    data = b"a" * 200 + np.random.default_rng(0).bytes(100) + b"b" * 33

    class Pipe(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            return super().read(min(7, size or 0))

    for mine in (codec(make_model("flat-local")), Codec()):
        told: list[Any] = []
        target = io.BytesIO()
        report = mine.compress(Pipe(data), target, streams=4, size=len(data), progress=told.append)
        assert (report.coded_blocks, report.stored_blocks) == (3, 1)
        assert sum(told) == len(data)
        out, shares = io.BytesIO(), list[tuple[int, int | None]]()
        mine.decompress(Pipe(target.getvalue()), out, progress=lambda *share, into=shares: into.append(share))
        assert out.getvalue() == data
        assert {total for _, total in shares} == {len(data)}
        assert sum(count for count, _ in shares) == 233, "what is stored is not decoded"


class Costs(Encoder):
    """An encoder that adds up what its symbols should cost."""

    bits = 0.0

    def code(self, frequencies: np.ndarray, symbols: np.ndarray) -> np.ndarray:
        self.bits -= float(np.log2(frequencies[np.arange(len(symbols)), symbols] / TOTAL).sum())
        return super().code(frequencies, symbols)


@pytest.mark.parametrize("stride", [0, 1, 5, WINDOW])
@pytest.mark.parametrize("network", ["flat", "two-level"])
def test_it_costs_what_full_forward_passes_of_the_same_windows_say(
    network: str, stride: int, make_model: ModelMaker
) -> None:
    """So the windows are those of `eval`."""
    model = make_model(network).eval()
    with torch.no_grad():
        model.embedding.weight.mul_(0.3)  # no probability so low that rounding up to 2⁻²⁴ shows
    text = " ".join(sentences(2)).encode()[: 3 * WINDOW + 2]
    tokens = np.concatenate(([1], BYTES.encode_bytes(text))).astype(np.uint16)[None]
    coder = Costs()
    code_streams(model, tokens, np.array([len(text) + 1]), Mode(WINDOW, stride), coder, BYTES.OFFSET)
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
    assert coder.bits == pytest.approx(expected, rel=1e-4, abs=0.01)


def test_the_models_distribution_is_mixed_in(make_model: ModelMaker) -> None:
    """A model whose n-grams know what follows saves what context mixing alone would have to learn first."""
    model = make_model("tables").eval()
    text = b"abcdefgh" * 4
    tokens = torch.from_numpy(np.concatenate(([1], BYTES.encode_bytes(text))).astype(np.int64))[None]
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    for _ in range(30):
        loss = model.losses(model(tokens[:, :-1]), tokens[:, 1:]).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    alone, mixed = packed(Codec(), text)[0], packed(codec(model, 64), text)[0]
    model_part = len(packed(codec(model, 64), b"")[0]) - len(packed(Codec(), b"")[0])
    assert len(mixed) - model_part < len(alone) + 3 - 4, "a file without a model has 3 bytes less around its block"
    assert unpacked(codec(model, 64), mixed) == text


def test_the_same_file_from_any_number_of_threads(make_model: ModelMaker) -> None:
    data, mine = SCRIPTS.encode(), codec(make_model("tables"))
    one = packed(mine, data, streams=5)[0]
    torch.set_num_threads(3)
    try:
        assert packed(mine, data, streams=5)[0] == one
        assert unpacked(mine, one) == data
    finally:
        torch.set_num_threads(1)


def test_context_mixing_without_kernels_is_the_same_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(words, "TEXT", words.TEXT[:100])
    data = SCRIPTS.encode()[:60]
    natively = packed(Codec(), data)[0]
    with native.disabled():
        assert packed(Codec(), data)[0] == natively
        assert unpacked(Codec(), natively) == data


def test_programs_are_stored_with_absolute_targets() -> None:
    """Calls of one function from many places, which differ only relatively."""
    chance, code = np.random.default_rng(0), bytearray()
    while len(code) < 4000:
        code += chance.integers(0, 128, 6, np.uint8).tobytes()
        code += b"\xe8" + ((0x1234 - len(code)) & 0xFFFFFFFF).to_bytes(4, "little")
    mine = Codec()
    result, _ = packed(mine, bytes(code))
    assert unpacked(mine, result) == code
    assert len(result) < 0.6 * len(code)  # of a period of 11 bytes 6 are drawn, of 7 bits each


@given(st.binary(max_size=60), st.integers(0, 1 << 26))
def test_absolute_targets_and_back(data: bytes, place: int) -> None:
    block = np.frombuffer(data.replace(b"a", b"\xe8").replace(b"b", b"\xff"), np.uint8)
    changed = x86.absolute(block, place)
    assert (x86.absolute(changed, place, back=True) == block).all()
    assert (x86.absolute_reference(block, place, False) == changed).all()


def test_as_many_streams_as_pay(make_model: ModelMaker, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model("one-level")
    assert streams_for(model, Mode(WINDOW), 0) == 1
    assert streams_for(model, Mode(WINDOW), WINDOW * 8 * 10) == 10
    assert streams_for(model, Mode(WINDOW, 4), WINDOW * 32 * 10) == 10
    assert streams_for(model, Mode(WINDOW), 10**9) == streams.MOST_STREAMS
    monkeypatch.setattr(streams, "STATE_BYTES", 3 * streams.state_bytes(model, WINDOW))
    assert streams_for(model, Mode(WINDOW), 10**9) == 3


# ------------------------------------------------------------------------------------------------------- refused


@pytest.fixture
def mine(make_model: ModelMaker) -> Codec:
    return codec(make_model("one-level"))


@pytest.fixture
def whole(mine: Codec) -> bytes:
    return packed(mine, LETTER, streams=2)[0]


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
    block = layout.read_part(source, header, "")
    assert isinstance(block, layout.Block)
    other = dataclasses.replace(block, payload=block.payload[:-4] + os.urandom(4))
    file = header.pack() + other.pack() + source.read()
    with pytest.raises(BytegolfError, match="another checksum"):
        unpacked(mine, file)


def model_part(header: layout.Header) -> layout.ModelPart:
    assert header.model is not None
    return header.model


def test_another_artifact_is_named_and_so_is_none(mine: Codec, whole: bytes) -> None:
    other = dataclasses.replace(mine, artifact=b"\xab" * 32)
    with pytest.raises(BytegolfError, match="begins with 0000000000000000; this one's begins with abababab"):
        unpacked(other, whole)
    with pytest.raises(BytegolfError, match="compressed with a model: name the artifact"):
        unpacked(Codec(), whole)
    with pytest.raises(BytegolfError, match="without a model"):
        unpacked(mine, packed(Codec(), b"abc")[0])


def with_numerics(header: layout.Header, **changes: Any) -> layout.Header:
    part = model_part(header)
    numerics = dataclasses.replace(part.numerics, **changes)
    return dataclasses.replace(header, model=dataclasses.replace(part, numerics=numerics))


def test_other_rounding_is_refused_and_explained(mine: Codec, whole: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    header = layout.Header.read(source := io.BytesIO(whole), "")
    rest = source.read()
    with pytest.raises(BytegolfError, match=r"rounds.*there torch 1\.0, here bytegolf.*same versions"):
        unpacked(mine, with_numerics(header, place="torch 1.0", probe=bytes(8)).pack() + rest)
    with pytest.raises(BytegolfError, match="rounds"):
        unpacked(mine, with_numerics(header, kind=PLAIN if model_part(header).numerics.kind else WHOLE).pack() + rest)
    monkeypatch.setattr(native, "why_not", lambda: "no compiler")
    for kind in (NATIVE, WHOLE):
        with pytest.raises(BytegolfError, match="with native kernels, and here are none"):
            unpacked(mine, with_numerics(header, kind=kind).pack() + rest)


def test_threads_and_kernels_are_those_of_the_file(mine: Codec) -> None:
    data = b"Ja?"
    with native.disabled():
        torch.set_num_threads(2)
        try:
            plain = packed(mine, data, streams=3)[0]
        finally:
            torch.set_num_threads(1)
    how = model_part(layout.Header.read(io.BytesIO(plain), "")).numerics
    assert (how.threads, how.kind) == (2, PLAIN)
    assert unpacked(mine, plain) == data
    assert torch.get_num_threads() == 1


def test_sizes_are_checked_before_memory_is_taken(mine: Codec, whole: bytes) -> None:
    header = layout.Header.read(source := io.BytesIO(whole), "")
    start = source.tell()
    many = b"\xff" * 8 + b"\x01"
    for part in (
        b"\x01" + many + b"\x02\x08",  # a block of 2⁶³ bytes
        b"\x01\x64\x02" + many,  # a payload of as many
        b"\x01\x64\x03\x08",  # more streams than the header says
        b"\x01\x64\x00\x08",
        b"\x01\x08\x02\x08",  # a payload that is not smaller
        b"\x03\x00",
    ):
        with pytest.raises(BytegolfError, match="a block declares"):
            unpacked(mine, whole[:start] + part + bytes(20))
    with pytest.raises(BytegolfError, match="a part of the kind 7"):
        unpacked(mine, whole[:start] + b"\x07")
    with pytest.raises(BytegolfError, match="a number without an end"):
        unpacked(mine, whole[:start] + b"\x01" + b"\xff" * 20)
    for number in (0, 5000):
        with pytest.raises(BytegolfError, match="it declares"):
            unpacked(mine, dataclasses.replace(header, streams=number).pack() + whole[start:])
    for number in (0, 65):
        with pytest.raises(BytegolfError, match=f"it declares {number} threads"):
            unpacked(mine, with_numerics(header, threads=number).pack())
    overlapping = dataclasses.replace(model_part(header), stride=WINDOW + 1)
    with pytest.raises(BytegolfError, match="it declares"):
        unpacked(mine, dataclasses.replace(header, model=overlapping).pack() + whole[start:])
    with pytest.raises(BytegolfError, match="it declares blocks"):
        unpacked(mine, whole[:3] + b"\x0f" + whole[4:])
    with pytest.raises(BytegolfError, match="format version 5"):
        unpacked(mine, whole[:2] + b"\x50" + whole[3:])


def test_only_models_over_bytes(make_model: ModelMaker) -> None:
    model = make_model("flat")
    model.config = dataclasses.replace(model.config, vocab_size=400)
    with pytest.raises(BytegolfError, match="only a model over bytes"):
        codec(model)
    with pytest.raises(BytegolfError, match="stride 17"):
        packed(codec(make_model("flat")), b"abc", stride=17)
