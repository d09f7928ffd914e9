"""What the code layout is measured by: hops, files to touch, lines, comments, copies of the H-Net pass.

    python benchmarks/measures.py
    python benchmarks/measures.py --source ../before/src      # of another checkout, beside this one's
    python benchmarks/measures.py --modules train             # the modules that `train` runs through, by name

- hops: our modules in which a function runs while a verb is at work on a tiny model; running a module's body when it is
  imported does not count, and no more do functions that dataclasses generate. Modules of `model` and `ops`, which are
  the network itself, are told apart.
- files to touch for a router, a mixer, a quantiser of one's own: 0 where that of docs/extending.md trains and scores
  from a file outside the package; else that it does not.
- lines: of a source file each is one of code, docstring, comment, import and blank.
- comments: lines of comments, and comments behind code, per 100 lines of code; those for tools (noqa, type:) apart.
- H-Net passes: functions that run both the main network and the decoder of a level: each has an order of encode,
  route, select, main, expand and decode of its own.
"""

from __future__ import annotations

import argparse
import ast
import io
import json
import os
import subprocess
import sys
import tempfile
import tokenize
from collections import Counter
from pathlib import Path
from typing import Any

from measuring import run, table

ROOT = Path(__file__).resolve().parents[1]
KINDS = ("code", "docstring", "comment", "import", "blank")
RUN = {"forward", "extend", "step", "tail"}
"""The methods that run a network."""

TRACE = """
import json, sys, threading
seen, importing = set(), threading.local()

def watch(frame, event, argument):
    name, code = frame.f_globals.get("__name__", ""), frame.f_code
    if not name.startswith("bytegolf"):
        return
    if code.co_name == "<module>":  # an import at work: what it calls, such as decorators, is no hop
        if event in ("call", "return"):
            importing.depth = getattr(importing, "depth", 0) + (1 if event == "call" else -1)
    elif event == "call" and not getattr(importing, "depth", 0) and not code.co_filename.startswith("<"):
        seen.add(name)

out, sys.argv = sys.argv[1], ["bytegolf", *sys.argv[2:]]
from bytegolf.cli import main
threading.setprofile(watch)
sys.setprofile(watch)
try:
    main()
except SystemExit as exit:
    if exit.code:
        raise
finally:
    sys.setprofile(None)
    with open(out, "w") as file:
        json.dump(sorted(seen), file)
"""

PARTS = {
    "router": ("model.network.router.kind", "model.network.router.cosine.guide_weight=0"),
    "mixer": ("model.network.main.kind",),
    "quantiser": ("export.quantizer",),
}
"""What one may make oneself, by its heading in docs/extending.md: the key that chooses it, and what else to set."""


class Sources:
    """The package below a folder ``src``."""

    def __init__(self, source: Path) -> None:
        self.source = source.resolve()
        self.files = sorted((self.source / "bytegolf").rglob("*.py"))
        if not self.files:
            sys.exit(f"{source} holds no bytegolf: name the folder src of a checkout")
        self.texts = {path: path.read_text(encoding="utf-8") for path in self.files}

    def environment(self) -> dict[str, str]:
        """For processes that are to run this package, and no other one, on one thread."""
        return {**os.environ, "PYTHONPATH": str(self.source), "OMP_NUM_THREADS": "1"}

    def lines(self) -> Counter[str]:
        """How many lines there are of each kind; ``remarks`` are those with a comment for people."""
        total: Counter[str] = Counter()
        for text in self.texts.values():
            total += kinds_of(text)
        return total

    def longest(self, count: int = 3) -> str:
        """The longest files with their lines."""
        sizes = sorted(((len(text.splitlines()), path) for path, text in self.texts.items()), reverse=True)
        return ", ".join(f"{path.relative_to(self.source / 'bytegolf')} {size}" for size, path in sizes[:count])

    def passes(self) -> list[str]:
        """The functions that run a level's main network and decoder."""
        return [
            f"{path.stem}.{function.name}"
            for path, text in self.texts.items()
            for function in ast.walk(ast.parse(text))
            if isinstance(function, ast.FunctionDef) and len(parts_run(function)) == 2
        ]

    def untyped(self) -> int:
        """Lines with a ``dict[str, Any]``."""
        return sum("dict[str, Any]" in line for text in self.texts.values() for line in text.splitlines())


def kinds_of(text: str) -> Counter[str]:
    """The lines of a source file by kind."""
    kinds = ["code" if line.strip() else "blank" for line in text.splitlines()]
    remarks = 0
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            remarks += not token.string.lstrip("# ").startswith(("noqa", "type:", "mypy:", "pragma:"))
            if token.line.strip() == token.string:
                kinds[token.start[0] - 1] = "comment"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            kind = "import"
        elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            kind = "docstring"
        else:
            continue
        assert node.end_lineno
        for number in range(node.lineno - 1, node.end_lineno):
            if kinds[number] == "code":
                kinds[number] = kind
    return Counter(kinds) + Counter(remarks=remarks)


