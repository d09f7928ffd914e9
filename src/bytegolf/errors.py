"""The one exception that bad input raises."""


class BytegolfError(Exception):
    """Bad input, said in one sentence: what was wrong, where, and what to do about it.

    The command line prints the sentence and exits with 2, without a traceback. Anything else that escapes is a bug.
    """
