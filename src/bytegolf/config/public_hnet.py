"""The public H-Nets' configuration files (JSON; arXiv 2507.07955 and its public code) as ours, and back.

    {"arch_layout": ["m4", ["T1m4", ["T26"], "m4T1"], "m4"], "d_model": [1024, 1024, 1536],
     "d_intermediate": [0, 2816, 4096], "vocab_size": 256, "tie_embeddings": false,
     "ssm_cfg": {"chunk_size": 256, "d_conv": 4, "d_state": 128, "expand": 2},
     "attn_cfg": {"num_heads": [16, 16, 16], "rotary_emb_dim": [32, 32, 48], "window_size": [1023, 1023, -1]}}

``arch_layout`` is [encoder, [inner …], decoder], innermost [stack]; the other lists have a number per stage, outermost
first. A window of w there is a position and the w before it, ours counts the position too; -1 is all, ours 0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bytegolf.config.model import (
    ATTENTION,
    MAMBA,
    CosineConfig,
    HNetConfig,
    ModelConfig,
    NetworkConfig,
    RouterConfig,
    StackConfig,
    levels,
    read_layout,
    write_layout,
)
from bytegolf.errors import BytegolfError

MLP_MULTIPLE = 128
"""What the public code rounds ``d_intermediate`` up to a multiple of."""

TARGETS = {1: (6.0,), 2: (3.0, 3.0)}
"""N per stage as the paper trained them; for more stages 3 each."""

STAGE_LISTS = ("num_heads", "rotary_emb_dim", "window_size")
SSM = {"chunk_size": 256, "d_conv": 4, "d_state": 128, "expand": 2}
"""Keys of ``ssm_cfg``, and the public code's defaults."""

MOST_STAGES = 8


def from_public(raw: Mapping[str, Any], targets: Sequence[float] = ()) -> ModelConfig:
    """Our configuration of a public one; ``targets`` are N per chunking stage (none: the paper's).

    Raises BytegolfError: a sentence that names the key, for a missing or wrong one.
    """
    layouts = _layouts(_get(raw, "arch_layout"))
    stages = len(layouts)
    widths, hidden = (_numbers(raw, key, stages, least) for key, least in (("d_model", 1), ("d_intermediate", 0)))
    ssm_cfg, attn_cfg = (_table(raw, key) for key in ("ssm_cfg", "attn_cfg"))
    unknown = [*(ssm_cfg.keys() - SSM.keys()), *(attn_cfg.keys() - set(STAGE_LISTS))]
    if unknown:
        raise BytegolfError(
            f"the public configuration has the unknown key {unknown[0]!r}: this model has no such option"
        )
    ssm = {key: _number(ssm_cfg, key, default) for key, default in SSM.items()}
    heads, rotary, windows = (
        _numbers(attn_cfg, key, stages, least) for key, least in zip(STAGE_LISTS, (1, 0, -1), strict=True)
    )
    tied = _get(raw, "tie_embeddings")
    if not isinstance(tied, bool):
        raise BytegolfError(f"tie_embeddings is {tied!r} in the public configuration: give true or false")

    def stack(stage: int, layout: str) -> StackConfig:
        blocks = read_layout(layout)
        if any(with_mlp for _, with_mlp in blocks) and not hidden[stage]:
            raise BytegolfError(f"arch_layout has MLPs in {layout!r}, but d_intermediate is 0 there: give their width")
        mamba = any(kind == MAMBA for kind, _ in blocks)
        return StackConfig(
            layers=len(blocks),
            dim=widths[stage],
            heads=heads[stage],
            kv_heads=heads[stage],
            window=windows[stage] + 1,
            kind=ATTENTION,
            options=dict(ssm) if mamba else {},
            layout=layout,
            block="prenorm",
            mlp="swiglu",
            mlp_hidden=hidden[stage],
            mlp_multiple=MLP_MULTIPLE,
            qk_norm=False,
            rotary_dim=rotary[stage],
            rotary_turn="counterclockwise",
        )

    wanted = tuple(targets) or TARGETS.get(stages - 1, (3.0,) * (stages - 1))
    if len(wanted) != stages - 1:
        raise BytegolfError(
            f"{len(wanted)} target chunk sizes are given for {stages - 1} chunking stages: give one each"
        )
    network: NetworkConfig = stack(stages - 1, layouts[-1][0])
    for stage in reversed(range(stages - 1)):
        router = RouterConfig(
            wanted[stage],
            0.03,
            ratio_over="batch",
            smooth_from="zero",
            cosine=CosineConfig(query="previous", strict=True),
        )
        encoder, decoder = (stack(stage, layout) for layout in layouts[stage])
        network = HNetConfig(encoder, router, network, decoder, residual_bias=True, residual_fp32=True)
    return ModelConfig(
        network,
        _number(raw, "vocab_size"),
        embed_std=1.0,
        softcap=0.0,
        tied=tied,
        embed_norm=False,
        init="hnet",
    )


