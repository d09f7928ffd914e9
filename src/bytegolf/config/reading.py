"""Configurations read: presets, TOML files and dotted changes, checked by the types and ranges of their fields.

A configuration is made of plain data by its fields' types; unknown keys and wrong types are errors.

``extends = "NAME"`` at the top of a file takes over another one, a preset or a file, and the keys beside it change it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import functools
import math
import operator
import os
import tomllib
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from importlib import resources
from pathlib import Path
from typing import Any, Literal, TypeVar

from bytegolf.errors import BytegolfError
from bytegolf.files import disk_errors, read_file

# --------------------------------------------------------------------------------------------------------------- fields


T = TypeVar("T")


def doc(
    text: str,
    default: Any = dataclasses.MISSING,
    *,
    least: float | None = None,
    above: float | None = None,
    most: float | None = None,
    below: float | None = None,
) -> Any:
    """A dataclass field with its documentation and range beside it; without a default the field is required."""
    metadata = {"doc": text, "least": least, "above": above, "most": most, "below": below}
    if isinstance(default, dict):
        return dataclasses.field(default_factory=lambda: dict(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def check_ranges(cls: type, values: dict[str, Any], dotted: str) -> None:
    """Raise if a number is not finite or outside its field's range; ``dotted`` goes before the field's name."""
    for field in dataclasses.fields(cls):
        value = values.get(field.name)
        if not isinstance(value, (int, float)):
            continue
        bounds = {key: field.metadata[key] for key in _HOLDS if field.metadata.get(key) is not None}
        if math.isfinite(value) and all(_HOLDS[key][1](value, bound) for key, bound in bounds.items()):
            continue
        wanted = " and ".join(f"{_HOLDS[key][0]} {bound:g}" for key, bound in bounds.items())
        raise BytegolfError(
            f"{dotted}{field.name} is {value}: give a {f'number {wanted}' if wanted else 'finite number'} "
            f"({field.metadata.get('doc', 'a number')})"
        )


_HOLDS: dict[str, tuple[str, Callable[[float, float], bool]]] = {
    "least": ("of at least", operator.ge),
    "above": ("above", operator.gt),
    "most": ("up to", operator.le),
    "below": ("below", operator.lt),
}


class Ranged:
    """A dataclass whose fields keep to the ranges in their ``doc``, however it is made."""

    def __post_init__(self) -> None:
        check_ranges(type(self), vars(self), "")


def from_dict(cls: type[T], raw: Any, where: str = "") -> T:
    """Build the dataclass ``cls`` from plain data; ``where`` is the dotted path that errors name."""
    if isinstance(raw, bool) and "on" in cls.__dict__:  # `eval.mix = true` for `[eval.mix]` with `on = true`
        raw = {"on": raw}
    if not isinstance(raw, dict):
        raise BytegolfError(f"{where or 'the configuration'} must be a table of keys, not {raw!r}")
    with _named(where):
        raw = getattr(cls, "complete", dict)(raw)
    hints = _hints(cls)  # type: ignore[arg-type]  # as any class, T can be hashed
    fields = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]  # T stands for dataclasses
    dotted = f"{where}." if where else ""
    for key in raw:
        if key not in fields:
            close = difflib.get_close_matches(key, fields, 1)
            hint = f"did you mean {dotted}{close[0]}?" if close else f"known keys: {', '.join(fields)}"
            raise BytegolfError(f"unknown configuration key {dotted}{key}: {hint}")
    values = {}
    for name, field in fields.items():
        if name in raw:
            values[name] = _value(hints[name], raw[name], dotted + name)
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise BytegolfError(f"configuration key {dotted}{name} is missing: {field.metadata['doc']}")
    check_ranges(cls, values, dotted)
    with _named(where):  # keys that do not go together
        return cls(**values)


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
    """The types of a dataclass's fields: Python compiles each of their texts again whenever it is asked."""
    return typing.get_type_hints(cls)


@contextlib.contextmanager
def _named(where: str) -> Iterator[None]:
    """Put the dotted path ``where`` before the message of an error within."""
    try:
        yield
    except BytegolfError as error:
        raise type(error)(f"{where}: {error}" if where else str(error)) from error


