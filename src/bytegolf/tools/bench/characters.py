"""Tasks about letters by log-likelihood, after CUTE (arXiv 2409.15452): spelling, and what a letter changes.

CUTE asks models that follow instructions; here a model of any size continues a list of four worked examples, and the
right answer competes with three that differ from it in a letter or in their order. Words come from a text.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Callable, Sequence

from bytegolf.tools.bench.likelihood import Likelihood, Question, accuracy
from bytegolf.tools.bench.results import Accuracy

SHOTS, CHOICES = 4, 4
LETTERS = "abcdefghijklmnopqrstuvwxyz"
SHORTEST, LONGEST, WORDS = 4, 8, 2000

Made = tuple[str, str, Callable[[random.Random], str]]
"""the question about a word, its answer, and what draws a wrong one"""


def words_of(text: str) -> list[str]:
    """The most frequent words of 4 to 8 letters in a text, with letters that differ."""
    counts = Counter(re.findall(rf"\b[a-z]{{{SHORTEST},{LONGEST}}}\b", text.lower()))
    return [word for word, _ in counts.most_common(WORDS) if len(set(word)) > 2]


def _mutated(word: str, draw: random.Random) -> str:
    """The word with two letters exchanged, or with another letter: never itself."""
    while True:
        letters = list(word)
        if draw.random() < 0.5:
            one, two = draw.sample(range(len(letters)), 2)
            letters[one], letters[two] = letters[two], letters[one]
        else:
            letters[draw.randrange(len(letters))] = draw.choice(LETTERS)
        if (found := "".join(letters)) != word:
            return found


def _spaced(word: str) -> str:
    return " ".join(word)


def _spelling(word: str, draw: random.Random) -> Made:
    return f"{word}:", f" {_spaced(word)}", lambda more: f" {_spaced(_mutated(word, more))}"


def _joining(word: str, draw: random.Random) -> Made:
    return f"{_spaced(word)}:", f" {word}", lambda more: f" {_mutated(word, more)}"


def _reversing(word: str, draw: random.Random) -> Made:
    return f"{word} backwards:", f" {word[::-1]}", lambda more: f" {_mutated(word[::-1], more)}"


def _changed(word: str, question: str, answer: str) -> Made:
    return f"{word}, {question}:", f" {answer}", lambda more: f" {_mutated(answer, more)}"


def _deleting(word: str, draw: random.Random) -> Made:
    letter = draw.choice(word)
    return _changed(word, f"without {letter}", word.replace(letter, ""))


def _inserting(word: str, draw: random.Random) -> Made:
    letter, at = draw.choice(word), draw.choice(LETTERS)
    return _changed(word, f"{at} after {letter}", word.replace(letter, letter + at))


def _substituting(word: str, draw: random.Random) -> Made:
    letter, other = draw.choice(word), draw.choice(LETTERS)
    return _changed(word, f"{other} for {letter}", word.replace(letter, other))


def _swapping(word: str, draw: random.Random) -> Made:
    one, two = draw.sample(sorted(set(word)), 2)
    return _changed(word, f"{one} and {two} swapped", word.translate(str.maketrans(one + two, two + one)))


def _containing(word: str, draw: random.Random) -> Made:
    there = draw.random() < 0.5
    letter = draw.choice(word) if there else draw.choice(sorted(set(LETTERS) - set(word)))
    return f"{letter} in {word}:", " yes" if there else " no", lambda more: " no" if there else " yes"


TASKS: dict[str, Callable[[str, random.Random], Made]] = {
    "spell": _spelling,
    "join": _joining,
    "reverse": _reversing,
    "delete a letter": _deleting,
    "insert a letter": _inserting,
    "substitute a letter": _substituting,
    "swap letters": _swapping,
    "contains a letter": _containing,
}


def questions(task: str, words: Sequence[str], count: int, seed: int = 0) -> list[Question]:
    """``count`` questions, or as many as there are words: each behind four worked examples with other words.

    >>> questions("spell", ["cats", "dogs", "birds", "goats", "snail"], 1)[0].context.splitlines()[-1].count(":")
    1
    """
    make, draw = TASKS[task], random.Random(f"{seed} {task}")
    found = []
    for word in draw.sample(list(words), min(count, len(words))):
        shown = draw.sample([other for other in words if other != word], min(SHOTS, len(words) - 1))
        examples = [make(other, draw)[:2] for other in shown]
        question, answer, wrong = make(word, draw)
        choices = [answer]
        tries = 0
        while len(choices) < CHOICES and tries < 50:  # yes and no are two
            tries += 1
            if (other := wrong(draw)) not in choices:
                choices.append(other)
        draw.shuffle(choices)
        context = "".join(f"{asked}{told}\n" for asked, told in examples) + question
        found.append(Question(context, tuple(choices), choices.index(answer)))
    return found


def character_tasks(asked: Likelihood, words: Sequence[str], count: int, seed: int = 0) -> list[Accuracy]:
    """Every task over ``words``, ``count`` questions each."""
    return [accuracy(asked, task, questions(task, words, count, seed)) for task in TASKS]
