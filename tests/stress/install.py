"""Do the wheel and the source distribution install and work in a fresh environment, far from the source tree?

    python tests/stress/install.py

Builds the source distribution, and the wheel from it. Each is installed into a new virtual environment, which borrows
its dependencies from ``--site`` (by default those of this Python; nothing is downloaded), and then does a newcomer's
commands in an empty folder: `--version`, `presets`, `prepare`, ten steps of `train`, `eval`, `segment`. Once with the
machine's C++ compiler, and once where there is none: one sentence must say so, and all must work all the same.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TINY = [
    *(f"model.network.{stack}.{key}" for stack in ("encoder", "main", "decoder") for key in ("dim=32", "heads=2")),
    *("train.max_seconds=0", "train.max_steps=10", "train.warmup_steps=0", "train.log_every=5"),
    *("train.seq_len=256", "train.batch_tokens=1024", "model.ngrams.bits=8"),
]
SENTENCE = "no C++ compiler was found"


def build(out: Path) -> tuple[Path, Path]:
    """The source distribution of this checkout, and the wheel that is built from it, in the folder ``out``.

    The work is done on copies: building writes into the tree that it builds.
    """
    with tempfile.TemporaryDirectory() as name:
        copy = Path(name) / "copy"
        shutil.copytree(ROOT, copy, ignore=_leave_out)
        source = out / _setuptools("build_sdist", copy, out)
        shutil.unpack_archive(source, name, filter="data")
        unpacked = Path(name) / source.name.removesuffix(".tar.gz")
        earlier = unpacked / "build" / "lib" / "bytegolf" / "gone.py"  # a module that an earlier build has left there
        earlier.parent.mkdir(parents=True)
        earlier.touch()
        return source, out / _setuptools("build_wheel", unpacked, out)


def _leave_out(folder: str, names: list[str]) -> set[str]:
    """What no checkout has, of ``names`` in ``folder``: environments, data, runs, caches."""
    top = {".git", ".venv", "build", "data", "dist", "runs"} if Path(folder) == ROOT else set()
    return {name for name in names if name in top or name.endswith((".egg-info", "_cache", "__pycache__"))}


def _setuptools(hook: str, tree: Path, out: Path) -> str:
    """Call a hook of the build backend (PEP 517) in ``tree``; the name of the file that it made."""
    code = f"from setuptools import build_meta; print(build_meta.{hook}({str(out.resolve())!r}))"
    return _run([sys.executable, "-c", code], tree, dict(os.environ)).stdout.splitlines()[-1]


def _run(command: list[str], folder: Path, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed with exit code {done.returncode}:\n{done.stdout}{done.stderr}")
    return done


def install(package: Path, environment: Path, site: Path) -> Path:
    """A new virtual environment with ``package`` in it and the libraries of ``site`` beside it; its bin folder."""
    _run([sys.executable, "-m", "venv", "--without-pip", str(environment)], environment.parent, dict(os.environ))
    bin_folder = environment / ("Scripts" if os.name == "nt" else "bin")
    ask = "import sysconfig; print(sysconfig.get_path('purelib'))"
    own = _run([str(bin_folder / "python"), "-c", ask], environment.parent, _clean(os.environ["PATH"])).stdout.strip()
    (Path(own) / "borrowed.pth").write_text(f"{site}\n", encoding="utf-8")
    pip = [sys.executable, "-m", "pip", "--python", str(bin_folder / "python"), "install", "--quiet"]
    pip += ["--no-index", "--no-deps", "--ignore-installed", "--no-build-isolation", "--disable-pip-version-check"]
    _run([*pip, str(package)], environment.parent, _clean(os.environ["PATH"]))
    return bin_folder


def _clean(path: str) -> dict[str, str]:
    """This process's environment with another PATH, and nothing in it that leads to the source tree."""
    hidden = {"PYTHONPATH", "CXX", "VIRTUAL_ENV"}
    return {**{key: value for key, value in os.environ.items() if key not in hidden}, "PATH": path}


@dataclass
class Tried:
    """What came of one installation."""

    package: str
    compiler: bool
    seconds: float = 0.0
    bpb: float = 0.0
    wrong: list[str] = field(default_factory=list)


def newcomer(bin_folder: Path, folder: Path, package: str, compiler: bool) -> Tried:
    """A newcomer's first commands in the empty ``folder``."""
    started, tried = time.perf_counter(), Tried(package, compiler)
    tools = os.environ["PATH"] if compiler else ""
    environment = {**_clean(f"{bin_folder}{os.pathsep}{tools}"), "XDG_CACHE_HOME": str(folder / "cache")}
    draw = random.Random(1)
    words = ["the", "people", "of", "these", "united", "states"]
    text = "\n\n".join(" ".join(draw.choices(words, k=200)) for _ in range(60))
    (folder / "notes.txt").write_text(text, encoding="utf-8")

    def bytegolf(*arguments: str) -> subprocess.CompletedProcess[str]:
        return _run([str(bin_folder / "bytegolf"), *arguments], folder, environment)

    def expect(right: bool, what: str) -> None:
        if not right:
            tried.wrong.append(what)

    version = bytegolf("--version").stdout.strip()
    expect("checkout" not in version, f"--version says {version!r}: not the installed package")
    expect("cpu-demo" in bytegolf("presets").stdout, "presets does not list cpu-demo")
    bytegolf("prepare", "notes.txt", "--out", "data", "--cut", "1000", "--val", "hash:0.2")
    trained = bytegolf("train", "cpu-demo", *TINY, "--data", "data", "--out", "run", "--json")
    expect((SENTENCE in trained.stderr) != compiler, f"train said: {trained.stderr[-300:]!r}")
    scored = json.loads(bytegolf("eval", "run", "--data", "data", "--json").stdout.splitlines()[-1])
    tried.bpb = scored["bpb"]
    expect(tried.bpb == json.loads(trained.stdout.splitlines()[-1])["bpb"], "eval and train disagree")
    chunks = json.loads(bytegolf("segment", "run", "the people", "--json").stdout.splitlines()[-1])["chunks"]
    expect("".join(chunks) == "the people", f"segment gave {chunks}")
    code = "import bytegolf; print(bytegolf.__file__, bytegolf.load('run').score('the people').bpb)"
    where, _ = _run([str(bin_folder / "python"), "-c", code], folder, environment).stdout.rsplit(maxsplit=1)
    expect(str(ROOT) not in where, f"the package came from {where}")
    tried.seconds = round(time.perf_counter() - started, 1)
    return tried


def main() -> None:
    """Try both packages with and without a compiler; exit code 1 if anything was wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--site", type=Path, default=Path(sysconfig.get_path("purelib")), help="has the dependencies")
    given = parser.parse_args()
    failed = False
    with tempfile.TemporaryDirectory() as name:
        packages = build(Path(name))
        for package in packages:
            print(f"{package.name}: {package.stat().st_size:,} bytes", flush=True)
        for number, package in enumerate(packages):
            bin_folder = install(package, Path(name) / f"environment{number}", given.site.resolve())
            for compiler in (True, False):
                folder = Path(name) / f"empty{number}{compiler:d}"
                folder.mkdir()
                tried = newcomer(bin_folder, folder, package.name, compiler)
                print(tried, flush=True)
                failed |= bool(tried.wrong)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
