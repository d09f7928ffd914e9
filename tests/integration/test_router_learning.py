"""What may help a learned router: growing chunks, a one-sided loss, other odds, noise and starts, policy gradient."""

from __future__ import annotations

import dataclasses
import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import scatter, shapes_unchecked, tiny_network
from test_loop import assert_same, final_weights
from tiny_run import losses, make_trainer, stop_after, tiny_config

from bytegolf.config import Config, CosineConfig, HNetConfig, ModelConfig, NetworkConfig, RouterConfig
from bytegolf.data.tokenizer import ByteTokenizer
from bytegolf.errors import BytegolfError
from bytegolf.model.lm import LanguageModel
from bytegolf.model.routers.base import Material
from bytegolf.model.routers.cosine import CosineRouter
from bytegolf.model.routers.losses import guide_loss, hinge_loss, policy_loss, ratio_loss
from bytegolf.training.schedule import chunk_target, guide_weight
from bytegolf.training.step import Batch, StepFigures


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("data")


def with_settings(router: RouterConfig, **changes: Any) -> RouterConfig:
    """``router`` with other settings, of its own or of its table ``cosine``."""
    own = {field.name for field in dataclasses.fields(CosineConfig)}
    cosine = dataclasses.replace(router.cosine, **{key: value for key, value in changes.items() if key in own})
    rest = {key: value for key, value in changes.items() if key not in own}
    return dataclasses.replace(router, cosine=cosine, **rest)


def changed(network: NetworkConfig, **changes: Any) -> NetworkConfig:
    """``network`` with other settings of every router."""
    if not isinstance(network, HNetConfig):
        return network
    router = with_settings(network.router, **changes)
    return dataclasses.replace(network, router=router, main=changed(network.main, **changes))


def config_of(network: str = "one-level", train: dict[str, Any] | None = None, **router: Any) -> Config:
    config = tiny_config(network, **(train or {}))
    return dataclasses.replace(config, model=ModelConfig(changed(config.model.network, **router)))


def router_of(dim: int = 6, **settings: Any) -> CosineRouter:
    module = CosineRouter(with_settings(RouterConfig(4.0), **settings), dim)
    for proj in (module.q_proj, module.k_proj):
        torch.nn.init.normal_(proj.weight)
    return module.eval()


# ---------------------------------------------------------------------------------------------- the target


def test_chunks_grow_evenly_to_the_target() -> None:
    router = RouterConfig(7.0, start_target=3.0, target_ramp=0.5)
    assert [chunk_target(router, done) for done in (-0.1, 0.0, 0.25, 0.5, 0.8, 1.0)] == [3, 3, 5, 7, 7, 7]
    assert chunk_target(RouterConfig(7.0), 0.0) == 7
    with pytest.raises(BytegolfError, match=r"start_target is 0.5: give a number above 1"):
        RouterConfig(7.0, start_target=0.5)


def test_training_moves_the_target_and_the_loss_asks_for_it(data: Path, tmp_path: Path) -> None:
    config = config_of(train={"max_steps": 6}, start_target=2.0, target_ramp=0.5)
    trainer = make_trainer(config, data, tmp_path)
    (level,) = trainer.model.levels()
    assert level.target == 2.0
    ids = torch.randint(4, 260, (2, 32))
    with torch.no_grad():
        trace = trainer.model(ids).traces[0]
        wanted = level.config.router.loss_weight * ratio_loss(trace.p, trace.proposed, None, 2.0)
    assert float(trace.loss) == pytest.approx(float(wanted))
    seen, original = [], trainer.gradients

    def gradients(batch: Batch) -> StepFigures:
        seen.append(level.target)
        return original(batch)

    trainer.gradients = gradients  # type: ignore[method-assign, assignment]
    trainer.fit()
    assert seen == pytest.approx([2, 2 + 2 / 3, 2 + 4 / 3, 4, 4, 4])


