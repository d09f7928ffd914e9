"""Compile the device that is not there, and load it before torch is imported: torch looks for its hooks once."""

from __future__ import annotations

import ctypes
import hashlib
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from importlib.util import find_spec
from pathlib import Path

SOURCE = Path(__file__).with_name("device.cpp")
BEFORE = ("libgomp*.so*", "libc10.so", "libtorch_cpu.so")
"""Libraries of torch's that ours is linked against, in the order in which they have to be loaded."""


class NotHereError(Exception):
    """Why the device cannot be pretended on this machine, in words."""


def torch_folder() -> Path:
    """Where torch is installed; it is not imported."""
    spec = find_spec("torch")
    if spec is None or spec.origin is None:
        raise NotHereError("torch is not installed")
    return Path(spec.origin).parent


def find_compiler() -> list[str]:
    """$CXX or the first there is of the usual ones."""
    named = shlex.split(os.environ.get("CXX", ""))
    command = named or list(filter(shutil.which, ("g++", "clang++")))[:1]
    if not command or not shutil.which(command[0]):
        raise NotHereError("there is no C++ compiler")
    return command


def build(folder: Path) -> Path:
    """The compiled library, in ``folder`` under a hash of all that it depends on: a second and a half, once.

    Raises NotHereError without a compiler, without torch's headers, and on anything but Linux.
    """
    if sys.platform != "linux":
        raise NotHereError(f"it is made for Linux, and this is {sys.platform}")
    torch, compiler = torch_folder(), find_compiler()
    if (torch / "lib" / "libc10_cuda.so").exists():
        raise NotHereError("torch is built for CUDA: run the tests marked gpu on a real device")
    include = torch / "include"
    if not include.is_dir():
        raise NotHereError("torch's headers are not installed")
    key = repr((SOURCE.read_bytes(), compiler, (torch / "version.py").read_bytes(), sysconfig.get_platform()))
    path = folder / f"pretend-cuda-{hashlib.sha256(key.encode()).hexdigest()[:16]}.so"
    if path.exists():
        return path
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as work:
        built = Path(work) / path.name
        includes = [f"-I{include}", f"-I{include}/torch/csrc/api/include"]
        libraries = [f"-L{torch / 'lib'}", "-lc10", "-ltorch_cpu"]
        command = [*compiler, "-std=c++20", "-O0", "-fPIC", "-shared", *includes, str(SOURCE), "-o", str(built)]
        result = subprocess.run([*command, *libraries], capture_output=True, text=True, check=False)
        if result.returncode:
            first = next((line for line in result.stderr.splitlines() if "error" in line), result.stderr[:200])
            raise NotHereError(f"{compiler[0]} failed ({first.strip()})")
        built.replace(path)  # atomic: another process may be building the same
    return path


def load(library: Path) -> None:
    """Load ``library`` into this process, which must not have imported torch yet."""
    assert "torch" not in sys.modules, "torch has looked for its hooks already"
    for pattern in BEFORE:
        for path in sorted((torch_folder() / "lib").glob(pattern)):
            ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
    ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
