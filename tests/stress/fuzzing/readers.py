"""Every reader of bytegolf with good input for it, and how to change that so that it gets past the checksums.

A reader's input is one byte string, written where the reader looks for it in a folder of its own.
"""

from __future__ import annotations

import hashlib
import io
import json
import struct
import tomllib
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import public_hnet
import safetensors.torch
import torch
import zstandard

from bytegolf.artifact.container import CODERS, compress, decompress
from bytegolf.artifact.exchange import import_model
from bytegolf.artifact.export import latest
from bytegolf.artifact.loading import load_artifact, load_own
from bytegolf.artifact.pack import read_artifact
from bytegolf.artifact.public.opening import open_public
from bytegolf.config import Config
from bytegolf.data import tables
from bytegolf.data.blocks import documents, of_files
from bytegolf.data.corpus import expand
from bytegolf.data.dataset import data_hash, data_summary, open_split, read_shard, validation_bytes
from bytegolf.data.document import Reading
from bytegolf.data.specs import read_specs
from bytegolf.data.tokenizer import SentencePieceTokenizer, load_tokenizer
from bytegolf.errors import BytegolfError
from bytegolf.folders import Tally
from bytegolf.infer.codec import Codec
from bytegolf.tools.study.definition import bytes_per_token, read_study
from bytegolf.tools.study.report import show
from fuzzing import samples
from fuzzing.mutations import Chance, alter_bytes, any_value, json_bytes, structured, toml_bytes


class Reader(ABC):
    """One way in: what it reads, and how its input is made bad."""

    name: ClassVar[str]
    roams: ClassVar[bool] = False
    """whether its input may name files anywhere, as it is written by whoever runs it"""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.seeds = self.prepare()
        """good inputs"""

    @abstractmethod
    def prepare(self) -> list[bytes]:
        """Fill the folder with what the input needs around it; good inputs."""

    @abstractmethod
    def read(self, data: bytes) -> object:
        """Read ``data`` as bytegolf would."""

    def alter(self, chance: Chance, data: bytes, other: bytes) -> bytes:
        """``data`` changed; ``other`` is another good input."""
        return alter_bytes(chance, data, other)

    def input(self, chance: Chance) -> bytes:
        """A seed, changed once or a few times."""
        data, other = chance.choice(self.seeds), chance.choice(self.seeds)
        for _ in range(chance.choice((1, 1, 1, 2, 2, 4))):
            data = self.alter(chance, data, other)
        return data

    def written(self, data: bytes, name: str = "input") -> Path:
        """The file with ``data`` in it."""
        path = self.folder / name
        path.write_bytes(data)
        return path


class Shards(Reader):
    """A token shard, opened by itself and as a split."""

    name = "shard"

    def prepare(self) -> list[bytes]:
        return [samples.shard(count) for count in (0, 1, 300, 5000)]

    def read(self, data: bytes) -> object:
        path = self.written(data, "fineweb_val_000000.bin")
        stream = open_split(self.folder, "byte260", "val", 260)
        return read_shard(path, 260).sum(), stream.slice(0, len(stream))


class Manifest(Reader):
    """A data folder's manifest.json, with data sets, a tokenizer and decoys outside around it."""

    name = "manifest"

    def prepare(self) -> list[bytes]:
        home = self.folder
        self.folder = home / "data"
        manifest = samples.data_folder(self.folder)
        samples.data_folder(home / "outside")
        return [json.dumps(manifest).encode()]

    def alter(self, chance: Chance, data: bytes, other: bytes) -> bytes:
        if chance.random() < 0.2:
            return alter_bytes(chance, data, other)
        return structured(chance, data, other, json.loads, json_bytes)

    def read(self, data: bytes) -> object:
        self.written(data, "manifest.json")
        tried: list[Callable[[], object]] = [partial(data_summary, self.folder)]
        for name, size in (("byte260", 260), (samples.SUBWORDS, samples.PIECES)):
            tried += [
                partial(open_split, self.folder, name, "val", size),
                partial(load_tokenizer, name, self.folder),
                partial(validation_bytes, self.folder, name),
                partial(bytes_per_token, self.folder, name, "val"),
                partial(data_hash, self.folder, name),
            ]
        return all_of(tried)


