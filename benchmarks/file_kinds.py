"""`bytegolf compress` against xz, zstd, bzip2, brotli, PPMd and zpaq, over files of all kinds of a Debian machine.

    python benchmarks/file_kinds.py --most 400000
    python benchmarks/file_kinds.py --kinds executable image --out kinds.json
    python benchmarks/file_kinds.py --media FOLDER --kinds "raw image" "raw sound"

Files that a usual installation has, cut to `--most` bytes; texts of message catalogues in three languages; images,
sounds, archives and logs that are made the same everywhere; empty, one byte, zeros, noise, and a log of 10 MB. With
`--media` also pictures and sounds of real packages, which are downloaded into its folder (real_media.py; Pillow). For
each file its size by each compressor; for each kind the sums; and for each compressor speed both ways and memory over
all of them. Each works in a process of its own, whose peak memory counts. Round trips are compared by bytes, but for
PPMd. brotli and PPMd need `pip install brotli pyppmd`, zpaq its program. Ends with one line of JSON.
"""

from __future__ import annotations

import argparse
import gettext
import gzip
import hashlib
import io
import json
import math
import multiprocessing
import os
import random
import resource
import shutil
import struct
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from measuring import machine, peak_memory, table
from real_media import media

FOUND = {
    "Python": [str(Path(os.__file__).parent / f"{name}.py") for name in ("typing", "argparse", "tarfile", "ast")],
    "C++": [f"/usr/include/c++/*/bits/{name}" for name in ("stl_tree.h", "hashtable.h", "regex.h", "ranges_algo.h")],
    "Perl": ["/usr/share/perl/5*/perl5db.pl", "/usr/share/perl/5*/CPAN/*.pm", "/usr/share/perl5/Debconf/*.pm"],
    "SQL": ["/usr/share/postgresql/*/*.sql", "/usr/share/postgresql/*/extension/*.sql"],
    "C": ["/usr/include/elf.h", "/usr/include/math.h", "/usr/include/openssl/ssl.h", "/usr/include/linux/*.h"],
    "JSON": ["/usr/share/iso-codes/json/*.json", "/usr/lib/node_modules/**/package-lock.json"],
    "CSV": ["/usr/share/distro-info/*.csv", f"{sys.prefix}/lib/python3*/site-packages/numpy/_core/tests/data/*.csv"],
    "log": ["/var/log/dpkg.log", "/var/log/apt/*.log", "/var/log/alternatives.log"],
    "XML": ["/usr/share/mime/packages/freedesktop.org.xml", "/usr/share/xml/iso-codes/*.xml"],
    "Markdown": [
        str(Path(__file__).parents[1] / name) for name in ("docs/log/2026-11.md", "docs/cli.md", "CHANGELOG.md")
    ],
    "English": ["/usr/share/common-licenses/GPL-3", "/usr/share/common-licenses/Artistic", "/usr/share/doc/**/README"],
    "executable": ["/bin/ls", "/bin/bash", "/usr/bin/openssl", "/usr/lib/*/libstdc++.so.6", "/usr/lib/*/libc.so.6"],
    "image": ["/usr/share/**/*.png", "/usr/share/**/*.svg"],
    "archive": ["/usr/share/doc/**/changelog.Debian.gz", "/usr/share/man/man1/*.gz"],
}
"""Patterns of each kind; of each pattern the largest file counts, and the next where a kind has fewer than three."""

LANGUAGES = {"Chinese": "zh_CN", "Russian": "ru", "Arabic": "ar"}
LEAST, A_KIND = 4000, 4


def found(patterns: list[str]) -> Iterator[Path]:
    """Files of a kind."""
    names = [
        sorted(
            (p for p in Path("/").glob(pattern.lstrip("/")) if p.is_file()), key=lambda p: (-p.stat().st_size, str(p))
        )
        for pattern in patterns
    ]
    seen: set[Path] = set()
    for rank in range(A_KIND):
        for files in names:
            if rank < len(files) and files[rank].stat().st_size >= LEAST and files[rank].resolve() not in seen:
                seen.add(files[rank].resolve())
                yield files[rank]


def catalogue(path: Path) -> bytes:
    """The translated messages of a catalogue, as text."""
    with path.open("rb") as file:
        messages: dict[Any, str] = gettext.GNUTranslations(file)._catalog  # type: ignore[attr-defined]
    return "\n".join(text for _, text in sorted(messages.items(), key=str)).encode()


