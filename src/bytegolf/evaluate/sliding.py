"""The losses of overlapping windows, without the work that one window shares with the next: exact up to rounding.

What a window gives for its last positions is what a full forward pass of it would. That rests on four facts:

- A stack of local attention sees only the last positions, ``Stack.receptive_field`` of them; an embedding sees the last
  ids, ``LanguageModel.receptive_field`` of them; and rotary positions are relative. So an encoder's output is the same
  in every window, except at a window's first positions, which have less before them: its *prefix*. Prefixes are
  computed for each window, all other positions once for the whole *stretch* of text that the windows cover.
- Where chunks begin follows from the encoder's output, and a window's first position always opens one. (Fixed rules
  may count from a window's start; they cost little, and are asked for each window.)
- A main network that attends to everything depends on where the window starts, at every layer. It runs on each
  window's chunks; its last block only where the scored positions look. One whose attention is local sees so many chunks
  back: where all of those are the stretch's own, in the window as well, it and the decoder run once for the stretch.
- Smoothing forgets: a chunk opens where P ≥ ½, so what lies ``FORGOTTEN`` chunks back weighs less than fp32 resolves.

A flat model whose receptive field fits into the window beside the stride is one pass over the text. What attends to
everything outside the main network gains little: only its last block's work on unscored positions is saved.

Worked example: windows of L = 6 tokens that score n = 2 each, over a stretch of S = 8, so N = 2 of them. The encoder's
output depends on 1 position before its own, and a cosine router compares neighbours, so p depends on 2.

    position        0   1   2   3   4   5   6   7
    window 0        0   1   2   3  (4) (5)                the scored positions in brackets
    window 1                2   3   4   5  (6) (7)
    prefix, H = 2   0   1 / 2   3                         encoded per window: 4 positions in 2 windows
    shared                  2   3   4   5   6   7         encoded once, in the stretch, for both windows
    stretch opens   x           x       x
    window 1 opens          x   x       x                 its first position in any case

Row 1 of ``index`` says where window 1 finds its vectors: in the table of the 4 prefix positions followed by the 8 of
the stretch these are 2, 3 (its own prefix) and 4+4, 4+5, 4+6, 4+7. From position 3 on its chunks begin where those of
the stretch do. If the main network looks no further back than these chunks (``_independent``), the stretch, run as one
long window, scores positions 6 and 7 for window 1; otherwise window 1 runs by itself, with its encoder's part given.

Legend: N windows, L tokens of a window, S tokens of the stretch that they cover, H positions of a prefix, C chunks,
D width, V alphabet, n scored tokens of a window.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from bytegolf.model.chunk import EXACT, Chunks
from bytegolf.model.hnet import HNet, Pass
from bytegolf.model.lm import Forward, LanguageModel
from bytegolf.model.routers.base import FixedRouter
from bytegolf.model.stack import Stack
from bytegolf.model.trace import RouterTrace
from bytegolf.ops.chunking import smooth

FORGOTTEN = 24
"""Chunks after which a smoothed vector is forgotten: 2⁻²⁴ is fp32's resolution, and P ≥ ½ at every chunk."""


@torch.inference_mode()
def last_losses(
    model: LanguageModel, tokens: Int[Tensor, " X"], length: int, stride: int
) -> tuple[Float[Tensor, "N n"], Forward]:
    """The losses of the last ``stride`` (n) targets of each window of ``length`` tokens, and what they were made of.

    ``tokens`` (X = S + 1) are those of N = (S − length)/stride + 1 windows, each ``stride`` behind the one before it,
    and the last one's last target.
    """
    inputs = tokens[:-1]
    network = model.network
    if isinstance(network, HNet):
        hidden, traces = _hierarchical(model, network, inputs, length, stride)
    else:
        hidden, traces = _flat(model, network, inputs, length, stride), []
    targets = tokens[length - stride + 1 :].view(-1, stride)
    out = Forward(model.project(hidden), traces)
    return model.losses(out, targets), out


