"""Loader: permutation of an epoch, the same batch for every world size, any step at once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from bytegolf.data.dataset import TokenStream
from bytegolf.data.dataset_writer import ShardWriter
from bytegolf.data.loader import Loader, permute
from bytegolf.errors import BytegolfError


class Counting(TokenStream):
    """The stream 0, 1, 2, …, which records what is read of it; no file behind it."""

    def __init__(self, length: int) -> None:
        self.paths = [Path("fineweb_train_000000.bin")]
        self.length = length
        self.read = 0

    def __len__(self) -> int:
        return self.length

    def slice(self, start: int, stop: int) -> NDArray[np.uint16]:
        assert 0 <= start <= stop <= self.length
        self.read += stop - start
        return np.arange(start, stop).astype(np.uint16)


@given(size=st.integers(1, 3000), seed=st.integers(0, 2**40), epoch=st.integers(0, 1000))
@settings(deadline=None, max_examples=60)
def test_permute_is_a_permutation(size: int, seed: int, epoch: int) -> None:
    image = permute(np.arange(size), size, seed, epoch)
    assert sorted(image.tolist()) == list(range(size))


def test_permutations_look_random() -> None:
    size = 4096
    first, second = (permute(np.arange(size), size, 7, epoch) for epoch in (0, 1))
    assert np.mean(first == second) < 0.01
    assert np.mean(first == np.arange(size)) < 0.01
    assert abs(np.corrcoef(first, np.arange(size))[0, 1]) < 0.06  # σ is 1/64
    assert abs(np.corrcoef(first[:-1], first[1:])[0, 1]) < 0.06


@given(
    length=st.integers(9, 400),
    seed=st.integers(0, 2**31),
    epoch=st.integers(0, 5),
    order=st.sampled_from(["shuffled", "sequential"]),
)
@settings(deadline=None, max_examples=60)
def test_an_epoch_visits_every_window_once(length: int, seed: int, epoch: int, order: str) -> None:
    loader = Loader(Counting(length), 8, 8, seed, order)  # type: ignore[arg-type]
    steps = range(epoch * loader.windows, (epoch + 1) * loader.windows)
    starts = [int(loader.starts(step)[0]) for step in steps]
    offset = min(starts)
    assert sorted(starts) == [offset + 8 * window for window in range(loader.windows)]
    assert offset < 8
    assert length - loader.windows * 8 <= 16  # what an epoch leaves out
    if order == "sequential":
        assert starts == sorted(starts)
        assert offset == 0


@given(
    seed=st.integers(0, 2**31),
    step=st.integers(0, 10**12),
    world=st.sampled_from([1, 2, 3, 4, 6, 12]),
    order=st.sampled_from(["shuffled", "sequential"]),
)
@settings(deadline=None, max_examples=60)
def test_the_ranks_parts_are_the_batch(seed: int, step: int, world: int, order: str) -> None:
    stream = Counting(1000)
    whole = Loader(stream, 16, 16 * 12, seed, order).batch(step)  # type: ignore[arg-type]
    parts = [
        Loader(stream, 16, 16 * 12, seed, order, rank, world).batch(step)  # type: ignore[arg-type]
        for rank in range(world)
    ]
    for side in (0, 1):
        np.testing.assert_array_equal(np.concatenate([part[side] for part in parts]), whole[side])


def test_inputs_targets_and_the_cost_of_a_late_step() -> None:
    stream = Counting(60_000)
    loader = Loader(stream, 32, 128, seed=3)
    inputs, targets = loader.batch(10**9)
    assert stream.read == 4 * 33  # nothing is read but the batch
    assert inputs.dtype == targets.dtype == np.int64
    assert inputs.shape == targets.shape == (4, 32)
    np.testing.assert_array_equal(targets, inputs + 1)
    again = Loader(Counting(60_000), 32, 128, seed=3).batch(10**9)
    np.testing.assert_array_equal(again[0], inputs)
    assert (Loader(stream, 32, 128, seed=4).batch(10**9)[0] != inputs).any()


def test_offsets_differ_between_epochs() -> None:
    loader = Loader(Counting(1000), 64, 64, seed=1)
    offsets = {int(loader.starts(epoch * loader.windows)[0]) % 64 for epoch in range(20)}
    assert len(offsets) > 10


def test_from_shards(tmp_path: Path) -> None:
    with ShardWriter(tmp_path, "train", shard_tokens=50) as writer:
        writer.write((np.arange(120) % 256 + 4).astype(np.uint16))
    stream = TokenStream(writer.paths, 260)
    inputs, targets = Loader(stream, 10, 110, seed=0, order="sequential").batch(0)
    assert inputs.reshape(-1).tolist() == list(range(4, 114))
    assert targets.reshape(-1).tolist() == list(range(5, 115))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            {"seq_len": 100, "batch_tokens": 100},
            r"longer than the split of 100 .*fineweb_train_000000",
        ),
        ({"seq_len": 10, "batch_tokens": 25}, r"no whole number of sequences of 10"),
        ({"seq_len": 10, "batch_tokens": 30, "world_size": 2}, r"3 sequences does not split evenly among 2"),
        ({"seq_len": 10, "batch_tokens": 30, "rank": 3, "world_size": 3}, r"rank 3 does not exist"),
    ],
)
def test_what_cannot_be_is_said(arguments: dict[str, int], words: str) -> None:
    with pytest.raises(BytegolfError, match=words):
        Loader(Counting(100), seed=0, **arguments)  # type: ignore[arg-type]


def test_the_worked_example_of_the_permutation() -> None:
    """As the docstring of ``permute`` has it."""
    index = np.arange(10, dtype=np.int64)
    assert permute(index, 10, seed=0, epoch=0).tolist() == [4, 2, 6, 0, 1, 7, 3, 8, 9, 5]
    assert permute(index, 10, seed=1, epoch=0).tolist() == permute(index, 10, seed=0, epoch=1).tolist()
