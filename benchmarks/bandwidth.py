"""Generation against what memory gives: bytes per second of large H-Nets, and their weights' share of the bandwidth.

    python benchmarks/bandwidth.py --shapes 100m 1stage-L 2stage-XL --out FOLDER
    python benchmarks/bandwidth.py --shapes 100m 1stage-L --bits 8 --out FOLDER
    python benchmarks/bandwidth.py --shapes 2stage-XL --out FOLDER --threads 2 --wall --drafts 4 8 16

At batch 1 a step reads each weight that takes part once, so the pace is bounded by bytes of weights over bandwidth.
Files of random bf16 weights are written (``opening.py``), whose routers are set to open chunks at the paper's rates; a
process of its own opens each, reads a prompt, and steps through a text. The weights of a level count once per position
of it (bytes, chunks, chunks of chunks); the bandwidth is the best of a sum and of a product with itself over 1 GB of
memory, in between. Times are the processor's, of all threads, so busy neighbours count only through caches and memory;
with ``--wall`` the clock's, which is the measure for several threads, on a quiet machine.

``--drafts``: what speculative generation brings (``infer/speculative.py``). Random weights say nothing about drafts, so
tokens are kept by chance, at the rates of ``--kept`` per token of a draft; what a round costs is real.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import shutil
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from measuring import bytegolf, fresh, machine, run, table

TEXT = "The people of the United States, and of each of them, live in peace with all the world. "
BYTES_PER_CHUNK = {0: [], 1: [4.8], 2: [3.0, 7.0 / 3]}
"""Of each level, as the paper's models have them."""


def set_routers(model: Any, ids: Any, rates: list[float]) -> None:
    """Have the routers of random weights open a chunk at one of so many positions of ``ids``, by W_k between the
    identity, for which neighbours are alike, and random weights, for which every second position opens one.
    """
    import torch

    from bytegolf.model.chunk import Chunks
    from bytegolf.model.layers import Linear

    x = model.look_up(ids)
    for level, rate in zip(model.levels(), rates, strict=True):
        x = level.encoder(x, None)
        maps: list[Linear] = [level.router.q_proj, level.router.k_proj]
        noise, eye = torch.randn_like(maps[1].weight.float()) * len(x[0, 0]) ** -0.5, torch.eye(x.shape[-1])
        maps[0].weight.copy_(eye)
        low, high = 0.0, 1.0
        for _ in range(12):
            mix = (low + high) / 2
            maps[1].weight.copy_((1 - mix) * eye + mix * noise)
            boundary = level.router(x, None, None)[1]
            low, high = (low, mix) if boundary.float().mean() > 1 / rate else (mix, high)
        x = level.open(Chunks.of(boundary, level.capacity).select(x), None)


def weights_per_level(model: Any) -> list[int]:
    """Bytes of the weights that a position of each level reads: its networks, router and residual; the head's at 0."""
    networks = [*model.levels()]
    total = [sum(p.numel() * p.dtype.itemsize for p in each.parameters()) for each in networks]
    innermost = networks[-1].main if networks else model.network
    total.append(sum(p.numel() * p.dtype.itemsize for p in innermost.parameters()))
    found = [outer - inner for outer, inner in itertools.pairwise(total)] + total[-1:]
    head = model.embedding if model.head is None else model.head
    found[0] += head.weight.numel() * head.weight.dtype.itemsize
    return found


def read_bandwidth(clock: Callable[[], float]) -> float:
    """Bytes per second of reading memory, by the best of a few rounds over 1 GB."""
    import torch

    memory = torch.ones(1 << 28)
    ways: list[Callable[[], Any]] = [memory.sum, lambda: torch.dot(memory, memory)]
    best = 0.0
    for way in ways * 3:
        started = clock()
        way()
        best = max(best, memory.nbytes / (clock() - started))
    return best


class Script:
    """Draws tokens of a text; in a draft, others at times."""

    def __init__(self, runner: Any, text: list[int], kept: float) -> None:
        self.runner, self.text, self.kept = runner, text, kept
        self.drafting, self.random = False, random.Random(0)

    def __call__(self, logits: Any, place: int) -> int:
        wrong = self.drafting and self.random.random() >= self.kept
        return self.text[place % len(self.text)] ^ int(wrong)

    def start(self, batch: int, length: int | None = None) -> Any:
        return self.runner.start(batch, length)

    def step(self, ids: Any, state: Any, rows: Any = None) -> Any:
        self.drafting = True
        return self.runner.step(ids, state, rows)

    def extend(self, ids: Any, state: Any, rows: Any = None, counts: Any = None) -> Any:
        self.drafting = False
        return self.runner.extend(ids, state, rows, counts)

    def fork(self, state: Any, draft: bool = False) -> Any:
        return self.runner.fork(state, draft)