def _flat(
    model: LanguageModel, stack: Stack, tokens: Int[Tensor, " S"], length: int, stride: int
) -> Float[Tensor, "N n D"]:
    before = _sum(stack.receptive_field, model.receptive_field)
    if before is not None and before + stride <= length:
        text = tokens[length - stride - before :].unsqueeze(0)
        out = stack.tail(model.embed(text), _documents(model, text), text.shape[1] - before)
        return torch.unflatten(out[0], 0, (-1, stride))
    text = tokens.unfold(0, length, stride)
    return stack.tail(model.embed(text), _documents(model, text), stride)


def _sum(*fields: int | None) -> int | None:
    """The receptive field of modules behind one another; None: everything before."""
    known = [field for field in fields if field is not None]
    return sum(known) if len(known) == len(fields) else None


def _documents(model: LanguageModel, tokens: Int[Tensor, "N L"]) -> Int[Tensor, "N L"] | None:
    return (tokens == model.config.bos).cumsum(1) if model.config.reset_at_bos else None


@dataclass(frozen=True)
class _Encoded:
    """What the encoder and the router make of N windows."""

    table: Float[Tensor, "T D"]
    """the encoder's outputs, of which some belong to many windows"""
    index: Int[Tensor, "N L"]
    """which of them is each position's own"""
    p: Float[Tensor, "N L"]
    boundary: Bool[Tensor, "N L"]
    prefix: int
    """H: the positions at which a window's own outputs begin to be those of the stretch; L if none are"""
    stretch: _Encoded | None
    """the stretch as one window of S tokens; None if the windows share no outputs"""

    def rows(self, picked: Bool[Tensor, " N"]) -> _Encoded:
        """The same for some of the windows."""
        parts = self.index[picked], self.p[picked], self.boundary[picked]
        return _Encoded(self.table, *parts, self.prefix, self.stretch)


class Windows(Pass[_Encoded]):
    """The scored positions of windows whose encoder and router have run, since windows share most of that work.

    The main network runs on each window's chunks; its last block, and the decoder, only where the scored look.
    """

    def __init__(
        self, model: LanguageModel, level: HNet, windows: Int[Tensor, "N L"], encoded: _Encoded, stride: int
    ) -> None:
        self.level, self.windows, self.encoded, self.stride = level, windows, encoded, stride
        self.documents = _documents(model, windows)
        self.first = windows == model.config.bos if self.documents is not None else None
        self.needed = _needed(level, windows.shape[1], stride)
        self.traces: list[RouterTrace] = []
        self.chunks: Chunks
        self.oldest: int
        """the first chunk whose output counts, in all windows"""

    def encode(self) -> _Encoded:
        return self.encoded

    def route(self, encoded: _Encoded) -> bool:
        # exact and bucketed capacities are room for all chunks, so padding is as short as it can be here; a fixed one
        # drops boundaries, which changes losses
        capacity = self.level.capacity
        self.chunks = Chunks.of(encoded.boundary, capacity if capacity.mode == "fixed" else EXACT)
        self.traces.append(_trace(encoded, self.chunks.boundary))
        # z̄ of chunk c holds z of chunk c − k times k factors 1 − P: behind FORGOTTEN chunks nothing is left in fp32
        self.oldest = int((self._chunk_of_needed() - FORGOTTEN).min().clamp(min=0))
        return True

    def _chunk_of_needed(self) -> Int[Tensor, "N x"]:
        """The chunk of each position that the decoder reads."""
        return self.chunks.chunk_of[:, self.windows.shape[1] - self.needed :]

    def select(self, encoded: _Encoded) -> tuple[Tensor, Tensor | None]:
        # a window's chunk starts are positions in the window; `index` says which vectors of the table these are
        starts = encoded.table[encoded.index.gather(1, self.chunks.starts)]
        return starts, self.level.ended(self.windows, self.chunks, self.first)

    def main(self, z: Tensor) -> Tensor:
        main, documents = self.level.main, self.documents
        inner = self.chunks.select_values(documents) if documents is not None else None
        if isinstance(main, Stack):
            return main.tail(z, inner, z.shape[1] - self.oldest)
        out: Tensor = main(z, inner, self.chunks.valid, self.traces)
        return out[:, self.oldest :]

    def expand(self, z: Tensor | None, encoded: _Encoded) -> Tensor:
        assert z is not None, "a window begins with a chunk"
        fresh = torch.zeros(self.chunks.starts.shape, dtype=torch.bool, device=z.device)
        if self.first is not None:
            fresh = self.chunks.select_values(self.first)
        fresh[:, 0] = True
        fresh = fresh[:, self.oldest :]
        z = self.level.smoothable(z, fresh)
        z = smooth(z, self.chunks.select_values(encoded.p)[:, self.oldest :], fresh)
        rows = torch.arange(len(z), device=z.device).unsqueeze(1)
        needed = encoded.index[:, self.windows.shape[1] - self.needed :]
        # numbered from `oldest` on, as z is: nothing older was worked out
        y = z[rows, self._chunk_of_needed() - self.oldest] + self.level.around(encoded.table)[needed]
        return y.to(encoded.table.dtype)

    def decode(self, y: Tensor) -> Tensor:
        documents = self.documents
        seen = documents[:, self.windows.shape[1] - self.needed :] if documents is not None else None
        return self.level.decoder.tail(y, seen, self.stride)


