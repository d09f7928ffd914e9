"""The router that a configuration asks for."""

from __future__ import annotations

from bytegolf.config import RouterConfig
from bytegolf.errors import BytegolfError
from bytegolf.model.routers.base import Router
from bytegolf.registry import ROUTERS


def build_router(config: RouterConfig, dim: int, vocab_size: int) -> Router:
    """The router of an HNet of width ``dim`` over ``vocab_size`` tokens (0 at an inner level, which sees none).

    Raises BytegolfError for a kind that nothing registered.
    """
    found = ROUTERS.find(config.kind, __package__)
    if not issubclass(found, Router):
        raise BytegolfError(f"the router {config.kind!r} is no subclass of bytegolf.model.routers.base.Router")
    return found(config, dim, vocab_size)
