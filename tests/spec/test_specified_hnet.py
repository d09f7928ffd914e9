"""The paper's H-Net against its equations in fp64, over configurations drawn at random: no public number is needed."""

from __future__ import annotations

import math
import random
from typing import Any

import numpy as np
import pytest
import specified_hnet as spec
import torch
from conftest import scatter

from bytegolf.config.public_hnet import from_public, to_public
from bytegolf.model.lm import LanguageModel
from bytegolf.model.public_names import public_names

SEEDS = range(12)


def drawn(seed: int) -> dict[str, Any]:
    """A small configuration in the public keys; the seeds together have every kind of block at every place."""
    draw = random.Random(seed)
    stages = 1 + seed % 4
    widths = [64]
    for _ in range(stages - 1):
        widths.append(widths[-1] + draw.choice((0, 32)))

    def layout(least: int = 1) -> str:
        return "".join(f"{draw.choice('mMtT')}{draw.randint(1, 2)}" for _ in range(draw.randint(least, 2)))

    arch: list[Any] = [layout()]
    for _ in range(stages - 1):
        arch = [layout(), arch, layout()]
    return {
        "arch_layout": arch,
        "d_model": widths,
        "d_intermediate": [draw.choice((100, 128, 200)) for _ in range(stages)],
        "vocab_size": 256,
        "ssm_cfg": {
            "chunk_size": draw.choice((4, 16)),
            "d_conv": draw.choice((1, 2, 4, 7)),
            "d_state": draw.choice((1, 6, 16)),
            "expand": draw.choice((2, 4)),
        },
        "attn_cfg": {
            "num_heads": [draw.choice((2, 4)) for _ in range(stages)],
            "rotary_emb_dim": [draw.choice((0, 4, 8)) for _ in range(stages)],
            "window_size": [draw.choice((-1, 0, 3, 9)) for _ in range(stages)],
        },
        "tie_embeddings": draw.random() < 0.5,
    }


def built(seed: int) -> tuple[dict[str, Any], LanguageModel, dict[str, np.ndarray[Any, np.dtype[np.float64]]]]:
    """The model in fp64, away from special values, and its weights under the public names."""
    public = drawn(seed)
    torch.manual_seed(seed)
    model = LanguageModel(from_public(public)).double().eval()
    model.precision = torch.float64
    scatter(model)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("a_log"):
                parameter.uniform_(0, 1)
            elif "_proj.weight" in name and "router" in name:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    names = public_names(model.config)
    weights = {names[name].name: names[name].theirs(p.detach()).numpy() for name, p in model.named_parameters()}
    return public, model, weights


def ids_of(seed: int, batch: int, length: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256, (batch, length), generator=generator)


@pytest.mark.parametrize("seed", SEEDS)
def test_logits_boundaries_and_ratio_loss(seed: int) -> None:
    public, model, weights = built(seed)
    tolerance = 1e-9
    ids = ids_of(seed, 2, 33)
    out = model(ids)
    found = [spec.logits(public, weights, row.numpy()) for row in ids]
    for row, (wanted, _) in enumerate(found):
        np.testing.assert_allclose(out.logits[row].detach().numpy(), wanted, rtol=tolerance, atol=tolerance)
    routers = [level.config.router for level in model.levels()]
    for depth, (trace, router) in enumerate(zip(out.traces, routers, strict=True)):
        per_row = [levels[depth] for _, levels in found]
        there = trace.valid if trace.valid is not None else torch.ones_like(trace.boundary)
        for row, level in enumerate(per_row):
            np.testing.assert_allclose(
                trace.p[row][there[row]].detach().numpy(), level.p, rtol=tolerance, atol=tolerance
            )
            assert (trace.boundary[row][there[row]].numpy() == level.boundary).all()
        wanted_loss = router.loss_weight * spec.ratio_loss(per_row, router.target)
        assert math.isclose(float(trace.loss.detach()), wanted_loss, rel_tol=tolerance)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_public_configuration_comes_back(seed: int) -> None:
    public = drawn(seed)
    found = to_public(from_public(public))
    if "m" not in str(public["arch_layout"]).lower():  # then nothing keeps what Mamba-2 would have been
        found["ssm_cfg"] = public["ssm_cfg"]
    assert found == public


def test_the_seeds_cover_every_option() -> None:
    drawn_configs = [drawn(seed) for seed in SEEDS]
    text = str([config["arch_layout"] for config in drawn_configs])
    assert {len(config["d_model"]) for config in drawn_configs} == {1, 2, 3, 4}
    assert all(letter in text for letter in "mMtT")
    assert {config["tie_embeddings"] for config in drawn_configs} == {True, False}
    for key, values in (("d_conv", {1, 2, 4, 7}), ("d_state", {1, 6, 16}), ("expand", {2, 4})):
        assert {config["ssm_cfg"][key] for config in drawn_configs} == values
    assert {rotary for config in drawn_configs for rotary in config["attn_cfg"]["rotary_emb_dim"]} == {0, 4, 8}