class Specs(Reader):
    """A file of tokenizer specs."""

    name = "specs"

    def prepare(self) -> list[bytes]:
        return [json.dumps({"tokenizers": specs}).encode() for specs in samples.SPECS]

    def alter(self, chance: Chance, data: bytes, other: bytes) -> bytes:
        if chance.random() < 0.2:
            return alter_bytes(chance, data, other)
        return structured(chance, data, other, json.loads, json_bytes)

    def read(self, data: bytes) -> object:
        return [spec.to_json() for spec in read_specs(self.written(data, "specs.json"))]


class SentencePiece(Reader):
    """A tokenizer's .model file: opened, and used on a few texts."""

    name = "sentencepiece"

    def prepare(self) -> list[bytes]:
        return [samples.sentencepiece_model(), samples.sentencepiece_model(identity=True)]

    def read(self, data: bytes) -> object:
        tokenizer = SentencePieceTokenizer(self.written(data, "tokenizer.model"))
        for text in samples.TEXTS:
            ids = tokenizer.encode(text)
            tokenizer.pieces(text)
            previous = np.concatenate(([tokenizer.BOS], ids[:-1])) if len(ids) else ids
            if len(tokenizer.decode(ids)) != tokenizer.byte_counts(ids, previous).sum():
                raise AssertionError("its byte counts are wrong")
        return tokenizer.identity()


class Artifact(Reader):
    """A model's file: read, and its model built. Its hash is made right again after most changes."""

    name = "artifact"

    def prepare(self) -> list[bytes]:
        return samples.artifacts(self.folder)

    def alter(self, chance: Chance, data: bytes, other: bytes) -> bytes:
        kind = chance.randrange(10)
        body = data[:-32]
        if kind == 0:
            return alter_bytes(chance, data, other)
        if kind < 3:
            return sealed(alter_bytes(chance, body, other))
        if len(body) < 16:
            return sealed(samples.MAGIC + chance.randbytes(40))
        version, size = struct.unpack_from("<II", body, 8)
        header, packed = body[16 : 16 + size], body[16 + size :]
        if kind < 7:
            header = structured(chance, header, other, json.loads, json_bytes)
        elif kind == 7:
            packed = alter_bytes(chance, packed, other)
        else:
            header, packed = self._repacked(chance, header, packed, other)
        if chance.random() < 0.05:
            version = chance.choice((0, 1, 2, 3, 4, 2**31))
        return sealed(struct.pack("<8sII", samples.MAGIC, version, len(header)) + header + packed)

    def _repacked(self, chance: Chance, header: bytes, packed: bytes, other: bytes) -> tuple[bytes, bytes]:
        """Another payload, or another coder of the same; or one that is far larger than it says."""
        try:
            told = json.loads(header)
            coder = told["compression"]
            payload = bytes(decompress(coder, memoryview(packed), told["payload_bytes"]))
            if chance.random() < 0.5:
                payload = alter_bytes(chance, payload, other)
            elif chance.random() < 0.3:
                payload += bytes(chance.choice((1, 1 << 20, 1 << 26)))
            if chance.random() < 0.5:
                told["payload_bytes"] = len(payload)
            if chance.random() < 0.3:
                coder = told["compression"] = chance.choice(CODERS[:-1])
            level = zstandard.ZstdCompressor(1) if coder == "zstd" else None
            quick: dict[str, Callable[[bytes], bytes]] = {
                "zlib": lambda data: zlib.compress(data, 1),
                "zstd": lambda data: level.compress(data) if level else b"",
            }
            press = quick.get(coder) or (lambda data: compress(coder, data[:5000]))
            return json.dumps(told).encode(), press(payload)
        except Exception:
            return header, alter_bytes(chance, packed, other)

    def read(self, data: bytes) -> object:
        path = self.written(data, "artifact.bgolf")
        artifact = read_artifact(path)
        return load_artifact(artifact, path, device="cpu", precision="fp32")


