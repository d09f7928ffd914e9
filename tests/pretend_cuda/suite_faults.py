"""A fault of devices that is planted in an area on purpose is caught: a stray tensor, or a forgotten copy."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import public_hnet
import pytest
import torch
from commands import TinyRun
from gpu_runs import BIG, RunOf, losses, on_both, run_of, trainer_on  # noqa: F401
from torch import Tensor
from torch.utils._pytree import tree_map_only

import bytegolf
from bytegolf.config import MixConfig, TttConfig
from bytegolf.infer.frequencies import Encoder
from bytegolf.infer.streams import Mode, code_streams
from bytegolf.model.embed import BOS
from pretend_cuda.tensors import PretendTensor

Plant = Callable[[pytest.MonkeyPatch], None]


def to_cpu(found: Any) -> Any:
    """What was found, with its tensors on the CPU."""
    return tree_map_only(Tensor, lambda tensor: tensor.cpu(), found)


def strays(where: str, change: Callable[[Any], Any] = to_cpu) -> Plant:
    """The results of the function ``module:name`` (or ``module:Class.name``) stray to the CPU."""

    def plant(monkeypatch: pytest.MonkeyPatch) -> None:
        module, _, name = where.partition(":")
        *owners, last = name.split(".")
        owner: Any = importlib.import_module(module)
        for each in owners:
            owner = getattr(owner, each)
        real = getattr(owner, last)
        monkeypatch.setattr(owner, last, lambda *args, **kwargs: change(real(*args, **kwargs)))

    return plant


def stray_state(state: Any) -> Any:
    """A model's state whose history strays to the CPU."""
    state.history = state.history.cpu()
    return state


def stray_hook(hook: Any) -> Any:
    """A hook of adapters whose result strays."""
    return lambda *args: hook(*args).cpu()


def stray_stream(stream: Any) -> Any:
    """A stream between blocks that strays."""
    return dataclasses.replace(stream, base=stream.base.cpu())


def stray_weight(model: Any) -> Any:
    """A loaded model of which a weight stays where its file was mapped."""
    embedding = model.embedding
    embedding.weight = torch.nn.Parameter(embedding.weight.detach().cpu(), requires_grad=False)
    return model


