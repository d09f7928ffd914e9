"""What every test shares: shapes checked at run time, few threads, quick property tests, tiny models.

Annotated shapes of ``bytegolf`` (``Float[Tensor, "B L D"]``) are checked in calls made from the tests: jaxtyping's
import hook wraps the package with beartype. It must be installed before the first import of the package, so nothing
here imports ``bytegolf`` at the top.
"""

from __future__ import annotations

import functools
import gc
import importlib.util
import os
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import CodeType, FunctionType
from typing import TYPE_CHECKING, Any

import hypothesis
import jaxtyping
import pytest
import torch
from commands import (  # noqa: F401  (fixtures for all)
    flat_run,
    proved_quickly,
    soft_run,
    subword_run,
    tiny_data,
    tiny_run,
    two_level_run,
)
from local_hub import local_hub  # noqa: F401
from mirror import mirror, published, server  # noqa: F401
from processor_time import ProcessorTime

gc.disable()  # importing torch and the tests makes no garbage; on again in pytest_collection_modifyitems

if TYPE_CHECKING:
    from bytegolf.config import ModelConfig, NetworkConfig
    from bytegolf.model.lm import LanguageModel

CHECKED_FIRST, CHECKED_EVERY = 3, 64
"""In each test, of the calls of each function: so many are checked first, and then one in so many."""

_calls: Counter[CodeType] = Counter()
"""How often each function of the package was called in this test. By its code: one within another is made anew in
every call of that."""


def _sampled(*, typechecker: Any) -> Callable[[Any], Any]:
    """``jaxtyped``, but not for every call: over tiny tensors checking takes six times as long as what is checked. And
    no sooner than it is called, since making the check of a function takes a millisecond.
    """
    jaxtyped = _jaxtyped(typechecker=typechecker)

    def decorate(target: Any) -> Any:
        if not isinstance(target, FunctionType):
            return jaxtyped(target)
        code, checked = target.__code__, None

        @functools.wraps(target)
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal checked
            number = _calls[code]
            _calls[code] = number + 1
            if (number >= CHECKED_FIRST and number % CHECKED_EVERY) or jaxtyping.config.jaxtyping_disable:
                return target(*args, **kwargs)
            checked = checked or jaxtyped(target)
            return checked(*args, **kwargs)

        return call

    return decorate


# by this name the hook's code finds it
_jaxtyped, jaxtyping.jaxtyped = jaxtyping.jaxtyped, _sampled  # type: ignore[assignment]


def _annotated() -> list[str]:
    """The modules of the package that annotate shapes. Of the others mypy knows the types; wrapping these as well would
    make the import of everything three times as long, in every process of the tests."""
    spec = importlib.util.find_spec("bytegolf")  # finds the package without importing it
    package = Path(spec.origin).parent if spec and spec.origin else Path()
    with_shapes = (path for path in package.rglob("*.py") if "from jaxtyping import" in path.read_text("utf-8"))
    return [".".join(("bytegolf", *path.relative_to(package).with_suffix("").parts)) for path in sorted(with_shapes)]


# as mypy does, an int passes where a float is asked for
jaxtyping.install_import_hook(_annotated(), "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))")

# Tiny tensors gain nothing from a second thread, which waits for work in a loop: on a busy machine that multiplies the
# processor time (seven times for one `verify`). The same for the processes that tests start.
torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"

# the same examples in every run, and no failure for being slow; others are drawn by `--hypothesis-profile=thousand`
_quick = hypothesis.settings(
    deadline=None, max_examples=25, derandomize=True, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.register_profile("quick", _quick)
hypothesis.settings.register_profile("thousand", _quick, max_examples=1000, derandomize=False, print_blob=True)
hypothesis.settings.load_profile("quick")


for size in ("COLUMNS", "LINES"):  # workers of pytest-xdist set them: to no test is its own terminal's size known
    os.environ.pop(size, None)


def pytest_addoption(parser: pytest.Parser) -> None:
    """``--processor-time`` prints which files take how much of it."""
    parser.addoption("--processor-time", action="store_true", help="seconds of folders, files and dearest tests")


def pytest_configure(config: pytest.Config) -> None:
    """beartype's advice on spelling (typing.Iterable) is none of a test run's business."""
    if config.getoption("processor_time"):
        config.pluginmanager.register(ProcessorTime(config))
    config.addinivalue_line("filterwarnings", "ignore::beartype.roar.BeartypeDecorHintPep585DeprecationWarning")


TINY = ("flat", "flat-local", "one-level", "two-level", "tables", "paper")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    gc.freeze()  # what is imported stays: neither a collection nor the end of the process goes through it again
    gc.enable()
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))


