"""The language model as a whole: causality, documents, batches, gradients, sizes and odd shapes."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import pytest
import torch
from conftest import TINY, ModelMaker, scatter, tiny_network
from torch import Tensor

from bytegolf.config import HNetConfig, ModelConfig, RouterConfig, StackConfig
from bytegolf.model.embed import BOS
from bytegolf.model.lm import Forward, LanguageModel, count_parameters, outline
from bytegolf.model.routers.losses import surprisal_loss

EVERY_MODEL = [(name, reset) for name in TINY for reset in (False, True)]
every_model = pytest.mark.parametrize(("name", "reset"), EVERY_MODEL)


def tokens(batch: int, length: int, documents: bool = True) -> Tensor:
    """Random tokens of a small alphabet; every sequence starts a document, and more start within."""
    ids = torch.randint(4, 30, (batch, length))
    ids[:, 0] = BOS
    if documents:
        ids[torch.rand(ids.shape) < 0.04] = BOS
    return ids


def prefixes(length: int) -> Iterator[int]:
    """Positions at, before and after the block edges of the local attention, and some between."""
    yield from (0, 6, 7, 8, 16, 33, length - 2)


def counts(out: Forward) -> list[int]:
    """The padded number of chunks of each level: the shapes inside."""
    return [int(trace.boundary.sum(1).max()) for trace in out.traces]


# ---------------------------------------------------------------------------------------------- causality


@every_model
def test_later_tokens_change_no_earlier_logit_by_a_bit(name: str, reset: bool, make_model: ModelMaker) -> None:
    """In fp32, bit for bit, while the shapes inside are the same.

    Where the longest chunk sequence of the batch gets longer or shorter, matrix products of another shape may sum in
    another order (1e-5 of these logits). An anchor in the batch that chunks finer than the rest keeps the shapes.
    """
    model = make_model(name, reset)
    ids = tokens(3, 72)
    with torch.no_grad():
        ids[-1] = finest(model, ids.shape[1])
        before = model(ids)
        same_shapes = 0
        for t in prefixes(ids.shape[1]):
            changed = ids.clone()
            changed[:-1, t + 1 :] = torch.randint(1, 30, changed[:-1, t + 1 :].shape)
            after = model(changed)
            if counts(after) == counts(before):
                same_shapes += 1
                assert torch.equal(after.logits[:, : t + 1], before.logits[:, : t + 1]), t
            for trace, was in zip(after.traces[:1], before.traces[:1], strict=True):
                assert torch.equal(trace.p[:, : t + 1], was.p[:, : t + 1])
                assert torch.equal(trace.boundary[:, : t + 1], was.boundary[:, : t + 1])
    assert same_shapes >= 6


def finest(model: LanguageModel, length: int) -> Tensor:
    """A sequence that the model cuts into many chunks at every level: the best of many periodic ones."""
    candidates = tokens(64, 4, documents=False).repeat(1, length // 4)
    traces = model(candidates).traces
    if not traces:
        return candidates[0]
    return candidates[int(torch.stack([trace.boundary.sum(1) for trace in traces]).prod(0).argmax())]


@every_model
def test_later_tokens_change_no_earlier_logit_in_fp64(name: str, reset: bool, make_model: ModelMaker) -> None:
    """Whatever the shapes: the noise of fp64 is 1e-14, so a leak of 1e-11 would show."""
    model = make_model(name, reset)
    model.precision = torch.float64
    ids = tokens(2, 72)
    with torch.no_grad():
        before = model(ids).logits
        for t in prefixes(ids.shape[1]):
            changed = ids.clone()
            changed[:, t + 1 :] = torch.randint(1, 30, changed[:, t + 1 :].shape)
            after = model(changed).logits
            torch.testing.assert_close(after[:, : t + 1], before[:, : t + 1], rtol=0, atol=1e-11)
            assert not torch.equal(after[:, t + 1 :], before[:, t + 1 :])


@every_model
def test_no_gradient_from_a_logit_to_later_tokens(name: str, reset: bool, make_model: ModelMaker) -> None:
    model = make_model(name, reset)
    ids = torch.arange(4, 64).unsqueeze(0)  # no token twice, so that a row of the embedding is a position
    for t in (0, 7, 8, 40):
        embedding = model.embedding.weight
        logits = model(ids).logits[0, t, 100:]  # the tied head's rows of other tokens
        (gradient,) = torch.autograd.grad(logits.sum(), embedding)
        assert not gradient[4 + t + 1 : 64].any()
        assert gradient[4 + t].any()


# -------------------------------------------------------------------------------------- documents and batches


@pytest.mark.parametrize("name", TINY)
def test_documents_do_not_see_each_other(name: str, make_model: ModelMaker) -> None:
    model = make_model(name, reset_at_bos=True)
    documents = [tokens(1, length, documents=False) for length in (1, 2, 19, 8, 1, 30, 13)]
    with torch.no_grad():
        together = model(torch.cat(documents, 1))
        apart = [model(document) for document in documents]
    torch.testing.assert_close(together.logits, torch.cat([out.logits for out in apart], 1), rtol=0, atol=1e-4)
    if together.traces:
        for field in ("p", "boundary"):
            alone = torch.cat([getattr(out.traces[0], field) for out in apart], 1)
            torch.testing.assert_close(getattr(together.traces[0], field), alone, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", TINY)
def test_without_the_option_documents_do_see_each_other(name: str, make_model: ModelMaker) -> None:
    """The counterpart, so that the test above cannot pass for want of any context."""
    model = make_model(name)
    first, second = tokens(1, 20, documents=False), tokens(1, 20, documents=False)
    with torch.no_grad():
        together, apart = model(torch.cat((first, second), 1)).logits[:, 20:], model(second).logits
    assert float((together - apart).abs().max()) > 1e-2


@every_model
def test_a_sequence_is_the_same_alone_and_in_a_batch(name: str, reset: bool, make_model: ModelMaker) -> None:
    model = make_model(name, reset)
    ids = tokens(5, 60)
    ids[3, 1:] = 7  # hardly any chunks beside sequences with many
    with torch.no_grad():
        batch = model(ids)
        for row in range(5):
            alone = model(ids[row : row + 1])
            torch.testing.assert_close(alone.logits[0], batch.logits[row], rtol=1e-5, atol=1e-5)
            for trace, together in zip(alone.traces, batch.traces, strict=True):
                assert trace.boundary.sum() == together.boundary[row].sum()
    if batch.traces:
        assert len({int(n) for n in batch.traces[0].boundary.sum(1)}) > 1


@pytest.mark.parametrize("name", TINY)
def test_the_loss_of_a_batch_is_the_mean_of_its_sequences(name: str, make_model: ModelMaker) -> None:
    """Ratio losses and gradients too: padding counts nowhere."""
    model = make_model(name, reset_at_bos=True)
    ids = tokens(3, 48)
    ids[1, 1:] = 7
    by_example = all(level.config.router.ratio_over == "example" for level in model.levels())

    def gradients(rows: Tensor) -> list[Tensor]:
        out = model(rows[:, :-1])
        loss = model.losses(out, rows[:, 1:]).mean() + (out.router_loss() if by_example else 0)
        wanted = [p for p in model.parameters() if p.numel()]
        return [loss.detach(), *torch.autograd.grad(loss, wanted)]

    together = gradients(ids)
    apart = [gradients(ids[row : row + 1]) for row in range(3)]
    for i, got in enumerate(together):
        mean = torch.stack([parts[i] for parts in apart]).mean(0)
        torch.testing.assert_close(got, mean, rtol=1e-3, atol=2e-5)


# ---------------------------------------------------------------------------------------------- training


@every_model
def test_gradients_reach_every_parameter(name: str, reset: bool, make_model: ModelMaker) -> None:
    model = make_model(name, reset)
    ids = tokens(3, 64)
    out = model(ids[:, :-1])
    (model.losses(out, ids[:, 1:]).mean() + out.router_loss()).backward()
    for key, parameter in model.named_parameters():
        if parameter.numel():
            assert parameter.grad is not None, key
            assert bool(parameter.grad.isfinite().all()), key
            assert bool(parameter.grad.any()), key


@pytest.mark.parametrize("name", TINY)
def test_gradients_in_fp64_are_those_of_finite_differences(name: str, make_model: ModelMaker) -> None:
    """In the innermost stage: those further out also get the straight-through estimator's, by decree."""
    model = make_model(name, reset_at_bos=True)
    model.double()
    model.precision = torch.float64
    ids = tokens(2, 24)
    level = "network.main."
    innermost = {
        "one-level": level,
        "tables": level,
        "two-level": "network.main.main.",
        "paper": "network.main.main.",
    }.get(name, "network.")
    parameters = {key: p for key, p in model.named_parameters() if key.startswith(innermost) and p.numel()}
    scale = 0.75 if innermost == level else 1.0  # S2's λ, at the way back out of the main stage

    def nats() -> Tensor:
        return model.losses(model(ids[:, :-1]), ids[:, 1:]).sum()

    directions = {key: torch.randn_like(p) for key, p in parameters.items()}
    slope = sum(
        float((g * d).sum())
        for g, d in zip(torch.autograd.grad(nats(), list(parameters.values())), directions.values(), strict=True)
    )
    ends = []
    with torch.no_grad():
        for sign in (1, -2):
            for key, p in parameters.items():
                p.add_(directions[key], alpha=sign * 1e-6)
            ends.append(float(nats()))
    assert slope == pytest.approx(scale * (ends[0] - ends[1]) / 2e-6, rel=1e-4)


