"""Soft chunking (S1, PR #1191): how much of each position's vector is its own, and how much of what came before it.

A layer works out b_t = σ(w·[x_{t−1}; x_t] + c), blends, and mixes the blend with a linear map:

- ``previous`` (S1): blended_t = b_t·x_t + (1 − b_t)·x_{t−1}. At b = 0 a position's own vector is gone.
- ``chunk`` (ours): blended_t = h_t / w_t with h_t = x_t + (1 − b_t)·h_{t−1} and w_t = 1 + (1 − b_t)·w_{t−1}: the mean
  of the chunk so far, which b_t = 1 begins anew. At b = 0 nothing is lost, so a b below 1 has something to offer.

With b = 1 everywhere both are the identity. Blending stops where a document begins.

Legend: B batch, L positions, D width, I inner width, R rows of an extension.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from bytegolf.config import SoftConfig
from bytegolf.model.layers import Linear
from bytegolf.model.mixers.base import Rows
from bytegolf.model.routers.base import THRESHOLD
from bytegolf.model.routers.losses import ratio_loss, surprisal_loss
from bytegolf.model.trace import SoftTrace
from bytegolf.ops.autograd import wide
from bytegolf.ops.chunking import smooth, smooth_on
from bytegolf.ops.relu_squared import relu_squared

Override = Callable[[Float[Tensor, "B L"], Bool[Tensor, "B L"]], Float[Tensor, "B L"]]
"""What takes the place of b, given a layer's b and where documents begin (b stays 1 there)."""


@dataclass
class LayerState:
    """What a layer remembers of each sequence's last position."""

    last: Float[Tensor, "B D"]
    """its input"""
    mean: Float[Tensor, "B D"]
    """the mean of the chunk so far; used by ``chunk`` only"""
    weight: Float[Tensor, " B"]
    """how much that is the mean of: w"""


@dataclass
class SoftState:
    """What soft chunking remembers between calls."""

    layers: list[LayerState]
    begun: Bool[np.ndarray, " B"]
    """which sequences have had a position since they last began"""

    def reset(self, rows: Rows) -> None:
        """Forget the sequences ``rows``: a new document starts in them."""
        self.begun[rows] = False