def _value(kind: Any, raw: Any, where: str) -> Any:
    if type(None) in typing.get_args(kind):  # float | None
        return None if raw is None else _value(typing.get_args(kind)[0], raw, where)
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        kind = _alternative(typing.get_args(kind), raw if isinstance(raw, dict) else {})
    if dataclasses.is_dataclass(kind):
        return from_dict(typing.cast("type[Any]", kind), raw, where)
    if typing.get_origin(kind) is Literal:
        choices = typing.get_args(kind)
        if raw not in choices:
            raise BytegolfError(f"{where} is {raw!r}: choose one of {', '.join(map(repr, choices))}")
        return raw
    if (origin := typing.get_origin(kind)) in (tuple, list):  # tuple[int, ...]
        if not isinstance(raw, (list, tuple)):
            raise BytegolfError(f"{where} is {raw!r}: give a list")
        items = [_value(typing.get_args(kind)[0], item, f"{where}[{n}]") for n, item in enumerate(raw)]
        for number, item in enumerate(items):
            if isinstance(item, float) and not math.isfinite(item):
                raise BytegolfError(f"{where}[{number}] is {item}: give a finite number")
        return origin(items)
    if typing.get_origin(kind) is dict:
        if not isinstance(raw, dict):
            raise BytegolfError(f"{where} is {raw!r}: give a table of keys")
        return {key: _value(typing.get_args(kind)[1], item, f"{where}.{key}") for key, item in raw.items()}
    if kind is Any:
        return raw
    if kind is float and isinstance(raw, int) and not isinstance(raw, bool) and abs(raw) < 1 << 1023:
        return float(raw)
    if type(raw) is not kind:
        raise BytegolfError(f"{where} is {raw!r}, a {type(raw).__name__}: give a value of type {kind.__name__}")
    return raw


def _alternative(kinds: tuple[type[Any], ...], raw: dict[str, Any]) -> type[Any]:
    """Which of several dataclasses a table is: the last one that has one of its keys alone, else the first.

    A network is a stack or an H-Net, and of their keys only an H-Net has ``encoder``.
    """
    names = [{field.name for field in dataclasses.fields(kind)} for kind in kinds]
    for at in range(len(kinds) - 1, 0, -1):
        if raw.keys() & names[at] - set().union(*names[:at], *names[at + 1 :]):
            return kinds[at]
    return kinds[0]


def options_of(kind: type[Any] | None, raw: dict[str, Any], who: str) -> Any:
    """The free-form ``options`` of a registered class as the dataclass ``kind``, or None if the class has none.

    Raises BytegolfError for options of a class without any, besides what ``from_dict`` raises.
    """
    if kind is not None:
        return from_dict(kind, raw, f"options of {who}")
    if raw:
        raise BytegolfError(f"{who} takes no options, but these are given: {', '.join(raw)}")
    return None


def to_dict(config: Any) -> dict[str, Any]:
    """The plain data of a configuration dataclass: what ``from_dict`` takes."""
    return dataclasses.asdict(config)


