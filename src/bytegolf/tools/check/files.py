"""One thing at a time: is this file, or this checkpoint, what was written?

What needs torch is imported where it is needed: shards, results and manifests are checked without.
"""

from __future__ import annotations

import functools
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Concatenate, ParamSpec

from bytegolf.artifact import checkpoint_folder, container, payload
from bytegolf.data.shards import read_shard
from bytegolf.errors import BytegolfError, counted
from bytegolf.files import disk_errors, lines_of, sha256
from bytegolf.folders import check_file
from bytegolf.tools.check.results import Finding, Verdict
from bytegolf.tools.study.results import CHECKSUM, row_of

RESULTS = "results.jsonl"
ARTIFACT, COMPRESSED = ".bgolf", ".bgz"
"""By which a file is known whose first bytes are damaged."""

Found = tuple[Finding, str]
"""What looking at a file came to, and the evidence."""
P = ParamSpec("P")
Look = Callable[Concatenate[Path, P], Found]


def judged(kind: str) -> Callable[[Look[P]], Callable[Concatenate[Path, P], Verdict]]:
    """Have a function that says what it found at a path give a verdict; if it raises BytegolfError, on damage."""

    def decorate(look: Look[P]) -> Callable[Concatenate[Path, P], Verdict]:
        @functools.wraps(look)
        def judge(path: Path, /, *args: P.args, **options: P.kwargs) -> Verdict:
            try:
                if path.exists():  # what is missing is each reader's to say
                    check_file(path, "put back what bytegolf wrote")
                return Verdict(path, kind, *look(path, *args, **options))
            except BytegolfError as error:
                return Verdict(path, kind, "damaged", str(error))

        return judge

    return decorate


@judged("artifact")
def artifact(path: Path) -> Found:
    """An artifact, by the hash at its end, and every tensor in it."""
    found = payload.verify(path)
    return "whole", f"its hash matches; {counted(len(found.entries), 'tensor')}, SHA-256 {found.box.sha256[:16]}…"


@judged("weights")
def weights(path: Path) -> Found:
    """Weights that are not quantised: a file that holds no hash of its own."""
    from bytegolf.artifact.weights_file import read_weights

    found = read_weights(path)
    return "no checksum", f"{counted(len(found.state), 'tensor')} of {found.config.name}; SHA-256 {found.sha256[:16]}…"


@judged("compressed file")
def compressed_file(path: Path) -> Found:
    """What `compress` wrote, by the checksums of its blocks; the model that it needs is not asked."""
    from bytegolf.infer import format as compressed

    with disk_errors(path, "read"), path.open("rb") as file:
        header = compressed.Header.read(file, str(path))
        size = blocks = 0
        crc = zlib.crc32(header.pack())
        stored = True
        while isinstance(part := compressed.read_part(file, header, str(path)), compressed.Block):
            size, blocks, stored = size + part.size, blocks + 1, stored and not part.streams
            crc = zlib.crc32(part.payload, crc)
    if header.size not in (None, size):
        raise compressed.damaged(str(path), f"its blocks hold {counted(size, 'byte')}, and it declares another number")
    if stored and crc != part.crc:  # of blocks that are stored, the original's checksum is that of their payloads
        raise compressed.damaged(str(path), "a checksum does not match")
    of = f", of artifact {header.model.artifact.hex()}…" if header.model else ""
    return "whole", f"{counted(blocks, 'block')}, whose checksums match; {counted(size, 'byte')}{of}"


@judged("shard")
def shard(path: Path, known: str | None = None, ids: int | None = None, remedy: str = "make it again") -> Found:
    """A token shard: its hash, where ``known``, its header, and that its tokens are below ``ids``, where given."""
    tokens = len(read_shard(path, ids))
    if known is None:
        return "no checksum", f"{counted(tokens, 'token')}, header and length agree"
    return hashed(path, known, remedy, counted(tokens, "token"))


def hashed(path: Path, known: str, remedy: str, more: str = "") -> Found:
    """Compare the hash of a file with the ``known`` one; ``remedy`` says what to do if it is another."""
    if (found := sha256(path)) != known:
        raise BytegolfError(f"{path} has the SHA-256 {found[:16]}… and not {known[:16]}…: {remedy}")
    return "whole", f"SHA-256 {found[:16]}… as recorded" + (f"; {more}" if more else "")


@judged("checkpoint")
def checkpoint(path: Path) -> Found:
    """A checkpoint's folder: every file against its checksums, and each can be read."""
    hashes, count = checkpoint_folder.verify(path)
    if hashes is None:
        return "no checksum", f"{counted(count, 'tensor')} can be read"
    if missing := [name for name in hashes if not (path / name).is_file()]:
        raise BytegolfError(f"{path} lacks {missing[0]}: delete the folder to go on from the one before")
    return "whole", f"{counted(len(hashes), 'checksum')} match; {counted(count, 'tensor')}"


@judged("study results")
def results(path: Path) -> Found:
    """A study's rows, each by its own checksum."""
    with disk_errors(path, "read the results"):
        lines = lines_of(path.read_text(encoding="utf-8", errors="replace"))
    without = 0
    for number, line in enumerate(lines, start=1):
        if row_of(line, f"{path}, line {number},") is None:
            raise BytegolfError(
                f"{path}, line {number}, is no row (cut short or damaged): delete it, and `bytegolf study run` does "
                "that run again"
            )
        without += f'"{CHECKSUM}"' not in line
    if without:
        return "no checksum", f"{without} of {counted(len(lines), 'row')} have none; all can be read"
    return "whole", f"{counted(len(lines), 'row')}, each with its checksum"


def plain(path: Path, kind: str, read: Callable[[Path], Any]) -> Verdict:
    """A file without a checksum that ``read`` understands or refuses."""

    @judged(kind)
    def look(path: Path) -> Found:
        with disk_errors(path, "read"):
            read(path)
            return "no checksum", f"it can be read; {counted(path.stat().st_size, 'byte')}"

    return look(path)


def any_file(path: Path) -> Verdict | None:
    """The verdict on a file by how it begins, or by its name; None if it is nothing that bytegolf writes."""
    check_file(path, "name files")
    with disk_errors(path, "read"), path.open("rb") as file:
        start = file.read(len(container.MAGIC))
    if start == container.MAGIC or path.suffix == ARTIFACT:
        return artifact(path)
    if path.suffix == ".safetensors":
        return weights(path)
    if path.suffix == ".bin":
        return shard(path)
    if path.name == RESULTS:
        return results(path)
    if not start.startswith(b"BGOLF") and path.suffix != COMPRESSED:
        return None
    from bytegolf.infer import format as compressed

    return compressed_file(path) if start == compressed.MAGIC or path.suffix == COMPRESSED else None
