"""The native kernels: C++ in ``kernels/``, compiled once for this machine, called through ctypes.

They fuse the passes over activations that PyTorch makes one by one; matrix products stay PyTorch's. Each kernel has a
plain PyTorch form beside its caller, which is the reference in the tests and what runs where there is no compiler, on
any device but a CPU, or with ``BYTEGOLF_NATIVE=0`` in the environment.

The library lands in the cache folder under a hash of its sources, compiler and machine, so it is built once (seconds).
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import os
import platform
import re
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from importlib import resources
from multiprocessing.pool import ThreadPool
from pathlib import Path

import torch
from torch import Tensor
from torch._subclasses import FakeTensor  # (why) private but documented: torch has no other way to tell

from bytegolf.files import cache_folder
from bytegolf.ops.compiler import NO_COMPILER, code, command_with, find_compiler, included

_DTYPES = {torch.bfloat16: 0, torch.float32: 1, torch.float64: 2}
"""The codes by which kernels choose their instance; ``common.h`` has the same."""

# reassociating sums lets the compiler vectorise them; infinities and NaN keep their meaning
_FLAGS = ["-std=c++17", "-O3", "-march=native", "-fPIC"]
_FLAGS += ["-fno-math-errno", "-fno-trapping-math", "-fno-signed-zeros", "-fassociative-math"]

EXACT = "exact_"
"""How the sources for stepping are named whose results must not depend on what a compiler makes of a loop
(``exact_lanes.h``)."""

_EXACT_FLAGS = ["-fno-associative-math", "-ffp-contract=off"]

_BUILDING = threading.Lock()

_enabled = os.environ.get("BYTEGOLF_NATIVE", "1") != "0"


class NativeUnavailableError(Exception):
    """Why there are no native kernels here, in words."""


@contextlib.contextmanager
def disabled() -> Iterator[None]:
    """Within the context the plain PyTorch path runs (for tests and benchmarks)."""
    global _enabled
    before, _enabled = _enabled, False
    try:
        yield
    finally:
        _enabled = before


def usable(*tensors: Tensor) -> bool:
    """Whether native kernels can take these tensors: real ones on a CPU, all of one supported dtype, kernels built."""
    first = tensors[0]
    if not _enabled or first.dtype not in _DTYPES or torch.compiler.is_compiling():
        return False
    for tensor in tensors:
        if tensor.device.type != "cpu" or tensor.dtype != first.dtype or is_fake(tensor):
            return False
    return _library() is not None


def one_position(x: Tensor, weight: Tensor, dtype: torch.dtype | None = None) -> bool:
    """Whether the kernels of ``step.cpp`` can take ``x`` (B, L, …) in ``dtype`` (None: its own).

    That is one position of one sequence, on a CPU, in fp32 or fp64; ``weight`` is one of the parameters, which the
    kernels read as fp32 (``model.double()`` makes others). (why) A step is mostly the cost of starting operations:
    these kernels do in one what takes dozens. With more rows the matrix products of PyTorch are faster.
    """
    if x.shape[:2] != (1, 1) or weight.dtype != torch.float32:
        return False
    if (dtype or x.dtype) not in (torch.float32, torch.float64):
        return False
    return usable(x if dtype is None else x.new_empty(0, dtype=dtype))


def is_fake(tensor: Tensor) -> bool:
    """Whether a tensor is a FakeTensor: shape, dtype and device without values, as under ``FakeTensorMode``."""
    return isinstance(tensor, FakeTensor)


def check_range(ids: Tensor, size: int, what: str) -> None:
    """Raise IndexError where one of ``ids`` is not below ``size``: kernels write where ids say."""
    if ids.numel():
        low, high = (int(t) for t in ids.aminmax())
        if low < 0 or high >= size:
            raise IndexError(f"{what} {low if low < 0 else high} is out of range for an alphabet of {size}")


def why_not() -> str | None:
    """Why the native kernels are not used, as a sentence; None if they are."""
    if not _enabled:
        return "native kernels are switched off (BYTEGOLF_NATIVE=0): the plain PyTorch path is slower"
    try:
        _built()
    except NativeUnavailableError as error:
        return f"no native kernels: {error}; the plain PyTorch path is slower"
    return None


def spaced(x: Tensor) -> Tensor:
    """x (B, L, X), copied unless each row is contiguous and all rows are equally far apart, as part of a packed
    projection is: such kernels take its address and ``x.stride(1)``.
    """
    regular = x.stride(2) == 1 and (x.shape[0] == 1 or x.stride(0) == x.shape[1] * x.stride(1))
    return x if regular else x.contiguous()


def call(name: str, like: Tensor, *arguments: Tensor | int | float | None) -> None:
    """Run the kernel ``name`` in the instance for ``like.dtype``.

    Tensors are passed as pointers to their first element and must be contiguous (None: a null pointer), numbers as the
    kernel declares them. The caller answers for shapes and dtypes: kernels check nothing.
    """
    library = _library()
    assert library is not None
    packed: list[int | float | None] = [_DTYPES[like.dtype]]
    for argument in arguments:
        if isinstance(argument, Tensor):
            assert argument.is_contiguous(), name
            if not argument.is_cpu:  # its address would be read as one of this memory
                raise RuntimeError(f"Expected all tensors to be on the same device, but {name} got {argument.device}")
            packed.append(argument.data_ptr())
        else:
            packed.append(argument)
    getattr(library, name)(*packed)  # an attribute is looked up in the library once, an item every time


def _declare(library: ctypes.CDLL, sources: dict[str, bytes]) -> ctypes.CDLL:
    """Tell ctypes each kernel's parameters, as the sources have them.

    (why) It then converts a whole call in C (2.9 µs instead of 4.0 for a norm's 13 arguments, where an object was made
    of each), and refuses what does not fit: a float for an ``i64`` is a TypeError, an int becomes a ``double``.
    """
    for text in sources.values():
        for name, parameters in re.findall(r'extern "C" void (\w+)\(([^)]*)\)', text.decode()):
            function = getattr(library, name)
            function.restype = None
            function.argtypes = [_ctype(parameter) for parameter in parameters.split(",")]
    return library


def _ctype(parameter: str) -> type[ctypes.c_void_p | ctypes.c_double | ctypes.c_int64]:
    if "*" in parameter:
        return ctypes.c_void_p
    return ctypes.c_double if "double" in parameter else ctypes.c_int64


@functools.cache
def _library() -> ctypes.CDLL | None:
    try:
        return _built()
    except NativeUnavailableError:
        return None


@functools.cache
def _built() -> ctypes.CDLL:
    """The loaded library, compiled if the cache has none for this machine."""
    compiler = find_compiler()
    if not compiler:
        raise NativeUnavailableError(NO_COMPILER)
    sources = _sources()
    key = hashlib.sha256(
        repr((sorted(sources.items()), _FLAGS, _EXACT_FLAGS, _identity(compiler))).encode()
    ).hexdigest()[:16]
    folder = cache_folder() / "native"
    try:
        with _BUILDING:  # threads that ask at once would each compile; who waited finds what was built
            path = next(filter(_intact, folder.glob(f"kernels-{key}-*.so")), None)
            return _declare(ctypes.CDLL(str(path or _compile(compiler, sources, folder, key))), sources)
    except OSError as error:
        raise NativeUnavailableError(
            f"they cannot be built or loaded in {folder} ({error.strerror or error})"
        ) from error


def _sources() -> dict[str, bytes]:
    folder = resources.files("bytegolf.ops") / "kernels"
    return {entry.name: entry.read_bytes() for entry in folder.iterdir() if entry.is_file()}


def _intact(path: Path) -> bool:
    """Whether a library is whole: its name ends in its hash, for loading half a file can end the process."""
    return path.stem.rpartition("-")[2] == _digest(path.read_bytes())


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


def _identity(compiler: list[str]) -> tuple[str, ...]:
    """What a compiled library depends on besides its sources: the compiler, the CPU, torch's OpenMP."""
    version = subprocess.run([*compiler, "--version"], capture_output=True, text=True, check=False).stdout
    cpu = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        cpu += "".join(next((line for line in lines if line.startswith(key)), "") for key in ("model name", "flags"))
    return *compiler, version, cpu, torch.__version__


