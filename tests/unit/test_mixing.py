"""Mixing: the kernel against plain NumPy; distributions that sum to 1 and are what bytes cost; no look ahead."""

from __future__ import annotations

import hashlib
import itertools
import lzma
import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from bytegolf.config import Config, MixConfig
from bytegolf.errors import BytegolfError
from bytegolf.mixing import tables
from bytegolf.mixing.coding import BitCoder, code_byte
from bytegolf.mixing.frequencies import TOTAL, frequencies_of, quantised
from bytegolf.mixing.mixer import Engine, Kernel, Mixer
from bytegolf.mixing.primer import BadPrimerError, Primer
from bytegolf.mixing.reference import Reference
from bytegolf.mixing.state import CONTEXTS, SELECTORS, State
from bytegolf.ops import native

needs_kernel = pytest.mark.skipif(native.why_not() is not None, reason="no native kernels here")
EVERYTHING = MixConfig(
    megabytes=1,
    contexts=tuple(name for name in CONTEXTS if name not in ("o7", "skip2-2")),  # type: ignore[misc]
    selectors=tuple(SELECTORS),  # type: ignore[arg-type]
)
SMALL = MixConfig(megabytes=1, contexts=("o1", "o2", "o4", "word"))
ARRAYS = [
    "table",
    "maps",
    "match_maps",
    "weights",
    "final_weights",
    "apm",
    "alone",
    "trust",
    "positions",
    "text",
    "history",
    "counts",
]


def words(size: int, seed: int = 0) -> NDArray[np.uint8]:
    """Text of few words, which come again."""
    chance = np.random.default_rng(seed)
    vocabulary = [b"the ", b"Mixer ", b"of ", b"contexts, ", "größer ".encode(), b"and\n", b"learns ", b"\x00\xff"]
    found = b"".join(vocabulary[i] for i in chance.integers(0, len(vocabulary), size))
    return np.frombuffer(found[:size], np.uint8)


def distributions(size: int, experts: int = 1, seed: int = 0) -> NDArray[np.uint32]:
    chance = np.random.default_rng(seed)
    p = np.exp(chance.normal(0, 2, (size * experts, 256)))
    return quantised(p / p.sum(1, keepdims=True)).astype(np.uint32).reshape(size, experts, 256)


def openings(size: int) -> NDArray[np.bool_]:
    return np.random.default_rng(1).random(size) < 0.2


@needs_kernel
@pytest.mark.parametrize("experts", [0, 1, 2])
def test_the_kernel_is_the_reference_bit_for_bit(experts: int) -> None:
    data, given, opens = words(160), distributions(160, experts), openings(160)
    kernel, plain = (State(EVERYTHING, 1, experts, length=64) for _ in range(2))
    found = Kernel(kernel).run(0, given, opens, data)
    assert (found == Reference(plain).run(0, given, opens, data)).all()
    assert found.min() >= 1
    for name in ARRAYS:
        assert np.array_equal(getattr(kernel, name), getattr(plain, name)), name


@needs_kernel
def test_priming_is_the_reference_too() -> None:
    data = words(200)
    states = [State(EVERYTHING, 1, 1, length=128, primed=True) for _ in range(2)]
    for engine in (Kernel(states[0]), Reference(states[1])):
        engine.prime(1, data)
        engine.run(0, distributions(40), openings(40), data[:40])
    for name in ARRAYS:
        assert np.array_equal(getattr(states[0], name), getattr(states[1], name)), name


def test_a_primed_mixer_knows_the_text_and_counts_as_one_that_scored_it() -> None:
    data, later = words(300), words(60, seed=5)
    given = distributions(60)
    primed, scored = Mixer(SMALL, length=512, primed=True), Mixer(SMALL, length=512, primed=True)
    primed.read(Primer.of(data.tobytes()))
    scored.engine.run(1, distributions(300), np.zeros(300, np.bool_), data)
    assert np.array_equal(primed.state.table[:, 1:] & 0xFFFFF, scored.state.table[:, 1:] & 0xFFFFF)
    assert not (primed.state.table[:, 1:] >> 20).any(), "corrections are of a model's predictions"
    for name in ("maps", "match_maps", "positions", "text", "history"):
        assert np.array_equal(getattr(primed.state, name), getattr(scored.state, name)), name
    fresh = Mixer(SMALL, length=512).run(later, given).sum()
    assert primed.run(later, given).sum() < 0.8 * fresh


def test_a_primer_is_read_twice_and_then_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    primer, given, later = Primer.of(words(300).tobytes()), distributions(60), words(60, seed=5)
    first, second = (Mixer(SMALL, length=512, primed=True) for _ in range(2))
    first.read(primer)
    assert not any(primer.known.values()), "the only mixer there is needs no copy"
    costs = first.run(later, given)
    first.read(primer)
    monkeypatch.setattr(Primer, "data", None)
    second.read(primer)
    assert np.array_equal(second.run(later, given), costs)
    first.read(primer)
    assert np.array_equal(first.run(later, given), costs), "what it learned since is forgotten"


