"""What each native kernel saves over its plain PyTorch form, forward and backward, at the shapes that presets train.

    python benchmarks/kernels.py cpu-demo study1-byte
    OMP_NUM_THREADS=1 python benchmarks/kernels.py cpu-demo --repeats 50

Rows are a step's positions at the byte level (study1-byte: a batch of 8 sequences). Plain and native runs alternate;
a time is the least of them, in milliseconds of wall clock, what autograd adds included.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from bytegolf.config import Config, HNetConfig, StackConfig
from bytegolf.model.stack import Stream
from bytegolf.ops import native
from bytegolf.ops.boundary import boundary_probability
from bytegolf.ops.cross_entropy import softcap_cross_entropy
from bytegolf.ops.embedding import normed_embedding
from bytegolf.ops.relu_squared import relu_squared
from bytegolf.ops.rms_norm import rms_norm

BATCH = 8192
"""Positions a step at most: those of a published batch's micro-batch would take too long here."""

Case = tuple[Callable[..., object], tuple[Tensor, ...]]


def cases(config: Config) -> dict[str, Case]:
    """name → (operation, its inputs that take a gradient), at the shapes of the outermost stage of ``config``."""
    network = config.model.network
    stage: StackConfig = network.encoder if isinstance(network, HNetConfig) else network
    length, vocab, dim = config.train.seq_len, config.model.vocab_size, stage.dim
    rows = min(config.train.batch_tokens, BATCH) // length
    hidden = int(stage.mlp_mult * dim)
    ids = torch.randint(vocab, (rows, length))

    def values(*shape: int) -> Tensor:
        return torch.randn(rows, length, *shape).bfloat16()

    def weights(*shape: int) -> Tensor:
        return torch.randn(shape)

    def joined(x: Tensor, y: Tensor, s: Tensor, skip: Tensor, w: Tensor, x0: Tensor, m: Tensor) -> tuple[Tensor, ...]:
        stream, normed = Stream(x).plus(y, s).plus(skip, w).read(x0, m)
        return stream.base, normed

    def added(x: Tensor, y: Tensor, s: Tensor) -> tuple[Tensor, ...]:
        stream, normed = Stream(x).plus(y, s).read()
        return stream.base, normed

    skip = (values(dim), weights(dim), values(dim), weights(dim))
    return {
        "norm": (rms_norm, (values(dim),)),
        "add, norm": (added, (values(dim), values(dim), weights(dim))),
        "add, skip, mix, norm": (joined, (values(dim), *skip, values(dim), weights(2, dim))),
        "relu squared": (relu_squared, (values(hidden),)),
        "embedding, norm": (lambda w: normed_embedding(ids, w, torch.bfloat16), (weights(vocab, dim),)),
        "boundary probability": (boundary_probability, (values(dim), values(dim))),
        "cross entropy": (
            lambda z: softcap_cross_entropy(z.flatten(0, 1), ids.flatten(), config.model.softcap),
            (values(vocab),),
        ),
    }


def measure(case: Case, repeats: int) -> dict[str, float]:
    """The least milliseconds of the plain and the native form, forward and backward."""
    function, inputs = case
    inputs = tuple(t.requires_grad_() for t in inputs)
    best: dict[str, float] = {}

    def note(name: str, started: float) -> float:
        now = time.perf_counter()
        best[name] = min(best.get(name, 1e9), 1000 * (now - started))
        return now

    def once(kind: str) -> None:
        started = time.perf_counter()
        out = function(*inputs)
        note(f"{kind} forward", started)
        outs = out if isinstance(out, tuple) else (out,)
        gradients = [torch.ones_like(t) for t in outs]
        started = time.perf_counter()
        torch.autograd.grad(outs, inputs, gradients)
        note(f"{kind} backward", started)

    for _ in range(repeats):
        once("native")
        with native.disabled():
            once("plain")
    return best


def table(presets: Iterable[str], repeats: int) -> list[dict[str, object]]:
    """One row an operation and preset."""
    rows: list[dict[str, object]] = []
    for preset in presets:
        for name, case in cases(Config.load(preset)).items():
            best = measure(case, repeats)
            plain, fused = (sum(v for k, v in best.items() if k.startswith(kind)) for kind in ("plain", "native"))
            figures = {key: round(value, 3) for key, value in best.items()}
            rows.append({"preset": preset, "operation": name, **figures, "speedup": round(plain / fused, 1)})
    return rows


def main() -> None:
    """Parse the command line, measure, print a table and one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("presets", nargs="+")
    parser.add_argument("--repeats", type=int, default=30)
    arguments = parser.parse_args()
    if reason := native.why_not():
        raise SystemExit(reason)
    rows = table(arguments.presets, arguments.repeats)
    columns = ("plain forward", "native forward", "plain backward", "native backward", "speedup")
    print(f"{'preset':16} {'operation':22} " + " ".join(f"{column:>15}" for column in columns))
    for row in rows:
        print(f"{row['preset']:16} {row['operation']:22} " + " ".join(f"{row[column]:>15}" for column in columns))
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
