"""Mixed scores in every mode: what the model's alone would be but for mixing, causal, normalised, reset as told."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import cyclopts
import numpy as np
import pytest
import torch
from conftest import ModelMaker, shapes_unchecked
from numpy.typing import NDArray
from streams import BYTES, stream_of

from bytegolf.artifact.export import training_text
from bytegolf.bpb import Score
from bytegolf.cli.eval import Mixed
from bytegolf.config import MixConfig, TttConfig
from bytegolf.data.tokenizer import RawByteTokenizer, Tokenizer
from bytegolf.errors import BytegolfError
from bytegolf.evaluate import modes, verification
from bytegolf.evaluate.mixing import Mixing, Specials
from bytegolf.evaluate.modes import MemoryStream, ScoringMode
from bytegolf.evaluate.score import Window
from bytegolf.mixing.primer import Primer
from bytegolf.model.lm import LanguageModel

MIX = MixConfig(on=True, megabytes=1, contexts=("o1", "o2", "o4", "word", "chunk"))
SEQ_LEN = 32
PLAIN = ScoringMode(SEQ_LEN, mix=MIX, tail="score")
PRIMER = Primer.of(b"the models mix of bytes. bytes. the models of the mix " * 4)
MODES = {
    "plain": PLAIN,
    "batches of 2": dataclasses.replace(PLAIN, batch=2),
    "sliding": dataclasses.replace(PLAIN, stride=8),
    "sgd": dataclasses.replace(PLAIN, ttt=TttConfig("sgd", chunk=16)),
    "lora, 3 documents at once": dataclasses.replace(PLAIN, ttt=TttConfig("lora", rank=2, documents=3)),
    "each document afresh": dataclasses.replace(PLAIN, mix=dataclasses.replace(MIX, reset="document")),
    "primed": dataclasses.replace(PLAIN, primer=PRIMER),
    "primed, afresh": dataclasses.replace(PLAIN, mix=dataclasses.replace(MIX, reset="document"), primer=PRIMER),
}
every_mode = pytest.mark.parametrize("mode", MODES.values(), ids=MODES)


def text(documents: int = 4, size: int = 50) -> list[int]:
    """Documents of a few words, each behind a BOS, and a BOS at the end."""
    chance = np.random.default_rng(3)
    words = [b"mix ", b"the ", b"models ", b"of bytes. "]
    found: list[int] = []
    for _ in range(documents):
        data = b"".join(words[i] for i in chance.integers(0, 4, size))[:size]
        found += [BYTES.BOS, *(byte + BYTES.OFFSET for byte in data)]
    return [*found, BYTES.BOS]


def costs(
    mode: ScoringMode, model: LanguageModel, tokens: list[int], tokenizer: Tokenizer = BYTES
) -> NDArray[np.float64]:
    """The nats of each target, in the order of the text; their sum is the score's, and each comes once."""
    found: dict[int, float] = {}

    def book(window: Window, nats: NDArray[np.float64], sizes: NDArray[np.int64]) -> None:
        first = window.start + window.length - window.scored
        for place, loss in enumerate(nats):
            assert first + place not in found, "scored twice"
            found[first + place] = float(loss)

    with shapes_unchecked():
        total = mode.score(model, MemoryStream(np.array(tokens)), tokenizer, book=book)
    assert sorted(found) == list(range(total.tokens))
    assert total.nats == pytest.approx(math.fsum(found.values()), rel=1e-12)
    return np.array([found[place] for place in sorted(found)])


def test_batches_that_are_read_at_the_same_time_cost_what_they_cost_one_by_one(make_model: ModelMaker) -> None:
    model, tokens, before = make_model("one-level"), text(), torch.get_num_threads()
    try:
        found = []
        for threads in (1, 3):
            torch.set_num_threads(threads)
            found.append(costs(MODES["batches of 2"], model, tokens))
            assert torch.get_num_threads() == threads, "the readers' number stays theirs"
    finally:
        torch.set_num_threads(before)
    assert np.array_equal(found[0], found[1])


@every_mode
def test_each_target_costs_what_its_whole_distribution_says(mode: ScoringMode, make_model: ModelMaker) -> None:
    """``run`` of the kernel against all 256 probabilities, byte by byte; so special tokens and chunks count alike."""
    model, tokens = make_model("one-level"), text()
    seen: list[NDArray[np.float64]] = []
    with shapes_unchecked():
        mode.score(model, MemoryStream(np.array(tokens)), BYTES, watch=seen.append)
    p = np.concatenate(seen)
    assert p.shape == (len(tokens) - 1, BYTES.vocab_size)
    assert np.abs(p.sum(1) - 1).max() < 1e-12
    found = costs(mode, model, tokens)
    if mode.ttt.documents == 1:  # else documents take turns
        np.testing.assert_allclose(-np.log(p[np.arange(len(p)), tokens[1:]]), found, rtol=0, atol=1e-9)
    again = costs(dataclasses.replace(mode, mix=MixConfig()), model, tokens)
    assert found[100:].mean() < again[100:].mean() - 1, "an untrained model, and words that come again"


