"""Contexts alone beside a model, in plain Python: what they predict without it, and how far they are trusted.

Their mixers have weights of their own, which a primer teaches, too. The result is one input more of all others' mixers;
and the less it would have cost of late than what these made of it, the more the last word is its own.
"""

from __future__ import annotations

import numpy as np

from bytegolf.mixing.arithmetic import F, clip, dot, log, rough_length, squash
from bytegolf.mixing.frame import Frame
from bytegolf.mixing.state import State


def predict_alone(state: State, frame: Frame, k: int, node: int, hits: int, bit: int) -> np.float32:
    """The logit of a 1, a mean of three mixers: ``hits`` contexts are known, the match expects ``bit`` (−1: none)."""
    h = frame.history
    matched = 0 if bit < 0 else rough_length(h["match_bytes"])
    frame.alone_sets[k] = [node, 256 + (h["last8"] & 255), 512 + (k * 16 + min(hits, 15)) * 8 + matched]
    x = frame.x[k, : state.alone_inputs]
    frame.alone_out[k] = [clip(dot(x, state.alone[each])) for each in frame.alone_sets[k]]
    a, b, c = frame.alone_out[k]
    return (a + b + c) * F(0.33333334)


def learn_alone(state: State, frame: Frame, byte: int) -> None:
    """The byte that came."""
    numbers = state.numbers
    rate = numbers[7] + numbers[0] / (F(1) + F(state.counts[2]) * numbers[2])
    for k in range(8):
        bit, x = byte >> 7 - k & 1, frame.x[k, : state.alone_inputs]
        for chosen, out in zip(frame.alone_sets[k], frame.alone_out[k], strict=True):
            state.alone[chosen] += x * ((F(bit) - squash(out)) * rate)
    state.counts[2] += 1


def learn_trust(state: State, frame: Frame, byte: int) -> None:
    """How much less contexts alone would have cost of late: the share of all in the result follows it."""
    numbers, trust, gain = state.numbers, state.trust, F(0)
    for k, shares in enumerate(frame.shares):
        every, alone = (share if byte >> 7 - k & 1 else 65536 - share for share in shares)
        gain = gain + (log(every) - log(alone))
    # 0.15 of a nat, 0.98 as much a byte later: 1 bit a byte saved for long is −0.69·0.15/0.02 = −5.2 and, from 2.5 on,
    # a share of 1/(1 + e^2.7) = 6 %
    trust[0] = clip(trust[0] * numbers[8] + gain * numbers[9])
    trust[1] = squash(clip(trust[0] + numbers[10]))
