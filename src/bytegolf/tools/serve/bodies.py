"""Requests, read with a limit and checked against a dataclass, whose fields are the request's."""

from __future__ import annotations

import asyncio
import base64
import binascii
import dataclasses
import json
import types
import typing
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request

from bytegolf.tools.serve.refusals import RefusedError
from bytegolf.tools.serve.worker import ClientLeftError

Fields = TypeVar("Fields")

BODY_SECONDS = 30.0
"""How long a client may take to send its request."""

ENVELOPE = 4096
"""Bytes of JSON around a text."""


async def read_body(request: Request, limit: int, said: int = 0) -> bytes:
    """The body. Raises RefusedError with 413 if it has more than ``limit`` bytes, or 408 if it does not come.

    ``said`` is the limit that the refusal names, where the body is more than the text that it holds.

    What is too much is read to its end and forgotten, as a client that is still sending would not see the answer.
    """
    kept, size = bytearray(), 0
    declared = request.headers.get("content-length", "")
    try:
        async with asyncio.timeout(BODY_SECONDS):
            if not (declared.isdecimal() and int(declared) > 1000 * limit):
                async for chunk in request.stream():
                    size += len(chunk)
                    if size <= limit:
                        kept += chunk
                    elif size > 1000 * limit:
                        break
    except TimeoutError:
        raise RefusedError(408, f"the request did not come within {BODY_SECONDS:.0f} seconds") from None
    except ClientDisconnect:
        raise ClientLeftError from None
    if size > limit or (declared.isdecimal() and int(declared) > limit):
        raise too_large(max(size, int(declared or 0)), said or limit)
    return bytes(kept)


def too_large(size: int, limit: int) -> RefusedError:
    """413, with both figures."""
    said = f"that is {size:,} bytes, and this server takes {limit:,} at a time: send less, or start it with --limit"
    return RefusedError(413, said, code="too_large")


async def read_fields(request: Request, kind: type[Fields], limit: int) -> Fields:
    """A JSON body as a ``kind``, of which the texts may have ``limit`` bytes.

    JSON may write a byte in six (``\\u0007``): the body may be so much longer. Raises RefusedError for anything else.
    """
    body = await read_body(request, 6 * limit + ENVELOPE, limit)
    try:
        found = json.loads(body or b"{}")
    except (ValueError, RecursionError) as error:
        raise RefusedError(400, f"the body is not JSON: {error}") from None
    if not isinstance(found, dict):
        raise RefusedError(400, "the body is not a JSON object")
    return parse(found, kind)


def parse(found: dict[str, Any], kind: type[Fields]) -> Fields:
    """``found`` as a ``kind``: known fields of the right types; null is the default. Raises RefusedError."""
    hints = typing.get_type_hints(kind)
    names = {field.name.rstrip("_"): field.name for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    values = {}
    for key, value in found.items():
        if key not in names:
            raise RefusedError(400, f"there is no field {key!r} here: it has {', '.join(names)}", param=key)
        if value is None:
            continue
        if not _fits(value, hints[names[key]]):
            raise RefusedError(400, f"{key} is no {_words(hints[names[key]])}", param=key)
        values[names[key]] = value
    return kind(**values)


def _fits(value: Any, hint: Any) -> bool:
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    return any(_is(value, option) for option in options)


def _is(value: Any, kind: Any) -> bool:
    origin = typing.get_origin(kind)
    if origin is list:
        return isinstance(value, list) and all(_fits(one, typing.get_args(kind)[0]) for one in value)
    if origin is dict:
        return isinstance(value, dict) and all(_fits(one, typing.get_args(kind)[1]) for one in value.values())
    if kind is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    return type(value) is kind


def _words(hint: Any) -> str:
    return str(hint.__name__ if isinstance(hint, type) else hint).replace("str", "text").replace(" | None", "")


def bytes_of(text: str | None, encoded: str | None, limit: int) -> bytes:
    """The bytes that a request is about: ``text`` as UTF-8, or ``encoded`` in base 64. Raises RefusedError."""
    if (text is None) == (encoded is None):
        raise RefusedError(400, "give one of text and base64", param="text")
    if text is not None:
        try:
            data = text.encode("utf-8")
        except UnicodeEncodeError as error:
            said = f"the text has half a surrogate pair at character {error.start}: send such bytes as base64"
            raise RefusedError(400, said, param="text") from None
    else:
        try:
            data = base64.b64decode(encoded or "", validate=True)
        except (binascii.Error, ValueError) as error:
            raise RefusedError(400, f"base64 is none: {error}", param="base64") from None
    if len(data) > limit:
        raise too_large(len(data), limit)
    return data
