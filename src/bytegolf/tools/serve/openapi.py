"""The schema of the server's interface (OpenAPI 3.1), made from the dataclasses of requests and answers."""

from __future__ import annotations

import dataclasses
import functools
import types
import typing
from typing import Any

from bytegolf import __version__
from bytegolf.results import documentation
from bytegolf.tools.serve import answers

PLAIN: dict[Any, dict[str, Any]] = {
    str: {"type": "string"},
    int: {"type": "integer"},
    float: {"type": "number"},
    bool: {"type": "boolean"},
    type(None): {"type": "null"},
}
FILE = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
POSTS = {
    "/segment": ("The chunks of a text, at every level", answers.TextRequest, answers.Segmented),
    "/score": ("The bits of a text, beside the usual compressors", answers.TextRequest, answers.Scored),
    "/read": ("All that the page draws of a text, packed", answers.ReadRequest, answers.ReadText),
    "/v1/completions": ("Texts continued, as OpenAI's clients expect it", answers.CompletionRequest, None),
}
REFUSALS = {
    400: "something in the request is wrong",
    401: "a token is needed",
    403: "the Host or the Origin is not this server",
    404: "there is no such model",
    413: "the text is too long",
    429: "too many requests of this client are not finished",
    503: "too many requests are waiting",
}


@functools.cache
def schema() -> dict[str, Any]:
    """The document."""
    parts: dict[str, Any] = {}
    error = {
        "type": "object",
        "properties": {
            "error": {
                "type": "object",
                "properties": {name: {"type": ["string", "null"]} for name in ("message", "type", "param", "code")},
            }
        },
    }
    refusals = {
        str(status): {"description": said, "content": {"application/json": {"schema": error}}}
        for status, said in REFUSALS.items()
    }

    def answer(kind: type | None) -> dict[str, Any]:
        found = {"type": "object"} if kind is None else _object(kind, parts)
        return {"200": {"description": "the answer", "content": {"application/json": {"schema": found}}}, **refusals}

    paths: dict[str, Any] = {
        "/v1/models": {"get": {"summary": "The models", "responses": answer(answers.Models)}},
        "/v1/models/{name}": {
            "get": {
                "summary": "One model",
                "parameters": [{"name": "name", "in": "path", "required": True, "schema": PLAIN[str]}],
                "responses": answer(answers.Model),
            }
        },
    }
    for path, (summary, asked, found) in POSTS.items():
        body = {"required": True, "content": {"application/json": {"schema": _object(asked, parts)}}}
        paths[path] = {"post": {"summary": summary, "requestBody": body, "responses": answer(found)}}
    for path, summary in (("/compress", "A file compressed"), ("/decompress", "A compressed file's original")):
        paths[path] = {
            "post": {
                "summary": summary,
                "parameters": [{"name": "model", "in": "query", "schema": PLAIN[str]}],
                "requestBody": {"required": True, "content": FILE},
                "responses": {"200": {"description": "the file", "content": FILE}, **refusals},
            }
        }
    return {
        "openapi": "3.1.0",
        "info": {"title": "bytegolf serve", "version": __version__},
        "paths": paths,
        "components": {
            "schemas": parts,
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{}, {"token": []}],
    }


def _object(kind: type, parts: dict[str, Any]) -> dict[str, Any]:
    """A reference to a dataclass, which is put among the ``parts``."""
    if kind.__name__ not in parts:
        parts[kind.__name__] = {}  # against endless recursion
        hints, said = typing.get_type_hints(kind), documentation(kind)
        properties = {}
        for one in dataclasses.fields(kind):
            found = _typed(hints[one.name], parts)
            if one.name in said:
                found = {**found, "description": said[one.name]}
            properties[one.name.rstrip("_")] = found
        required = [
            one.name.rstrip("_")
            for one in dataclasses.fields(kind)
            if one.default is dataclasses.MISSING and one.default_factory is dataclasses.MISSING
        ]
        parts[kind.__name__] = {"type": "object", "description": kind.__doc__ or "", "properties": properties}
        if required:
            parts[kind.__name__]["required"] = required
    return {"$ref": f"#/components/schemas/{kind.__name__}"}


def _typed(hint: Any, parts: dict[str, Any]) -> dict[str, Any]:
    if dataclasses.is_dataclass(hint):
        return _object(typing.cast(type, hint), parts)
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if isinstance(hint, types.UnionType):
        return {"anyOf": [_typed(one, parts) for one in arguments]}
    if origin is list:
        return {"type": "array", "items": _typed(arguments[0], parts)}
    if origin is dict:
        return {"type": "object", "additionalProperties": _typed(arguments[1], parts)}
    return PLAIN[hint]
