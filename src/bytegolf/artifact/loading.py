"""Opening a trained model for scoring, segmenting and sampling, by whatever name it is known; always as it was shipped.

runs/demo                   a run's folder: its artifact
model.bgolf                 an artifact
imported/ or X.safetensors  what `bytegolf import` wrote
hnet_2stage_XL.pt           a public H-Net, with its configuration beside it or known by name; also in a folder
hf:owner/name@revision      a repository that holds one of these
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from bytegolf import hub
from bytegolf.artifact.pack import Artifact, Stored, read_artifact
from bytegolf.artifact.public.opening import PICKLED, SAFE, PublicModel, open_public, weights_among
from bytegolf.artifact.public.safetensors_file import read_safetensors
from bytegolf.artifact.quantize import QuantizedTensor, dequantize
from bytegolf.artifact.run_folder import ARTIFACT_FILE, CONFIG_FILE, RunFolder, data_folder, no_run
from bytegolf.artifact.weights_file import ENDING, WEIGHTS_FILE, is_noted, opened, read_weights
from bytegolf.config import Config, NetworkConfig, StackConfig
from bytegolf.data.tokenizer import (
    ByteTokenizer,
    RawByteTokenizer,
    SentencePieceTokenizer,
    Tokenizer,
    byte_tokenizer,
    load_tokenizer,
)
from bytegolf.device import choose_device, pick_precision
from bytegolf.errors import BytegolfError
from bytegolf.model.layers import widen
from bytegolf.model.lm import LanguageModel, outline
from bytegolf.model.stack import maps_of_codes

# ----------------------------------------------------------------------------------------- models that are ready to use


@dataclass(frozen=True)
class LoadedModel:
    """A model that is ready to use, and where it came from."""

    model: LanguageModel
    config: Config
    tokenizer: Tokenizer
    artifact: Artifact
    path: Path
    """the artifact's file"""
    origin: str = ""
    """hf:owner/name@COMMIT, of what came from the hub"""


def load_own(source: Path, data: Path | None = None, device: str = "auto", precision: str = "auto") -> LoadedModel:
    """Load the model of a run folder, an artifact or imported weights, with the chunk capacity of ``eval``.

    ``artifact.loading`` has one that also takes public models and the hub's; this one is in submissions' scripts.

    A SentencePiece tokenizer is looked for beside the artifact, then in ``data``, and must be the very one that the
    model was trained with.
    """
    path = artifact_path(source)
    artifact = read_weights(path) if path.suffix == ENDING else read_artifact(path)
    return load_artifact(artifact, path, data, device, precision)


def data_of(loaded: LoadedModel, named: Path | None = None) -> Path:
    """The folder ``named``, or else that of the data which ``loaded`` was trained on, wherever one stands.

    Raises BytegolfError if they are nowhere to be found, or are not what they were.
    """
    found = named or data_folder(loaded.path.parent, loaded.config)
    if found is None:
        raise BytegolfError(
            f"the data that {loaded.path} was trained on are not in {loaded.config.data.path}, seen from here: name "
            "their folder with --data"
        )
    return found


def load_artifact(
    artifact: Artifact, path: Path, data: Path | None = None, device: str = "auto", precision: str = "auto"
) -> LoadedModel:
    """The same for an artifact that was read from ``path``."""
    config = artifact.config
    tokenizer = _find_tokenizer(artifact.tokenizer, path, data, config)
    place = choose_device(device)
    dtype = pick_precision(config.train.precision if precision == "auto" else precision, place)
    model = _ready(config, artifact.stored, str(path), place, dtype)
    return LoadedModel(model, config, tokenizer, artifact, path)


def _ready(
    config: Config, state: Mapping[str, Stored], where: str, device: torch.device, precision: torch.dtype
) -> LanguageModel:
    model = build(config, state, where).to(device).eval()
    if device.type != "cpu":
        widen(model)  # codes are computed with on CPUs
    model.precision = precision
    model.set_capacity(config.eval.capacity, config.eval.capacity_divisor)
    return model


def artifact_path(source: Path) -> Path:
    """The artifact's file, given it or its run's folder."""
    if not source.is_dir():
        return source
    path = source / ARTIFACT_FILE  # not by way of RunFolder, which a submission's script would then hold
    if not path.exists() and (source / WEIGHTS_FILE).exists():
        return source / WEIGHTS_FILE
    if not path.exists():
        if not (source / CONFIG_FILE).exists():
            raise no_run(source)
        raise BytegolfError(f"the run {source} has no artifact yet: make one with `bytegolf export {source}`")
    return path


