"""Writing a model that was loaded: the very file that it came from, or its weights as they are now."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch

from bytegolf.artifact.loading import LoadedModel
from bytegolf.artifact.opening import is_weights, open_model
from bytegolf.artifact.pack import write_artifact
from bytegolf.artifact.weights_file import ENDING, write_weights
from bytegolf.data.tokenizer import SentencePieceTokenizer
from bytegolf.files import disk_errors, write_bytes
from bytegolf.model.layers import float_state


def save(loaded: LoadedModel, target: Path) -> Path:
    """Write ``loaded`` to ``target`` and a SentencePiece tokenizer beside it; see ``bytegolf.Model.save``."""
    artifact, config, tokenizer = loaded.artifact, loaded.config, loaded.tokenizer
    state = {name: tensor.detach().cpu() for name, tensor in float_state(loaded.model).items()}
    # read again, since the state that was loaded shares its memory with the network
    shipped = open_model(loaded.path).artifact.state
    if target.suffix == ENDING:
        write_weights(target, state, config, tokenizer.identity(), artifact.info)
    elif not is_weights(loaded.path) and all(torch.equal(tensor, shipped[name]) for name, tensor in state.items()):
        with disk_errors(loaded.path, "read"):
            write_bytes(target, loaded.path.read_bytes())
    else:
        told, coder = (tokenizer.identity(), artifact.info), config.export.coder
        write_artifact(target, state, config, *told, coder=coder, primer=artifact.primer)
    if isinstance(tokenizer, SentencePieceTokenizer):
        beside = target.parent / "tokenizer.model"
        if not beside.exists() or not beside.samefile(tokenizer.path):
            with disk_errors(beside, "write"):
                shutil.copyfile(tokenizer.path, beside)
    return target
