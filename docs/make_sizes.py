"""presets/sizes.json: how large each preset's model is, so that `bytegolf presets` needs no torch to say it.

python docs/make_sizes.py
"""

from __future__ import annotations

import json
from pathlib import Path

from bytegolf.cli.preset_list import SIZES, shape, sizes
from bytegolf.config import Config, preset_names

PATH = Path(__file__).parents[1] / "src" / "bytegolf" / "presets" / SIZES


def table() -> dict[str, list[int]]:
    """Parameters and estimated bytes of every preset, by ``shape``."""
    configs = [Config.load(name) for name in preset_names()]
    return {shape(config): list(sizes(config)) for config in configs}


if __name__ == "__main__":
    PATH.write_text(json.dumps(table(), indent=0) + "\n", encoding="utf-8")
