"""Where every byte of a submission goes, against Parameter Golf's limit of 16,000,000.

The rules count the compressed model and all code of one's own that training and evaluation need, as it is
shipped; public libraries are free. Code is therefore counted raw: the bytes of this package's ``.py``
files, except the stages that come after evaluation (``NOT_COUNTED``), and of the preset that the model's
configuration is named after.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table

from bytegolf.artifact import container
from bytegolf.artifact.layout import TensorEntry, read_entries

LIMIT = 16_000_000
"""Bytes of code and model together; decimal, not 16 MiB (the rules of Parameter Golf)."""

NOT_COUNTED = frozenset({"infer", "analyze", "study"})
"""Stages that neither training nor evaluation imports, and that a submission therefore leaves out."""


@dataclass(frozen=True)
class LedgerRow:
    """One group of bytes.

    Attributes:
        group: what they are: tensors that belong together, the header, the code.
        tensors, parameters: how many of each; 0 for what is no weight.
        raw_bytes: size before compression.
        packed_bytes: its part of the total. For tensors this is a share of the compressed payload, in
        proportion to
            what each group compresses to on its own, so that the rows add up to the total exactly.
    """

    group: str
    tensors: int
    parameters: int
    raw_bytes: int
    packed_bytes: int


@dataclass(frozen=True)
class Ledger:
    """The account of one artifact: all sizes in bytes, rows in the file's order."""

    rows: tuple[LedgerRow, ...]
    model_bytes: int
    code_bytes: int
    limit: int = LIMIT

    @property
    def total_bytes(self) -> int:
        """Code and model together."""
        return self.model_bytes + self.code_bytes

    @property
    def fits(self) -> bool:
        """Whether the total keeps within the limit."""
        return self.total_bytes <= self.limit

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON data: model_bytes, code_bytes, total_bytes, limit, fits, rows."""
        return {
            "model_bytes": self.model_bytes,
            "code_bytes": self.code_bytes,
            "total_bytes": self.total_bytes,
            "limit": self.limit,
            "fits": self.fits,
            "rows": [asdict(row) for row in self.rows],
        }


def measure(path: Path) -> Ledger:
    """The ledger of the artifact at ``path``, as it lies on the disk.

    Raises:
        BytegolfError: the file is missing, no artifact or damaged.
    """
    opened = container.read(path)
    groups: dict[str, list[TensorEntry]] = {}
    for entry in read_entries(opened.header.get("tensors"), len(opened.payload), str(path)):
        groups.setdefault(group_of(entry.name), []).append(entry)
    raw = [b"".join(entry.raw(opened.payload) for entry in entries) for entries in groups.values()]
    shares = _apportion(opened.payload_bytes, [len(container.compress(data)) for data in raw])
    rows = [
        LedgerRow(group, len(entries), sum(entry.numel for entry in entries), len(data), share)
        for (group, entries), data, share in zip(groups.items(), raw, shares, strict=True)
    ]
    overhead = opened.file_bytes - (opened.payload_bytes if rows else 0)
    rows.append(LedgerRow("header and hash", 0, 0, overhead, overhead))
    config = opened.header.get("config")
    name = config.get("name") if isinstance(config, dict) else None
    code = code_bytes(name if isinstance(name, str) else None)
    rows.append(LedgerRow("code", 0, 0, code, code))
    return Ledger(tuple(rows), opened.file_bytes, code)


def code_files(preset: str | None = None) -> dict[str, int]:
    """The counted files, by path inside the package, with their sizes in bytes.

    Args:
        preset: a preset whose TOML counts too, if one of that name comes with the package.
    """
    package = resources.files("bytegolf")
    files = {name: len(file.read_bytes()) for name, file in _sources(package, "")}
    # looked up among the names there are, as the name may come out of a stranger's file
    for file in (package / "presets").iterdir() if (package / "presets").is_dir() else ():
        if file.name == f"{preset}.toml":
            files[f"presets/{file.name}"] = len(file.read_bytes())
    return files


def code_bytes(preset: str | None = None) -> int:
    """The size of the code that counts (``code_files``), in bytes."""
    return sum(code_files(preset).values())


def group_of(name: str) -> str:
    """The group of a tensor: its stage, and within the stage attention, MLP or the scales and mixes.

    >>> group_of("network.encoder.blocks.0.attn.qkv.weight")
    'network.encoder attn'
    >>> group_of("network.encoder.blocks.0.resid_mix")
    'network.encoder scales'
    >>> group_of("embedding.weight")
    'embedding'
    """
    block = re.match(r"(.*?)\.?blocks\.\d+\.(.+)", name)
    if block:
        part, dot, _ = block[2].partition(".")
        return f"{block[1]} {part if dot else 'scales'}".strip()
    parent, _, leaf = name.rpartition(".")
    return parent if leaf == "weight" and parent else f"{parent} scales" if parent else name


def table(ledger: Ledger) -> Table:
    """The ledger for people: one row a group, then the total against the limit."""
    spare = ledger.limit - ledger.total_bytes
    verdict = f"fits, {spare:,} bytes to spare" if ledger.fits else f"{-spare:,} bytes too large"
    drawn = Table(box=box.SIMPLE_HEAD, show_footer=True, pad_edge=False)
    drawn.add_column("bytes of", footer="total")
    drawn.add_column("parameters", justify="right", footer=f"{sum(row.parameters for row in ledger.rows):,}")
    drawn.add_column("raw", justify="right", footer=f"{sum(row.raw_bytes for row in ledger.rows):,}")
    drawn.add_column("packed", justify="right", footer=f"{ledger.total_bytes:,}")
    drawn.add_column("of limit", justify="right", footer=f"{ledger.total_bytes / ledger.limit:.2%}")
    for row in ledger.rows:
        parameters = f"{row.parameters:,}" if row.tensors else ""
        share = f"{row.packed_bytes / ledger.limit:.2%}"
        drawn.add_row(row.group, parameters, f"{row.raw_bytes:,}", f"{row.packed_bytes:,}", share)
    drawn.caption = f"limit {ledger.limit:,}: {verdict}"
    drawn.caption_justify = "left"
    return drawn


def _sources(folder: Traversable, prefix: str) -> Iterator[tuple[str, Traversable]]:
    for entry in sorted(folder.iterdir(), key=lambda entry: entry.name):
        if entry.is_dir():
            if prefix or entry.name not in NOT_COUNTED:
                yield from _sources(entry, f"{prefix}{entry.name}/")
        elif entry.name.endswith(".py"):
            yield f"{prefix}{entry.name}", entry


def _apportion(total: int, weights: list[int]) -> list[int]:
    """Split ``total`` in proportion to positive ``weights``, into integers whose sum is ``total``."""
    shares, before, done = [], 0, 0
    whole = sum(weights)
    for weight in weights:
        before += weight
        cut = total * before // whole
        shares.append(cut - done)
        done = cut
    return shares