def test_gradients_are_scaled_between_stages() -> None:
    """S2's λ: 1 in the decoder, λ in the main stage and the residual; in the encoder 1 of what the main stage sends
    back and λ of the rest, so that its gradient is a + λ·b."""
    ids = tokens(2, 40)
    grads = {}
    for scale in (0.5, 1.0, 2.0):
        torch.manual_seed(1)
        stage = StackConfig(1, 16, 2, 1)
        model = LanguageModel(ModelConfig(HNetConfig(stage, RouterConfig(3.0, 0.0, scale), stage, stage)))
        scatter(model)
        model.precision = torch.float64
        model.losses(model(ids[:, :-1]), ids[:, 1:]).sum().backward()
        for key, parameter in model.named_parameters():
            if parameter.numel():
                assert parameter.grad is not None, key
                grads[key, scale] = parameter.grad.double()
    for key in {key for key, _ in grads}:
        half, one, two = (grads[key, scale] for scale in (0.5, 1.0, 2.0))
        if ".decoder." in key:
            torch.testing.assert_close(two, one, rtol=1e-4, atol=1e-5)
        elif any(part in key for part in (".main.", ".residual.", ".router.")):
            torch.testing.assert_close(two, 2 * one, rtol=1e-4, atol=1e-5)
        elif ".encoder." in key:
            torch.testing.assert_close(two - one, 2 * (one - half), rtol=1e-4, atol=1e-5)
            assert float((two - 2 * one).abs().max()) > 1e-3, key  # a is not nothing
            assert float((two - one).abs().max()) > 1e-3, key  # nor b