@every_mode
def test_no_cost_depends_on_the_future(mode: ScoringMode, make_model: ModelMaker) -> None:
    model, tokens = make_model("one-level"), text()
    if not mode.adapts:
        mode = dataclasses.replace(mode, batch=1, capacity="fixed", capacity_divisor=1)
    if mode.ttt.documents > 1:
        pytest.skip("which documents go side by side depends on where they end")
    before = costs(mode, model, tokens)
    for at in (40, 90):
        other = tokens[: at + 1] + [4 + (token * 7 + 1) % 256 for token in tokens[at + 1 :]]
        after = costs(mode, model, other)
        if mode.adapts:
            np.testing.assert_allclose(after[:at], before[:at], rtol=0, atol=1e-5)
        else:
            assert np.array_equal(after[:at], before[:at])


def test_each_document_afresh_costs_as_much_as_alone(make_model: ModelMaker) -> None:
    """A second document that is the first again costs the same, and much less where what was learned is kept."""
    model = make_model("one-level")
    tokens = text(1, SEQ_LEN - 1)[:-1] * 3 + [BYTES.BOS]  # documents as long as windows
    afresh = costs(MODES["each document afresh"], model, tokens)
    assert np.array_equal(afresh[: SEQ_LEN - 1], afresh[SEQ_LEN : 2 * SEQ_LEN - 1])
    kept = costs(PLAIN, model, tokens)
    assert kept[2 * SEQ_LEN : -1].sum() < 0.6 * afresh[2 * SEQ_LEN : -1].sum()


def test_a_primer_is_known_before_any_text_and_to_every_document(make_model: ModelMaker) -> None:
    model, tokens = make_model("one-level"), text()
    kinds = {name: costs(MODES[name], model, tokens) for name in ("primed", "primed, afresh", "each document afresh")}
    assert kinds["primed"][:50].sum() < 0.8 * costs(PLAIN, model, tokens)[:50].sum()
    assert np.array_equal(kinds["primed"][:50], kinds["primed, afresh"][:50])
    assert kinds["primed, afresh"].sum() < 0.8 * kinds["each document afresh"].sum()
    unread = dataclasses.replace(PLAIN, mix=dataclasses.replace(MIX, primer=False), primer=PRIMER)
    assert np.array_equal(costs(unread, model, tokens), costs(PLAIN, model, tokens))


def test_a_primer_that_was_read_ahead_serves_one_score(make_model: ModelMaker) -> None:
    model, tokens = make_model("one-level"), text()
    primer = Primer.of(bytes(range(65, 91)) * 50)  # longer than the text, so that as much is kept of both
    mode = dataclasses.replace(PLAIN, primer=primer)
    before = costs(mode, model, tokens)
    mode.prepare()
    assert len(primer.readers) == 1
    assert np.array_equal(costs(mode, model, tokens), before)
    assert not primer.readers
    assert np.array_equal(costs(mode, model, tokens), before), "and it has not learned for the next"


def test_the_text_of_a_primer_is_spread_and_of_the_size_asked() -> None:
    documents = [bytes([65 + n]) * 9000 for n in range(40)]  # 360,000 bytes, so 200,000 are four pieces
    stream = MemoryStream(BYTES.encode_documents(documents)[0].astype(np.int64))
    found = training_text(stream, BYTES, 200_000)
    starts = [found[at] - 65 for at in range(0, 200_000, 50_000)]
    assert len(found) == 200_000
    assert starts == [0, 10, 20, 30]
    assert found == b"".join(b"".join(documents)[9000 * n : 9000 * n + 50_000] for n in starts)
    assert len(training_text(stream, BYTES, 10**6)) == 360_000


def test_it_is_no_matter_how_many_windows_are_read_at_a_time(make_model: ModelMaker) -> None:
    model, tokens = make_model("one-level").double(), text()
    model.precision = torch.float64
    one, two = (costs(MODES[name], model, tokens) for name in ("plain", "batches of 2"))
    np.testing.assert_allclose(one, two, rtol=0, atol=1e-3)


