"""Made-up documents to prepare, with what Unicode has in store, and the files that come of it."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import random
from collections.abc import Callable
from pathlib import Path

import zstandard

WORDS = "the of state Union message people 1789 naïve ﬁnal Ⅳ ① 東京 é — “peace” and war".split()  # noqa: SIM905


def made_up(count: int, seed: int = 0) -> list[str]:
    """``count`` numbered documents of 1 to 59 words."""
    chance = random.Random(seed)
    return [f"{number}: " + " ".join(chance.choices(WORDS, k=chance.randrange(1, 60))) for number in range(count)]


TEXTS = made_up(80)


def lines(path: Path, texts: list[str]) -> str:
    """Write ``texts`` to ``path`` as JSON lines; the path."""
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return str(path)


def files_of(folder: Path) -> dict[str, bytes]:
    """What lies in a folder, by relative path."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


PACK: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.compress,
    ".xz": lzma.compress,
    ".bz2": bz2.compress,
    ".zst": zstandard.ZstdCompressor(write_checksum=True).compress,
}
"""What makes a compressed file, by the end of its name."""
