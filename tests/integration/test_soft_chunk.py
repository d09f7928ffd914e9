"""Soft chunking: the equations, written out; forward, step and sliding agree; causal; trained and counted as S1's."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import test_extend
import torch
from commands import SUBWORDS
from conftest import scatter, tiny_network
from test_step import ids  # noqa: F401  (a fixture)
from tiny_run import make_trainer, rows, tiny_config
from torch import Tensor

from bytegolf.config import Config, ModelConfig, OptimConfig, SoftConfig
from bytegolf.data.dataset import open_split
from bytegolf.data.tokenizer import ByteTokenizer, load_tokenizer
from bytegolf.errors import BytegolfError
from bytegolf.evaluate.sliding import last_losses
from bytegolf.model.embed import BOS
from bytegolf.model.lm import LanguageModel, count_parameters, outline
from bytegolf.model.routers.losses import ratio_loss, surprisal_loss
from bytegolf.model.soft_chunk import SoftChunker
from bytegolf.training.optim import Optimizer
from bytegolf.training.soft_boundaries import bpe_starts, fit_to_bpe

VARIANTS: dict[str, dict[str, Any]] = {
    "as published": {},
    "wide": {"inner": 12},
    "hard": {"boundary": "hard"},
    "chunk": {"blend": "chunk"},
    "hard chunk": {"boundary": "hard", "blend": "chunk"},
    "no mixer": {"mixer": False, "norm": True},
}
every_variant = pytest.mark.parametrize("variant", VARIANTS)


def config_of(variant: str, layers: int = 2, **more: Any) -> SoftConfig:
    return SoftConfig(layers=layers, **VARIANTS[variant], **more)


def chunker_of(variant: str) -> SoftChunker:
    chunker = SoftChunker(16, config_of(variant)).double()
    scatter(chunker)
    return chunker


def model_of(variant: str, network: str = "flat", reset: bool = False, **more: Any) -> LanguageModel:
    torch.manual_seed(1)
    soft = config_of(variant, **more)
    model = LanguageModel(ModelConfig(tiny_network(network), embed_std=0.5, reset_at_bos=reset, soft=soft))
    scatter(model)
    model.precision = torch.float64
    return model


def written_out(chunker: SoftChunker, x: Tensor, first: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Both blends position by position, as the module's docstring has them; the output and each layer's b."""
    config, found = chunker.config, []
    for layer in chunker.stack:
        blended, bs = [], []
        h = w = torch.zeros(())
        for t in range(x.shape[1]):
            own = x[:, t]
            before = x[:, t - 1] if t else torch.zeros_like(own)
            y = torch.cat((before, own), 1) @ layer.boundary_proj.weight.T + layer.boundary_bias
            if layer.boundary_out is not None:
                y = y.relu().square() @ layer.boundary_out.weight.T + layer.boundary_out_bias  # type: ignore[operator]
            b = torch.sigmoid(y)
            if config.boundary == "hard":
                b = (b >= 0.5).double()
            b = torch.where(first[:, t : t + 1], 1.0, b)
            h, w = own + (1 - b) * h, 1 + (1 - b) * w
            blended.append(h / w if config.blend == "chunk" else b * own + (1 - b) * before)
            bs.append(b)
        x = torch.stack(blended, 1)
        if layer.chunk_mixer is not None:
            x = x @ layer.chunk_mixer.weight.T + layer.mixer_bias  # type: ignore[operator]
        found.append(torch.cat(bs, 1))
    return x, found