def _hierarchical(
    model: LanguageModel, level: HNet, tokens: Int[Tensor, " S"], length: int, stride: int
) -> tuple[Float[Tensor, "N n D"], list[RouterTrace]]:
    windows = tokens.unfold(0, length, stride)
    encoded = _encode(model, level, tokens, length, stride)
    independent = _independent(level, encoded, length, stride)
    if encoded.stretch is None or not independent.any():
        every = Windows(model, level, windows, encoded, stride)
        return level.run(every), every.traces
    # one long window scores what all of them do: right for those that do not depend on where they start
    # (window 0 scores its last `stride` targets here like all others: the first window of a text, which scores all of
    # its targets, is a batch by itself, see `score.groups`)
    scored = len(windows) * stride
    whole = level.run(Windows(model, level, tokens.unsqueeze(0), encoded.stretch, scored))
    hidden = torch.unflatten(whole[0], 0, (-1, stride))
    if not independent.all():
        rest = ~independent
        hidden[rest] = level.run(Windows(model, level, windows[rest], encoded.rows(rest), stride))
    return hidden, [_trace(encoded, encoded.boundary)]


def _trace(encoded: _Encoded, boundary: Bool[Tensor, "N L"]) -> RouterTrace:
    return RouterTrace(encoded.p, boundary, encoded.boundary, None, encoded.p.new_zeros(()))


def _needed(level: HNet, length: int, stride: int) -> int:
    """How many positions at a window's end the decoder reads for the scored ones."""
    before = level.decoder.receptive_field
    return length if before is None else min(length, stride + before)