class Bundle(Reader):
    """Several files as one input, one behind the other."""

    FILES: ClassVar[tuple[str, ...]]

    def alter(self, chance: Chance, data: bytes, other: bytes) -> bytes:
        parts, others = (unbundled(whole, len(self.FILES)) for whole in (data, other))
        at = chance.randrange(len(parts))
        part = parts[at]
        if chance.random() < 0.3:
            part = alter_bytes(chance, part, others[at])
        elif self.FILES[at].endswith("jsonl"):
            part = altered_line(chance, part, others[at])
        elif self.FILES[at].endswith("json"):
            part = structured(chance, part, others[at], json.loads, json_bytes)
        elif len(part) >= 8:
            part = altered_header(chance, part)
        parts[at] = part
        return bundled(*parts)


class Checkpoint(Bundle):
    """A run's latest checkpoint, as `export` opens it."""

    name = "checkpoint"
    FILES: ClassVar[tuple[str, ...]] = ("progress.json", "model.safetensors", "averaged.safetensors")

    def prepare(self) -> list[bytes]:
        return [bundled(*parts) for parts in samples.run_folder(self.folder, self.FILES)]

    def read(self, data: bytes) -> object:
        self.place(*unbundled(data, len(self.FILES)))
        return latest(self.folder)

    def place(self, *parts: bytes) -> None:
        """Write the checkpoint's files, and checksums that are right: what is behind them is to be read."""
        place = samples.only_checkpoint(self.folder)
        told = place / "checksums.json"
        hashes = json.loads(told.read_bytes())["sha256"]
        for name, part in zip(self.FILES, parts, strict=False):
            (place / name).write_bytes(part)
            hashes[name] = hashlib.sha256(part).hexdigest()
        told.write_text(json.dumps({"sha256": hashes}))


class Resume(Checkpoint):
    """The same with the optimiser's state and the metrics, as `train --resume` goes on for a step."""

    name = "resume"
    FILES = ("progress.json", "model.safetensors", "optimizer.safetensors", "metrics.jsonl")

    def read(self, data: bytes) -> object:
        *parts, metrics = unbundled(data, 4)
        self.place(*parts)
        (self.folder / "metrics.jsonl").write_bytes(metrics)
        samples.resume(self.folder)
        return None


class Compressed(Reader):
    """A compressed file, decompressed; its checksums are made right again after most changes."""

    name = "compressed"

    def prepare(self) -> list[bytes]:
        self.codec: Codec = samples.codec()
        return samples.compressed(self.codec)

    def alter(self, chance: Chance, data: bytes, other: bytes) -> bytes:
        if chance.random() < 0.15:
            return alter_bytes(chance, data, other)
        parts = samples.parts_of(data)
        if not parts:
            return alter_bytes(chance, data, other)
        at = chance.randrange(len(parts))
        match chance.randrange(6):
            case 0:
                parts.insert(at, parts[at])
            case 1:
                del parts[at]
            case 2:
                parts[at] = chance.choice(samples.parts_of(other) or parts)
            case 3:  # within the first bytes, where the sizes are
                parts[at] = alter_bytes(chance, parts[at][:11], b"")[:11].ljust(11, b"\0") + parts[at][11:]
            case _:
                parts[at] = alter_bytes(chance, parts[at], other)
        return b"".join(parts)

    def read(self, data: bytes) -> object:
        return self.codec.decompress(io.BytesIO(data), io.BytesIO(), "the input")


class CompressedAlone(Reader):
    """A file that was compressed without a model: text, a sound, and a picture behind text; changed anywhere."""

    name = "compressed alone"

    def prepare(self) -> list[bytes]:
        return samples.compressed_alone()

    def alter(self, chance: Chance, data: bytes, other: bytes) -> bytes:
        size = 20 if chance.random() < 0.5 else len(data)  # most often where kinds, layouts and sizes are
        return data[:3] + alter_bytes(chance, data[3:size], other[3:size]) + data[size:]

    def read(self, data: bytes) -> object:
        return Codec().decompress(io.BytesIO(data), io.BytesIO(), "the input")


class TomlFile(Reader):
    """A TOML file, which may name other files."""

    roams = True

    def alter(self, chance: Chance, data: bytes, other: bytes) -> bytes:
        if chance.random() < 0.2:
            return alter_bytes(chance, data, other)
        return structured(chance, data, other, lambda text: tomllib.loads(text.decode()), toml_bytes)


