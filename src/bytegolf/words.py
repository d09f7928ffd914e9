"""Numbers in sentences."""

from __future__ import annotations

from collections.abc import Sequence


def counted(number: float, word: str, plural: str = "") -> str:
    """A number with its noun, in the plural unless there is one of it.

    >>> counted(1, "run"), counted(1200, "byte"), counted(2, "match", "matches")
    ('1 run', '1,200 bytes', '2 matches')
    """
    return f"{number:,} {word if number == 1 else plural or f'{word}s'}"


def listed(words: Sequence[str]) -> str:
    """Words as a sentence has them.

    >>> listed(["77"]), listed(["77", "78"]), listed(["77", "78", "79"])
    ('77', '77 and 78', '77, 78 and 79')
    """
    return " and ".join(filter(None, (", ".join(words[:-1]), *words[-1:])))