def parts_run(function: ast.AST) -> set[str]:
    """What a function runs of the parts of a level, as ``….main(…)`` or ``….main.extend(…)``."""
    found = set()
    for node in ast.walk(function):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            called = node.func
            if called.attr in RUN and isinstance(called.value, ast.Attribute):
                called = called.value
            found.add({"decode": "decoder"}.get(called.attr, called.attr))
    return found & {"main", "decoder"}


def prepare_folder(sources: Sources, folder: Path) -> dict[str, list[str]]:
    """Each verb's command on a tiny corpus in ``folder``, in an order in which each has what it needs."""
    (folder / "notes.txt").write_text("We, the people of these states, in order to form a union. " * 1500)
    (folder / "letter.txt").write_text("The people of these states.")
    stacks = [f"model.network.{stack}" for stack in ("encoder", "main", "decoder")]
    small = [f"{stack}.{change}" for stack in stacks for change in ("layers=1", "dim=32", "heads=2", "kv_heads=1")]
    budget = ["train.max_seconds=0", "train.max_steps=4", "train.warmup_steps=0", "train.log_every=1"]
    size = ["train.seq_len=256", "train.batch_tokens=512", "train.validate_tokens=512", "model.ngrams.bits=8"]
    return {
        "prepare": ["prepare", "notes.txt", "--out", "data", "--cut", "1000", "--val", "hash:0.2"],
        "train": ["train", "cpu-demo", *small, *budget, *size, "--data", "data", "--out", "run"],
        "eval": ["eval", "run", "--data", "data"],
        "export": ["export", "run"],
        "segment": ["segment", "run", "The people of these states"],
        "compress": ["compress", "letter.txt"],
    }


def hops(sources: Sources) -> dict[str, list[str]]:
    """The modules that each verb runs through."""
    found = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for verb, command in prepare_folder(sources, folder).items():
            out = folder / f"{verb}.json"
            run([sys.executable, "-c", TRACE, str(out), *command], cwd=folder, env=sources.environment())
            found[verb] = json.loads(out.read_text(encoding="utf-8"))
    return found


def touched(sources: Sources) -> dict[str, str]:
    """What has to change in the package for each part of one's own."""
    page = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
    found = {}
    with tempfile.TemporaryDirectory() as name:
        folder, own = Path(name), ["--plugin", "part.py"]
        commands = prepare_folder(sources, folder)

        def done(command: list[str]) -> bool:
            python = [sys.executable, "-m", "bytegolf", *command]
            return not subprocess.run(
                python, cwd=folder, env=sources.environment(), capture_output=True, check=False
            ).returncode

        done(commands["prepare"])
        for part, (key, *changes) in PARTS.items():
            code = page.partition(f"\n## A {part}\n")[2].partition("```python\n")[2].partition("```")[0]
            (folder / "part.py").write_text(code, encoding="utf-8")
            kind = code.partition("@bytegolf.register_")[2].partition('("')[2].partition('"')[0]
            train = [part if word == "run" else word for word in commands["train"]]
            train[2:2] = [f"{key}={kind}", *changes]
            works = done([*train, *own]) and done(["eval", part, "--data", "data", *own])
            found[part] = "0" if works else "not from outside"
    return found


def network(module: str) -> bool:
    """Whether a module is part of the network itself."""
    return module.startswith(("bytegolf.model", "bytegolf.ops"))


def measure(sources: Sources) -> dict[str, Any]:
    """All measures, by the names that the table shows."""
    lines, modules = sources.lines(), hops(sources)
    rows: dict[str, Any] = {}
    for verb, names in modules.items():
        inside = sum(map(network, names))
        rows[f"hops: {verb}"] = f"{len(names) - inside} + {inside} model and ops"
    for part, count in touched(sources).items():
        rows[f"files to touch: {part}"] = count
    rows["lines of src"] = sum(lines[kind] for kind in KINDS)
    for kind in KINDS:
        rows[f"lines: {kind}"] = lines[kind]
    rows["comments per 100 lines of code"] = round(100 * lines["remarks"] / lines["code"], 1)
    rows["files"] = len(sources.files)
    rows["longest files"] = sources.longest()
    passes = sources.passes()
    rows["H-Net passes"] = f"{len(passes)}: {', '.join(passes)}"
    rows["lines with dict[str, Any]"] = sources.untyped()
    rows["modules"] = modules
    return rows


def main() -> None:
    """Measure, print a table and one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, help="the folder src of another checkout, which comes first")
    parser.add_argument("--modules", help="list the modules of this verb")
    given = parser.parse_args()
    places = {**({"before": given.source} if given.source else {}), "now": ROOT / "src"}
    found = {name: measure(Sources(source)) for name, source in places.items()}
    modules = {name: one.pop("modules") for name, one in found.items()}
    rows = [{"measure": key, **{name: one.get(key) for name, one in found.items()}} for key in found["now"]]
    print(table(rows))
    if given.modules:
        for name, verbs in modules.items():
            print(f"\n{given.modules}, {name}:\n  " + "\n  ".join(verbs[given.modules]))
    print(json.dumps({name: {**found[name], "modules": modules[name]} for name in found}))


if __name__ == "__main__":
    main()
