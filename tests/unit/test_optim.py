"""Muon and Adam: equal to a plain reference, on the right parameters, at the right rates, resumable."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from conftest import ModelMaker, tiny_network
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from bytegolf.config import HNetConfig, ModelConfig, OptimConfig, RouterConfig, StackConfig
from bytegolf.errors import BytegolfError
from bytegolf.model.lm import LanguageModel
from bytegolf.ops import native
from bytegolf.training.optim import Muon, Optimizer, minimax_quintics, orthogonalize

# ---------------------------------------------------------------------------------------------- Muon


@given(st.integers(1, 4), st.integers(4, 48), st.integers(4, 48), st.integers(0, 5))
def test_orthogonalize_brings_the_singular_values_near_one(n: int, rows: int, columns: int, seed: int) -> None:
    x = torch.randn(n, rows, columns, generator=torch.Generator().manual_seed(seed))
    u, s, v = torch.linalg.svd(x, full_matrices=False)
    # values of real gradients spread over orders of magnitude, but Newton-Schulz has 5 steps only
    s = torch.linspace(1, 0.05, s.shape[1]).expand_as(s)
    y = orthogonalize(u @ torch.diag_embed(s) @ v, 5).float()
    assert y.dtype == torch.float32
    values = torch.linalg.svdvals(y)
    assert values.min() > 0.6
    assert values.max() < 1.3
    # the singular vectors stay: y points along u·vᵀ
    cosine = ((u @ v) * y).sum((1, 2)) / (u @ v).norm(dim=(1, 2)) / y.norm(dim=(1, 2))
    assert cosine.min() > 0.95


@pytest.mark.parametrize(("steps", "off"), [(2, 0.708), (3, 0.270), (5, 1e-4)])
def test_minimax_quintics_do_their_best_for_their_number(steps: int, off: float) -> None:
    # the largest error over [0.01, 1] that a quintic can leave behind the quintics before it
    s = torch.logspace(-2, 0, 2001, dtype=torch.float64)
    for a, b, c in minimax_quintics(steps):
        s = a * s + b * s**3 + c * s**5
    assert abs(float((s - 1).abs().max()) - off) < 0.001


@pytest.mark.parametrize("units", [True, False])
@pytest.mark.parametrize("shape", [(24, 8), (8, 24), (9, 8)])
def test_orthogonalize_by_minimax_quintics(
    shape: tuple[int, int], units: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bytegolf.training.optim.has_bf16", lambda device: units)
    generator = torch.Generator().manual_seed(sum(shape))
    u, _, v = torch.linalg.svd(torch.randn(3, *shape, generator=generator), full_matrices=False)
    y = orthogonalize(u @ torch.diag(torch.linspace(1, 0.1, 8)) @ v, 3, "minimax").float()
    torch.testing.assert_close(u.mT @ y @ v.mT, torch.eye(8).expand(3, 8, 8), rtol=0, atol=0.3)


def test_orthogonalize_ignores_the_scale_and_survives_zeros() -> None:
    x = torch.randn(2, 8, 12, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(orthogonalize(x * 1024, 5), orthogonalize(x, 5), rtol=2e-2, atol=2e-2)
    assert orthogonalize(torch.zeros(1, 4, 4), 5).abs().max() == 0


class _Products(TorchDispatchMode):
    """The dtypes in which matrices are multiplied within the context."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.dtypes: set[torch.dtype] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func._schema.name in ("aten::bmm", "aten::baddbmm"):
            self.dtypes.add(args[0].dtype)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(("units", "dtype"), [(True, torch.bfloat16), (False, torch.float32)])
