"""The C++ compiler of the native kernels, and what their sources say; without torch, for whoever only asks."""

from __future__ import annotations

import itertools
import os
import re
import shlex
import shutil

NO_COMPILER = "no C++ compiler was found (install g++, or name one in CXX)"


def find_compiler(*others: str) -> list[str]:
    """The C++ compiler's command: $CXX, or the first there is of the usual ones and ``others``; empty if none is."""
    named = shlex.split(os.environ.get("CXX", ""))
    command = named or list(filter(shutil.which, ("g++", "clang++", "c++", *others)))[:1]
    return command if command and shutil.which(command[0]) else []


def code(source: str) -> str:
    """A source without the lines that are comments."""
    return re.sub(r"(?m)^ *//.*\n", "", source)


def included(name: str, sources: dict[str, bytes]) -> list[str]:
    """A source and all that it includes of ours, sorted."""
    found, ahead = {name}, [name]
    while ahead:
        named = re.findall(r'(?m)^#include "(.+)"', sources[ahead.pop()].decode())
        ahead += [one for one in named if one in sources and one not in found]
        found.update(ahead)
    return sorted(found)


def command_with(compiler: list[str], flags: list[str]) -> list[str]:
    """The compiler with ``flags``, and behind them the user's own (`CXX="g++ -O1"`): the last one counts."""
    program = list(itertools.takewhile(lambda word: not word.startswith("-"), compiler))
    return [*program, *flags, *compiler[len(program) :]]
