"""The artifact's file: round trips, an independent reader, and hostile files."""

import dataclasses
import hashlib
import json
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from bytegolf.artifact.pack import read_artifact, write_artifact
from bytegolf.artifact.payload import ROW_BITS, open_payload, verify
from bytegolf.artifact.quantize import Storage, dequantize, plan_of, quantize
from bytegolf.config import Config, ExportConfig, ModelConfig, StackConfig, TrainConfig
from bytegolf.errors import BytegolfError
from bytegolf.model.layers import storage_kinds
from bytegolf.model.lm import outline

CONFIG = Config(
    name="tiny",
    about="a test’s model",
    model=ModelConfig(network=StackConfig(layers=1, dim=8, heads=2, kv_heads=1)),
    train=TrainConfig(seq_len=8, batch_tokens=16, max_steps=1),
)
TOKENIZER = {"name": "byte260", "vocab_size": 260}


def weights() -> dict[str, Tensor]:
    rng = torch.Generator().manual_seed(0)
    return {
        "embedding.weight": torch.randn(260, 8, generator=rng),
        "blocks.0.mlp.fc.weight": 0.05 * torch.randn(257, 256, generator=rng),
        "blocks.0.mlp.proj.weight": torch.zeros(256, 257),
        "blocks.0.resid_mix": torch.stack([torch.ones(8), torch.zeros(8)]),
        "blocks.0.mixer.q_gain": torch.full((2,), 1.5),
        "skip_weights": torch.ones(0, 8),
        "temperature": torch.tensor(0.1),
    }


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("artifact") / "model.bytegolf"
    write_artifact(path, weights(), CONFIG, TOKENIZER, {"steps": 3, "seconds": 0.5})
    return path


