"""bytegolf: learned tokenization. Byte-level H-Nets: trained, scored, looked into, shipped.

    import bytegolf

    run = bytegolf.train("cpu-demo", data="data/default", out="runs/demo")
    model = bytegolf.load("runs/demo")
    model.chunks("The quick brown fox")      # ['The ', 'quick ', 'brown ', 'fox']
    model.score("The quick brown fox").bpb   # bits per byte

The names below are imported when they are first used: ``import bytegolf`` itself loads no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from bytegolf.api.model import Model, load
    from bytegolf.api.results import Evaluation, Summary
    from bytegolf.api.run import Run, train
    from bytegolf.api.trainer import Trainer
    from bytegolf.bpb import Score
    from bytegolf.config import Config
    from bytegolf.data.prepare import prepare
    from bytegolf.errors import BytegolfError
    from bytegolf.registry import register_mixer, register_quantizer, register_router

_WHERE = {
    "BytegolfError": "errors",
    "Config": "config",
    "Evaluation": "api.results",
    "Model": "api.model",
    "Run": "api.run",
    "Score": "bpb",
    "Summary": "api.results",
    "Trainer": "api.trainer",
    "load": "api.model",
    "prepare": "data.prepare",
    "register_mixer": "registry",
    "register_quantizer": "registry",
    "register_router": "registry",
    "train": "api.run",
}
"""The module that each public name lies in."""

__all__ = [
    "BytegolfError",
    "Config",
    "Evaluation",
    "Model",
    "Run",
    "Score",
    "Summary",
    "Trainer",
    "__version__",
    "load",
    "prepare",
    "register_mixer",
    "register_quantizer",
    "register_router",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'bytegolf' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"bytegolf.{_WHERE[name]}"), name)
    globals()[name] = value  # the next time it is simply there
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