class ConfigFile(TomlFile):
    """A configuration's TOML file."""

    name = "config"

    def prepare(self) -> list[bytes]:
        return samples.presets()

    def read(self, data: bytes) -> object:
        return Config.load(self.written(data, "config.toml"))


class Overrides(Reader):
    """Overrides on the command line: a line each."""

    name = "overrides"
    roams = True

    def prepare(self) -> list[bytes]:
        return samples.overrides()

    def alter(self, chance: Chance, data: bytes, other: bytes) -> bytes:
        if chance.random() < 0.5:
            return alter_bytes(chance, data, other)
        lines = data.split(b"\n")
        at = chance.randrange(len(lines))
        key, _, value = lines[at].partition(b"=")
        if chance.random() < 0.5:
            value = json_bytes(chance, any_value(chance))
        elif chance.random() < 0.5:
            key = chance.choice(other.split(b"\n")).partition(b"=")[0]
        else:
            key = alter_bytes(chance, key, other)
        lines[at] = key + b"=" + value
        return b"\n".join(lines)

    def read(self, data: bytes) -> object:
        return Config.load("cpu-demo", data.decode("utf-8", "surrogateescape").split("\n"))


class StudyFile(TomlFile):
    """A study's file, and its table without results."""

    name = "study"

    def prepare(self) -> list[bytes]:
        return samples.studies()

    def read(self, data: bytes) -> object:
        return show(read_study(self.written(data, "study.toml")), samples.screen())


class Results(Reader):
    """A study's results.jsonl, and the table made of it."""

    name = "results"

    def prepare(self) -> list[bytes]:
        return samples.results(self.folder)

    def alter(self, chance: Chance, data: bytes, other: bytes) -> bytes:
        return alter_bytes(chance, data, other) if chance.random() < 0.2 else altered_line(chance, data, other)

    def read(self, data: bytes) -> object:
        (self.folder / "tiny" / "results.jsonl").write_bytes(data)
        return show(read_study(self.folder / "tiny.toml"), samples.screen())


class Ended(Reader):
    """What a study's run leaves in its folder, before it becomes a row: summary.json and environment.json."""

    name = "ended"

    def prepare(self) -> list[bytes]:
        self.run, seeds = samples.ended_run(self.folder)
        return [bundled(*parts) for parts in seeds]

    def alter(self, chance: Chance, data: bytes, other: bytes) -> bytes:
        parts = unbundled(data, 2)
        at = chance.randrange(2)
        if chance.random() < 0.2:
            parts[at] = alter_bytes(chance, parts[at], other)
        else:
            parts[at] = structured(chance, parts[at], other, json.loads, json_bytes)
        return bundled(*parts)

    def read(self, data: bytes) -> object:
        for name, part in zip(("summary.json", "environment.json"), unbundled(data, 2), strict=True):
            (self.run / name).write_bytes(part)
        (self.folder / "tiny" / "results.jsonl").unlink(missing_ok=True)
        return show(read_study(self.folder / "tiny.toml"), samples.screen())


class Documents(Reader):
    """Sources of `prepare`: plain text, JSON lines, plain or compressed, Parquet; the first byte says which.

    Plain JSON lines go to Arrow, too, however short they are.
    """

    name = "documents"
    ENDINGS = (".txt", ".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet")

    def prepare(self) -> list[bytes]:
        tables.ARROW_BYTES = range(1 << 30)
        return samples.sources(self.folder)

    def alter(self, chance: Chance, data: bytes, other: bytes) -> bytes:
        if len(data) < 2:
            return alter_bytes(chance, data, other)
        if data[0] == 1 and chance.random() < 0.5:
            return b"\1" + structured(chance, data[1:], other, json.loads, json_bytes)
        return data[:1] + alter_bytes(chance, data[1:], other[1:])

    def read(self, data: bytes) -> object:
        path = self.written(data[1:], "source" + self.ENDINGS[data[0] % 5 if data else 0])
        if path.suffix == ".jsonl":
            tables.block_records(data[1:], str(path), Reading())
        found = documents(of_files(expand([str(path)], Tally()), Reading()), lambda count: None)
        return sum(len(document.data) for document in found)


