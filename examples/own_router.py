"""A learned router of your own, compared with the built-in cosine router over three seeds.

    python examples/own_router.py                      # 2 routers × 3 seeds × 60 steps over data/default: some minutes
    python examples/own_router.py --steps 2000 --seeds 1 2 3 4 5 --set data.path=data/notes

Its weights go into the artifact, which loads wherever this file was imported first.
"""

import argparse
import tempfile

import numpy as np
import torch

import bytegolf
from bytegolf.model.layers import Linear
from bytegolf.model.routers.base import THRESHOLD, Router


@bytegolf.register_router("pair")  # `model.network.router.kind=pair` now means this class
class PairRouter(Router):
    """p_t = σ(v · relu(W [x_t, x_{t−1}])): a small network instead of an angle. Sizes: B texts, L bytes, D width."""

    learned, receptive_field = True, 1  # p has a gradient, and depends on one position before its own

    def __init__(self, config, dim, vocab_size=0):
        super().__init__(config, dim, vocab_size)
        self.dim, self.hidden, self.out = dim, Linear(2 * dim, 16), Linear(16, 1)

    def decide(self, x, before, start):  # x (B, L, D); before (B, D) lies in front of it; start (B, L) of documents
        pairs = torch.cat((x, torch.cat((before.unsqueeze(1), x[:, :-1]), 1)), -1)
        p = torch.where(start, 1.0, torch.sigmoid(self.out(self.hidden(pairs).relu()).squeeze(-1).float()))
        return p, p >= THRESHOLD

    def forward(self, x, first=None, tokens=None):  # whole sequences, whose first byte always begins a chunk
        start = torch.arange(x.shape[1], device=x.device).eq(0).expand(x.shape[:2])
        return self.decide(x, x.new_zeros(x.shape[0], self.dim), start if first is None else first | start)

    def start(self, batch, device, dtype):  # generation goes byte by byte: what it remembers before the first …
        return torch.zeros(batch, self.dim, device=device, dtype=dtype)

    def extend(self, x, memory, first, tokens=None):  # … and behind each: x. It must decide as forward does.
        start = torch.arange(x.shape[1], device=x.device).eq(0) & first.unsqueeze(1)
        return *self.decide(x, memory, start), x


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--set", nargs="*", default=[], help="any other setting of both: section.key=value")
    given = parser.parse_args()
    # Equal terms: as many steps, the same text in the same order, and no help by whitespace, which is cosine's own.
    same = ["model.network.router.cosine.guide_weight=0", "eval.limit=65536", "train.max_seconds=0", *given.set]
    print("router     bits per byte    bytes per chunk")
    for kind in ("cosine", "pair"):
        scores, lengths = [], []
        for seed in given.seeds:
            changes = [
                *same,
                f"train.max_steps={given.steps}",
                f"train.seed={seed}",
                f"model.network.router.kind={kind}",
            ]
            with tempfile.TemporaryDirectory() as folder:
                summary = bytegolf.train("cpu-demo", out=f"{folder}/run", overrides=changes, quiet=True).summary
            scores.append(summary.bpb)
            lengths.append(summary.boundaries.mean_chunk_bytes or np.nan)
        print(f"{kind:8} {np.mean(scores):7.4f} ± {np.std(scores, ddof=1):.4f} {np.mean(lengths):17.2f}", flush=True)
    print("A difference within the spread of seeds says nothing: `bytegolf study` does this with care.")


if __name__ == "__main__":
    main()
