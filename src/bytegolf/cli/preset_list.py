"""The list of presets, which answers at once: what torch would have to count is in ``presets/sizes.json``."""

from __future__ import annotations

import json
from importlib import resources
from typing import Any

from rich.table import Table

from bytegolf.api.results import Preset, Presets
from bytegolf.config import Config, preset_names, to_dict
from bytegolf.data.dataset import short_hash
from bytegolf.errors import sized

SIZES = "sizes.json"


def presets() -> Presets:
    """Each preset with its parameters, and its artifact's size before compression as an estimate."""
    written = resources.files("bytegolf") / "presets" / SIZES
    known = json.loads(written.read_text(encoding="utf-8")) if written.is_file() else {}
    found = []
    for name in preset_names():
        config = Config.load(name)
        params, size = known.get(shape(config)) or sizes(config)
        found.append(Preset(name, config.about, config.data.tokenizer, params, size))
    return Presets(found)


def shape(config: Config) -> str:
    """A hash of what decides a model's size: a preset that has changed is not found under it, and is counted anew."""
    told: dict[str, Any] = to_dict(config)
    return short_hash({key: told[key] for key in ("model", "export")})


def sizes(config: Config) -> tuple[int, int]:
    """Parameters, and the artifact's estimated bytes. This takes torch, and seconds."""
    from bytegolf.artifact.quantize import estimated_bytes
    from bytegolf.model.lm import count_parameters, outline

    model = outline(config.model)
    return count_parameters(model), estimated_bytes(model, config.export)


def preset_table(found: Presets) -> Table:
    """The presets, a row each."""
    table = Table(box=None, pad_edge=False)
    table.add_column("preset", no_wrap=True, min_width=max(len(one.name) for one in found.presets))
    table.add_column("params", no_wrap=True, min_width=len("00.00 M"), justify="right")
    table.add_column("artifact", no_wrap=True, min_width=len("≈00.0 MB"), justify="right")
    table.add_column("what")
    for one in found.presets:
        size = f"≈{sized(one.artifact_estimate_bytes)}"
        table.add_row(one.name, f"{one.params / 1e6:.2f} M", size, one.about)
    return table