def server_log(size: int) -> bytes:
    """Requests to a web server, drawn."""
    chance, lines, clock, total = random.Random(1), [], 0, 0
    pages = [f"/{word}/{number}" for word in ("index", "items", "static/app.js", "user") for number in range(40)]
    while total < size:
        clock += chance.randint(0, 3)
        when = f"{clock // 3600 % 24:02d}:{clock // 60 % 60:02d}:{clock % 60:02d}"
        line = f"10.0.{chance.randint(0, 3)}.{chance.randint(1, 99)} - - [29/Nov/2026:{when} +0000] "
        line += (
            f'"GET {chance.choice(pages)} HTTP/1.1" {chance.choice([200, 200, 304, 404])} {chance.randint(100, 9999)}\n'
        )
        lines.append(line)
        total += len(line)
    return "".join(lines).encode()[:size]


def bitmap(size: int) -> bytes:
    """A picture without compression: slopes with a little noise."""
    chance, pixels = random.Random(2), bytearray()
    for y in range(size):
        for x in range(size):
            pixels += bytes((x * 255 // size, y * 255 // size, (x + y) // 4 % 256 ^ chance.getrandbits(1)))
    return f"P6 {size} {size} 255\n".encode() + bytes(pixels)


def sound(samples: int) -> bytes:
    """Two voices in 16 bits with noise in the lowest."""
    chance, out = random.Random(3), bytearray()
    for at in range(samples):
        left, right = (
            round(high * math.sin(at * step)) + chance.randint(-4, 4) for high, step in ((9000, 0.05), (5000, 0.07))
        )
        out += struct.pack("<hh", left, right)
    return bytes(out)


def archive(paths: list[Path], most: int) -> bytes:
    """A tar of files."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for path in paths:
            data = path.read_bytes()[: most // 4]
            entry = tarfile.TarInfo(path.name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    return buffer.getvalue()


def corpus(most: int, log: int, folder: Path | None = None) -> Iterator[tuple[str, str, bytes]]:
    """Kind, name and content of each file."""
    sources = []
    for kind, patterns in FOUND.items():
        for path in list(found(patterns))[:A_KIND]:
            sources.append(path)
            yield kind, str(path), path.read_bytes()[:most]
    for kind, language in LANGUAGES.items():
        for path in list(found([f"/usr/share/locale/{language}/LC_MESSAGES/*.mo"]))[:2]:
            yield kind, f"texts of {path}", catalogue(path)[:most]
    made = archive(sources[:8], most)
    yield "archive", "sources.tar", made[:most]
    yield "archive", "sources.tar.gz", gzip.compress(made, 9, mtime=0)[:most]
    yield "image", "slopes.ppm", bitmap(300)[:most]
    yield "sound", "voices.raw", sound(80_000)[:most]
    for kind, name, data in media(folder) if folder else ():
        yield kind, name, data[:most]
    yield "odd", "empty", b""
    yield "odd", "one byte", b"x"
    yield "odd", "zeros", bytes(min(most, 300_000))
    yield "incompressible", "noise", random.Random(4).randbytes(min(most, 300_000))
    yield "log", f"{log:,} bytes of a server", server_log(log)


def zpaq(*arguments: str, given: bytes, wanted: str) -> bytes:
    """What the program leaves in the file ``wanted``, having found ``given`` in another."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / ("x.zpaq" if wanted == "back" else "file")).write_bytes(given)
        subprocess.run(["zpaq", *arguments, "-t1"], cwd=folder, capture_output=True, check=True)
        return (Path(folder) / wanted).read_bytes()


def ways() -> dict[str, tuple[Callable[[bytes], bytes], Callable[[bytes], bytes] | None]]:
    """Each compressor there and back (None: it does not tell where its output ends)."""
    import bz2
    import lzma

    import zstandard

    from bytegolf.infer.codec import Codec
    from bytegolf.infer.compressors import optional, xz

    def ours(data: bytes) -> bytes:
        out = io.BytesIO()
        Codec().compress(io.BytesIO(data), out, size=len(data))
        return out.getvalue()

    def back(data: bytes) -> bytes:
        out = io.BytesIO()
        Codec().decompress(io.BytesIO(data), out)
        return out.getvalue()

    checked = zstandard.ZstdCompressor(level=22, write_checksum=True)  # as the program writes files
    found: dict[str, Any] = {
        "bytegolf": (ours, back),
        "xz": (xz, lzma.decompress),
        "zstd": (checked.compress, zstandard.ZstdDecompressor().decompress),
        "bzip2": (lambda data: bz2.compress(data, 9), bz2.decompress),
    }
    if brotli := optional("brotli"):
        found["brotli"] = (lambda data: brotli.compress(data, quality=11, lgwin=24), brotli.decompress)
    if ppmd := optional("pyppmd"):  # the better of two orders, without a container and so without a checksum

        def squeeze(data: bytes) -> bytes:
            tried: list[bytes] = [ppmd.compress(data, max_order=order, mem_size=256 << 20) for order in (6, 16)]
            return min(tried, key=len)

        found["PPMd"] = (squeeze, None)
    if shutil.which("zpaq"):
        found["zpaq"] = (
            lambda data: zpaq("a", "x.zpaq", "file", "-m5", given=data, wanted="x.zpaq"),
            lambda data: zpaq("x", "x.zpaq", "file", "-to", "back", given=data, wanted="back"),
        )
    return found


def spent() -> float:
    """Processor seconds of this process and of the programs that it ran."""
    return time.process_time() + sum(os.times()[2:4])


def measure(name: str, files: list[tuple[str, str, bytes]]) -> dict[str, Any]:
    """Sizes by one compressor, its processor seconds both ways, and its peak memory; in a process of its own."""
    squeeze, restore = ways()[name]
    squeeze(b"once, so that nothing is loaded while it is timed"), peak_memory()
    sizes, seconds = [], [0.0, 0.0]
    for _, label, data in files:
        started = spent()
        packed = squeeze(data)
        seconds[0] += spent() - started
        sizes.append(len(packed))
        if restore and packed:
            started = spent()
            assert restore(packed) == data, f"{label} did not come back from {name}"
            seconds[1] += spent() - started
        print(f"{name}: {label} {len(data)} → {len(packed)}", file=sys.stderr, flush=True)
    programs = 1024 * resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    return {"sizes": sizes, "seconds": seconds, "memory": max(peak_memory(), programs)}


def identity(files: list[tuple[str, str, bytes]]) -> str:
    """A hash of what is compressed."""
    return hashlib.sha256(b"".join(hashlib.sha256(data).digest() for _, _, data in files)).hexdigest()[:16]


def main() -> None:
    """Parse the command line, compress, print the tables and one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--most", type=int, default=2_000_000, help="bytes of a file, but for the log of 10 MB")
    parser.add_argument("--log", type=int, default=10_000_000, help="bytes of the longest one")
    parser.add_argument("--kinds", nargs="*", help="only these")
    parser.add_argument("--skip", nargs="*", default=[], help="compressors to leave out")
    parser.add_argument("--kept", type=Path, help="keep each compressor's figures here, and take over those of before")
    parser.add_argument("--out", type=Path, help="the figures as JSON")
    parser.add_argument("--media", type=Path, help="a folder for real pictures and sounds, kinds of their own")
    arguments = parser.parse_args()
    every = corpus(arguments.most, arguments.log, arguments.media)
    files = [file for file in every if not arguments.kinds or file[0] in arguments.kinds]
    names = [name for name in ways() if name not in arguments.skip]
    which = identity(files)
    results: dict[str, Any] = {}
    if arguments.kept and arguments.kept.exists():
        kept: dict[str, Any] = json.loads(arguments.kept.read_text(encoding="utf-8"))
        results = kept["results"] if kept["files"] == which else {}
    for name in (name for name in names if name not in results):
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            results[name] = pool.apply(measure, (name, files))
        if arguments.kept:
            arguments.kept.write_text(json.dumps({"files": which, "results": results}), encoding="utf-8")
    results = {name: results[name] for name in names}
    rows: list[dict[str, Any]] = []
    kinds: dict[str, dict[str, Any]] = {}
    for at, (kind, label, data) in enumerate(files):
        sizes = {name: result["sizes"][at] for name, result in results.items()}
        rivals = [size for name, size in sizes.items() if name in ("xz", "zstd", "bzip2", "PPMd")]
        ratio = sizes["bytegolf"] / max(1, min(rivals)) if rivals and "bytegolf" in sizes else 0.0
        rows.append({"kind": kind, "file": label, "bytes": len(data), **sizes, "of the best of four": round(ratio, 3)})
        whole = kinds.setdefault(kind, {"kind": kind, "files": 0, "bytes": 0, **dict.fromkeys(sizes, 0)})
        for key, value in {"files": 1, "bytes": len(data), **sizes}.items():
            whole[key] += value
    total = sum(len(data) for _, _, data in files)
    speeds = [
        {
            "compressor": name,
            "kB/s": total / 1000 / result["seconds"][0],
            "kB/s back": total / 1000 / result["seconds"][1] if result["seconds"][1] else "-",
            "MB of memory": result["memory"] / 1e6 if result["memory"] else "-",
        }
        for name, result in results.items()
    ]
    print(table(rows), table(list(kinds.values())), table(speeds), sep="\n\n")
    figures = {"rows": rows, "kinds": list(kinds.values()), "speeds": speeds, "machine": machine()}
    if arguments.out:
        arguments.out.write_text(json.dumps(figures, indent=1), encoding="utf-8")
    print(
        json.dumps(
            {"files": len(files), "kinds": len(kinds), "lost": sum(r["of the best of four"] > 1.01 for r in rows)}
        )
    )


if __name__ == "__main__":
    main()
