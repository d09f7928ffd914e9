"""A trained model for people: what `bytegolf.load` gives, and what it says of itself.

Legend: B sequences, L tokens of a sequence, V alphabet, n bytes (tokens, for a subword model) of a text.
"""

from __future__ import annotations

import dataclasses
import functools
import io
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from bytegolf.artifact.loading import LoadedModel, data_of, for_steps, load_model
from bytegolf.artifact.run_folder import data_folder
from bytegolf.bpb import Score
from bytegolf.config import Config
from bytegolf.data.tokenizer import ByteTokenizer, Tokenizer
from bytegolf.errors import BytegolfError
from bytegolf.infer.sample import Watch, as_text, generate
from bytegolf.infer.speculative import Acceptance
from bytegolf.model.lm import Forward, LanguageModel, count_parameters
from bytegolf.registry import load_plugins

if TYPE_CHECKING:
    from bytegolf.analyze.incremental import IncrementalReader, StateCache
    from bytegolf.analyze.reading import Reading
    from bytegolf.analyze.segment import Segmentation
    from bytegolf.api.results import Evaluation
    from bytegolf.evaluate.modes import ScoringMode
    from bytegolf.infer.codec import Codec
    from bytegolf.progress import Reporter


Text = str | bytes
"""A text: ``str`` is taken as its UTF-8 bytes. Only byte-level models take bytes that are no UTF-8."""


def as_bytes(text: Text) -> bytes:
    """The bytes of a text. Raises BytegolfError for what is none."""
    if isinstance(text, str):
        try:
            return text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise BytegolfError(f"the text is no UTF-8 (character {error.start}): give bytes instead") from error
    try:
        return bytes(memoryview(text))  # bytes(5) alone would be five zeros
    except TypeError as error:
        raise BytegolfError(f"a text is a str or bytes, not {type(text).__name__}") from error


class Description:
    """A model's parts and where they come from."""

    def __init__(self, loaded: LoadedModel) -> None:
        self._loaded = loaded

    def __repr__(self) -> str:
        chunked = f"{self.levels} {'level' if self.levels == 1 else 'levels'} of chunks" if self.levels else "flat"
        return f"<bytegolf.Model {self.name}: {self.parameters:,} parameters, {self.tokenizer.name}, {chunked}>"

    @property
    def name(self) -> str:
        """The name of its configuration."""
        return self.config.name

    @property
    def config(self) -> Config:
        """The configuration that it was trained with."""
        return self._loaded.config

    @property
    def tokenizer(self) -> Tokenizer:
        """Text to token ids and back."""
        return self._loaded.tokenizer

    @property
    def module(self) -> LanguageModel:
        """The network, a ``torch.nn.Module`` in evaluation mode."""
        return self._loaded.model

    @property
    def parameters(self) -> int:
        """How many weights it has."""
        return count_parameters(self.module)

    @property
    def device(self) -> torch.device:
        """Where its weights are."""
        return self.module.embedding.weight.device

    @property
    def levels(self) -> int:
        """How many levels of chunking it has; 0 for a flat model."""
        return len(self.module.levels()) or self.config.model.soft.layers

    @property
    def path(self) -> Path:
        """The artifact's file."""
        return self._loaded.path

    @property
    def data(self) -> Path | None:
        """The folder of the data that it was trained on, wherever one stands; None if they are not to be found."""
        return data_folder(self.path.parent, self.config)

    @property
    def origin(self) -> str:
        """``hf:owner/name@COMMIT`` of a model from the hub: it names these very weights; else empty."""
        return self._loaded.origin

    @property
    def sha256(self) -> str:
        """Of the artifact's file, in hexadecimal."""
        return self._loaded.artifact.sha256


