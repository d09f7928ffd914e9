"""Chunks that begin at or behind whitespace: the strongest simple rule, and the guide of the learned router.

Legend: B batch, L positions, M width of a memory (1: the last token).
"""

from __future__ import annotations

import torch
from jaxtyping import Int
from torch import Tensor

from bytegolf.config import RouterConfig
from bytegolf.data.tokenizer import WHITESPACE, SentencePieceTokenizer, Tokenizer, byte_tokenizer
from bytegolf.model.layers import declare
from bytegolf.model.routers.base import FixedRouter, Marks, Material, Tokens
from bytegolf.registry import register_router


@register_router("whitespace")
class WhitespaceRouter(FixedRouter):
    """Chunks that begin behind whitespace, or at it (SpaceByte's patches, arXiv 2404.14408, which also count signs).

    Behind: at the first token that is no whitespace. At: at the first whitespace of a run. A subword with a space in
    front ("▁the", and "▁" alone) begins a chunk either way. Special tokens are chunks of their own.
    """

    NONE, ONLY, LEADS, SPECIAL = range(4)
    """Tokens that begin with no whitespace or are nothing else; subwords with a space in front; what is no text."""

    def __init__(self, config: RouterConfig, dim: int, vocab_size: int = 0) -> None:
        super().__init__(config, dim, vocab_size)
        self.classes: Tensor
        self.register_buffer("classes", torch.zeros(vocab_size))
        declare(self, "rule", "classes")
        if bytewise := byte_tokenizer(vocab_size):
            self._classify(bytewise)

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

    def scan(self, tokens: Tokens, first: Marks, memory: Int[Tensor, "B M"]) -> tuple[Marks, Int[Tensor, "B L M"]]:
        assert tokens is not None
        own = self.classes[tokens]
        before = self.classes[torch.cat((memory, tokens[:, :-1]), 1)]
        special = (own == self.SPECIAL) | (before == self.SPECIAL)
        if self.config.whitespace.begin == "behind":
            opens = (own == self.LEADS) | ((own == self.NONE) & (before == self.ONLY))
        else:
            opens = (own == self.LEADS) | ((own == self.ONLY) & (before != self.ONLY))
        return first | special | opens, tokens.unsqueeze(-1)