def _compile(compiler: list[str], sources: dict[str, bytes], folder: Path, key: str) -> Path:
    """Compile each source by itself, as many at a time as there are CPUs, and link them; the library's path.

    Objects are kept: a script's kernels are this package's, some of them, and a change of one leaves the others as
    they are.
    """
    keep = folder.parent / "objects"
    for place in (folder, keep):
        place.mkdir(parents=True, exist_ok=True)
    identity = _identity(compiler)
    with tempfile.TemporaryDirectory(dir=folder) as name:
        work = Path(name)
        for source, text in sources.items():
            (work / source).write_bytes(text)

        def known(unit: str) -> tuple[list[str], str, Path | None]:
            """A source's flags, the name of its object but for that one's hash, and the object if it is there."""
            flags = [*_FLAGS, *(_EXACT_FLAGS if unit.startswith(EXACT) else []), *_openmp()]
            texts = [code(sources[one].decode()) for one in included(unit, sources)]
            stem = f"{unit}-{_digest(repr((texts, flags, identity)).encode())}"
            return flags, stem, next(filter(_intact, keep.glob(f"{stem}-*.o")), None)

        def build(unit: str) -> Path:
            flags, stem, found = known(unit)
            if found:
                return found
            made = work / f"{unit}.o"
            _run([*command_with(compiler, flags), "-c", str(work / unit), "-o", str(made)])
            place = keep / f"{stem}-{_digest(made.read_bytes())}.o"
            return made.replace(place)  # atomic: another process may be building the same

        units = [unit for unit in sorted(sources) if unit.endswith(".cpp")]
        if not all(found for _, _, found in map(known, units)):
            sys.stderr.write("native kernels · compiling them for this machine, once: half a minute or so\n")
        with ThreadPool(min(len(units), os.cpu_count() or 1)) as pool:
            objects = pool.map(build, units)
        built = work / "kernels.so"
        begin = command_with(compiler, [*_FLAGS, *_openmp()])
        _run([*begin, "-shared", *map(str, objects), "-o", str(built), *map(str, _torch_openmp())])
        path = folder / f"kernels-{key}-{_digest(built.read_bytes())}.so"
        built.replace(path)
    return path


def _run(command: list[str]) -> None:
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        first = next((line for line in result.stderr.splitlines() if "error" in line), result.stderr[:200])
        raise NativeUnavailableError(f"{command[0]} failed ({first.strip()})")


def _openmp() -> list[str]:
    """Apple's compiler has no OpenMP: there the kernels run on one thread."""
    return [] if sys.platform == "darwin" else ["-fopenmp"]


def _torch_openmp() -> list[Path]:
    """torch's own OpenMP runtime, named first: a second one in the process would fight it over the cores."""
    return sorted((Path(torch.__file__).parent / "lib").glob("libgomp*.so*")) if sys.platform == "linux" else []