@contextmanager
def shapes_unchecked() -> Iterator[None]:
    """For long loops over small tensors, whose time is two thirds checking: the first rounds show the shapes."""
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        yield
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Every test starts from the same random state, and with its shapes checked, whatever ran before it."""
    torch.manual_seed(0)
    _calls.clear()


def tiny_network(name: str) -> NetworkConfig:
    """One of the networks of ``TINY``: each kind of attention, depth and change of width, at toy size."""
    from bytegolf.config import ChunkHashConfig, HNetConfig, RouterConfig, StackConfig

    def stage(layers: int, dim: int = 32, window: int = 0) -> StackConfig:
        return StackConfig(layers, dim, heads=4, kv_heads=2, window=window)

    if name == "flat":
        return stage(4)
    if name == "flat-local":
        return stage(3, window=8)
    if name in ("one-level", "tables"):
        chunk_hash = ChunkHashConfig(dim=8, bits=8) if name == "tables" else ChunkHashConfig()
        outer = stage(2, window=8)
        return HNetConfig(outer, RouterConfig(4.0, grad_scale=0.75), stage(3), outer, chunk_hash)
    if name == "paper":
        return paper_network()
    assert name == "two-level"
    inner = HNetConfig(stage(1, 48), RouterConfig(2.0), stage(3, 64), stage(1, 48, window=4))
    return HNetConfig(stage(1, window=8), RouterConfig(3.0), inner, stage(1))


def paper_network() -> NetworkConfig:
    """S4 in two stages: blocks of both kinds in one stack, with and without an MLP, and a wider stage within."""
    from bytegolf.config.public_hnet import from_public

    public = {
        "arch_layout": ["m1", ["t1M1", ["T1"], "m1"], "m1t1"],
        "d_model": [32, 48, 64],
        "d_intermediate": [0, 50, 70],
        "vocab_size": 256,
        "ssm_cfg": {"chunk_size": 8, "d_conv": 3, "d_state": 5, "expand": 4},
        "attn_cfg": {"num_heads": [4, 4, 4], "rotary_emb_dim": [4, 0, 8], "window_size": [7, 3, -1]},
        "tie_embeddings": False,
    }
    return from_public(public).network


def tiny_model(name: str, **settings: Any) -> ModelConfig:
    """A model around one of the networks of ``TINY``."""
    from bytegolf.config import ModelConfig, NgramConfig

    if name == "paper":
        settings = {"tied": False, "embed_norm": False, "softcap": 0.0} | settings
    ngrams = NgramConfig(longest=4, bits=8, dim=8) if name == "tables" else NgramConfig()
    return ModelConfig(tiny_network(name), ngrams=ngrams, **settings)


ModelMaker = Callable[..., "LanguageModel"]


@pytest.fixture
def make_model() -> ModelMaker:
    """``make_model(name, reset_at_bos=False, seed=0)``: a tiny model with no tensor at a special value."""
    from bytegolf.model.lm import LanguageModel

    def make(name: str, reset_at_bos: bool = False, seed: int = 0) -> LanguageModel:
        torch.manual_seed(seed)
        model = LanguageModel(tiny_model(name, embed_std=0.5, reset_at_bos=reset_at_bos))
        scatter(model)
        return model

    return make


def scatter(model: torch.nn.Module) -> None:
    """Move every parameter off its special value (zeros, ones, the identity) by noise of its own scale."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("embedding.weight"):
                continue
            spread = 0.2 if parameter.ndim < 2 or name.endswith(("resid_mix", "skip_weights")) else 0.15
            parameter.add_(torch.randn_like(parameter), alpha=spread)


@pytest.fixture(params=TINY)
def tiny(request: pytest.FixtureRequest) -> str:
    """The name of each tiny network in turn."""
    return str(request.param)