def flatten(table: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested tables as dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in table.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


# ---------------------------------------------------------------------------------------------------- presets and files


DEPTH = 8
"""How many files may extend one another: more are hardly meant, and nobody would see what holds."""


def preset_names() -> list[str]:
    """The names of the presets that come with the package, sorted."""
    folder = resources.files("bytegolf") / "presets"
    return sorted(entry.name[:-5] for entry in folder.iterdir() if entry.name.endswith(".toml"))


def read_tables(source: str | Path) -> dict[str, Any]:
    """The nested tables of a preset's name or a TOML file, laid over those of the files that it extends."""
    raw: dict[str, Any] = {}
    for _, tables in reversed(_chain(str(source))):
        _merge(raw, tables)
    return raw


def change(raw: dict[str, Any], changes: str | Mapping[str, Any]) -> None:
    """Set dotted keys of nested tables, in place: ``"train.seed=1"``, or ``{"train.seed": 1}``."""
    if isinstance(changes, str):
        _set(raw, *_parsed_override(changes))
    else:
        for path, value in changes.items():
            _set(raw, path, _plain(value))


def preset_chain(name: str) -> list[str]:
    """The preset ``name`` and those that it extends, in this order."""
    return [each for each, _ in _chain(name)]


def read_toml(path: Path, what: str) -> dict[str, Any]:
    """The tables of a TOML file; ``what`` names its role in the error when it cannot be read."""
    data = read_file(path, what)
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise BytegolfError(f"{path} is not UTF-8 (byte {error.start}), so it is no TOML file") from error
    return _parsed(text, str(path))


def _parsed(text: str, name: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except ValueError as error:  # TOMLDecodeError, and integers of more than 4,300 digits
        raise BytegolfError(f"{name} is not valid TOML: {error}") from error
    except RecursionError as error:
        raise BytegolfError(f"{name} is nested too deeply to be read: flatten it") from error


def _chain(source: str) -> list[tuple[str, dict[str, Any]]]:
    """A preset or file and all that it extends, each with its own tables; paths are relative to the file they are in.

    Raises BytegolfError for a file that comes again, and for more than ``DEPTH`` of them.
    """
    chain: list[tuple[str, dict[str, Any]]] = []
    while True:
        names = [name for name, _ in chain]
        if source in names:
            raise BytegolfError(f"{names[-1]} extends {source}, which extends it: take one `extends` out")
        if len(chain) == DEPTH:
            raise BytegolfError(f"{names[0]} extends more than {DEPTH - 1} others, one behind the other: use fewer")
        tables = _tables(source)
        chain.append((source, tables))
        if "extends" not in tables:
            return chain
        base = tables.pop("extends")
        if not isinstance(base, str):
            raise BytegolfError(f"extends is {base!r} in {source}: give the name of one preset or TOML file")
        is_path = base.endswith(".toml") or "/" in base
        source = os.path.normpath(Path(source).parent / base) if is_path else base


def _merge(below: dict[str, Any], above: dict[str, Any]) -> None:
    """Lay the tables ``above`` over those ``below``, key by key."""
    for key, value in above.items():
        if isinstance(value, dict) and isinstance(below.get(key), dict):
            _merge(below[key], value)
        else:
            _put(below, key, value)


def _tables(name: str) -> dict[str, Any]:
    """What a preset's name or a TOML file says itself."""
    if name in preset_names():
        text = (resources.files("bytegolf") / "presets" / f"{name}.toml").read_text(encoding="utf-8")
        return _parsed(text, name)
    with disk_errors(Path(name), "read"):  # of a name that is too long, for instance
        is_folder = Path(name).is_dir()
    if is_folder:
        raise BytegolfError(f"{name} is a folder: name a preset or a TOML file, such as a run's {name}/config.toml")
    if name.endswith(".toml") or "/" in name:
        return read_toml(Path(name), "configuration")
    close = difflib.get_close_matches(name, preset_names(), 1)
    hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(preset_names())}"
    raise BytegolfError(f"no preset is called {name!r}: {hint} (a file's name must end in .toml)")


def _parsed_override(override: str) -> tuple[str, Any]:
    """The dotted key and the value of ``section.key=value``, read as TOML, or as a bare string where it is none."""
    path, equals, text = override.partition("=")
    if not equals or not path:
        raise BytegolfError(f"{override!r} is no override: write section.key=value, for instance optim.muon_lr=0.02")
    try:
        parsed = tomllib.loads(f"value = {text}")
    except (ValueError, RecursionError):
        parsed = {}
    # a line break in the text could begin a second key: such a text is a bare string as well
    return path, parsed["value"] if parsed.keys() == {"value"} else text


def _plain(value: Any) -> Any:
    """A Python value as TOML would have it."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return to_dict(value)
    if isinstance(value, tuple):
        return list(value)
    return str(value) if isinstance(value, os.PathLike) else value


def _set(raw: dict[str, Any], path: str, value: Any) -> None:
    """Set one dotted key of nested tables."""
    *tables, key = path.split(".")
    for table in tables:
        if isinstance(raw.get(table), bool):  # a section that is switched on or off by its name
            raw[table] = {"on": raw[table]}
        raw = raw.setdefault(table, {})
        if not isinstance(raw, dict):
            raise BytegolfError(f"{path}: {table} is a value, not a section, so it holds no key {key}")
    _put(raw, key, value)


def _put(table: dict[str, Any], key: str, value: Any) -> None:
    """Set one key; true or false for a section that can be on or off leaves its other keys."""
    old = table.get(key)
    if isinstance(value, bool) and isinstance(old, dict) and "on" in old:
        old["on"] = value
    else:
        table[key] = value
