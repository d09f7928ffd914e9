"""The one exception that bad input raises, and how sentences for people are written."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

MOST_CHARACTERS = 1000
"""Of a sentence: it may quote what a stranger's file holds."""


class BytegolfError(Exception):
    """Bad input, said in one sentence: what was wrong, where, and what to do about it.

    The command line prints the sentence and exits with 2, without a traceback. Anything else that escapes is a bug.
    """

    def __init__(self, sentence: str) -> None:
        super().__init__(presentable(sentence))


def presentable(sentence: str) -> str:
    """``sentence`` in one line and of bounded length, with escapes for what a terminal would obey or cannot show.

    >>> presentable("no key a\\nb\\x1b[2J")
    'no key a b\\\\x1b[2J'
    """
    sentence = _shortened(sentence)
    if sentence.isprintable():
        return sentence
    plain = "".join(" " if char in "\t\n\r" else char for char in sentence)
    return _shortened(shown(plain))  # an escape is up to ten characters


def shown(text: str) -> str:
    r"""``text`` with escapes for what a terminal would obey or cannot show: a name as people can read it, in one line.

    Bytes of a file's name that are no UTF-8, which Python holds as lone surrogates, are shown as those bytes.

    >>> print(shown("a\nb\x1b[2J caf\udce9.txt"))
    a\nb\x1b[2J caf\xe9.txt
    """
    return text if text.isprintable() else "".join(map(_escaped, text))


def _escaped(char: str) -> str:
    if char.isprintable():
        return char
    if "\udc80" <= char <= "\udcff":
        return f"\\x{ord(char) - 0xDC00:02x}"
    return char.encode("unicode_escape").decode("ascii")


def _shortened(sentence: str) -> str:
    if len(sentence) <= MOST_CHARACTERS:
        return sentence
    half = MOST_CHARACTERS // 2 - 2
    return f"{sentence[:half]} … {sentence[-half:]}"


def counted(number: float, word: str, plural: str = "") -> str:
    """A number with its noun, in the plural unless there is one of it.

    >>> counted(1, "run"), counted(1200, "byte"), counted(2, "match", "matches")
    ('1 run', '1,200 bytes', '2 matches')
    """
    return f"{number:,} {word if number == 1 else plural or f'{word}s'}"


def sized(size: float) -> str:
    """So many bytes, in the unit that fits.

    >>> sized(0), sized(57), sized(4_200), sized(12_345_678), sized(2.5e9)
    ('0 bytes', '57 bytes', '4.2 kB', '12.3 MB', '2.5 GB')
    """
    for unit, name in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if size >= unit:
            return f"{size / unit:.1f} {name}"
    return counted(round(size), "byte")


def listed(words: Sequence[str]) -> str:
    """Words as a sentence has them.

    >>> listed(["77"]), listed(["77", "78"]), listed(["77", "78", "79"])
    ('77', '77 and 78', '77, 78 and 79')
    """
    return " and ".join(filter(None, (", ".join(words[:-1]), *words[-1:])))


def install(extra: str) -> str:
    """The command that installs what an extra of the package needs: of a checkout's own, where this is one."""
    root = Path(__file__).parents[2]
    checkout = Path(__file__).parents[1].name == "src" and (root / "pyproject.toml").is_file()
    return f"pip install -e '{root}[{extra}]'" if checkout else f"pip install 'bytegolf[{extra}]'"
