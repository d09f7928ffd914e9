"""docs/cli.md: the command line's own help, verb by verb.

python docs/make_cli.py            writes it
python docs/make_cli.py --check    exit code 1 if it is not up to date
"""

from __future__ import annotations

import io
import sys
from pathlib import Path

from rich.console import Console

from bytegolf.cli.common import json_keys
from bytegolf.cli.run import app

PAGE = Path(__file__).parent / "cli.md"
WIDTH = 80
HEAD = """\
# Command line

The help of every verb, as `bytegolf VERB --help` prints it. [Commands](guide/commands.md) shows them at work.
The keys of its JSON come with `--help --json`. This page is made by `python docs/make_cli.py`.
"""


def help_of(*words: str) -> str:
    """What ``bytegolf WORDS --help`` prints, in lines of at most ``WIDTH`` characters."""
    group = app
    for word in words:
        group = group[word]
    out = io.StringIO()
    console = Console(file=out, width=WIDTH, color_system=None, force_terminal=False, highlight=False)
    app([*words, "--help"], console=console, exit_on_error=False, result_action="return_value")
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines()).strip()


def json_of(*words: str) -> str:
    """What the keys of a verb's JSON are; empty for a group of verbs, and for what prints none."""
    group = app
    for word in words:
        group = group[word]
    return json_keys(group.default_command) if group.default_command else ""


def verbs(*words: str) -> list[tuple[str, ...]]:
    """The verbs below ``words``, each followed by its own, in the order of the help."""
    group = app
    for word in words:
        group = group[word]
    names: dict[int, str] = {}
    for name in group:
        if not name.startswith("-"):
            names.setdefault(id(group[name]), name)  # an alias comes after the name
    ordered = sorted(names.values(), key=lambda name: group[name].sort_key or 0)
    return [each for name in ordered for each in ((*words, name), *verbs(*words, name))]


def page() -> str:
    """The whole page."""
    parts = [HEAD, f"```text\n{help_of()}\n```\n"]
    for words in verbs():
        keys = json_of(*words)
        explained = f"\nThe keys of its JSON (`--help --json`):\n\n```text\n{keys}\n```\n" if keys else ""
        parts.append(f"{'#' * (len(words) + 1)} {' '.join(words)}\n\n```text\n{help_of(*words)}\n```\n{explained}")
    return "\n".join(parts)


def main() -> None:
    made = page()
    if "--check" in sys.argv[1:]:
        if not PAGE.exists() or PAGE.read_text(encoding="utf-8") != made:
            sys.exit("docs/cli.md is not what the command line says: run `python docs/make_cli.py`")
        return
    PAGE.write_text(made, encoding="utf-8")


if __name__ == "__main__":
    main()
