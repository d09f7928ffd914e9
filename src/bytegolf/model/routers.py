"""The router that a configuration asks for."""

from __future__ import annotations

from bytegolf.config import RouterConfig
from bytegolf.model.bpe_router import BpeRouter
from bytegolf.model.entropy_router import EntropyRouter
from bytegolf.model.fixed_router import RandomRouter, StrideRouter, WhitespaceRouter
from bytegolf.model.router import CosineRouter, Router


def build_router(config: RouterConfig, dim: int, vocab_size: int) -> Router:
    """The router of a level of width ``dim`` over ``vocab_size`` tokens (0 at an inner level, which sees none)."""
    match config.kind:
        case "cosine":
            return CosineRouter(dim, config, WhitespaceRouter(config, vocab_size) if config.guide_weight > 0 else None)
        case "stride":
            return StrideRouter(config)
        case "random":
            return RandomRouter(config)
        case "whitespace":
            return WhitespaceRouter(config, vocab_size)
        case "edges":
            return BpeRouter(config)
        case "entropy":
            return EntropyRouter(config, vocab_size)