@pytest.mark.parametrize("network", ["one-level", "two-level"])
def test_a_resumed_run_has_the_same_targets_and_draws(network: str, data: Path, tmp_path: Path) -> None:
    policy = {"policy_weight": 0.1} if network == "one-level" else {}
    router = {"start_target": 1.5, "target_ramp": 1.0, "noise": 1.0, "init": "calibrated", **policy}
    config = config_of(network, {"max_steps": 9, "micro_batch": 2, "warmup_steps": 1}, **router)
    whole = make_trainer(config, data, tmp_path / "whole")
    whole.fit()
    first = make_trainer(config, data, tmp_path / "run")
    stop_after(first, 4)
    torch.manual_seed(99)
    second = make_trainer(config, data, tmp_path / "run")
    second.fit(resume=True)
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")
    assert_same(second, final_weights(whole))


# ---------------------------------------------------------------------------------------------- the loss of the rate


def test_the_hinge_costs_nothing_up_to_the_target_and_pushes_down_beyond_it() -> None:
    for chunks, cost in ((1, 0.0), (10, 0.0), (20, 1.0), (60, 5.0)):
        boundary = torch.zeros(1, 60, dtype=torch.bool)
        boundary[:, :chunks] = True
        p = torch.full((1, 60), 0.4, requires_grad=True)
        loss = hinge_loss(p, boundary, None, 6.0)
        (gradient,) = torch.autograd.grad(loss, p)
        assert float(loss.detach()) == pytest.approx(cost)
        assert gradient.unique().tolist() == pytest.approx([6 / 60 if cost else 0])
    p = torch.full((1, 60), 0.4, requires_grad=True)
    (steep,) = torch.autograd.grad(ratio_loss(p, boundary, None, 6.0), p)  # at F = 1 both push alike
    torch.testing.assert_close(gradient, steep)


def test_the_hinge_skips_padding() -> None:
    boundary, valid = torch.ones(2, 8, dtype=torch.bool), torch.ones(2, 8, dtype=torch.bool)
    valid[1, 2:] = False
    boundary[1, 1] = False  # one of two valid positions
    assert float(hinge_loss(boundary.float(), boundary, valid, 4.0)) == pytest.approx(((4 - 1) + (2 - 1)) / 2)


# ---------------------------------------------------------------------------------------------- the odds


def test_sharpness_moves_no_boundary_and_is_a_factor_on_the_log_odds() -> None:
    x = torch.randn(3, 40, 6, dtype=torch.float64)
    plain, sharp = router_of().double(), router_of(sharpness=3.0).double()
    sharp.load_state_dict(plain.state_dict())
    (p, boundary), (surer, same) = plain(x), sharp(x)
    assert torch.equal(boundary, same)
    assert bool((surer[:, 0] == 1).all())
    torch.testing.assert_close(torch.logit(surer[:, 1:]), 3 * torch.logit(p[:, 1:]))


@pytest.mark.parametrize(
    "settings", [{"sharpness": 2.5}, {"init": "calibrated"}, {"init": "calibrated", "sharpness": 0.5}]
)
def test_the_gradient_of_p(settings: dict[str, Any]) -> None:
    """Of both maps and the offset, against finite differences."""
    module = router_of(4, **settings).double()
    x = torch.randn(2, 6, 4, dtype=torch.float64, requires_grad=True)
    names, tensors = zip(*module.named_parameters(), strict=True)

    def p(x: torch.Tensor, *weights: torch.Tensor) -> torch.Tensor:
        found: tuple[torch.Tensor, ...] = torch.func.functional_call(
            module, dict(zip(names, weights, strict=True)), (x,)
        )
        return found[0]

    assert torch.autograd.gradcheck(p, (x, *tensors))


