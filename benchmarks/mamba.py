"""Training steps of a stack of Mamba-2 blocks on this CPU: native, plain, and beside local attention of the same width.

    OMP_NUM_THREADS=1 python benchmarks/mamba.py
    OMP_NUM_THREADS=1 python benchmarks/mamba.py --dim 512 --dtype bfloat16 --repeats 9
    OMP_NUM_THREADS=1 python benchmarks/mamba.py --lengths 1024 4096 16384 65536

Forward and backward through all of a stack, linear maps included, in processor time; medians of alternating runs. The
share of the peak is of a matrix product of 1024 × 1024 in the same dtype, measured in between. With --lengths each
length runs in a process of its own, one sequence, and its peak memory is shown.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from typing import Any

import torch
from measuring import fresh, machine, peak_memory, table
from torch import Tensor

from bytegolf.config import StackConfig
from bytegolf.model.hnet import build_stack
from bytegolf.model.stack import Stack
from bytegolf.ops import native
from bytegolf.tools.plan.work import forward_flops


def stack_of(kind: str, args: argparse.Namespace) -> Stack:
    """Blocks of one kind, without MLPs; attention with heads of 64 and a window."""
    if kind == "mamba":
        options = {"d_state": args.d_state, "chunk_size": 64}
        return build_stack(
            StackConfig(args.blocks, args.dim, layout=f"m{args.blocks}", block="prenorm", options=options)
        )
    heads = args.dim // 64
    layout = f"t{args.blocks}"
    return build_stack(
        StackConfig(
            args.blocks, args.dim, heads, heads, window=args.window, layout=layout, block="prenorm", qk_norm=False
        )
    )


def step(stack: Stack, x: Tensor) -> float:
    """Processor seconds of forward and backward."""
    started = time.process_time()
    out = stack(x)
    torch.autograd.grad(out, [x, *stack.parameters()], torch.ones_like(out))
    return time.process_time() - started


def product(dtype: torch.dtype) -> float:
    """FLOP/s of a matrix product."""
    a = torch.randn(1024, 1024).to(dtype)
    started = time.process_time()
    for _ in range(3):
        a @ a
    return 3 * 2 * 1024**3 / (time.process_time() - started)


def compare(args: argparse.Namespace, dtype: torch.dtype) -> list[dict[str, Any]]:
    """Native, plain and attention, alternating."""
    batch = args.tokens // args.length
    mamba, attention = stack_of("mamba", args), stack_of("attention", args)
    x = torch.randn(batch, args.length, args.dim, dtype=dtype).requires_grad_()
    spent: dict[str, list[float]] = {"Mamba-2, native": [], "Mamba-2, plain": [], "local attention": []}
    peaks = []
    for _ in range(args.repeats + 1):
        peaks.append(product(dtype))
        spent["Mamba-2, native"].append(step(mamba, x))
        with native.disabled():
            spent["Mamba-2, plain"].append(step(mamba, x))
        spent["local attention"].append(step(attention, x))
    peak, rows = statistics.median(peaks[1:]), []
    for name, times in spent.items():
        seconds = statistics.median(times[1:])
        flops = 3 * forward_flops(attention if name == "local attention" else mamba, args.tokens, args.length, [])
        rows.append(
            {
                "form": name,
                "ms": 1000 * seconds,
                "bytes/s": args.tokens / seconds,
                "GFLOP/s": flops / seconds / 1e9,
                "share of the peak": flops / seconds / peak,
            }
        )
    return rows


def one_length(args: argparse.Namespace, dtype: torch.dtype) -> dict[str, Any]:
    """One sequence: time, and the memory that it takes on top."""
    stack = stack_of(args.kind, args)
    x = torch.randn(1, args.length, args.dim, dtype=dtype).requires_grad_()
    before = peak_memory()
    seconds = min(step(stack, x) for _ in range(2))
    grown = (peak_memory() - before) / 1e6
    return {
        "form": args.kind,
        "length": args.length,
        "ms": 1000 * seconds,
        "µs/byte": 1e6 * seconds / args.length,
        "MB": grown,
    }


def main() -> None:
    """Parse the command line, measure, print a table and one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dim", type=int, default=256)
    parser.add_argument("--d-state", type=int, default=64)
    parser.add_argument("--blocks", type=int, default=4)
    parser.add_argument("--window", type=int, default=128)
    parser.add_argument("--length", type=int, default=1024)
    parser.add_argument("--tokens", type=int, default=8192, help="positions of a step")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--lengths", type=int, nargs="*", default=[])
    parser.add_argument("--kind", choices=["mamba", "attention"], help="one length alone, which --lengths starts")
    args = parser.parse_args()
    dtype = getattr(torch, args.dtype)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    if args.kind:
        print(json.dumps(one_length(args, dtype)))
        return
    rows = compare(args, dtype)
    print(machine(), "\n")
    print(table(rows))
    growth = []
    for length in args.lengths:
        for kind in ("mamba", "attention"):
            shape = (
                f"--{key}={getattr(args, key.replace('-', '_'))}" for key in ("dim", "d-state", "blocks", "window")
            )
            growth.append(fresh("mamba.py", *shape, f"--dtype={args.dtype}", f"--length={length}", f"--kind={kind}"))
    if growth:
        print("\n" + table(growth))
    print(json.dumps({"rows": rows, "growth": growth}))


if __name__ == "__main__":
    main()
