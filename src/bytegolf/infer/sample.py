"""Text from a model: the prompts in one pass, then a token at a time through ``step``, many sequences at once.

Each sequence draws from a generator of its own, seeded by its own number. So a sample does not depend on what is
sampled beside it, but for rounding: matrix products over more rows may add up in another order.

Legend: R sequences, V alphabet.
"""

from __future__ import annotations

import codecs
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from bytegolf.data.tokenizer import Tokenizer
from bytegolf.errors import BytegolfError
from bytegolf.infer.native_step import stepper
from bytegolf.infer.speculative import Acceptance, speculate
from bytegolf.model.lm import LanguageModel

BATCH = 32
"""Sequences that are sampled at once, at most."""

Watch = Callable[[int, int, Tensor], None]
"""Told of a token that was drawn: the place of its prompt, its id, and the model's logits (V,)."""


def choose(
    logits: Float[Tensor, "R V"], temperature: float, top_p: float, draws: Float[Tensor, " R"]
) -> Int[Tensor, " R"]:
    """The token of each row at which softmax(logits/temperature), summed up, passes ``draws`` (uniform in [0, 1)).

    The distribution is cut to the smallest set of tokens of mass ``top_p``. Temperature 0 is the likeliest token.
    """
    if temperature <= 0:
        return logits.argmax(-1)
    logits = logits.double()
    # the largest logit is taken off first, so that a tiny temperature sharpens to greedy and not to NaN
    weights = torch.softmax((logits - logits.amax(-1, keepdim=True)) / temperature, -1)
    order = None
    if top_p < 1:
        weights, order = weights.sort(dim=-1, descending=True, stable=True)
        weights = weights.masked_fill(weights.cumsum(-1) - weights >= top_p, 0)  # keeps at least the likeliest
    sums = weights.cumsum(-1)
    chosen = torch.searchsorted(sums, draws.unsqueeze(-1) * sums[:, -1:], right=True)
    return (chosen if order is None else order.gather(-1, chosen)).squeeze(-1)


def generate(
    model: LanguageModel,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    seeds: Sequence[int],
    *,
    size: int,
    temperature: float = 0.8,
    top_p: float = 0.95,
    draft: int = 0,
    acceptance: Acceptance | None = None,
    watch: Watch | None = None,
) -> Iterator[tuple[int, bytes]]:
    """Continue each of ``prompts``, with the seed of the same place, until ``size`` bytes are out or the text ends.

    Yields the bytes of each new token, with the place of its prompt. Special tokens other than the end are never
    drawn. The same arguments give the same bytes. ``watch`` is told of each token before its bytes are yielded: the
    place of its prompt, its id, and the logits (V,) of the model there, before temperature and top-p.

    With ``draft`` > 0 an H-Net's outer networks draft so many tokens at a time (``speculative``), prompt by prompt;
    ``acceptance`` then counts how good they were.

    Raises BytegolfError for a temperature below 0, a top_p outside (0, 1], a size or draft below 0, a draft of a flat
    model, or a prompt that is no text.
    """
    if draft < 0 or (draft and not model.levels()):
        why = f"draft is {draft}: give 0 or more" if draft < 0 else "a flat model has no outer networks to draft with"
        raise BytegolfError(f"{why}; 0 generates without drafts")
    if not 0 <= temperature < math.inf:
        raise BytegolfError(f"temperature is {temperature}: give 0 (always the likeliest token) or more")
    if not 0 < top_p <= 1:
        raise BytegolfError(f"top-p is {top_p}: give a share above 0 and up to 1")
    if size < 0:
        raise BytegolfError(f"bytes is {size}: give 0 or more")
    for prompt in prompts:
        try:
            prompt.encode()
        except UnicodeEncodeError as error:
            raise BytegolfError(f"the prompt is not UTF-8 (character {error.start}): give text") from error
    pairs = list(zip(prompts, seeds, strict=True))
    if draft:
        drawn = Drawn(tokenizer, temperature, top_p)
        return (
            (row, piece)
            for row, pair in enumerate(pairs)
            for piece in _drafted(model, drawn, pair, size, draft, acceptance, watch and _moved(watch, row))
        )
    return (
        (start + row, piece)
        for start in range(0, len(pairs), BATCH)
        for row, piece in _generate(
            model, tokenizer, pairs[start : start + BATCH], size, temperature, top_p, watch and _moved(watch, start)
        )
    )


