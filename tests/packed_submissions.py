"""Submissions to audit, honest and dishonest, and ways to hide their code; each is a script and maybe some files.

python tests/packed_submissions.py    # the table of verdicts over all of them
"""

from __future__ import annotations

import base64
import bz2
import gzip
import json
import lzma
import zlib
from collections.abc import Callable
from pathlib import Path

import brotli

READ = """
import glob, math, torch
import numpy as np
import torch.nn.functional as F

def read(pattern):
    shards = [np.fromfile(one, "<u2", offset=1024) for one in sorted(glob.glob(pattern))]
    return torch.from_numpy(np.concatenate(shards))
"""

TRAIN = """
def train(model, optimizer, steps):
    tokens = read("fineweb_train_*.bin")
    for step in range(steps):
        x = tokens[step * 64 : step * 64 + 65].long()
        loss = F.cross_entropy(model(x[:-1]), x[1:])
        loss.backward()
        optimizer.step()
"""

SCORE = """
def evaluate(model, tokens):
    total = 0.0
    for start in range(0, len(tokens) - 64, 64):
        x = tokens[start : start + 65].long()
        with torch.inference_mode():
            total += F.cross_entropy(model(x[:-1]), x[1:], reduction="sum").item()
    return total

def main(model, optimizer):
    train(model, optimizer, 100)
    print(evaluate(model, read("fineweb_val_*.bin")))

main(torch.nn.Embedding(260, 260), torch.optim.SGD([], 0.1))
"""

PLAIN = READ + TRAIN + SCORE


def _adapting(body: str) -> str:
    """A script whose evaluation learns as ``body`` says."""
    text = PLAIN.replace("def evaluate(model, tokens):", "def evaluate(model, tokens, optimizer):")
    text = text.replace('*.bin")))\n', '*.bin"), optimizer))\n')
    before, _, rest = text.partition("    for start in range(0, len(tokens) - 64, 64):")
    return before + body + "\n" + rest[rest.index("    return total") :]


_CHUNK = """
    for start in range(0, len(tokens) - 64, 64):
        x = tokens[start : start + 65].long()
        with torch.inference_mode():
            total += F.cross_entropy(model(x[:-1]), x[1:], reduction="sum").item()
"""
_LEARN = """
        F.cross_entropy(model(x[:-1]), x[1:]).backward()
        optimizer.step()
"""
_BYTES = """
def size_of(pieces, tokens, previous):
    base, leading, boundary = np.zeros(1024), np.zeros(1024, bool), np.zeros(1024, bool)
    for number, piece in enumerate(pieces):
        if piece.startswith("\u2581"):
            leading[number] = True
            piece = piece[1:]
        base[number] = len(piece.encode("utf-8"))
    sizes = base[tokens]
    sizes += (leading[tokens] & ~boundary[previous])
    return sizes.sum()
"""


def _in(text: str, blank: str = "    ") -> str:
    return "\n".join(f"{blank}{line}" if line.strip() else line for line in text.splitlines())


HONEST = {
    "plain": PLAIN,
    "score-first adaptation": _adapting(_CHUNK + _LEARN),
    "epochs over a scored chunk": _adapting(_CHUNK + "        for epoch in range(3):" + _in(_LEARN)),
    "bytes with the boundary": PLAIN + _BYTES,
    "classes whose methods share names": PLAIN
    + """
class Loader:
    def __init__(self, pattern):
        self.tokens = read(pattern)

    def step(self):
        return self.tokens[:64].long()

class Learner:
    def step(self, x):
        F.cross_entropy(MODEL(x[:-1]), x[1:]).backward()

MODEL = torch.nn.Embedding(260, 260)
ours, theirs = Loader("fineweb_train_*.bin"), Loader("fineweb_val_*.bin")
Learner().step(ours.step())
print(theirs.step().shape)
""",
    "self-made calibration": PLAIN + "\ncollect_hessians(None, torch.randint(0, 260, (8, 64)))\n",
    "counts of what was scored": PLAIN
    + """
def count(counts, context, target):
    counts[context, target] += 1
    return counts[context]
""",
}