def load(
    source: str | os.PathLike[str],
    *,
    data: str | os.PathLike[str] | None = None,
    device: str = "auto",
    precision: Literal["auto", "bf16", "fp32"] = "auto",
    plugins: Iterable[str | os.PathLike[str]] = (),
) -> Model:
    """Load a trained model: a run's, an artifact's, an imported or a public one, from here or from the hub.

    Args:
        source: a run's folder, an artifact's file (``.bgolf``), what `bytegolf import` wrote, a public H-Net
            (``hnet_2stage_XL.pt``, its JSON beside it), or ``hf:owner/name`` with ``@revision`` if need be.
        data: a folder made by `bytegolf prepare`, where a SentencePiece tokenizer is looked for if it does not lie
            beside the artifact. Byte-level models need none.
        device: ``auto``, ``cpu``, ``cuda`` or ``mps``.
        precision: the dtype of activations; ``auto`` is bf16 where the device multiplies in it, else fp32.
        plugins: Python files or modules that register the routers and mixers which the model needs besides the
            package's own. They are imported, so their code runs; what the artifact itself names is never imported.

    Raises:
        BytegolfError: there is no model there, it is damaged, or its tokenizer cannot be found.

    Examples:
        >>> model = bytegolf.load("runs/demo")                          # doctest: +SKIP
        >>> model.chunks("The quick brown fox")                         # doctest: +SKIP
        ['The ', 'quick ', 'brown ', 'fox']
    """
    load_plugins(os.fspath(each) for each in plugins)
    return Model(load_model(Path(source), None if data is None else Path(data), device, precision))


