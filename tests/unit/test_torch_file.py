"""Checkpoints of strangers: tensors come back as they were saved, and no attack is executed or takes what it claims."""

from __future__ import annotations

import argparse
import builtins
import contextlib
import io
import itertools
import operator
import os
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from processes import in_own_process, needs_peak_memory, peak_memory
from torch import Tensor, nn

from bytegolf.artifact.public.pickle_machine import unpickle
from bytegolf.artifact.public.pickle_values import Inert, RefusedError
from bytegolf.artifact.public.safetensors_file import read_safetensors, write_safetensors
from bytegolf.artifact.public.torch_file import read_torch_file
from bytegolf.errors import BytegolfError


class Config(list[Any]):
    """An object of a class that the reader does not know, with a state: in place of an omegaconf ListConfig."""


def tensors() -> dict[str, Tensor]:
    torch.manual_seed(0)
    whole = torch.randn(40)
    return {
        "fp32": torch.randn(5, 7),
        "bf16": torch.randn(3, 4).bfloat16(),
        "fp16": torch.randn(2, 2, 2).half(),
        "integers": torch.arange(6).view(2, 3),
        "view": whole[3:27].view(4, 6).t(),
        "same": whole[5:9],
        "scalar": torch.tensor(2.5),
        "empty": torch.zeros(0, 3),
        "flags": torch.tensor([True, False]),
    }


@pytest.mark.parametrize("archive", [True, False], ids=["zip", "before 1.6"])
@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_tensors_come_back_as_they_were_saved(tmp_path: Path, archive: bool, protocol: int) -> None:
    wanted = tensors()
    torch.save(
        {"step": 3, "state_dict": wanted, "optimizer": {0: {"m": torch.ones(2).double()}}, "notes": Config([1, {2}])},
        tmp_path / "file.pt",
        pickle_protocol=protocol,
        _use_new_zipfile_serialization=archive,
    )
    found = read_torch_file(tmp_path / "file.pt")
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor), name


def test_parameters_with_attributes_and_unknown_objects_are_read_as_their_tensors(tmp_path: Path) -> None:
    module = nn.Linear(3, 4)
    vars(module.weight)["multipliers"] = Config([3.0, 1.7])  # as published checkpoints have them
    vars(module.bias)["_optim"] = {"lr_multiplier": argparse.Namespace(value=2)}
    torch.save(module.state_dict(keep_vars=True), tmp_path / "file.pt")
    found = read_torch_file(tmp_path / "file.pt")
    assert type(found["weight"]) is Tensor
    assert not found["weight"].requires_grad
    assert torch.equal(found["weight"], module.weight.detach())
    assert torch.equal(found["bias"], module.bias.detach())


def test_tensors_of_an_archive_are_mapped_and_not_read(tmp_path: Path) -> None:
    """And what is written into them does not reach the file."""
    path = tmp_path / "small.pt"
    torch.save({"big": torch.zeros(1 << 20)}, path)
    found = read_torch_file(path)["big"]
    content = path.read_bytes()[-1000:]
    found[-100:] = 1
    assert path.read_bytes()[-1000:] == content
    assert read_torch_file(path)["big"][-1] == 0


def test_a_compressed_archive_is_unpacked(tmp_path: Path) -> None:
    wanted = tensors()
    torch.save(wanted, tmp_path / "stored.pt")
    with zipfile.ZipFile(tmp_path / "stored.pt") as source, zipfile.ZipFile(tmp_path / "deflated.pt", "w", 8) as target:
        for name in source.namelist():
            target.writestr(name, source.read(name))
    found = read_torch_file(tmp_path / "deflated.pt")
    assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items())


# --------------------------------------------------------------------------------------------------------- attacks


class Calls:
    """Pickled as a call of ``what``."""

    def __init__(self, what: Callable[..., Any], *arguments: Any) -> None:
        self.call = (what, arguments)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.call


def calls(canary: Path) -> dict[str, Any]:
    """Objects whose unpickling by Python would make the file ``canary``, each another way."""
    touch = f"open({str(canary)!r}, 'w').close()"
    eval_by_getattr = Calls(getattr, Calls(__import__, "builtins"), "exec")
    return {
        "os.system": Calls(os.system, f"touch {canary}"),
        "builtins.eval": Calls(eval, touch),
        "builtins.exec": Calls(exec, touch),
        "open": Calls(open, str(canary), "w"),
        "getattr": eval_by_getattr,
        "getattr chain": Calls(operator.methodcaller("__call__", touch), eval_by_getattr),
        "nested in a tensor's arguments": Calls(torch._utils._rebuild_tensor_v2, Calls(os.system, f"touch {canary}")),
        "in a list of a dict": {"a": [1, {"b": (Calls(os.mkdir, str(canary)),)}]},
        "a storage's own loader": Calls(torch.storage._load_from_bytes, b""),
        "another pickle": Calls(pickle.loads, pickle.dumps(Calls(os.mkdir, str(canary)))),
        "map": Calls(builtins.map, os.mkdir, [str(canary)]),
    }