def test_checks_find_a_mixer_that_looks_ahead(make_model: ModelMaker, monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokens = make_model("one-level"), np.array(text())
    (trial,) = (one for one in verification.trials(model, SEQ_LEN, mix=MIX) if one.name == "mixed")
    with shapes_unchecked():
        assert verification.causality(model, BYTES, tokens, trial, 2).passed
        assert verification.mixed_normalisation(model, BYTES, tokens, trial.mode).passed
        inner = Mixing._watched

        def ahead(
            self: Mixing, mixer: Any, rows: Any, frequencies: Any, specials: Any, data: NDArray[np.uint8], opens: Any
        ) -> None:
            mixer.begin(frequencies[-1:, None, BYTES.OFFSET :], opens[-1:], rows)
            mixer.learn(data[-1:], rows)
            inner(self, mixer, rows, frequencies, specials, data, opens)

        monkeypatch.setattr(Mixing, "_watched", ahead)
        assert not verification.causality(model, BYTES, tokens, trial, 2).passed


def test_ends_of_documents_are_counted_where_the_model_foresees_none() -> None:
    before = np.full(50, 10)
    before[:-1] = 100  # each document of 50 bytes ends behind a line's end, and the model says 2⁻²¹ everywhere
    specials, cost = Specials(), []
    for _ in range(40):
        p, inputs = specials.probability(np.full(50, 2.0**-21), before)
        cost.append(-np.log2(1 - p[:-1]).sum() - np.log2(p[-1]))
        specials.learn(p, inputs, before, ended=True)
    assert cost[0] == pytest.approx(21, abs=1e-3)
    assert np.mean(cost[20:]) < 4


def test_ends_of_documents_cost_a_model_that_foresees_them_nothing_more() -> None:
    rng = np.random.default_rng(0)
    specials, cost, alone = Specials(), 0.0, 0.0
    for _ in range(200):
        before, model = rng.integers(0, 256, 60), np.full(60, 1e-5)
        model[-1] = 0.6
        p, inputs = specials.probability(model, before)
        cost += -np.log2(1 - p[:-1]).sum() - np.log2(p[-1])
        alone += -np.log2(1 - model[:-1]).sum() - np.log2(model[-1])
        specials.learn(p, inputs, before, ended=True)
    assert cost < 1.05 * alone


def test_raw_bytes_have_no_special_tokens(make_model: ModelMaker) -> None:
    tokenizer = RawByteTokenizer()
    model = make_model("flat", seed=1)
    tokens = [tokenizer.BOS, *b"ab ab ab ab ab ab " * 4, tokenizer.BOS, *b"ab ab ab "]
    small = dataclasses.replace(model.config, vocab_size=256)
    torch.manual_seed(0)
    assert costs(PLAIN, LanguageModel(small).eval(), tokens, tokenizer)[40:60].mean() < 1


def test_a_model_of_subwords_is_refused(make_model: ModelMaker) -> None:
    class Pieces(Tokenizer):
        name, kind, vocab_size, sha256 = "sp1024", "sentencepiece", 1024, ""
        encode = decode = byte_counts = None  # type: ignore[assignment]

    with pytest.raises(BytegolfError, match="sp1024"):
        PLAIN.score(make_model("flat"), MemoryStream(np.array(text())), Pieces())


def test_a_broken_model_is_still_refused(make_model: ModelMaker, tmp_path: Path) -> None:
    model = make_model("flat")
    torch.nn.init.constant_(model.embedding.weight, math.nan)
    with pytest.raises(BytegolfError, match="not finite"):
        PLAIN.score(model, stream_of(tmp_path, text()), BYTES)


def test_progress_and_limits_are_those_of_any_score(make_model: ModelMaker) -> None:
    told: list[Score] = []
    stream = MemoryStream(np.array(text()))
    mode = dataclasses.replace(PLAIN, batch=1)
    total = mode.score(make_model("flat"), stream, BYTES, limit=100, progress=told.append)
    assert total.tokens == 100
    assert told[-1] == total
    assert [one.tokens for one in told] == [32, 64, 96, 100]


def test_the_chunk_beside_mixing_is_short_unless_told_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(modes, "MIXED_CHUNK", 8)
    adapting = dataclasses.replace(PLAIN, ttt=TttConfig("sgd"))
    chunks = [
        mode.learning.chunk
        for mode in (
            adapting,
            dataclasses.replace(adapting, stride=16),
            dataclasses.replace(adapting, mix=MixConfig()),
            dataclasses.replace(adapting, ttt=TttConfig("sgd", chunk=5)),
        )
    ]
    assert chunks == [8, 16, 0, 5]


def test_one_pass_is_mixed_in_order_too(make_model: ModelMaker) -> None:
    """Each target once and in order, for about what the overlapping windows that it stands for cost."""
    model, tokens = make_model("one-level"), text()
    sliding = dataclasses.replace(PLAIN, stride=8)
    with shapes_unchecked():
        once, how = sliding.in_one_pass(model, MemoryStream(np.array(tokens)))
    found = costs(once, model, tokens)
    assert how.stands_for == (SEQ_LEN, 8)
    assert len(found) == len(tokens) - 1
    assert found.mean() < costs(dataclasses.replace(once, mix=MixConfig()), model, tokens).mean() - 0.5
    assert abs(found.mean() - costs(sliding, model, tokens).mean()) < 0.1


def test_what_a_configuration_mixes_can_be_switched_off() -> None:
    found = []
    app = cyclopts.App(default_parameter=cyclopts.Parameter(negative=()), result_action="return_value")

    @app.default
    def take(mixed: Mixed | None = None) -> None:
        found.append((mixed or Mixed()).over(MixConfig(on=True)))

    app(["--no-mix"])
    app(["--mix", "--no-mix-primer"])
    assert [(one.on, one.primer) for one in found] == [(False, True), (True, False)]
