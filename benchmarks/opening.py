"""Public H-Nets on this machine: how long from a file to the first byte, and how much memory that takes.

    python benchmarks/opening.py --shapes 100m 1stage-L 2stage-XL --bits 8 --out FOLDER

For each shape, a .pt of random bf16 weights by the public names is written, and `bytegolf import` brings it in; with
--bits, `bytegolf export` quantises it as well. Then each of these files is opened by a process of its own, which writes
one byte behind a prompt, and scores a text. Times begin when torch and bytegolf are imported. Peak memory is the
process's largest resident set, which counts the mapped pages of the file that were read; what Python and its libraries
take before that is told beside it. The pages are in the system's cache from being written: the disk is not measured.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from pathlib import Path
from typing import Any

from measuring import bytegolf, fresh, machine, peak_memory, run, table

PROMPT = "The people of the United States"
ATTENTION = {"num_heads": [16, 16], "rotary_emb_dim": [16, 24], "window_size": [1023, -1]}
SSM = {"chunk_size": 256, "d_conv": 4, "d_state": 128, "expand": 2}
SMALL = {
    "arch_layout": ["m4", ["T12"], "m4"],
    "d_model": [512, 768],
    "d_intermediate": [0, 2048],
    "vocab_size": 256,
    "ssm_cfg": SSM,
    "attn_cfg": ATTENTION,
    "tie_embeddings": False,
}


def shapes() -> dict[str, dict[str, Any]]:
    """The public configurations by the names of this benchmark."""
    from bytegolf.artifact.public.opening import RELEASED

    return {"100m": SMALL, **{name.removeprefix("hnet_"): config for name, config in RELEASED.items()}}


def write(name: str, folder: Path) -> Path:
    """A public .pt of random weights with the scales at which training starts, and its JSON."""
    import torch

    from bytegolf.config.public_hnet import from_public
    from bytegolf.model.public_names import public_names

    config = shapes()[name.replace("-", "_")]
    tensors = {}
    for there in public_names(from_public(config)).values():
        tensor = torch.empty(there.shape, dtype=torch.bfloat16).normal_(0, 0.02)
        if "norm" in there.name or there.name.endswith(".D"):
            tensor += 1
        tensors[there.name] = tensor
    path = folder / f"{name}.pt"
    torch.save(tensors, path)
    path.with_suffix(".json").write_text(json.dumps(config))
    return path


def measure(source: str, precision: str) -> dict[str, Any]:
    """What one process needs for its first byte, and for a text."""
    import torch

    import bytegolf as package

    torch.set_num_threads(1)
    before = peak_memory()
    started, spent = time.perf_counter(), time.process_time()
    model = package.load(source, precision=precision)  # type: ignore[arg-type]
    opened = time.perf_counter() - started
    next(iter(model.generate(PROMPT, max_bytes=4, temperature=0, stream=True)), "")
    first, spent = time.perf_counter() - started, time.process_time() - spent
    peak_first = peak_memory()
    started = time.perf_counter()
    model.score(PROMPT * 16)
    scored = time.perf_counter() - started
    found = {"opened": opened, "first": first, "spent": spent, "scored": scored, "text": len(PROMPT) * 16}
    return {**found, "before": before, "peak_first": peak_first, "peak": peak_memory(), "weights": model.parameters}


def main() -> None:
    """Print a row per shape and file."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--shapes", nargs="+", default=["100m"])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--bits", type=int, nargs="*", default=[], help="also artifacts of so many bits")
    parser.add_argument("--one", help="measure one file in this process, and print JSON")
    parser.add_argument("--write", nargs=2, help="write one shape into a folder, in this process")
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options.one, options.precision)))
        return
    if options.write:
        print(write(options.write[0], Path(options.write[1])))
        return
    print(machine())
    rows = []
    for name in options.shapes:
        folder = options.out / name
        folder.mkdir(parents=True)
        run([sys.executable, __file__, "--write", name, str(folder)])
        public, mine = folder / f"{name}.pt", folder / "imported"
        started = time.perf_counter()
        run(bytegolf("import", str(public), "--out", str(mine)))
        seconds = time.perf_counter() - started
        files = {"public": public, "imported": mine / "model.safetensors"}
        for bits in options.bits:
            files[f"{bits} bits"] = folder / f"{bits}.bgolf"
            run(bytegolf("export", str(mine), f"export.bits={bits}", "--out", str(files[f"{bits} bits"])))
        for kind, source in files.items():
            found = fresh("opening.py", "--one", str(source), "--precision", options.precision)
            size = source.stat().st_size
            rows.append(
                {
                    "shape": name,
                    "file": kind,
                    "weights": found["weights"],
                    "GB": size / 1e9,
                    "import s": seconds,
                    "opened s": found["opened"],
                    "first byte s": found["first"],
                    "of processor": found["spent"],
                    "scoring B/s": found["text"] / found["scored"],
                    "GB before": found["before"] / 1e9,
                    "GB at first byte": found["peak_first"] / 1e9,
                    "÷ file": found["peak_first"] / size,
                    "above before ÷ file": (found["peak_first"] - found["before"]) / size,
                    "GB after scoring": found["peak"] / 1e9,
                }
            )
            print(table(rows[-1:]), flush=True)
        shutil.rmtree(folder)
    print(table(rows))


if __name__ == "__main__":
    main()