def build(config: Config, state: Mapping[str, Stored], where: str) -> LanguageModel:
    """The model of ``config`` with the weights ``state``; an error naming ``where`` if they do not fit.

    What is quantised stays as it is stored where the model can compute with that (``stack.maps_of_codes``).

    Shapes are compared on the meta device first, so that a hostile configuration allocates nothing; and the number of
    blocks before that, as even an outline of a billion of them would.
    """
    found = {name: tuple(tensor.shape) for name, tensor in state.items()}
    try:
        if _blocks(config.model.network) > len(found):
            raise _misfit(where, "more blocks than tensors")
        model = outline(config.model)
    except (RuntimeError, OverflowError) as error:  # a width beyond what torch can address
        raise _misfit(where, "no such shapes") from error
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    if expected != found:
        raise _misfit(where, f"tensor {min(set(expected.items()) ^ set(found.items()))[0]}")
    maps, floats = maps_of_codes(model), dict[str, torch.Tensor]()
    for name, tensor in state.items():
        if not isinstance(tensor, QuantizedTensor):
            floats[name] = tensor
        elif name in maps and tensor.scale is not None:
            maps[name].take_codes(tensor.data, tensor.scale)
        else:
            floats[name] = dequantize(tensor)
    own = model.state_dict()
    if any(tensor.is_floating_point() != own[name].is_floating_point() for name, tensor in floats.items()):
        raise _misfit(where, "integers")
    model.load_state_dict(floats, strict=False, assign=True)
    return model


def in_fp32(loaded: LoadedModel, device: torch.device) -> LoadedModel:
    """The same model computing in fp32 on ``device``, where exact and step-wise work is done; itself if it does."""
    model = loaded.model
    if model.precision == torch.float32 and model.embedding.weight.device == device:
        return loaded
    again = _ready(loaded.config, loaded.artifact.stored, str(loaded.path), device, torch.float32)
    return dataclasses.replace(loaded, model=again)


def for_steps(loaded: LoadedModel, device: torch.device) -> LoadedModel:
    """The same model in fp32, as native steps want it, with room for every chunk.

    A fixed capacity is a share of a text's length, which is not known before the text is written. The copy has weights
    in common with ``loaded``, and a capacity of its own.
    """
    found = in_fp32(loaded, device)
    if all(level.capacity.mode != "fixed" for level in found.model.levels()):
        return found
    copy = with_weights(found, found.artifact.stored)
    copy.model.set_capacity("exact")
    return copy


def with_weights(opened: LoadedModel, state: Mapping[str, Stored]) -> LoadedModel:
    """The opened artifact with the weights ``state`` in place of its own."""
    device, precision = opened.model.embedding.weight.device, opened.model.precision
    return dataclasses.replace(opened, model=_ready(opened.config, state, "the run", device, precision))


def _misfit(where: str, what: str) -> BytegolfError:
    return BytegolfError(
        f"the weights in {where} do not fit its configuration ({what}): it was damaged or edited; export it again"
    )


def _blocks(network: NetworkConfig) -> int:
    """The number of blocks in a network."""
    if isinstance(network, StackConfig):
        return network.layers
    return network.encoder.layers + _blocks(network.main) + network.decoder.layers


def _find_tokenizer(identity: Mapping[str, object], artifact: Path, data: Path | None, config: Config) -> Tokenizer:
    """The artifact's own tokenizer; a byte tokenizer needs no file."""
    name = str(identity.get("name"))
    beside = artifact.parent / "tokenizer.model"
    tokenizer: Tokenizer
    if identity.get("kind") == "byte":
        size = identity.get("vocab_size")
        tokenizer = byte_tokenizer(size if type(size) is int else 0, name) or ByteTokenizer(name)
    elif beside.exists():
        tokenizer = SentencePieceTokenizer(beside, name)
    elif data is not None:
        tokenizer = load_tokenizer(name, data)
    else:
        try:
            tokenizer = load_tokenizer(name, Path(config.data.path))
        except BytegolfError as error:
            raise BytegolfError(
                f"{artifact} reads {name} tokens, but their tokenizer is neither in {beside} nor in the data folder "
                f"{config.data.path}: name the data with --data, or put tokenizer.model beside the artifact"
            ) from error
    tokenizer.check_identity(identity)
    return tokenizer