def test_orthogonalize_multiplies_in_bf16_only_where_the_cpu_does(
    units: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    # without units for it a product in bf16 takes fifty times as long: all of a step, where nothing else is in bf16
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.setattr(torch.cpu, name, lambda: units, raising=False)
    x = torch.randn(2, 8, 12, generator=torch.Generator().manual_seed(0))
    with _Products() as products:
        y = orthogonalize(x, 5)
    assert products.dtypes == {dtype}
    assert y.dtype == torch.bfloat16


@pytest.mark.parametrize("shape", [(24, 8), (8, 24), (16, 8), (9, 8), (8, 8)])
def test_orthogonalize_in_fp32_is_newton_schulz(shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    # whether on the matrix or, where it is long, on its Gram matrix alone; singular values down to 1e-4 of the largest
    monkeypatch.setattr("bytegolf.training.optim.has_bf16", lambda device: False)
    generator = torch.Generator().manual_seed(sum(shape))
    x = torch.randn(3, *shape, generator=generator) * torch.logspace(0, -4, shape[1])
    expected = torch.stack([newton_schulz(matrix, torch.float64) for matrix in x])
    torch.testing.assert_close(orthogonalize(x, 5).float(), expected, rtol=2**-8, atol=1e-5)


def newton_schulz(g: Tensor, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """Muon's iteration as its author writes it, for one matrix."""
    x = g.to(dtype)
    x = x / (x.norm() + 1e-7)
    if g.shape[0] > g.shape[1]:
        x = x.T
    for _ in range(5):
        a = x @ x.T
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    out: Tensor = x.T if g.shape[0] > g.shape[1] else x
    return out.float()


@pytest.mark.parametrize("fused", [False, True])
def test_muon_equals_the_per_matrix_reference(fused: bool) -> None:
    """Momentum, Nesterov, √max(1, R/C), multipliers, weight decay; packed matrices by themselves."""
    torch.manual_seed(0)
    shapes = [((12, 8), (12,)), ((8, 12), (8,)), ((16, 8), (8, 4, 4)), ((8, 8), (8,))]
    weights = [nn.Parameter(torch.randn(shape)) for shape, _ in shapes]
    splits, multipliers = [rows for _, rows in shapes], [1.0, 2.0, 0.5, 1.0]
    muon = Muon(weights, splits, multipliers, 5)
    reference = [weight.detach().clone() for weight in weights]
    buffers = [torch.zeros_like(weight) for weight in weights]
    for step in range(4):
        lr, momentum, decay = 0.1 / (step + 1), 0.85 + 0.02 * step, 0.1 * step
        grads = [torch.randn_like(weight) for weight in weights]
        for weight, grad in zip(weights, grads, strict=True):
            weight.grad = grad.clone()
        with nullcontext() if fused else native.disabled():
            muon.step(lr, momentum, decay)
        for i, grad in enumerate(grads):
            buffers[i] = momentum * buffers[i] + grad
            update = grad + momentum * buffers[i]
            parts = [
                newton_schulz(part) * max(1.0, part.shape[0] / part.shape[1]) ** 0.5
                for part in torch.split(update, list(splits[i]))
            ]
            rate = lr * multipliers[i]
            reference[i] = reference[i] * (1 - rate * decay) - rate * torch.cat(parts)
    for weight, expected in zip(weights, reference, strict=True):
        # bf16 products in another order differ by a step of bf16 in an update
        torch.testing.assert_close(weight.detach(), expected, rtol=0, atol=0.01)
        # and not by what a forgotten factor or a joint q, k, v would make
        assert (weight.detach() - expected).norm() / (weight.detach() - weight.detach().mean()).norm() < 3e-3


def test_momentum_rises_to_its_final_value(make_model: ModelMaker, monkeypatch: pytest.MonkeyPatch) -> None:
    config = OptimConfig(muon_momentum_start=0.5, muon_momentum=0.9, muon_momentum_steps=4)
    optimizer = Optimizer(make_model("flat"), config)
    seen: list[tuple[float, float]] = []
    monkeypatch.setattr(optimizer.muon, "step", lambda lr, momentum, decay: seen.append((lr, momentum)))
    for step in (0, 1, 2, 4, 100):
        optimizer.step(0.5, step)
    assert [momentum for _, momentum in seen] == pytest.approx([0.5, 0.6, 0.7, 0.9, 0.9])
    assert {lr for lr, _ in seen} == {config.muon_lr * 0.5}


# ---------------------------------------------------------------------------------------------- groups


def test_every_parameter_has_its_optimiser(make_model: ModelMaker) -> None:
    """S0: Muon takes the matrices of linear maps; the embedding and the control tensors, also 2-D ones, go to Adam."""
    model = make_model("two-level")
    config = OptimConfig(embed_lr=0.05, scalar_lr=0.04)
    optimizer = Optimizer(model, config)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    muon = {names[id(parameter)] for parameter in optimizer.muon.parameters}
    rates = {
        names[id(parameter)]: group["rate"] for group in optimizer.adam.param_groups for parameter in group["params"]
    }
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert muon | rates.keys() == trained
    assert not muon & rates.keys()
    assert muon == {
        name
        for name in trained
        if name.endswith("weight") and not name.startswith("embedding") and "skip_weights" not in name
    }
    assert rates.pop("embedding.weight") == 0.05
    assert set(rates.values()) == {0.04}
    control = ("mixer_scale", "mlp_scale", "resid_mix", "skip_weights", "q_gain", "pad")
    assert {name.rpartition(".")[2] for name in rates} == set(control)
    assert any("resid_mix" in name for name in rates)
    assert {"network.router.q_proj.weight", "network.residual.weight", "network.main.router.k_proj.weight"} <= muon


def with_multipliers(outer: float, inner: float) -> LanguageModel:
    torch.manual_seed(3)
    stage = {"layers": 2, "heads": 2, "kv_heads": 1}
    edge, main = (StackConfig(dim=16, lr_mult=mult, **stage) for mult in (outer, inner))  # type: ignore[arg-type]
    return LanguageModel(ModelConfig(HNetConfig(edge, RouterConfig(4.0), main, edge), embed_std=0.5))


def movement(model: LanguageModel) -> dict[str, Tensor]:
    """How far one step moves each parameter."""
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = Optimizer(model, OptimConfig())
    for index, parameter in enumerate(model.parameters()):
        parameter.grad = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(index))
    optimizer.step(1.0, 0)
    return {name: p.detach() - before[name] for name, p in model.named_parameters()}


def test_stage_multipliers_scale_the_update() -> None:
    plain, scaled = movement(with_multipliers(1.0, 1.0)), movement(with_multipliers(2.0, 0.5))
    assert any(".main." in name for name in plain)
    for name, moved in plain.items():
        factor = 1.0 if name.startswith("embedding") else 0.5 if ".main." in name else 2.0
        torch.testing.assert_close(scaled[name], factor * moved, rtol=1e-4, atol=1e-6, msg=name)


# ---------------------------------------------------------------------------------------------- state


def train(model: LanguageModel, optimizer: Optimizer, steps: range) -> None:
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        ids = torch.randint(4, 60, (2, 17), generator=generator)
        out = model(ids[:, :-1])
        (model.losses(out, ids[:, 1:]).mean() + out.router_loss()).backward()
        optimizer.step(1.0, step)
        optimizer.zero_grad()


@pytest.mark.parametrize("stop", [0, 3])
def test_a_restored_optimiser_goes_on_identically(stop: int, make_model: ModelMaker) -> None:
    config = OptimConfig(muon_momentum_steps=10)
    whole = make_model("one-level")
    train(whole, Optimizer(whole, config), range(6))

    first = make_model("one-level")
    optimizer = Optimizer(first, config)
    train(first, optimizer, range(stop))
    weights = {name: tensor.clone() for name, tensor in first.state_dict().items()}
    state = {name: tensor.clone() for name, tensor in optimizer.state().items()}

    second = make_model("one-level", seed=5)
    resumed = Optimizer(second, config)
    train(second, resumed, range(2))  # what it had done before is forgotten
    second.load_state_dict(weights)
    resumed.load_state(state)
    train(second, resumed, range(stop, 6))
    assert state.keys() <= resumed.state().keys()
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, second.state_dict()[name]), name


@pytest.mark.parametrize(
    "spoil",
    [
        lambda state: state.pop("momentum.network.main.blocks.0.mlp.fc.weight"),
        lambda state: state.pop("exp_avg.embedding.weight"),
        lambda state: state.update({"momentum.network.residual.weight": torch.zeros(3, 3)}),
        lambda state: state.update({"exp_avg_sq.embedding.weight": torch.zeros(3, 3)}),
        lambda state: state.clear(),
    ],
)
def test_a_state_of_another_model_is_refused_in_words(spoil: Any, make_model: ModelMaker) -> None:
    model = make_model("one-level")
    optimizer = Optimizer(model, OptimConfig())
    train(model, optimizer, range(1))
    state = dict(optimizer.state())
    spoil(state)
    with pytest.raises(BytegolfError, match="optimiser state does not fit at"):
        optimizer.load_state(state)


def test_an_empty_stage_is_no_trouble() -> None:
    """One block has no skips: its empty parameter gets no gradient and no update."""
    model = LanguageModel(ModelConfig(tiny_network("two-level")))
    assert any(parameter.numel() == 0 for parameter in model.parameters())
    optimizer = Optimizer(model, OptimConfig())
    train(model, optimizer, range(2))
    assert all(parameter.isfinite().all() for parameter in model.parameters())


def test_routers_can_be_left_to_adam() -> None:
    model = LanguageModel(ModelConfig(tiny_network("one-level")))
    optimizer = Optimizer(model, OptimConfig(router_lr=0.125))
    (group,) = [group for group in optimizer.adam.param_groups if group["rate"] == 0.125]
    names = {name for name, parameter in model.named_parameters() if any(parameter is p for p in group["params"])}
    assert names == {"network.router.q_proj.weight", "network.router.k_proj.weight"}
    assert not any(name in key for key in optimizer.state() for name in names if key.startswith("momentum."))
