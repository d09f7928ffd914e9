"""Text from a model, a token at a time through ``step``.

Legend: B sequences, V alphabet.
"""

from __future__ import annotations

import codecs
import math
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
    logits = logits.double()
    # the largest logit is taken off first, so that a tiny temperature sharpens to greedy and not to NaN
    probabilities = torch.softmax((logits - logits.max(-1, keepdim=True).values) / temperature, -1)
    if top_p < 1:
        ranked, order = probabilities.sort(-1, descending=True)
        ranked = ranked.masked_fill(ranked.cumsum(-1) - ranked >= top_p, 0)  # keeps at least the likeliest
        probabilities = torch.zeros_like(probabilities).scatter(-1, order, ranked)
    return torch.multinomial(probabilities, 1, generator=generator).squeeze(-1)


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

    Raises BytegolfError for a temperature below 0, a top_p outside (0, 1], a size below 0, or a prompt that is no
    text.
    """
    if not 0 <= temperature < math.inf:
        raise BytegolfError(f"temperature is {temperature}: give 0 (always the likeliest token) or more")
    if not 0 < top_p <= 1:
        raise BytegolfError(f"top-p is {top_p}: give a share above 0 and up to 1")
    if size < 0:
        raise BytegolfError(f"bytes is {size}: give 0 or more")
    try:
        prompt.encode()
    except UnicodeEncodeError as error:
        raise BytegolfError(f"the prompt is not UTF-8 (character {error.start}): give text") from error
    return _generate(model, tokenizer, prompt, size, temperature, top_p, seed)


@torch.inference_mode()
def _generate(
    model: LanguageModel, tokenizer: Tokenizer, prompt: str, size: int, temperature: float, top_p: float, seed: int
) -> Iterator[bytes]:
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
    """Bytes as text for streaming: a character is held back until it is whole; what is no UTF-8 becomes �.

    A character that is still incomplete at the end is left out: a limit in bytes cut it off.

    >>> list(as_text(iter([b"caf", b"\\xc3", b"\\xa9", b"\\xff", b"\\xe2\\x82"])))
    ['caf', 'é', '�']
    """
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    for piece in pieces:
        if text := decoder.decode(piece):
            yield text