def test_a_primer_that_is_not_what_it_says_is_refused() -> None:
    text = words(5000).tobytes()
    primer = Primer.of(text)
    assert primer.text == text
    assert len(primer.packed) < 2000
    for wrong in (
        Primer(primer.packed[:-9], primer.size, primer.sha256),
        Primer(b"no xz" + primer.packed, primer.size, primer.sha256),
        Primer(primer.packed, primer.size - 1, primer.sha256),
        Primer(primer.packed, primer.size + 1, primer.sha256),
        Primer(lzma.compress(bytes(1 << 22)), primer.size, primer.sha256),
    ):
        with pytest.raises(BadPrimerError):
            wrong.check()


@needs_kernel
def test_streams_at_a_time_are_the_reference_too() -> None:
    states = [State(SMALL, 3, 1, length=32) for _ in range(2)]
    engines: list[Engine] = [Kernel(states[0]), Reference(states[1])]
    texts, given, chance = words(3 * 40).reshape(3, 40), distributions(3 * 40), np.random.default_rng(2)
    for at in range(40):
        rows = np.flatnonzero(chance.random(3) < 0.8)
        for engine in engines:
            engine.begin(rows, given[at * 3 + rows], openings(3)[rows])
        if at % 13 == 0:
            assert np.array_equal(engines[0].nodes(rows), engines[1].nodes(rows))
        for engine in engines:
            engine.learn(rows, texts[rows, at])
    for name in ARRAYS:
        assert np.array_equal(getattr(states[0], name), getattr(states[1], name)), name


@pytest.mark.parametrize("experts", [0, 1])
def test_a_byte_costs_what_its_distribution_said(experts: int) -> None:
    """``run`` in one go, and byte by byte with all 256 probabilities before each."""
    data, given, opens = words(120), distributions(120, experts), openings(120)
    costs = Mixer(SMALL, experts=experts).run(data, given, opens)
    single = Mixer(SMALL, experts=experts)
    for at, byte in enumerate(data):
        single.begin(given[at : at + 1], opens[at : at + 1])
        if at % 10 == 9:
            (p,) = single.distribution()
            assert p.min() > 0
            assert abs(p.sum() - 1) < 1e-12
            assert abs(-math.log(p[byte]) - costs[at]) < 1e-9
        single.learn(data[at : at + 1])


def test_probabilities_of_all_bytes_sum_to_one_as_integers() -> None:
    """Each node shares out its own mass exactly: the products over the 256 paths sum to 2¹²⁸."""
    data = words(60)
    mixer = Mixer(SMALL)
    mixer.run(data, distributions(60))
    mixer.begin(distributions(1))
    ones = mixer.engine.nodes(np.array([0]))[0].tolist()
    masses = {1: 1}
    for node in range(1, 256):
        masses[2 * node] = masses[node] * (tables.SHARES - ones[node])
        masses[2 * node + 1] = masses[node] * ones[node]
    assert sum(masses[256 + byte] for byte in range(256)) == 1 << 128


def test_no_byte_depends_on_those_behind_it() -> None:
    data, given, opens = words(200), distributions(200), openings(200)
    before = Mixer(SMALL).run(data, given, opens)
    for at in (0, 57, 130):
        other, others, flags = data.copy(), given.copy(), opens.copy()
        other[at + 1 :] = other[at + 1 :] ^ 0x15
        others[at + 1 :] = distributions(199 - at, seed=5)
        flags[at + 1 :] ^= True
        after = Mixer(SMALL).run(other, others, flags)
        assert np.array_equal(after[: at + 1], before[: at + 1])
        assert not np.array_equal(after[at + 1 :], before[at + 1 :])


def test_a_text_in_parts_costs_the_same() -> None:
    data, given, opens = words(150), distributions(150), openings(150)
    whole, parts = Mixer(SMALL).run(data, given, opens), Mixer(SMALL)
    cuts = [0, 1, 40, 41, 150]
    found = [parts.run(data[a:b], given[a:b], opens[a:b]) for a, b in itertools.pairwise(cuts)]
    assert np.array_equal(np.concatenate(found), whole)


def test_reset_is_a_new_beginning() -> None:
    data, given = words(150), distributions(150)
    mixer = Mixer(SMALL)
    fresh = mixer.run(data, given)
    assert mixer.run(data, given).sum() < 0.8 * fresh.sum(), "what was seen before helps"
    mixer.reset()
    assert np.array_equal(mixer.run(data, given), fresh)


def test_a_generation_that_comes_again_finds_nothing() -> None:
    """Generations have 16 bits: the table is cleared where they begin anew."""
    data, given = words(60), distributions(60)
    mixer = Mixer(SMALL)
    fresh = mixer.run(data, given)
    mixer.state.counts[0] = (1 << 16) - 1
    mixer.reset()
    assert mixer.state.counts[0] == 1
    assert np.array_equal(mixer.run(data, given), fresh)


