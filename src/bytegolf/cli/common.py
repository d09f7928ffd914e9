"""What the verbs share: the app itself, common options, and how results are shown."""

from __future__ import annotations

import builtins
import importlib
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, TextIO, TypeVar

from cyclopts import App, Group, Parameter, validators

from bytegolf.cli.usage import no_empty_paths
from bytegolf.cli.version import version
from bytegolf.console import PlainConsole
from bytegolf.errors import BytegolfError
from bytegolf.files import STDIN, json_line, piped_input, read_input
from bytegolf.results import describe, to_json

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


app = App(
    name="bytegolf",
    help=HELP,
    version=version,
    config=no_empty_paths,
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
