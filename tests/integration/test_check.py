"""`check`: what was written passes, and a changed byte anywhere in it is seen and named."""

from __future__ import annotations

import io
import json
import shutil
import zlib
from pathlib import Path

import pytest
from commands import SUBWORDS, Ran, TinyRun, cli, good, refused, text

from bytegolf.artifact import checkpoint as store
from bytegolf.infer import format as compressed
from bytegolf.infer.codec import Codec
from bytegolf.infer.numerics import PLAIN, PROBE_BYTES, Numerics
from bytegolf.tools.check import Finding, check
from bytegolf.tools.study import results


@pytest.fixture
def run(tiny_run: TinyRun, tmp_path: Path) -> Path:
    """A copy of a run that may be damaged."""
    return Path(shutil.copytree(tiny_run.folder, tmp_path / "run"))


@pytest.fixture
def data(tiny_data: Path, tmp_path: Path) -> Path:
    """A copy of a data folder that may be damaged."""
    return Path(shutil.copytree(tiny_data, tmp_path / "data"))


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    """A compressed file of a stored block; checking one needs no model."""
    model = compressed.ModelPart(bytes(8), 64, Numerics(1, PLAIN, "here", bytes(PROBE_BYTES)))
    header = compressed.Header(compressed.MIB, 64, 4, None, model)
    crc = zlib.crc32(b"hello", zlib.crc32(header.pack()))
    parts = (header, compressed.Block(0, 5, b"hello"), compressed.End(crc))
    path = tmp_path / "letter.bgz"
    path.write_bytes(b"".join(part.pack() for part in parts))
    return path


def findings(path: Path) -> dict[str, Finding]:
    return {verdict.path.name: verdict.finding for verdict in check(path)}


