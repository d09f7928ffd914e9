"""Making good input bad: bytes, plain data, JSON and TOML text. All chance comes from a generator."""

from __future__ import annotations

import copy
import json
import math
import random
from collections.abc import Callable
from typing import Any

import tomli_w

INTEGERS = (
    *(0, 1, -1, 2, 3, 16, 127, 128, 255, 256, 259, 260, 261, 32767, 65535, 65536, 20240520),
    *(
        2**24,
        2**27,
        2**30,
        2**31 - 1,
        2**31,
        2**32 - 1,
        2**40,
        2**53,
        2**63 - 1,
        2**63,
        2**64,
        -(2**31),
        -(2**63),
        10**40,
    ),
)
"""Where readers break: at the edges of types, and at sizes that nothing should take memory for."""

FLOATS = (0.0, -0.0, 0.5, 1.5, -1.0, 1e-320, 1e300, 1e308, float("nan"), float("inf"), float("-inf"))

TEXTS = (
    *(
        "",
        " ",
        ".",
        "..",
        "../outside",
        "../../../../outside",
        "/etc",
        "/etc/hostname",
        "/dev/zero",
        "~",
        "a/../../outside",
    ),
    *(
        "a\0b",
        "a\nb",
        "\x1b[2Jgone",
        "x" * 300,
        "x" * 70_000,
        "{}",
        "%s %n",
        "é",
        "\u202egnp",
        "\ud800",
        "nan",
        "1e999",
    ),
    *(
        "byte",
        "byte260",
        "sentencepiece",
        "sp400",
        "int8_row",
        "int3_row",
        "fp32",
        "rows",
        "zlib",
        "range",
        "F32",
        "cosine",
    ),
)


class Raw(str):
    """A piece of JSON or TOML that no encoder writes, to be put into the text as it is."""


RAW = (
    Raw("[" * 100_000 + "]" * 100_000),
    Raw('{"a":' * 20_000 + "1" + "}" * 20_000),
    Raw("9" * 5000),
    Raw("1e999"),
    Raw("-1e999"),
    Raw("NaN"),
    Raw("Infinity"),
    Raw('"\\ud800"'),
    Raw("{"),
    Raw("0x10"),
)

Chance = random.Random


def alter_bytes(chance: Chance, data: bytes, other: bytes = b"") -> bytes:
    """One change of some bytes: flipped, overwritten, cut, repeated, moved, put together with ``other``."""
    found = bytearray(data)
    at, end = sorted(chance.randint(0, len(found)) for _ in range(2))
    match chance.randrange(11):
        case 0 | 1 if found:
            found[at - 1] ^= 1 << chance.randrange(8)
        case 2 if found:
            found[at - 1] = chance.choice((0, 1, 127, 128, 255, chance.randrange(256)))
        case 3:  # a number
            width = chance.choice((1, 2, 4, 8))
            value = chance.choice(INTEGERS) % (1 << 8 * width)
            found[at : at + width] = value.to_bytes(width, chance.choice(("little", "little", "big")))
        case 4:
            del found[chance.choice((at, len(found) - chance.randint(0, min(40, len(found))))) :]
        case 5:
            del found[at:end]
        case 6:
            found[at:at] = found[at:end] * chance.choice((1, 1, 2, 9))
        case 7:
            found[at:end] = bytes([chance.choice((0, 255))]) * (end - at)
        case 8:
            found[at:at] = chance.randbytes(chance.choice((1, 2, 4, 16, 300)))
        case 9:
            start, stop = sorted(chance.randint(0, len(other)) for _ in range(2))
            found[at:end] = other[start:stop]
        case _:
            found += chance.randbytes(chance.choice((1, 4, 100)))
    return bytes(found)


def alter_value(chance: Chance, value: Any) -> Any:
    """One change somewhere in plain data: a value replaced, a key lost, renamed, added or moved, a list grown."""
    found = copy.deepcopy(value)
    places = list(_places(found))
    if not places:
        return any_value(chance)
    holder, key = chance.choice(places)
    match chance.randrange(10):
        case 0 | 1 | 2:
            holder[key] = any_value(chance)
        case 3 | 4:
            holder[key] = _near(chance, holder[key])
        case 5:
            del holder[key]
        case 6 if isinstance(holder, dict):
            holder[chance.choice((*TEXTS[:24], "name", "path", "extra"))] = holder.pop(key)
        case 7:
            source, name = chance.choice(places)
            if name in source if isinstance(source, dict) else name < len(source):
                holder[key] = copy.deepcopy(source[name])
        case 8 if isinstance(holder, list):
            holder[key:key] = [copy.deepcopy(holder[key])] * chance.choice((1, 2, 50))
        case _:
            other = any_value(chance)
            if isinstance(holder[key], dict):
                holder[key][chance.choice(TEXTS)] = other
            else:
                holder[key] = [holder[key], other]
    return found