DISHONEST: dict[str, tuple[str, str]] = {
    "network at import": ("no network", "import urllib.request\n" + PLAIN),
    "network by a program": ("no network", "import subprocess\nsubprocess.run(['curl', '-O', 'x'])\n" + PLAIN),
    "network by an import of a string": ("no network", "s = __import__('soc' + 'ket')\n" + PLAIN),
    "network by importlib": ("no network", "import importlib as i\ns = i.import_module('url' 'lib.request')\n" + PLAIN),
    "hub": ("no network", PLAIN + "\ntorch.hub.load('a', 'b')\n"),
    "training on validation": ("validation unseen", PLAIN.replace("fineweb_train_", "fineweb_val_")),
    "training on both splits": (
        "validation unseen",
        PLAIN.replace(
            'read("fineweb_train_*.bin")', 'torch.cat([read("fineweb_train_*.bin"), read("fineweb_val_*.bin")])'
        ),
    ),
    "training on a name put together": (
        "validation unseen",
        PLAIN.replace('read("fineweb_train_*.bin")', 'read("fineweb_" + "val" + "_*.bin")'),
    ),
    "epochs before the scores": (
        "validation unseen",
        _adapting("\n    for epoch in range(3):" + _in(_CHUNK + _LEARN)),
    ),
    "learn, then score": (
        "score, then update",
        _adapting(_CHUNK.replace("        with torch", _LEARN + "        with torch")),
    ),
    "all of it, then the scores": (
        "validation unseen",
        _adapting(_CHUNK.partition("        with")[0] + _LEARN + _CHUNK),
    ),
    "calibration on validation": (
        "validation unseen",
        PLAIN + "\ncollect_hessians(None, read('fineweb_val_*.bin')[:4096])\n",
    ),
    "a hash of the target": (
        "normalised",
        PLAIN + "\ndef look(table, context, target):\n    key = (context * 31) ^ target\n    return table[key]\n",
    ),
    "a cache asked for the target": (
        "normalised",
        PLAIN + "\ndef look(cache, context, target):\n    return cache.get((context, target), 0)\n",
    ),
    "a space counted without a condition": (
        "counted once",
        PLAIN + _BYTES.replace("(leading[tokens] & ~boundary[previous])", "leading[tokens]"),
    ),
    "a space in the length and in the table": (
        "counted once",
        PLAIN + _BYTES.replace("            piece = piece[1:]\n", ""),
    ),
    "our package": ("self-contained", "import bytegolf.model\n" + PLAIN),
    "weights from elsewhere": ("self-contained", PLAIN + "\nnp.load('../weights.npy')\n"),
    "weights from home": ("self-contained", PLAIN + "\nopen('/home/me/weights.bin', 'rb')\n"),
}
"""The rule that each breaks, and its script."""

UNSEEN = {
    "marshal": "import marshal\nexec(marshal.loads(b'x'))\n",
    "a key that is computed": "key = sum(range(9))\nexec(bytes(b ^ key for b in b'abc'))\n",
    "text from elsewhere": "import sys\nexec(sys.stdin.read())\n",
    "exec by another name": "run = [exec][0]\nrun('import socket')\n",
    "exec out of builtins": "import builtins\nvars(builtins)['ex' + 'ec']('import socket')\n",
    "pickle": "import pickle\npickle.loads(b'x')\n",
    "a module chosen at run time": "import importlib, os\nimportlib.import_module(os.environ['M'])\n",
    "an interpreter": "import subprocess, sys\nsubprocess.run([sys.executable, '-c', input()])\n",
}
"""What cannot be unpacked: nothing textual is shown."""

CODERS: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "zlib": (zlib.compress, "zlib.decompress({})"),
    "gzip": (gzip.compress, "gzip.decompress({})"),
    "bz2": (bz2.compress, "bz2.decompress({})"),
    "lzma": (lambda data: lzma.compress(data, preset=0), "lzma.decompress({})"),
    "raw lzma": (
        lambda data: lzma.compress(data, lzma.FORMAT_RAW, filters=[{"id": lzma.FILTER_LZMA2, "preset": 0}]),
        "lzma.decompress({}, format=lzma.FORMAT_RAW, filters=[{{'id': lzma.FILTER_LZMA2}}])",
    ),
    "brotli": (lambda data: brotli.compress(data, quality=5), "brotli.decompress({})"),
    "b64": (base64.b64encode, "base64.b64decode({})"),
    "b85": (base64.b85encode, "base64.b85decode({})"),
    "a85": (base64.a85encode, "base64.a85decode({})"),
    "hex": (lambda data: data.hex().encode(), "bytes.fromhex({}.decode())"),
    "unhexlify": (lambda data: data.hex().encode(), "binascii.unhexlify({})"),
    "reversed": (lambda data: data[::-1], "{}[::-1]"),
    "codecs": (base64.b64encode, "codecs.decode({}, 'base64')"),
}
"""How bytes are packed, and the expression that unpacks them."""

IMPORTS = "import base64, binascii, bz2, codecs, gzip, lzma, zlib, brotli\n"