class SoftLayer(nn.Module):
    """One layer of soft chunking. Its maps are matrices to the optimiser (Muon), its biases vectors (Adam), as in S1.

    ``inner`` > 0 puts a hidden layer of that width, with relu², before the boundary's logit: S1's wide variant.
    """

    def __init__(self, dim: int, config: SoftConfig) -> None:
        super().__init__()
        self.config = config
        hidden = config.inner or 1
        self.boundary_proj = Linear(2 * dim, hidden)
        self.boundary_bias = nn.Parameter(torch.zeros(hidden))
        self.boundary_out = Linear(config.inner, 1) if config.inner else None
        self.boundary_out_bias = nn.Parameter(torch.zeros(1)) if config.inner else None
        self.chunk_mixer = Linear(dim, dim) if config.mixer else None
        self.mixer_bias = nn.Parameter(torch.zeros(dim)) if config.mixer else None

    def logits(self, x: Float[Tensor, "B L D"], before: Float[Tensor, "B D"]) -> Float[Tensor, "B L"]:
        """w·[x_{t−1}; x_t] + c, in at least fp32; ``before`` is what precedes the first position."""
        earlier, own = self.boundary_proj.weight.to(x.dtype).chunk(2, 1)
        # one product with each half instead of one with every vector written twice
        shifted = F.linear(torch.cat((before.unsqueeze(1), x[:, :-1]), 1), earlier)
        y = F.linear(x, own) + shifted + self.boundary_bias.to(x.dtype)
        if self.boundary_out is not None:
            y = self.boundary_out(relu_squared(y)) + cast("Tensor", self.boundary_out_bias).to(x.dtype)
        return y.squeeze(-1).to(wide(x.dtype))

    @property
    def lr_multipliers(self) -> dict[str, float]:
        """Of the boundary predictor (see ``training.optim``)."""
        return {"boundary_": self.config.lr_mult}

    def boundary_names(self) -> list[str]:
        """The parameters that b depends on, besides the layer's input."""
        return [name for name, _ in self.named_parameters() if name.startswith("boundary_")]

    def choose(self, p: Float[Tensor, "B L"]) -> Float[Tensor, "B L"]:
        """b: the probability itself, or whether it reaches ½, with the gradient of p (straight-through)."""
        if self.config.boundary == "soft":
            return p
        return (p >= THRESHOLD).to(p.dtype) + (p - p.detach())

    def mix(self, blended: Float[Tensor, "B L D"]) -> Float[Tensor, "B L D"]:
        """W·blended + c′."""
        if self.chunk_mixer is None or self.mixer_bias is None:
            return blended
        return self.chunk_mixer(blended) + self.mixer_bias.to(blended.dtype)

    def forward(
        self, x: Float[Tensor, "B L D"], first: Bool[Tensor, "B L"], override: Override | None = None
    ) -> tuple[Float[Tensor, "B L D"], SoftTrace]:
        """The layer's output, and what it did; ``first`` marks where documents begin, position 0 among them."""
        nothing = torch.zeros_like(x[:, 0])
        p = torch.where(first, 1.0, torch.sigmoid(self.logits(x, nothing)))
        b = self.choose(p)
        if override:
            b = torch.where(first, 1.0, override(b, first))
        if self.config.blend == "previous":
            blended = torch.lerp(F.pad(x[:, :-1], (0, 0, 1, 0)), x, b.unsqueeze(-1).to(x.dtype))
        else:
            weight, _ = _weights(1 - b)
            blended = smooth(x, 1 / weight, first)
        return self.mix(blended), SoftTrace(p, b, first)

    def extend(
        self,
        x: Float[Tensor, "R L D"],
        state: LayerState,
        rows: Int[Tensor, " R"] | slice,
        first: Bool[Tensor, " R"],
        last: Int[Tensor, " R"],
    ) -> Float[Tensor, "R L D"]:
        """``forward`` at positions behind those of ``state``, or, where ``first``, behind none.

        ``last`` is each row's last position that is there.
        """
        before = state.last[rows]
        p = torch.sigmoid(self.logits(x, before))
        p[:, 0].masked_fill_(first, 1)
        b = self.choose(p)
        every = torch.arange(len(x), device=x.device)
        if self.config.blend == "previous":
            earlier = torch.cat((before.unsqueeze(1), x[:, :-1]), 1)
            blended = torch.lerp(earlier, x, b.unsqueeze(-1).to(x.dtype))
        else:
            weight, kept = _weights(1 - b)
            weight = weight + kept * state.weight[rows].unsqueeze(1)
            blended = smooth_on(x, 1 / weight, state.mean[rows], first)
            state.mean[rows], state.weight[rows] = blended[every, last], weight[every, last]
        state.last[rows] = x[every, last]
        return self.mix(blended)


def _weights(keep: Float[Tensor, "B L"]) -> tuple[Float[Tensor, "B L"], Float[Tensor, "B L"]]:
    """w_t = 1 + keep_t·w_{t−1} from w_{−1} = 0, and ∏_{i≤t} keep_i, by doubling: log₂ L passes."""
    # after a pass, w sums the last `terms` of them and `kept` is the product of the last `terms`:
    # keep = (·, ½, ½, ½)   w: 1 1 1 1 → 1 1½ 1½ 1½ → 1 1½ 1¾ 1⅞
    weight, kept, terms = torch.ones_like(keep), keep, 1
    while terms < keep.shape[1]:
        weight = weight + kept * F.pad(weight[:, :-terms], (terms, 0))
        kept = kept * F.pad(kept[:, :-terms], (terms, 0), value=1.0)
        terms *= 2
    return weight, kept


