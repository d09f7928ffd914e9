"""JSON and the documentation of its keys, both made from the types of results."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from bytegolf.config.reading import doc
from bytegolf.results import describe, to_json


@dataclass(frozen=True)
class Part:
    """A part of a result."""

    from_: int
    """first byte"""
    share: float


@dataclass(frozen=True)
class Base:
    """What several results have."""

    bpb: float | None
    """bits per byte
    of the text"""


@dataclass(frozen=True)
class Whole(Base):
    """A result."""

    path: Path
    kind: Literal["router", "soft"] | None
    best: Part | None
    """the best part; null without any"""
    parts: list[Part]
    named: dict[str, Part]
    seed: int = doc("of the first sample", 0)


def test_the_json_has_a_key_per_field_and_null_for_what_is_not_finite() -> None:
    part = Part(1, math.nan)
    found = to_json(Whole(2.0, Path("runs/a"), "soft", None, [part], {"x": part}))
    assert json.loads(json.dumps(found, allow_nan=False)) == {
        "bpb": 2.0,
        "path": "runs/a",
        "kind": "soft",
        "best": None,
        "parts": [{"from": 1, "share": None}],
        "named": {"x": {"from": 1, "share": None}},
        "seed": 0,
    }


@dataclass(frozen=True)
class Other(Base):
    """Another heir."""

    whole: Whole


def test_the_keys_are_described_from_the_types_and_the_strings_below_the_fields() -> None:
    assert describe(Whole, 1000).split("\n\n") == [
        "JSON keys (?: may be null): bpb? (bits per byte of the text), path, kind? (router, soft), best? "
        "(the best part; null without any), parts, named, seed (of the first sample).",
        "best, parts[], named.*: from (first byte), share.",
    ]
    assert all(len(line) <= 40 for line in describe(Whole, 40).splitlines())


def test_what_several_types_inherit_is_described_once() -> None:
    assert describe(Other, 1000).split("\n\n") == [
        "JSON keys (?: may be null): whole, the keys of base.",
        "whole: path, kind? (router, soft), best? (the best part; null without any), parts, named, seed (of the first "
        "sample), the keys of base.",
        "whole.best, whole.parts[], whole.named.*: from (first byte), share.",
        "base: bpb? (bits per byte of the text).",
    ]
