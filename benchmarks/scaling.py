"""How the cost of a training step grows with sequence length, width and chunk rate.

    python benchmarks/scaling.py cpu-demo
    python benchmarks/scaling.py cpu-demo --family sequence --tokens 16384 --window 256
    python benchmarks/scaling.py cpu-gpt --family sequence model.network.window=128

Each point is `train_step.py` in a fresh process, whose peak memory is therefore its own. The points of a family are
visited in turn `--rounds` times and each shows the median round, so that a machine that slows down does so for all.

- *sequence*: 1,024 to 16,384 tokens a sequence at a constant number of tokens a step. Time per token is flat, and so is
  memory, if both are linear in the length. Full attention anywhere bends the curve: an H-Net's main stage has it over
  chunks, so the family is run twice, as the preset is and with `--window` chunks in the main stage.
- *width*: the widths of all stages together, heads of the same size.
- *rate*: the share of positions that open a chunk, which sets how long the main network's sequences are.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from typing import Any

from measuring import fresh, machine, table

from bytegolf.config import Config, HNetConfig, NetworkConfig, StackConfig

Point = dict[str, list[str]]
"""what to call a point: the arguments for ``train_step.py``"""


def stages(network: NetworkConfig, where: str = "model.network") -> dict[str, StackConfig]:
    """Every stage by the dotted path of its configuration, outermost first, the innermost main stage last."""
    if isinstance(network, StackConfig):
        return {where: network}
    found = {f"{where}.encoder": network.encoder, f"{where}.decoder": network.decoder}
    return found | stages(network.main, f"{where}.main")


def sequence_points(lengths: list[int], tokens: int, extra: list[str]) -> Point:
    """One point a length, ``tokens`` a step."""
    return {
        f"{length:,}": [f"train.seq_len={length}", f"train.batch_tokens={max(tokens, length)}", *extra]
        for length in lengths
    }


def width_points(config: Config, widths: list[int]) -> Point:
    """One point a width of the outermost stage; the other stages keep their proportion to it."""
    found = stages(config.model.network)
    outer = next(iter(found.values())).dim
    points: Point = {}
    for width in widths:
        factor = width / outer
        changes = []
        for path, stage in found.items():
            size = stage.dim // stage.heads
            heads = math.ceil(stage.dim * factor / size)
            groups = max(n for n in range(1, heads + 1) if heads % n == 0 and n <= max(1, stage.kv_heads * factor))
            changes += [f"{path}.dim={heads * size}", f"{path}.heads={heads}", f"{path}.kv_heads={groups}"]
        points[f"{width:,}"] = changes
    return points


def measure(preset: str, families: dict[str, Point], rounds: int, common: list[str]) -> list[dict[str, Any]]:
    """The table's rows: each family's points, relative to its first."""
    rows = []
    for family, points in families.items():
        found: dict[str, list[dict[str, Any]]] = {name: [] for name in points}
        for _ in range(rounds):
            for name, arguments in points.items():
                found[name].append(fresh("train_step.py", preset, *common, *arguments))
        first = None
        for name, results in found.items():
            result = sorted(results, key=lambda one: one["step_seconds"])[len(results) // 2]
            nanoseconds = statistics.median(1e9 / one["tokens_per_second"] for one in results)
            first = first or nanoseconds
            rows.append(
                {
                    "family": family,
                    "point": name,
                    "batch": result["batch"],
                    "parameters": result["parameters"],
                    "ns/token": round(nanoseconds),
                    "relative": round(nanoseconds / first, 3),
                    **{f"{part} ms": round(1000 * value, 1) for part, value in result["seconds"].items()},
                    "peak MB": result["peak_memory_mb"],
                    "MFU": result["mfu_forward_backward"],
                }
            )
    return rows


def main() -> None:
    """Parse the command line, measure, print a table and one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("preset")
    parser.add_argument("overrides", nargs="*", help="section.key=value, for all points")
    parser.add_argument(
        "--family", nargs="+", choices=("sequence", "width", "rate"), default=["sequence", "width", "rate"]
    )
    parser.add_argument("--lengths", type=int, nargs="+", default=[1024, 2048, 4096, 8192, 16384])
    parser.add_argument("--tokens", type=int, default=16384, help="a step, in the family 'sequence'")
    parser.add_argument("--window", type=int, default=256, help="of the main stage, in its second run")
    parser.add_argument("--widths", type=int, nargs="+", default=[128, 256, 512])
    parser.add_argument("--rates", type=float, nargs="+", default=[0.05, 0.1, 0.15, 0.2, 0.3, 0.5])
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--clock", choices=("cpu", "wall"), default="wall", help="as in train_step.py")
    parser.add_argument("--rounds", type=int, default=1)
    arguments = parser.parse_intermixed_args()
    config = Config.load(arguments.preset, arguments.overrides)
    chunked = isinstance(config.model.network, HNetConfig)
    *_, main_stage = stages(config.model.network)
    families: dict[str, Point] = {}
    if "sequence" in arguments.family:
        families["sequence"] = sequence_points(arguments.lengths, arguments.tokens, [])
        if chunked:
            window = [f"{main_stage}.window={arguments.window}"]
            families[f"sequence, main window {arguments.window}"] = sequence_points(
                arguments.lengths, arguments.tokens, window
            )
    if "width" in arguments.family:
        families["width"] = width_points(config, arguments.widths)
    if "rate" in arguments.family and chunked:
        families["rate"] = {f"{rate:g}": ["--rate", str(rate)] for rate in arguments.rates}
    common = [*arguments.overrides, "--steps", str(arguments.steps), "--clock", arguments.clock]
    rows = measure(arguments.preset, families, arguments.rounds, common)
    print(f"{arguments.preset} {' '.join(arguments.overrides)}: {machine()}\n")
    print(table(rows))
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
