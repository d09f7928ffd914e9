"""Texts as people give them."""

from __future__ import annotations

from bytegolf.errors import BytegolfError

Text = str | bytes
"""A text: ``str`` is taken as its UTF-8 bytes. Only byte-level models take bytes that are no UTF-8."""


def as_bytes(text: Text) -> bytes:
    """The bytes of a text. Raises BytegolfError for what is none."""
    if isinstance(text, str):
        try:
            return text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise BytegolfError(f"the text is no UTF-8 (character {error.start}): give bytes instead") from error
    try:
        return bytes(memoryview(text))  # bytes(5) alone would be five zeros
    except TypeError as error:
        raise BytegolfError(f"a text is a str or bytes, not {type(text).__name__}") from error