class Model(Description):
    """A trained model with its tokenizer: look inside, score, generate, compress.

    Texts are read in windows of the length that the model was trained with (``config.train.seq_len``), which do not
    overlap: what a position sees is the window up to it.
    """

    # ------------------------------------------------------------------------------------------------ distributions

    @torch.inference_mode()
    def logits(self, ids: ArrayLike | Tensor) -> Float[Tensor, "B L V"]:
        """The logits of the token after each position, softcapped and in fp32: a softmax of them is the distribution.

        ``ids`` (B, L) are token ids (``tokenizer.encode``): lists, an array or a tensor. A text begins with
        ``tokenizer.BOS``. A sequence is read as one window, of whatever length.
        """
        try:
            batch = torch.as_tensor(ids, dtype=torch.int64, device=self.device)
        except (TypeError, ValueError, OverflowError) as error:
            raise BytegolfError("ids are whole numbers in rows of one length: give (sequences, tokens)") from error
        if batch.ndim != 2:
            raise BytegolfError(f"ids have {batch.ndim} dimensions: give (sequences, tokens)")
        if batch.numel() and not 0 <= int(batch.min()) <= int(batch.max()) < self.tokenizer.vocab_size:
            raise BytegolfError(f"token ids of {self.tokenizer.name} go from 0 to {self.tokenizer.vocab_size - 1}")
        return self.module.cap(self.module(batch).logits).float()

    def log_probs(self, text: Text) -> Float[np.ndarray, "n A"]:
        """Natural logarithms of p(next byte) before each byte of ``text``, fp32: row i is the distribution of byte i.

        For a byte-level model A = 256, and column v is the byte v. A row's probabilities sum to 1 less what the model
        gives to its special tokens (the end of the document above all); in byte256 these are columns 254 and 255. For a
        subword model there is a row per token of ``tokenizer.encode(text)`` and a column per token of its alphabet.

        ``-log_probs(text)[i, text[i]]`` summed up is ``score(text).nats``.
        """
        from bytegolf.evaluate.modes import watched

        rows: list[Tensor] = []

        def see(out: Forward) -> None:
            rows.append(torch.log_softmax(self.module.cap(out.logits), -1).flatten(0, 1).cpu())

        with watched(self.module, see):  # what the losses of the text are made of
            self.read(text)
        found = torch.cat(rows)[:-1].float().numpy()  # the last row is of what comes after the text
        return found[:, self.tokenizer.OFFSET :] if isinstance(self.tokenizer, ByteTokenizer) else found

    def score(self, text: Text, mix: bool = False) -> Score:
        """What ``text`` costs: ``.nats`` of loss, ``.tokens``, ``.bytes``, and ``.bpb``, its bits per byte.

        The text is one document behind a BOS. With ``mix`` the model's distributions are mixed with those of contexts
        of the text so far, as ``config.eval.mix`` says, whether that is on or not. The score of a whole validation
        split is ``evaluate``'s.
        """
        if mix:
            return self._mixed(text)
        reading = self.read(text)
        return Score(reading.nats, reading.tokens, int(np.isfinite(reading.bits).sum()))

    def _mixed(self, text: Text) -> Score:
        from bytegolf.evaluate.mixing import Mixing, opens
        from bytegolf.evaluate.modes import watched
        from bytegolf.mixing.frequencies import frequencies_of

        tokenizer, data = self.tokenizer, np.frombuffer(as_bytes(text), np.uint8)
        cap, primer = self.module.config.softcap, self._loaded.artifact.primer
        mixing = Mixing(self.config.eval.mix, tokenizer, len(data) + 1, cap, primer=primer)
        assert isinstance(tokenizer, ByteTokenizer)  # or Mixing would have refused it
        parts: list[tuple[NDArray[np.uint32], NDArray[np.bool_]]] = []

        def see(out: Forward) -> None:
            flat = out.logits.flatten(0, 1).cpu()
            parts.append((frequencies_of(flat, cap), opens(out.traces, *out.logits.shape[:2]).ravel()))

        with watched(self.module, see):
            self.read(text)
        frequencies, opened = (np.concatenate(each)[: len(data)] for each in zip(*parts, strict=True))
        nats = mixing.text(frequencies, data.astype(np.int64) + tokenizer.OFFSET, opened, 0)
        return Score(float(nats.sum()), len(data), len(data))

    def evaluate(
        self,
        data: str | os.PathLike[str] | None = None,
        mode: ScoringMode | None = None,
        *,
        limit: int = 0,
        one_pass: bool = False,
        reporter: Reporter | None = None,
    ) -> Evaluation:
        """The score over the validation split of the data folder ``data``: what `bytegolf eval` reports.

        Args:
            data: a folder made by `bytegolf prepare`; by default that of the run, wherever one stands.
            mode: how to score (``self.mode(stride=512)``); by default as the configuration says.
            limit: score about this many tokens only, which the result then calls a subset; 0 = all.
            one_pass: read the text once, in long windows that stand for the overlapping ones of ``mode``.
            reporter: is told how far it is.
        """
        from bytegolf.api.evaluation import evaluate

        folder = data_of(self._loaded, None if data is None else Path(data))
        return evaluate(self._loaded, folder, mode, limit=limit, one_pass=one_pass, reporter=reporter)

    def mode(self, **changes: Any) -> ScoringMode:
        """The mode in which the configuration has this model scored, with other values of some of its fields.

        ``model.mode(stride=64, capacity="exact")``; see ``bytegolf.evaluate.modes.ScoringMode``.
        """
        from bytegolf.evaluate.modes import ScoringMode

        return dataclasses.replace(ScoringMode.configured(self.config, self._loaded.artifact.primer), **changes)

    # ------------------------------------------------------------------------------------------------ chunks

    def read(self, text: Text) -> Reading:
        """All that the model does with ``text``: bits of each byte, and p and boundaries of each level of chunks."""
        from bytegolf.analyze.reading import read_text

        return read_text(self.module, self.tokenizer, as_bytes(text), self.config.train.seq_len)

    def reader(self, cache: StateCache | None = None) -> IncrementalReader:
        """For a text that changes: reads it again and again, and computes only what lies behind the first change.

        What it gives is ``read``'s, up to rounding, with the likeliest next tokens at each position. Readers of several
        models may share a ``cache``.
        """
        from bytegolf.analyze.incremental import IncrementalReader

        return IncrementalReader(self._loaded, cache)

    def segment(self, text: Text, level: int | None = None, where: str = "the text") -> Segmentation:
        """The chunks of a level (None: the outermost, 0) with their statistics; ``where`` names the text in errors."""
        from bytegolf.analyze.segment import segment

        return segment(self.module, self.tokenizer, as_bytes(text), self.config.train.seq_len, where, level or 0)

    @overload
    def chunks(self, text: str, level: int | None = None) -> list[str]: ...
    @overload
    def chunks(self, text: bytes, level: int | None = None) -> list[bytes]: ...
    def chunks(self, text: Text, level: int | None = None) -> list[str] | list[bytes]:
        r"""The chunks that the model cuts ``text`` into at a level (None: the outermost, 0).

        Bytes give bytes, which joined are the text. A ``str`` gives strings, in which the bytes of a character that a
        boundary cuts in two read ``\xc3``.

        Raises BytegolfError for a flat model, or a level that the model does not have.
        """
        found = self.segment(text, level)
        pieces = found.chunks()
        return [piece.decode("utf-8", "backslashreplace") for piece in pieces] if isinstance(text, str) else pieces

    def boundaries(self, text: Text, level: int | None = None) -> list[int]:
        """The byte offsets at which chunks of a level (None: the outermost, 0) start; the first is 0."""
        return self.segment(text, level).offsets()

    # ------------------------------------------------------------------------------------------------ generation

    @overload
    def generate(
        self,
        prompt: str = "",
        max_bytes: int = 400,
        temperature: float = 0.8,
        top_p: float = 0.95,
        seed: int = 0,
        stream: Literal[False] = False,
    ) -> str: ...
    @overload
    def generate(
        self,
        prompt: str = "",
        max_bytes: int = 400,
        temperature: float = 0.8,
        top_p: float = 0.95,
        seed: int = 0,
        *,
        stream: Literal[True],
    ) -> Iterator[str]: ...
    def generate(
        self,
        prompt: str = "",
        max_bytes: int = 400,
        temperature: float = 0.8,
        top_p: float = 0.95,
        seed: int = 0,
        stream: bool = False,
    ) -> str | Iterator[str]:
        """Continue ``prompt``: the text that is added, at most ``max_bytes`` long, or an iterator of its pieces.

        Temperature 0 takes the likeliest token; otherwise tokens are drawn from the likeliest of total probability
        ``top_p``. The same arguments give the same text. A character that the last byte cuts in two is left out.

        Raises BytegolfError for a temperature below 0, a ``top_p`` outside (0, 1], or a prompt that is no text.
        """
        drawn = self.generate_bytes([prompt], [seed], max_bytes, temperature, top_p)
        pieces = as_text(piece for _, piece in drawn)
        return pieces if stream else "".join(pieces)

    def generate_bytes(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        max_bytes: int,
        temperature: float,
        top_p: float,
        watch: Watch | None = None,
        draft: int = 0,
        acceptance: Acceptance | None = None,
    ) -> Iterator[tuple[int, bytes]]:
        """Continue several prompts side by side, each with a seed of its own.

        Yields the bytes of each new token, with the place of its prompt. ``watch`` is told of each token before: that
        place, its id, and the logits (V,) from which it was drawn, before temperature and top-p. With ``draft`` > 0
        an H-Net's outer networks draft so many tokens at a time, and ``acceptance`` counts how good they were.
        """
        return generate(
            self._writer.model,
            self._writer.tokenizer,
            prompts,
            seeds,
            size=max_bytes,
            temperature=temperature,
            top_p=top_p,
            draft=draft,
            acceptance=acceptance,
            watch=watch,
        )

    @functools.cached_property
    def _writer(self) -> LoadedModel:
        """The model as it writes."""
        return for_steps(self._loaded, self.device)

    # ------------------------------------------------------------------------------------------------ compression

    @functools.cached_property
    def codec(self) -> Codec:
        """Lossless compression with this model, in fp32 on the CPU. Raises BytegolfError for a subword model."""
        from bytegolf.infer.files import codec_of

        return codec_of(self._loaded)

    def compress(self, data: Text) -> bytes:
        """``data`` without loss: each byte through an entropy coder, at the model's distribution of it mixed with those
        of contexts of the data so far (``bytegolf.mixing``).

        What does not get smaller is stored, so nothing grows by more than a header.
        """
        packed = io.BytesIO()
        content = as_bytes(data)
        self.codec.compress(io.BytesIO(content), packed, self.config.eval.stride, size=len(content))
        return packed.getvalue()

    def decompress(self, data: bytes) -> bytes:
        """What ``compress`` of the same artifact was given. Raises BytegolfError where ``data`` are anything else."""
        out = io.BytesIO()
        self.codec.decompress(io.BytesIO(data), out)
        return out.getvalue()

    # ------------------------------------------------------------------------------------------------ keeping

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the model as an artifact file, a SentencePiece tokenizer beside it; the file.

        Weights that were not touched since it was loaded are the very file that it came from; otherwise they are
        quantised as ``config.export`` says. A ``path`` that ends in .safetensors gets them as they are instead.
        """
        from bytegolf.artifact.export import save

        return save(self._loaded, Path(path))
