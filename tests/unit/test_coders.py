"""The coders of an artifact's payload: exact round trips, a second reader, and streams from strangers."""

from __future__ import annotations

import contextlib
import hashlib
import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from range_reference import Reader
from test_pack import CONFIG, TOKENIZER, weights

from bytegolf.artifact import container, pack
from bytegolf.artifact.container import CODERS, BadStreamError, CoderName, compress, decompress
from bytegolf.artifact.pack import read_artifact, write_artifact
from bytegolf.artifact.payload import ROW_BITS, levels
from bytegolf.artifact.quantize import Storage
from bytegolf.artifact.weight_coder import (
    BitCounter,
    BrokenStreamError,
    Decoder,
    Encoder,
    Frequencies,
    TensorReader,
    TensorWriter,
    Writer,
)
from bytegolf.errors import BytegolfError

STREAMS = tuple(coder for coder in CODERS if coder != "range")
few = settings(deadline=None, derandomize=True, max_examples=30)


@st.composite
def matrices(draw: st.DrawFn) -> tuple[np.ndarray, int]:
    """Codes of some width and their largest: empty, single, constant, of rows and columns of all sizes, extreme."""
    top = levels(draw(st.sampled_from(sorted(ROW_BITS.values()))))
    rows, length = draw(st.sampled_from([(0, 3), (3, 0), (1, 1), (1, 40), (33, 5), (300, 4), (48, 30)]))
    rng = np.random.default_rng(draw(st.integers(0, 1 << 20)))
    kind = draw(st.sampled_from(["constant", "extreme", "even", "rows", "columns"]))
    if kind == "constant":
        codes = np.full((rows, length), draw(st.sampled_from([0, top, -top])))
    elif kind == "extreme":
        codes = rng.choice([-top, 0, top], (rows, length))
    elif kind == "even":
        codes = rng.integers(-top, top + 1, (rows, length))
    else:
        spread = np.exp(rng.normal(0, 2, (rows, 1) if kind == "rows" else (1, length)))
        codes = np.clip(np.rint(rng.normal(0, 1, (rows, length)) * spread), -top, top)
    return codes.astype(np.int8), top