NAMES = sorted(calls(Path("canary")))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("layout", ["zip", "before 1.6"])
def test_what_would_call_something_is_refused_and_not_called(tmp_path: Path, name: str, layout: str) -> None:
    canary, path = tmp_path / "canary", tmp_path / "file.pt"
    attack = calls(canary)[name]
    torch.save({"weight": torch.ones(2), "extra": attack}, path, _use_new_zipfile_serialization=layout == "zip")
    with pytest.raises(BytegolfError, match=r"is refused .*nothing in it was executed"):
        read_torch_file(path)
    assert not canary.exists()


class Stateful:
    """A class that would run what its state says."""

    def __setstate__(self, state: str) -> None:
        Path(state).touch()


def test_methods_of_classes_in_the_file_are_not_called(tmp_path: Path) -> None:
    """Its own ``__setstate__``, and attributes of a class or function that BUILD would set."""
    canary = tmp_path / "canary"
    stateful = Stateful()
    vars(stateful)["path"] = 1
    data = pickle.dumps(stateful, 2).replace(pickle.dumps({"path": 1}, 2)[2:-1], pickle.dumps(str(canary), 2)[2:-1])
    with pytest.raises(TypeError):
        pickle.loads(pickle.dumps(stateful, 2))  # it would be called
    assert isinstance(unpickle(io.BytesIO(data)), Inert)
    assert not canary.exists()
    # c torch \n nn \n, then BUILD with {"Linear": "x"}: would replace a class for the rest of the process
    with pytest.raises(RefusedError, match="state"):
        unpickle(io.BytesIO(b"ctorch\nnn\n}X\x06\0\0\0LinearX\x01\0\0\0xsb."))
    assert isinstance(torch.nn.Linear, type)