@every_variant
def test_it_is_the_equations(variant: str) -> None:
    chunker, x = chunker_of(variant), torch.randn(3, 37, 16, dtype=torch.float64)
    starts = torch.rand(3, 37) < 0.1
    first = starts.clone()
    first[:, 0] = True
    out, traces = chunker(x, starts)
    wanted, bs = written_out(chunker, x, first)
    # the smoothing clamps its weights to [1e-4, 1 - 1e-4]
    torch.testing.assert_close(out, wanted, rtol=0, atol=2e-3 if "chunk" in variant else 1e-12)
    for trace, b in zip(traces, bs, strict=True):
        torch.testing.assert_close(trace.b, b, rtol=0, atol=2e-3 if "chunk" in variant else 1e-12)
        assert torch.equal(trace.first, first)
        free = trace.b[~first].detach()
        assert float(free.std()) > 0.05, "boundaries that are all alike would show little"
        mean, square = trace.figures().tolist()
        assert mean == pytest.approx(float(free.mean()))
        assert square == pytest.approx(float(free.square().mean()))


@pytest.mark.parametrize("variant", [name for name in VARIANTS if "hard" not in name])
def test_every_gradient_is_that_of_the_equations(variant: str) -> None:
    chunker, x = chunker_of(variant), torch.randn(2, 19, 16, dtype=torch.float64)
    first = torch.zeros(2, 19, dtype=torch.bool)
    first[:, 0] = True
    out, _ = chunker(x)
    weights = torch.randn_like(out)
    parameters = dict(chunker.named_parameters())
    ours = torch.autograd.grad((out * weights).sum(), list(parameters.values()))
    theirs = torch.autograd.grad((written_out(chunker, x, first)[0] * weights).sum(), list(parameters.values()))
    for name, one, other in zip(parameters, ours, theirs, strict=True):
        assert float(other.abs().max()) > 0, name
        close = 1e-2 if variant == "chunk" else 1e-12  # the smoothing's clamp
        assert float((one - other).abs().max() / other.abs().max()) < close, name


def test_hard_boundaries_take_the_gradient_of_their_probability() -> None:
    chunker = chunker_of("hard")
    layer, x = chunker.stack[0], torch.randn(2, 9, 16, dtype=torch.float64)
    first = torch.zeros(2, 9, dtype=torch.bool)
    first[:, 0] = True
    _, trace = layer(x, first)
    assert set(trace.b.detach().unique().tolist()) == {0.0, 1.0}
    weights = torch.randn_like(trace.b)
    (hard,) = torch.autograd.grad((trace.b * weights).sum(), layer.boundary_bias, retain_graph=True)
    (soft,) = torch.autograd.grad((trace.p * weights).sum(), layer.boundary_bias)
    assert torch.equal(hard, soft)
    assert float(soft.abs()) > 0


@every_variant
@pytest.mark.parametrize("reset", [False, True])
def test_any_split_of_any_rows(variant: str, reset: bool) -> None:
    """The same calls as for the networks without it: ragged extensions of some of the rows, against forward."""

    def make(network: str, reset: bool) -> LanguageModel:
        return model_of(variant, network, reset)

    for seed, network in enumerate(("flat", "one-level")):
        test_extend.test_any_split_of_any_rows(network, reset, seed, make)


@every_variant
def test_step_is_forward_at_every_prefix(variant: str, ids: Tensor) -> None:  # noqa: F811
    model = model_of(variant, "flat-local", reset=True)
    tokens = ids[:2, :24]
    state = model.start(2)
    for t in range(24):
        found = model.step(tokens[:, t], state)
        with torch.no_grad():
            wanted = model.cap(model(tokens[:, : t + 1]).logits)[:, -1]
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)


@every_variant
def test_later_positions_change_nothing_bit_for_bit(variant: str) -> None:
    chunker, x = chunker_of(variant).float(), torch.randn(2, 33, 16)
    before, traces = chunker(x)
    for t in (0, 1, 15, 16, 31):
        changed = x.clone()
        changed[:, t + 1 :] = torch.randn_like(changed[:, t + 1 :])
        after, others = chunker(changed)
        assert torch.equal(after[:, : t + 1], before[:, : t + 1])
        for one, other in zip(traces, others, strict=True):
            assert torch.equal(one.b[:, : t + 1], other.b[:, : t + 1])
        assert not torch.equal(after[:, t + 1], before[:, t + 1])


