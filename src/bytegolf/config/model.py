"""The configuration of a model: stacks, levels, routers, n-grams; its nesting is that of the modules."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from bytegolf.config.reading import Ranged, doc
from bytegolf.errors import BytegolfError
from bytegolf.registry import MIXERS, ROUTERS

# --------------------------------------------------------------------------------------------------------------- stacks


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


# --------------------------------------------------------------------------------------------- layouts of public H-Nets


ATTENTION, MAMBA = "attention", "mamba2"
"""The registered mixers that letters stand for."""

LETTERS = {"m": MAMBA, "t": ATTENTION}

MOST_BLOCKS = 4096
"""A number of more digits is a slip, and would be built."""

_PART = re.compile(r"([mMtT])(\d{1,5})")


def read_layout(layout: str) -> list[tuple[str, bool]]:
    """Each block's mixer, and whether an MLP follows it. Raises BytegolfError.

    >>> read_layout("T1m2")
    [('attention', True), ('mamba2', False), ('mamba2', False)]
    """
    if not re.fullmatch(rf"({_PART.pattern})+", layout):
        raise BytegolfError(
            f"the layout {layout!r} is none: write letters with a number each, m or M for Mamba-2, t or T for "
            'attention, capitals with an MLP, such as "T1m4"'
        )
    blocks = [(letter, int(count)) for letter, count in _PART.findall(layout)]
    if sum(count for _, count in blocks) > MOST_BLOCKS:
        raise BytegolfError(f"the layout {layout!r} names more than {MOST_BLOCKS} blocks: name fewer")
    return [(LETTERS[letter.lower()], letter.isupper()) for letter, count in blocks for _ in range(count)]


def write_layout(blocks: list[tuple[str, bool]]) -> str:
    """The layout string of blocks as ``read_layout`` gives them. Raises BytegolfError for a mixer without a letter.

    >>> write_layout([("attention", True), ("mamba2", False), ("mamba2", False)])
    'T1m2'
    """
    letters = {kind: letter for letter, kind in LETTERS.items()}
    parts: list[list[str]] = []
    for kind, with_mlp in blocks:
        if kind not in letters:
            raise BytegolfError(f"a layout has no letter for the mixer {kind!r}: only {', '.join(letters)} have one")
        letter = letters[kind].upper() if with_mlp else letters[kind]
        if parts and parts[-1][0] == letter:
            parts[-1].append(letter)
        else:
            parts.append([letter])
    return "".join(f"{part[0]}{len(part)}" for part in parts) or "m0"


# --------------------------------------------------------------------------------------------------------------- models


CapacityMode = Literal["exact", "bucketed", "fixed"]

READ_TOKENS = ("whitespace", "random", "bpe", "entropy")
"""The package's own routers that look at token ids, which only the outermost level sees."""


