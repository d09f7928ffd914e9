"""Chunks that begin where a BPE vocabulary's piece cannot go on: BPE boundaries that are known without looking ahead.

A real tokenizer decides with the text behind an edge in view, which a causal model has not. Here a walk through the
trie of the vocabulary's pieces follows the bytes: as long as what was read since the last edge begins some piece, it
goes on; the byte with which it begins none starts the next chunk. So a chunk is the beginning of a piece, mostly a
whole one and at times a little more of a longer one than the text turns out to hold.

Legend: B batch, L positions, M width of a memory (1: the trie's node).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from numpy.typing import NDArray
from torch import Tensor

from bytegolf.config import RouterConfig
from bytegolf.data.tokenizer import ByteTokenizer, SentencePieceTokenizer, load_tokenizer
from bytegolf.errors import BytegolfError
from bytegolf.model.layers import declare
from bytegolf.model.routers.base import FixedRouter, Marks, Material, Tokens
from bytegolf.registry import register_router

ROOT = 0
"""The node before the first byte of a piece; its number is 0, so that what leads nowhere leads back to it."""


@register_router("bpe")
class BpeRouter(FixedRouter):
    """The walk through the trie of the pieces that ``prepare`` takes from a SentencePiece tokenizer.

    ``pieces`` is what the artifact holds: each piece's bytes plus 1, and a 0 behind each; small integers, exact in any
    format of floats. The trie is made of it whenever it is loaded. Special tokens are chunks of their own.
    """

    def __init__(self, config: RouterConfig, dim: int, vocab_size: int = 0) -> None:
        super().__init__(config, dim, vocab_size)
        self.pieces: Tensor
        self.register_buffer("pieces", torch.zeros(config.bpe.room))
        declare(self, "rule", "pieces")
        self._next: NDArray[np.int64] = np.zeros((1, 256), np.int64)
        """the child of each node by each byte; 0 = none"""
        self.register_load_state_dict_post_hook(_grow)  # type: ignore[no-untyped-call]  # torch gives it no types

    def prepare(self, material: Material) -> None:
        name = self.config.bpe.tokenizer
        if not isinstance(material.tokenizer, ByteTokenizer):
            raise BytegolfError(
                f"router.kind is 'bpe', which cuts bytes, but the data's tokens are {material.tokenizer.name}: take "
                "data.tokenizer=byte260, or choose another kind"
            )
        tokenizer = load_tokenizer(name, material.folder)
        if not isinstance(tokenizer, SentencePieceTokenizer):
            raise BytegolfError(f"router.bpe.tokenizer is {name!r}, which has no pieces: name a SentencePiece one")
        texts = (tokenizer.decode([token], token) for token in range(tokenizer.vocab_size))
        stored = [value for text in texts if len(text) > 1 for value in (*(byte + 1 for byte in text), 0)]
        if len(stored) > self.config.bpe.room:
            raise BytegolfError(
                f"the pieces of {name} take {len(stored)} bytes, more than router.bpe.room = "
                f"{self.config.bpe.room}: raise it to that"
            )
        self.pieces.zero_()[: len(stored)] = torch.tensor(stored)
        _grow(self)

    def scan(self, tokens: Tokens, first: Marks, memory: Int[Tensor, "B M"]) -> tuple[Marks, Int[Tensor, "B L M"]]:
        assert tokens is not None
        values = (tokens - ByteTokenizer.OFFSET).cpu().numpy()  # negative: a special token
        fresh = first.cpu().numpy()
        node = memory[:, 0].cpu().numpy()
        nodes = np.empty_like(values)
        opens = np.empty_like(fresh)
        for at in range(values.shape[1]):  # one column at a time: each step depends on the one before
            value = values[:, at]
            on = np.where(fresh[:, at] | (value < 0) | (node == ROOT), ROOT, self._next[node, value])
            opens[:, at] = on == ROOT
            node = np.where(opens[:, at], np.where(value < 0, ROOT, self._next[ROOT, value]), on)
            nodes[:, at] = node
        device = tokens.device
        return torch.from_numpy(opens).to(device), torch.from_numpy(nodes).unsqueeze(-1).to(device)


def _grow(router: Any, *_: Any) -> None:
    """Make the trie of ``router.pieces``."""
    children: list[dict[int, int]] = [{}]
    node = ROOT
    for value in router.pieces.to(torch.int64).tolist() if not router.pieces.is_meta else ():
        if value <= 0:
            node = ROOT
            continue
        if value - 1 not in children[node]:
            children[node][value - 1] = len(children)
            children.append({})
        node = children[node][value - 1]
    router._next = np.zeros((len(children), 256), np.int64)
    for parent, found in enumerate(children):
        for byte, child in found.items():
            router._next[parent, byte] = child