def any_value(chance: Chance) -> Any:
    """Something that hardly any field expects."""
    simple: tuple[Any, ...] = (None, True, False, [], {}, [[]], {"": {}}, [None])
    return chance.choice((*simple, *(chance.choice(kind) for kind in (INTEGERS, FLOATS, TEXTS, TEXTS, RAW))))


def _near(chance: Chance, value: Any) -> Any:
    """Another value of the same type."""
    if isinstance(value, bool) or value is None:
        return not value
    if isinstance(value, int):
        return chance.choice(
            (value + 1, value - 1, value * 2, -value, value // 2, chance.choice(INTEGERS), float(value))
        )
    if isinstance(value, float):
        return chance.choice(
            (-value, value * 2, value + 1, int(value) if math.isfinite(value) else 0, chance.choice(FLOATS))
        )
    if isinstance(value, str):
        return chance.choice((value + chance.choice(TEXTS), value[:-1], value.upper(), chance.choice(TEXTS), value * 2))
    return any_value(chance)


def _places(value: Any) -> list[tuple[Any, Any]]:
    """Each value inside, as its holder and its key there."""
    found, waiting = [], [value]
    while waiting:
        part = waiting.pop()
        keys = list(part) if isinstance(part, dict) else range(len(part)) if isinstance(part, list) else ()
        for key in keys:
            found.append((part, key))
            waiting.append(part[key])
    return found


def json_bytes(chance: Chance, value: Any) -> bytes:
    """``value`` as JSON, with its raw pieces as they are; now and then a key stands there twice."""
    twice = chance.random() < 0.1

    def written(part: Any) -> str:
        if isinstance(part, Raw):
            return str(part)
        if isinstance(part, dict):
            pairs = list(part.items())
            if twice and pairs:
                pairs.append((pairs[0][0], chance.choice((1, "x", None, pairs[-1][1]))))
            return "{" + ",".join(f"{json.dumps(str(key))}:{written(item)}" for key, item in pairs) + "}"
        if isinstance(part, list):
            return "[" + ",".join(map(written, part)) + "]"
        return json.dumps(part, ensure_ascii=chance.random() < 0.5)

    return written(value).encode("utf-8", "surrogatepass")


def toml_bytes(chance: Chance, value: dict[str, Any]) -> bytes:
    """``value`` as TOML: what TOML knows of it, and raw pieces in the end."""
    raws: list[str] = []

    def plain(part: Any) -> Any:
        if isinstance(part, dict):
            for key, item in part.items():
                if isinstance(item, Raw):
                    raws.append(f"{json.dumps(str(key))} = {item}")
            kept = {
                str(key): plain(item) for key, item in part.items() if item is not None and not isinstance(item, Raw)
            }
            return {key.encode("utf-8", "replace").decode(): item for key, item in kept.items()}
        if isinstance(part, list):
            return [plain(item) for item in part if item is not None and not isinstance(item, Raw)]
        if isinstance(part, str):
            return part.encode("utf-8", "replace").decode()
        return part

    text = tomli_w.dumps(plain(value))
    if raws:
        text = chance.choice(("\n".join(raws) + "\n" + text, text + "\n".join(raws)))
    return text.encode()


def structured(
    chance: Chance, data: bytes, other: bytes, parse: Callable[[bytes], Any], write: Callable[[Chance, Any], bytes]
) -> bytes:
    """``data`` changed as what it means, one to three times, or where it means nothing any more, as bytes."""
    try:
        value = parse(data)
    except (ValueError, RecursionError):
        return alter_bytes(chance, data, other)
    for _ in range(chance.choice((1, 1, 2, 3))):
        value = alter_value(chance, value)
    try:
        return write(chance, value)
    except (ValueError, RecursionError, AttributeError, TypeError):
        return alter_bytes(chance, data, other)