@dataclass(frozen=True)
class CosineConfig(Ranged):
    """The learned router (S2), and what it may have beyond S2: each is off by default."""

    dim: int = doc("width of the vectors that are compared; 0 = the level's (S2)", 0, least=0)
    query: Literal["current", "previous"] = doc(
        "which of two neighbours W_q maps: current = p_t compares W_q x_t with W_k x_{t−1} (S2); previous = it "
        "compares W_q x_{t−1} with W_k x_t (S4)",
        "current",
    )
    strict: bool = doc("a chunk begins where p is above ½ (S4), not where it is at least that (S2)", False)
    init: Literal["identity", "random", "calibrated"] = doc(
        "the maps at the start; random = the second one is a random rotation; calibrated = the identity, and a "
        "learned offset that gives the target rate on the first training text",
        "identity",
    )
    sharpness: float = doc("factor on the log odds of a boundary; 1 = off, more is surer", 1.0, above=0)
    noise: float = doc(
        "scale of the logistic noise on the log odds when boundaries are chosen in training; 0 = none, 1 = a "
        "boundary is drawn with its probability",
        0.0,
        least=0,
    )
    policy_weight: float = doc(
        "weight of the policy gradient, for boundaries drawn with noise = 1; 0 = off (outermost level only)",
        0.0,
        least=0,
    )
    policy_discount: float = doc(
        "what a loss counts for the boundary before it, less by this factor per token", 0.9, least=0, below=1
    )
    guide_weight: float = doc(
        "weight at the start of training of p's cross-entropy against the chunks of kind = whitespace, which "
        "falls to 0 evenly; 0 = off (outermost level only)",
        0.0,
        least=0,
    )
    guide_share: float = doc("the share of the budget after which guide_weight is 0", 0.5, above=0, most=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.policy_weight and self.noise != 1:
            raise BytegolfError(
                f"policy_weight is {self.policy_weight}, but with noise = {self.noise} boundaries are not drawn with "
                "their probability: set noise to 1, or policy_weight to 0"
            )


@dataclass(frozen=True)
class WhitespaceConfig:
    """Chunks by whitespace."""

    begin: Literal["behind", "at"] = doc(
        "chunks begin behind it, as in [the ][dog], or at it, as in [the][ dog]; subwords with a space in front begin "
        "one either way",
        "behind",
    )


@dataclass(frozen=True)
class BpeConfig(Ranged):
    """Chunks by the pieces of a BPE tokenizer."""

    tokenizer: str = doc("the SentencePiece tokenizer of the data folder whose pieces count", "sp1024")
    room: int = doc("room for these pieces, in bytes with one more each", 16_384, least=16, most=1 << 20)


@dataclass(frozen=True)
class EntropyConfig(Ranged):
    """Chunks by the entropy of a model of counts."""

    order: int = doc("from how many tokens the next one is predicted", 4, least=1, most=16)
    bits: int = doc("contexts of each length share 2^bits entries", 16, least=4, most=22)


@dataclass(frozen=True)
class RouterConfig(Ranged):
    """Where chunks begin, how many there is room for, and how gradients cross the chunking (S2, PR #1104; S3, PR #1305;
    arXiv 2507.07955, equations 4-10). What only one kind knows lies in a table of that kind's name."""

    target: float = doc("N: wanted positions per chunk", above=1)
    loss_weight: float = doc("weight of the ratio loss", 0.03, least=0)
    grad_scale: float = doc("S2's 'LR diff' λ: gradients inside the main stage are scaled by it; 1 = off", 1.0, above=0)
    surprisal_weight: float = doc(
        "weight of the loss that draws boundaries to tokens that were hard to predict; 0 = off (outermost level only)",
        0.0,
        least=0,
    )
    lr_mult: float = doc("learning-rate multiplier of the router's matrices, on top of the encoder's", 1.0, least=0)
    capacity: CapacityMode = doc(
        "room for chunks: exact = the most that a sequence of the batch has; bucketed = the next of a few sizes, so "
        "that shapes recur; fixed = a share of the level's length, beyond which boundaries are dropped (S3)",
        "exact",
    )
    capacity_divisor: float = doc("fixed: room for floor(length / it) chunks, at least 1", 4.0, least=1)
    capacity_buckets: int = doc("bucketed: how many sizes, geometric from length/(2 target) to the length", 8, least=1)
    kind: str = doc(
        "cosine = learned (S2); topk = the same with the highest 1/N of a training sequence as its chunks (ByteFlow); "
        "whitespace, stride = every N positions, random = at the rate 1/N, bpe = where a BPE piece cannot go on, and "
        "entropy = where counts of the training text find the next token hardest to predict, at the rate 1/N, are "
        "fixed rules without a loss; others by `register_router`",
        "cosine",
    )
    ratio: Literal["two-sided", "one-sided"] = doc(
        "the ratio loss; two-sided = S2's, one-sided = a hinge that only counts chunks beyond the target rate",
        "two-sided",
    )
    ratio_over: Literal["example", "batch"] = doc(
        "whose rates the ratio loss sees: example = each sequence's, and their losses' mean (S2); batch = the batch's "
        "(S4)",
        "example",
    )
    smooth_from: Literal["first", "zero"] = doc(
        "what the smoothing starts from: first = the first chunk as it is (S2); zero = 0, which scales the first chunk "
        "by 1 − 1e-4 (S4)",
        "first",
    )
    start_target: float = doc(
        "N at the start of training, from where it goes to target evenly; 0 = target throughout", 0.0, least=0
    )
    target_ramp: float = doc("the share of the budget that this takes", 0.5, above=0, most=1)
    cosine: CosineConfig = doc("what kinds cosine and topk have of their own", CosineConfig())
    whitespace: WhitespaceConfig = doc("what kind = whitespace has of its own", WhitespaceConfig())
    bpe: BpeConfig = doc("what kind = bpe has of its own", BpeConfig())
    entropy: EntropyConfig = doc("what kind = entropy has of its own", EntropyConfig())
    options: dict[str, Any] = doc("what a registered kind has of its own", {})

    def __post_init__(self) -> None:
        super().__post_init__()
        ROUTERS.check(self.kind)
        if 0 < self.start_target <= 1:
            raise BytegolfError(f"start_target is {self.start_target}: give a number above 1, or 0 for the target")


@dataclass(frozen=True)
class ChunkHashConfig(Ranged):
    """Embeddings of whole chunks by the hash of their tokens, beside the vectors at the starts of the next."""

    dim: int = doc("width of a row; 0 = no chunk_hash", 0, least=0)
    bits: int = doc("a table of 2^bits rows, which chunks share by their hash", 15, least=4, most=24)
    dropout: float = doc("share of looked-up rows that training leaves out: for text read often", 0.0, least=0, below=1)


@dataclass(frozen=True)
class HNetConfig:
    """One level of an H-Net: encoder, router and decoder around a main network, which may be a level itself (S4)."""

    encoder: StackConfig = doc("blocks before the chunking, at this level's resolution")
    router: RouterConfig = doc("the chunking")
    main: StackConfig | HNetConfig = doc("the network over chunks: a stage, or a further level")
    decoder: StackConfig = doc("blocks after the chunks are expanded again")
    chunk_hash: ChunkHashConfig = doc("embeddings of whole chunks (outermost level only)", ChunkHashConfig())
    residual: Literal["learned", "identity"] = doc(
        "the map from encoder to decoder around the chunks; learned = it starts at 0 (S2, S4); identity = there is "
        "none, as in SpaceByte (arXiv 2404.14408)",
        "learned",
    )
    residual_bias: bool = doc("the map from encoder to decoder around the chunks has a bias (S4)", False)
    residual_fp32: bool = doc("that map, and its sum with the chunks, are taken in fp32 (S4)", False)

    def __post_init__(self) -> None:
        if self.residual == "identity" and self.residual_bias:
            raise BytegolfError("residual is 'identity', which has no bias: set residual_bias to false")
        if self.encoder.dim != self.decoder.dim:
            raise BytegolfError(f"encoder.dim {self.encoder.dim} and decoder.dim {self.decoder.dim} differ: use one")
        if outer_dim(self.main) < self.encoder.dim:
            raise BytegolfError(
                f"main.dim {outer_dim(self.main)} is below encoder.dim {self.encoder.dim}: an inner network must be "
                "at least as wide as the one around it"
            )
        inner = self.main.router.capacity if isinstance(self.main, HNetConfig) else "exact"
        if inner == "fixed" != self.router.capacity:
            raise BytegolfError(
                f"main.router.capacity is 'fixed' inside a level of {self.router.capacity!r} capacity, whose number of "
                "chunks depends on the whole sequence: set router.capacity to 'fixed' as well"
            )
        if isinstance(self.main, HNetConfig):
            check_inner(self.main)


def check_inner(level: HNetConfig) -> None:
    """Raise if ``level``, which is not the outermost one, asks for what is known of tokens only."""
    router = level.router
    if router.kind in READ_TOKENS:
        raise BytegolfError(
            f"main.router.kind is {router.kind!r}, but an inner level sees chunks and no tokens: choose 'cosine', "
            "'topk' or 'stride' there"
        )
    for key, value, why in (
        ("router.surprisal_weight", router.surprisal_weight, "only tokens have a loss"),
        ("router.cosine.policy_weight", router.cosine.policy_weight, "only tokens have a loss"),
        ("router.cosine.guide_weight", router.cosine.guide_weight, "only tokens have a loss"),
        ("chunk_hash.dim", level.chunk_hash.dim, "chunk hashes are of tokens"),
    ):
        if value:
            raise BytegolfError(f"main.{key} is {value}, but {why}, and an inner level sees chunks: set it to 0 there")


NetworkConfig = StackConfig | HNetConfig


def outer_dim(network: NetworkConfig) -> int:
    """The width at a network's own (outermost) resolution."""
    return network.dim if isinstance(network, StackConfig) else network.encoder.dim


def levels(network: NetworkConfig) -> list[HNetConfig]:
    """The chunking levels of a network, outermost first; empty for a flat model."""
    found: list[HNetConfig] = []
    while isinstance(network, HNetConfig):
        found.append(network)
        network = network.main
    return found


def stacks(network: NetworkConfig) -> list[StackConfig]:
    """Every stack of a network: of an H-Net encoder, main network and decoder, level by level."""
    if isinstance(network, StackConfig):
        return [network]
    return [network.encoder, *stacks(network.main), network.decoder]


@dataclass(frozen=True)
class NgramConfig(Ranged):
    """Hash n-gram embeddings beside the tokens' own (BLT, arXiv 2412.09871)."""

    longest: int = doc("n-grams of 2 to so many tokens are looked up at each position; 1 = none", 1, least=1, most=32)
    bits: int = doc("each length has a table of 2^bits rows, which n-grams share by their hash", 15, least=4, most=24)
    dim: int = doc("width of a row", 64, least=1)
    start: Literal["zero", "counts"] = doc(
        "rows before training: zero; counts = the mean of the codes of the tokens that followed in the training text",
        "zero",
    )
    folds: int = doc(
        "start = counts: parts of that text, a sequence's own of which is left out in training", 4, least=2
    )
    scale: float = doc("start = counts: standard deviation of a code", 0.5, above=0)
    dropout: float = doc("share of looked-up rows that training leaves out: for text read often", 0.0, least=0, below=1)


@dataclass(frozen=True)
class SoftConfig(Ranged):
    """Soft chunking between the embedding and the network (S1, PR #1191), its cures, and our own variants."""

    layers: int = doc("number of layers, one behind the other; 0 = none", 0, least=0, most=16)
    inner: int = doc("hidden width of the boundary predictor; 0 = none (S1), 256 = S1's wide variant", 0, least=0)
    boundary: Literal["soft", "hard"] = doc(
        "soft = b is a probability (S1); hard = 0 or 1, with the probability's gradient (straight-through)", "soft"
    )
    blend: Literal["previous", "chunk"] = doc(
        "what a b below 1 lets in: previous = the vector before (S1); chunk = the mean of the chunk so far", "previous"
    )
    mixer: bool = doc("a linear map W behind the blend (S1)", True)
    norm: bool = doc("whether the network still normalises its input; S1's does not", False)
    init: Literal["default", "bpe"] = doc(
        "bpe = b is fitted, before training, to where tokens start (bytes) or words do (subwords)", "default"
    )
    bpe_vocab: int = doc("init = bpe, over bytes: pieces of the BPE tokenizer", 1024, least=300, most=1 << 16)
    lr_mult: float = doc(
        "learning-rate multiplier of the boundary predictor; 0 = its weights stay (b still moves with the embedding)",
        1.0,
        least=0,
    )
    regulariser: float = doc("weight of the mean of b in the loss: S1's boundary regulariser", 0.0, least=0)
    target: float = doc("N: wanted positions per boundary, for ratio_weight", 6.0, above=1)
    ratio_weight: float = doc("weight of S2's ratio loss on b; 0 = off (S1)", 0.0, least=0)
    surprisal_weight: float = doc(
        "weight of the loss that draws boundaries to tokens that were hard to predict; 0 = off (S1)", 0.0, least=0
    )


@dataclass(frozen=True)
class ModelConfig(Ranged):
    """A language model: embedding, a network, a head. What is not said otherwise is S0's: tied, softcapped logits."""

    network: StackConfig | HNetConfig = doc("a stage (flat model) or a level (H-Net)")
    vocab_size: int = doc("size of the alphabet; 260 for byte260", 260, least=5, most=1 << 16)
    embed_std: float = doc("standard deviation of the initial embedding", 0.005, above=0)
    softcap: float = doc("logits z become softcap·tanh(z/softcap); 0 = off", 30.0, least=0)
    reset_at_bos: bool = doc("attention and chunking start afresh at every BOS token", False)
    ngrams: NgramConfig = doc("embeddings of the n-grams that end at a position", NgramConfig())
    soft: SoftConfig = doc("soft chunking between the embedding and the network", SoftConfig())
    tied: bool = doc("the head is the embedding (S0); false = a matrix of its own (S4)", True)
    embed_norm: bool = doc("the embedding is RMS-normalised (S0); S4's is not", True)
    init: Literal["s0", "hnet"] = doc(
        "weights at the start: s0 = the baseline's; hnet = as published for S4, linear maps N(0, .02) and those at a "
        "branch's end the smaller the more of them there are",
        "s0",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if any(level.router.capacity == "fixed" for level in levels(self.network)):
            check_fixed_capacity(self, "router.capacity")
        if self.vocab_size != 260 and any(level.router.kind == "bpe" for level in levels(self.network)):
            raise BytegolfError(
                f"network.router.kind is 'bpe', which cuts bytes, but vocab_size is {self.vocab_size}: take "
                "data.tokenizer=byte260 and vocab_size=260, or choose another kind"
            )

    @property
    def bos(self) -> int:
        """The id that begins a document: 1, but 254 where the alphabet is the 256 bytes (S4)."""
        return RAW_BYTES_BOS if self.vocab_size == RAW_BYTES else 1


RAW_BYTES, RAW_BYTES_BOS = 256, 254
"""The alphabet of raw bytes, and the one of them that begins a document: UTF-8 never uses it."""


def check_fixed_capacity(model: ModelConfig, where: str) -> None:
    """Raise if documents of ``model`` must not see each other, which a capacity that they share makes them."""
    if model.reset_at_bos:
        raise BytegolfError(
            f"{where} is 'fixed' and reset_at_bos is on, but documents that share a window's capacity depend on each "
            "other: choose 'bucketed' or 'exact', or turn reset_at_bos off"
        )
