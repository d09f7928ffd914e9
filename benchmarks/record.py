"""A record of everything seeded that the package computes, and what has changed in it: the net under a refactoring.

    python benchmarks/record.py --data data/both --out before.json
    python benchmarks/record.py --data data/both --out after.json --against before.json

``data/both`` is the default corpus in both alphabets: ``bytegolf prepare --out data/both --tokenizer byte260,sp1024``.

For every preset over these that extends no other, at an eighth of its widths and for a few steps, and for ``cpu-demo``
as it is for ``--steps`` steps: the training losses, a hash of the weights that the artifact gives back, the score in
every mode, the chunks of a text, a compressed text, and a generated one. Everything runs on one thread, through the
command line.
A refactoring leaves all of it identical, bit for bit, on one machine; exit code 1 where it does not.

Tensors are hashed by content and not by name, so that a parameter may be renamed; the artifact's file holds the
configuration in words, and training's seconds, so it is not hashed itself.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}

TEXT = "The quick brown fox jumps over the lazy dog. Fellow citizens, naïve café: 3.14 × 2 = 6.28.\n\n\tEnd."
STEPS, SEQ_LEN, LIMIT = 6, 256, 2048
"""Steps of training, their sequences' length, and how many validation tokens are scored, of a shrunken preset."""


def verb(*arguments: object) -> dict[str, Any]:
    """Run ``bytegolf ARGUMENTS --json`` in this process: the object that it ends with."""
    from bytegolf.cli import main

    out, before = io.StringIO(), sys.argv
    sys.argv = ["bytegolf", *map(str, arguments), "--json"]
    code: object = 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(io.StringIO()) as err:
        try:
            main()
        except SystemExit as end:
            code = end.code
        finally:
            sys.argv = before
    if code:
        sys.exit(f"bytegolf {' '.join(map(str, arguments))} failed: {err.getvalue()[-2000:]}")
    found: dict[str, Any] = json.loads(out.getvalue().splitlines()[-1])
    return found


