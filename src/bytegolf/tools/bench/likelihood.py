"""Log-likelihoods of texts, in batches: continuations, whole texts, multiple-choice questions, BPB under noise.

A context is read behind a BOS. Where both do not fit into a window of L tokens, the context loses its beginning. A
continuation that by itself is longer than a window is read in several, which score each of its tokens once:

    L = 4, context ^ a (^ is BOS), continuation b c d e f g h
    reads   ^ a b c      scores   b c d      as much as fits behind the context
            d e f g      scores   e f g h    the next L; the last window ends with the text and so reads all it can

Legend: L tokens of a window.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from bytegolf.api.model import Model
from bytegolf.bpb import Score
from bytegolf.data.tokenizer import ByteTokenizer
from bytegolf.errors import BytegolfError
from bytegolf.evaluate.modes import MemoryStream
from bytegolf.files import parse_json, read_input
from bytegolf.tools.bench.results import Accuracy, NoisyScore

# ------------------------------------------------------------------------------------------------------ multiple choice


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


# ------------------------------------------------------------------------------------------------------ log-likelihoods


Tokens = NDArray[np.int64]


class Continuation(NamedTuple):
    """What a model makes of a text behind another."""

    log_likelihood: float
    """nats"""
    greedy: bool
    """whether each token is the likeliest"""
    tokens: int


@dataclass(frozen=True)
class _Piece:
    """A forward pass of one text: the tokens that it reads, of which the last ones are followed by ``targets``."""

    text: int
    inputs: Tokens
    targets: Tokens


class Likelihood:
    """Asks a model. ``batch`` texts go through it at once, of similar lengths; equal questions are asked once."""

    def __init__(self, model: Model, batch: int = 16, length: int = 0) -> None:
        """``length`` is how many tokens a window reads; 0: as many as in training.

        Raises BytegolfError for a batch below 1 or a length below 2.
        """
        if batch < 1 or length < 0 or length == 1:
            raise BytegolfError(f"batch {batch} and length {length}: give a batch of 1 or more, and 2 or more tokens")
        self.model, self.batch = model, batch
        self.length = length or model.config.train.seq_len

    # ------------------------------------------------------------------------------------------ continuations

    def pair(self, context: str, continuation: str) -> tuple[Tokens, Tokens]:
        """The tokens of a context, BOS first, and of what follows it.

        Subwords are those of the whole text, less those of the context by itself; spaces at the context's end belong to
        what follows, as pieces begin with theirs. Bytes are bytes.
        """
        tokenizer = self.model.tokenizer
        bos = np.array([tokenizer.BOS], np.int64)
        if isinstance(tokenizer, ByteTokenizer):
            before, after = (tokenizer.encode(text).astype(np.int64) for text in (context, continuation))
            return np.concatenate((bos, before)), after
        stripped = context.rstrip(" ")
        whole = tokenizer.encode(context + continuation).astype(np.int64)
        count = len(tokenizer.encode(stripped)) if stripped else 0
        return np.concatenate((bos, whole[:count])), whole[count:]

    def continuations(self, pairs: Sequence[tuple[str, str]]) -> list[Continuation]:
        """Of each (context, continuation), in their order; an empty continuation has the log-likelihood 0."""
        distinct = list(dict.fromkeys(pairs))
        found = dict(zip(distinct, self.of_tokens([self.pair(*each) for each in distinct]), strict=True))
        return [found[each] for each in pairs]

    def of_tokens(self, pairs: Sequence[tuple[Tokens, Tokens]]) -> list[Continuation]:
        """The same for tokens; a context has one at least."""
        pieces = [_Piece(at, *each) for at, pair in enumerate(pairs) for each in self._windows(*pair)]
        pieces.sort(key=lambda piece: (-len(piece.inputs), piece.text))
        nats, greedy = np.zeros(len(pairs)), np.ones(len(pairs), np.bool_)
        with self.model.module.capacity("exact"):  # a fixed one is a share of a window that is full
            for start in range(0, len(pieces), self.batch):
                some = pieces[start : start + self.batch]
                for piece, (loss, likeliest) in zip(some, self._scores(some), strict=True):
                    nats[piece.text] += loss
                    greedy[piece.text] &= likeliest
        sizes = [len(after) for _, after in pairs]
        return [Continuation(*each) for each in zip((-nats).tolist(), greedy.tolist(), sizes, strict=True)]

    def _windows(self, before: Tokens, after: Tokens) -> Iterator[tuple[Tokens, Tokens]]:
        """Inputs and targets of each window."""
        whole, done = np.concatenate((before, after)), len(before)
        size = len(whole)
        while done < size:
            if len(after) <= self.length:
                end = size
            elif done == len(before):  # a long context keeps half of the first window
                end = max(self.length + 1, done + self.length // 2)
            else:
                end = min(size, done + self.length)
            yield whole[max(0, end - 1 - self.length) : end - 1], whole[done:end]
            done = end

    @torch.inference_mode()
    def _scores(self, pieces: Sequence[_Piece]) -> list[tuple[float, bool]]:
        """The nats of each piece's targets, and whether all of them are the likeliest."""
        module, device = self.model.module, self.model.device
        ids = np.full((len(pieces), max(len(piece.inputs) for piece in pieces)), self.model.tokenizer.PAD, np.int64)
        for row, piece in enumerate(pieces):
            ids[row, : len(piece.inputs)] = piece.inputs  # padding comes last, where nothing before it looks
        logits = module.cap(module(torch.from_numpy(ids).to(device)).logits)
        found = []
        for row, piece in enumerate(pieces):
            end = len(piece.inputs)
            log_probs = torch.log_softmax(logits[row, end - len(piece.targets) : end].double(), -1)
            targets = torch.from_numpy(piece.targets).to(device)
            nats = -log_probs.gather(1, targets.unsqueeze(1)).sum()
            found.append((float(nats), bool((log_probs.argmax(1) == targets).all())))
        return found

    # ------------------------------------------------------------------------------------------ whole texts

    def rolling(self, texts: Iterable[str], **mode: Any) -> list[Score]:
        """The score of each text by itself, behind a BOS: every token once, none dropped.

        ``mode`` are changes of the mode in which the model is evaluated (``ScoringMode``: stride, capacity, …). A text
        that fits into one window is read in one; the last window of a longer one ends with the text.
        """
        return [self._rolling(text, mode) for text in texts]

    def _rolling(self, text: str, changes: dict[str, Any]) -> Score:
        tokenizer = self.model.tokenizer
        tokens = np.concatenate(([tokenizer.BOS], tokenizer.encode(text))).astype(np.int64)
        if len(tokens) == 1:
            return Score()
        mode = self.model.mode(**{"seq_len": self.length, "tail": "score", **changes})
        size = min(mode.seq_len, len(tokens) - 1)
        mode = self.model.mode(**{**vars(mode), "seq_len": size, "stride": min(mode.stride, size)})
        return mode.score(self.model.module, MemoryStream(tokens), tokenizer)

    # ------------------------------------------------------------------------------------------ generation

    def generate(
        self, prompts: Sequence[str], until: Sequence[str], size: int, temperature: float = 0.0, top_p: float = 1.0
    ) -> list[str]:
        """A continuation of each prompt of up to ``size`` bytes, which ends before the first of ``until``.

        A prompt that would not leave ``size`` tokens of a window loses its beginning.
        """
        found: list[str] = []
        for start in range(0, len(prompts), self.batch):
            some = [self._fitting(prompt, size) for prompt in prompts[start : start + self.batch]]
            found += self._generate(some, [stop for stop in until if stop], size, temperature, top_p)
        return found

    def _fitting(self, prompt: str, size: int) -> str:
        room = max(1, self.length - size - 1)
        if len(self.model.tokenizer.encode(prompt)) <= room:
            return prompt
        if isinstance(self.model.tokenizer, ByteTokenizer):
            return prompt.encode()[-room:].decode(errors="ignore")
        while len(self.model.tokenizer.encode(prompt)) > room:
            prompt = prompt[math.ceil(len(prompt) / 64) :]
        return prompt

    def _generate(
        self, prompts: Sequence[str], until: Sequence[str], size: int, temperature: float, top_p: float
    ) -> list[str]:
        texts, stopped = [b""] * len(prompts), [False] * len(prompts)
        stops = [stop.encode() for stop in until]
        drawn = self.model.generate_bytes(prompts, range(len(prompts)), size, temperature, top_p)
        for at, piece in drawn:
            if not stopped[at]:
                texts[at] += piece
                hits = [where for stop in stops if (where := texts[at].find(stop)) >= 0]
                if hits:
                    texts[at], stopped[at] = texts[at][: min(hits)], True
                    if all(stopped):
                        break
        return [text.decode(errors="ignore") for text in texts]