@every_variant
def test_documents_do_not_see_each_other(variant: str) -> None:
    model = model_of(variant, reset=True)
    tokens = torch.randint(4, 40, (1, 30))
    tokens[0, [0, 11]] = BOS
    with torch.no_grad():
        torch.testing.assert_close(model(tokens).logits[:, 11:], model(tokens[:, 11:]).logits, rtol=0, atol=1e-5)


@every_variant
@pytest.mark.parametrize("network", ["flat-local", "one-level"])
def test_windows_that_share_work_give_the_same_losses(variant: str, network: str) -> None:
    model = model_of(variant, network)
    tokens = torch.randint(4, 200, (96 + 3 * 8 + 1,))
    windows = tokens.unfold(0, 97, 8)
    with torch.no_grad():
        wanted = model.losses(model(windows[:, :-1]), windows[:, 1:])[:, -8:]
    found, _ = last_losses(model, tokens, 96, 8)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)


def test_parameters_are_as_published() -> None:
    """263,681 a layer at D = 512: W and c', w and c."""
    base = Config.load("baseline-sp1024")
    bare = count_parameters(outline(base.model))
    assert bare == 17_059_912
    for layers, inner, extra in ((1, 0, 263_681), (2, 0, 527_362), (1, 256, 262_656 + 1024 * 256 + 256 + 257)):
        changes = [f"model.soft.layers={layers}", f"model.soft.inner={inner}"]
        assert count_parameters(outline(Config.load("baseline-sp1024", changes).model)) == bare + extra


@pytest.mark.parametrize("subwords", [False, True])
def test_boundaries_begin_as_edges(subwords: bool, tiny_data: Path) -> None:
    """init=bpe: each layer's b says where tokens start, better than any constant; nothing else is touched."""
    name = SUBWORDS if subwords else "byte260"
    tokenizer = load_tokenizer(name, tiny_data)
    sample = open_split(tiny_data, name, "train", tokenizer.vocab_size).slice(0, 6000)
    config = config_of("wide" if subwords else "as published", bpe_vocab=400)
    models = []
    for _ in range(2):
        torch.manual_seed(0)
        models.append(LanguageModel(ModelConfig(tiny_network("flat"), tokenizer.vocab_size, soft=config)))
    model, before = models
    assert model.soft is not None
    shares = fit_to_bpe(model, tokenizer, sample)
    text = sample[:1024].astype("int64")
    wanted = torch.from_numpy(bpe_starts(tokenizer, text, sample, 400))[1:]
    constant = max(float(wanted.float().mean()), 1 - float(wanted.float().mean()))
    assert constant < 0.85
    assert all(share > constant + 0.05 for share in shares)
    with torch.no_grad():
        for trace in model.soft(model.look_up(torch.from_numpy(text).unsqueeze(0)))[1]:
            assert float(((trace.b[0, 1:] >= 0.5) == wanted).float().mean()) > constant + 0.03
            assert 0.05 < float(trace.b.mean()) < 0.9
    old = before.state_dict()
    for key, tensor in model.state_dict().items():
        assert torch.equal(tensor, old[key]) == ("boundary_" not in key), key


def test_a_text_of_more_letters_than_pieces_has_no_edges() -> None:
    sample = ByteTokenizer().encode("".join(chr(0x4E00 + letter) for letter in range(400)))
    with pytest.raises(BytegolfError, match="bpe_vocab = 300 pieces"):
        bpe_starts(ByteTokenizer(), sample, sample, 300)


def test_without_layers_nothing_is_drawn_and_the_input_is_normalised() -> None:
    for layers in (0, 1):
        torch.manual_seed(5)
        model = LanguageModel(ModelConfig(tiny_network("one-level"), soft=SoftConfig(layers=layers)))
        weights = model.state_dict()
        if layers == 0:
            assert model.soft is None
            before = weights
        assert {name: weights[name].sum().item() for name in before} == {k: w.sum().item() for k, w in before.items()}
        assert model.network.get_submodule("encoder").norms_input == (layers == 0)
    network = LanguageModel(ModelConfig(tiny_network("flat"), soft=SoftConfig(layers=1, norm=True))).network
    assert network.norms_input


