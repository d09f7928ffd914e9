"""The one exception that bad input raises."""

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
    shown = (
        char if char.isprintable() else " " if char in "\t\n\r" else char.encode("unicode_escape").decode("ascii")
        for char in sentence
    )
    return _shortened("".join(shown))  # an escape is up to ten characters


def _shortened(sentence: str) -> str:
    if len(sentence) <= MOST_CHARACTERS:
        return sentence
    half = MOST_CHARACTERS // 2 - 2
    return f"{sentence[:half]} … {sentence[-half:]}"