# ---------------------------------------------------------------------------------------------------------------- noise


DROPPED, UPPER, REPEATED, MOST = 0.1, 0.5, 0.2, 4


def _antspeak(text: str, draw: random.Random) -> str:
    return " ".join(text.upper())


def _drop(text: str, draw: random.Random) -> str:
    return "".join(letter for letter in text if draw.random() >= DROPPED)


def _random_case(text: str, draw: random.Random) -> str:
    return "".join(letter.upper() if draw.random() < UPPER else letter.lower() for letter in text)


def _repeat(text: str, draw: random.Random) -> str:
    return "".join(letter * (draw.randint(2, MOST) if draw.random() < REPEATED else 1) for letter in text)


def _upper(text: str, draw: random.Random) -> str:
    return text.upper()


NOISES: dict[str, Callable[[str, random.Random], str]] = {
    "AntSpeak": _antspeak,
    "Drop": _drop,
    "RandomCase": _random_case,
    "Repeat": _repeat,
    "UpperCase": _upper,
}


def perturbed(text: str, noise: str, seed: int = 0) -> str:
    """``text`` under a perturbation; "" leaves it. What is drawn follows from text and seed alone.

    AntSpeak: capitals with spaces between; Drop: a tenth of the characters are left out; RandomCase: half of them are
    capitals; Repeat: a fifth of them come two to four times; UpperCase: capitals.

    >>> perturbed("Ants speak", "AntSpeak")
    'A N T S   S P E A K'
    """
    return NOISES[noise](text, random.Random(f"{seed} {noise} {text}")) if noise else text


def noise_scores(asked: Likelihood, texts: Sequence[str], seed: int = 0) -> list[NoisyScore]:
    """The BPB of ``texts``, each a document by itself: clean, and under each perturbation."""
    clean = sum(len(text.encode()) for text in texts)
    found = []
    for noise in ("", *NOISES):
        scores = asked.rolling([perturbed(text, noise, seed) for text in texts])
        total = sum(scores, Score())
        bits = total.bpb * total.bytes
        found.append(NoisyScore(noise, total.bpb, bits / clean, 8.0, len(scores), total.bytes, _ratio_error(scores)))
    return found


def _ratio_error(scores: Sequence[Score]) -> float:
    """The standard error of Σ bits / Σ bytes over documents (the delta method: of the residuals bits − bpb·bytes)."""
    if len(scores) < 2:
        return 0.0
    bits = np.array([score.nats for score in scores]) / math.log(2)
    size = np.array([score.bytes for score in scores])
    residuals = bits - bits.sum() / size.sum() * size
    return float(np.sqrt(len(scores) * residuals.var(ddof=1)) / size.sum())