class SoftChunker(nn.Module):
    """``config.layers`` layers, one behind the other."""

    def __init__(self, dim: int, config: SoftConfig) -> None:
        super().__init__()
        self.config, self.dim = config, dim
        self.layers = nn.ModuleList(SoftLayer(dim, config) for _ in range(config.layers))
        self._override: Override | None = None

    @property
    def stack(self) -> list[SoftLayer]:
        """The layers, with their type."""
        return cast("list[SoftLayer]", list(self.layers))

    def forward(
        self, x: Float[Tensor, "B L D"], starts: Bool[Tensor, "B L"] | None = None
    ) -> tuple[Float[Tensor, "B L D"], list[SoftTrace]]:
        """The last layer's output, and what each did; ``starts`` marks further positions that begin a document."""
        first = torch.zeros(x.shape[:2], dtype=torch.bool, device=x.device) if starts is None else starts.clone()
        first[:, 0] = True
        traces = []
        for layer in self.stack:
            x, trace = layer(x, first, self._override)
            traces.append(trace)
        return x, traces

    @contextlib.contextmanager
    def forced(self, override: Override | None) -> Iterator[None]:
        """For as long as the context lasts, ``forward`` uses ``override`` in place of each layer's b."""
        self._override = override
        try:
            yield
        finally:
            self._override = None

    def start(self, batch: int, device: torch.device, dtype: torch.dtype) -> SoftState:
        """An empty state for ``batch`` sequences."""

        def empty() -> LayerState:
            last, mean = (torch.zeros(batch, self.dim, device=device, dtype=dtype) for _ in range(2))
            return LayerState(last, mean, torch.zeros(batch, device=device, dtype=wide(dtype)))

        return SoftState([empty() for _ in self.layers], np.zeros(batch, np.bool_))

    def extend(
        self, x: Float[Tensor, "R L D"], state: SoftState, rows: Rows | None, counts: Rows | None
    ) -> Float[Tensor, "R L D"]:
        """The next positions of the sequences ``rows`` (None: all) of ``state``, which is changed in place.

        The first ``counts`` of a row's L positions are there (None: all), the rest is padding, which leaves no trace.
        """
        every = np.arange(len(x)) if rows is None else rows
        index = slice(None) if rows is None else torch.from_numpy(rows).to(x.device)
        first = torch.from_numpy(~state.begun[every]).to(x.device)
        ends = np.full(len(every), x.shape[1]) if counts is None else counts
        last = torch.from_numpy(ends - 1).to(x.device)
        for layer, memory in zip(self.stack, state.layers, strict=True):
            x = layer.extend(x, memory, index, first, last)
        state.begun[every] = True
        return x

    def loss(self, traces: list[SoftTrace], losses: Float[Tensor, "B L"]) -> Float[Tensor, ""]:
        """What training minimises besides the model's own ``losses``: the configured losses of every layer."""
        config = self.config
        total = losses.new_zeros(())
        for trace in traces:
            if config.regulariser:
                total = total + config.regulariser * trace.p.mean()
            if config.ratio_weight:
                total = total + config.ratio_weight * ratio_loss(trace.p, trace.p >= THRESHOLD, None, config.target)
            if config.surprisal_weight:
                total = total + config.surprisal_weight * surprisal_loss(trace.p, losses)
        return total

    def gradient_norms(self) -> Float[Tensor, " N"]:
        """The norm of the gradient that has reached each layer's boundary predictor (0 before any has)."""
        zero = self.stack[0].boundary_bias.new_zeros(())
        norms = []
        for layer in self.stack:
            reached = [layer.get_parameter(name).grad for name in layer.boundary_names()]
            found = [gradient.norm() for gradient in reached if gradient is not None]
            norms.append(torch.stack(found).norm() if found else zero)
        return torch.stack(norms)