def scales_of(codes: np.ndarray) -> np.ndarray:
    """As many as there are groups of three rows, or rows; or one more than rows, of no row's own."""
    rows = len(codes)
    return (np.arange(rows // 3 if rows % 3 == 0 else rows + rows % 2) % 5).astype("<f2")


def write(items: list[tuple[np.ndarray, int]], out: Writer, most: int) -> None:
    """Some matrices, each with its scales before it."""
    writer = TensorWriter(out, most)
    for codes, top in items:
        scale = scales_of(codes)
        writer.values(scale.view(np.uint8).reshape(-1, 2))
        writer.matrix(codes, top, scale.view("<u2").astype(np.int64))


def stream_of(items: list[tuple[np.ndarray, int]], most: int = 4) -> bytes:
    encoder = Encoder()
    write(items, encoder, most)
    return encoder.finish()


@few
@given(st.lists(matrices(), max_size=3), st.sampled_from([1, 7, 256]))
def test_codes_come_back(items: list[tuple[np.ndarray, int]], most: int) -> None:
    stream, counter = stream_of(items, most), BitCounter()
    write(items, counter, most)
    assert counter.bits / 8 - 4 <= len(stream) <= counter.bits / 8 * 1.001 + 8
    decoder = Decoder(stream, counting=True)
    reader = TensorReader(decoder, most)
    for codes, top in items:
        scale = scales_of(codes)
        assert reader.values(len(scale), 2).tobytes() == scale.tobytes()
        assert np.array_equal(reader.matrix(*codes.shape, top, scale.view("<u2").astype(np.int64)), codes)  # type: ignore[call-arg]
    decoder.close()
    assert decoder.bits == pytest.approx(counter.bits)


@settings(deadline=None, derandomize=True, max_examples=12)
@given(st.lists(matrices(), min_size=1, max_size=2), st.sampled_from([1, 5, 16]))
def test_a_second_reader_reads_the_same(items: list[tuple[np.ndarray, int]], most: int) -> None:
    reader = Reader(stream_of(items, most), most)
    for codes, top in items:
        scale = scales_of(codes)
        assert reader.values(len(scale), 2) == scale.tobytes()
        assert reader.matrix(*codes.shape, top, scale.tobytes()) == codes.tolist()  # type: ignore[call-arg]
    assert reader.stream.ended()


def test_it_learns_rows_columns_and_zeros() -> None:
    rng = np.random.default_rng(0)
    size = np.exp(rng.normal(0, 1, (512, 1))) * np.exp(rng.normal(0, 1, (1, 128))) * 4
    codes = np.clip(np.rint(rng.normal(0, 1, size.shape) * size), -127, 127).astype(np.int8)
    own = len(stream_of([(codes, 127)]))
    ideal = np.log2(np.maximum(size, 0.3) * 4.13).sum() / 8  # of a normal distribution whose σ is known
    assert own < 1.1 * ideal
    assert own < 0.9 * len(compress("zlib", codes.tobytes()))
    assert len(stream_of([(np.zeros((512, 128), np.int8), 127)])) < 1600


@pytest.mark.parametrize("coder", STREAMS)
@pytest.mark.parametrize("size", [0, 1, 5000, 3_000_000])
def test_streams_come_back_and_nothing_else_does(coder: CoderName, size: int) -> None:
    data = bytes(size) if size > 10_000 else np.random.default_rng(0).bytes(size)
    packed = compress(coder, data)
    assert decompress(coder, memoryview(packed), size) == data
    for wrong, declared in ((packed[:-1], size), (packed + b"x", size), (packed, size + 1), (b"", size + 1)):
        if size:  # a file's own hash says whether it is whole; here it is only that nothing crashes or swells
            with pytest.raises(BadStreamError):
                decompress(coder, memoryview(wrong), declared)
    with pytest.raises(BadStreamError):
        decompress(coder, memoryview(packed), size - 1)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[CoderName, Path]:
    """The same weights by every coder, with all quantisers and shared scales among them."""
    folder = tmp_path_factory.mktemp("coders")
    rng = torch.Generator().manual_seed(0)
    state = {f"b{bits}.weight": torch.randn(80, 6, generator=rng) * bits for bits in range(3, 9)}
    state |= {"half": torch.randn(20, 8, generator=rng), "wide": torch.randn(30, generator=rng)}
    state |= {"none": torch.ones(0, 8), "one": torch.tensor(0.1), "zero.weight": torch.zeros(80, 6)}
    plan = {name: Storage("fp32" if weight.ndim < 2 else "fp16") for name, weight in state.items()}
    plan |= {f"b{bits}.weight": Storage(scheme, group=4) for scheme, bits in ROW_BITS.items()}
    plan["zero.weight"] = Storage("int6_row")
    made: dict[CoderName, Path] = {}
    for coder in CODERS:
        made[coder] = folder / coder
        write_artifact(made[coder], state, CONFIG, TOKENIZER, plan=plan, coder=coder)
    return made


def test_every_coder_holds_the_same_weights(files: dict[CoderName, Path]) -> None:
    first = read_artifact(files["zlib"]).state
    for coder, path in files.items():
        state = read_artifact(path).state
        assert all(torch.equal(state[name], weight) for name, weight in first.items()), coder


def test_the_second_reader_reads_a_file(files: dict[CoderName, Path]) -> None:
    data = files["range"].read_bytes()
    size = struct.unpack_from("<I", data, 12)[0]
    header = json.loads(data[16 : 16 + size])
    reader = Reader(data[16 + size : -32], max(1, min(256, header["payload_bytes"] // 16384)))
    state = read_artifact(files["range"]).state
    for row in header["tensors"]:
        shape, numel = row["shape"], int(np.prod(row["shape"]))
        width = {"fp16": 2, "fp32": 4}.get(row["quantizer"])
        if width:
            found = np.frombuffer(reader.values(numel, width), f"<f{width}").astype(np.float32).reshape(shape)
        else:
            scales = reader.values(row.get("scales", shape[0]), 2)
            codes = reader.matrix(shape[0], numel // shape[0], levels(int(row["quantizer"][3])), scales)
            scale = np.frombuffer(scales, "<f2").astype(np.float32)
            found = np.array(codes, np.float32) * scale.repeat(shape[0] // len(scale))[:, None]
        assert np.array_equal(found.reshape(shape), state[row["name"]].numpy()), row["name"]
    assert reader.stream.ended()


def forged(path: Path, change: dict[str, Any], tensor: dict[str, Any] | None = None, cut: int = 0) -> bytes:
    """The file with its header changed and its packed payload cut, and lengths and hash made right again."""
    box = container.read(path)
    header = {**box.header, **change}
    header["tensors"] = [{**header["tensors"][0], **(tensor or {})}, *header["tensors"][1:]]
    text = json.dumps(header).encode()
    packed = bytes(box.packed)[: len(box.packed) - cut] if cut >= 0 else bytes(box.packed) + bytes(-cut)
    body = struct.pack("<8sII", b"BYTEGOLF", 3, len(text)) + text + packed
    return body + hashlib.sha256(body).digest()


def refused(data: bytes, path: Path) -> str:
    path.write_bytes(data)
    with pytest.raises(BytegolfError) as caught:
        read_artifact(path)
    assert str(path) in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("coder", CODERS)
def test_forgeries_are_answered(coder: CoderName, files: dict[CoderName, Path], tmp_path: Path) -> None:
    path, copy = files[coder], tmp_path / "forged"
    assert "no valid payload size" in refused(forged(path, {"payload_bytes": 1 << 31}), copy)
    assert "damaged" in refused(forged(path, {"payload_bytes": 5}), copy)
    assert "unknown" in refused(forged(path, {"compression": "gzip"}), copy)
    assert "unknown" in refused(forged(path, {"compression": ["zlib"]}), copy)
    for cut in (4, 1, 4000, -4, -400):
        assert "damaged" in refused(forged(path, {}, cut=cut), copy)
    for other in CODERS:
        if other != coder:
            assert "damaged" in refused(forged(path, {"compression": other}), copy)


def test_a_few_bytes_that_declare_much_are_refused(files: dict[CoderName, Path], tmp_path: Path) -> None:
    row = {"name": "a", "quantizer": "int3_row", "shape": [1, 1 << 28], "offset": 0, "bytes": 1 << 28}
    bomb = {"tensors": [{**row, "scale_offset": 1 << 28}], "payload_bytes": (1 << 28) + 2}
    assert "too many steps" in refused(forged(files["range"], bomb), tmp_path / "forged")


@settings(deadline=None, derandomize=True, max_examples=40)
@given(st.data())
def test_an_altered_stream_ends_in_words(files: dict[CoderName, Path], data: st.DataObject) -> None:
    """With the file's own hash made right, so that the coders themselves have to notice, or give other weights."""
    coder = data.draw(st.sampled_from(sorted(files)))
    whole = bytearray(files[coder].read_bytes()[:-32])
    start = 16 + struct.unpack_from("<I", whole, 12)[0]
    for _ in range(data.draw(st.integers(1, 3))):
        whole[data.draw(st.integers(start, len(whole) - 1))] ^= data.draw(st.integers(1, 255))
    path = files[coder].with_name("altered")
    path.write_bytes(bytes(whole) + hashlib.sha256(whole).digest())
    with contextlib.suppress(BytegolfError):
        state = read_artifact(path).state
        assert all(bool(torch.isfinite(weight).all()) for weight in state.values())


def test_streams_that_no_encoder_writes() -> None:
    by = Frequencies(np.array([[1, 3]]))
    for stream in (b"abc", b"\xff" * 9):
        with pytest.raises(BrokenStreamError, match="words"):
            Decoder(stream)
    encoder, zeros = Encoder(), np.zeros(40, np.int64)
    encoder.write(by, zeros, zeros)
    stream = encoder.finish()
    for wrong in (stream[:-4], stream + bytes(8), b"\xff" * len(stream)):
        decoder, fresh = Decoder(wrong), Frequencies(np.array([[1, 3]]))
        with pytest.raises(BrokenStreamError):  # noqa: PT012  # either of the two notices it
            decoder.read(fresh, zeros)
            decoder.close()


def test_a_model_that_would_take_forever_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pack, "MAX_STEPS", 10)
    with pytest.raises(BytegolfError, match="use zstd"):
        write_artifact(tmp_path / "model", weights(), CONFIG, TOKENIZER, coder="range")
    assert not (tmp_path / "model").exists()


def test_large_files_are_mapped_and_unpacked_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As small ones are: the same weights, and what is cut short, longer or a bomb is damaged."""
    path = tmp_path / "model"
    write_artifact(path, weights(), CONFIG, TOKENIZER)
    wanted = read_artifact(path).state
    monkeypatch.setattr(container, "MAPPED_BYTES", 1)
    monkeypatch.setattr(container, "_PIECE", 1000)
    found = read_artifact(path).state
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    for wrong in (-8, 8):
        size = container.read(path).header["payload_bytes"] + wrong
        assert "not the declared" in refused(forged(path, {"payload_bytes": size}), tmp_path / "wrong")
    monkeypatch.setattr(container, "UNASKED_BYTES", 0)
    assert container.payload_limit(10) == 200
    data = bytes(1 << 20)
    with pytest.raises(BadStreamError):
        decompress("zlib", memoryview(compress("zlib", data)), 1000)