# --------------------------------------------------------------------------------------- what a model's name stands for


BESIDE = ("tokenizer.model", "config.toml")
"""What comes with an artifact or weights from the hub."""


@dataclass(frozen=True)
class Opened:
    """A model's file, read or mapped."""

    artifact: Artifact
    path: Path
    """the file; a folder of several"""
    origin: str = ""
    """hf:owner/name@COMMIT, of what came from the hub"""
    public: PublicModel | None = None
    """of a public model: what was opened"""


@dataclass(frozen=True)
class Place:
    """Where a model's files lie on this machine."""

    path: Path
    name: str = ""
    """its repository's"""
    origin: str = ""


def locate(source: str | Path) -> Place:
    """The files that ``source`` names, fetched if they are on the hub."""
    at = hub.address(source)
    if at is None:
        return Place(Path(source))
    snapshot = hub.fetch(at, functools.partial(wanted_files, where=str(at)))
    return Place(snapshot.folder, at.repository.partition("/")[2], f"hf:{at.repository}@{snapshot.commit}")


def open_model(source: str | Path) -> Opened:
    """Open whatever ``source`` names. Raises BytegolfError if that is no model."""
    place = locate(source)
    return dataclasses.replace(_local(place.path, place.name), origin=place.origin)


def load_model(
    source: str | Path, data: Path | None = None, device: str = "auto", precision: str = "auto"
) -> LoadedModel:
    """Load the model that ``source`` names, ready to use; see ``loading.load_artifact``."""
    opened = open_model(source)
    loaded = load_artifact(opened.artifact, opened.path, data, device, precision)
    return dataclasses.replace(loaded, origin=opened.origin)


def is_ours(path: Path) -> bool:
    """Whether a file or folder holds a model as bytegolf writes them."""
    if path.is_dir():
        return RunFolder(path).artifact.exists() or is_ours(path / WEIGHTS_FILE)
    return path.suffix in SAFE and path.exists() and is_noted(path)


def is_weights(path: Path) -> bool:
    """Whether a file or folder holds weights that are not quantised, ours or public ones."""
    if not path.is_dir():
        return path.suffix in (*SAFE, *PICKLED)
    return not RunFolder(path).artifact.exists() and any(is_weights(each) for each in path.iterdir() if each.is_file())


def stored(opened: Opened) -> dict[str, Tensor]:
    """The weights in the dtypes in which they lie in the file."""
    if opened.public is not None:
        return opened.public.state
    if opened.path.suffix in SAFE:
        return read_safetensors(opened.path)[0]
    return opened.artifact.state


def wanted_files(names: Sequence[str], where: str) -> list[str]:
    """Which of a repository's files a model is made of: an artifact before weights, weights before pickled ones."""
    if ARTIFACT_FILE in names:
        return [ARTIFACT_FILE, *(name for name in BESIDE if name in names)]
    found = weights_among(names, where)
    described = [name for name in names if name.endswith(".json") and "/" not in name]
    return [*found, *described, *(name for name in BESIDE if name in names)]


def _local(source: Path, name: str = "") -> Opened:
    """``name`` is that of the repository that a folder is of."""
    if source.is_dir():
        run = RunFolder(source)
        if run.artifact.exists():
            return Opened(read_artifact(run.artifact), run.artifact)
        if (source / WEIGHTS_FILE).exists() and is_noted(source / WEIGHTS_FILE):
            return Opened(read_weights(source / WEIGHTS_FILE), source / WEIGHTS_FILE)
        if is_weights(source):
            return _public(source, name)
        run.read_config()
        raise BytegolfError(f"the run {source} has no artifact yet: make one with `bytegolf export {source}`")
    if source.suffix in SAFE and is_noted(source):
        return Opened(read_weights(source), source)
    if source.suffix in (*SAFE, *PICKLED):
        return _public(source, name)
    return Opened(read_artifact(source), source)


def _public(source: Path, name: str) -> Opened:
    found = open_public(source, name=name)
    about = {"imported_from": str(source)}
    path = found.files[0] if len(found.files) == 1 else source
    artifact = opened(found.files, found.state, found.config, RawByteTokenizer().identity(), about)
    return Opened(artifact, path, public=found)
