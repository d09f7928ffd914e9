"""The code of a submission: the script, its modules, and what is packed in them."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Source:
    """A piece of code, and where it came from."""

    name: str
    tree: ast.Module


@dataclass
class Sources:
    """All code that a submission's script runs, as far as it can be read."""

    script: Source
    modules: dict[str, Source] = field(default_factory=dict)
    """helpers in the folder that it imports, by module name"""
    unpacked: dict[int, Source] = field(default_factory=dict)
    """by the id of the call that runs it"""
    obstacles: list[str] = field(default_factory=list)
    """what could not be read, with file and line"""
    opened: set[Path] = field(default_factory=set)
    """files of the folder that it names"""
    unseen: list[str] = field(default_factory=list)
    """where it opens what is not seen, with file and line"""

    def every(self) -> Iterator[Source]:
        """The script, its modules, and what is packed in them."""
        yield self.script
        yield from self.modules.values()
        yield from self.unpacked.values()


def parse(text: bytes | str) -> ast.Module | None:
    """A script's tree; None if it is not Python."""
    try:
        return ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def why_not(text: bytes | str) -> str:
    """Why something is no Python."""
    try:
        ast.parse(text)
    except SyntaxError as error:
        return f"{error.msg}, line {error.lineno}, for Python {'.'.join(map(str, sys.version_info[:2]))}"
    except (ValueError, RecursionError, MemoryError) as error:
        return type(error).__name__
    return "it is packed too deeply or is too large"
