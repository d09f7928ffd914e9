"""The command line: one thin function a verb, in the order of the way of the data.

torch and everything that imports it are loaded inside the verbs, so that help answers at once.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import gc
import io
import os
import signal
import sys
import threading
from pathlib import Path
from types import FrameType
from typing import NoReturn

from cyclopts import CycloptsError

from bytegolf.cli import artifact, bench, data, eval, exchange, files, look, plan, study, submission, train
from bytegolf.cli import serve as serving
from bytegolf.cli.common import app, json_keys, screen, usage
from bytegolf.errors import BytegolfError
from bytegolf.registry import load_plugins

__all__ = ["app", "run"]
atexit.register(gc.freeze)  # or Python looks for garbage in all of torch before it ends, for 0.4 s
VERBS = (
    data,
    plan,
    train,
    eval,
    submission,
    artifact,
    exchange,
    submission,
    submission,
    look,
    bench,
    serving,
    look,
    files,
    submission,
    study,
)
"""Importing these registers the verbs."""


def run() -> NoReturn:
    """Run the command line: exit code 0, or 2 with one sentence on stderr where the input was bad."""
    _have_streams()
    _stop_on_signals()
    try:
        if keys := _keys_asked_for(sys.argv[1:]):
            sys.stdout.write(f"{keys}\n")
            sys.exit(0)
        app(_without_plugins(sys.argv[1:]), console=screen(), exit_on_error=False, print_error=False)
        sys.stdout.flush()
    except CycloptsError as error:
        _fail(usage(error))
    except BytegolfError as error:
        _fail(str(error))
    except _Stopped as stopped:
        sys.stderr.write(f"stopped by {stopped.signal.name}\n")
        sys.exit(128 + stopped.signal)
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        sys.exit(130)
    except (MemoryError, RuntimeError) as error:  # torch's own classes, without importing torch
        if isinstance(error, RuntimeError) and not any(words in str(error) for words in _OUT_OF_MEMORY):
            raise
        _fail("out of memory: choose a smaller model, a shorter train.seq_len, or fewer sequences at a time")
    except OSError as error:
        if error.errno in (errno.ENAMETOOLONG, errno.ELOOP):  # any look at a path that was given may meet it
            loop = "it is a link to itself" if error.errno == errno.ELOOP else "the name is too long"
            _fail(f"cannot look at {str(error.filename)[:80]}: {loop}: check the path")
        _without_stdout()
        if error.errno == errno.EPIPE:  # `bytegolf … | head` has read enough
            sys.exit(0)
        if error.filename is not None or error.errno != errno.ENOSPC:
            raise
        _fail("cannot write to stdout: the disk is full")
    sys.exit(0)


class _Stopped(KeyboardInterrupt):
    """SIGTERM or SIGHUP came: what Ctrl-C cleans up is cleaned up."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.signal = signal.Signals(number)


def _stop_on_signals() -> None:
    """Have SIGTERM (a time limit's) and SIGHUP (a closed terminal's) stop the process as Ctrl-C does.

    Python's default ends it on the spot, and half-written files stay. What ``nohup`` has ignored stays ignored.
    """

    def stop(number: int, frame: FrameType | None) -> NoReturn:
        raise _Stopped(number)

    if threading.current_thread() is threading.main_thread():
        for name in ("SIGTERM", "SIGHUP"):  # Windows has no SIGHUP
            number = getattr(signal, name, None)
            if number is not None and signal.getsignal(number) == signal.SIG_DFL:
                signal.signal(number, stop)


def _have_streams() -> None:
    """Have a stdout and a stderr, where a closed one (`>&-`, cron) leads nowhere, that can show any text.

    A closed descriptor is taken by the null device before a file of ours could get its number.
    """
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "r" if name == "stdin" else "w", encoding="utf-8"))  # noqa: SIM115, PTH123
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def _keys_asked_for(arguments: list[str]) -> str:
    """What the keys of a verb's JSON are, where ``VERB --help --json`` asks for them; empty where it does not."""
    if not {"--help", "-h"} & set(arguments) or "--json" not in arguments:
        return ""
    at = app
    for word in arguments:
        if word in at and not word.startswith("-"):  # --help is a verb to cyclopts, with a help of its own
            at = at[word]
    return json_keys(at.default_command) if at.default_command else ""


def _without_plugins(words: list[str]) -> list[str]:
    """The command line without ``--plugin FILE``, which every verb takes: these files are imported first.

    Processes that this one starts (a study's runs, `verify`'s second process) import them too, by the environment.
    """
    rest: list[str] = []
    plugins = [each for each in os.environ.get(PLUGINS, "").split(os.pathsep) if each]
    waiting = iter(words)
    for word in waiting:
        name, equals, value = word.partition("=")
        if name != "--plugin":
            rest.append(word)
        elif value := value if equals else next(waiting, ""):
            plugins.append(value)
        else:
            raise BytegolfError("--plugin needs a Python file or the name of a module")
    load_plugins(plugins)
    if plugins:  # by their whole paths: the processes may start in other folders
        found = dict.fromkeys(str(Path(each).absolute()) if each.endswith(".py") else each for each in plugins)
        os.environ[PLUGINS] = os.pathsep.join(found)
    return rest


PLUGINS = "BYTEGOLF_PLUGINS"
"""The environment variable that names plugins as ``--plugin`` does."""


_OUT_OF_MEMORY = ("can't allocate memory", "out of memory")


def _fail(sentence: str) -> NoReturn:
    sys.stderr.write(f"bytegolf: {' '.join(sentence.split())}\n")
    sys.exit(2)


def _without_stdout() -> None:
    """What is still buffered goes nowhere, so that Python's own flush at exit has nothing to complain about."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
