"""What the verbs share: the app itself, common options, how results are shown, what is wrong with a command line."""

from __future__ import annotations

import builtins
import difflib
import importlib
import os
import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, Any, TextIO, TypeVar

from cyclopts import (
    App,
    ArgumentCollection,
    CoercionError,
    CycloptsError,
    Group,
    MissingArgumentError,
    Parameter,
    UnknownOptionError,
    UnusedCliTokensError,
    ValidationError,
    validators,
)
from cyclopts.exceptions import UnknownCommandError

from bytegolf.cli.version import version
from bytegolf.console import PlainConsole
from bytegolf.errors import BytegolfError, listed
from bytegolf.files import STDIN, json_line, piped_input, read_input
from bytegolf.results import describe, to_json

# ------------------------------------------------------------------------------------------------- a wrong command line


_OPTION = re.compile(r"--?[A-Za-z][\w-]*(=.*)?", re.DOTALL)
"""What looks like an option; "- milk", "-5 degrees" and "--" are texts."""


def usage(error: CycloptsError) -> str:
    """What is wrong, and where to read more."""
    chain = [token for token in error.command_chain or () if token]
    return f"{_mistake(error)} (see `{' '.join(['bytegolf', *chain])} --help`)"


def no_surprises(app: App, commands: tuple[str, ...], arguments: ArgumentCollection) -> None:
    """Refuse what would be taken for something else.

    A path of no characters: ``--out "$UNSET"`` means no folder, and ``Path("")`` is the current one. A fraction where a
    whole number is asked for: ``--limit 0.5`` would be rounded to 0, which means all.
    """
    for argument in arguments:
        for token in argument.tokens if "int" in str(argument.hint) else ():
            if "." in token.value:
                raise BytegolfError(f"{argument.name} is {token.value}: give a whole number")
        names_paths = "Path" in str(argument.hint) or argument.name == "SOURCES"  # `prepare` takes named corpora, too
        if names_paths and any(token.value == "" for token in argument.tokens):
            raise BytegolfError(f"{argument.name} is empty: name a path, or . for the folder that you are in")


def _mistake(error: CycloptsError) -> str:
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
    if isinstance(error, ValidationError) and error.argument is not None and error.argument.tokens:
        rule = error.exception_message.removeprefix("Must be ").rstrip(".")  # ">= 1"
        return f"{error.argument.name} is {error.argument.tokens[0].value}: give a number {rule}"
    if isinstance(error, CoercionError) and error.token is not None and error.argument is not None:
        kinds = {"int": "a whole number", "float": "a number", "bool": "true or false"}
        wanted = kinds.get(getattr(error.target_type, "__name__", ""))
        if choices := error.argument.get_choices():
            wanted = f"one of {', '.join(choices)}"
        if wanted:
            return f"{error.argument.name} is {error.token.value!r}: give {wanted}"
    return str(error).strip().splitlines()[0].rstrip(".")


def _close(given: str, known: Iterable[str]) -> str:
    found = difflib.get_close_matches(given, list(known), 1)
    return f" (did you mean {found[0]}?)" if found else ""


HELP = """\
Train, score, look into and ship byte-level H-Nets: language models that read
bytes and find their own chunks.

A first result in two minutes, on a CPU:

  bytegolf prepare --out data/default
  bytegolf train cpu-demo train.max_seconds=60 --out runs/first
  bytegolf segment runs/first "The quick brown fox jumps over the lazy dog."

`bytegolf VERB --help` has each verb's options and examples. Every verb takes
--plugin FILE (more than once): a Python file, or a module, that registers
routers, mixers or quantisers of your own; it is imported.
"""


def _said(default: object) -> object:
    """A default as help shows it; none (a flag that is not given, an empty text or list) is not worth a word."""
    return None if default is False or default in (None, "", ()) else default


# -------------------------------------------------------------------------------------------------------------- the app


app = App(
    name="bytegolf",
    help=HELP,
    version=version,
    config=no_surprises,
    help_format="plaintext",
    default_parameter=Parameter(negative=(), show_default=_said),
    suppress_keyboard_interrupt=False,  # `run` says what stopped it
)

TRAINING = Group("Data and training", sort_key=1)
INSIDE = Group("What a model does", sort_key=2)
SCORES = Group("Scores", sort_key=3)
FILES = Group("Files", sort_key=4)
EXCHANGE = Group("Models in and out", sort_key=5)
OPTIONS = Group("Options", sort_key=6)
"""The verbs' groups, in the order of the help."""
for _flag in ("--help", "--version"):
    app[_flag].group = (OPTIONS,)

Json = Annotated[
    bool, Parameter(help="Print one JSON object on stdout, and all else on stderr; --help --json explains its keys.")
]
Data = Annotated[Path | None, Parameter(help="Folder made by `bytegolf prepare`; by default the run's own.")]
Model = Annotated[
    Path, Parameter(help="A run's folder, an artifact file, a public or imported H-Net, or hf:owner/name.")
]
COUNT = validators.Number(gte=0)


def screen(json: bool = False) -> PlainConsole:
    """What people read: stdout, or stderr where stdout has ``--json``'s object alone (``… --json | jq .bpb``).

    As wide as the terminal; in a pipe, where nobody's width is known, wide enough for every table.
    """
    piped = not readers(json).isatty() and "COLUMNS" not in os.environ
    return PlainConsole(stderr=json, width=120 if piped else None)


def readers(json: bool) -> TextIO:
    """The stream of ``screen``, for texts that are written as they are."""
    return sys.stderr if json else sys.stdout


def finish(wanted: bool, result: Any) -> None:
    """Write ``result``, a dataclass or plain data, as a line of JSON to stdout where that is ``wanted``."""
    if wanted:
        sys.stdout.write(json_line(to_json(result)) + "\n")


_Verb = TypeVar("_Verb", bound=Callable[..., Any])


def answers(*results: str) -> Callable[[_Verb], _Verb]:
    """Name the dataclasses that a verb's ``--json`` prints, as ``module:Class``.

    ``--help --json`` explains their fields; they are imported only then.
    """

    def note(verb: _Verb) -> _Verb:
        _RESULTS[verb] = results
        return verb

    return note


_RESULTS: dict[Callable[..., Any], tuple[str, ...]] = {}


def json_keys(verb: Callable[..., Any]) -> str:
    """What the keys of a verb's JSON are, a paragraph for each of its results; empty for a verb that prints none."""
    results = (result.partition(":") for result in _RESULTS.get(verb, ()))
    return "\n\n".join(describe(getattr(importlib.import_module(module), name)) for module, _, name in results)


def text_of(text: str | None, file: Path | None) -> tuple[builtins.bytes | None, str]:
    """The text to work on, None if there is none, and what to call it in errors.

    It is given as an argument, in a file (``-``: stdin), or else comes from stdin, where that is a pipe or a file.
    """
    if text is not None and file is not None:
        raise BytegolfError("both a text and --file are given: leave one out")
    if text is not None:
        return text.encode("utf-8", errors="surrogateescape"), "the text"
    if file is not None:
        return read_input(file), "stdin" if file == STDIN else str(file)
    return piped_input() or None, "stdin"
