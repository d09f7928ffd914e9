"""Opening a trained model for scoring, segmenting and sampling: always the artifact, as it was shipped."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from bytegolf.artifact.pack import Artifact, Stored, read_artifact
from bytegolf.artifact.quantize import QuantizedTensor, dequantize
from bytegolf.artifact.run_folder import ARTIFACT_FILE, CONFIG_FILE, data_folder, no_run
from bytegolf.artifact.weights_file import ENDING, WEIGHTS_FILE, read_weights
from bytegolf.config import Config, NetworkConfig, StackConfig
from bytegolf.data.tokenizer import ByteTokenizer, SentencePieceTokenizer, Tokenizer, byte_tokenizer, load_tokenizer
from bytegolf.device import choose_device, pick_precision
from bytegolf.errors import BytegolfError
from bytegolf.model.layers import widen
from bytegolf.model.lm import LanguageModel
from bytegolf.model.outline import outline
from bytegolf.model.prenorm import maps_of_codes


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


def load_model(source: Path, data: Path | None = None, device: str = "auto", precision: str = "auto") -> LoadedModel:
    """Load the model of a run folder, an artifact or imported weights, with the chunk capacity of ``eval``.

    ``artifact.opening`` has one that also takes public models and the hub's; this one is in submissions' scripts.

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

    What is quantised stays as it is stored where the model can compute with that (``prenorm.maps_of_codes``).

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
