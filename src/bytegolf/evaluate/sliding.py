"""The losses of overlapping windows, without the work that one window shares with the next: exact up to rounding.

What a window gives for its last positions is what a full forward pass of it would. That rests on four facts:

- A stage of local attention sees only the last ``Stack.halo`` positions, an embedding the last ``lookback`` ids, and
  rotary positions are relative. So an encoder's output is the same in every window, but for a window's first
  positions, which have less before them: those are computed for each window ("heads"), all others once for the whole
  stretch of text.
- Where chunks begin follows from the encoder's output, and a window's first position always opens one. (Fixed rules
  may count from a window's start; they cost little, and are asked for each window.)
- A main network that attends to everything depends on where the window starts, at every layer. It runs on each
  window's chunks; its last block only where the scored positions look. One whose attention is local sees so many chunks
  back: where all of those are the stretch's own, in the window as well, it and the decoder run once for the stretch.
- Smoothing forgets: a chunk opens where P ≥ ½, so what lies ``FORGOTTEN`` chunks back weighs less than fp32 resolves.

A flat model whose reach fits into the window beside the stride is one pass over the text. What attends to everything
outside the main network gains little: only its last block's work on unscored positions is saved.

Legend: N windows, L tokens of a window, S tokens of the stretch that they cover, H of them heads, C chunks, D width,
V alphabet, n scored tokens of a window.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from bytegolf.model.capacity import EXACT
from bytegolf.model.chunk import Chunks
from bytegolf.model.embed import BOS
from bytegolf.model.hnet import HNet
from bytegolf.model.lm import EVERYTHING, Forward, LanguageModel
from bytegolf.model.routers.rule import FixedRouter
from bytegolf.model.stack import Stack
from bytegolf.model.trace import RouterTrace
from bytegolf.ops.chunking import smooth

FORGOTTEN = 24
"""Chunks after which a smoothed vector is forgotten: 2⁻²⁴ is fp32's resolution, and P ≥ ½ at every chunk."""


@torch.inference_mode()
def last_losses(
    model: LanguageModel, tokens: Int[Tensor, " X"], length: int, stride: int
) -> tuple[Float[Tensor, "N n"], list[RouterTrace]]:
    """The losses of the last ``stride`` (n) targets of each window of ``length`` tokens, and what the routers did.

    ``tokens`` (X = S + 1) are those of N = (S − length)/stride + 1 windows, each ``stride`` behind the one before it,
    and the last one's last target.
    """
    inputs = tokens[:-1]
    network = model.network
    if isinstance(network, HNet):
        hidden, traces = _level(model, network, inputs, length, stride)
    else:
        hidden, traces = _flat(model, network, inputs, length, stride), []
    targets = tokens[length - stride + 1 :].view(-1, stride)
    return model.losses(Forward(model.project(hidden), traces), targets), traces


def _flat(
    model: LanguageModel, stage: Stack, tokens: Int[Tensor, " S"], length: int, stride: int
) -> Float[Tensor, "N n D"]:
    halo = stage.halo()
    if halo is not None and halo + model.lookback + stride <= length:
        before = halo + model.lookback
        text = tokens[length - stride - before :].unsqueeze(0)
        out = stage.tail(model.embed(text), _documents(model, text), text.shape[1] - before)
        return torch.unflatten(out[0], 0, (-1, stride))
    text = tokens.unfold(0, length, stride)
    return stage.tail(model.embed(text), _documents(model, text), stride)


def _documents(model: LanguageModel, tokens: Int[Tensor, "N L"]) -> Int[Tensor, "N L"] | None:
    return (tokens == BOS).cumsum(1) if model.config.reset_at_bos else None


@dataclass(frozen=True)
class _Encoded:
    """What the encoder and the router make of N windows."""

    table: Float[Tensor, "T D"]
    """the encoder's outputs, of which some belong to many windows"""
    index: Int[Tensor, "N L"]
    """which of them is each position's own"""
    p: Float[Tensor, "N L"]
    boundary: Bool[Tensor, "N L"]
    heads: int
    """H: the positions at which a window's own outputs begin to be those of the stretch; L if none are"""
    stretch: _Encoded | None
    """the stretch as one window of S tokens; None if the windows share no outputs"""

    def rows(self, picked: Bool[Tensor, " N"]) -> _Encoded:
        """The same for some of the windows."""
        parts = self.index[picked], self.p[picked], self.boundary[picked]
        return _Encoded(self.table, *parts, self.heads, self.stretch)


def _level(
    model: LanguageModel, level: HNet, tokens: Int[Tensor, " S"], length: int, stride: int
) -> tuple[Float[Tensor, "N n D"], list[RouterTrace]]:
    windows = tokens.unfold(0, length, stride)
    encoded = _encode(model, level, tokens, length, stride)
    held = _held(level, encoded, length, stride)
    if encoded.stretch is None or not held.any():
        return _by_window(model, level, windows, encoded, stride)
    # one long window scores what all of them do: right for those that are held
    whole = _by_window(model, level, tokens.unsqueeze(0), encoded.stretch, len(windows) * stride)[0]
    hidden = torch.unflatten(whole[0], 0, (-1, stride))
    if not held.all():
        hidden[~held] = _by_window(model, level, windows[~held], encoded.rows(~held), stride)[0]
    return hidden, [_trace(encoded, encoded.boundary)]


def _trace(encoded: _Encoded, boundary: Bool[Tensor, "N L"]) -> RouterTrace:
    return RouterTrace(encoded.p, boundary, encoded.boundary, None, encoded.p.new_zeros(()))