def to_public(config: ModelConfig) -> dict[str, Any]:
    """The public configuration of a model that ``from_public`` could have given.

    Raises BytegolfError for a model that the public code has no configuration of.
    """
    chunking = levels(config.network)
    innermost = chunking[-1].main if chunking else config.network
    assert isinstance(innermost, StackConfig)
    pairs = [*((level.encoder, level.decoder) for level in chunking), (innermost, innermost)]
    everything = [stack for pair in pairs for stack in pair]
    ssm = next((stack.options for stack in everything if MAMBA in {kind for kind, _ in stack.sorts}), {})
    arch: list[Any] = [_layout_of(innermost)]
    for level in reversed(chunking):
        arch = [_layout_of(level.encoder), arch, _layout_of(level.decoder)]
    with_attention = [
        next((one for one in pair if ATTENTION in {kind for kind, _ in one.sorts}), pair[0]) for pair in pairs
    ]
    found = {
        "arch_layout": arch,
        "d_model": [outer.dim for outer, _ in pairs],
        "d_intermediate": [max(map(_intermediate, pair)) for pair in pairs],
        "vocab_size": config.vocab_size,
        "ssm_cfg": {key: ssm.get(key, default) for key, default in SSM.items()},
        "attn_cfg": {
            "num_heads": [one.heads or 1 for one in with_attention],  # of Mamba-2 alone nobody counts them
            "rotary_emb_dim": [_rotated(one) for one in with_attention],
            "window_size": [one.window - 1 for one in with_attention],
        },
        "tie_embeddings": config.tied,
    }
    back = from_public(found, [level.router.target for level in chunking])
    if _computes(back.network) != _computes(config.network) or any(
        getattr(back, key) != getattr(config, key) for key in ("softcap", "embed_norm", "ngrams", "soft")
    ):
        raise BytegolfError(
            "this model is none that the public H-Net code has a configuration for: it takes prenorm blocks with "
            "layouts of m and t, SwiGLU, no qk_norm, learned routers as S4's, and nothing that is ours alone"
        )
    return found


def _computes(network: NetworkConfig) -> Any:
    """What of a network's configuration decides what it computes: nothing of how it is trained."""
    if isinstance(network, HNetConfig):
        router = network.router
        flags = (
            router.kind,
            router.smooth_from,
            router.grad_scale if router.grad_scale != 1 else 1.0,
            router.capacity == "fixed",
        )
        cosine = router.cosine
        own = cosine.dim, cosine.query, cosine.strict, cosine.sharpness, cosine.init == "calibrated"
        parts = tuple(_computes(part) for part in (network.encoder, network.main, network.decoder))
        return flags, own, parts, network.chunk_hash.dim, network.residual_bias, network.residual_fp32
    attention = ATTENTION in {kind for kind, _ in network.sorts}
    with_mlp = any(mlp != "none" for _, mlp in network.sorts)
    return (
        tuple(network.order),
        (network.dim, network.block, network.norm_eps, network.final_norm),
        (network.heads, network.kv_heads, network.window, network.qk_norm) if attention else None,
        (_rotated(network), network.rope_base, network.rotary_turn) if attention else None,
        network.hidden if with_mlp else 0,
        {**SSM, "headdim": 64, **network.options} if any(kind == MAMBA for kind, _ in network.sorts) else None,
    )


def _rotated(stack: StackConfig) -> int:
    """How many dimensions of a head are rotated, in a number; without heads, as written or none."""
    if stack.rotary_dim >= 0:
        return stack.rotary_dim
    return stack.dim // stack.heads if stack.heads else 0


def _intermediate(stack: StackConfig) -> int:
    """The MLP's hidden width as written, or what it comes to; as written also where no block has an MLP."""
    return stack.mlp_hidden or (stack.hidden if any(mlp != "none" for _, mlp in stack.order) else 0)


def _layout_of(stack: StackConfig) -> str:
    return stack.layout or write_layout([(kind, mlp != "none") for kind, mlp in stack.order])


def _layouts(raw: Any) -> list[tuple[str, ...]]:
    """The layout strings of each stage, outermost first: an encoder's and a decoder's, and one of the innermost."""
    found: list[tuple[str, ...]] = []
    while True:
        if len(found) == MOST_STAGES:
            raise BytegolfError(f"arch_layout has more than {MOST_STAGES} stages: nest fewer")
        match raw:
            case [str(stack)]:
                return [*found, (stack,)]
            case [str(encoder), [*inner], str(decoder)]:
                found.append((encoder, decoder))
                raw = inner
            case _:
                raise BytegolfError(
                    f"arch_layout has {str(raw)[:80]} in it: write [encoder, [inner …], decoder], and innermost "
                    '[stack], such as ["m4", ["T22"], "m4"]'
                )


def _get(raw: Mapping[str, Any], key: str) -> Any:
    if not isinstance(raw, Mapping):
        raise BytegolfError(f"a public configuration is an object of keys, not {str(raw)[:80]}")
    if key not in raw:
        raise BytegolfError(f"the public configuration has no {key}: is it an H-Net's?")
    return raw[key]


def _table(raw: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    found = _get(raw, key)
    if not isinstance(found, Mapping):
        raise BytegolfError(f"{key} is {str(found)[:80]} in the public configuration: give an object of keys")
    return found


def _number(raw: Mapping[str, Any], key: str, default: int | None = None) -> int:
    found = raw.get(key, default) if default is not None else _get(raw, key)
    if type(found) is not int or not 1 <= found <= 1 << 24:
        raise BytegolfError(
            f"{key} is {str(found)[:80]} in the public configuration: give a whole number of at least 1"
        )
    return found


def _numbers(raw: Mapping[str, Any], key: str, stages: int, least: int) -> list[int]:
    found = _get(raw, key)
    if not isinstance(found, Sequence) or isinstance(found, str) or len(found) < stages:
        raise BytegolfError(
            f"{key} is {str(found)[:80]} in the public configuration: give {stages} numbers, one per stage"
        )
    if any(type(one) is not int or not least <= one <= 1 << 24 for one in found[:stages]):
        raise BytegolfError(
            f"{key} is {str(found)[:80]} in the public configuration: give whole numbers from {least} on"
        )
    return list(found[:stages])