def _independent(level: HNet, encoded: _Encoded, length: int, stride: int) -> Bool[Tensor, " N"]:
    """Which windows' scored positions do not depend on where the window starts: every chunk that the main network and
    the smoothing look at for them is as it is in the stretch.

    All chunks are counted as the stretch numbers them. In the worked example above, for window 1: ``boundary`` differs
    from the stretch's at its position 0 only (a chunk opens at 2), so its chunks begin where the stretch's do from
    position 1 of the window on: ``agree`` is max(1, H) = 2, position 4 of the stretch. The position before that, 3,
    lies in chunk 1 of the stretch. That chunk may have begun differently, so the first chunk that can be relied on is 2
    (one more), and 3 (two more) if a chunk-hash embedding looks up the whole chunk before; two more are taken in any
    case: ``reliable`` = 3.
    """
    count, device = len(encoded.p), encoded.p.device
    before = level.main.receptive_field if isinstance(level.main, Stack) else None
    if before is None or encoded.stretch is None or level.capacity.mode == "fixed":
        return torch.zeros(count, dtype=torch.bool, device=device)
    boundary = encoded.stretch.boundary[0]
    chunk_of = (boundary.cumsum(0) - 1).unfold(0, length, stride)
    places = torch.arange(1, length + 1, device=device)
    # one more than the last position at which the window and the stretch disagree
    differs = (encoded.boundary != boundary.unfold(0, length, stride)) * places
    agree = differs.amax(1).clamp(min=encoded.prefix)
    reliable = chunk_of.gather(1, agree.clamp(max=length).unsqueeze(1) - 1).squeeze(1) + 2
    # the oldest chunk that the decoder's oldest position sees: through the smoothing, then through the main network
    oldest = chunk_of[:, length - _needed(level, length, stride)] - FORGOTTEN - before
    return oldest >= reliable


def _encode(model: LanguageModel, level: HNet, tokens: Int[Tensor, " S"], length: int, stride: int) -> _Encoded:
    """Encode and route N windows: the prefix of each by itself, the rest once in the stretch."""
    before = router_receptive_field(model, level)
    # a window's first position is always in its prefix, since it always opens a chunk
    size = length if before is None or before + stride >= length else max(1, before)
    count = (len(tokens) - length) // stride + 1
    device = tokens.device
    prefixes, p, boundary = encode_and_route(model, level, tokens.unfold(0, size, stride)[:count])
    index = torch.arange(count * size, device=device).view(count, size)
    table = prefixes.flatten(0, 1)
    if size == length:
        return _Encoded(table, index, p, boundary, size, None)
    # The stretch's own first positions are a window's prefix too (window 0's), and are encoded twice: the table then
    # has all prefixes first and the whole stretch behind them, so that every window is indexed alike.
    shared, shared_p, shared_boundary = encode_and_route(model, level, tokens.unsqueeze(0))
    places = torch.arange(len(tokens), device=device)
    stretch = _Encoded(shared[0], places.unsqueeze(0), shared_p, shared_boundary, len(tokens), None)
    p = torch.cat((p, shared_p[0].unfold(0, length, stride)[:, size:]), 1)
    boundary = torch.cat((boundary, shared_boundary[0].unfold(0, length, stride)[:, size:]), 1)
    index = torch.cat((index, len(table) + places.unfold(0, length, stride)[:, size:]), 1)
    table = torch.cat((table, shared[0]))
    if isinstance(level.router, FixedRouter):  # every 6th byte, say: of the window, not of the stretch
        windows = tokens.unfold(0, length, stride)
        boundary = level.router.mark(windows, (windows == model.config.bos) & model.config.reset_at_bos)
        p = boundary.to(p.dtype)
    return _Encoded(table, index, p, boundary, size, stretch)


def router_receptive_field(model: LanguageModel, level: HNet) -> int | None:
    """How many positions before its own decide p of the outermost level, as far as its encoder has to do with it; None:
    all of them. It is the sum over embedding, encoder and router.
    """
    return _sum(model.receptive_field, level.encoder.receptive_field, level.router.receptive_field)


def encode_and_route(
    model: LanguageModel, level: HNet, tokens: Int[Tensor, "N L"]
) -> tuple[Float[Tensor, "N L D"], Float[Tensor, "N L"], Bool[Tensor, "N L"]]:
    """The encoder's output, p and the boundaries of ``tokens``: the first two parts of ``HNet.run``."""
    documents = _documents(model, tokens)
    encoded = level.encoder(model.embed(tokens), documents)
    p, boundary = level.router(encoded, tokens == model.config.bos if documents is not None else None, tokens)
    return encoded, p, boundary