@dataclass(frozen=True)
class Drawn:
    """How tokens are drawn: specials but the end never."""

    tokenizer: Tokenizer
    temperature: float
    top_p: float

    def choose(self, logits: Float[Tensor, "R V"], draws: Float[Tensor, " R"]) -> Int[Tensor, " R"]:
        """``choose``, of logits that are changed in place."""
        logits[:, [self.tokenizer.PAD, self.tokenizer.UNK]] = float("-inf")
        return choose(logits, self.temperature, self.top_p, draws)

    def ends(self, token: int) -> bool:
        """Whether ``token`` begins the next document: this one is over."""
        return token in (self.tokenizer.BOS, self.tokenizer.EOS)


def _drafted(
    model: LanguageModel,
    drawn: Drawn,
    pair: tuple[str, int],
    size: int,
    draft: int,
    acceptance: Acceptance | None,
    watch: Watch | None,
) -> Iterator[bytes]:
    """The pieces of one continuation, by drafts."""
    if not size:
        return
    tokenizer, device = drawn.tokenizer, model.embedding.weight.device
    generator, draws = torch.Generator().manual_seed(pair[1]), list[Tensor]()

    def draw(logits: Tensor, place: int) -> int:
        while len(draws) <= place:
            draws.append(torch.rand(1, dtype=torch.float64, generator=generator))
        return int(drawn.choose(logits.cpu().clone()[None], draws[place]))

    begun = torch.tensor([[tokenizer.BOS, *tokenizer.encode(pair[0]).tolist()]], device=device)
    runner = stepper(model)
    state = runner.start(1, begun.shape[1] + size + draft)
    logits = runner.extend(begun, state)[0, -1]
    previous, written = int(begun[0, -1]), 0
    for token, seen in speculate(runner, state, logits, draw, draft, acceptance):
        if watch:
            watch(0, token, seen.cpu())
        if drawn.ends(token):
            return
        piece = tokenizer.decode([token], previous)[: size - written]
        previous, written = token, written + len(piece)
        yield piece
        if written >= size:
            return


def _moved(watch: Watch, start: int) -> Watch:
    """``watch`` for a batch whose first sequence is ``start``."""
    return lambda row, token, logits: watch(start + row, token, logits)


@torch.inference_mode()
def _generate(
    model: LanguageModel,
    tokenizer: Tokenizer,
    pairs: list[tuple[str, int]],
    size: int,
    temperature: float,
    top_p: float,
    watch: Watch | None,
) -> Iterator[tuple[int, bytes]]:
    if not size:
        return
    drawn = Drawn(tokenizer, temperature, top_p)
    generators = [torch.Generator().manual_seed(seed) for _, seed in pairs]
    device = model.embedding.weight.device
    begun = [[tokenizer.BOS, *tokenizer.encode(prompt).tolist()] for prompt, _ in pairs]
    counts = np.array([len(tokens) for tokens in begun])
    longest = int(counts.max())
    padded = torch.tensor([tokens + [tokenizer.PAD] * (longest - len(tokens)) for tokens in begun], device=device)
    runner = stepper(model)
    state = runner.start(len(pairs), longest + size)
    logits = runner.extend(padded, state, counts=None if (counts == longest).all() else counts)
    logits = logits[torch.arange(len(pairs)), torch.from_numpy(counts - 1)]

    rows = np.arange(len(pairs))
    previous = [tokens[-1] for tokens in begun]
    written = [0] * len(pairs)
    while True:
        logits = logits.cpu()
        seen = logits.clone() if watch else logits
        draws = torch.cat([torch.rand(1, dtype=torch.float64, generator=generators[row]) for row in rows])
        going, following = [], []
        chosen = drawn.choose(logits, draws).tolist()
        for at, (row, token) in enumerate(zip(rows.tolist(), chosen, strict=True)):
            if watch:
                watch(row, token, seen[at])
            if drawn.ends(token):
                continue
            piece = tokenizer.decode([token], previous[row])[: size - written[row]]
            previous[row] = token
            written[row] += len(piece)
            yield row, piece
            if written[row] < size:
                going.append(row)
                following.append(token)
        if not going:
            return
        rows = np.array(going)
        logits = runner.step(torch.tensor(following, device=device), state, rows if len(rows) < len(pairs) else None)


def as_text(pieces: Iterable[bytes]) -> Iterator[str]:
    """Bytes as text for streaming: a character is held back until it is whole; what is no UTF-8 becomes �.

    A character that is still incomplete at the end is left out: a limit in bytes cut it off.

    >>> list(as_text([b"caf", b"\\xc3", b"\\xa9", b"\\xff", b"\\xe2\\x82"]))
    ['caf', 'é', '�']
    """
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    for piece in pieces:
        if text := decoder.decode(piece):
            yield text
