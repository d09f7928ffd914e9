"""Step by step equals all at once: logits and boundaries at every prefix of real text, in fp32."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from conftest import TINY, ModelMaker, scatter, shapes_unchecked
from torch import Tensor

from bytegolf.config import HNetConfig, ModelConfig, RouterConfig, StackConfig
from bytegolf.model.embed import BOS
from bytegolf.model.lm import LanguageModel
from bytegolf.model.trace import StepTrace

EVERY_MODEL = [(name, reset) for name in TINY for reset in (False, True)]
every_model = pytest.mark.parametrize(("name", "reset"), EVERY_MODEL)

TEXTS = (
    ("The quick brown fox jumps over the lazy dog. Natural language processing has made remarkable progress.",),
    ("Größe, naïveté, 東京タワー — und so weiter: ½ ≠ 0.25!", "Yes.", "", "She said: “Ну что ж, поехали!” 🚀🚀"),
    ("aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", "Four score and seven years ago our fathers\n\n\tbrought",),
    ("x", "def f(n):\n    return n if n < 2 else f(n - 1) + f(n - 2)\n", "3.14159265358979323846264338327950288419"),
)  # fmt: skip
LENGTH = 100
CHECKED = 10  # steps whose shapes are checked: local attention has come round by then


def byte_ids(*documents: str) -> list[int]:
    """byte260: BOS before each document, then each byte plus 4."""
    return [i for text in documents for i in (BOS, *(byte + 4 for byte in text.encode()))]


@pytest.fixture
def ids() -> Tensor:
    """Four sequences, whose documents start at different positions."""
    rows = [byte_ids(*documents) for documents in TEXTS]
    assert min(map(len, rows)) >= LENGTH
    return torch.tensor([row[:LENGTH] for row in rows])


def run(model: LanguageModel, ids: Tensor) -> tuple[Tensor, list[list[StepTrace]]]:
    """Logits (B, L, V) and the traces of each step."""
    state = model.start(ids.shape[0])
    logits, traces = [], []
    for t in range(ids.shape[1]):
        with shapes_unchecked() if t >= CHECKED else nullcontext():
            logits.append(model.step(ids[:, t], state))
        traces.append(state.traces)
    return torch.stack(logits, 1), traces


@every_model
def test_step_is_forward(name: str, reset: bool, ids: Tensor, make_model: ModelMaker) -> None:
    """Logits within 1e-4; the same boundaries and probabilities at every level of every sequence."""
    model = make_model(name, reset)
    with torch.no_grad():
        out = model(ids)
    logits, traces = run(model, ids)
    torch.testing.assert_close(logits, model.cap(out.logits), rtol=0, atol=1e-4)

    for level, trace in enumerate(out.traces):
        p: list[list[float]] = [[] for _ in ids]
        boundary: list[list[bool]] = [[] for _ in ids]
        for step in traces:
            for reached in step[level : level + 1]:  # an inner level is reached only where a chunk opens
                for i, (row, count) in enumerate(zip(reached.rows.tolist(), reached.counts.tolist(), strict=True)):
                    p[row] += reached.p[i, :count].tolist()
                    boundary[row] += reached.boundary[i, :count].tolist()
        for row in range(ids.shape[0]):
            valid = slice(None) if trace.valid is None else trace.valid[row]
            assert boundary[row] == trace.boundary[row, valid].tolist()
            torch.testing.assert_close(torch.tensor(p[row]), trace.p[row, valid], rtol=0, atol=1e-5)
    if out.traces:  # the sequences chunk differently, and the routers are neither idle nor stuck
        assert len(set(out.traces[0].boundary.sum(1).tolist())) > 1
        assert all(0.1 < float(trace.rate()) < 0.95 for trace in out.traces)


@pytest.mark.parametrize("name", TINY)
def test_step_is_forward_of_each_prefix(name: str, ids: Tensor, make_model: ModelMaker) -> None:
    """Forward is run on the prefix alone, at sizes around windows and caches; the batch is one sequence."""
    model = make_model(name, reset_at_bos=True)
    ids = ids[1:2, :66]
    logits, _ = run(model, ids)
    for length in (1, 2, 7, 8, 9, 16, 17, 31, 64, 65, 66):
        with torch.no_grad():
            out = model(ids[:, :length])
        torch.testing.assert_close(logits[:, :length], model.cap(out.logits), rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", TINY)
def test_step_is_forward_in_fp64(name: str, ids: Tensor, make_model: ModelMaker) -> None:
    """Where noise hides nothing: what differs is less than 1e-10."""
    model = make_model(name)
    model.precision = torch.float64
    with torch.no_grad():
        wanted = model.cap(model(ids[:, :48]).logits)
    torch.testing.assert_close(run(model, ids[:, :48])[0], wanted, rtol=0, atol=1e-10)


@pytest.mark.parametrize("precision", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", TINY)
def test_step_is_forward_with_fp64_parameters(
    name: str, precision: torch.dtype, ids: Tensor, make_model: ModelMaker
) -> None:
    """One sequence, which the kernels of a step would take: they read fp32 parameters, so they must not run."""
    model = make_model(name).double()
    model.precision = precision
    with torch.no_grad():
        wanted = model.cap(model(ids[:1, :24]).logits)
    exact = 1e-10 if precision == torch.float64 else 1e-4
    torch.testing.assert_close(run(model, ids[:1, :24])[0], wanted, rtol=0, atol=exact)


def test_step_clamps_p_as_forward_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """Equal and opposite neighbours give p = 0 and 1 exactly, since nothing stands before the router."""
    monkeypatch.setattr("bytegolf.model.routers.cosine.THRESHOLD", -1.0)
    stage = StackConfig(2, 16, 2, 1)
    nothing = StackConfig(0, 16, 2, 1)
    model = LanguageModel(ModelConfig(HNetConfig(nothing, RouterConfig(3.0), stage, stage), embed_std=0.5))
    scatter(model)
    model.precision = torch.float64
    with torch.no_grad():
        for weight in (model.network.get_parameter(f"router.{k}_proj.weight") for k in "qk"):
            torch.nn.init.eye_(weight)
        model.embedding.weight[6] = -model.embedding.weight[5]
        ids = torch.tensor([[BOS, 5, 5, 6, 6, 6, 5, 5, 5, 5, 7, 8, 5, 6, 7, 7]])
        out = model(ids)
    assert {0.0, 1.0} <= {round(p, 12) for p in out.traces[0].p[0, 1:].tolist()}
    torch.testing.assert_close(run(model, ids)[0], model.cap(out.logits), rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", ["flat", "two-level"])
def test_long_sequences(name: str, make_model: ModelMaker) -> None:
    """Caches grow more than once, and rings come round many times."""
    model = make_model(name)
    ids = torch.tensor([byte_ids(*TEXTS[1], *TEXTS[3])[:150]])
    with torch.no_grad():
        wanted = model.cap(model(ids).logits)
    torch.testing.assert_close(run(model, ids)[0], wanted, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", TINY)
def test_a_restart_forgets_the_document_before(name: str, ids: Tensor, make_model: ModelMaker) -> None:
    """After BOS a used state gives what a new one gives: cache, router memory and z̄."""
    model = make_model(name, reset_at_bos=True)
    used = model.start(2)
    with shapes_unchecked():
        for token in ids[:2, :20].unbind(1):
            model.step(token, used)
    new = model.start(2)
    for token in ids[:2, :15].unbind(1):
        torch.testing.assert_close(model.step(token, used), model.step(token, new), rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", TINY)
def test_step_in_bf16_is_near_forward(name: str, ids: Tensor, make_model: ModelMaker) -> None:
    """State and results follow the model's precision; a boundary at the threshold may fall either way."""
    model = make_model(name)
    model.precision = torch.bfloat16
    logits, _ = run(model, ids[:, :40])
    with torch.no_grad():
        wanted = model.cap(model(ids[:, :40]).logits)
    assert logits.dtype == torch.float32
    assert float((logits - wanted).abs().median()) < 0.05


def test_step_takes_no_gradient(make_model: ModelMaker) -> None:
    model = make_model("two-level")
    assert not model.step(torch.tensor([BOS]), model.start(1)).requires_grad
