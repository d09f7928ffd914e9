"""BPB under noise, by the five perturbations of H-Net's robustness table (arXiv 2507.07955), which takes them from
BLT's (arXiv 2412.09871, section 5.2): shares and limits are the latter's.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence

import numpy as np

from bytegolf.bpb import Score
from bytegolf.tools.bench.likelihood import Likelihood
from bytegolf.tools.bench.results import NoisyScore

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