def speculated(runner: Any, prompt: Any, text: list[int], draft: int, kept: float, clock: Callable[[], float]) -> float:
    """Seconds per byte of generation by drafts."""
    from bytegolf.infer.speculative import speculate

    state = runner.start(1, 4096)
    logits = runner.extend(prompt, state)[0, -1]
    script, size = Script(runner, text, kept), len(text)
    tokens = speculate(script, state, logits, script, draft)
    next(tokens)
    started = clock()
    for _ in itertools.islice(tokens, size):
        pass
    return (clock() - started) / size


def measure(source: str, options: argparse.Namespace) -> dict[str, Any]:
    """One model in this process."""
    import torch

    import bytegolf as package
    from bytegolf.infer.native_step import ExactModel, stepper

    torch.set_num_threads(options.threads)
    clock = time.perf_counter if options.wall else time.process_time
    with torch.inference_mode():
        model = package.load(source, precision="fp32").module
        ids = torch.tensor([[254, *(TEXT * 20).encode()]])
        set_routers(model, ids[:, :600], BYTES_PER_CHUNK[len(model.levels())])
        runner = stepper(model)
        assert isinstance(runner, ExactModel)
        state = runner.start(1, 1024)
        runner.extend(ids[:, :200], state)
        bandwidths, paces, positions = [], [], []
        at = 200
        for _ in range(options.rounds):
            bandwidths.append(read_bandwidth(clock))
            before, started = runner.positions(state), clock()
            for _ in range(options.bytes):
                runner.step(ids[:, at], state)
                at += 1
            paces.append((clock() - started) / options.bytes)
            positions.append([b - a for a, b in zip(before[0], runner.positions(state)[0], strict=True)])
        sizes = weights_per_level(model)
        shares, touched = [], []
        for bandwidth, pace, counts in zip(bandwidths, paces, positions, strict=True):
            touched.append(sum(size * count for size, count in zip(sizes, counts, strict=True)) / options.bytes)
            shares.append(touched[-1] / pace / bandwidth)
        prompt, spent = ids[:, :512], clock()
        runner.extend(prompt, runner.start(1, 1024))
        prefill = prompt.shape[1] / (clock() - spent)
        drafts = {}
        for draft, kept in itertools.product(options.drafts, options.kept):
            plain = speculated_plain(runner, ids, options.bytes, clock)
            found = speculated(runner, ids[:, :200], ids[0, 200 : 200 + options.bytes].tolist(), draft, kept, clock)
            drafts[f"{draft} at {kept:g}"] = round(plain / found, 2)
    return {
        "GB/s": statistics.median(bandwidths) / 1e9,
        "MB a byte": statistics.median(touched) / 1e6,
        "bytes a chunk": options.bytes / max(1, positions[-1][-1]),
        "bytes/s": 1 / statistics.median(paces),
        "share": statistics.median(shares),
        "prefill bytes/s": prefill,
        "drafts": drafts,
    }


def speculated_plain(runner: Any, ids: Any, size: int, clock: Callable[[], float]) -> float:
    """Seconds per byte of plain steps over the same text."""
    state = runner.start(1, 4096)
    runner.extend(ids[:, :200], state)
    started = clock()
    for at in range(200, 200 + size):
        runner.step(ids[:, at], state)
    return (clock() - started) / size


def main() -> None:
    """Print a row per shape."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", default=["100m"])
    parser.add_argument("--out", type=Path, help="a folder, in which files of weights are made and removed")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--wall", action="store_true", help="times by the clock")
    parser.add_argument("--bytes", type=int, default=48, help="steps in a round")
    parser.add_argument("--bits", type=int, default=0, help="of an artifact that is read in place of the bf16 file")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--drafts", type=int, nargs="*", default=[])
    parser.add_argument("--kept", type=float, nargs="+", default=[0.9, 0.97])
    parser.add_argument("--one", help="measure one file in this process, and print JSON")
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options.one, options)))
        return
    print(machine())
    rows = []
    for name in options.shapes:
        folder = options.out / name
        folder.mkdir(parents=True)
        run([sys.executable, str(Path(__file__).with_name("opening.py")), "--write", name, str(folder)])
        source = folder / f"{name}.pt"
        if options.bits:
            quantised = folder / f"{options.bits}.bgolf"
            run(bytegolf("export", str(source), f"export.bits={options.bits}", "--out", str(quantised)))
            source = quantised
        told = ["--threads", options.threads, "--bytes", options.bytes, "--rounds", options.rounds]
        told += ["--drafts", *options.drafts, "--kept", *options.kept, *(["--wall"] if options.wall else [])]
        try:
            rows.append({"shape": name, **fresh("bandwidth.py", "--one", str(source), *map(str, told))})
        finally:
            shutil.rmtree(folder)
        print(table(rows[-1:]), flush=True)
    print(table(rows))


if __name__ == "__main__":
    main()
