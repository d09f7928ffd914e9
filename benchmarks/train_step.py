"""How long a training step takes, and how near that is to what the machine's matrix products allow.

    python benchmarks/train_step.py cpu-demo
    python benchmarks/train_step.py study1-byte train.batch_tokens=8192 --rate 0.15 --steps 5 --profile

Medians over steps, after warm-up. The model FLOPs are those of the matrix products and attention (twice that in the
backward pass), at the boundary rate that occurs; MFU relates them to the best bf16 (or fp32) product measured first.
An untrained router's rate says nothing about a trained one's, so boundaries are drawn at random at `--rate` (the
preset's 1/N by default); the router still runs. Text is random bytes: speed does not depend on it otherwise.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from bytegolf.config import Config, LevelConfig, NetworkConfig, StageConfig, load, outer_dim
from bytegolf.model.lm import LanguageModel, count_parameters
from bytegolf.model.router import CosineRouter
from bytegolf.train.distributed import pick_device, pick_precision
from bytegolf.train.optim import Optimizer


def matmul_peak(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of the best of a few products of the shapes that models use."""
    best = 0.0
    for rows, inner, columns in ((8192, 512, 512), (8192, 512, 1024), (4096, 1024, 1024)):
        a, b = (torch.randn(n, inner, device=device, dtype=dtype) for n in (rows, columns))
        seconds = min(timed(lambda a=a, b=b: F.linear(a, b), device) for _ in range(10))
        best = max(best, 2 * rows * inner * columns / seconds)
    return best


def timed(work: Callable[[], object], device: torch.device) -> float:
    """Seconds that ``work`` takes, its work on the device included."""
    started = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def forward_flops(network: NetworkConfig, positions: float, length: float, rates: list[float]) -> float:
    """FLOPs of a forward pass over ``positions`` positions in sequences of ``length``; ``rates``: of each level."""
    if isinstance(network, StageConfig):
        width = network.dim // network.heads
        weights = network.dim * (2 * network.dim + 2 * network.kv_heads * width)
        weights += 2 * network.dim * int(network.mlp_mult * network.dim)
        seen = min(network.window, length / 2) if network.window else length / 2
        return network.layers * positions * (2 * weights + 4 * network.dim * seen)
    dim = outer_dim(network)
    parts = (network.encoder, network.decoder)
    outer = sum(forward_flops(part, positions, length, []) for part in parts) + positions * 2 * 3 * dim * dim
    return outer + forward_flops(network.main, positions * rates[0], length * rates[0], rates[1:])


def fix_rates(model: LanguageModel, rate: float | None) -> list[float]:
    """Have each router open chunks at random at a fixed rate; the rates, outermost first."""
    rates = []
    network, config = model.network, model.config.network
    generator = torch.Generator().manual_seed(0)
    while isinstance(config, LevelConfig):
        share = rate or 1 / config.router.target
        original: CosineRouter = network.router

        def routed(
            x: Tensor, first: Tensor | None = None, original: CosineRouter = original, share: float = share
        ) -> tuple[Tensor, Tensor]:
            p, _ = CosineRouter.forward(original, x, first)
            drawn = (torch.rand(p.shape, generator=generator) < share).to(p.device)
            drawn[:, 0] = True
            return p, drawn

        original.forward = routed  # type: ignore[method-assign]
        rates.append(share)
        network, config = network.main, config.main
    return rates


def measure(config: Config, steps: int, rate: float | None, profile: bool) -> dict[str, object]:
    """Time ``steps`` training steps of ``config``; what the table shows."""
    device = pick_device(config.train.device)
    torch.manual_seed(0)
    model = LanguageModel(config.model).to(device)
    model.precision = pick_precision(config.train.precision, device)
    rates = fix_rates(model, rate)
    optimizer = Optimizer(model, config.optim)
    sequences = config.train.batch_tokens // config.train.seq_len
    tokens = torch.randint(4, config.model.vocab_size, (sequences, config.train.seq_len + 1), device=device)
    micro = config.train.micro_batch or sequences
    spent: dict[str, list[float]] = {"forward": [], "backward": [], "optimiser": []}

    def step() -> None:
        forward = backward = 0.0
        for part in tokens.split(micro):
            loss = torch.zeros(())

            def run_forward(part: Tensor = part) -> None:
                nonlocal loss
                out = model(part[:, :-1])
                loss = model.objective(out, model.losses(out, part[:, 1:]))

            forward += timed(run_forward, device)
            backward += timed(lambda: loss.backward(), device)  # noqa: B023
        spent["forward"].append(forward)
        spent["backward"].append(backward)
        spent["optimiser"].append(timed(lambda: (optimizer.step(0.0, 0), optimizer.zero_grad()), device))

    for _ in range(2):
        step()
    for times in spent.values():
        times.clear()
    for _ in range(steps):
        step()
    if profile:
        with torch.profiler.profile() as record:
            step()
        print(record.key_averages().table(sort_by="self_cpu_time_total", row_limit=10, max_name_column_width=40))
    seconds = {name: statistics.median(times) for name, times in spent.items()}
    total = sum(seconds.values())
    flops = 3 * (
        forward_flops(config.model.network, tokens[:, 1:].numel(), config.train.seq_len, rates)
        + 2 * tokens[:, 1:].numel() * outer_dim(config.model.network) * config.model.vocab_size
    )
    peak = matmul_peak(device, model.precision)
    return {
        "preset": config.name,
        "parameters": count_parameters(model),
        "device": str(device),
        "precision": str(model.precision).removeprefix("torch."),
        "rates": rates,
        **{f"{name}_ms": round(1000 * value, 1) for name, value in seconds.items()},
        "tokens_per_second": round(tokens[:, 1:].numel() / total),
        "forward_backward_tokens_per_second": round(tokens[:, 1:].numel() / (total - seconds["optimiser"])),
        "model_gflop": round(flops / 1e9, 1),
        "peak_gflops": round(peak / 1e9),
        "mfu": round(flops / (total - seconds["optimiser"]) / peak, 3),
        "peak_memory_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000),
    }


def main() -> None:
    """Parse the command line, measure, print a table and one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("preset")
    parser.add_argument("overrides", nargs="*", help="section.key=value")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--rate", type=float, help="boundary rate; 1/N of each level by default")
    parser.add_argument("--profile", action="store_true", help="name the ten costliest operations of a step")
    arguments = parser.parse_intermixed_args()
    result = measure(load(arguments.preset, arguments.overrides), arguments.steps, arguments.rate, arguments.profile)
    for name, value in result.items():
        print(f"{name:36} {value}")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