def stages(table: Any, path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The stacks of a network's plain configuration, with their dotted paths."""
    if "layers" in table:
        yield path, table
    else:
        for part in ("encoder", "main", "decoder"):
            yield from stages(table[part], f"{path}.{part}")


def shrunken(name: str) -> list[str]:
    """Overrides that make a preset small: an eighth of its widths and windows; its heads, layers and levels stay."""
    config = verb("presets", name)["config"]
    changes = [f"train.seq_len={SEQ_LEN}", f"train.batch_tokens={4 * SEQ_LEN}", "train.micro_batch=0"]
    for path, stage in stages(config["model"]["network"], "model.network"):
        changes += [f"{path}.dim={stage['dim'] // 8}", f"{path}.window={stage['window'] // 8}"]
        if stage["rotary_dim"] > 0:  # of a head, which is an eighth as wide
            changes.append(f"{path}.rotary_dim={stage['rotary_dim'] // 8}")
        if "m" in stage["layout"].lower() or stage["kind"] == "mamba2":
            changes.append(f"{path}.options.headdim=8")
    if config["model"]["ngrams"]["longest"] > 1:
        changes.append("model.ngrams.bits=10")
    if config["export"]["gptq"]:
        changes.append(f"export.gptq_tokens={4 * SEQ_LEN}")
    return changes


def digest(values: Any) -> str:
    """A short hash of plain data."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


def weights(run: Path) -> str:
    """A hash of what the artifact's tensors hold, dequantised, whatever their names."""
    from bytegolf.artifact.pack import read_artifact

    state = read_artifact(run / "artifact.bgolf").state
    return digest(
        sorted(
            [str(tuple(tensor.shape)), hashlib.sha256(tensor.numpy().tobytes()).hexdigest()]
            for tensor in state.values()
        )
    )


def standard_chunks(run: Path, data: Path) -> list[list[int] | None]:
    """Where the untrained and the trained model begin chunks in the standard text; None for a flat model."""
    from bytegolf.analyze.segment import STANDARD_TEXT, segment
    from bytegolf.artifact.loading import load_own, with_weights
    from bytegolf.config import levels
    from bytegolf.training.setup import TrainingData, initial_model

    loaded = load_own(run, data)
    config, tokenizer = loaded.config, loaded.tokenizer
    if not levels(config.model.network):
        return [None, None]
    text = TrainingData.open(config.with_({"data.path": str(data)}))
    untrained = with_weights(loaded, initial_model(config, tokenizer, text.train).state_dict())
    return [segment(one.model, tokenizer, STANDARD_TEXT, config.train.seq_len).offsets() for one in (untrained, loaded)]


def losses(run: Path) -> list[float]:
    """The training loss of every step."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [row["loss"] for row in rows if row["kind"] == "train"]


def record(name: str, data: Path, folder: Path, changes: list[str], steps: int, limit: int) -> dict[str, Any]:
    """One preset, trained from its seed and used in every way."""
    run = folder / "run"
    budget = ["train.max_seconds=0", f"train.max_steps={steps}", "train.warmup_steps=0", "train.log_every=1"]
    sample = ["train.validate_tokens=1024", f"eval.limit={limit}", "train.decay_steps=0", "train.precision=fp32"]
    trained = verb("train", name, "--data", data, "--out", run, *changes, *budget, *sample)
    found: dict[str, Any] = {"losses": losses(run), "weights": weights(run), "score": trained["bpb"]}
    found["quantised sample"] = [trained["validation_bpb_unquantised_sample"], trained["validation_bpb_sample"]]
    found["chunks before and after"] = standard_chunks(run, data)
    found["boundaries"] = digest(trained["boundaries"])
    few = ("--data", data, "--limit", limit)
    config = verb("presets", name, *changes)["config"]
    stride, chunks = config["train"]["seq_len"] // 4, trained["capacity"]
    modes: dict[str, tuple[object, ...]] = {
        "sliding": ("--stride", stride),
        "sgd": ("--ttt", "sgd"),
        "lora": ("--ttt", "lora", "--ttt-reset", "never"),
    }
    if chunks:
        modes["fixed capacity"] = ("--capacity", "fixed", "--capacity-divisor", 4)
    if all(level["capacity"] != "fixed" for level in chunks):
        modes["one pass"] = ("--stride", stride, "--one-pass")
    for mode, options in modes.items():
        found[mode] = verb("eval", run, *few, *options)["bpb"]
    if chunks or config["model"]["soft"]["layers"]:
        found["segments"] = [
            verb("segment", run, TEXT, "--data", data, "--level", level)["boundaries"]
            for level in range(len(chunks) or 1)
        ]
    samples = verb("sample", run, "Fellow", "--data", data, "--bytes", 40, "--seed", 1, "--count", 2)["samples"]
    found["generated"] = [sample["text"] for sample in samples]
    if config["data"]["tokenizer"] == "byte260":
        text, packed = folder / "text", folder / "packed"
        text.write_text(TEXT * 2, encoding="utf-8")
        verb("compress", "--model", run, text, "--output", packed)
        verb("decompress", "--model", run, packed, "--output", folder / "again")
        assert (folder / "again").read_bytes() == text.read_bytes()
    return found


RETIRED = {"compressed bytes"}
"""What earlier records had: since mixing, the bytes of a file depend on what mixing is like."""


def differences(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """Where two records differ, a line each."""
    lines = []
    for name in sorted(before.keys() | after.keys()):
        one, two = before.get(name, {}), after.get(name, {})
        for key in sorted((one.keys() | two.keys()) - RETIRED):
            if one.get(key) != two.get(key):
                lines.append(f"{name}: {key}: {json.dumps(one.get(key))[:160]} → {json.dumps(two.get(key))[:160]}")
    return lines


def main() -> None:
    """Parse the command line, record, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--against", type=Path)
    parser.add_argument("--presets", nargs="*", help="only these; `cpu-demo@full` is the one at its real size")
    parser.add_argument("--steps", type=int, default=40, help="of cpu-demo at its real size")
    options = parser.parse_args()

    import torch

    from bytegolf.config import Config, preset_chain, preset_names

    torch.set_num_threads(1)
    alone = [name for name in preset_names() if len(preset_chain(name)) == 1]
    # the public H-Nets' shapes are over byte256, of which there is no data
    roots = [name for name in alone if Config.load(name).data.tokenizer in ("byte260", "sp1024")]
    names = options.presets or [*roots, "cpu-demo@full"]
    found: dict[str, Any] = {}
    for name in names:
        started = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            if name == "cpu-demo@full":
                found[name] = record("cpu-demo", options.data, Path(folder), [], options.steps, 8192)
            else:
                found[name] = record(name, options.data, Path(folder), shrunken(name), STEPS, LIMIT)
        print(f"{name}: {time.perf_counter() - started:.1f} s", file=sys.stderr, flush=True)
    options.out.write_text(json.dumps(found, indent=1), encoding="utf-8")
    if options.against:
        before = json.loads(options.against.read_text(encoding="utf-8"))
        lines = differences({name: before[name] for name in names if name in before}, found)
        print("\n".join(lines) or "identical")
        sys.exit(1 if lines else 0)


if __name__ == "__main__":
    main()
