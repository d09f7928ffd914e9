"""Pinned files of package registries, through the registries' own clients: fetched once, kept, checked by hash."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from bytegolf.errors import BytegolfError
from bytegolf.files import cache_folder, disk_errors, make_folder, sha256


@dataclass(frozen=True)
class Pinned:
    """A file of a package, by name, version and hash."""

    name: str
    version: str
    file: str
    """its name in the registry, and in the cache"""
    sha256: str


def from_pip(pinned: Pinned, what: str, options: Sequence[str] = ("--only-binary=:all:",)) -> Path:
    """The file in the cache, fetched by ``pip download`` if it is not there; ``what`` it is, for errors."""

    def command(folder: Path) -> list[str]:
        requirements = folder / "requirements.txt"
        requirements.write_text(f"{pinned.name}=={pinned.version} --hash=sha256:{pinned.sha256}\n", encoding="utf-8")
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", *options]
        return [*pip, "--require-hashes", "--disable-pip-version-check", "--dest", str(folder), "-r", str(requirements)]

    return _kept(pinned, command, "pip", f"{what} {pinned.name}=={pinned.version}")


def from_apt(pinned: Pinned, what: str) -> Path:
    """The same for a Debian package, by ``apt-get download``."""
    path = cache_folder() / pinned.file
    if not path.exists() and shutil.which("apt-get") is None:
        raise BytegolfError(
            f"{what} is in the Debian package {pinned.name}, but there is no apt-get here: put {pinned.file} of "
            f"version {pinned.version} into {path.parent}, or give your own text as SOURCE"
        )
    package = f"{pinned.name}={pinned.version}"
    return _kept(pinned, lambda folder: ["apt-get", "download", "-q", package], "apt-get", f"{what} {package}")


def _kept(pinned: Pinned, command: Callable[[Path], list[str]], client: str, what: str) -> Path:
    path = cache_folder() / pinned.file
    if not path.exists():
        make_folder(path.parent)
        with disk_errors(path), tempfile.TemporaryDirectory(dir=path.parent) as name:
            done = subprocess.run(command(Path(name)), capture_output=True, text=True, check=False, cwd=name)
            fetched = Path(name) / pinned.file
            if done.returncode or not fetched.exists():
                lines = done.stderr.strip().splitlines() or ["it said nothing"]
                said = next((line for line in reversed(lines) if line.startswith(("ERROR", "E:"))), lines[-1])
                reason = said.removeprefix("ERROR: ").removeprefix("E: ")[:200]
                raise BytegolfError(
                    f"{client} could not fetch {what} ({reason}): check the network, or give your own text as SOURCE"
                )
            fetched.replace(path)
    if (found := sha256(path)) != pinned.sha256:
        raise BytegolfError(
            f"{path} has the SHA-256 {found[:16]}…, not {pinned.sha256[:16]}…: delete it to fetch it again"
        )
    return path
