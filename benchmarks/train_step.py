"""How long a training step takes, and how near that is to what the machine's matrix products allow.

    python benchmarks/train_step.py cpu-demo
    python benchmarks/train_step.py study1-byte train.batch_tokens=8192 --rate 0.15 --steps 5 --profile
    python benchmarks/train_step.py baseline-sp1024 train.batch_tokens=8192 --data data/sp1024

Medians over steps, after warm-up; "data" is what the loop does to have a batch on the device. The model FLOPs are those
of the matrix products and attention (twice that in the backward pass), at the boundary rate that occurs; MFU relates
them to the best bf16 (or fp32) product measured after the steps: of forward and backward alone, and of the whole step.
An untrained router's rate says nothing about a trained one's, so boundaries are drawn at random at `--rate` (the
preset's 1/N by default); the router still runs.

Tokens are random unless `--data` names a prepared folder; speed does not depend on them otherwise. A token of byte260
is a byte, so that bytes/s = tokens/s; what a subword stands for only `--data` can tell. Peak memory is this process's
largest resident set up to the end of the steps, torch itself included (on a GPU: what torch allocated there).

On a machine that others use, `OMP_NUM_THREADS=1 … --clock cpu` counts processor time instead of wall-clock time.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measuring import machine, peak_memory, table
from torch import Tensor, nn

from bytegolf.config import Config, HNetConfig, outer_dim
from bytegolf.data.dataset import TokenStream, open_split, shard_paths
from bytegolf.data.dataset_writer import ShardWriter
from bytegolf.data.loader import Loader
from bytegolf.data.tokenizer import ByteTokenizer, Tokenizer, load_tokenizer
from bytegolf.device import choose_device, pick_precision
from bytegolf.model.embed import row_tables
from bytegolf.model.lm import LanguageModel, count_parameters
from bytegolf.tools.plan.devices import CLOCKS, matmul_peak, timed
from bytegolf.tools.plan.work import forward_flops
from bytegolf.training.optim import Optimizer
from bytegolf.training.setup import compile_stacks
from bytegolf.training.weights import WeightAverage

PARTS = ("data", "forward", "backward", "optimiser")


def fix_rates(model: LanguageModel, rate: float | None) -> list[float]:
    """Have each router open chunks at random at a fixed rate; the rates, outermost first."""
    rates = []
    network: Any = model.network
    config = model.config.network
    generator = torch.Generator().manual_seed(0)
    while isinstance(config, HNetConfig):
        share = rate or 1 / config.router.target
        router: Any = network.router
        original = router.forward

        def routed(
            *inputs: Any, original: Callable[..., tuple[Tensor, Tensor]] = original, share: float = share
        ) -> tuple[Tensor, Tensor]:
            p, _ = original(*inputs)
            drawn = (torch.rand(p.shape, generator=generator) < share).to(p.device)
            drawn[:, 0] = True
            return p, drawn

        router.forward = routed
        rates.append(share)
        network, config = network.main, config.main
    return rates


def stream_of(config: Config, data: Path | None, scratch: Path) -> tuple[TokenStream, Tokenizer | None]:
    """The training tokens and their tokenizer: of a prepared folder, or random ones (whose subwords have no bytes)."""
    if data:
        tokenizer = load_tokenizer(config.data.tokenizer, data)
        return open_split(data, config.data.tokenizer, "train", tokenizer.vocab_size), tokenizer
    vocabulary = config.model.vocab_size
    tokens = np.random.default_rng(0).integers(4, vocabulary, 2 * config.train.batch_tokens + (1 << 20))
    with ShardWriter(scratch, "train") as writer:
        writer.write(tokens.astype(np.uint16))
    tokenizer = ByteTokenizer()
    return TokenStream(shard_paths(scratch, "train"), vocabulary), (
        tokenizer if tokenizer.name == config.data.tokenizer else None
    )


class Steps:
    """Training steps as the loop takes them, each part timed by itself."""

    def __init__(
        self, config: Config, stream: TokenStream, tokenizer: Tokenizer | None, rate: float | None, clock: str = "wall"
    ) -> None:
        settings = config.train
        self.config, self.tokenizer, self.clock = config, tokenizer, clock
        self.device = choose_device(settings.device)
        torch.manual_seed(0)
        self.model = LanguageModel(config.model).to(self.device)
        self.model.precision = pick_precision(settings.precision, self.device)
        for lookup in row_tables(self.model):  # as a process that trains alone has it
            lookup.sparse_gradients = True
        self.compiled = compile_stacks(self.model, settings.compile, self.device, print)
        self.rates = fix_rates(self.model, rate)
        self.optimizer = Optimizer(self.model, config.optim)
        self.average = (
            WeightAverage(dict(self.model.named_parameters()), settings.ema_decay) if settings.ema_decay else None
        )
        self.loader = Loader(stream, settings.seq_len, settings.batch_tokens, settings.seed, config.data.order)
        self.bytes = 0
        """that the targets of the last step stand for"""

    def fetch(self, index: int) -> tuple[Tensor, Tensor]:
        """A batch on the device, its bytes counted."""
        inputs, targets = self.loader.batch(index)
        if self.tokenizer:
            self.bytes = int(self.tokenizer.byte_counts(targets, inputs).sum())
        tensors = [torch.from_numpy(array) for array in (inputs, targets)]
        if self.device.type == "cuda":
            tensors = [tensor.pin_memory() for tensor in tensors]
        ids, wanted = (tensor.to(self.device, non_blocking=True) for tensor in tensors)
        return ids, wanted

    def update(self) -> None:
        """What follows the gradients; at a learning rate of 0, so that every step does the same work."""
        if self.config.train.grad_clip:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.config.train.grad_clip)
        self.optimizer.step(0.0, 0)
        self.optimizer.zero_grad()
        if self.average:
            self.average.update()

    def take(self, index: int) -> dict[str, float]:
        """One step; seconds by part."""
        spent = dict.fromkeys(PARTS, 0.0)
        batch: list[Tensor] = []
        spent["data"] = timed(lambda: batch.extend(self.fetch(index)), self.device, self.clock)
        micro = self.config.train.micro_batch or len(batch[0])
        for ids, targets in zip(*(torch.split(part, micro) for part in batch), strict=True):
            objectives: list[Tensor] = []

            def forward(ids: Tensor = ids, targets: Tensor = targets, found: list[Tensor] = objectives) -> None:
                out = self.model(ids)
                found.append(self.model.objective(out, self.model.losses(out, targets)))

            spent["forward"] += timed(forward, self.device, self.clock)
            spent["backward"] += timed(objectives[0].backward, self.device, self.clock)
        spent["optimiser"] = timed(self.update, self.device, self.clock)
        return spent


def profile(steps: Steps) -> None:
    """Print the ten costliest operations of a step."""
    cuda = steps.device.type == "cuda"
    with torch.profiler.profile() as record:
        steps.take(0)
    order = "self_cuda_time_total" if cuda else "self_cpu_time_total"
    print(record.key_averages().table(sort_by=order, row_limit=10, max_name_column_width=40))


def measure(
    config: Config, count: int, rate: float | None, data: Path | None, profiled: bool, clock: str
) -> dict[str, Any]:
    """Time ``count`` training steps of ``config``: all figures, by name."""
    with tempfile.TemporaryDirectory() as scratch:
        stream, tokenizer = stream_of(config, data, Path(scratch))
        steps = Steps(config, stream, tokenizer, rate, clock)
        first = timed(lambda: steps.take(0), steps.device)
        steps.take(1)
        taken = [steps.take(index) for index in range(2, 2 + count)]
        cuda = steps.device.type == "cuda"
        memory = torch.cuda.max_memory_allocated() if cuda else peak_memory()
        if profiled:
            profile(steps)
    seconds = {part: statistics.median(one[part] for one in taken) for part in PARTS}
    total = statistics.median(sum(one.values()) for one in taken)
    both = seconds["forward"] + seconds["backward"]
    tokens, seq_len = config.train.batch_tokens, config.train.seq_len
    ngrams = config.model.ngrams
    ends = config.model.vocab_size + (ngrams.longest - 1) * ngrams.dim  # the embedding's map and the logits
    flops = 3 * forward_flops(steps.model.network, tokens, seq_len, steps.rates)
    flops += 3 * 2 * tokens * outer_dim(config.model.network) * ends
    peak = matmul_peak(steps.device, steps.model.precision, clock)
    return {
        "preset": config.name,
        "parameters": count_parameters(steps.model),
        "device": str(steps.device) if not cuda else torch.cuda.get_device_name(),
        "precision": str(steps.model.precision).removeprefix("torch."),
        "batch": f"{tokens // seq_len} × {seq_len}",
        "rates": [round(value, 4) for value in steps.rates],
        "seconds": {part: round(value, 5) for part, value in seconds.items()},
        "step_seconds": round(total, 5),
        "tokens_per_second": round(tokens / total),
        "bytes_per_second": round(steps.bytes / total) if tokenizer else None,
        "forward_backward_tokens_per_second": round(tokens / both),
        "model_gflop": round(flops / 1e9, 1),
        "matmul_peak_gflops": round(peak / 1e9),
        "mfu_forward_backward": round(flops / both / peak, 3),
        "mfu_step": round(flops / total / peak, 3),
        "peak_memory_mb": round(memory / 1e6),
        "first_step_seconds": round(first, 2),
        "compiled_graphs": len(steps.compiled.shapes) if steps.compiled else 0,
        "clock": clock,
        "machine": machine(),
    }


def main() -> None:
    """Parse the command line, measure, print tables and one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("preset")
    parser.add_argument("overrides", nargs="*", help="section.key=value")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--rate", type=float, help="boundary rate; 1/N of each level by default")
    parser.add_argument("--data", type=Path, help="a prepared folder, for real tokens and their bytes")
    parser.add_argument("--clock", choices=sorted(CLOCKS), default="wall")
    parser.add_argument("--profile", action="store_true", help="name the ten costliest operations of a step")
    arguments = parser.parse_intermixed_args()
    config = Config.load(arguments.preset, arguments.overrides)
    result = measure(config, arguments.steps, arguments.rate, arguments.data, arguments.profile, arguments.clock)
    whole = result["step_seconds"]
    rows = [
        {"part": part, "ms": round(1000 * value, 2), "share": f"{value / whole:.1%}"}
        for part, value in result["seconds"].items()
    ]
    print(table([*rows, {"part": "step", "ms": round(1000 * whole, 2), "share": "100.0%"}]), end="\n\n")
    for name, value in result.items():
        if name not in ("seconds", "step_seconds"):
            print(f"{name:36} {value:,}" if isinstance(value, int) else f"{name:36} {value}")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