def _by_window(
    model: LanguageModel, level: HNet, windows: Int[Tensor, "N L"], encoded: _Encoded, stride: int
) -> tuple[Float[Tensor, "N n D"], list[RouterTrace]]:
    """The main network on each window's chunks; its last block, and the decoder, only where the scored look."""
    (count, length), device = windows.shape, windows.device
    table, index, p = encoded.table, encoded.index, encoded.p
    documents = _documents(model, windows)
    needed = _needed(level, length, stride)
    # what does not depend on the data decides nothing here: only a fixed capacity is more than room
    chunks = Chunks.of(encoded.boundary, level.capacity if level.capacity.mode == "fixed" else EXACT)
    traces = [_trace(encoded, chunks.boundary)]
    oldest = int((chunks.chunk_of[:, length - needed] - FORGOTTEN).min().clamp(min=0))
    inner = chunks.select_values(documents) if documents is not None else None
    first = windows == BOS if documents is not None else None
    z = level.open(table[index.gather(1, chunks.starts)], level.ended(windows, chunks, first))
    if isinstance(level.main, Stack):
        z = level.main.tail(z, inner, z.shape[1] - oldest)
    else:
        z = level.main(z, inner, chunks.valid, traces)[:, oldest:]
    z = z[..., : table.shape[-1]]
    fresh = chunks.select_values(first)[:, oldest:] if first is not None else None
    z = smooth(z, chunks.select_values(p)[:, oldest:], fresh)

    last = chunks.chunk_of[:, length - needed :] - oldest
    rows = torch.arange(count, device=device).unsqueeze(1)
    y = z[rows, last] + level.residual(table)[index[:, length - needed :]]
    seen = documents[:, length - needed :] if documents is not None else None
    return level.decoder.tail(y, seen, stride), traces


def _needed(level: HNet, length: int, stride: int) -> int:
    """How many positions at a window's end the decoder reads for the scored ones."""
    reach = level.decoder.halo()
    return length if reach is None else min(length, stride + reach)


def _held(level: HNet, encoded: _Encoded, length: int, stride: int) -> Bool[Tensor, " N"]:
    """Which windows' scored positions hold nothing of where the window starts: all that the main network and the
    smoothing look at for them, chunk by chunk, is as it is in the stretch.
    """
    count, device = len(encoded.p), encoded.p.device
    halo = level.main.halo() if isinstance(level.main, Stack) else None
    if halo is None or encoded.stretch is None or level.capacity.mode == "fixed":
        return torch.zeros(count, dtype=torch.bool, device=device)
    boundary = encoded.stretch.boundary[0]
    chunk_of = (boundary.cumsum(0) - 1).unfold(0, length, stride)
    places = torch.arange(1, length + 1, device=device)
    differs = (encoded.boundary != boundary.unfold(0, length, stride)) * places
    alike = differs.amax(1).clamp(min=encoded.heads)  # from here on chunks begin where those of the stretch do
    # the first of them may follow a chunk that began elsewhere, which a chunk_hash sees
    known = chunk_of.gather(1, alike.clamp(max=length).unsqueeze(1) - 1).squeeze(1) + 2
    wanted = chunk_of[:, length - _needed(level, length, stride)] - FORGOTTEN - halo
    return wanted >= known


def _encode(model: LanguageModel, level: HNet, tokens: Int[Tensor, " S"], length: int, stride: int) -> _Encoded:
    reach = router_reach(model, level)
    size = length if reach is None or reach + stride >= length else reach
    count = (len(tokens) - length) // stride + 1
    device = tokens.device
    heads, p, boundary = routed(model, level, tokens.unfold(0, size, stride)[:count])
    index = torch.arange(count * size, device=device).view(count, size)
    table = heads.flatten(0, 1)
    if size == length:
        return _Encoded(table, index, p, boundary, size, None)
    shared, shared_p, shared_boundary = routed(model, level, tokens.unsqueeze(0))
    places = torch.arange(len(tokens), device=device)
    stretch = _Encoded(shared[0], places.unsqueeze(0), shared_p, shared_boundary, len(tokens), None)
    p = torch.cat((p, shared_p[0].unfold(0, length, stride)[:, size:]), 1)
    boundary = torch.cat((boundary, shared_boundary[0].unfold(0, length, stride)[:, size:]), 1)
    index = torch.cat((index, len(table) + places.unfold(0, length, stride)[:, size:]), 1)
    table = torch.cat((table, shared[0]))
    if isinstance(level.router, FixedRouter):
        windows = tokens.unfold(0, length, stride)
        boundary = level.router.mark(windows, (windows == BOS) & model.config.reset_at_bos)
        p = boundary.to(p.dtype)
    return _Encoded(table, index, p, boundary, size, stretch)


def router_reach(model: LanguageModel, level: HNet) -> int | None:
    """How many positions before its own decide p of the outermost level, as far as its encoder has to do with it; None:
    all of them.

    One more than the encoder's own: p compares a position with the one before it.
    """
    halo = level.encoder.halo()
    return None if halo is None or model.lookback == EVERYTHING else halo + model.lookback + 1


def routed(
    model: LanguageModel, level: HNet, tokens: Int[Tensor, "N L"]
) -> tuple[Float[Tensor, "N L D"], Float[Tensor, "N L"], Bool[Tensor, "N L"]]:
    """The encoder's output, p and the boundaries of ``tokens``, as ``HNet.forward`` works them out."""
    documents = _documents(model, tokens)
    encoded = level.encoder(model.embed(tokens), documents)
    p, boundary = level.router(encoded, tokens == BOS if documents is not None else None, tokens)
    return encoded, p, boundary
