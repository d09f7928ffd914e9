"""What the server is asked, and what it answers: dataclasses, from which the schema (/openapi.json) is made as well."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TextRequest:
    """A text, and the model that is to read it."""

    model: str = ""
    """its name; by default the first"""
    text: str | None = None
    """the text; or give base64"""
    base64: str | None = None
    """the text's bytes, which a byte model takes even if they are no UTF-8"""


@dataclass(frozen=True)
class ReadRequest(TextRequest):
    """The same, from a byte on."""

    from_: int = 0
    """the byte from which on the answer is wanted: what lies before has not changed since another one"""


@dataclass(frozen=True)
class CompletionRequest:
    """What OpenAI's clients send to have a text continued."""

    prompt: str | list[str] | list[int] | list[list[int]] = ""
    """a text, token ids, or several of either"""
    model: str = ""
    """its name; by default the first"""
    max_tokens: int = 16
    """a byte model's tokens are bytes"""
    temperature: float = 1.0
    """0: always the likeliest token"""
    top_p: float = 1.0
    """draw from the likeliest tokens of this total probability"""
    n: int = 1
    """continuations of each prompt"""
    seed: int | None = None
    """of the first continuation, the next one's is 1 higher; without it they differ each time"""
    stop: str | list[str] | None = None
    """texts before which to stop"""
    stream: bool = False
    """send pieces as they come"""
    stream_options: dict[str, bool] | None = None
    """include_usage"""
    logprobs: int | None = None
    """add log p of each token and of this many of the likeliest (up to 20)"""
    echo: bool = False
    """begin the answer with the prompt"""
    best_of: int | None = None
    """must be n"""
    suffix: str | None = None
    """not supported: a causal model does not know what comes behind"""
    presence_penalty: float = 0.0
    """must be 0"""
    frequency_penalty: float = 0.0
    """must be 0"""
    logit_bias: dict[str, float] | None = None
    """must be empty"""
    user: str | None = None
    """not used"""


@dataclass(frozen=True)
class Model:
    """A model that is served."""

    id: str
    """its name"""
    object: str
    created: int
    """seconds since 1970: when its file was written"""
    owned_by: str
    parameters: int
    """weights"""
    bytes: int
    """of the artifact"""
    sha256: str
    """of the artifact"""
    tokenizer: str
    vocab_size: int
    levels: int
    """of chunking"""
    chunking: str | None
    """router, soft, or null for a flat model"""
    window: int
    """tokens that it sees at most"""
    compresses: bool
    """whether /compress takes it: byte models"""


@dataclass(frozen=True)
class Models:
    """All of them."""

    object: str
    data: list[Model]
    limit: int
    """bytes that the server takes at a time"""
    reference: str | None
    """the SentencePiece tokenizer whose tokens are shown beside the chunks"""
    magic: str
    """how a compressed file begins, in hexadecimal"""


@dataclass(frozen=True)
class ChunkLevel:
    """The chunks of one level."""

    boundaries: list[int]
    """byte offsets at which they start"""
    chunks: list[str]
    """their texts; of a character that is cut in two the bytes, as \\xc3"""
    p: list[float | None]
    """of a boundary at each byte; null where the level has no position"""


@dataclass(frozen=True)
class Segmented:
    """A text in chunks."""

    model: str
    bytes: int
    levels: list[ChunkLevel]
    """outermost first; none for a flat model"""


@dataclass(frozen=True)
class Packed:
    """What one compressor makes of the text."""

    name: str
    bytes: int
    bpb: float
    """bits per byte of the text"""


@dataclass(frozen=True)
class Scored:
    """What a text costs."""

    model: str
    bytes: int
    tokens: int
    nats: float
    """of all tokens"""
    bpb: float | None
    """bits per byte; null for an empty text"""
    surprisal: list[float | None]
    """bits of each byte; null where nothing predicted it"""
    compressors: list[Packed]
    """the usual ones at their best settings, headers included"""


@dataclass(frozen=True)
class ReadLevel:
    """A level of chunks, packed."""

    p: str
    """of a boundary at each byte, in ten-thousandths: little-endian 16 bits in base 64; 65535 = no position"""
    boundary: str
    """1 where a chunk starts, a byte each, in base 64"""


@dataclass(frozen=True)
class Expected:
    """What the model expected, packed: a row for each token from the text's first, and one for what comes next."""

    k: int
    """tokens of a row, likeliest first"""
    ids: str
    """token ids: little-endian 16 bits in base 64; a byte model's are the byte + 4, 1 and 2 end the text"""
    p: str
    """in ten-thousandths"""
    pieces: dict[str, str]
    """the texts of a subword model's tokens, by id, as base 64"""


@dataclass(frozen=True)
class ReadText:
    """What the page draws of a text, from the byte ``from`` on."""

    model: str
    from_: int
    bytes: int
    """of the whole text"""
    data: str | None
    """the text as the tokenizer keeps it, in base 64; null where that is the text itself"""
    bits: str
    """surprisal of each byte in thousandths of a bit, packed as p is"""
    levels: list[ReadLevel]
    tokens: str | None
    """1 where a token starts, packed as boundaries are; null for a byte model"""
    expected: Expected
    reference: str | None
    """1 where a token of the reference tokenizer starts, of the whole text"""
    windows: list[int]
    """the bytes at which the model begins with an empty memory"""
    bpb: float | None
    """of the whole text"""
    computed: int
    """tokens that were computed, as the rest was known"""
    milliseconds: float
    """that it took"""
