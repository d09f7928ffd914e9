"""A wrong command line in one sentence."""

from __future__ import annotations

import difflib
import re
import sys
from collections.abc import Iterable

from cyclopts import (
    App,
    ArgumentCollection,
    CycloptsError,
    MissingArgumentError,
    UnknownOptionError,
    UnusedCliTokensError,
)
from cyclopts.exceptions import UnknownCommandError

from bytegolf.errors import BytegolfError, listed

_OPTION = re.compile(r"--?[A-Za-z][\w-]*(=.*)?", re.DOTALL)
"""What looks like an option; "- milk", "-5 degrees" and "--" are texts."""


def usage(error: CycloptsError) -> str:
    """What is wrong, and where to read more."""
    chain = [token for token in error.command_chain or () if token]
    return f"{_said(error)} (see `{' '.join(['bytegolf', *chain])} --help`)"


def no_empty_paths(app: App, commands: tuple[str, ...], arguments: ArgumentCollection) -> None:
    """Refuse a path of no characters: ``--out "$UNSET"`` means no folder, and ``Path("")`` is the current one."""
    for argument in arguments:
        names_paths = "Path" in str(argument.hint) or argument.name == "SOURCES"  # `prepare` takes named corpora, too
        if names_paths and any(token.value == "" for token in argument.tokens):
            raise BytegolfError(f"{argument.name} is empty: name a path, or . for the folder that you are in")


def _said(error: CycloptsError) -> str:
    if isinstance(error, UnknownCommandError) and error.unused_tokens:
        given, verbs = error.unused_tokens[0], error.app
        by_app: dict[int, str] = {}  # an alias is a second name of the same
        for name in verbs or ():
            if verbs is not None and not name.startswith("-"):
                by_app.setdefault(id(verbs[name]), name)
        own = list(by_app.values())
        return f"there is no verb {given!r}{_close(given, own)}: give {listed(sorted(own))}"
    if isinstance(error, UnusedCliTokensError) and error.unused_tokens:
        return f"unexpected argument {error.unused_tokens[0]!r}"
    if isinstance(error, UnknownOptionError):
        given = error.token.keyword or error.token.value
        if not _OPTION.fullmatch(given):
            return f"{given!r} begins with a dash, as options do: put -- before the texts and files, behind all options"
        name = given.partition("=")[0]
        known = [name for argument in error.argument_collection for name in argument.names]
        return f"there is no option {name}{_close(name, known)}"
    if isinstance(error, MissingArgumentError) and error.argument is not None:
        name = error.argument.name
        if name in sys.argv[1:]:
            return f"{name} needs a value (one that begins with a dash is given as {name}=-…)"
        return f"{name} is missing"
    return str(error).strip().splitlines()[0].rstrip(".")


def _close(given: str, known: Iterable[str]) -> str:
    found = difflib.get_close_matches(given, list(known), 1)
    return f" (did you mean {found[0]}?)" if found else ""
