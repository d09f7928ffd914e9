"""The standard library's decoders and decompressors, by their full names, each with a bound on what it makes."""

from __future__ import annotations

import base64
import binascii
import bz2
import codecs
import importlib.util
import lzma
import zlib
from collections.abc import Callable
from types import MappingProxyType
from typing import Any

MOST_BYTES = 4_000_000
"""Of a script, and of what one call unpacks: nobody reads more."""


class Unknown(Exception):  # noqa: N818  (an answer)
    """An expression whose value is not to be had without running the script."""


ENCODINGS = frozenset({"utf-8", "utf8", "ascii", "latin-1", "latin1", "iso-8859-1", "utf-16", "utf-32", "cp437",
                       "cp1252", "raw-unicode-escape", "unicode-escape"})  # fmt: skip
"""Encodings of text that a script may name."""


def _bytes(text: Any) -> bytes:
    return text.encode("latin-1") if isinstance(text, str) else bytes(text)


def _limited(made: Any) -> Callable[..., bytes]:
    """A decompressor that stops at the size that anybody would read; several streams in a row are unpacked as one."""

    def decompress(data: Any, *given: Any, **named: Any) -> bytes:
        rest, found = _bytes(data), b""
        while rest:  # `xz` files may be several streams in a row, with zeros between them
            unpacker = made(*given, **named)
            # never more than one byte beyond the limit is unpacked: a bomb is noticed, and takes no memory
            found += unpacker.decompress(rest, MOST_BYTES + 1 - len(found))
            if len(found) > MOST_BYTES or not unpacker.eof:
                raise Unknown("it unpacks to too much, or is cut short")
            rest = getattr(unpacker, "unused_data", b"").lstrip(b"\0")
        return found

    return decompress


_MOST_MEMORY = 1 << 28
"""Bytes of a dictionary that a raw stream of LZMA may ask for."""


def _lzma(format: int = lzma.FORMAT_AUTO, memlimit: int | None = None, filters: Any = None) -> lzma.LZMADecompressor:
    for one in filters or ():
        if one.get("dict_size", 0) > _MOST_MEMORY or one.get("preset", 0) & 31 > 9:
            raise Unknown("it asks for too much memory")
    return lzma.LZMADecompressor(format, 512 * 2**20 if format != lzma.FORMAT_RAW else None, filters)


def _brotli(data: Any) -> bytes:
    if importlib.util.find_spec("brotli") is None:
        raise Unknown("brotli is not installed here")
    import brotli

    unpacker = brotli.Decompressor()
    found = bytes(unpacker.process(_bytes(data), output_buffer_limit=MOST_BYTES + 1))
    if not unpacker.is_finished():
        raise Unknown("it unpacks to too much, or is cut short")
    return found


def _codec(text: Any, name: str = "utf-8", *_: Any) -> Any:
    kind = name.replace("-", "_").removesuffix("_codec")
    by_name = {"hex": "binascii.unhexlify", "zlib": "zlib.decompress", "zip": "zlib.decompress",
               "bz2": "bz2.decompress", "base64": "base64.b64decode"}  # fmt: skip
    if kind in by_name:
        return DECODERS[by_name[kind]](text)
    if kind in ("rot13", "rot_13"):
        return codecs.decode(text, "rot13")
    if name not in ENCODINGS:
        raise Unknown(f"the encoding {name}")
    return _bytes(text).decode(name)


DECODERS: MappingProxyType[str, Callable[..., Any]] = MappingProxyType({
    **{f"base64.{name}": getattr(base64, name) for name in
       ("b64decode", "b85decode", "a85decode", "b32decode", "b16decode", "urlsafe_b64decode", "standard_b64decode",
        "decodebytes", "b32hexdecode")},
    "binascii.unhexlify": binascii.unhexlify, "binascii.a2b_hex": binascii.a2b_hex,
    "binascii.a2b_base64": binascii.a2b_base64, "bytes.fromhex": bytes.fromhex, "bytearray.fromhex": bytes.fromhex,
    "str.maketrans": str.maketrans, "bytes.maketrans": bytes.maketrans,
    "zlib.decompress": _limited(lambda wbits=15, bufsize=0: zlib.decompressobj(wbits)),
    "gzip.decompress": _limited(lambda: zlib.decompressobj(31)),
    "bz2.decompress": _limited(bz2.BZ2Decompressor), "lzma.decompress": _limited(_lzma),
    "brotli.decompress": _brotli, "codecs.decode": _codec,
})  # fmt: skip
"""By their full names; each raises Unknown, or whatever its library does, for what it cannot decode."""
