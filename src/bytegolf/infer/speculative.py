"""Self-speculative generation: an H-Net's outer networks draft, the whole model verifies many tokens in one pass.

Most of a large H-Net's weights are in its main network, which runs once per chunk. A draft leaves it out: the outer
networks go on with the last chunk's vector, over boundaries too. One pass of the whole model over the draft then gives
its own distribution at each place. A token is kept if it is the one that the whole model draws there, from the same
random number (at temperature 0: if it is the likeliest); the first that is not is replaced by the model's, and what
follows it is forgotten. So the text is the one that plain generation with the same seed gives, up to the rounding of
passes of several tokens, and follows the very same distribution.

Worked example, greedy, a draft of 4 behind "th" (the whole model would write "the cat"):

    draft              e   ␣   d   o       of the outer networks alone
    whole model        e   ␣   c   (?)     at the same places, in one pass over "h", "e", "␣", "d"
    kept               e   ␣   c           two of the draft, and the model's own next token

The passes' work per token falls if drafts are good: reading all weights once per several tokens, in place of the outer
networks' once per token and the main network's once per chunk. What it costs are the drafts, copies of states, and
another pass over what was kept where a draft fails. Where the whole-model step runs (``native_step``), whose numbers do
not depend on how many tokens it takes at once, the text is plain generation's to the bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from bytegolf.infer.native_step import Stepper

Draw = Callable[[Float[Tensor, " V"], int], int]
"""The token that is drawn from logits at a place (from 0): the same whenever it is asked."""


@dataclass
class Acceptance:
    """How good drafts were."""

    rounds: int = 0
    """passes of the whole model over a draft"""
    drafted: int = 0
    """tokens of drafts"""
    accepted: int = 0
    """those that the whole model draws as well"""
    repeated: int = 0
    """passes over the kept part of a draft that failed"""

    @property
    def rate(self) -> float:
        """The share of drafted tokens that were kept; 0 before the first."""
        return self.accepted / self.drafted if self.drafted else 0.0

    @property
    def tokens_per_pass(self) -> float:
        """Tokens that a pass of the whole model brought: those kept, and its own next one."""
        return self.accepted / self.rounds + 1 if self.rounds else 0.0


@torch.inference_mode()
def speculate(
    model: Stepper,
    state: Any,
    logits: Float[Tensor, " V"],
    draw: Draw,
    length: int,
    figures: Acceptance | None = None,
) -> Iterator[tuple[int, Tensor]]:
    """Tokens behind ``state``, of one sequence, whose next token's logits are ``logits``; each with its logits (V,).

    ``length`` is how many tokens a draft has, 1 at least. It goes on for ever: the caller stops. Raises BytegolfError
    for a flat model.
    """
    figures = figures if figures is not None else Acceptance()
    device, place = logits.device, 0
    token = draw(logits, place)
    yield token, logits
    while True:
        drafting, draft = model.fork(state, draft=True), [token]
        for ahead in range(1, length + 1):
            guess = model.step(torch.tensor(draft[-1:], device=device), drafting)[0]
            draft.append(draw(guess, place + ahead))
        before = model.fork(state)
        found = model.extend(torch.tensor([draft[:-1]], device=device), state)[0]
        kept = 0
        for row, guessed in zip(found, draft[1:], strict=True):
            token = draw(row, place + kept + 1)
            kept += token == guessed
            if token != guessed:
                break
        figures.rounds += 1
        figures.drafted += length
        figures.accepted += kept
        # behind a whole draft, the last token that was verified is the next to go in
        told = kept + (kept < length)
        if told < length:
            state = before
            figures.repeated += 1
            model.extend(torch.tensor([draft[:told]], device=device), state)
        place += told
        for at in range(told):
            yield (draft[at + 1] if at < kept else token), found[at]
