"""The configuration of a stack of blocks."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from bytegolf.config.fields import Ranged, doc
from bytegolf.config.layout import ATTENTION, read_layout
from bytegolf.errors import BytegolfError
from bytegolf.registry import MIXERS

MlpKind = Literal["relu2", "swiglu", "none"]


@dataclass(frozen=True)
class StackConfig(Ranged):
    """A stack of blocks at one resolution, of a mixer and an MLP each.

    What is not said otherwise is S0's (PR #1104, PR #1191 and the official baseline). S4's (arXiv 2507.07955) is
    block = "prenorm", mlp = "swiglu", qk_norm = false, rotary_turn = "counterclockwise", and a layout.
    """

    layers: int = doc("number of blocks", least=0)
    dim: int = doc("model width D", least=1)
    heads: int = doc("query heads; dim must be a multiple of it, and the head width even", 0, least=0)
    kv_heads: int = doc("key/value heads (grouped-query attention); heads must be a multiple of it", 0, least=0)
    mlp_mult: float = doc("hidden width of the MLP, as a multiple of dim", 2.0, above=0)
    window: int = doc("positions a query sees, itself included (local attention); 0 = all (full causal)", 0, least=0)
    rope_base: float = doc("base of the rotary frequencies", 10_000.0, above=0)
    qk_gain: float = doc("initial gain of the RMS-normalised queries, one per head", 1.5)
    lr_mult: float = doc("learning-rate multiplier of this stage's parameters", 1.0, least=0)
    kind: str = doc("what mixes positions: attention, or another by `register_mixer`", "attention")
    options: dict[str, Any] = doc("what a registered kind has of its own", {})
    layout: str = doc(
        "block kinds, a letter and a number each, in place of layers and kind: m is Mamba-2, t is attention, a capital "
        'has an MLP behind it; "T1m4" is one attention block with an MLP, then four of Mamba-2 without (S4)',
        "",
    )
    block: Literal["scaled", "prenorm"] = doc(
        "scaled = mixes of the stream with the stack's input, scales per channel, U-net skips, norms without a gain "
        "(S0); prenorm = norms with a gain, an fp32 stream that begins at the stack's input, a norm at its end (S4)",
        "scaled",
    )
    norm_eps: float = doc("prenorm: ε of the norms", 1e-5, above=0)
    final_norm: bool = doc("prenorm: whether the stack ends in a norm", True)
    mlp: MlpKind = doc(
        "relu2 = W₂·relu(W₁x)² (S0); swiglu = W₂(silu(g)·v) with [v, g] = W₁x (S4); none = blocks have no MLP", "relu2"
    )
    mlp_hidden: int = doc("hidden width of the MLP; 0 = mlp_mult·dim", 0, least=0)
    mlp_multiple: int = doc("the hidden width is rounded up to a multiple of it (S4: 128)", 1, least=1)
    qk_norm: bool = doc("attention: RMS-normalised q and k, and a gain per head (S0); S4 has neither", True)
    rotary_dim: int = doc(
        "attention: how many dimensions of a head are rotated by position, an even number; -1 = all, 0 = none",
        -1,
        least=-1,
    )

    rotary_turn: Literal["clockwise", "counterclockwise"] = doc(
        "attention: the direction of the rotation; from (1, 0) towards (0, -1) (S0), or towards (0, 1) (S4, and most "
        "others)",
        "clockwise",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        MIXERS.check(self.kind)
        if self.layout:
            named = len(read_layout(self.layout))
            if named != self.layers:
                raise BytegolfError(f"layers is {self.layers}, but layout {self.layout!r} names {named}: drop layers")
        if ATTENTION in {kind for kind, _ in self.sorts}:
            self._check_heads()
        if not self.hidden and any(mlp != "none" for _, mlp in self.sorts):
            raise BytegolfError("mlp_hidden and mlp_mult give an MLP of width 0: give more, or blocks without one")

    def _check_heads(self) -> None:
        for key in ("heads", "kv_heads"):
            if not getattr(self, key):
                raise BytegolfError(f"{key} is 0, but attention needs some: give 1 or more")
        if self.dim % self.heads:
            raise BytegolfError(f"dim {self.dim} does not split into {self.heads} heads: change one")
        width = self.dim // self.heads
        if self.rotary_dim == -1 and width % 2:
            raise BytegolfError(f"dim {self.dim} does not split into {self.heads} heads of even width: change one")
        if self.rotary_dim > width or (self.rotary_dim > 0 and self.rotary_dim % 2):
            raise BytegolfError(
                f"rotary_dim is {self.rotary_dim}: give an even number up to the heads' width, {width}, or -1 for all"
            )
        if self.heads % self.kv_heads:
            raise BytegolfError(f"{self.heads} heads do not share {self.kv_heads} kv_heads evenly: change one")

    @staticmethod
    def complete(table: Mapping[str, Any]) -> Mapping[str, Any]:
        """A table of a file, with the number of ``layers`` that its ``layout`` names."""
        layout = table.get("layout")
        if not isinstance(layout, str) or not layout or "layers" in table:
            return table
        return {**table, "layers": len(read_layout(layout))}

    @property
    def order(self) -> list[tuple[str, MlpKind]]:
        """Each block's kind of mixer and of MLP, first to last."""
        if not self.layout:
            return [(self.kind, self.mlp)] * self.layers
        return [(kind, self.mlp if with_mlp else "none") for kind, with_mlp in read_layout(self.layout)]

    @property
    def sorts(self) -> set[tuple[str, MlpKind]]:
        """The pairs that occur in ``order``; a hostile file's billion of layers is not counted out for them."""
        return set(self.order if self.layout else [(self.kind, self.mlp)] * min(1, self.layers))

    @functools.cached_property
    def blocks(self) -> list[StackConfig]:
        """Each block as a stack of its own: no layout, and ``options`` only where it is not attention."""
        return [
            dataclasses.replace(
                self,
                layers=1,
                kind=kind,
                mlp=mlp,
                layout="",
                options={} if self.layout and kind == ATTENTION else self.options,
            )
            for kind, mlp in self.order
        ]

    @property
    def hidden(self) -> int:
        """The MLP's hidden width."""
        wanted = self.mlp_hidden or int(self.mlp_mult * self.dim)
        return -(-wanted // self.mlp_multiple) * self.mlp_multiple
