"""Whether this process works out the same numbers as the one that compressed a file.

Floating-point sums depend on their order. The whole-model step has one order for all (``native_step``). Where a model
is not known to it, the order depends on the number of threads, the CPU's instructions, the libraries, and whether
bytegolf's native kernels run. What can be chosen is written into a file and chosen again (``running``); the rest shows
in a probe, a few steps of the model whose frequencies are hashed.
"""

from __future__ import annotations

import contextlib
import hashlib
import platform
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from bytegolf import __version__
from bytegolf.errors import BytegolfError
from bytegolf.infer.frequencies import probabilities
from bytegolf.infer.native_step import ExactModel, stepper
from bytegolf.mixing.frequencies import quantised
from bytegolf.model.lm import LanguageModel
from bytegolf.ops import native

PROBE_STEPS = 12
PROBE_BYTES = 8
MOST_THREADS = 64
"""More bring nothing, and a stranger's file says how many are started here."""


KINDS = PLAIN, NATIVE, WHOLE = range(3)


@dataclass(frozen=True)
class Numerics:
    """How numbers come about."""

    threads: int
    """torch's; 1 for the whole-model step, to which they do not matter"""
    kind: int
    """one of ``KINDS``: single operations in PyTorch, with native kernels, or the whole-model step"""
    place: str
    """versions and CPU in words, to explain a probe that differs"""
    probe: bytes
    """the hash of what the model gave for the probe"""

    @staticmethod
    def here(model: LanguageModel, streams: int) -> Numerics:
        """Those of this process, for a batch of ``streams``."""
        if isinstance(stepper(model), ExactModel):
            return Numerics(1, WHOLE, "", probe(model, 1))  # the same everywhere
        on = native.why_not() is None and model.embedding.weight.device.type == "cpu"
        return Numerics(torch.get_num_threads(), NATIVE if on else PLAIN, _place(), probe(model, streams))

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """A context with as many threads as these, and native kernels on or off as there.

        Raises BytegolfError if they were on and there are none.
        """
        if self.kind != PLAIN and (why := native.why_not()):
            raise BytegolfError(f"the file was compressed with native kernels, and here are none ({why})")
        threads = torch.get_num_threads()
        with contextlib.nullcontext() if self.kind != PLAIN else native.disabled():
            if self.kind != WHOLE:
                torch.set_num_threads(self.threads)
            try:
                yield
            finally:
                torch.set_num_threads(threads)

    def check(self, model: LanguageModel, streams: int, where: str) -> None:
        """Raise a BytegolfError if the model's probabilities differ here (within ``running``)."""
        whole = self.kind == WHOLE
        if whole != isinstance(stepper(model), ExactModel) or probe(model, 1 if whole else streams) != self.probe:
            place = _place()
            other = "" if self.place in ("", place) else f" (there {self.place}, here {place})"
            raise BytegolfError(
                f"{where} cannot be decompressed here: this machine rounds the model's probabilities differently from "
                f"the one that compressed it{other}; use the same versions on the same kind of CPU"
            )


def _place() -> str:
    capability = torch.backends.cpu.get_cpu_capability()
    version = torch.__version__.partition("+")[0]
    return f"bytegolf {__version__}, torch {version}, {platform.machine()} {capability}"


@torch.inference_mode()
def probe(model: LanguageModel, streams: int) -> bytes:
    """A hash of the frequencies that ``model`` gives after some fixed tokens in each of ``streams``."""
    ids = np.random.Generator(np.random.PCG64(0)).integers(0, model.config.vocab_size, (PROBE_STEPS, streams))
    runner = stepper(model)
    state = runner.start(streams, PROBE_STEPS * 8)
    digest = hashlib.sha256()
    for column in torch.from_numpy(ids).to(model.embedding.weight.device):
        digest.update(quantised(probabilities(runner.step(column, state))).astype("<i4").tobytes())
    return digest.digest()[:PROBE_BYTES]