def flip(path: Path, at: int) -> None:
    """Change one bit of the byte at ``at``, from the end if negative."""
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def places(path: Path, count: int = 6) -> list[int]:
    """The first and the last byte, and some between."""
    size = path.stat().st_size
    return sorted({0, size - 1, *(size * part // count for part in range(1, count))})


def seen(path: Path, file: Path, finding: Finding = "damaged") -> None:
    """Each byte tried of ``file``, changed, is seen by checking ``path``."""
    whole = file.read_bytes()
    for at in places(file):
        flip(file, at)
        found = [verdict for verdict in check(path) if verdict.finding == "damaged"]
        assert found, f"a changed byte {at} of {file} is not seen"
        assert str(file.name) in found[0].evidence
        file.write_bytes(whole)


def test_all_that_was_written_passes(tiny_run: TinyRun, subword_run: TinyRun, packed: Path) -> None:
    ran = good("check", tiny_run.folder, subword_run.folder, tiny_run.data, packed, "--json")
    assert ran.json["damaged"] == 0
    assert ran.json["checked"] == len(ran.json["verdicts"])
    kinds = {row["kind"]: row["finding"] for row in ran.json["verdicts"]}
    for kind in ("checkpoint", "artifact", "shard", "compressed file"):
        assert kinds[kind] == "whole", ran.err
    assert findings(subword_run.folder)["tokenizer.model"] == "whole"
    assert kinds["summary"] == "no checksum"


def test_a_changed_byte_of_a_run_is_seen(run: Path) -> None:
    (checkpoint,) = store.checkpoints(run / "checkpoints")
    seen(run, run / "artifact.bgolf")
    seen(checkpoint, checkpoint / "model.safetensors")
    seen(run, checkpoint / "optimizer.safetensors")
    seen(run, checkpoint / "progress.json")


def test_checksums_that_were_changed_themselves(run: Path) -> None:
    (checkpoint,) = store.checkpoints(run / "checkpoints")
    seen(checkpoint, checkpoint / "checksums.json")


def test_a_changed_byte_of_a_shard_is_seen_and_named(data: Path) -> None:
    for file in (data / "datasets").glob("*/fineweb_*.bin"):
        seen(data, file)
    file = next((data / "tokenizers").glob("*.model"))
    seen(data, file)
    flip(file, -1)
    ran = cli("check", data, "--json")
    assert ran.code == 1
    assert ran.json["damaged"] == 1
    (row,) = [row for row in ran.json["verdicts"] if row["finding"] == "damaged"]
    assert row["path"] == str(file)
    assert "bytegolf prepare" in row["evidence"]


def test_a_missing_shard_and_one_too_many(data: Path) -> None:
    file = data / "datasets" / f"fineweb10B_{SUBWORDS}" / "fineweb_train_000000.bin"
    shutil.copyfile(file, file.with_name("fineweb_train_000001.bin"))
    assert any("counts 1 shards of train, and 2 are there" in verdict.evidence for verdict in check(data))
    file.unlink()
    assert findings(data)[file.name] == "damaged"


def test_a_changed_byte_of_a_compressed_file_is_seen(packed: Path) -> None:
    for at in range(packed.stat().st_size):
        flip(packed, at)
        assert findings(packed) == {packed.name: "damaged"}, at
        flip(packed, at)
    packed.write_bytes(packed.read_bytes()[:-1])
    assert findings(packed) == {packed.name: "damaged"}


@pytest.mark.parametrize("content", [b"", b"x", b"to be or not to be, " * 8], ids=["empty", "stored", "coded"])
def test_a_changed_byte_of_a_small_compressed_file_is_seen(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "small.bgz"
    with path.open("wb") as file:
        Codec().compress(io.BytesIO(content), file, size=len(content))
    assert findings(path) == {path.name: "whole"}
    spared = 0
    for at in range(path.stat().st_size):
        flip(path, at)
        finding = findings(path)[path.name]
        if finding == "whole":  # the last bits of a code may say nothing
            original = io.BytesIO()
            Codec().decompress(io.BytesIO(path.read_bytes()), original)
            assert original.getvalue() == content, at
            spared += 1
        else:
            assert finding == "damaged", at
        flip(path, at)
    assert spared <= (len(content) > 1)


def row(seed: int) -> dict[str, object]:
    return {"definition": "d", "data": "e", "seed": seed, "status": "failed", "error": "it did not fit"}


def test_a_changed_byte_of_results_is_seen(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    path.write_text("".join(json.dumps(row(seed)) + "\n" for seed in range(3)))
    assert findings(path) == {path.name: "no checksum"}, "what earlier versions wrote"
    rows = [{**row(seed), results.CHECKSUM: results.checksum(row(seed))} for seed in range(3)]
    path.write_text("".join(json.dumps(one) + "\n" for one in rows))
    assert findings(tmp_path) == {path.name: "whole"}
    whole = path.read_bytes()
    for at in range(0, whole.index(b"\n"), 3):
        flip(path, at)
        assert findings(path) != {path.name: "whole"}, at
        path.write_bytes(whole)
    path.write_bytes(whole[:-40])
    assert findings(path) == {path.name: "damaged"}


def test_checkpoints_of_earlier_versions_are_read(run: Path) -> None:
    (checkpoint,) = store.checkpoints(run / "checkpoints")
    (checkpoint / "checksums.json").unlink()
    assert findings(checkpoint) == {checkpoint.name: "no checksum"}
    flip(checkpoint / "model.safetensors", 0)
    assert findings(checkpoint) == {checkpoint.name: "damaged"}


def test_a_submission_claims_its_sizes(run: Path, tmp_path: Path) -> None:
    home = tmp_path / "submission"
    home.mkdir()
    shutil.copyfile(run / "artifact.bgolf", home / "artifact.bgolf")
    for name in ("train_gpt.py", "README.md", "train.log"):
        (home / name).write_text("pass\n")
    claims = {"bytes_code": 5, "bytes_model_int8_zlib": (home / "artifact.bgolf").stat().st_size}
    (home / "submission.json").write_text(json.dumps(claims))
    assert set(findings(home).values()) == {"whole", "no checksum"}
    (home / "train_gpt.py").write_text("pass \n")
    assert findings(home)["submission.json"] == "damaged"
    (home / "train_gpt.py").write_text("pas(\n")
    assert findings(home)["train_gpt.py"] == "damaged"


def test_what_is_not_finished_is_no_damage(data: Path) -> None:
    (data / "prepare.unfinished").write_text("fineweb10B_byte260\n")
    ran: Ran = good("check", data, "--json")
    assert [one["finding"] for one in ran.json["verdicts"]].count("unfinished") == 1


def test_a_link_that_leads_back_up_is_not_followed(packed: Path) -> None:
    (packed.parent / "inner").mkdir()
    (packed.parent / "inner" / "loop").symlink_to(packed.parent, target_is_directory=True)
    assert [verdict.path for verdict in check(packed.parent)] == [packed]


def test_wrong_inputs(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text(text(100))
    assert "there is no file or folder" in refused("check", tmp_path / "none")
    assert "nothing that bytegolf wrote" in refused("check", tmp_path)
    assert "nothing that bytegolf wrote" in refused("check", tmp_path / "notes.txt")
    assert "name what is to be checked" in refused("check")
    (tmp_path / "empty.bgolf").write_bytes(b"")
    assert cli("check", tmp_path).code == 1
