"""`bytegolf bench`: the benchmarks that were asked for, model after model, over the same texts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bytegolf.api.model import Model, load
from bytegolf.data.dataset import open_split
from bytegolf.errors import BytegolfError
from bytegolf.progress import Teller
from bytegolf.tools.bench.boundaries import matches, read_morphemes
from bytegolf.tools.bench.characters import character_tasks, words_of
from bytegolf.tools.bench.likelihood import NOISES, Likelihood, accuracy, noise_scores, read_questions
from bytegolf.tools.bench.results import Accuracy, BenchmarkResult, Benchmarks

OWN = ("noise", "characters", "boundaries")
"""Tasks that need neither a network nor lm-eval."""

PASSAGE = 1024
"""Bytes of a passage, about."""

LEAST_WORDS = 8


@dataclass(frozen=True)
class Wanted:
    """What is to be asked."""

    tasks: Sequence[str] = OWN
    """of ``OWN``, or lm-eval's"""
    files: Sequence[Path] = ()
    """of questions (``likelihood.read_questions``)"""
    noise: bool = False
    """ask questions, and lm-eval's tasks, under each perturbation as well"""
    limit: int = 32_768
    """bytes of validation text"""
    questions: int = 100
    """of each task; 0 = all there are"""
    morphemes: Path | None = None
    """a file of words and their parts; None: the package's"""
    include: Sequence[Path] = ()
    """folders of lm-eval tasks"""
    batch: int = 16
    length: int = 0
    """tokens of a window; 0 = as in training"""
    seed: int = 0


def bench(sources: Sequence[Path], data: Path | None, wanted: Wanted, device: str, reporter: Teller) -> BenchmarkResult:
    """Ask every model the same: the texts are those of the first one's validation split.

    Raises BytegolfError without such a split where a task needs one, for files that hold no questions, and for tasks of
    lm-eval where it is not installed.
    """
    models = [load(source, data=data, device=device) for source in sources]
    theirs = [task for task in wanted.tasks if task not in OWN]
    if theirs:
        import bytegolf.tools.bench.lm_eval  # noqa: F401  (says what to install before anything is worked out)
    files = {path: read_questions(path, wanted.questions) for path in wanted.files}
    texts = passages(models[0], data, wanted.limit) if len(theirs) < len(wanted.tasks) else []
    words = words_of(" ".join(texts)) if "characters" in wanted.tasks else []
    if "characters" in wanted.tasks and len(words) < LEAST_WORDS:
        raise BytegolfError(
            f"the text has only {len(words)} words of 4 to 8 letters: raise --limit, or leave characters out"
        )
    parts = read_morphemes(wanted.morphemes) if "boundaries" in wanted.tasks else []
    found = []
    for source, model in zip(sources, models, strict=True):
        asked = Likelihood(model, wanted.batch, wanted.length)
        noises = ("", *NOISES) if wanted.noise else ("",)

        def tell(what: str, source: Path = source) -> bool:
            reporter.progress(f"{source} · {what}")
            return True

        choices: list[Accuracy] = []
        for path, questions in files.items():
            choices += [
                accuracy(asked, path.stem, questions, noise, wanted.seed) for noise in noises if tell(path.name)
            ]
        harness = {}
        if theirs and tell(", ".join(theirs)):
            harness = _harness(model, theirs, wanted, noises)
        count = wanted.questions or len(words)
        found.append(
            Benchmarks(
                model=str(source),
                artifact_sha256=model.sha256,
                tokenizer=model.tokenizer.name,
                params=model.parameters,
                noise=noise_scores(asked, texts, wanted.seed) if "noise" in wanted.tasks and tell("noise") else [],
                characters=character_tasks(asked, words, count, wanted.seed) if words and tell("characters") else [],
                boundaries=matches(model, texts, parts) if parts and tell("boundaries") else [],
                choices=choices,
                harness=harness,
            )
        )
    return BenchmarkResult(found)


def _harness(
    model: Model, tasks: Sequence[str], wanted: Wanted, noises: Sequence[str]
) -> dict[str, dict[str, float | int | str]]:
    from bytegolf.tools.bench.lm_eval import evaluate

    settings = {"folders": wanted.include, "limit": wanted.questions, "batch": wanted.batch, "length": wanted.length}
    found = {}
    for noise in noises:
        for task, figures in evaluate(model, tasks, noise=noise, **settings).items():  # type: ignore[arg-type]
            found[f"{task} ({noise})" if noise else task] = figures
    return found


def passages(model: Model, data: Path | None, limit: int) -> list[str]:
    """Passages of the validation split of about a kilobyte, whole paragraphs where these are shorter.

    They are spread evenly over the split, ``limit`` bytes in all (0: the split).
    """
    tokenizer = model.tokenizer
    folder = data or model.data
    if folder is None:
        raise BytegolfError(
            f"the data of {model.path} is not there: name a folder made by `bytegolf prepare` with --data"
        )
    stream = open_split(folder, tokenizer.name, "val", tokenizer.vocab_size)
    ids = stream.slice(0, len(stream))
    every = [
        passage
        for document in np.split(ids, np.flatnonzero(ids == tokenizer.BOS))
        for passage in _cut(tokenizer.decode(document).decode("utf-8", errors="ignore"))
    ]
    size = sum(len(passage.encode()) for passage in every)
    count = max(2, round(len(every) * min(1.0, limit / size))) if limit and size else len(every)
    if not every:
        return []
    places: NDArray[np.int64] = np.unique(
        np.linspace(0, len(every) - 1, min(count, len(every))).round().astype(np.int64)
    )
    return [every[at] for at in places]


def _cut(text: str) -> Iterator[str]:
    """A document's paragraphs, put together up to ``PASSAGE`` characters; longer ones are cut at a space."""
    held = ""
    for paragraph in text.splitlines(keepends=True):
        while len(paragraph) > PASSAGE:
            at = paragraph.rfind(" ", 0, PASSAGE) + 1 or PASSAGE
            held, paragraph = held + paragraph[:at], paragraph[at:]
            yield held
            held = ""
        if held and len(held) + len(paragraph) > PASSAGE:
            yield held
            held = ""
        held += paragraph
    if held.strip():
        yield held
