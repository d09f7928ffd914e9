"""Rows as documents: where the text and the group of a row are, in JSON lines, JSON arrays and Parquet."""

from __future__ import annotations

import json
from typing import Any

from bytegolf.data.document import Document, Reading
from bytegolf.errors import BytegolfError

MISSING = object()


def lookup(value: Any, path: str) -> Any:
    """The value under a field's name, or under a path of names with dots between; null where a part of it is null.

    A field whose own name has dots comes first. MISSING if there is none.

    >>> lookup({"meta": {"text": "a"}}, "meta.text")
    'a'
    """
    if not isinstance(value, dict):
        return MISSING
    if path in value:
        return value[path]
    for at, char in enumerate(path):
        if char == "." and path[:at] in value:
            inner = value[path[:at]]
            found = None if inner is None else lookup(inner, path[at + 1 :])
            if found is not MISSING:
                return found
    return MISSING


def record(value: Any, where: str, group: str, reading: Reading) -> Document:
    """The document in a parsed object; ``where`` it is, for errors, and its ``group`` if no field names one.

    A null is a document without text, which says where it was (`Document.null`).
    """
    text = lookup(value, reading.field)
    its_group: str | None = group
    if reading.group_field is not None:
        found = lookup(value, reading.group_field)
        if found is MISSING:
            raise BytegolfError(f"{where} has no {reading.group_field!r}: name the right field with --group-field")
        its_group = group_name(found)
    if text is None:
        return Document(b"", its_group, where)
    if not isinstance(text, str):
        raise BytegolfError(f"{where} has no text under {reading.field!r}{_instead(value, text)} with --field")
    try:
        return Document(text.encode("utf-8"), its_group)
    except UnicodeEncodeError as error:  # "\ud800" is valid JSON, but no text
        raise BytegolfError(f"{where} holds half a surrogate pair, which is no Unicode text: mend that line") from error


def _instead(value: Any, found: Any) -> str:
    """What there is instead of a text, as a part of a sentence."""
    if not isinstance(value, dict):
        return f" ({_kind(value)}): one object a line is expected; name the right field"
    if found is MISSING:
        return f" (it has {_names(value)}): name the right field"
    if isinstance(found, dict) and found:
        return f", but an object of {_names(found)}: name one of these, FIELD.{next(iter(found))} for instance,"
    return f", but {_kind(found)}: name the right field"


def _names(value: dict[str, Any]) -> str:
    shown = ", ".join(list(value)[:8])
    return (f"{shown}, …" if len(value) > 8 else shown) or "no fields"


def _kind(value: Any) -> str:
    if isinstance(value, bool):
        return "true or false"
    kinds: dict[type, str] = {int: "a number", float: "a number", list: "a list", dict: "an object", str: "a string"}
    return kinds.get(type(value), "null")


def group_name(value: Any) -> str | None:
    """The group that a value stands for: a string is its own name, null is a group without one, apart from "None".

    >>> group_name("a"), group_name(None), group_name(7), group_name(True), group_name({"b": 1})
    ('a', None, '7', 'true', '{"b": 1}')
    """
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    return json.dumps(value, ensure_ascii=False, sort_keys=True)
