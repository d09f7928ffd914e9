"""The Mamba-2 mixer: a gated linear recurrence with a state that the input selects (arXiv 2405.21060; S4).

    [z, xBC, dt] = W u
    xBC = silu(causal depthwise convolution of xBC, with a bias)
    dt  = softplus(dt + dt_bias),  a = exp(−e^A_log · dt)                     one number per head
    S_t = a_t·S_{t−1} + dt_t·x_t⊗B_t,  y_t = S_t C_t + D·x_t                  one state per head
    out = W_o[RMSNorm(y·silu(z))·w]                                           the gate before the norm

A sequence, and a document within one, starts with nothing in the convolution and S = 0.

Legend: B batch, L positions, D width, I inner width (expand·D), P head width, H = I/P heads, N state size, K taps of
the convolution, X = I + 2N channels of it, R rows of an extension.
Activations are in the compute dtype of the input; parameters, dt and states are fp32 (fp64 where activations are).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from bytegolf.config import Ranged, StackConfig, doc
from bytegolf.errors import BytegolfError
from bytegolf.model.layers import Cost, Linear, declare
from bytegolf.model.mixers.base import Mixer, Span
from bytegolf.ops import mamba_cuda
from bytegolf.ops.autograd import wide
from bytegolf.ops.causal_conv import causal_conv
from bytegolf.ops.gated_norm import gated_norm
from bytegolf.ops.mamba_step import mamba_step, step_usable
from bytegolf.ops.ssd import SsdShape, ssd, ssd_on
from bytegolf.registry import register_mixer

DT_LEAST, DT_MOST = 1e-3, 0.1
"""softplus(dt_bias) at the start is log-uniform between these (arXiv 2405.21060)."""

A_LEAST, A_MOST = 1.0, 16.0
"""e^A_log at the start is uniform between these."""

NORM_EPS = 1e-5


@dataclass
class Mamba2State:
    """What one mixer remembers of B sequences."""

    inputs: Float[Tensor, "B K1 X"]
    """the convolution's last K − 1 inputs, before it"""
    state: Float[Tensor, "B H N P"]
    """S of each head, transposed: the head width runs last"""