def test_confidence_teaches_the_router_at_every_position(
    make_model: ModelMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a single chunk the smoothing says nothing about p: what gradient there is comes from the confidence."""
    monkeypatch.setattr("bytegolf.model.routers.cosine.THRESHOLD", 1.0)
    model = make_model("one-level")
    ids = tokens(2, 30)
    model.losses(model(ids[:, :-1]), ids[:, 1:]).sum().backward()
    for key, parameter in model.named_parameters():
        if "router" in key:
            assert parameter.grad is not None, key
            assert float(parameter.grad.abs().max()) > 1e-3, key


@pytest.mark.parametrize("name", TINY)
def test_bf16_runs_and_is_near_fp32(name: str, make_model: ModelMaker) -> None:
    model = make_model(name, reset_at_bos=True)
    ids = tokens(3, 64)
    losses = {}
    for precision in (torch.float32, torch.bfloat16):
        model.precision = precision
        out = model(ids[:, :-1])
        assert out.logits.dtype == precision
        assert all(trace.p.dtype == torch.float32 for trace in out.traces)
        loss = model.losses(out, ids[:, 1:]).mean()
        (loss + out.router_loss()).backward()
        losses[precision] = float(loss.detach())
    assert losses[torch.bfloat16] == pytest.approx(losses[torch.float32], rel=0.05)
    for key, parameter in model.named_parameters():
        if parameter.numel():
            assert parameter.grad is not None, key
            assert parameter.grad.dtype == torch.float32, key
            assert bool(parameter.grad.isfinite().all()), key


def test_an_untrained_model_starts_near_the_uniform_distribution() -> None:
    model = LanguageModel(ModelConfig(StackConfig(2, 32, 4, 2)))
    ids = tokens(2, 33)
    loss = model.losses(model(ids[:, :-1]), ids[:, 1:]).mean().detach()
    assert float(loss) == pytest.approx(float(torch.tensor(260.0).log()), abs=0.02)


# ---------------------------------------------------------------------------------------------- sizes, odd shapes


def published(layers: int) -> StackConfig:
    return StackConfig(layers, 512, 8, 4)


@pytest.mark.parametrize(
    ("network", "vocab", "parameters"),
    [
        (published(9), 1024, 17_059_912),
        (HNetConfig(published(2), RouterConfig(6.0), published(5), published(2)), 260, 17_455_176),
        (HNetConfig(published(3), RouterConfig(6.0), published(6), published(3)), 260, 22_966_880),
    ],
    ids=["S0", "S2 byte260", "S3 byte260"],
)
def test_published_parameter_counts(network: StackConfig | HNetConfig, vocab: int, parameters: int) -> None:
    assert count_parameters(outline(ModelConfig(network, vocab))) == parameters


@every_model
@pytest.mark.parametrize("length", [1, 2, 8, 9])
def test_short_sequences(name: str, reset: bool, length: int, make_model: ModelMaker) -> None:
    model = make_model(name, reset)
    out = model(tokens(2, length))
    assert out.logits.shape == (2, length, 260)
    (model.losses(out, tokens(2, length)).mean() + out.router_loss()).backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is None or bool(parameter.grad.isfinite().all()), key


@pytest.mark.parametrize("name", ["one-level", "two-level"])
@pytest.mark.parametrize(("threshold", "rate"), [(-1.0, 1.0), (1.0, 1 / 20)], ids=["all", "one"])
def test_a_boundary_everywhere_and_only_one(
    name: str, threshold: float, rate: float, make_model: ModelMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bytegolf.model.routers.cosine.THRESHOLD", threshold)
    model = make_model(name)
    ids = tokens(2, 20)
    out = model(ids)
    assert float(out.traces[0].rate()) == pytest.approx(rate)
    (model.losses(out, ids).mean() + out.router_loss()).backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is None or bool(parameter.grad.isfinite().all()), key
    state = model.start(2)
    steps = torch.stack([model.step(ids[:, t], state) for t in range(20)], 1)
    torch.testing.assert_close(steps, model.cap(out.logits), rtol=0, atol=1e-4)


def test_traces_are_outermost_first_and_skip_padding(make_model: ModelMaker) -> None:
    model = make_model("two-level")
    outer, inner = model(tokens(4, 60)).traces
    assert outer.valid is None
    assert outer.boundary.shape == (4, 60)
    assert inner.valid is not None
    assert torch.equal(inner.valid.sum(1), outer.boundary.sum(1))
    assert not (inner.boundary & ~inner.valid).any()
    assert float(inner.rate()) == pytest.approx(float(inner.boundary.sum() / outer.boundary.sum()))


def test_softcap_can_be_off() -> None:
    model = LanguageModel(ModelConfig(StackConfig(1, 32, 4, 2), embed_std=9.0, softcap=0.0))
    ids = tokens(1, 5)
    out = model(ids)
    assert torch.equal(model.cap(out.logits), out.logits)
    plain = torch.nn.functional.cross_entropy(out.logits[0], ids[0], reduction="none")
    torch.testing.assert_close(model.losses(out, ids)[0], plain)


def test_objective_adds_the_routers_losses_and_surprisal_only_where_wanted() -> None:
    network = tiny_network("one-level")
    assert isinstance(network, HNetConfig)
    for weight in (0.0, 0.25):
        router = dataclasses.replace(network.router, surprisal_weight=weight)
        model = LanguageModel(ModelConfig(dataclasses.replace(network, router=router)))
        ids = tokens(2, 33)
        out = model(ids[:, :-1])
        losses = model.losses(out, ids[:, 1:])
        added = weight * surprisal_loss(out.traces[0].p, losses)
        expected = losses.mean() + out.router_loss() + added
        assert model.objective(out, losses).item() == pytest.approx(torch.as_tensor(expected).item())
        assert (torch.as_tensor(added).item() != 0) == (weight > 0)
