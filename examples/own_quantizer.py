"""A quantiser of your own: weights of −1, 0 and 1, trained with, exported, scored, and compared with 4-bit rows.

    python examples/own_quantizer.py                   # 2 runs of 60 steps over data/default: a minute or two
    python examples/own_quantizer.py --steps 2000 --set data.path=data/notes

The artifact names the quantiser, and loads wherever this file was imported first.
"""

import argparse
import tempfile

import torch

import bytegolf
from bytegolf.artifact.quantize import Quantizer


@bytegolf.register_quantizer("ternary")  # `export.quantizer=ternary` now means this class
class Ternary(Quantizer):
    """−1, 0 or 1 times the mean magnitude of the weight's row (BitNet b1.58)."""

    largest_code, bits = 1, 1.6  # codes from −1 to 1, which take about log2(3) bits each

    def quantize(self, weight, storage):  # fp32 → int8 codes of the same shape, and fp16 scales
        scale = weight.flatten(1).abs().mean(1).to(torch.float16)
        codes = weight / self.per_row(scale, weight).clamp_min(1e-8)
        return codes.round().clamp(-1, 1).to(torch.int8), scale

    def dequantize(self, data, scale):  # and back
        return data.float() * self.per_row(scale, data)

    def per_row(self, scale, weight):
        return scale.float().view(-1, *[1] * (weight.ndim - 1))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--set", nargs="*", default=[], help="any other setting of both: section.key=value")
    given = parser.parse_args()
    # The second half of training computes with the quantised weights, so that it can make up for them.
    same = ["train.max_seconds=0", "train.decay_fraction=1", "train.qat_from=0.5", "export.coder=range"]
    same += [f"train.max_steps={given.steps}", "eval.limit=65536", *given.set]
    print("quantizer  bits per byte    model's bytes")
    for name, change in (("4-bit rows", "export.bits=4"), ("ternary", "export.quantizer=ternary")):
        with tempfile.TemporaryDirectory() as folder:
            out = f"{folder}/run"
            summary = bytegolf.train("cpu-demo", out=out, overrides=[*same, change], quiet=True).summary
            print(f"{name:10} {summary.bpb:13.4f} {summary.artifact_bytes:16,}", flush=True)


if __name__ == "__main__":
    main()
