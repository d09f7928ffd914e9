"""Routers and mixers from outside the package: named, trained, stepped, shipped, loaded, and refused where missing."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import good, refused
from conftest import scatter
from tiny_run import make_trainer, tiny_config
from torch import Tensor

import bytegolf
from bytegolf.artifact.export import export_weights
from bytegolf.artifact.loading import load_own
from bytegolf.config import Config, HNetConfig, ModelConfig, NetworkConfig, RouterConfig, StackConfig, to_dict
from bytegolf.data.tokenizer import ByteTokenizer
from bytegolf.errors import BytegolfError
from bytegolf.evaluate.sliding import last_losses
from bytegolf.model.layers import Linear
from bytegolf.model.lm import LanguageModel, outline
from bytegolf.model.mixers.base import Mixer, Span
from bytegolf.model.routers.base import THRESHOLD, Router
from bytegolf.registry import MIXERS, ROUTERS, load_plugins
from bytegolf.tools.bundle.script import script


@dataclass(frozen=True)
class SlopeOptions:
    """Of the toy router."""

    slope: float = 1.0
    hidden: int = 3


class SlopeRouter(Router):
    """p = σ(slope·W₂·tanh(W₁x_t)): looks at one position, so it remembers nothing."""

    learned = True
    receptive_field = 0
    Options = SlopeOptions

    def __init__(self, config: RouterConfig, dim: int, vocab_size: int = 0) -> None:
        super().__init__(config, dim, vocab_size)
        self.hidden, self.out = Linear(dim, self.options.hidden), Linear(self.options.hidden, 1)

    def _decide(self, x: Tensor, start: Tensor) -> tuple[Tensor, Tensor]:
        odds = self.options.slope * self.out(self.hidden(x).tanh()).squeeze(-1)
        p = torch.where(start, 1.0, torch.sigmoid(odds.to(torch.promote_types(x.dtype, torch.float32))))
        return p, p >= THRESHOLD

    def forward(self, x: Tensor, first: Tensor | None = None, tokens: Tensor | None = None) -> tuple[Tensor, Tensor]:
        start = torch.arange(x.shape[1]).eq(0).expand(x.shape[:2])
        return self._decide(x, start if first is None else start | first)

    def start(self, batch: int, device: torch.device, dtype: torch.dtype) -> Tensor:
        return torch.zeros(batch, 0, device=device, dtype=dtype)

    def extend(self, x: Tensor, memory: Tensor, first: Tensor, tokens: Tensor | None = None) -> Any:
        p, boundary = self._decide(x, torch.arange(x.shape[1]).eq(0) & first.unsqueeze(1))
        return p, boundary, x.new_zeros(*x.shape[:2], 0)


@dataclass
class AverageState:
    """Of the toy mixer."""

    mean: Tensor
    """y of each sequence's last position, (B, D)"""


class MovingAverage(Mixer[AverageState]):
    """y_t = a·y_{t−1} + (1 − a)·Wx_t with a learned a per channel; y starts at 0 where a document does."""

    def __init__(self, config: StackConfig) -> None:
        super().__init__(config)
        self.proj = Linear(config.dim, config.dim)
        self.decay = torch.nn.Parameter(torch.zeros(config.dim))

    def _scan(self, x: Tensor, fresh: Tensor, before: Tensor) -> Tensor:
        a, out = torch.sigmoid(self.decay).to(x.dtype), []
        for t, now in enumerate(self.proj(x).unbind(1)):
            before = torch.where(fresh[:, t, None], 0.0, a * before) + (1 - a) * now
            out.append(before)
        return torch.stack(out, 1)

    def forward(self, x: Tensor, documents: Tensor | None = None) -> Tensor:
        fresh = torch.zeros(x.shape[:2], dtype=torch.bool)
        if documents is not None:
            fresh[:, 1:] = documents[:, 1:] != documents[:, :-1]
        return self._scan(x, fresh, torch.zeros_like(x[:, 0]))

    def start(self, batch: int, device: torch.device, dtype: torch.dtype, length: int = 0) -> AverageState:
        return AverageState(torch.zeros(batch, self.decay.shape[0], device=device, dtype=dtype))

    def extend(self, x: Tensor, state: AverageState, span: Span) -> Tensor:
        fresh = torch.zeros(x.shape[:2], dtype=torch.bool)
        fresh[:, 0] = span.first
        out = self._scan(x, fresh, state.mean[span.index])
        state.mean[span.index] = out[torch.arange(len(x)), span.ends - 1]
        return out