def independent_reader(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Written from docs/formats/artifact.md alone."""
    data = path.read_bytes()
    magic, version, header_size = struct.unpack("<8sII", data[:16])
    assert magic == b"BYTEGOLF"
    assert version == 3
    assert hashlib.sha256(data[:-32]).digest() == data[-32:]
    header = json.loads(data[16 : 16 + header_size].decode("utf-8"))
    assert header["compression"] == "zlib"
    payload = zlib.decompress(data[16 + header_size : -32])
    assert len(payload) == header["payload_bytes"]
    tensors = {}
    for row in header["tensors"]:
        codes = row["quantizer"].endswith("_row")
        dtype = np.int8 if codes else {"fp16": np.dtype("<f2"), "fp32": np.dtype("<f4")}[row["quantizer"]]
        stored = payload[row["offset"] : row["offset"] + row["bytes"]]
        values = np.frombuffer(stored, dtype).astype(np.float32).reshape(row["shape"])  # type: ignore[call-overload]
        if codes:
            count = row.get("scales", row["shape"][0])
            scales = np.frombuffer(payload, "<f2", count, row["scale_offset"]).astype(np.float32)
            values = (values.reshape(count, -1) * scales[:, None]).reshape(row["shape"])
        tensors[row["name"]] = values
    return header, tensors


def test_round_trip(file: Path) -> None:
    artifact = read_artifact(file)
    assert {entry.name for entry in verify(file).entries} == artifact.state.keys()
    assert artifact.config == CONFIG
    assert artifact.tokenizer == TOKENIZER
    assert artifact.info == {"steps": 3, "seconds": 0.5}
    assert artifact.file_bytes == file.stat().st_size
    assert artifact.sha256 == hashlib.sha256(file.read_bytes()).hexdigest()
    original = weights()
    assert artifact.state.keys() == original.keys()
    plan = plan_of(original, storage_kinds(outline(CONFIG.model)), CONFIG.export)
    for name, tensor in original.items():
        assert torch.equal(artifact.state[name], dequantize(quantize(name, tensor, plan[name]))), name


def test_an_independent_reader_gets_the_same(file: Path) -> None:
    header, tensors = independent_reader(file)
    assert header["config"]["model"]["network"]["dim"] == 8
    assert header["tokenizer"] == TOKENIZER
    ours = read_artifact(file).state
    assert tensors.keys() == ours.keys()
    for name, values in tensors.items():
        assert np.array_equal(values, ours[name].numpy()), name
        assert values.shape == tuple(ours[name].shape)


def test_mixed_widths(tmp_path: Path) -> None:
    """Each tensor carries its own width, whatever the configuration says; so do scales that rows share."""
    state = {f"at{bits}": torch.randn(8, 16) for bits in ROW_BITS.values()} | {"table": torch.randn(12, 4)}
    plan = {f"at{bits}": Storage(scheme) for scheme, bits in ROW_BITS.items()} | {"table": Storage("int4_row", group=4)}
    ready = {"ready": quantize("ready", torch.randn(4, 4), Storage("int5_row"))}
    write_artifact(tmp_path / "mixed", {**state, **ready}, CONFIG, TOKENIZER, plan=plan)
    found = read_artifact(tmp_path / "mixed").state
    for name, tensor in state.items():
        assert torch.equal(found[name], dequantize(quantize(name, tensor, plan[name]))), name
    assert torch.equal(found["ready"], dequantize(ready["ready"]))
    header, tensors = independent_reader(tmp_path / "mixed")
    assert all(np.array_equal(tensors[name], found[name].numpy()) for name in found)
    assert {row["name"]: row.get("scales") for row in header["tensors"]}["table"] == 3


def test_the_configuration_says_how_many_bits(tmp_path: Path) -> None:
    sizes = []
    for bits in (8, 6, 4):
        config = dataclasses.replace(CONFIG, export=ExportConfig(bits=bits))
        write_artifact(tmp_path / "model", weights(), config, TOKENIZER)
        header, _ = independent_reader(tmp_path / "model")
        schemes = {row["name"]: row["quantizer"] for row in header["tensors"]}
        assert schemes["blocks.0.mlp.fc.weight"] == f"int{bits}_row"
        assert schemes["embedding.weight"] == "fp16"
        sizes.append((tmp_path / "model").stat().st_size)
    assert sizes[0] > 1.2 * sizes[1] > 1.2 * sizes[2]


def test_equal_input_gives_equal_bytes(file: Path, tmp_path: Path) -> None:
    state = dict(reversed(weights().items()))
    info = {"seconds": 0.5, "steps": 3}
    summary = write_artifact(tmp_path / "again", state, CONFIG, TOKENIZER, info)
    assert (tmp_path / "again").read_bytes() == file.read_bytes()
    assert summary.file_bytes == file.stat().st_size
    assert summary.sha256 == read_artifact(file).sha256
    assert summary.parameters == sum(tensor.numel() for tensor in state.values())


def test_a_model_without_tensors(tmp_path: Path) -> None:
    write_artifact(tmp_path / "empty", {}, CONFIG, TOKENIZER)
    assert read_artifact(tmp_path / "empty").state == {}


def refused(data: bytes, path: Path) -> str:
    path.write_bytes(data)
    with pytest.raises(BytegolfError) as caught:
        read_artifact(path)
    sentence = str(caught.value)
    with pytest.raises(BytegolfError) as checked:  # what `check` says, without torch
        verify(path)
    assert str(checked.value) == sentence
    assert str(path) in sentence
    assert "\n" not in sentence
    return sentence


QUIET = settings(
    deadline=None,
    derandomize=True,
    max_examples=300,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@QUIET
@given(st.data())
def test_an_altered_byte_is_noticed_wherever_it_is(file: Path, tmp_path: Path, data: st.DataObject) -> None:
    content = bytearray(file.read_bytes())
    # half of the examples near the start, where header and lengths are
    end = data.draw(st.sampled_from([64, len(content)]))
    content[data.draw(st.integers(0, end - 1))] ^= data.draw(st.integers(1, 255))
    refused(bytes(content), tmp_path / "altered")


@QUIET
@given(st.data())
def test_a_cut_file_is_noticed(file: Path, tmp_path: Path, data: st.DataObject) -> None:
    content = file.read_bytes()
    refused(content[: data.draw(st.integers(0, len(content) - 1))], tmp_path / "cut")


def test_a_longer_file_is_noticed(file: Path, tmp_path: Path) -> None:
    assert "hash" in refused(file.read_bytes() + b"\0", tmp_path / "longer")


def test_not_an_artifact(file: Path, tmp_path: Path) -> None:
    assert "not a bytegolf artifact" in refused(b"", tmp_path / "empty")
    assert "not a bytegolf artifact" in refused(b"PK\3\4" + bytes(100), tmp_path / "zip")
    content = bytearray(file.read_bytes())
    for version in (1, 2, 5):
        content[8:12] = struct.pack("<I", version)
        answer = refused(bytes(content), tmp_path / "other")
        assert f"format version {version} and this bytegolf reads 3 and 4 only" in answer
    with pytest.raises(BytegolfError, match="no such file"):
        read_artifact(tmp_path / "missing")
    with pytest.raises(BytegolfError, match="folder"):
        read_artifact(tmp_path)
    with pytest.raises(BytegolfError, match="not a file"):
        read_artifact(Path("/dev/zero"))


def forge(file: Path, change: Callable[[dict[str, Any]], Any], payload: bytes | None = None) -> bytes:
    """The file with its header (and payload) changed, and every length and hash made right again."""
    opened = open_payload(file)
    header = opened.box.header
    change(header)
    text = json.dumps(header).encode()
    raw = opened.payload if payload is None else payload
    body = struct.pack("<8sII", b"BYTEGOLF", 3, len(text)) + text + zlib.compress(raw)
    return body + hashlib.sha256(body).digest()


def put(**values: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda header: header.update(values)


def put_in_tensor(index: int, **values: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda header: header["tensors"][index].update(values)


FORGERIES: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "payload size above the limit": (put(payload_bytes=1 << 62), "no valid payload size"),
    "payload size negative": (put(payload_bytes=-1), "no valid payload size"),
    "payload size too small": (put(payload_bytes=10), "not the declared 10 bytes"),
    "payload size 0": (put(payload_bytes=0), "not the declared 0 bytes"),
    "payload size too large": (put(payload_bytes=1 << 29), "not the declared"),
    "payload size no number": (put(payload_bytes=True), "no valid payload size"),
    "compression": (put(compression="brotli"), "'brotli' is unknown"),
    "no list": (put(tensors={}), "lists no tensors"),
    "no objects": (put(tensors=[1]), "no object"),
    "no tensors": (put(tensors=[]), "do not fill"),
    "missing tensor": (lambda header: header["tensors"].pop(), "leave gaps|do not fill"),
    "twice": (lambda header: header["tensors"].append(header["tensors"][0]), "same name"),
    "name": (put_in_tensor(0, name="../x"), "no valid name"),
    "quantizer": (put_in_tensor(0, quantizer="int3"), "quantizer 'int3', which is not registered"),
    "quantizer no string": (put_in_tensor(0, quantizer=[]), "names no quantizer"),
    "shape": (put_in_tensor(0, shape=[256, 257.0]), "no valid shape"),
    "shape negative": (put_in_tensor(0, shape=[-256, -257]), "no valid shape"),
    "shape bool": (put_in_tensor(0, shape=[True, 257]), "no valid shape"),
    "shape huge": (put_in_tensor(0, shape=[1 << 30, 1 << 30, 0]), "no valid shape"),
    "shape of nine": (put_in_tensor(0, shape=[1] * 9), "no valid shape"),
    "shape a vector": (put_in_tensor(0, shape=[256 * 257]), "no valid shape"),
    "shape other": (put_in_tensor(0, shape=[256, 258]), "no valid place"),
    "offset overlaps": (put_in_tensor(0, offset=1), "overlap or leave gaps"),
    "offset negative": (put_in_tensor(0, offset=-1), "no valid place"),
    "offset far": (put_in_tensor(0, offset=1 << 29), "overlap or leave gaps"),
    "offset missing": (lambda header: header["tensors"][0].pop("offset"), "no valid place"),
    "scale missing": (lambda header: header["tensors"][0].pop("scale_offset"), "no valid place"),
    "bits": (put_in_tensor(0, quantizer="int2_row"), "is not registered"),
    "bits of more": (put_in_tensor(0, quantizer="int9_row"), "is not registered"),
    "bits too few for a code": (put_in_tensor(0, quantizer="int4_row"), "holds a code beyond ±7"),
    "scales of no whole rows": (put_in_tensor(0, scales=2), "no valid number of scales"),
    "scales none": (put_in_tensor(0, scales=0), "no valid number of scales"),
    "scales negative": (put_in_tensor(0, scales=-257), "no valid number of scales"),
    "scales no number": (put_in_tensor(0, scales=True), "no valid number of scales"),
    "scales other": (put_in_tensor(0, scales=1), "overlap or leave gaps|do not fill"),
    "bytes": (put_in_tensor(0, bytes=5), "no valid place"),
    "no config": (put(config=None), "no config"),
    "no tokenizer": (lambda header: header.pop("tokenizer"), "no tokenizer"),
    "config key": (lambda header: header["config"].update(colour="red"), "unknown configuration key colour"),
    "config type": (lambda header: header["config"]["train"].update(seed="x"), "train.seed"),
    "config overflow": (lambda header: header["config"]["train"].update(max_seconds=10**400), "not one this"),
    "version": (put(bytegolf=3), "no bytegolf version"),
    "surrogate": (put(info={"a": "\ud800"}), "no JSON"),
    "NaN": (put(info={"a": float("nan")}), "NaN is no JSON number"),
}


@pytest.mark.parametrize("case", FORGERIES)
def test_a_forged_header_is_answered(case: str, file: Path, tmp_path: Path) -> None:
    change, answer = FORGERIES[case]
    path = tmp_path / "forged"
    path.write_bytes(forge(file, change))
    with pytest.raises(BytegolfError, match=answer) as caught:
        read_artifact(path)
    assert str(path) in str(caught.value)
    with pytest.raises(BytegolfError) as checked:
        verify(path)
    assert str(checked.value) == str(caught.value)


def test_a_forgery_of_nothing_is_read(file: Path, tmp_path: Path) -> None:
    (tmp_path / "same").write_bytes(forge(file, lambda header: header.update(more=1)))
    assert read_artifact(tmp_path / "same").config == CONFIG


def test_other_headers(tmp_path: Path) -> None:
    for text in (b"[]", b"{", b"\xff", b"[" * 100_000, b"1" * 5000):
        body = struct.pack("<8sII", b"BYTEGOLF", 3, len(text)) + text + zlib.compress(b"")
        assert "header is no JSON" in refused(body + hashlib.sha256(body).digest(), tmp_path / "header")


def test_a_header_length_beyond_the_file(file: Path, tmp_path: Path) -> None:
    content = bytearray(file.read_bytes())
    content[12:16] = b"\xff\xff\xff\xff"
    assert "declares a header" in refused(bytes(content), tmp_path / "length")


def test_a_bomb_is_not_unpacked(file: Path, tmp_path: Path) -> None:
    bomb = forge(file, lambda header: None, payload=bytes(50_000_000))
    assert len(bomb) < 100_000
    assert "not the declared" in refused(bomb, tmp_path / "bomb")


def test_infinite_weights_in_a_file(file: Path, tmp_path: Path) -> None:
    opened = open_payload(file)
    row = next(row for row in opened.box.header["tensors"] if row["name"] == "temperature")
    payload = bytearray(opened.payload)
    payload[row["offset"] : row["offset"] + 4] = struct.pack("<f", float("inf"))
    assert "temperature holds NaN" in refused(forge(file, lambda header: None, bytes(payload)), tmp_path / "inf")


def test_what_cannot_be_written(tmp_path: Path) -> None:
    path = tmp_path / "model"
    with pytest.raises(BytegolfError, match="tensor name 'a b'"):
        write_artifact(path, {"a b": torch.ones(1)}, CONFIG, TOKENIZER)
    with pytest.raises(BytegolfError, match="plain, finite JSON"):
        write_artifact(path, {}, CONFIG, TOKENIZER, {"loss": float("nan")})
    with pytest.raises(BytegolfError, match="plain, finite JSON"):
        write_artifact(path, {}, CONFIG, {"path": Path("x")})
    with pytest.raises(BytegolfError, match="NaN or infinite"):
        write_artifact(path, {"a": torch.tensor(float("nan"))}, CONFIG, TOKENIZER)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").touch()
    with pytest.raises(BytegolfError, match="file"):
        write_artifact(tmp_path / "file" / "model", {}, CONFIG, TOKENIZER)
