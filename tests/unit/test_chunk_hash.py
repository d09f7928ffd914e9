"""The chunk_hash of whole chunks: which rows it looks up, what it may not see, and that it learns."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
import torch
from conftest import tiny_network
from hypothesis import given
from hypothesis import strategies as st

from bytegolf.config import ChunkHashConfig, HNetConfig
from bytegolf.errors import BytegolfError
from bytegolf.model.embed import ChunkHashEmbedding

BASE = 1_000_003

texts = st.lists(st.tuples(st.integers(0, 65_535), st.booleans()), min_size=1, max_size=40)


def chunk_hash() -> ChunkHashEmbedding:
    return ChunkHashEmbedding(ChunkHashConfig(dim=4, bits=6), 8)


def hash_of(chunk: list[int]) -> int:
    """By Python's integers, as a signed number of 64 bits."""
    key = 0
    for number in chunk:
        key = key * BASE + number + 1
    key %= 2**64
    return key - 2**64 if key >= 2**63 else key


@given(texts, st.integers(0, 40), st.integers(0, 39))
def test_hashes_are_of_the_chunk_so_far_however_the_text_comes_in(
    text: list[tuple[int, bool]], cut: int, restart: int
) -> None:
    """In one piece or in two, and again by single positions; a document that starts within has nothing before it."""
    cut = min(cut, len(text))
    numbers = torch.tensor([[number for number, _ in text]])
    boundary = torch.tensor([[starts or at in (0, restart) for at, (_, starts) in enumerate(text)]])
    first = torch.zeros_like(boundary)
    first[:, restart : restart + 1] = True

    wanted, ended, chunk = [], [], list[int]()
    for at, (number, _) in enumerate(text):
        ended.append(0 if at == restart else hash_of(chunk))
        if boundary[0, at]:
            chunk = []
        chunk.append(number)
        wanted.append(hash_of(chunk))

    module = chunk_hash()
    whole = module.follow(numbers, boundary, first)
    assert [found[0].tolist() for found in whole] == [ended, wanted]
    for cuts in ([0, cut, len(text)], list(range(len(text) + 1))):
        before = numbers.new_zeros(1)
        pieces = []
        for start, end in itertools.pairwise(cuts):
            if start < end:
                piece = slice(start, end)
                got, keys = module.follow(numbers[:, piece], boundary[:, piece], first[:, piece], before)
                pieces.append(torch.stack((got, keys)))
                before = keys[:, -1]
        assert torch.cat(pieces, 2).equal(torch.stack(whole))


def test_the_same_chunk_finds_the_same_row_wherever_it_lies() -> None:
    """[7 8 9] twice, at other places and behind other text; [9 8 7] is another chunk."""
    numbers = torch.tensor([[5, 7, 8, 9, 1, 7, 8, 9, 9, 8, 7, 0]])
    boundary = torch.tensor([[1, 1, 0, 0, 1, 1, 0, 0, 1, 0, 0, 1]]).bool()
    ended = chunk_hash().follow(numbers, boundary)[0][0]
    assert ended[4] == ended[8] != ended[11]


def test_an_unseen_chunk_adds_nothing_and_a_seen_row_learns() -> None:
    module = chunk_hash()
    ended = torch.tensor([[0, 12345, 0]])
    assert not module(ended, torch.float32).any()
    module(ended, torch.float32).square().sum().backward()  # zero rows have zero gradients here
    (module(ended, torch.float32) - 1).square().sum().backward()
    assert module.table.grad is not None
    assert int((module.table.grad != 0).any(1).sum()) == 2


def test_an_inner_level_has_no_tokens_to_look_up() -> None:
    network = tiny_network("two-level")
    assert isinstance(network, HNetConfig)
    assert isinstance(network.main, HNetConfig)
    inner = dataclasses.replace(network.main, chunk_hash=ChunkHashConfig(dim=8))
    with pytest.raises(
        BytegolfError, match=r"main\.chunk_hash\.dim is 8, but chunk hashes are of tokens.*set it to 0 there"
    ):
        dataclasses.replace(network, main=inner)
