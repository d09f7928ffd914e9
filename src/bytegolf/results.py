"""Results of jobs: frozen dataclasses, whose JSON and whose documentation of the JSON keys are made from the types.

A field is documented once, by the string below it, where editors and the API's documentation find it as well:

    @dataclass(frozen=True)
    class Score:
        bpb: float
        '''bits per byte of the text'''
        windows: list[Window]
        from_: int  # "from" in JSON: the underscore is there because Python reserves the word

``to_json`` makes the JSON object, and ``describe`` its keys in words, for a verb's help.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
import math
import re
import sys
import textwrap
import types
import typing
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, Union


def to_json(result: Any) -> Any:
    """``result`` as plain JSON data: a dataclass as an object of its fields, a number that is not finite as null."""
    if dataclasses.is_dataclass(result) and not isinstance(result, type):
        return {_key(field.name): to_json(getattr(result, field.name)) for field in dataclasses.fields(result)}
    if isinstance(result, Mapping):
        return {str(key): to_json(value) for key, value in result.items()}
    if isinstance(result, (list, tuple)):
        return [to_json(value) for value in result]
    if isinstance(result, Path):
        return str(result)
    if isinstance(result, float) and not math.isfinite(result):
        return None
    return result


def describe(result: type, width: int = 78) -> str:
    """The JSON keys of a dataclass in words: a paragraph for the object itself, then one for each object inside it.

    An inner object is called by the path that jq has for it: ``models[]`` are the items of the list ``models``, and
    ``models[].levels[]`` those of the list ``levels`` of each. Objects of one type share a paragraph, and what several
    types inherit has one of its own. "?" marks a key that may be null.
    """
    paths: dict[type, list[str]] = {result: []}
    waiting = [(result, "")]
    while waiting:  # breadth first: the outermost objects are explained first
        cls, prefix = waiting.pop(0)
        for field, hint in _fields(cls):
            for inner, suffix in _objects(hint):
                path = f"{prefix}{_key(field.name)}{suffix}"
                if inner not in paths:
                    waiting.append((inner, f"{path}."))
                paths.setdefault(inner, []).append(path)
    lines = list(paths)
    for cls in lines:  # grows on the way: a base may have a base
        lines += [base for base in _bases(cls) if base not in lines]
    users = Counter(base for cls in lines for base in _bases(cls)) + Counter(paths.keys())
    said = []
    for cls in lines:
        shared = [base for base in _bases(cls) if users[base] > 1]
        if cls not in paths and users[cls] == 1:
            continue  # its only heir tells of it
        above = {field.name for base in shared for field, _ in _fields(base)}
        entries = [_entry(field, hint, documentation(cls)) for field, hint in _fields(cls) if field.name not in above]
        names = [*([_title(cls)] if users[cls] > 1 or cls not in paths else []), *paths.get(cls, [])]
        keys = ", ".join([*entries, *(f"the keys of {_title(base)}" for base in shared)])
        said.append(f"{'JSON keys' if cls is result else ', '.join(names)}: {keys}.")
    if any("?" in one for one in said):
        said[0] = said[0].replace("JSON keys:", "JSON keys (?: may be null):", 1)
    return "\n\n".join(textwrap.fill(one, width, break_long_words=False, break_on_hyphens=False) for one in said)


def _key(name: str) -> str:
    return name.rstrip("_")


def _title(cls: type) -> str:
    """``BoundaryFigures`` as "boundary figures"."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", cls.__name__).lower()


def _fields(cls: type) -> list[tuple[dataclasses.Field[Any], Any]]:
    hints = typing.get_type_hints(cls)
    return [(field, hints[field.name]) for field in dataclasses.fields(cls)]


def _bases(cls: type) -> list[type]:
    return [base for base in cls.__bases__ if dataclasses.is_dataclass(base) and dataclasses.fields(base)]


def _entry(field: dataclasses.Field[Any], hint: Any, documentation: dict[str, str]) -> str:
    """``key (what it is)``; where nothing is said, the words of a choice."""
    text = field.metadata.get("doc") or documentation.get(field.name, "")
    options = typing.get_args(hint) if typing.get_origin(hint) in (Union, types.UnionType) else (hint,)
    if not text:
        words = [typing.get_args(one) for one in options if typing.get_origin(one) is Literal]
        text = ", ".join(str(word) for one in words for word in one)
    key = _key(field.name) + "?" * (type(None) in options)
    return f"{key} ({text})" if text else key


def _objects(hint: Any, suffix: str = "") -> Iterator[tuple[type, str]]:
    """The dataclasses within a field's type, each with what follows the field's name in its path."""
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        yield hint, suffix
        return
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (Union, types.UnionType):
        inner = [(one, suffix) for one in arguments]
    elif isinstance(origin, type) and issubclass(origin, Mapping):
        inner = [(one, f"{suffix}.*") for one in arguments[1:]]
    else:
        inner = [(one, f"{suffix}[]") for one in arguments if one is not Ellipsis]
    for one, path in inner:
        yield from _objects(one, path)


def documentation(cls: type) -> dict[str, str]:
    """The strings below the fields of a dataclass and of what it inherits from, by the field's name."""
    found: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        module = sys.modules.get(base.__module__)
        if module is not None and dataclasses.is_dataclass(base):
            found |= _of_module(module).get(base.__name__, {})
    return found


@functools.cache
def _of_module(module: types.ModuleType) -> dict[str, dict[str, str]]:
    """The same for each class of a module, from its source: Python itself forgets strings that follow a field."""
    classes = [node for node in ast.parse(inspect.getsource(module)).body if isinstance(node, ast.ClassDef)]
    return {node.name: dict(_strings(node)) for node in classes}


def _strings(node: ast.ClassDef) -> Iterator[tuple[str, str]]:
    for field, below in zip(node.body, node.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(below, ast.Expr):
            text = below.value.value if isinstance(below.value, ast.Constant) else None
            if isinstance(text, str):
                yield field.target.id, " ".join(text.split()).rstrip(".")