def test_noise_draws_boundaries_with_their_probability_in_training_only() -> None:
    module = router_of(noise=1.0)
    x = torch.randn(4, 16, 6)
    p, fixed = module(x)
    assert torch.equal(fixed, p >= 0.5)
    module.train()
    drawn = torch.stack([module(x)[1] for _ in range(600)]).float().mean(0)
    assert bool((drawn[:, 0] == 1).all())
    torch.testing.assert_close(drawn, p.detach(), rtol=0, atol=0.1)
    torch.manual_seed(5)
    one = module(x)[1]
    torch.manual_seed(5)
    assert torch.equal(module(x)[1], one)


# ---------------------------------------------------------------------------------------------- the start


def material(size: int = 8192) -> Material:
    tokens = torch.randint(4, 30, (size,)).numpy().astype(np.uint16)
    return Material(ByteTokenizer(), tokens, Path())


@pytest.mark.parametrize("network", ["one-level", "two-level"])
def test_a_calibrated_router_starts_at_its_rate(network: str) -> None:
    shape = changed(tiny_network(network), init="calibrated", target=6.0)
    model = LanguageModel(ModelConfig(shape, embed_std=0.5))
    scatter(model)
    text = material()
    model.prepare_routers(text)
    ids = torch.from_numpy(text.tokens.astype(np.int64)).view(8, 1024)
    with torch.no_grad():
        traces = model(ids).traces
    assert [float(trace.rate()) for trace in traces] == pytest.approx([1 / 6] * len(traces), rel=0.08)


def test_a_random_start_is_a_rotation() -> None:
    module = CosineRouter(with_settings(RouterConfig(4.0), init="random"), 8)
    torch.testing.assert_close(module.q_proj.weight, torch.eye(8))
    torch.testing.assert_close(module.k_proj.weight @ module.k_proj.weight.T, torch.eye(8))
    assert not torch.equal(module.k_proj.weight, torch.eye(8))


@pytest.mark.parametrize("settings", [{"sharpness": 3.0}, {"init": "calibrated"}, {"init": "random", "noise": 1.0}])
def test_step_is_forward(settings: dict[str, Any]) -> None:
    model = LanguageModel(ModelConfig(changed(tiny_network("two-level"), **settings), embed_std=0.5)).eval()
    scatter(model)
    model.prepare_routers(material())
    ids = torch.randint(1, 40, (2, 50))
    with torch.no_grad(), shapes_unchecked():
        wanted = model.cap(model(ids).logits)
        state = model.start(2)
        found = torch.stack([model.step(ids[:, t], state) for t in range(50)], 1)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-4)


# ---------------------------------------------------------------------------------------------- policy gradient


def test_policy_loss_by_hand() -> None:
    p = torch.rand(2, 7, dtype=torch.float64) * 0.9 + 0.05
    boundary, nats, discount = torch.rand(2, 7) < 0.5, torch.rand(2, 7, dtype=torch.float64), 0.7
    returns, logs = [], []
    for b, t in itertools.product(range(2), range(1, 7)):
        weights = [discount**k for k in range(7 - t)]
        returns.append(-sum(w * float(nats[b, t + k]) for k, w in enumerate(weights)) / sum(weights))
        logs.append(float(torch.log(p[b, t] if boundary[b, t] else 1 - p[b, t])))
    advantage = (np.array(returns) - np.mean(returns)) / (np.std(returns, ddof=1) + 1e-6)
    assert float(policy_loss(p, boundary, nats, discount)) == pytest.approx(-float(np.mean(advantage * logs)))


def test_policy_gradient_learns_where_a_boundary_pays() -> None:
    """A bandit a position: where a boundary lowers the loss, p rises; where it raises it, p falls."""
    pays = torch.tensor([0.0, 1.0, -1.0, 1.0, -1.0, 0.0])
    odds = torch.zeros(1, 6, requires_grad=True)
    for _ in range(300):
        p = torch.sigmoid(odds).expand(16, 6)
        boundary = torch.rand(16, 6) < p
        nats = 2 - pays * boundary.float()
        (gradient,) = torch.autograd.grad(policy_loss(p, boundary, nats, 0.0), odds)
        odds = (odds - 2 * gradient).detach().requires_grad_()
    p = torch.sigmoid(odds.detach())[0]
    assert bool((p[[1, 3]] > 0.8).all())
    assert bool((p[[2, 4]] < 0.2).all())
    assert float(p[0]) == 0.5, "the first boundary is forced"