def random_tokens(count: int) -> list[int]:
    """Bytes."""
    return torch.randint(4, 260, (count,)).tolist()


@pytest.fixture(autouse=True)
def registered() -> Iterator[None]:
    """The toys are known within a test, and in no other."""
    bytegolf.register_router("slope")(SlopeRouter)
    bytegolf.register_mixer("average")(MovingAverage)
    yield
    forget()


def forget() -> None:
    """Leave the package's own implementations only."""
    for registry in (ROUTERS, MIXERS):
        for name in registry.names()[len(registry.built_in) :]:
            del registry._found[name]


def network_of(name: str) -> NetworkConfig:
    """Networks with the toys, and attention around them."""
    seeing, forgetting = StackConfig(1, 32, 4, 2, window=6), StackConfig(2, 32, kind="average")
    router = RouterConfig(3.0, kind="slope", options={"slope": 4.0, "hidden": 2})
    return {  # type: ignore[return-value]
        "a router": HNetConfig(seeing, router, StackConfig(2, 32, 4, 2), seeing),
        "a mixer": forgetting,
        "both": HNetConfig(forgetting, router, forgetting, seeing),
        "a mixer inside": HNetConfig(seeing, RouterConfig(3.0), forgetting, seeing),
    }[name]


every_network = pytest.mark.parametrize("name", ["a router", "a mixer", "both", "a mixer inside"])


def model_of(name: str, reset: bool = False) -> LanguageModel:
    model = LanguageModel(ModelConfig(network_of(name), embed_std=0.5, reset_at_bos=reset))
    scatter(model)
    model.precision = torch.float64
    return model.eval()


@every_network
@pytest.mark.parametrize("reset", [False, True])
def test_step_is_forward_at_every_prefix(name: str, reset: bool) -> None:
    """Up to the rotary angles, which are in fp32 and start anew with a document in a step, but not in forward."""
    model = model_of(name, reset)
    ids = torch.tensor([random_tokens(40), random_tokens(40)])
    ids[:, 0], ids[0, 17], ids[1, 30] = 1, 1, 1
    wanted = model.cap(model(ids).logits)
    state = model.start(2)
    stepped = [model.step(ids[:, at], state) for at in range(25)]
    torch.testing.assert_close(torch.stack(stepped, 1), wanted[:, :25], rtol=0, atol=1e-5)
    torch.testing.assert_close(model.extend(ids[:, 25:], state), wanted[:, 25:], rtol=0, atol=1e-5)
    for end in (1, 13, 31):
        torch.testing.assert_close(model.cap(model(ids[:, :end]).logits), wanted[:, :end], rtol=0, atol=1e-5)


@every_network
def test_padding_in_an_extension_leaves_no_trace(name: str) -> None:
    model = model_of(name)
    ids = torch.tensor([random_tokens(20), random_tokens(20)])
    state = model.start(2)
    model.extend(ids[:, :10], state, counts=torch.tensor([10, 4]).numpy())
    alone = model.start(1)
    model.extend(ids[1:, :4], alone)
    rows = torch.tensor([1]).numpy()
    found, wanted = model.extend(ids[1:, 10:], state, rows), model.extend(ids[1:, 10:], alone)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-9)


@every_network
def test_sliding_windows_are_full_windows(name: str) -> None:
    model, tokens = model_of(name), torch.tensor(random_tokens(96 + 8 * 6 + 1))
    windows = tokens.unfold(0, 97, 8)
    with torch.no_grad():
        wanted = model.losses(model(windows[:, :-1]), windows[:, 1:])[:, -8:]
    torch.testing.assert_close(last_losses(model, tokens, 96, 8)[0], wanted, rtol=0, atol=1e-5)