def test_weights_go_to_muon_and_biases_to_adam() -> None:
    model = model_of("wide", lr_mult=0.25)
    optimizer = Optimizer(model, OptimConfig(scalar_lr=0.04))
    names = {id(parameter): name for name, parameter in model.named_parameters() if name.startswith("soft.")}
    muon = {
        names[id(parameter)]: multiplier
        for parameter, multiplier in zip(optimizer.muon.parameters, optimizer.muon.multipliers, strict=True)
        if id(parameter) in names
    }
    adam = {
        names[id(p)]: group["rate"] for group in optimizer.adam.param_groups for p in group["params"] if id(p) in names
    }
    one = {"boundary_proj.weight": 0.25, "boundary_out.weight": 0.25, "chunk_mixer.weight": 1.0}
    two = {"boundary_bias": 0.01, "boundary_out_bias": 0.01, "mixer_bias": 0.04}
    assert muon == {f"soft.layers.{i}.{name}": mult for i in range(2) for name, mult in one.items()}
    assert adam == {f"soft.layers.{i}.{name}": rate for i in range(2) for name, rate in two.items()}


def test_the_losses_that_are_configured(ids: Tensor) -> None:  # noqa: F811
    plain = model_of("as published")
    out = plain(ids[:, :-1])
    losses = plain.losses(out, ids[:, 1:])
    assert torch.equal(plain.objective(out, losses), losses.mean())
    wanted = losses.mean()
    for trace in out.soft:
        wanted = wanted + 0.1 * trace.p.mean() + 0.2 * ratio_loss(trace.p, trace.p >= 0.5, None, 5.0)
        wanted = wanted + 0.3 * surprisal_loss(trace.p, losses)
    model = model_of("as published", regulariser=0.1, ratio_weight=0.2, target=5.0, surprisal_weight=0.3)
    torch.testing.assert_close(model.objective(model(ids[:, :-1]), losses), wanted)


def test_forced_boundaries(ids: Tensor) -> None:  # noqa: F811
    """b = 1 leaves the mixer only; whatever is forced ends with the context."""
    model = model_of("as published", layers=1)
    assert model.soft is not None
    layer, x = model.soft.stack[0], model.look_up(ids)
    with torch.no_grad():
        before = model.embed(ids)
        with model.soft.forced(lambda b, first: torch.ones_like(b)):
            torch.testing.assert_close(model.embed(ids), layer.mix(x))
        with model.soft.forced(lambda b, first: torch.zeros_like(b)):
            found = model.embed(ids)
            torch.testing.assert_close(found[:, 1:], layer.mix(x[:, :-1]))
            torch.testing.assert_close(found[:, 0], layer.mix(x)[:, 0])
        assert torch.equal(model.embed(ids), before)


def test_training_tells_of_every_layer(tmp_path: Path) -> None:
    """metrics.jsonl has b's mean and spread and the gradient that reaches the predictor, also after a resume."""
    config = tiny_config("flat", max_steps=4)
    soft = SoftConfig(layers=2)
    model = ModelConfig(config.model.network, soft=soft)
    config = type(config)(config.name, config.about, model, config.train, config.data, config.optim, config.eval)
    trainer = make_trainer(config, tmp_path / "data", tmp_path / "run")
    assert trainer.model.soft is not None
    trainer.fit()
    found = rows(tmp_path / "run")
    assert len(found) == 4
    for row, layer in itertools.product(found, range(2)):
        told = row["soft"][layer]
        assert told.keys() == {"b", "std", "gradient"}
        assert 0.2 < told["b"] < 0.8
        assert 0 < told["std"] < 0.5
        assert told["gradient"] > 0
    make_trainer(tiny_config("flat"), tmp_path / "data", tmp_path / "plain").fit()
    assert all("soft" not in row for row in rows(tmp_path / "plain"))
