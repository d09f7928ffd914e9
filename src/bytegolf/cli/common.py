"""What the verbs share: the app itself, common options, and how results are shown."""

from __future__ import annotations

import builtins
import importlib
import inspect
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, TypeVar

from cyclopts import App, Parameter, validators

from bytegolf.cli.usage import no_empty_paths
from bytegolf.cli.version import version
from bytegolf.console import PlainConsole
from bytegolf.errors import BytegolfError
from bytegolf.files import STDIN, json_line, piped_input, read_input
from bytegolf.results import describe, to_json

app = App(
    name="bytegolf",
    help="Learned tokenization: train, score, look into and ship byte-level H-Nets, which find their own chunks. To "
    "begin: `bytegolf prepare --out data/default`, `bytegolf train cpu-demo`, `bytegolf segment runs/cpu-demo`. Every "
    "verb takes --plugin FILE (more than once): a Python file, or a module, that registers routers, mixers or "
    "quantisers of your own; it is imported.",
    version=version,
    config=no_empty_paths,
    help_format="plaintext",
    default_parameter=Parameter(negative=()),
    suppress_keyboard_interrupt=False,  # `run` says what stopped it
)

Json = Annotated[bool, Parameter(help="End stdout with one JSON object on a line.", show_default=False)]
Data = Annotated[Path | None, Parameter(help="Folder made by `bytegolf prepare`; by default the run's own.")]
Model = Annotated[
    Path, Parameter(help="A run's folder, an artifact file, a public or imported H-Net, or hf:owner/name.")
]
COUNT = validators.Number(gte=0)


def screen() -> PlainConsole:
    """For stdout: as wide as the terminal; in a pipe, where nobody's width is known, wide enough for every table."""
    piped = not sys.stdout.isatty() and "COLUMNS" not in os.environ
    return PlainConsole(width=120 if piped else None)


def finish(wanted: bool, result: Any) -> None:
    """End a verb's output with ``result``, a dataclass or plain data, as a line of JSON where that is ``wanted``."""
    if wanted:
        sys.stdout.write(json_line(to_json(result)) + "\n")


_Verb = TypeVar("_Verb", bound=Callable[..., Any])


def answers(*results: str) -> Callable[[_Verb], _Verb]:
    """Name the dataclasses that a verb's ``--json`` prints, as ``module:Class``: its help explains their fields.

    They are imported only when that help is asked for.
    """

    def note(verb: _Verb) -> _Verb:
        _RESULTS[verb] = results
        return verb

    return note


_RESULTS: dict[Callable[..., Any], tuple[str, ...]] = {}


def explain_json(verb: Callable[..., Any]) -> str:
    """A verb's help: its docstring, and what the keys of its JSON are."""
    paragraphs = [inspect.cleandoc(verb.__doc__ or "")]
    for result in _RESULTS.get(verb, ()):
        module, _, name = result.partition(":")
        paragraphs.append(describe(getattr(importlib.import_module(module), name)))
    return "\n\n".join(paragraphs)


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
