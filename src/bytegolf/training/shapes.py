"""The shapes of what a model multiplies with and looks up, from its configuration alone.

Legend: D width, K width of keys, H hidden width of the MLP, R width of what a router compares.
"""

from __future__ import annotations

from collections.abc import Iterator

from bytegolf.config import Config, HNetConfig, ModelConfig, NetworkConfig, SoftConfig, StackConfig, levels, outer_dim

Shape = tuple[int, int]
"""inner and outer width of a map, or rows and width of a table"""


def widths(stage: StackConfig) -> tuple[int, int]:
    """K and H of a block."""
    return stage.kv_heads * (stage.dim // stage.heads), int(stage.mlp_mult * stage.dim)


def block_maps(stage: StackConfig) -> list[Shape]:
    """The maps of a block: q, k, v and out of attention, then the MLP's two."""
    keys, hidden = widths(stage)
    dim = stage.dim
    return [(dim, dim), (dim, keys), (dim, keys), (dim, dim), (dim, hidden), (hidden, dim)]


def router_maps(level: HNetConfig) -> list[Shape]:
    """A learned router's two maps; a fixed rule has none."""
    dim = level.encoder.dim
    return [(dim, level.router.cosine.dim or dim)] * 2 if level.router.kind == "cosine" else []


def chunk_hash_map(level: HNetConfig) -> list[Shape]:
    """What each chunk's row of a chunk_hash goes through, if there is one."""
    return [(level.chunk_hash.dim, outer_dim(level.main))] if level.chunk_hash.dim else []


def ngram_map(model: ModelConfig) -> list[Shape]:
    """What the rows of a position's n-grams go through together, if there are any."""
    lengths = model.ngrams.longest - 1
    return [(lengths * model.ngrams.dim, outer_dim(model.network))] if lengths else []


def soft_maps(soft: SoftConfig, dim: int) -> list[Shape]:
    """The maps of a layer of soft chunking: of the boundary, and W."""
    boundary = [(2 * dim, soft.inner), (soft.inner, 1)] if soft.inner else [(2 * dim, 1)]
    return [*boundary, *([(dim, dim)] if soft.mixer else [])]


def matrices(config: Config) -> Iterator[Shape]:
    """Every matrix that Muon moves: all but the embedding and the tables, and but the routers' if Adam has those."""
    model = config.model
    yield from ngram_map(model)
    yield from soft_maps(model.soft, outer_dim(model.network)) * model.soft.layers
    yield from _matrices(model.network, routers=config.optim.router_lr == 0)


def _matrices(network: NetworkConfig, routers: bool) -> Iterator[Shape]:
    if isinstance(network, StackConfig):
        yield from block_maps(network) * network.layers
        return
    yield from router_maps(network) if routers else []
    yield network.encoder.dim, network.encoder.dim  # the residual
    yield from chunk_hash_map(network)
    for inner in (network.encoder, network.main, network.decoder):
        yield from _matrices(inner, routers)


def tables(model: ModelConfig) -> Iterator[Shape]:
    """The tables of which a batch looks up few rows: the n-grams' and the chunk_hash's."""
    ngrams = model.ngrams
    if ngrams.longest > 1:
        yield (ngrams.longest - 1) << ngrams.bits, ngrams.dim
    for level in levels(model.network):
        if level.chunk_hash.dim:
            yield 1 << level.chunk_hash.bits, level.chunk_hash.dim