@register_mixer("mamba2")
class Mamba2(Mixer[Mamba2State]):
    """Mamba-2 with one group of B and C for all heads."""

    @dataclass(frozen=True)
    class Options(Ranged):
        """The public configurations' ``ssm_cfg``."""

        d_state: int = doc("N, numbers of a state per channel", 128, least=1)
        d_conv: int = doc("K, taps of the convolution, the current position's included", 4, least=1)
        expand: int = doc("inner width as a multiple of the stack's", 2, least=1)
        headdim: int = doc("P, channels of a head, which share dt and A", 64, least=1)
        chunk_size: int = doc(
            "positions that the matrix form takes at a time, which changes nothing but speed", 256, least=1
        )

    def __init__(self, config: StackConfig) -> None:
        super().__init__(config)
        own: Mamba2.Options = self.options
        inner = own.expand * config.dim
        if inner % own.headdim:
            raise BytegolfError(
                f"the mixer 'mamba2' has {inner} inner channels (expand × dim), which do not split into heads of "
                f"headdim {own.headdim}: change one"
            )
        heads, channels = inner // own.headdim, inner + 2 * own.d_state
        self.inner, self.channels = inner, channels
        self.shape = SsdShape(heads, own.headdim, own.d_state, own.chunk_size)
        self.in_proj = Linear(config.dim, inner, inner, own.d_state, own.d_state, heads)
        self.conv = nn.Parameter(torch.empty(own.d_conv, channels))
        self.conv_bias = nn.Parameter(torch.empty(channels))
        self.dt_bias = nn.Parameter(torch.empty(heads))
        self.a_log = nn.Parameter(torch.empty(heads))
        self.skip = nn.Parameter(torch.ones(heads))
        self.norm = nn.Parameter(torch.ones(inner))
        self.out_proj = Linear(inner, config.dim, zero=True)
        declare(self, "control", "conv", "conv_bias", "dt_bias", "a_log", "skip", "norm")
        bound = own.d_conv**-0.5
        nn.init.uniform_(self.conv, -bound, bound)
        nn.init.uniform_(self.conv_bias, -bound, bound)
        nn.init.uniform_(self.dt_bias, math.log(DT_LEAST), math.log(DT_MOST))
        nn.init.uniform_(self.a_log, A_LEAST, A_MOST)
        if not self.a_log.is_meta:  # arithmetic there would import torch's compiler, for an outline
            with torch.no_grad():
                self.a_log.log_()
                step = self.dt_bias.exp()
                self.dt_bias.copy_(step + torch.log(-torch.expm1(-step)))  # softplus undone

    def cost(self, length: float) -> Cost:
        """The recurrence takes five operations per number of the state; the convolution two per tap."""
        inner, state = self.inner, self.shape.state
        kept = self.channels + 3 * inner  # the convolution's result, y, its norm, and states at the ends of chunks
        flops = 5 * inner * state + 2 * self.conv.shape[0] * self.channels
        return Cost(kept, 4 * self.channels + 8 * inner, 12 * self.channels + 24 * inner, flops)

    def forward(self, x: Float[Tensor, "B L D"], documents: Int[Tensor, "B L"] | None = None) -> Float[Tensor, "B L D"]:
        z, channels, dt = self._project(x)
        first = None
        if documents is not None:
            first = F.pad(documents[:, 1:] != documents[:, :-1], (1, 0), value=True)
        channels = self._convolved(channels, first)
        if mamba_cuda.scan_usable(channels, self.shape):
            y, _ = mamba_cuda.scan(channels, dt, self._rate(dt.dtype), self.skip, first, None, self.shape)
        else:
            y = ssd(channels, dt, dt * self._rate(dt.dtype), self.skip, first, self.shape)
        return self._gated(y, z)

    def start(self, batch: int, device: torch.device, dtype: torch.dtype, length: int = 0) -> Mamba2State:
        inputs = torch.zeros(batch, self.conv.shape[0] - 1, self.channels, device=device, dtype=dtype)
        sizes = (batch, self.shape.heads, self.shape.state, self.shape.width)
        return Mamba2State(inputs, torch.zeros(sizes, device=device, dtype=wide(dtype)))

    def extend(self, x: Float[Tensor, "R L D"], state: Mamba2State, span: Span) -> Float[Tensor, "R L D"]:
        if step_usable(x, state.inputs, state.state):
            parameters = (self.conv, self.conv_bias, self.dt_bias, self.a_log, self.skip, self.norm)
            given = (self.in_proj(x), span.index, span.first, parameters, state.inputs, state.state, NORM_EPS)
            return self.out_proj(mamba_step(*given))
        z, channels, dt = self._project(x)
        length, before = x.shape[1], self.conv.shape[0] - 1
        # what a finished document left is not seen; padding moves no state: with dt = 0 it adds nothing and keeps all
        inputs = state.inputs[span.index].masked_fill(span.first[:, None, None], 0)
        carried = state.state[span.index].masked_fill(span.first[:, None, None, None], 0)
        if length > 1:
            there = torch.arange(length, device=x.device) < span.ends.unsqueeze(1)
            dt = dt.masked_fill(~there.unsqueeze(-1), 0)
        known = torch.cat((inputs, channels), 1)
        kept = span.ends.unsqueeze(1) + torch.arange(before, device=x.device)  # the last K − 1 inputs that are there
        state.inputs[span.index] = known.gather(1, kept.unsqueeze(-1).expand(-1, -1, known.shape[2]))
        # the convolution starts at the oldest of these, whose own results nobody reads
        channels = self._convolved(known, None)[:, before:]
        if length > 1 and mamba_cuda.scan_usable(channels, self.shape):
            y, carried = mamba_cuda.scan(channels, dt, self._rate(dt.dtype), self.skip, None, carried, self.shape)
        else:
            y, carried = ssd_on(channels, dt, dt * self._rate(dt.dtype), self.skip, carried, self.shape)
        state.state[span.index] = carried
        return self._gated(y, z)

    def _project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The gate z, the convolution's input, and dt behind its softplus."""
        z, channels, dt = self.in_proj(x).split((self.inner, self.channels, self.shape.heads), -1)
        kind = wide(x.dtype)
        return z, channels, F.softplus(dt.to(kind) + self.dt_bias.to(kind))

    def _convolved(self, channels: Float[Tensor, "B L X"], first: Bool[Tensor, "B L"] | None) -> Float[Tensor, "B L X"]:
        if mamba_cuda.conv_usable(channels, self.conv):
            return mamba_cuda.conv(channels, self.conv, self.conv_bias, first)
        return causal_conv(channels, self.conv, self.conv_bias, first)

    def _rate(self, dtype: torch.dtype) -> Float[Tensor, " H"]:
        """log a of a step of dt = 1."""
        return -torch.exp(self.a_log.to(dtype))

    def _gated(self, y: Float[Tensor, "B L I"], z: Float[Tensor, "B L I"]) -> Float[Tensor, "B L D"]:
        return self.out_proj(gated_norm(y, z, self.norm, NORM_EPS))
