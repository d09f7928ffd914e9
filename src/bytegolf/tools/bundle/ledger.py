"""Where every byte of a submission goes, against Parameter Golf's limit of 16,000,000.

The rules count the compressed model and all code of one's own that training and evaluation need, as it is
shipped; public libraries are free. That code is the one script that ``bundle.script`` makes for a submission.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable
from pathlib import Path

from rich import box
from rich.table import Table

from bytegolf.artifact import container
from bytegolf.artifact.payload import Payload, config_of, open_payload
from bytegolf.artifact.quantize import group_of
from bytegolf.artifact.results import LIMIT, Ledger, LedgerRow
from bytegolf.tools.bundle.script import code_bytes


def measure(path: Path, every: bool = False) -> Ledger:
    """The ledger of the artifact at ``path`` on the disk; one row per tensor if ``every``, else one per group.

    Raises BytegolfError: the file is missing, no artifact, damaged, or of an unknown configuration.
    """
    opened = open_payload(path, counting=True)
    box = opened.box
    told, version = box.header.get("config"), str(box.header.get("bytegolf"))
    config = config_of(told if isinstance(told, dict) else {}, version, str(path))
    rows: dict[str, LedgerRow] = {}
    for entry, share in zip(opened.entries, _apportion(len(box.packed), _weights(opened)), strict=True):
        group = f"{entry.name} ({entry.quantizer})" if every else group_of(entry.name)
        old = rows.get(group, LedgerRow(group, 0, 0, 0, 0))
        raw, packed = old.raw_bytes + len(entry.raw(opened.payload)), old.packed_bytes + share
        weights = entry.numel if entry.counted else 0
        rows[group] = LedgerRow(group, old.tensors + 1, old.parameters + weights, raw, packed)
    primed = len(box.primer)
    overhead = box.file_bytes - (len(box.packed) if rows else 0) - primed
    code = code_bytes(config)
    told = box.header.get("primer") or {}
    others = [LedgerRow("primer", 0, 0, int(told.get("bytes", 0)), primed)] if primed else []
    others += [LedgerRow("header and hash", 0, 0, overhead, overhead), LedgerRow("code", 0, 0, code, code)]
    return account([*rows.values(), *others], box.file_bytes, code)


def account(rows: Iterable[LedgerRow], model_bytes: int, code_bytes: int) -> Ledger:
    """The ledger of some rows, against ``LIMIT``."""
    total = model_bytes + code_bytes
    full = tuple(
        dataclasses.replace(row, bits_per_weight=8 * row.packed_bytes / row.parameters if row.parameters else None)
        for row in rows
    )
    return Ledger(model_bytes, code_bytes, total, LIMIT, total <= LIMIT, full)


def _weights(opened: Payload) -> list[int]:
    """What the tensors' shares of the packed payload are in proportion to; positive.

    The bits that each was coded with (``range``); or, of one stream, what each tensor compresses to on its own.
    """
    if opened.bits is not None:
        return [1 + round(bits) for bits in opened.bits]
    return [len(container.compress("zlib", entry.raw(opened.payload))) for entry in opened.entries]


def table(ledger: Ledger) -> Table:
    """The ledger for people: one row per group, then the total against the limit."""
    spare = ledger.limit - ledger.total_bytes
    verdict = f"fits, {spare:,} bytes to spare" if ledger.fits else f"{-spare:,} bytes too large"
    drawn = Table(box=box.SIMPLE_HEAD, show_footer=True, pad_edge=False)
    drawn.add_column("bytes of", footer="total")
    drawn.add_column("parameters", justify="right", footer=f"{sum(row.parameters for row in ledger.rows):,}")
    drawn.add_column("raw", justify="right", footer=f"{sum(row.raw_bytes for row in ledger.rows):,}")
    drawn.add_column("packed", justify="right", footer=f"{ledger.total_bytes:,}")
    drawn.add_column("bits each", justify="right")
    drawn.add_column("of limit", justify="right", footer=f"{ledger.total_bytes / ledger.limit:.2%}")
    for row in ledger.rows:
        parameters = f"{row.parameters:,}" if row.tensors else ""
        bits = "" if row.bits_per_weight is None else f"{row.bits_per_weight:.2f}"
        share = f"{row.packed_bytes / ledger.limit:.2%}"
        drawn.add_row(row.group, parameters, f"{row.raw_bytes:,}", f"{row.packed_bytes:,}", bits, share)
    drawn.caption = f"limit {ledger.limit:,}: {verdict}"
    drawn.caption_justify = "left"
    return drawn


def _apportion(total: int, weights: list[int]) -> list[int]:
    """Split ``total`` in proportion to positive ``weights``, into integers whose sum is ``total``."""
    whole = sum(weights)
    cuts = [0, *(total * before // whole for before in itertools.accumulate(weights))]
    return [end - start for start, end in itertools.pairwise(cuts)]
