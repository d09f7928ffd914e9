"""Attention on this CPU, forward and backward: the plain PyTorch form beside the native kernel.

    python benchmarks/attention.py
    python benchmarks/attention.py --repeats 30 --dtype float32 --match window
    OMP_NUM_THREADS=1 python benchmarks/attention.py --clock cpu      # on a machine that others use

From the packed projection to the merged heads, so without the linear maps around. Medians of alternating runs, in
milliseconds; GFLOP/s counts the products of the scores that the mask lets through, twice that in the backward pass.
"""

from __future__ import annotations

import argparse
import json
import statistics

import torch
from measuring import machine, table
from torch import Tensor

from bytegolf.config import StackConfig
from bytegolf.model.mixers.attention import Attention
from bytegolf.ops import native
from bytegolf.ops.attention import AttentionShape, attention, attention_reference
from bytegolf.tools.plan.devices import CLOCKS

# name → sequences, length, query heads, key/value heads, head width, window
SHAPES = {
    "cpu-demo, window 64": (4, 1024, 4, 2, 64, 64),
    "cpu-demo, window 128": (4, 1024, 4, 2, 64, 128),
    "cpu-demo, main": (4, 190, 4, 2, 64, 0),
    "cpu-demo, full": (4, 1024, 4, 2, 64, 0),
    "study1-byte, full": (8, 1024, 8, 4, 64, 0),
    "study1-byte, main": (8, 150, 8, 4, 64, 0),
    "window 256": (4, 1024, 4, 2, 64, 256),
    "16k, window 64": (1, 16384, 4, 2, 64, 64),
    "narrow heads, window 64": (4, 1024, 8, 4, 32, 64),
}


def passes(
    packed: Tensor, module: Attention, heads: AttentionShape, g: Tensor, fast: bool, clock: str
) -> tuple[float, float]:
    """Seconds of one forward and one backward pass."""
    now = CLOCKS[clock]
    started = now()
    out = (attention if fast else attention_reference)(packed, module.q_gain, None, heads)
    halfway = now()
    assert module.q_gain is not None
    torch.autograd.grad(out, (packed, module.q_gain), g)
    return halfway - started, now() - halfway


def measure(shape: tuple[int, ...], dtype: torch.dtype, repeats: int, clock: str) -> dict[str, float]:
    """Median milliseconds of both forms, and the native form's rate."""
    batch, length, queries, groups, width, window = shape
    module = Attention(StackConfig(1, queries * width, queries, groups, window=window))
    heads = module.shape
    packed = torch.randn(batch, length, (queries + 2 * groups) * width, dtype=dtype).requires_grad_()
    g = torch.randn(batch, length, queries * width, dtype=dtype)
    spent: dict[bool, list[tuple[float, float]]] = {False: [], True: []}
    for _ in range(repeats + 1):
        for fast in spent:
            spent[fast].append(passes(packed, module, heads, g, fast, clock))
    plain, native = (
        [1000 * statistics.median(part) for part in zip(*spent[key], strict=True)] for key in (False, True)
    )
    seen = sum(min(i + 1, window or length) for i in range(length))
    flops = 3 * 4 * batch * queries * width * seen
    return {
        "plain forward": plain[0],
        "plain backward": plain[1],
        "native forward": native[0],
        "native backward": native[1],
        "GFLOP/s": flops / sum(native) / 1e6,
    }


def main() -> None:
    """Parse the command line, measure each shape, print a table and one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"])
    parser.add_argument("--match", default="", help="only the shapes whose name contains this")
    parser.add_argument("--clock", default="wall", choices=list(CLOCKS), help="cpu: processor time of all threads")
    arguments = parser.parse_args()
    if reason := native.why_not():
        raise SystemExit(reason)
    chosen = {name: shape for name, shape in SHAPES.items() if arguments.match in name}
    dtype = getattr(torch, arguments.dtype)
    rows = [
        {"shape": name, **measure(shape, dtype, arguments.repeats, arguments.clock)} for name, shape in chosen.items()
    ]
    print(f"{machine()}, {arguments.dtype}, {arguments.clock} clock\n\n{table(rows)}")
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
