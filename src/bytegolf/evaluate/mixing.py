"""Mixed scores: what tokens cost when the model's distributions are mixed with those of contexts of the scored text.

A target costs −ln of its probability in a full distribution over the model's alphabet, which is fixed before the target
is seen: special tokens have the model's probability, and what is left is shared among the 256 bytes as the mixer says
(``mixing.mixer``). The mixer learns a byte when it is scored, in the order of the text.

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
        # Example, in byte260: the targets T h e BOS N o, of which BOS is special. It costs the model's −ln p alone; a
        # byte costs −ln of what the model leaves to all bytes, and the mixer's −ln p on top.
        special = targets < offset
        found = np.empty(len(targets))
        found[special] = -np.log(frequencies[special, targets[special]] / TOTAL)
        found[~special] = -np.log1p(-(frequencies[~special, :offset].sum(1) / TOTAL))
        # the mixer runs over pieces that end with a document's end: here "The" with BOS behind it, and "No". In byte256
        # BOS is a byte, and mixed like any other
        breaks = np.flatnonzero(special | (targets == self._bos))
        start = 0
        for stop in [*(breaks + 1).tolist(), len(targets)]:
            end = stop - int(special[stop - 1]) if stop > start else stop
            experts, data = frequencies[:, None, offset:], (targets - offset).astype(np.uint8)
            if self._watch:
                self._watched(mixer, rows, frequencies[start:stop], data[start:end], opens[start:stop])
            else:
                found[start:end] += mixer.run(data[start:end], experts[start:end], opens[start:end], stream)
            if end < stop:  # the byte before a special token is told whether it opened a chunk, and nothing comes of it
                mixer.begin(experts[end:stop], opens[end:stop], rows)
            if self._forgets and stop > start and targets[stop - 1] == self._bos:
                mixer.begin_anew(self._primer)
            start = stop
        return found

    def _watched(
        self,
        mixer: Mixer,
        rows: Int[np.ndarray, " 1"],
        frequencies: UInt32[np.ndarray, "n V"],
        data: UInt8[np.ndarray, " k"],
        opens: Bool[np.ndarray, " n"],
    ) -> None:
        """The whole distributions of n targets, of which the first k are bytes."""
        assert self._watch is not None
        found = frequencies / TOTAL
        for at in range(len(frequencies)):
            mixer.begin(frequencies[at : at + 1, None, self._offset :], opens[at : at + 1], rows)
            found[at, self._offset :] = mixer.distribution(rows)[0] * (1 - found[at, : self._offset].sum())
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
