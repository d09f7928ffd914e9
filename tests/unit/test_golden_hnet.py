"""Golden vectors of S4: the public H-Net's own logits, boundaries, losses and gradients, to 1e-4 relative in fp32.

They lie beside the repository, as ``test_golden`` says.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from test_golden import FOLDER, error
from torch import Tensor

from bytegolf.config.public_hnet import from_public, to_public
from bytegolf.model.lm import LanguageModel
from bytegolf.model.public_names import PublicName, public_names

pytestmark = pytest.mark.skipif(not FOLDER.is_dir(), reason=f"no golden vectors in {FOLDER}")


@dataclass
class Golden:
    """One model: the public code's numbers, and ours from the same weights."""

    public: dict[str, Any]
    numbers: dict[str, Tensor]
    model: LanguageModel
    names: dict[str, PublicName]

    def part(self, prefix: str) -> dict[str, Tensor]:
        """The tensors under a prefix, as we have them."""
        return {ours: there.ours(self.numbers[prefix + there.name]) for ours, there in self.names.items()}


@pytest.fixture(params=["s4_one_stage", "s4_two_stage"])
def golden(request: pytest.FixtureRequest) -> Golden:
    public = json.loads((FOLDER / f"{request.param}.json").read_text())
    numbers = load_file(FOLDER / f"{request.param}.safetensors")
    config = from_public(public["config"], public["target_chunk_sizes"])
    found = Golden(public, numbers, LanguageModel(config), public_names(config))
    assert {name for name in numbers if name.startswith("param.")} == {f"param.{n.name}" for n in found.names.values()}
    found.model.load_state_dict(found.part("param."))
    return found


def test_the_configuration_comes_back(golden: Golden) -> None:
    assert to_public(golden.model.config) == golden.public["config"]


def test_logits_boundaries_losses_and_every_gradient(golden: Golden) -> None:
    model, numbers = golden.model, golden.numbers
    out = model(numbers["ids"][:, :-1])
    assert error(model.cap(out.logits), numbers["logits"]) < 1e-4
    assert len(out.traces) == len(golden.public["router_losses"])
    for level, (trace, router_loss) in enumerate(zip(out.traces, golden.public["router_losses"], strict=True)):
        there = trace.valid if trace.valid is not None else torch.ones_like(trace.boundary)
        assert error(trace.p[there].detach(), numbers[f"level{level}.boundary_prob"]) < 1e-4
        assert torch.equal(trace.boundary[there], numbers[f"level{level}.boundary_mask"].bool())
        weight = golden.public["router_loss_weight"]
        assert float(trace.loss.detach()) == pytest.approx(weight * router_loss, rel=1e-5)
    losses = model.losses(out, numbers["ids"][:, 1:])
    assert float(losses.detach().mean()) == pytest.approx(golden.public["loss"], rel=1e-5)
    total = model.objective(out, losses)
    assert float(total.detach()) == pytest.approx(golden.public["total"], rel=1e-5)
    total.backward()
    wanted, worst = golden.part("grad."), {}
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        worst[name] = error(parameter.grad, wanted[name])
    assert {name: value for name, value in worst.items() if value >= 1e-4} == {}


def test_step_gives_the_golden_logits(golden: Golden) -> None:
    ids = golden.numbers["ids"][:, :-1]
    state = golden.model.start(ids.shape[0])
    steps = [golden.model.step(ids[:, t], state) for t in range(ids.shape[1])]
    assert error(torch.stack(steps, 1), golden.numbers["logits"]) < 1e-4