class Stray(torch.autograd.Function):
    """The identity, whose gradient strays to the CPU."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        """x."""
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        """g, elsewhere."""
        return g.cpu()


def forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """``.cpu()`` is left out everywhere."""
    monkeypatch.setattr(PretendTensor, "cpu", lambda tensor: tensor)


def train(run: TinyRun, tmp_path: Path) -> None:
    losses(trainer_on("cuda", "cpu-demo", run.data), 1)


def train_quantised(run: TinyRun, tmp_path: Path) -> None:
    changes = ("train.qat_from=0.01", "train.decay_fraction=1", "train.max_steps=2", *BIG)
    losses(trainer_on("cuda", "cpu-demo", run.data, *changes))


def train_soft(run: TinyRun, tmp_path: Path) -> None:
    losses(trainer_on("cuda", "cpu-soft", run.data), 1)


def resume(run: TinyRun, tmp_path: Path) -> None:
    first = trainer_on("cuda", "cpu-demo", run.data, folder=tmp_path)
    losses(first, 1)
    first.checkpoint()
    second = trainer_on("cuda", "cpu-demo", run.data, folder=tmp_path)
    second.resume()
    losses(second, 1)


def scored(**mode: Any) -> Callable[[TinyRun, Path], None]:
    """Scoring in a mode."""

    def score(run: TinyRun, tmp_path: Path) -> None:
        model = on_both(run)[1]
        once = mode.pop("one_pass", False)
        model.evaluate(run.data, model.mode(**mode), limit=256, one_pass=once)

    return score


def step(run: TinyRun, tmp_path: Path) -> None:
    model = on_both(run)[1].module
    state = model.start(2)
    model.extend(torch.tensor([[BOS, 70], [BOS, 80]], device="cuda"), state)
    for token in range(70, 80):
        model.step(torch.tensor([token], device="cuda"), state, np.array([1]))


def sample(run: TinyRun, tmp_path: Path) -> None:
    on_both(run)[1].generate("The", 3)


def calibrate(run: TinyRun, tmp_path: Path) -> None:
    from bytegolf.artifact.export import solved

    changes = ("export.gptq=true", "export.gptq_tokens=64", *BIG)
    trainer = trainer_on("cuda", "cpu-demo", run.data, *changes)
    solved(trainer.config, trainer.data.tokenizer, trainer.export_state(), torch.device("cuda"))


def save(run: TinyRun, tmp_path: Path) -> None:
    trainer_on("cuda", "cpu-demo", run.data).export(tmp_path / "a.bgolf")


def analyse(run: TinyRun, tmp_path: Path) -> None:
    on_both(run)[1].segment("Fellow citizens")


def distributions(run: TinyRun, tmp_path: Path) -> None:
    on_both(run)[1].log_probs("Fellow citizens")


def train_adapters(run: TinyRun, tmp_path: Path) -> None:
    losses(trainer_on("cuda", "cpu-demo", run.data, "train.adapters=2"), 2)


def recompute(run: TinyRun, tmp_path: Path) -> None:
    losses(trainer_on("cuda", "cpu-demo", run.data, "train.recompute=true"), 1)


def read_on(run: TinyRun, tmp_path: Path) -> None:
    reader = on_both(run)[1].reader()
    for text in (b"Fellow", b"Fellows"):
        reader.read(text)


def complete(run: TinyRun, tmp_path: Path) -> None:
    from bytegolf.tools.serve.answers import CompletionRequest
    from bytegolf.tools.serve.completions import Order, drawing
    from bytegolf.tools.serve.served import Served

    model = on_both(run)[1]
    asked = CompletionRequest("The", max_tokens=2, logprobs=2, echo=True)
    list(drawing(Order.of(asked, Served("model", model, model.reader()), 100)))


def draft(run: TinyRun, tmp_path: Path) -> None:
    list(on_both(run)[1].generate_bytes(["The"], [1], 3, 0.0, 0.9, draft=2))


def public_model(run: TinyRun, tmp_path: Path) -> None:
    config = public_hnet.public()
    source = public_hnet.write(tmp_path, config, public_hnet.weights(config, torch.bfloat16))
    model = bytegolf.load(source, device="cuda", precision="fp32")
    model.log_probs("The")
    state = model.module.start(1)
    for token in (70, 71):
        model.module.step(torch.tensor([token], device="cuda"), state)


def code(run: TinyRun, tmp_path: Path) -> None:
    tokens = np.array([[BOS, 70, 71, 72]], np.uint16)
    code_streams(on_both(run)[1].module, tokens, np.array([4]), Mode(4, 2), Encoder(), 4)


def fixed_momenta(monkeypatch: pytest.MonkeyPatch) -> None:
    """A resumed optimiser takes over tensors as they were read."""
    from bytegolf.training.optim import Muon

    def load(muon: Muon, momenta: list[Tensor]) -> None:
        muon.momenta = {piece: piece.of(momenta).clone() for piece in muon.momenta}

    monkeypatch.setattr(Muon, "load_state", load)


FAULTS: dict[str, tuple[Plant, Callable[[TinyRun, Path], None]]] = {
    "forward": (strays("bytegolf.ops.attention:rotary_angles"), train),
    "embedding": (strays("bytegolf.model.embed:NgramEmbedding.rows"), train),
    "routing": (strays("bytegolf.model.routers.cosine:boundary_probability"), train),
    "chunking": (strays("bytegolf.model.chunk:dechunk"), train),
    "backward": (strays("bytegolf.model.lm:LanguageModel.project", Stray.apply), train),
    "Muon": (strays("bytegolf.training.optim:orthogonalize"), train),
    "Adam and tables": (strays("bytegolf.model.lm:LanguageModel.look_up"), train),
    "quantised training": (strays("bytegolf.artifact.quantize:row_scales"), train_quantised),
    "soft chunking": (strays("bytegolf.model.soft_chunk:SoftLayer.choose"), train_soft),
    "FlexAttention's mask": (strays("bytegolf.ops.flex_attention:block_mask", lambda mask: mask.to("cpu")), train),
    "a resumed optimiser": (fixed_momenta, resume),
    "plain scoring": (strays("bytegolf.model.chunk:dechunk"), scored()),
    "a score's losses": (forgotten, scored()),
    "sliding scoring": (strays("bytegolf.evaluate.sliding:Windows.main"), scored(stride=32)),
    "scoring in one pass": (strays("bytegolf.ops.attention:rotary_angles"), scored(stride=32, one_pass=True)),
    "adapters": (
        strays("bytegolf.evaluate.ttt:LanguageModel.losses"),
        scored(ttt=TttConfig("lora")),
    ),
    "SGD at test time": (strays("torch.autograd:grad"), scored(ttt=TttConfig("sgd"))),
    "steps": (strays("bytegolf.model.mixers.attention:CacheSpan.read"), step),
    "a step's smoothing": (strays("bytegolf.model.hnet:smooth_on"), step),
    "samples": (strays("bytegolf.model.lm:LanguageModel._no_history"), sample),
    "GPTQ's calibration": (strays("bytegolf.model.layers:Linear.forward"), calibrate),
    "GPTQ's rounding": (strays("bytegolf.artifact.gptq:_inverse_factor"), calibrate),
    "an export": (strays("bytegolf.artifact.quantize:checked", lambda tensor: tensor.to("cuda")), save),
    "trained adapters": (strays("bytegolf.model.lora:_beside", stray_hook), train_adapters),
    "activations computed again": (strays("bytegolf.model.stack:checkpoint", stray_stream), recompute),
    "the page's reader": (strays("bytegolf.model.mixers.attention:CacheSpan.read"), read_on),
    "completions": (forgotten, complete),
    "drafts": (strays("bytegolf.model.lm:LanguageModel.fork", stray_state), draft),
    "public weights": (strays("bytegolf.artifact.loading:_ready", stray_weight), public_model),
    "Mamba-2": (strays("bytegolf.model.mixers.mamba2:ssd"), public_model),
    "mixing": (forgotten, scored(mix=MixConfig(on=True, megabytes=1))),
    "the codec's streams": (forgotten, code),
    "chunks of a text": (forgotten, analyse),
    "distributions": (forgotten, distributions),
}


@pytest.mark.parametrize("area", FAULTS)
def test_a_planted_fault_is_caught(
    area: str,
    run_of: RunOf,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plant, does = FAULTS[area]
    plant(monkeypatch)
    with pytest.raises((RuntimeError, TypeError, AssertionError), match=r"same device|numpy|expected device|is on cpu"):
        does(run_of("cpu-demo"), tmp_path)
