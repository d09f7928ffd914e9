"""``bytegolf bench``: log-likelihoods against one step after another, perturbations, letters, gold boundaries."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import TinyRun, good, refused, text

import bytegolf
from bytegolf.data.dataset import open_split
from bytegolf.evaluate.modes import MemoryStream
from bytegolf.tools.bench import boundaries, characters
from bytegolf.tools.bench.likelihood import (
    NOISES,
    Continuation,
    Likelihood,
    Question,
    Tokens,
    accuracy,
    noise_scores,
    perturbed,
)

RUNS = ("tiny_run", "two_level_run", "soft_run", "subword_run")
PAIRS = [
    ("The people of the", " United States"),
    ("", "Congress"),
    ("naïve café", ", naïve café"),
    ("The people of the", " law"),
    ("x", ""),
    ("The ", "power"),
    (text(300), " and peace"),
]


def model_of(run: TinyRun) -> bytegolf.Model:
    return bytegolf.load(run.folder, data=run.data, device="cpu", precision="fp32")


@pytest.fixture
def model(request: pytest.FixtureRequest) -> bytegolf.Model:
    return model_of(request.getfixturevalue(request.param))


every_kind = pytest.mark.parametrize("model", RUNS, indirect=True)


def by_steps(model: bytegolf.Model, tokens: Sequence[int], known: int) -> tuple[float, bool]:
    """Brute force: log-likelihood and greediness of what lies behind the first ``known`` tokens, a token at a time."""
    module = model.module
    with module.capacity("exact"):
        state = module.start(1)
        total, greedy = 0.0, True
        for at, token in enumerate(tokens[:-1]):
            logits = module.step(torch.tensor([int(token)]), state)[0].double()
            if at + 1 >= known:
                total += float(torch.log_softmax(logits, -1)[int(tokens[at + 1])])
                greedy &= int(logits.argmax()) == tokens[at + 1]
    return total, greedy


@every_kind
@pytest.mark.parametrize("batch", [1, 4])
def test_continuations_are_what_steps_give(model: bytegolf.Model, batch: int) -> None:
    asked = Likelihood(model, batch, length=512)
    found = asked.continuations(PAIRS)
    for pair, one in zip(PAIRS, found, strict=True):
        before, after = asked.pair(*pair)
        expected, greedy = by_steps(model, [*before, *after], len(before))
        assert one.log_likelihood == pytest.approx(expected, abs=2e-3)
        assert one.greedy == greedy
        assert one.tokens == len(after)
    assert found[4].log_likelihood == 0


@every_kind
def test_a_pair_keeps_every_byte(model: bytegolf.Model) -> None:
    asked = Likelihood(model)
    for context, continuation in PAIRS:
        before, after = asked.pair(context, continuation)
        assert before[0] == model.tokenizer.BOS
        whole = model.tokenizer.decode([*before[1:], *after])
        assert whole == model.tokenizer.decode(model.tokenizer.encode(context + continuation))


def test_the_likeliest_continuation_is_greedy(tiny_run: TinyRun) -> None:
    asked = Likelihood(model_of(tiny_run))
    (written,) = asked.generate(["The people"], [], 6)
    right, wrong = asked.continuations([("The people", written), ("The people", "\x01" + written[1:])])
    assert right.greedy
    assert not wrong.greedy


@pytest.mark.parametrize(("context", "continuation"), [(3, 40), (60, 40), (60, 10), (3, 12), (16, 17), (0, 33)])
def test_long_texts_are_read_in_windows_that_score_each_token_once(
    context: int, continuation: int, tiny_run: TinyRun
) -> None:
    asked = Likelihood(model_of(tiny_run), length=16)
    whole = np.random.default_rng(0).integers(4, 260, context + continuation)
    before = np.concatenate(([asked.model.tokenizer.BOS], whole[:context]))
    windows = list(asked._windows(before, whole[context:]))
    assert np.concatenate([targets for _, targets in windows]).tolist() == whole[context:].tolist()
    assert all(len(targets) <= len(inputs) <= 16 for inputs, targets in windows)
    assert len(windows[-1][0]) == min(16, context + continuation), "the last window reads all it can"
    assert len(windows) == 1 or continuation > 16
    (found,) = asked.of_tokens([(before, whole[context:])])
    expected = 0.0
    for inputs, targets in windows:
        expected += by_steps(asked.model, [*inputs, targets[-1]], len(inputs) + 1 - len(targets))[0]
    assert found.log_likelihood == pytest.approx(expected, abs=5e-3)


def test_equal_questions_are_asked_once(tiny_run: TinyRun, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, seen = Likelihood(model_of(tiny_run)), list[int]()
    real = asked.of_tokens

    def counted(pairs: list[tuple[Tokens, Tokens]]) -> list[Continuation]:
        seen.append(len(pairs))
        return real(pairs)

    monkeypatch.setattr(asked, "of_tokens", counted)
    one, two, three = asked.continuations([("a", "b"), ("c", "d"), ("a", "b")])
    assert one == three != two
    assert seen == [2]


@every_kind
@pytest.mark.parametrize("stride", [0, 48])
def test_rolling_is_evals_score(model: bytegolf.Model, stride: int) -> None:
    """A validation split of one document: the same windows, so the same BPB to 1e-6."""
    document = text(700, seed=3)
    (rolled,) = Likelihood(model).rolling([document], stride=stride)
    tokens = np.concatenate(([model.tokenizer.BOS], model.tokenizer.encode(document))).astype(np.int64)
    mode = model.mode(stride=stride, tail="score")
    scored = mode.score(model.module, MemoryStream(tokens), model.tokenizer)
    assert rolled.bpb == pytest.approx(scored.bpb, abs=1e-6)
    assert rolled.tokens == len(tokens) - 1
    assert rolled.bytes == len(model.tokenizer.decode(tokens[1:]))


def test_rolling_over_evals_own_split(tiny_run: TinyRun, tmp_path: Path) -> None:
    (tmp_path / "one.txt").write_text(text(4000, seed=5), encoding="utf-8")
    good("prepare", tmp_path / "one.txt", tmp_path / "one.txt", "--out", tmp_path / "data", "--val", "first:1")
    found = good(
        "eval", tiny_run.folder, "--data", tmp_path / "data", "--tail", "score", "--precision", "fp32", "--json"
    )
    model = model_of(tiny_run)
    stream = open_split(tmp_path / "data", "byte260", "val", 260)
    document = model.tokenizer.decode(stream.slice(1, len(stream))).decode()
    (rolled,) = Likelihood(model).rolling([document])
    assert rolled.bpb == pytest.approx(found.json["bpb"], abs=1e-6)
    assert rolled.bytes == found.json["bytes"]


def test_short_and_empty_texts(tiny_run: TinyRun) -> None:
    model = model_of(tiny_run)
    empty, short = Likelihood(model).rolling(["", "We"])
    assert (empty.nats, empty.tokens) == (0, 0)
    tokens = [model.tokenizer.BOS, *model.tokenizer.encode("We")]
    assert -short.nats == pytest.approx(by_steps(model, tokens, 1)[0], abs=1e-3)


@every_kind
def test_generation_ends_before_a_stop(model: bytegolf.Model) -> None:
    asked = Likelihood(model, batch=2)
    prompts = ["The people", "We", text(2000)]
    free = asked.generate(prompts, [], 20)
    assert [len(each.encode()) <= 20 for each in free] == [True] * 3
    stop = free[1][3:5]
    stopped = asked.generate(prompts, [stop, ""], 20)
    assert stopped[1] == free[1][: free[1].find(stop)]
    assert all(stop not in each for each in stopped)


def test_perturbations() -> None:
    some = "The quick brown fox jumps over the lazy dog. " * 40
    assert perturbed("Ants speak", "AntSpeak") == "A N T S   S P E A K"
    assert perturbed("straße", "UpperCase") == "STRASSE"
    assert perturbed(some, "") == some
    lengths = {noise: len(perturbed(some, noise)) / len(some) for noise in NOISES}
    assert lengths["Drop"] == pytest.approx(0.9, abs=0.02)
    assert lengths["Repeat"] == pytest.approx(1 + 0.2 * 2, abs=0.06)
    case = perturbed(some, "RandomCase")
    assert case.lower() == some.lower()
    assert sum(map(str.isupper, case)) / sum(map(str.isalpha, case)) == pytest.approx(0.5, abs=0.05)
    assert perturbed(some, "Drop") == perturbed(some, "Drop") != perturbed(some, "Drop", seed=1)


def test_scores_under_noise_are_those_of_the_noisy_texts(tiny_run: TinyRun) -> None:
    asked, texts = Likelihood(model_of(tiny_run)), [text(200, seed=seed) for seed in range(3)]
    found = {each.noise: each for each in noise_scores(asked, texts)}
    assert set(found) == {"", *NOISES}
    ants = found["AntSpeak"]
    scores = asked.rolling([perturbed(each, "AntSpeak") for each in texts])
    assert ants.bpb == pytest.approx(sum(one.nats for one in scores) / math.log(2) / ants.bytes)
    assert ants.bits_per_clean_byte == pytest.approx(ants.bpb * ants.bytes / found[""].bytes)
    assert ants.n == 3
    rates = [one.bpb for one in scores]
    assert min(rates) <= ants.bpb <= max(rates)
    # equal sizes make it the standard error of a mean
    assert ants.standard_error == pytest.approx(float(np.std(rates, ddof=1)) / math.sqrt(3), rel=0.3)


def test_accuracy_counts_and_says_what_chance_would_give(monkeypatch: pytest.MonkeyPatch, tiny_run: TinyRun) -> None:
    asked = Likelihood(model_of(tiny_run))
    (likely,) = asked.generate(["The people"], [], 4)
    questions = [Question("The people", (likely, "\x01\x02"), 0)] * 3 + [
        Question("The people", ("\x01", likely, "\x02"), 0)
    ]
    found = accuracy(asked, "made up", questions)
    assert (found.accuracy, found.n) == (0.75, 4)
    assert found.chance == pytest.approx((3 / 2 + 1 / 3) / 4)
    assert found.standard_error == pytest.approx(math.sqrt(0.75 * 0.25 / 3))


WORDS = ["state", "people", "country", "united", "great", "public", "citizens", "peace", "treaty", "power"]


@pytest.mark.parametrize("task", characters.TASKS)
def test_questions_about_letters_have_one_right_answer(task: str) -> None:
    found = characters.questions(task, WORDS, 8)
    assert found == characters.questions(task, WORDS, 8)
    answers: dict[str, Callable[[str], str]] = {
        "spell": lambda word: " " + " ".join(word),
        "reverse": lambda word: " " + word.split(" ")[0][::-1],
        "join": lambda word: " " + word.replace(" ", ""),
    }
    for question in found:
        *examples, last = question.context.splitlines()
        assert len(examples) == characters.SHOTS
        assert len(set(question.choices)) == len(question.choices) == (2 if task == "contains a letter" else 4)
        assert last.endswith(":")
        assert all(last not in example for example in examples)
        if task in answers:
            assert question.choices[question.answer] == answers[task](last[:-1])


def test_words_and_morphemes_are_marked() -> None:
    starts, ends = boundaries.words_in("Más vale, a bird's eye")
    assert starts.data.decode() == "Más vale, a bird's eye"
    assert starts.gold.nonzero()[0].tolist() == [5, 11, 13, 20]
    assert ends.gold.nonzero()[0].tolist() == [4, 9, 12, 19]
    assert not starts.places[0]
    marked = boundaries.morphemes_in(["un", "kind", "ness"])
    assert [marked.data[at:].decode()[:4] for at in marked.gold.nonzero()[0]] == ["kind", "ness"]
    assert int(marked.places.sum()) == len("unkindness") - 1


def test_a_perfect_and_a_blind_segmentation(monkeypatch: pytest.MonkeyPatch, tiny_run: TinyRun) -> None:
    model = model_of(tiny_run)
    texts = [text(300, seed=seed) for seed in range(6)]

    def perfect(model: bytegolf.Model, data: bytes, level: int) -> np.ndarray:
        return boundaries.words_in(data.decode())[0].gold

    def blind(model: bytegolf.Model, data: bytes, level: int) -> np.ndarray:
        return np.random.default_rng(len(data)).random(len(data)) < 0.2

    monkeypatch.setattr(boundaries, "_boundaries", perfect)
    words, ends = boundaries.matches(model, texts, [])
    assert (words.f1, words.precision, words.recall) == (1, 1, 1)
    assert words.enrichment == pytest.approx(1 / (words.n / (sum(len(each.encode()) for each in texts) - 6)))
    assert ends.f1 == 0
    monkeypatch.setattr(boundaries, "_boundaries", blind)
    words, _ = boundaries.matches(model, texts, [])
    assert words.f1 == pytest.approx(words.chance, abs=4 * (words.standard_error or 0))
    assert words.enrichment == pytest.approx(1, abs=0.25)


def test_the_verb(tiny_run: TinyRun, subword_run: TinyRun, tmp_path: Path) -> None:
    rows = [{"context": "The", "choices": [" people", " xqz", " law"], "answer": at % 3} for at in range(4)]
    rows += [{"ctx": "We", "endings": ["the people", "law", "nation", "state"], "label": "2"}]
    (tmp_path / "made up.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "parts.txt").write_text("# a comment\nconstitutions\tconstitu tion s\nun do ing\n")
    options = ("--data", tiny_run.data, "--limit", 4000, "--questions", 3, "--morphemes", tmp_path / "parts.txt")
    ran = good("bench", tiny_run.folder, subword_run.folder, *options, "--json")
    one, two = ran.json["models"]
    assert [each["noise"] for each in one["noise"]] == ["", *NOISES]
    assert [each["task"] for each in one["characters"]] == list(characters.TASKS)
    assert {each["gold"] for each in one["boundaries"]} == {"words", "word ends", "morphemes"}
    assert one["noise"][0]["n"] == two["noise"][0]["n"] > 1
    assert "chance" in ran.err
    ran = good(
        "bench", tiny_run.folder, "--data", tiny_run.data, "--file", tmp_path / "made up.jsonl", "--noise", "--json"
    )
    (found,) = ran.json["models"]
    assert [each["noise"] for each in found["choices"]] == ["", *NOISES]
    assert found["choices"][0]["n"] == 5
    assert found["noise"] == []


def test_what_is_refused(tiny_run: TinyRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bad = tmp_path / "bad.jsonl"
    for line in (
        "{",
        "[]",
        '{"context": "a", "choices": ["b"], "answer": 0}',
        '{"context": 1, "choices": ["a", "b"], "answer": 5}',
    ):
        bad.write_text(line)
        assert "bad.jsonl, line 1" in refused("bench", tiny_run.folder, "--file", bad)
    bad.write_text("\n")
    assert "no questions" in refused("bench", tiny_run.folder, "--file", bad)
    assert "name a model" in refused("bench")
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    monkeypatch.delitem(sys.modules, "bytegolf.tools.bench.lm_eval", raising=False)
    assert "[bench]'" in refused("bench", tiny_run.folder, "--task", "hellaswag")
