"""Multiple-choice questions by log-likelihood, from local files: the likeliest choice is the answer."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bytegolf.errors import BytegolfError
from bytegolf.files import parse_json, read_input
from bytegolf.tools.bench.likelihood import Likelihood
from bytegolf.tools.bench.noise import perturbed
from bytegolf.tools.bench.results import Accuracy


@dataclass(frozen=True)
class Question:
    """A context, what may follow it (spaces included), and the place of what does."""

    context: str
    choices: tuple[str, ...]
    answer: int


def accuracy(asked: Likelihood, task: str, questions: Sequence[Question], noise: str = "", seed: int = 0) -> Accuracy:
    """The share of questions that a model answers right; ``noise`` perturbs contexts and choices alike.

    Of choices that are equally likely the first counts.
    """
    pairs = [
        (perturbed(question.context, noise, seed), perturbed(choice, noise, seed))
        for question in questions
        for choice in question.choices
    ]
    found = iter(zip(asked.continuations(pairs), (len(choice.encode()) for _, choice in pairs), strict=True))
    right = per_byte = 0
    for question in questions:
        scores = list(itertools.islice(found, len(question.choices)))
        right += _best([each.log_likelihood for each, _ in scores]) == question.answer
        per_byte += _best([each.log_likelihood / max(1, size) for each, size in scores]) == question.answer
    n = len(questions)
    share = right / n
    error = math.sqrt(share * (1 - share) / (n - 1)) if n > 1 else 0.0
    chance = sum(1 / len(question.choices) for question in questions) / n
    return Accuracy(task, noise, share, per_byte / n, chance, n, error)


def _best(scores: Sequence[float]) -> int:
    return max(range(len(scores)), key=lambda at: scores[at])


def read_questions(path: Path, limit: int = 0) -> list[Question]:
    """The questions of a file of JSON lines, as far as ``limit`` (0: all).

    A line is ``{"context": …, "choices": [two or more], "answer": number}``; or of HellaSwag's form, ``{"ctx": …,
    "endings": [four], "label": number}``, whose endings follow behind a space.

    Raises BytegolfError for a file without questions, or a line of another form.
    """
    questions: list[Question] = []
    for number, line in enumerate(read_input(path).splitlines(), 1):
        if line.strip() and (not limit or len(questions) < limit):
            questions.append(_question(line, f"{path}, line {number}"))
    if not questions:
        raise BytegolfError(f"{path} holds no questions: give JSON lines with context, choices and answer")
    return questions


def _question(line: bytes, where: str) -> Question:
    try:
        raw: Any = parse_json(line)
    except ValueError:
        raw = None
    if isinstance(raw, dict) and "endings" in raw:
        endings = raw["endings"] if isinstance(raw["endings"], list) else []
        raw = {"context": raw.get("ctx"), "choices": [f" {one}" for one in endings], "answer": raw.get("label")}
    try:
        context, choices, answer = raw["context"], tuple(raw["choices"]), int(raw["answer"])
    except (KeyError, TypeError, ValueError):
        choices, context, answer = (), None, -1
    texts = isinstance(context, str) and all(isinstance(choice, str) for choice in choices)
    if not texts or len(choices) < 2 or not 0 <= answer < len(choices):
        raise BytegolfError(
            f"{where} is no question: give an object with context (a text), choices (two texts or more) and "
            "answer (the right one's place, from 0)"
        )
    return Question(context, choices, answer)