def test_both_are_trained_stored_and_loaded(tmp_path: Path) -> None:
    config = dataclasses.replace(tiny_config(), model=ModelConfig(network_of("both"), embed_std=0.5))
    config = Config.from_tables(to_dict(config))
    assert config.plugins == (__name__,), "the configuration names what it needs"
    trainer = make_trainer(config, tmp_path / "data", tmp_path / "run")
    before = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}
    progress = trainer.fit()
    after = trainer.model.state_dict()
    for name in ("router.hidden.weight", "encoder.blocks.0.mixer.decay", "main.blocks.1.mixer.proj.weight"):
        assert not torch.equal(before[f"network.{name}"], after[f"network.{name}"]), name
    path = tmp_path / "artifact.bgolf"
    export_weights(path, config, ByteTokenizer(), trainer.export_state(), progress, torch.device("cpu"))
    loaded = load_own(path)
    assert isinstance(loaded.model.levels()[0].router, SlopeRouter)
    assert loaded.model.levels()[0].router.options == SlopeOptions(4.0, 2)
    ids = torch.tensor([random_tokens(32)])
    assert loaded.model(ids).traces[0].boundary.any()
    with pytest.raises(BytegolfError, match=r"'(average|slope)' comes from a plugin"):
        script(config)

    forget()
    with pytest.raises(BytegolfError, match=rf"no (router|mixer) is registered by that name: .*{__name__}.*--plugin"):
        load_own(path)


def test_names_and_options_are_checked() -> None:
    with pytest.raises(BytegolfError, match=r"model.network.main: kind is 'mamba', .* choose one of 'attention'"):
        Config.load("cpu-demo", ["model.network.main.kind=mamba"])
    with pytest.raises(BytegolfError, match=r"router: kind is 'cosin', .* choose one of 'cosine', 'topk', 'white"):
        Config.load("cpu-demo", ["model.network.router.kind=cosin"])
    seeing = StackConfig(1, 32, 4, 2)
    with pytest.raises(BytegolfError, match="'cosine' takes no options, but these are given: slope"):
        outline(ModelConfig(HNetConfig(seeing, RouterConfig(3.0, options={"slope": 1.0}), seeing, seeing)))
    wrong = RouterConfig(3.0, kind="slope", options={"slop": 1.0})
    with pytest.raises(BytegolfError, match=r"options of the router 'slope'\.slop: did you mean .*slope"):
        outline(ModelConfig(HNetConfig(seeing, wrong, seeing, seeing)))
    with pytest.raises(BytegolfError, match="a router called 'slope' is registered already, by test_registry"):
        bytegolf.register_router("slope")(MovingAverage)
    with pytest.raises(BytegolfError, match="a mixer called 'attention' is the package's own"):
        bytegolf.register_mixer("attention")(MovingAverage)
    bytegolf.register_router("not one")(Linear)
    with pytest.raises(BytegolfError, match="'not one' is no subclass"):
        outline(ModelConfig(HNetConfig(seeing, RouterConfig(3.0, kind="not one"), seeing, seeing)))


def test_only_what_is_named_is_imported() -> None:
    """A configuration may name any of the package's own kinds, and a model imports the modules of those it has."""
    code = """
        import sys
        from bytegolf.config import Config
        from bytegolf.model.lm import outline
        model = Config.load("cpu-demo", ["model.network.router.kind=stride"]).model
        assert not any(name.startswith("bytegolf.model.routers.s") for name in sys.modules)
        outline(model)
        assert "bytegolf.model.routers.stride" in sys.modules
        assert "bytegolf.model.routers.cosine" not in sys.modules
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True)


PLUGIN = """
    import bytegolf
    from bytegolf.model.routers.stride import StrideRouter

    @bytegolf.register_router("steps")
    class Steps(StrideRouter): ...
"""


def test_plugins_are_imported_only_when_the_user_names_them(tmp_path: Path) -> None:
    """By --plugin and by Python; a configuration that names one imports nothing, and says which file is missing."""
    plugin, settings = tmp_path / "steps.py", tmp_path / "settings.toml"
    plugin.write_text(textwrap.dedent(PLUGIN))
    settings.write_text(
        f'extends = "cpu-demo"\nplugins = [{str(plugin)!r}]\n[model.network.router]\nkind = "steps"\n', encoding="utf-8"
    )

    said = refused("plan", settings)
    assert "'steps'" in said
    assert str(plugin) in said
    assert "--plugin" in said
    assert "does not exist" in refused("plan", settings, f"--plugin={tmp_path / 'no.py'}")
    assert "--plugin needs" in refused("plan", settings, "--plugin")
    good("plan", settings, "--plugin", plugin)
    load_plugins([plugin])  # again, but a file is imported once
    assert Config.load(settings).plugins == (str(plugin),)
    plugin.with_name("broken.py").write_text("1 / 0")
    with pytest.raises(BytegolfError, match=r"broken.py cannot be imported \(ZeroDivisionError"):
        load_plugins([plugin.with_name("broken.py")])
