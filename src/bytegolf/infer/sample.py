"""Text from a model, a token at a time through ``step``.

Legend: B sequences, V alphabet.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterator

import torch
from jaxtyping import Float, Int
from torch import Tensor

from bytegolf.data.tokenizer import Tokenizer
from bytegolf.errors import BytegolfError
from bytegolf.model.lm import LanguageModel


def choose(
    logits: Float[Tensor, "B V"], temperature: float, top_p: float, generator: torch.Generator
) -> Int[Tensor, " B"]:
    """Draw a token a row from softmax(logits/temperature), cut to the smallest set of mass ``top_p``; 0 = greedy."""
    if temperature <= 0:
        return logits.argmax(-1)
    probabilities = torch.softmax(logits.double() / temperature, -1)
    if top_p < 1:
        ranked, order = probabilities.sort(-1, descending=True)
        ranked = ranked.masked_fill(ranked.cumsum(-1) - ranked >= top_p, 0)  # keeps at least the likeliest
        probabilities = torch.zeros_like(probabilities).scatter(-1, order, ranked)
    return torch.multinomial(probabilities, 1, generator=generator).squeeze(-1)


@torch.inference_mode()
def generate(
    model: LanguageModel,
    tokenizer: Tokenizer,
    prompt: str,
    *,
    size: int,
    temperature: float = 0.8,
    top_p: float = 0.95,
    seed: int = 0,
) -> Iterator[bytes]:
    """Continue ``prompt``, yielding the bytes of each new token, until ``size`` bytes are out or the text ends.

    Special tokens other than the end are never drawn. The same arguments give the same bytes.

    Raises BytegolfError for a temperature below 0, a top_p outside (0, 1] or a size below 0.
    """
    if temperature < 0 or not 0 < top_p <= 1 or size < 0:
        raise BytegolfError(
            f"temperature {temperature} must be 0 or more, top-p {top_p} in (0, 1] and bytes {size} 0 or more"
        )
    generator = torch.Generator().manual_seed(seed)
    state = model.start(1)
    device = model.embedding.weight.device
    previous = tokenizer.BOS
    logits = torch.empty(0)
    for token in (tokenizer.BOS, *tokenizer.encode(prompt).tolist()):
        logits, previous = model.step(torch.tensor([token], device=device), state), token
    written = 0
    while written < size:
        logits = logits.cpu()
        logits[:, [tokenizer.PAD, tokenizer.UNK]] = float("-inf")
        token = int(choose(logits, temperature, top_p, generator))
        if token in (tokenizer.BOS, tokenizer.EOS):  # the next document begins: this one is over
            return
        piece = tokenizer.decode([token], previous)[: size - written]
        written += len(piece)
        yield piece
        logits, previous = model.step(torch.tensor([token], device=device), state), token


def as_text(pieces: Iterator[bytes]) -> Iterator[str]:
    """Bytes as text for streaming: a character is held back until it is whole; what is no UTF-8 becomes �."""
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    for piece in pieces:
        if text := decoder.decode(piece):
            yield text
    if text := decoder.decode(b"", final=True):
        yield text
