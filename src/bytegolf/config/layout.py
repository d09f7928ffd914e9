"""Layout strings of the public H-Nets (arXiv 2507.07955): which blocks a stack has, in letters and numbers."""

from __future__ import annotations

import re

from bytegolf.errors import BytegolfError

ATTENTION, MAMBA = "attention", "mamba2"
"""The registered mixers that letters stand for."""

LETTERS = {"m": MAMBA, "t": ATTENTION}

MOST_BLOCKS = 4096
"""A number of more digits is a slip, and would be built."""

_PART = re.compile(r"([mMtT])(\d{1,5})")


def read_layout(layout: str) -> list[tuple[str, bool]]:
    """Each block's mixer, and whether an MLP follows it. Raises BytegolfError.

    >>> read_layout("T1m2")
    [('attention', True), ('mamba2', False), ('mamba2', False)]
    """
    if not re.fullmatch(rf"({_PART.pattern})+", layout):
        raise BytegolfError(
            f"the layout {layout!r} is none: write letters with a number each, m or M for Mamba-2, t or T for "
            'attention, capitals with an MLP, such as "T1m4"'
        )
    blocks = [(letter, int(count)) for letter, count in _PART.findall(layout)]
    if sum(count for _, count in blocks) > MOST_BLOCKS:
        raise BytegolfError(f"the layout {layout!r} names more than {MOST_BLOCKS} blocks: name fewer")
    return [(LETTERS[letter.lower()], letter.isupper()) for letter, count in blocks for _ in range(count)]


def write_layout(blocks: list[tuple[str, bool]]) -> str:
    """The layout string of blocks as ``read_layout`` gives them. Raises BytegolfError for a mixer without a letter.

    >>> write_layout([("attention", True), ("mamba2", False), ("mamba2", False)])
    'T1m2'
    """
    letters = {kind: letter for letter, kind in LETTERS.items()}
    parts: list[list[str]] = []
    for kind, with_mlp in blocks:
        if kind not in letters:
            raise BytegolfError(f"a layout has no letter for the mixer {kind!r}: only {', '.join(letters)} have one")
        letter = letters[kind].upper() if with_mlp else letters[kind]
        if parts and parts[-1][0] == letter:
            parts[-1].append(letter)
        else:
            parts.append([letter])
    return "".join(f"{part[0]}{len(part)}" for part in parts) or "m0"
