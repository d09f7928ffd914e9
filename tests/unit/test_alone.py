"""A step of one sequence alone, which has a path of its own: what forward gives at every prefix, native or plain."""

from __future__ import annotations

import dataclasses
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ModelMaker, scatter, shapes_unchecked, tiny_model, tiny_network
from test_routers import KINDS, material, model_of  # noqa: F401  (material is a fixture)
from test_step import EVERY_MODEL
from torch import Tensor

from bytegolf.config import CosineConfig, HNetConfig, ModelConfig, NgramConfig, SoftConfig
from bytegolf.model.embed import BOS
from bytegolf.model.lm import LanguageModel
from bytegolf.model.routers.base import Material
from bytegolf.model.trace import RouterTrace
from bytegolf.ops import native

LENGTH = 45
ways = pytest.mark.parametrize("way", ["native", "plain"])


def drawn(rows: int = 3, length: int = LENGTH) -> Tensor:
    """Sequences in which documents begin here and there, and tokens come again."""
    ids = torch.randint(4, 30, (rows, length))
    ids[torch.rand(rows, length) < 0.05] = BOS
    return ids


def agree(model: LanguageModel, way: str, exact: float = 1e-10) -> None:
    """Three sequences of one state step in an order drawn at random, and give logits, p and boundaries of forward."""
    if way == "native" and native.why_not() is not None:
        pytest.skip("no native kernels here")
    model.precision = torch.float64
    ids = drawn()
    with torch.no_grad():
        out = model(ids)
    wanted = model.cap(out.logits)
    found = torch.zeros_like(wanted)
    at, state = [0] * len(ids), model.start(len(ids), LENGTH)
    opened: list[list[list[tuple[float, bool]]]] = [[[] for _ in ids] for _ in out.traces]
    with nullcontext() if way == "native" else native.disabled(), shapes_unchecked():
        for row in torch.randperm(ids.numel()).remainder(len(ids)).tolist():
            found[row, at[row]] = model.step(ids[row, at[row] : at[row] + 1], state, np.array([row]))[0]
            at[row] += 1
            for level, trace in enumerate(state.traces):
                assert trace.rows.tolist() == [row]
                opened[level][row].append((float(trace.p), bool(trace.boundary)))
    torch.testing.assert_close(found, wanted, rtol=0, atol=exact)
    for level, trace in enumerate(out.traces):
        for row in range(len(ids)):
            assert [boundary for _, boundary in opened[level][row]] == _there(trace, trace.boundary, row).tolist()
            p = torch.tensor([p for p, _ in opened[level][row]], dtype=torch.float64)
            torch.testing.assert_close(p, _there(trace, trace.p, row).double(), rtol=0, atol=exact)


def _there(trace: RouterTrace, values: Tensor, row: int) -> Tensor:
    return values[row] if trace.valid is None else values[row, trace.valid[row]]


@ways
@pytest.mark.parametrize(("name", "reset"), EVERY_MODEL)
def test_every_network(name: str, reset: bool, way: str, make_model: ModelMaker) -> None:
    """A restart turns by other angles than forward does, and those are fp32."""
    agree(make_model(name, reset), way, 1e-5 if reset else 1e-10)


@pytest.mark.parametrize("kind", KINDS)
def test_every_router(kind: str, material: Material) -> None:  # noqa: F811
    agree(model_of(kind, material), "native")


@ways
@pytest.mark.parametrize(
    "changes",
    [{"dim": 6, "sharpness": 4.0}, {"init": "calibrated"}, {"capacity": "fixed", "capacity_divisor": 9.0}],
    ids=["narrow and sharp", "calibrated", "few chunks"],
)
def test_kinds_of_cosine_routers(changes: dict[str, object], way: str, material: Material) -> None:  # noqa: F811
    own = {field.name for field in dataclasses.fields(CosineConfig)}
    cosine = CosineConfig(**{key: value for key, value in changes.items() if key in own})  # type: ignore[arg-type]
    rest = {key: value for key, value in changes.items() if key not in own}
    agree(model_of("cosine", material, cosine=cosine, **rest), way)  # type: ignore[arg-type]


@pytest.mark.parametrize(("blend", "norm"), [("previous", False), ("chunk", True)])
def test_soft_chunking(blend: str, norm: bool) -> None:
    soft = SoftConfig(layers=2, blend=blend, norm=norm)  # type: ignore[arg-type]
    model = LanguageModel(tiny_model("flat", embed_std=0.5, soft=soft))
    scatter(model)
    agree(model, "native")


@pytest.mark.parametrize(("longest", "bits", "reset"), [(2, 4, False), (9, 17, True), (9, 17, False)])
def test_no_outer_blocks_and_ngrams(longest: int, bits: int, reset: bool) -> None:
    """``cpu-demo``'s kind: no block before the router, which so reads the embedding of n-grams alone."""
    network = tiny_network("one-level")
    assert isinstance(network, HNetConfig)
    network = dataclasses.replace(network, encoder=dataclasses.replace(network.encoder, layers=0))
    ngrams = NgramConfig(longest=longest, bits=bits, dim=5)
    model = LanguageModel(ModelConfig(network, embed_std=0.5, ngrams=ngrams, reset_at_bos=reset))
    scatter(model)
    agree(model, "native", 1e-5 if reset else 1e-10)


@pytest.mark.skipif(native.why_not() is not None, reason="no native kernels here")
def test_what_is_native_runs_natively(make_model: ModelMaker, monkeypatch: pytest.MonkeyPatch) -> None:
    """A step of the fast path starts each of its kernels, and one of several sequences none of them."""
    called: list[str] = []
    start = native.call

    def note(name: str, *arguments: Any) -> None:
        if name.endswith("_step"):
            called.append(name.removesuffix("_step"))
        start(name, *arguments)

    monkeypatch.setattr(native, "call", note)
    model = make_model("tables")
    model.step(torch.tensor([BOS]), model.start(1))
    assert called == ["embed", "stage", "router", "stage", "stage"]  # the encoder, the main network, the decoder
    called.clear()
    model.step(torch.tensor([BOS, 5]), model.start(2))
    model.precision = torch.bfloat16  # which would round where PyTorch does not
    model.step(torch.tensor([BOS]), model.start(1))
    assert not called