PROGRAMS = {
    "a memo number beyond memory": (b"]r\xff\xff\xff\x7f.", True),
    "a memo that was never filled": (b"h\x05.", False),
    "text of four gigabytes": (b"\x80\x02X\xff\xff\xff\xff.", False),
    "bytes of an exabyte": (b"\x80\x04\x8e" + struct.pack("<Q", 1 << 60) + b".", False),
    "a frame of an exabyte": (b"\x80\x04\x95" + struct.pack("<Q", 1 << 60) + b"N.", True),
    "a number of two gigabytes": (b"\x80\x02\x8b\xff\xff\xff\x7f.", False),
    "a number of a million digits": (b"I" + b"9" * 1_000_000 + b"\n.", False),
    "lists in lists": (b"]" * 200_000 + b"a" * 199_999 + b".", True),
    "a tuple doubled 5,000 times as a key": (b"}N" + b"2\x86" * 5_000 + b"Ns.", False),
    "a list in itself": (b"]2a.", True),
    "a pop below a mark": (b"N(0NR.", False),
    "more popped than there is": (b"0.", False),
    "items of a number": (b"K\x01K\x02K\x03s.", False),
    "half an item": (b"}(K\x01u.", False),
    "a call of text": (b"X\x02\0\0\0id)R.", False),
    "a call with no tuple": (b"cos\nsystem\nN R.", False),
    "an extension code": (b"\x80\x02\x82\x01.", False),
    "a buffer outside": (b"\x80\x05\x97.", False),
    "a textual persistent name": (b"Psecret\n.", False),
    "a persistent name of a file": (b"X\x0b\0\0\0/etc/passwdQ.", False),
    "an object by INST": (b"(Vid\nios\nsystem\n.", False),
    "an object by OBJ": (b"(cos\nsystem\nVid\no.", False),
    "a global of globals": (b"\x80\x04cos\nsystem\n\x8c\x01x\x93.", False),
    "no end": (b"\x80\x02N", False),
    "nothing": (b"", False),
    "no instruction": (b"\xff\xfe\xfd", False),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_programs_that_want_more_than_there_is(name: str) -> None:
    """Read, or refused; in either case by an object per instruction at most, and without recursion."""
    data, fine = PROGRAMS[name]
    if fine:
        unpickle(io.BytesIO(data))
    else:
        with pytest.raises(RefusedError):
            unpickle(io.BytesIO(data))


def memory_of_reading(path: str) -> list[int]:
    """By how many bytes the most memory of the process grows with every program, and with a file's tensors."""
    peaks = [peak_memory()]
    for data, _ in PROGRAMS.values():
        with contextlib.suppress(RefusedError):
            unpickle(io.BytesIO(data))
        peaks.append(peak_memory())
    read_torch_file(Path(path))
    return [after - before for before, after in itertools.pairwise([*peaks, peak_memory()])]


@needs_peak_memory
def test_memory_does_not_follow_what_a_program_wants_or_a_file_holds(tmp_path: Path) -> None:
    torch.save({"big": torch.zeros(48 << 20)}, tmp_path / "big.pt")
    *programs, file = in_own_process(memory_of_reading, str(tmp_path / "big.pt"))
    for name, grown in zip(PROGRAMS, programs, strict=True):
        assert grown < 100 << 20, name
    assert file < 64 << 20, "of 192 MiB"


def test_a_pickle_without_end_is_refused() -> None:
    with pytest.raises(RefusedError, match="too many"):
        unpickle(io.BytesIO(b"N0" * 600_000 + b"N."))


def described(
    count: int = 4, shape: tuple[int, ...] = (4,), stride: tuple[int, ...] = (1,), offset: int = 0, key: str = "0"
) -> bytes:
    """The pickle of {"w": tensor} as torch writes it, with numbers of one's own."""

    class Pickler(pickle._Pickler):  # the one in Python takes persistent names of any object
        def persistent_id(self, value: Any) -> Any:
            return ("storage", torch.FloatStorage, key, "cpu", count) if value == "STORAGE" else None

    out = io.BytesIO()
    Pickler(out, 2).dump({"w": Calls(torch._utils._rebuild_tensor_v2, "STORAGE", offset, shape, stride, False, None)})
    return out.getvalue()


def archive(path: Path, data: bytes, numbers: bytes = bytes(16), **more: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as target:
        target.writestr("x/data.pkl", data)
        target.writestr("x/data/0", numbers)
        for name, content in more.items():
            target.writestr(f"x/{name}", content)
    return path


WRONG: dict[str, dict[str, Any]] = {
    "a storage larger than its numbers": {"count": 5},
    "a storage of terabytes": {"count": 1 << 40},
    "a view beyond its storage": {"offset": 1},
    "a view of strides beyond it": {"stride": (2,)},
    "a trillion elements of four": {"shape": (1 << 40,), "stride": (0,)},
    "elements twice": {"shape": (2, 4), "stride": (0, 1)},
    "a negative stride": {"stride": (-1,)},
    "a negative offset": {"offset": -1},
    "a negative size": {"shape": (-4,)},
    "a shape beyond 64 bits": {"shape": (0, 1 << 40, 1 << 40), "stride": (0, 0, 0)},
    "other dimensions": {"stride": (1, 1)},
    "a storage that is not there": {"key": "1"},
    "a path as a storage's name": {"key": "../../../etc/passwd"},
}


@pytest.mark.parametrize("name", WRONG)
def test_tensors_that_are_not_what_they_claim(tmp_path: Path, name: str) -> None:
    assert torch.equal(read_torch_file(archive(tmp_path / "good.pt", described()))["w"], torch.zeros(4))
    with pytest.raises(BytegolfError, match="is refused"):
        read_torch_file(archive(tmp_path / "bad.pt", described(**WRONG[name])))


def test_archives_that_are_not_what_they_claim(tmp_path: Path) -> None:
    for name, more in {"big-endian": {"byteorder": b"big"}, "two objects": {"../y/data.pkl": b"N."}}.items():
        path = archive(tmp_path / f"{name}.pt", described(), **more)
        if name == "big-endian":
            with pytest.raises(BytegolfError, match="little-endian"):
                read_torch_file(path)
        else:  # names in an archive are names: nothing is written beside it
            read_torch_file(path)
            assert sorted(each.name for each in tmp_path.iterdir()) == ["big-endian.pt", "two objects.pt"]
    with zipfile.ZipFile(tmp_path / "bomb.pt", "w", zipfile.ZIP_DEFLATED) as target:
        target.writestr("x/data.pkl", described(count=1 << 24, shape=(1 << 24,)))
        target.writestr("x/data/0", bytes(1 << 26))
    with pytest.raises(BytegolfError, match="claims 67,108,864 bytes"):
        read_torch_file(tmp_path / "bomb.pt")
    with zipfile.ZipFile(tmp_path / "pickle.pt", "w", zipfile.ZIP_DEFLATED) as target:
        target.writestr("x/data.pkl", b"N0" * (8 << 20))
    with pytest.raises(BytegolfError, match="claims"):
        read_torch_file(tmp_path / "pickle.pt")
    for name, content in {"empty": b"", "text": b"hello", "zip": b"PK\x03\x04", "tar": b"./".ljust(512, b"\0")}.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(BytegolfError):
            read_torch_file(tmp_path / name)
    for value in ([torch.ones(2)], {"step": 3}, {3: torch.ones(2)}, torch.ones(2)):
        torch.save(value, tmp_path / "other.pt")
        with pytest.raises(BytegolfError, match=r"by name|for a name"):
            read_torch_file(tmp_path / "other.pt")


@pytest.mark.parametrize("layout", ["zip", "before 1.6"])
def test_a_file_cut_anywhere_is_refused(tmp_path: Path, layout: str) -> None:
    torch.save(tensors(), tmp_path / "whole.pt", _use_new_zipfile_serialization=layout == "zip")
    data = (tmp_path / "whole.pt").read_bytes()
    for end in range(1, len(data), len(data) // 40):
        (tmp_path / "cut.pt").write_bytes(data[:end])
        with pytest.raises(BytegolfError):
            read_torch_file(tmp_path / "cut.pt")


SEEDS: list[bytes] = []


def seeds() -> list[bytes]:
    """Good files, small."""
    if not SEEDS:
        for packed in (True, False):
            out = io.BytesIO()
            torch.save(
                {"a": torch.ones(3).bfloat16(), "b": Config([1, "x"])}, out, _use_new_zipfile_serialization=packed
            )
            SEEDS.append(out.getvalue())
        SEEDS.append(pickle.dumps({"a": [1, 2.5, ("x", None)], "b": Config([3])}, 4))
    return SEEDS


@settings(
    max_examples=300,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    st.integers(0, 2),
    st.lists(st.tuples(st.integers(0, 1 << 20), st.integers(0, 255), st.integers(0, 3)), max_size=8),
    st.binary(max_size=40),
)
def test_altered_files_are_read_or_refused(
    tmp_path: Path, seed: int, changes: list[tuple[int, int, int]], more: bytes
) -> None:
    """Whatever bytes: tensors or a BytegolfError, no other exception."""
    data = bytearray(seeds()[seed])
    for place, value, how in changes:
        at = place % len(data)
        if how == 0:
            data[at] = value
        elif how == 1:
            data[at:at] = more
        elif how == 2:
            del data[at : at + value]
        else:
            data[at : at + 4] = struct.pack("<i", place * value % (1 << 31))
        data = data or bytearray(b"\0")
    (tmp_path / "file.pt").write_bytes(data)
    with contextlib.suppress(BytegolfError):
        read_torch_file(tmp_path / "file.pt")
    with contextlib.suppress(RefusedError):
        unpickle(io.BytesIO(bytes(data)))


INSTRUCTIONS = [bytes([code]) for code in range(256) if bytes([code]) in vars(pickle).values()]
PHRASES = [
    *INSTRUCTIONS,
    b"K\x01",
    b"X\x01\0\0\0a",
    b"cos\nsystem\n",
    b"ccollections\nOrderedDict\n",
    b"h\x00",
    b"q\x00",
]


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.lists(st.sampled_from(PHRASES), max_size=30))
def test_any_row_of_instructions_is_read_or_refused(instructions: list[bytes]) -> None:
    with contextlib.suppress(RefusedError):
        unpickle(io.BytesIO(b"".join(instructions) + b"."))


# ---------------------------------------------------------------------------------------------------- safetensors


def test_safetensors_come_back_and_equal_arguments_give_equal_bytes(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    wanted = {name: tensor.clone() for name, tensor in tensors().items()}
    for name in ("one", "two"):
        write_safetensors(tmp_path / name, wanted, {"format": "pt", "note": "é"})
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    found, notes = read_safetensors(tmp_path / "one")
    library = load_file(tmp_path / "one")
    assert notes == {"format": "pt", "note": "é"}
    for name, tensor in wanted.items():
        assert torch.equal(found[name], tensor)
        assert torch.equal(library[name], tensor)
        assert found[name].dtype == tensor.dtype
    data = (tmp_path / "one").read_bytes()
    for end in (0, 4, 20, len(data) - 1):
        (tmp_path / "cut").write_bytes(data[:end])
        with pytest.raises(BytegolfError, match="damaged"):
            read_safetensors(tmp_path / "cut")
