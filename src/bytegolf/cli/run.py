"""The command line: one thin function a verb, in the order of the way of the data.

torch and everything that imports it are loaded inside the verbs, so that help answers at once.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import sys
from typing import NoReturn

from cyclopts import CycloptsError, MissingArgumentError, UnusedCliTokensError

from bytegolf.cli import artifact, audit, check, data, eval, files, look, plan, probe, study, submit, train, verify
from bytegolf.cli.common import app, explain_json, screen
from bytegolf.errors import BytegolfError

__all__ = ["app", "run"]
VERBS = (data, plan, train, eval, verify, artifact, submit, audit, look, probe, files, check, study)
"""Importing these registers the verbs."""


def run() -> NoReturn:
    """Run the command line: exit code 0, or 2 with one sentence on stderr where the input was bad."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # any text can be shown, whatever the terminal's encoding
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        _explain(sys.argv[1:])
        app(sys.argv[1:], console=screen(), exit_on_error=False, print_error=False)
        sys.stdout.flush()
    except CycloptsError as error:
        _fail(_usage(error))
    except BytegolfError as error:
        _fail(str(error))
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        sys.exit(130)
    except (MemoryError, RuntimeError) as error:  # torch's own classes, without importing torch
        if isinstance(error, RuntimeError) and not any(words in str(error) for words in _OUT_OF_MEMORY):
            raise
        _fail("out of memory: choose a smaller model, a shorter train.seq_len, or fewer sequences at a time")
    except OSError as error:
        _without_stdout()
        if error.errno == errno.EPIPE:  # `bytegolf … | head` has read enough
            sys.exit(0)
        if error.filename is not None or error.errno != errno.ENOSPC:
            raise
        _fail("cannot write to stdout: the disk is full")
    sys.exit(0)


def _explain(arguments: list[str]) -> None:
    """Where a verb's help is asked for, have it explain the keys of its JSON."""
    if not {"--help", "-h"} & set(arguments):
        return
    for word in arguments:
        if word in app and (verb := app[word].default_command):
            app[word].help = explain_json(verb)


_OUT_OF_MEMORY = ("can't allocate memory", "out of memory")


def _fail(sentence: str) -> NoReturn:
    sys.stderr.write(f"bytegolf: {' '.join(sentence.split())}\n")
    sys.exit(2)


def _usage(error: CycloptsError) -> str:
    """A wrong command line in one sentence."""
    if isinstance(error, UnusedCliTokensError) and error.unused_tokens:
        said = f"unexpected argument {error.unused_tokens[0]!r}"
    elif isinstance(error, MissingArgumentError) and error.argument is not None:
        said = f"{error.argument.name} is missing"
    else:
        said = str(error).strip().splitlines()[0].rstrip(".")
    verb = next((token for token in sys.argv[1:] if token in app), None)
    return f"{said} (see `bytegolf {f'{verb} ' if verb else ''}--help`)"


def _without_stdout() -> None:
    """What is still buffered goes nowhere, so that Python's own flush at exit has nothing to complain about."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