class PublicFile(Reader):
    """A public H-Net's .pt, a zip archive or as before PyTorch 1.6, opened with its configuration beside it."""

    name = "public"

    def prepare(self) -> list[bytes]:
        config = public_hnet.public(["m1"], (64,), d_state=4)
        good = []
        for archive in (True, False):
            out = io.BytesIO()
            torch.save(public_hnet.weights(config), out, _use_new_zipfile_serialization=archive)
            good.append(out.getvalue())
        (self.folder / "input.json").write_text(json.dumps(config))
        return good

    def read(self, data: bytes) -> object:
        return len(open_public(self.written(data, "input.pt")).state)


class PublicFolder(Bundle):
    """A public H-Net's JSON and safetensors, as `import` opens them: what a file claims may fit the other or not."""

    name = "hnet"
    FILES = ("config.json", "model.safetensors")

    def prepare(self) -> list[bytes]:
        good = []
        for config in (public_hnet.public(["m1"], (64,), d_state=4), public_hnet.public(d_model=(32, 64), d_state=4)):
            state = safetensors.torch.save(public_hnet.weights(config))
            good.append(bundled(json.dumps(config).encode(), state))
        return good

    def read(self, data: bytes) -> object:
        for name, part in zip(self.FILES, unbundled(data, 2), strict=True):
            self.written(part, name)
        return len(open_public(self.folder).state)


class Weights(Reader):
    """Imported weights: safetensors with a header of ours."""

    name = "weights"

    def prepare(self) -> list[bytes]:
        config = public_hnet.public(["m1"], (64,), d_state=4)
        source = public_hnet.write(self.folder / "public", config, public_hnet.weights(config))
        written = import_model(str(source), self.folder / "good.safetensors").weights
        return [written.read_bytes()]

    def alter(self, chance: Chance, data: bytes, other: bytes) -> bytes:
        if chance.random() < 0.5 or len(data) < 8:
            return alter_bytes(chance, data, other)
        return altered_header(chance, data)

    def read(self, data: bytes) -> object:
        return load_own(self.written(data, "input.safetensors"), precision="fp32").model


READERS: tuple[type[Reader], ...] = (
    *(Shards, Manifest, Specs, SentencePiece, Artifact, Checkpoint, Resume, Compressed, CompressedAlone),
    *(PublicFile, PublicFolder, Weights),
    *(ConfigFile, Overrides, StudyFile, Results, Ended, Documents),
)


def sealed(body: bytes) -> bytes:
    """An artifact's bytes with the hash that they should have."""
    return body + hashlib.sha256(body).digest()


def bundled(*parts: bytes) -> bytes:
    """Several files as one input: each behind its length."""
    return b"".join(struct.pack("<I", len(part)) + part for part in parts)


def unbundled(data: bytes, count: int) -> list[bytes]:
    """The files of an input, however it was cut."""
    parts = []
    for _ in range(count):
        size = int.from_bytes(data[:4], "little")
        parts.append(data[4 : 4 + size])
        data = data[4 + size :]
    return parts


def altered_header(chance: Chance, data: bytes) -> bytes:
    """A safetensors file with its header changed as what it means."""
    size = struct.unpack_from("<Q", data)[0]
    header = structured(chance, data[8 : 8 + size], b"", json.loads, json_bytes)
    return struct.pack("<Q", len(header)) + header + data[8 + size :]


def altered_line(chance: Chance, data: bytes, other: bytes) -> bytes:
    """JSON lines with one of them changed as what it means."""
    lines = data.split(b"\n")
    at = chance.randrange(len(lines))
    lines[at] = structured(chance, lines[at], other, json.loads, json_bytes)
    return b"\n".join(lines)


def all_of(tried: list[Callable[[], Any]]) -> list[Any]:
    """What all of them give; each is tried, and the last one's BytegolfError is raised."""
    found, refused = [], None
    for one in tried:
        try:
            found.append(one())
        except BytegolfError as error:
            refused = error
    if refused is not None:
        raise refused
    return found
