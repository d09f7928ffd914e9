"""What the verbs share: the app itself, common options, and how results are shown."""

from __future__ import annotations

import builtins
import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, Parameter, validators
from rich.console import Console

from bytegolf import __version__
from bytegolf.errors import BytegolfError
from bytegolf.files import disk_errors

app = App(
    name="bytegolf",
    help="Learned tokenization in 16,000,000 bytes: train, ship and score byte-level H-Nets.",
    version=__version__,
    help_format="plaintext",
    default_parameter=Parameter(negative=()),
)

Json = Annotated[bool, Parameter(help="End stdout with one JSON object on a line.", show_default=False)]
Data = Annotated[Path | None, Parameter(help="Folder made by `bytegolf prepare`; by default the run's own.")]
Model = Annotated[Path, Parameter(help="A run's folder or an artifact file.")]
COUNT = validators.Number(gte=0)


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Leave it to ``main``, which takes it for success; rich would exit with 1."""
        raise


def screen() -> Console:
    """For stdout: as wide as the terminal; in a pipe, where nobody's width is known, wide enough for every table."""
    piped = not sys.stdout.isatty() and "COLUMNS" not in os.environ
    return _Console(highlight=False, width=120 if piped else None)


def finish(wanted: bool, result: dict[str, Any]) -> None:
    """Write ``result`` as a line of JSON, where it is ``wanted``: the end of a verb's output."""
    if wanted:
        sys.stdout.write(json.dumps(result, ensure_ascii=False) + "\n")


def toml_string(text: str) -> str:
    """``text`` as TOML has it: JSON's strings are TOML's."""
    return json.dumps(text, ensure_ascii=False)


def text_of(text: str | None, file: Path | None, default: builtins.bytes) -> tuple[builtins.bytes, str]:
    """The text to work on and what to call it in errors."""
    if text is not None and file is not None:
        raise BytegolfError("both a text and --file are given: leave one out")
    if file is None:
        return default if text is None else text.encode("utf-8", errors="surrogateescape"), "the text"
    if str(file) == "-":
        return sys.stdin.buffer.read(), "stdin"
    with disk_errors(file, "read"):
        return file.read_bytes(), str(file)
