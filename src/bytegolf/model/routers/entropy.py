"""Chunks that begin where the next token is hard to predict, by a small model made of counts.

After BLT's entropy patches (Pagnoni et al., arXiv 2412.09871, section 2.3): a patch starts at a token whose
distribution, given what came before, has an entropy above a threshold. BLT's small model is a byte transformer; ours
counts what follows each context of up to k tokens in the training split. The threshold is the one that gives the wanted
rate there.

Of the counts only the verdicts are kept, one a context, so the small model is part of the artifact at a few bits each.

Legend: B batch, L positions, M width of a memory (k: the last tokens), T tokens of the training text, V alphabet.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float64, Int, Int64
from torch import Tensor

from bytegolf.config import RouterConfig
from bytegolf.errors import BytegolfError
from bytegolf.model.embed import NOTHING
from bytegolf.model.layers import declare
from bytegolf.model.routers.base import FixedRouter, Marks, Material, Tokens, mix
from bytegolf.registry import register_router

HELD_OUT = 0.25
"""Share of the training text on which the threshold is set: contexts that were never counted occur there too."""


@register_router("entropy")
class EntropyRouter(FixedRouter):
    """A verdict for each context: +1 a chunk starts behind it, −1 none does, 0 it was never seen.

    The longest context that was seen decides. Contexts share entries by their hash.
    """

    def __init__(self, config: RouterConfig, dim: int, vocab_size: int = 0) -> None:
        super().__init__(config, dim, vocab_size)
        self.width = config.entropy.order
        self.vocab_size = vocab_size
        self.verdicts: Tensor
        self.register_buffer("verdicts", torch.zeros(config.entropy.order, 1 << config.entropy.bits))
        declare(self, "rule", "verdicts")

    def scan(self, tokens: Tokens, first: Marks, memory: Int[Tensor, "B M"]) -> tuple[Marks, Int[Tensor, "B L M"]]:
        assert tokens is not None
        entries, memories = self._contexts(tokens, first, memory)
        opens = first.clone()
        decided = first.clone()
        for row in reversed(range(self.width)):
            verdict = self.verdicts[row][entries[row]]
            opens |= ~decided & (verdict > 0.5)
            decided |= verdict.abs() > 0.5
        return opens, memories

    def _contexts(self, tokens: Tensor, first: Tensor, memory: Tensor) -> tuple[list[Tensor], Tensor]:
        """For each length of context its entry at each position, each (B, L); and the memory behind each position."""
        length, width = tokens.shape[1], self.width
        ids = torch.cat((memory, tokens), 1)
        starts = torch.cat((torch.zeros_like(memory, dtype=torch.bool), first), 1)
        crossed = torch.zeros_like(first)
        key = torch.zeros_like(tokens)
        entries, kept = [], [tokens]
        for back in range(1, width + 1):
            # the document began behind the token so far back
            crossed = crossed | starts[:, width - back + 1 :][:, :length]
            earlier = ids[:, width - back :][:, :length].masked_fill(crossed, NOTHING)
            key = mix(key + earlier + 2)
            entries.append((key >> 20) & ((1 << self.config.entropy.bits) - 1))
            kept.append(earlier)
        return entries, torch.stack(kept[width - 1 :: -1], -1)

    def prepare(self, material: Material) -> None:
        """Count what follows each context, and set the threshold.

        A context's entropy is that of its counts, mixed with the one of the next shorter context as Witten and Bell do:
        by n/(n + m), where it was seen n times with m different tokens behind it.
        """
        tokens = torch.from_numpy(material.tokens.astype(np.int64)).unsqueeze(0)
        cut = round(tokens.shape[1] * (1 - HELD_OUT))
        if cut < 2:
            raise BytegolfError("router.kind is 'entropy', but there is hardly any training text: prepare more")
        nothing = self.start(1, tokens.device, tokens.dtype) + NOTHING
        entries, _ = self._contexts(tokens, torch.zeros_like(tokens, dtype=torch.bool), nothing)
        size = 1 << self.config.entropy.bits
        follows = tokens[0].numpy()
        counted = follows[:cut]
        whole, _, _ = _entropies(np.zeros(cut, np.int64), counted, 1, self.vocab_size)
        entropy = np.full(len(follows), whole[0])  # of each position, by the contexts so far
        means, seen = [], []
        for row in entries:
            at = row[0].numpy()
            own, share, count = _entropies(at[:cut], counted, size, self.vocab_size)
            entropy = share[at] * own[at] + (1 - share[at]) * entropy
            seen.append(count > 0)
            means.append(np.bincount(at[:cut], entropy[:cut], size) / np.maximum(count, 1))
        held = np.full(len(follows) - cut, np.nan)
        for row, mean, known in zip(entries, means, seen, strict=True):
            at = row[0].numpy()[cut:]
            held = np.where(known[at], mean[at], held)
        threshold = np.nanquantile(held, 1 - 1 / self.config.target) if np.isfinite(held).any() else np.inf
        verdicts = np.where(np.stack(seen), np.where(np.stack(means) > threshold, 1.0, -1.0), 0.0)
        self.verdicts.copy_(torch.from_numpy(verdicts))


def _entropies(
    contexts: Int64[np.ndarray, " T"], follows: Int64[np.ndarray, " T"], size: int, vocab_size: int
) -> tuple[Float64[np.ndarray, " S"], Float64[np.ndarray, " S"], Int64[np.ndarray, " S"]]:
    """For each of ``size`` (S) contexts: the entropy of what follows it in nats, its weight n/(n + m), and n."""
    pairs, counts = np.unique(contexts * vocab_size + follows, return_counts=True)
    owner = pairs // vocab_size
    n = np.bincount(owner, counts, size)
    kinds = np.bincount(owner, minlength=size)
    spread = np.bincount(owner, counts * np.log(counts), size)
    safe = np.maximum(n, 1)
    return np.log(safe) - spread / safe, n / np.maximum(n + kinds, 1), n.astype(np.int64)
