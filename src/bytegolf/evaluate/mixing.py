"""Mixed scores: what tokens cost when the model's distributions are mixed with those of contexts of the scored text.

A target costs −ln of its probability in a full distribution over the model's alphabet, which is fixed before the target
is seen: special tokens have the model's probability, and what is left is shared among the 256 bytes as the mixer says
(``mixing.mixer``). The mixer learns a byte when it is scored, in the order of the text.

Legend: N windows, L positions of a window, V alphabet, n targets.
"""

from __future__ import annotations

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

Watch = Callable[[Float64[np.ndarray, "n V"]], None]
"""Called with the distributions of the targets of a window, each as it was before its target was learned."""


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
        if not isinstance(tokenizer, ByteTokenizer):
            raise BytegolfError(
                f"mixing needs distributions of each next byte, and a model over {tokenizer.name} has those of the "
                "next piece only: leave it out (--no-mix, eval.mix = false), or take a model over bytes"
            )
        self._offset, self._bos, self._cap, self._watch = tokenizer.OFFSET, tokenizer.BOS, cap, watch
        self._forgets = settings.reset == "document"
        own = rows if self._forgets else 1
        self._primer = primer if settings.primer else None
        mixers = [Mixer.behind(self._primer, settings, rows // own, 1, length) for _ in range(own)]
        self._places = [(mixers[row % own], row // own) for row in range(rows)]

    def _begin_anew(self, mixer: Mixer) -> None:
        """Have ``mixer`` know what is known before a text, and nothing else."""
        if self._primer:
            mixer.read(self._primer)
        else:
            mixer.reset()

    def nats(
        self, out: Forward, targets: Int[np.ndarray, "N n"], counted: Int[np.ndarray, " N"], row: int = 0
    ) -> Float64[np.ndarray, "N n"]:
        """What the first ``counted`` targets of each window cost, and 0 for the others, which are not learned.

        ``out`` is what the losses of the windows' last n positions were made of: its logits are those of n positions or
        more, of which the last count.
        """
        size = targets.shape[1]
        logits = out.logits[:, -size:]
        found = np.zeros(targets.shape)
        opened = opens(out, size)
        for number, count in enumerate(counted.tolist()):
            frequencies = frequencies_of(logits[number, :count].detach().cpu(), self._cap)
            found[number, :count] = self.text(frequencies, targets[number, :count], opened[number, :count], row)
        return found

    def text(
        self,
        frequencies: UInt32[np.ndarray, "n V"],
        targets: Int[np.ndarray, " n"],
        opens: Bool[np.ndarray, " n"],
        row: int,
    ) -> Float64[np.ndarray, " n"]:
        """The costs of consecutive targets of a row."""
        (mixer, stream), offset = self._places[row], self._offset
        rows = np.array([stream])
        special = targets < offset
        found = np.empty(len(targets))
        found[special] = -np.log(frequencies[special, targets[special]] / TOTAL)
        found[~special] = -np.log1p(-(frequencies[~special, :offset].sum(1) / TOTAL))
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
                self._begin_anew(mixer)
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


def opens(out: Forward, size: int) -> NDArray[np.bool_]:
    """Whether the token before each of the last ``size`` targets began a chunk of the outermost level."""
    if not out.traces:
        return np.zeros((len(out.logits), size), np.bool_)
    found: NDArray[np.bool_] = out.traces[0].boundary[:, -size:].cpu().numpy()
    return found
