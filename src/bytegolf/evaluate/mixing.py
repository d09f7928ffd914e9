"""Mixed scores: what tokens cost when the model's distributions are mixed with those of contexts of the scored text.

A target costs −ln of its probability in a full distribution over the model's alphabet, which is fixed before the target
is seen: special tokens share what the model and a count make of their probability (``Specials``), and what is left is
shared among the 256 bytes as the mixer says (``mixing.mixer``). The mixer learns a byte when it is scored, in the order
of the text.

Legend: N windows, L positions of a window, V alphabet, n targets.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
from jaxtyping import Bool, Float64, Int, UInt8, UInt32
from numpy.typing import NDArray

from bytegolf.config import MixConfig
from bytegolf.data.tokenizer import ByteTokenizer, Tokenizer
from bytegolf.errors import BytegolfError
from bytegolf.mixing.frequencies import TOTAL, frequencies_of
from bytegolf.mixing.mixer import Mixer
from bytegolf.mixing.primer import Primer
from bytegolf.model.lm import Forward
from bytegolf.model.trace import RouterTrace

Watch = Callable[[Float64[np.ndarray, "n V"]], None]
"""Called with the distributions of the targets of a window, each as it was before its target was learned."""


def mixable(tokenizer: Tokenizer) -> ByteTokenizer:
    """``tokenizer``. Raises BytegolfError unless it is over bytes."""
    if isinstance(tokenizer, ByteTokenizer):
        return tokenizer
    raise BytegolfError(
        f"mixing needs distributions of each next byte, and a model over {tokenizer.name} has those of the "
        "next piece only: leave it out (--no-mix, eval.mix = false), or take a model over bytes"
    )


class Specials:
    """How probable it is that the next token is a special one: by the model, and by how often one came behind the byte
    before, their log odds added with weights that are learned.

    A model that has read long documents only gives BOS next to none: ``cpu-demo`` over Chinese paragraphs 21 bits each,
    0.11 bits per byte, which no contexts of bytes can mend. It begins with the model alone, and learns at each special
    token: so what a target costs does not depend on which windows a text is read in.
    """

    def __init__(self) -> None:
        self.weights = np.array([1.0, 0.0])
        self.counts = np.tile([0.05, 100.0], (257, 1))
        """(257, 2): specials and all tokens behind each byte, and behind a special token (256); a prior before any"""
        self._since = np.zeros_like(self.counts)
        self._step = np.zeros(2)

    def probability(
        self, model: Float64[np.ndarray, " n"], before: Int[np.ndarray, " n"]
    ) -> tuple[Float64[np.ndarray, " n"], Float64[np.ndarray, "n 2"]]:
        """That of n targets, and the inputs that its log odds are made of; ``model`` is its probability of any special
        token, ``before`` the byte before.
        """
        seen, everything = self.counts[before].T
        inputs = np.stack([np.log(model) - np.log1p(-model), np.log(seen) - np.log(everything - seen)], 1)
        # element by element: a product's bits may depend on its length, which is that of what comes, too
        odds = inputs[:, 0] * self.weights[0] + inputs[:, 1] * self.weights[1]
        return 1 / (1 + np.exp(-odds)), inputs

    def learn(
        self,
        p: Float64[np.ndarray, " n"],
        inputs: Float64[np.ndarray, "n 2"],
        before: Int[np.ndarray, " n"],
        ended: bool,
    ) -> None:
        """Take in n targets, of which the last is special if that ``ended`` a document, and no other one is."""
        special = np.zeros(len(p))
        special[-1:] = ended
        self._step += (special - p) @ inputs
        np.add.at(self._since, before, np.stack([special, np.ones(len(p))], 1))
        if ended:  # one step of gradient ascent on the log probability of all since the last
            self.weights += np.clip(SPECIALS_RATE * self._step, -MOST_STEP, MOST_STEP)
            self.counts += self._since
            self._since[:], self._step[:] = 0, 0


SPECIALS_RATE, MOST_STEP = 0.01, 0.25
"""Of the weights of ``Specials``: the first BOS at 21 bits takes 0.15 off the model's, and adds 0.08 to the count's."""


class Mixing:
    """Mixes the scores of ``rows`` texts that are read at a time, each in its order.

    Rows share what is learned, unless every document begins with nothing (``reset``): then each has its own.
    ``length`` is an upper bound of a text's tokens. A ``primer`` is read before any text.

    Raises BytegolfError for a model of subwords: their bytes have no distributions of their own.
    """

    def __init__(
        self,
        settings: MixConfig,
        tokenizer: Tokenizer,
        length: int,
        cap: float,
        rows: int = 1,
        watch: Watch | None = None,
        primer: Primer | None = None,
    ) -> None:
        tokenizer = mixable(tokenizer)
        self._offset, self._bos, self._cap, self._watch = tokenizer.OFFSET, tokenizer.BOS, cap, watch
        self._forgets = settings.reset == "document"
        self._own = rows if self._forgets else 1
        self._primer = primer if settings.primer else None
        self._new = functools.partial(Mixer.behind, self._primer, settings, rows // self._own, 1, length)
        self._specials = [Specials() for _ in range(self._own)]
        self._before = np.full(rows, 256)
        """the byte that each row ends with so far; 256: a special token, or nothing"""

    def prepare(self) -> None:
        """Read the primer, if that is still to be done: it takes seconds, in which the model may read already."""
        assert self._mixers

    @functools.cached_property
    def _mixers(self) -> list[Mixer]:
        return [self._new() for _ in range(self._own)]

    def _place(self, row: int) -> tuple[Mixer, int]:
        """The mixer of a row, and which of its streams that is."""
        return self._mixers[row % self._own], row // self._own

    def frequencies(self, out: Forward, size: int, counted: list[int]) -> list[UInt32[np.ndarray, "_ V"]]:
        """The distributions of the first ``counted`` of each window's last ``size`` targets, which ``out`` has. They
        depend on nothing that was learned.
        """
        logits = out.logits[:, -size:].detach().cpu()
        return [frequencies_of(window[:count], self._cap) for window, count in zip(logits, counted, strict=True)]

    def nats(
        self,
        traces: list[RouterTrace],
        frequencies: list[UInt32[np.ndarray, "_ V"]],
        targets: Int[np.ndarray, "N L"],
        row: int = 0,
    ) -> Float64[np.ndarray, "N L"]:
        """What the first targets of each window cost that have a distribution, and 0 for the others, which are not
        learned. ``traces`` tell where chunks open.
        """
        found = np.zeros(targets.shape)
        opened = opens(traces, *targets.shape)
        for number, given in enumerate(frequencies):
            count = len(given)
            found[number, :count] = self.text(given, targets[number, :count], opened[number, :count], row)
        return found

    def text(
        self,
        frequencies: UInt32[np.ndarray, "n V"],
        targets: Int[np.ndarray, " n"],
        opens: Bool[np.ndarray, " n"],
        row: int,
    ) -> Float64[np.ndarray, " n"]:
        """The costs of consecutive targets of a row."""
        (mixer, stream), offset = self._place(row), self._offset
        rows = np.array([stream])
        # Example, in byte260: the targets T h e BOS N o, of which BOS is special. It costs −ln of what all special
        # tokens get, and of BOS's share of that; a byte costs −ln of what is left, and the mixer's −ln p on top.
        special = targets < offset
        found = np.zeros(len(targets))
        # the mixer runs over pieces that end with a document's end: here "The" with BOS behind it, and "No". In byte256
        # BOS is a byte, and mixed like any other
        breaks = np.flatnonzero(special | (targets == self._bos))
        experts, data = frequencies[:, None, offset:], (targets - offset).astype(np.uint8)
        start = 0
        for stop in [*(breaks + 1).tolist(), len(targets)]:
            end = stop - int(special[stop - 1]) if stop > start else stop
            specials = self._special(frequencies[start:stop], targets[start:stop], row)
            if self._watch:
                self._watched(mixer, rows, frequencies[start:stop], specials, data[start:end], opens[start:stop])
            else:
                left = np.log1p(-specials[: end - start])
                found[start:end] = mixer.run(data[start:end], experts[start:end], opens[start:end], stream) - left
                if end < stop:
                    share = frequencies[end, targets[end]] / frequencies[end, :offset].sum()
                    found[end] = -np.log(specials[-1]) - np.log(share)
            if end < stop:  # the byte before a special token is told whether it opened a chunk, and nothing comes of it
                mixer.begin(experts[end:stop], opens[end:stop], rows)
            if self._forgets and stop > start and targets[stop - 1] == self._bos:
                mixer.begin_anew(self._primer)
                self._specials[row % self._own] = Specials()
            start = stop
        return found

    def _special(
        self, frequencies: UInt32[np.ndarray, "n V"], targets: Int[np.ndarray, " n"], row: int
    ) -> Float64[np.ndarray, " n"]:
        """The probability of a special token at each of some consecutive targets, of which only the last may be one."""
        if not self._offset or not len(targets):
            return np.zeros(len(targets))
        model = frequencies[:, : self._offset].sum(1) / TOTAL
        by = self._specials[row % self._own]
        bytes_ = np.where(targets < self._offset, 256, targets - self._offset)
        before = np.concatenate([self._before[row : row + 1], bytes_[:-1]])
        self._before[row] = bytes_[-1]
        p, inputs = by.probability(model, before)
        by.learn(p, inputs, before, ended=bool(bytes_[-1] == 256))
        return p

    def _watched(
        self,
        mixer: Mixer,
        rows: Int[np.ndarray, " 1"],
        frequencies: UInt32[np.ndarray, "n V"],
        specials: Float64[np.ndarray, " n"],
        data: UInt8[np.ndarray, " k"],
        opens: Bool[np.ndarray, " n"],
    ) -> None:
        """The whole distributions of n targets, of which the first k are bytes."""
        assert self._watch is not None
        found = frequencies / TOTAL
        shares = found[:, : self._offset]
        found[:, : self._offset] = shares * (specials / shares.sum(1))[:, None] if self._offset else shares
        for at in range(len(frequencies)):
            mixer.begin(frequencies[at : at + 1, None, self._offset :], opens[at : at + 1], rows)
            found[at, self._offset :] = mixer.distribution(rows)[0] * (1 - specials[at])
            if at < len(data):
                mixer.learn(data[at : at + 1], rows)
        self._watch(found)


def opens(traces: list[RouterTrace], rows: int, size: int) -> Bool[np.ndarray, "N n"]:
    """Whether the token before each of the last ``size`` targets of ``rows`` windows began a chunk of the outermost
    level.
    """
    if not traces:
        return np.zeros((rows, size), np.bool_)
    found: NDArray[np.bool_] = traces[0].boundary[:, -size:].cpu().numpy()
    return found