def test_policy_gradient_wants_boundaries_that_are_drawn() -> None:
    with pytest.raises(BytegolfError, match=r"policy_weight is 0.1, but with noise = 0.0 boundaries are not drawn"):
        CosineConfig(policy_weight=0.1)
    with pytest.raises(BytegolfError, match=r"main.router.cosine.policy_weight is 0.1, but only tokens have a loss"):
        changed(tiny_network("two-level"), noise=1.0, policy_weight=0.1)


def test_the_policy_is_part_of_the_objective() -> None:
    model = LanguageModel(config_of(noise=1.0, policy_weight=0.5).model)
    ids = torch.randint(4, 60, (4, 33))
    out = model(ids[:, :-1])
    nats = model.losses(out, ids[:, 1:])
    trace = out.traces[0]
    wanted = nats.mean() + trace.loss + 0.5 * policy_loss(trace.p, trace.proposed, nats, 0.9)
    assert float(model.objective(out, nats).detach()) == pytest.approx(float(wanted.detach()))


# ---------------------------------------------------------------------------------------------- the guide


def test_the_guide_is_gone_when_its_share_of_the_budget_is() -> None:
    router = RouterConfig(4.0, cosine=CosineConfig(guide_weight=0.4, guide_share=0.5))
    assert [guide_weight(router, done) for done in (-0.1, 0.0, 0.25, 0.5, 1.0)] == [0.4, 0.4, 0.2, 0, 0]


def test_the_guide_counts_the_odds_of_what_it_taught() -> None:
    p = torch.tensor([[1.0, 0.25, 0.5, 1.0, 0.0]])
    taught = torch.tensor([[True, False, True, True, True]])
    expected = -(math.log(0.75) + math.log(0.5) + math.log(1 - 1e-4) + math.log(1e-4)) / 4
    assert guide_loss(p, taught).item() == pytest.approx(expected, rel=1e-5)


def test_a_guided_router_learns_where_words_begin() -> None:
    """On text, from the gradient of its loss alone; a narrow one too."""
    text = torch.tensor(
        [[byte + ByteTokenizer.OFFSET for byte in b"the quick brown fox jumps over the lazy dogs " * 3]]
    )
    torch.manual_seed(0)
    model = LanguageModel(config_of(guide_weight=1.0, dim=4).model)
    level = model.levels()[0]
    words = level.router.guide(torch.zeros(*text.shape, 1), None, text)[1]  # type: ignore[misc]
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    agreement = []
    for _ in range(60):
        trace = model(text).traces[0]
        agreement.append((trace.proposed == words).float().mean().item())
        optimizer.zero_grad()
        trace.loss.backward()
        optimizer.step()
    assert agreement[0] < 0.9
    assert agreement[-1] > 0.95


def test_a_level_without_tokens_has_no_guide() -> None:
    with pytest.raises(BytegolfError, match=r"main\.router\.cosine\.guide_weight is 0\.1.*set it to 0"):
        config_of("two-level", guide_weight=0.1)


def test_only_training_asks_the_guide() -> None:
    text = torch.tensor([[byte + ByteTokenizer.OFFSET for byte in b"the quick brown fox"]])
    losses = []
    for weight in (0.0, 1.0):
        torch.manual_seed(0)
        model = LanguageModel(config_of(guide_weight=weight).model)
        losses.append([model.train(mode)(text).traces[0].loss.item() for mode in (True, False)])
    assert losses[0][0] < losses[1][0]
    assert losses[0][1] == losses[1][1]
