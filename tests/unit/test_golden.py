"""Golden vectors: the public systems' own logits, router outputs, losses and gradients, to 1e-4 relative in fp32.

They lie beside the repository, in ``../shared/data/golden`` (``BYTEGOLF_GOLDEN`` names another folder), and the
tests skip where they are absent. ``tests/spec`` is the check that needs none: the same systems, and S3, as equations.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from golden_weights import from_public
from safetensors.torch import load_file
from torch import Tensor

from bytegolf.config import HNetConfig, ModelConfig, NetworkConfig, RouterConfig, SoftConfig, StackConfig
from bytegolf.model.lm import LanguageModel

FOLDER = Path(os.environ.get("BYTEGOLF_GOLDEN", Path(__file__).resolve().parents[3] / "shared" / "data" / "golden"))
pytestmark = pytest.mark.skipif(not FOLDER.is_dir(), reason=f"no golden vectors in {FOLDER}")


@dataclass
class Golden:
    """One system: its numbers, and ours from the same weights."""

    numbers: dict[str, Tensor]
    model: LanguageModel

    def part(self, prefix: str) -> dict[str, Tensor]:
        """The tensors under a prefix, by our names."""
        return from_public({k.removeprefix(prefix): t for k, t in self.numbers.items() if k.startswith(prefix)})


@pytest.fixture(params=["s0_flat", "s1_soft", "s2_hnet"])
def golden(request: pytest.FixtureRequest) -> Golden:
    public = json.loads((FOLDER / f"{request.param}.json").read_text())

    def stage(layers: int) -> StackConfig:
        return StackConfig(
            layers,
            public["model_dim"],
            public["num_heads"],
            public["num_kv_heads"],
            float(public["mlp_mult"]),
            rope_base=public["rope_base"],
        )

    network: NetworkConfig = stage(public["num_layers"])
    if "outer_layers" in public:
        outer = public["outer_layers"]
        router = RouterConfig(public["target_avg_chunk_len"], public["ratio_loss_weight"], public["hnet_lr_diff"])
        inner = stage(public["num_layers"] - 2 * outer)
        network = HNetConfig(stage(outer), router, inner, stage(outer))
    soft = SoftConfig(layers=public.get("hnet_layers", 0))
    model = LanguageModel(ModelConfig(network, public["vocab_size"], softcap=public["logit_softcap"], soft=soft))
    found = Golden(load_file(FOLDER / f"{request.param}.safetensors"), model)
    weights = found.part("weight.")
    assert len(weights) == sum(1 for _ in model.parameters())
    model.load_state_dict(weights)
    return found


def error(got: Tensor, wanted: Tensor) -> float:
    """The largest difference relative to the largest magnitude."""
    assert got.shape == wanted.shape
    return float((got - wanted).detach().abs().max() / wanted.abs().max())


@torch.no_grad()
def test_logits_router_and_losses(golden: Golden) -> None:
    numbers, model = golden.numbers, golden.model
    out = model(numbers["input_ids"])
    assert error(model.cap(out.logits), numbers["logits"]) < 1e-4
    for trace in out.traces:
        assert error(trace.p, numbers["inner.p"]) < 1e-4
        assert torch.equal(trace.boundary, numbers["inner.b"].bool())
    assert bool(out.traces) == ("inner.p" in numbers)
    nats = model.losses(out, numbers["target_ids"]).mean()
    assert float(nats) == pytest.approx(float(numbers["loss_eval"]), rel=1e-5)
    assert float(nats) + sum(float(trace.loss.detach()) for trace in out.traces) == pytest.approx(
        float(numbers["loss"]), rel=1e-5
    )


@torch.no_grad()
def test_soft_chunking_s_own_input_and_output(golden: Golden) -> None:
    """And its boundaries, recomputed here from the public weights by the equation itself (S1)."""
    model, numbers = golden.model, golden.numbers
    assert (model.soft is not None) == ("inner.chunk_in" in numbers)
    if model.soft is None:
        return
    x = numbers["inner.chunk_in"]
    assert error(model.look_up(numbers["input_ids"]), x) < 1e-4
    assert error(model.embed(numbers["input_ids"]), numbers["inner.chunk_out"]) < 1e-4
    for index, trace in enumerate(model.soft(x)[1]):
        name = f"weight.chunker.layers.{index}"
        weight, bias = numbers[f"{name}.boundary_proj.weight"][0], numbers[f"{name}.boundary_proj.bias"]
        for t in range(1, x.shape[1]):
            b = torch.sigmoid(torch.cat((x[:, t - 1], x[:, t]), 1) @ weight + bias)
            torch.testing.assert_close(trace.b[:, t], b, rtol=0, atol=1e-5)
        x = model.soft.stack[index](x, trace.first)[0]
    assert error(x, numbers["inner.chunk_out"]) < 1e-4


def test_every_gradient(golden: Golden) -> None:
    numbers, model = golden.numbers, golden.model
    out = model(numbers["input_ids"])
    (model.losses(out, numbers["target_ids"]).mean() + out.router_loss()).backward()
    wanted = golden.part("grad.")
    ours = {name: parameter for name, parameter in model.named_parameters() if parameter.numel()}
    assert {name for name, tensor in wanted.items() if tensor.numel()} == set(ours)
    worst = {}
    for name, parameter in ours.items():
        assert parameter.grad is not None, name
        worst[name] = error(parameter.grad, wanted[name])
    assert {name: value for name, value in worst.items() if value >= 1e-4} == {}


def test_step_gives_the_golden_logits(golden: Golden) -> None:
    ids = golden.numbers["input_ids"]
    state = golden.model.start(ids.shape[0])
    steps = [golden.model.step(ids[:, t], state) for t in range(ids.shape[1])]
    assert error(torch.stack(steps, 1), golden.numbers["logits"]) < 1e-4
