"""Routers that follow a fixed rule: the controls that a learned one must beat.

Their p is 1 where a chunk starts and 0 elsewhere, without a gradient.

Legend: B batch, L positions, D width, R rows of an extension, M width of a memory.
"""

from __future__ import annotations

from abc import abstractmethod

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from bytegolf.config import RouterConfig
from bytegolf.data.tokenizer import WHITESPACE, ByteTokenizer, SentencePieceTokenizer, Tokenizer
from bytegolf.model.router import Material, Router
from bytegolf.model.storage import declare
from bytegolf.ops.functions import wide


class FixedRouter(Router):
    """A rule over token ids and positions, the same for a whole sequence and for its continuation: ``scan``."""

    width: int = 1
    """M: how many integers are remembered of what came before."""

    @abstractmethod
    def scan(
        self, tokens: Int[Tensor, "B L"] | None, first: Bool[Tensor, "B L"], memory: Int[Tensor, "B M"]
    ) -> tuple[Bool[Tensor, "B L"], Int[Tensor, "B L M"]]:
        """Where chunks start, and the memory behind each position, of positions that come after those of ``memory``.

        ``first`` marks where documents start: a chunk does too, and what came before counts for nothing.
        """

    def mark(self, tokens: Int[Tensor, "B L"] | None, first: Bool[Tensor, "B L"]) -> Bool[Tensor, "B L"]:
        """Where chunks start in whole sequences."""
        first = first.clone()
        first[:, 0] = True
        return self.scan(tokens, first, self.start(first.shape[0], first.device, torch.int64))[0]

    def forward(
        self,
        x: Float[Tensor, "B L D"],
        first: Bool[Tensor, "B L"] | None = None,
        tokens: Int[Tensor, "B L"] | None = None,
    ) -> tuple[Float[Tensor, "B L"], Bool[Tensor, "B L"]]:
        if first is None:
            first = torch.zeros(x.shape[:2], dtype=torch.bool, device=x.device)
        boundary = self.mark(tokens, first)
        return boundary.to(wide(x.dtype)), boundary

    def start(self, batch: int, device: torch.device, dtype: torch.dtype) -> Tensor:
        return torch.zeros(batch, self.width, dtype=torch.int64, device=device)

    def extend(
        self,
        x: Float[Tensor, "R L D"],
        memory: Tensor,
        first: Bool[Tensor, " R"],
        tokens: Int[Tensor, "R L"] | None = None,
    ) -> tuple[Float[Tensor, "R L"], Bool[Tensor, "R L"], Tensor]:
        starts = torch.zeros(x.shape[:2], dtype=torch.bool, device=x.device)
        starts[:, 0] = first
        boundary, memories = self.scan(tokens, starts, memory)
        return boundary.to(wide(x.dtype)), boundary, memories


def _positions(first: Bool[Tensor, "B L"], before: Int[Tensor, "B 1"]) -> Int[Tensor, "B L"]:
    """Each position's number in its document, the sequence having ``before`` positions of it already."""
    index = torch.arange(first.shape[1], device=first.device).expand(first.shape)
    latest = torch.where(first, index, -1).cummax(1).values
    return torch.where(latest >= 0, index - latest, before + index)


class StrideRouter(FixedRouter):
    """A chunk every N positions of a document; if N is no integer, wherever ⌊position / N⌋ rises."""

    _GRAIN = 1 << 10
    """N counts in units of 1/1024, so that the rule is one of integers."""

    def scan(
        self, tokens: Int[Tensor, "B L"] | None, first: Bool[Tensor, "B L"], memory: Int[Tensor, "B M"]
    ) -> tuple[Bool[Tensor, "B L"], Int[Tensor, "B L M"]]:
        position = _positions(first, memory)
        size = round(self.config.target * self._GRAIN)
        boundary = (position * self._GRAIN) % size < self._GRAIN
        return boundary, (position + 1).unsqueeze(-1)


class RandomRouter(FixedRouter):
    """A chunk at each position with probability 1/N, drawn by a hash of the position's number and its token.

    The same text in the same place is cut the same way every time; in another place it is not.
    """

    def scan(
        self, tokens: Int[Tensor, "B L"] | None, first: Bool[Tensor, "B L"], memory: Int[Tensor, "B M"]
    ) -> tuple[Bool[Tensor, "B L"], Int[Tensor, "B L M"]]:
        assert tokens is not None
        position = _positions(first, memory)
        key = mix(mix(position + 1) + tokens)
        drawn = (key >> 20) & 0xFFFFFF
        return first | (drawn < round((1 << 24) / self.config.target)), (position + 1).unsqueeze(-1)


def mix(key: Int[Tensor, "*B"]) -> Int[Tensor, "*B"]:
    """A hash of 64 bits that wraps around: SplitMix64's multiplier, twice, with the high bits folded in between."""
    for _ in range(2):
        key = key * -4_658_895_280_553_007_687
        key = key ^ ((key >> 31) & 0x1_FFFF_FFFF)
    return key


class WhitespaceRouter(FixedRouter):
    """Chunks that begin behind whitespace, or at it (SpaceByte's patches, arXiv 2404.14408, which also count signs).

    Behind: at the first token that is no whitespace. At: at the first whitespace of a run. A subword with a space in
    front ("▁the", and "▁" alone) begins a chunk either way. Special tokens are chunks of their own.
    """

    NONE, ONLY, LEADS, SPECIAL = range(4)
    """Tokens that begin with no whitespace or are nothing else; subwords with a space in front; what is no text."""

    def __init__(self, config: RouterConfig, vocab_size: int) -> None:
        super().__init__(config)
        self.classes: Tensor
        self.register_buffer("classes", torch.zeros(vocab_size))
        declare(self, "rule", "classes")
        if vocab_size == 256 + ByteTokenizer.OFFSET:
            self._classify(ByteTokenizer())

    def prepare(self, material: Material) -> None:
        self._classify(material.tokenizer)

    def _classify(self, tokenizer: Tokenizer) -> None:
        for token in range(tokenizer.vocab_size):
            text = tokenizer.decode([token], token)
            if isinstance(tokenizer, SentencePieceTokenizer) and tokenizer.leading_space[token]:
                self.classes[token] = self.LEADS
            elif not text:
                self.classes[token] = self.SPECIAL
            else:
                self.classes[token] = self.NONE if text.strip(WHITESPACE) else self.ONLY

    def scan(
        self, tokens: Int[Tensor, "B L"] | None, first: Bool[Tensor, "B L"], memory: Int[Tensor, "B M"]
    ) -> tuple[Bool[Tensor, "B L"], Int[Tensor, "B L M"]]:
        assert tokens is not None
        own = self.classes[tokens]
        before = self.classes[torch.cat((memory, tokens[:, :-1]), 1)]
        special = (own == self.SPECIAL) | (before == self.SPECIAL)
        if self.config.whitespace == "behind":
            opens = (own == self.LEADS) | ((own == self.NONE) & (before == self.ONLY))
        else:
            opens = (own == self.LEADS) | ((own == self.ONLY) & (before != self.ONLY))
        return first | special | opens, tokens.unsqueeze(-1)