def literal(data: bytes, pieces: int = 1) -> str:
    """``data`` as an expression, in so many pieces."""
    size = max(1, -(-len(data) // pieces))
    return "(" + " + ".join(repr(data[at : at + size]) for at in range(0, max(1, len(data)), size)) + ")"


def packed(text: str, *coders: str, pieces: int = 1) -> str:
    """An expression for the bytes of ``text``, packed by ``coders`` one after the other."""
    data = text.encode()
    for name in coders:
        data = CODERS[name][0](data)
    expression = literal(data, pieces)
    for name in reversed(coders):
        expression = CODERS[name][1].format(expression)
    return expression


def _exec(text: str, *coders: str, pieces: int = 1) -> str:
    return f"{IMPORTS}exec({packed(text, *coders, pieces=pieces)})"


def _write(folder: Path, name: str, text: str) -> None:
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text(text, encoding="utf-8")


def _helper(folder: Path, text: str, script: str, name: str = "code.txt") -> str:
    _write(folder, name, text)
    return script


PACKINGS: dict[str, Callable[[Path, str], str]] = {
    "clear": lambda folder, text: text,
    "exec": lambda folder, text: f"exec({text!r})",
    "compiled": lambda folder, text: f"exec(compile({text!r}, '<x>', 'exec'))",
    "compiled before": lambda folder, text: f"code = compile({text!r}, '<x>', 'exec')\nexec(code)",
    "lzma and b85": lambda folder, text: _exec(text, "lzma", "b85"),
    "raw lzma and b85": lambda folder, text: _exec(text, "raw lzma", "b85"),
    "brotli and a85": lambda folder, text: _exec(text, "brotli", "a85"),
    "zlib, b64 and pieces": lambda folder, text: _exec(text, "zlib", "b64", pieces=7),
    "bz2 and hex": lambda folder, text: _exec(text, "bz2", "hex"),
    "gzip, renamed": lambda folder, text: (
        "from gzip import decompress as d\nfrom base64 import b64decode as b\n"
        f"x = {literal(base64.b64encode(gzip.compress(text.encode())))}\nexec(d(b(x)))"
    ),
    "by __import__": lambda folder, text: (
        "exec(__import__('zlib').decompress(__import__('base64').b64decode("
        f"{base64.b64encode(zlib.compress(text.encode()))!r})))"
    ),
    "twice": lambda folder, text: _exec(_exec(text, "lzma", "b85"), "zlib", "hex"),
    "text file": lambda folder, text: _helper(folder, text, "exec(open('code.txt').read())"),
    "text file beside the script": lambda folder, text: _helper(
        folder, text, "from pathlib import Path\nexec((Path(__file__).parent / 'code.txt').read_text())"
    ),
    "packed file": lambda folder, text: _helper(
        folder,
        base64.b64encode(zlib.compress(text.encode())).decode(),
        f"{IMPORTS}exec(zlib.decompress(base64.b64decode(open('code.txt').read())))",
    ),
    "helper": lambda folder, text: _helper(folder, text, "import helper", "helper.py"),
    "package": lambda folder, text: _helper(folder, text, "from parts import *", "parts/__init__.py"),
    "runpy": lambda folder, text: _helper(
        folder, text, "import runpy\nrunpy.run_path('code.txt', run_name='__main__')"
    ),
    "another program": lambda folder, text: _helper(
        folder, text, "import subprocess, sys\nsubprocess.run([sys.executable, 'code.txt'])"
    ),
}
"""Every way to hide a script: writes what it needs and gives the script that is left."""

CLAIMS = {
    "author": "A",
    "name": "n",
    "date": "2026-01-01",
    "val_bpb": 1.2,
    "bytes_total": 9_000_000,
}


def folder_of(home: Path, script: str) -> Path:
    """A submission with papers that are in order."""
    home.mkdir(parents=True, exist_ok=True)
    (home / "README.md").write_text("# x\n")
    (home / "train.log").write_text("val_bpb:1.2000\n")
    (home / "submission.json").write_text(json.dumps(CLAIMS))
    (home / "train_gpt.py").write_text(script, encoding="utf-8")
    return home


def main() -> None:
    """Audit every submission packed in every way, and print a table in Markdown; it fails where one is wrong."""
    import tempfile

    from bytegolf.tools.submission.audit import audit

    wrong, count = [], 0
    print("| submission | rule | " + "broken | not proved | shown | whole verdicts |")
    print("|---|---|---|---|---|---|")
    cases = [(name, "validation unseen", text, True) for name, text in HONEST.items()]
    cases += [(name, rule, text, False) for name, (rule, text) in DISHONEST.items()]
    for name, rule, text, honest in cases:
        outcomes: list[str] = []
        wholes: set[str] = set()
        for way, pack in PACKINGS.items():
            with tempfile.TemporaryDirectory() as home:
                folder = Path(home)
                found = audit(folder_of(folder, pack(folder, text)), None)
            outcomes += [row.outcome for row in found.verdicts if row.rule == rule]
            wholes.add(found.verdict)
            count += 1
            if found.verdict == ("broken" if honest else "passed") or (not honest and outcomes[-1] == "shown"):
                wrong.append(f"{name}, {way}: {found.summary}")
        counts = " | ".join(str(outcomes.count(one)) for one in ("broken", "not proved", "shown"))
        print(f"| {'honest' if honest else 'dishonest'}: {name} | {rule} | {counts} | {', '.join(sorted(wholes))} |")
    print(f"\n{len(cases)} submissions in {len(PACKINGS)} ways, {count} audits, {len(wrong)} wrong")
    raise SystemExit("\n".join(wrong) or 0)


if __name__ == "__main__":
    main()
