"""Reading configurations: a preset or a TOML file, with dotted changes.

``extends = "NAME"`` at the top of a file takes over another one, a preset or a file, and the keys beside it change it.
"""

from __future__ import annotations

import dataclasses
import difflib
import os
import tomllib
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from bytegolf.config.fields import to_dict
from bytegolf.errors import BytegolfError
from bytegolf.files import disk_errors, read_file

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