def test_repetition_is_learned_and_a_bad_expert_is_overruled() -> None:
    data = np.tile(words(60), 5)
    costs = Mixer(SMALL, experts=0).run(data, distributions(len(data), 0)) / math.log(2)
    assert costs[:60].mean() > 3
    assert costs[-60:].mean() < 0.3
    misled = Mixer(SMALL).run(data, distributions(len(data))) / math.log(2)
    assert misled[-60:].mean() < 1


def test_a_good_expert_is_trusted_from_the_first_byte() -> None:
    data = words(200)
    p = np.full((200, 256), 0.1 / 255)
    p[np.arange(200), data] = 0.9
    given = quantised(p).astype(np.uint32)[:, None]
    costs = Mixer(SMALL).run(data, given) / math.log(2)
    assert costs[:20].mean() < 1.0
    assert costs[-50:].mean() < -math.log2(0.9)


def test_streams_learn_from_each_other() -> None:
    data, given = words(120), distributions(120)
    mixer = Mixer(SMALL, streams=2)
    first, second = mixer.run(data, given, row=0), mixer.run(data, given, row=1)
    assert second.sum() < 0.7 * first.sum()


class Counting(BitCoder):
    """Counts the bits that its code would take without rounding."""

    ideal_bits = 0.0

    def code(self, bit: int, p: int) -> int:
        found = super().code(bit, p)
        self.ideal_bits -= math.log2((p if found else tables.SHARES - p) / tables.SHARES)
        return found


def test_coded_bytes_come_back_and_take_what_they_cost() -> None:
    data, given = words(300).reshape(2, 150), distributions(300).reshape(150, 2, 1, 256)

    def code(coder: BitCoder, told: NDArray[np.uint8]) -> NDArray[np.uint8]:
        mixer, found = Mixer(SMALL, streams=2), told.copy()
        for at in range(150):
            mixer.begin(given[at])
            found[:, at] = [code_byte(mixer, coder, int(told[row, at]), row) for row in range(2)]
            mixer.learn(found[:, at])
        return found

    encoder = Counting(room=1000)
    code(encoder, data)
    payload = encoder.payload()
    assert payload is not None
    assert abs(8 * len(payload) - encoder.ideal_bits) < 80
    assert np.array_equal(code(BitCoder(payload=payload), np.zeros_like(data)), data)
    alone = Mixer(SMALL)
    cost = alone.run(data[0], given[:, 0]).sum() / math.log(2)
    single, encoder = Mixer(SMALL), Counting(room=1000)
    for at in range(150):
        single.begin(given[at, :1])
        code_byte(single, encoder, int(data[0, at]))
        single.learn(data[:1, at])
    assert abs(encoder.ideal_bits - cost) < 1e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("cap", [0.0, 30.0])
def test_frequencies_are_those_of_the_softmax(dtype: torch.dtype, cap: float) -> None:
    logits = (torch.randn(40, 260) * 8).to(dtype)
    found = frequencies_of(logits, cap).astype(np.int64)
    with native.disabled():
        wanted = frequencies_of(logits, cap).astype(np.int64)
    assert (found.sum(1) == TOTAL).all()
    assert (wanted.sum(1) == TOTAL).all()
    assert found.min() >= 1
    assert np.abs(found - wanted).max() < 300  # of 2²⁴: an fp32 softmax


def test_tables_are_the_same_everywhere() -> None:
    """Hashes of their bytes: a machine on which they differ would write files that others cannot read."""
    found = [
        hashlib.sha256(one().tobytes()).hexdigest()[:16] for one in (tables.squash, tables.stretch, tables.log_mantissa)
    ]
    assert found == DIGESTS


DIGESTS = ["369182c64e4b5479", "9ae2b661486ad5ac", "c5d0f3b6f567fec9"]


def test_mixing_is_switched_on_by_a_single_key() -> None:
    config = Config.load("cpu-demo", ["eval.mix=true", "eval.mix.reset=document"])
    assert config.eval.mix == MixConfig(on=True, reset="document")
    assert not config.with_("eval.mix=false").eval.mix.on
    assert config.with_("eval.mix=false").eval.mix.reset == "document"


@pytest.mark.parametrize(
    "wrong", ["eval.mix.contexts=['o9']", "eval.mix.contexts=[]", "eval.mix.selectors=['last','last']"]
)
def test_wrong_settings_are_refused(wrong: str) -> None:
    with pytest.raises(BytegolfError):
        Config.load("cpu-demo", wrong)


def test_a_byte_is_begun_before_it_is_learned() -> None:
    mixer = Mixer(SMALL)
    mixer.run(words(3), distributions(3))
    with pytest.raises(RuntimeError):
        mixer.learn(words(1))


def test_too_many_streams_are_refused() -> None:
    with pytest.raises(BytegolfError):
        Mixer(SMALL, streams=1 << 9, length=1 << 24)
