"""Before the first step: text, initial model, compiled stacks, sharded weights, and how to stop cleanly.

Each graph costs a minute or so the first time, so only training passes are compiled, each stack for the shapes that
recur: flat networks, encoders and decoders of the outermost level, and what lies within a level whose room for chunks
comes in a few sizes. A main stack over exactly as many chunks as a batch happens to have stays eager: torch 2.13 fails
on its dynamic length (LOG.md). Inductor keeps what it compiled in a cache folder of its own (TORCHINDUCTOR_CACHE_DIR),
from which the next run takes it.

Weights are gathered for as long as they are computed with, and gradients are summed by shards: so weights, gradients
and moments of a model that does not fit on one device lie on R of them. What is sharded by itself are mixers and MLPs,
which have nearly all weights of a large model; the rest (embedding, norms, scales, routers) is gathered once a forward
pass. A block as a whole would be the usual unit, but its last branch is added within the next block
(``stack.Stream``, ``stack.Residual``), when its scale would be gone again.

Legend: R ranks.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, Literal

import torch
from torch import Tensor, nn

from bytegolf.artifact.loading import LoadedModel, load_model
from bytegolf.artifact.run_folder import RunFolder
from bytegolf.config import Config
from bytegolf.data.dataset import TokenStream, open_split
from bytegolf.data.tokenizer import Tokenizer, load_tokenizer
from bytegolf.device import has_bf16, pick_precision
from bytegolf.distributed import DistributedContext
from bytegolf.errors import BytegolfError
from bytegolf.model.embed import row_tables
from bytegolf.model.hnet import HNet
from bytegolf.model.layers import float_state
from bytegolf.model.lm import LanguageModel
from bytegolf.model.routers.base import Material
from bytegolf.model.stack import Stack
from bytegolf.ops import native
from bytegolf.ops.compiler import NO_COMPILER, find_compiler
from bytegolf.progress import Teller

# ----------------------------------------------------------------------------------------------------- stopping cleanly


SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP")
"""Ctrl-C, the end of a job's time (Slurm, a study), a closed terminal; the last one is not known on Windows."""


class Interrupt:
    """The first signal ends training after the current step; a second one interrupts at once."""

    def __init__(self) -> None:
        self.asked = False
        """whether training is to end after the current step"""

    @contextlib.contextmanager
    def awaited(self) -> Iterator[None]:
        """Take the signals for that within the context, except ignored ones (``nohup``); only a main thread can."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        numbers = [getattr(signal, name) for name in SIGNALS if hasattr(signal, name)]
        before = {number: signal.getsignal(number) for number in numbers}
        for number in numbers:
            if before[number] != signal.SIG_IGN:
                signal.signal(number, self._on_signal)
        try:
            yield
        finally:
            for number in numbers:
                signal.signal(number, before[number])

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True


# ------------------------------------------------------------------------------------------------------ compiled stacks


Say = Callable[[str], None]
Run = Callable[[Tensor, Tensor | None], Tensor]

MAX_GRAPHS = 16
"""What is compiled at most, a graph for each shape at each stack; stacks run eagerly at further ones."""


def wants(setting: Literal["auto", "on", "off"], device: torch.device) -> bool:
    """Whether to compile for ``device``: auto does on GPUs.

    On a CPU the native kernels are as fast without a minute of waiting, and a compiled stack does not use them.
    """
    return setting == "on" or (setting == "auto" and device.type == "cuda")


def obstacle(device: torch.device) -> str | None:
    """Why torch.compile cannot work for ``device`` here, in words; None if nothing is known to be missing."""
    if not find_compiler("cl"):
        return NO_COMPILER
    if device.type == "cuda" and importlib.util.find_spec("triton") is None:
        return "the package triton is not installed"
    return None


class CompiledStacks:
    """The compiled stacks of a model, each in ``Stack.compiled``; eager again where compiling fails."""

    def __init__(self, model: LanguageModel, say: Say, backend: str = "inductor") -> None:
        self.shapes: set[tuple[int, torch.Size]] = set()
        """each stack's number with the shape of an input that it was compiled for: one graph each"""
        self._failed = False
        self._say = say
        torch.compiler.reset()  # graphs of an earlier model in this process would count against torch's own limit
        torch._dynamo.config.recompile_limit = MAX_GRAPHS + 1
        for number, stack in enumerate(_stacks_of_recurring_length(model.network)):
            compiled = torch.compile(stack.eager, fullgraph=True, dynamic=False, backend=backend)
            stack.compiled = self._instead(number, stack.eager, compiled)

    def _instead(self, number: int, eager: Run, compiled: Run) -> Run:
        def forward(x: Tensor, documents: Tensor | None) -> Tensor:
            key = (number, x.shape)
            known = key in self.shapes
            full = not known and len(self.shapes) >= MAX_GRAPHS
            if self._failed or full or not torch.is_grad_enabled():
                return eager(x, documents)
            try:
                out = compiled(x, documents)
            except Exception as error:  # the compiler's errors share no class
                if known:
                    raise
                self._failed = True
                first = str(error).strip().partition("\n")[0]
                self._say(f"torch.compile failed, training goes on without it ({type(error).__name__}: {first[:200]})")
                return eager(x, documents)
            self.shapes.add(key)
            return out

        return forward


def compile_stacks(
    model: LanguageModel, setting: Literal["auto", "on", "off"], device: torch.device, say: Say
) -> CompiledStacks | None:
    """Have ``model`` compile its stacks when they first train, if ``setting`` wants it; None if not.

    Where that cannot work, ``say`` gets one sentence, and the model stays as it is.
    """
    if not wants(setting, device):
        return None
    if reason := obstacle(device):
        say(f"train.compile: {reason}; training goes on without torch.compile")
        return None
    return CompiledStacks(model, say)


def _stacks_of_recurring_length(network: Stack | HNet) -> Iterator[Stack]:
    """The stacks of ``network``, whose own length recurs, that are worth a graph for each length."""
    if isinstance(network, Stack):
        if network.config.layers:
            yield network
        return
    for part in (network.encoder, network.decoder):
        yield from _stacks_of_recurring_length(part)
    if network.config.router.capacity != "exact":
        yield from _stacks_of_recurring_length(network.main)


# ------------------------------------------------------------------------------------------------------ sharded weights


def shards(config: Config, world: DistributedContext) -> bool:
    """Whether the model's tensors are spread over the ranks."""
    return config.train.parallel == "fsdp" and world.size > 1


def shard(model: LanguageModel, config: Config, world: DistributedContext) -> LanguageModel:
    """Spread ``model``, which is the same on every rank, over the ranks' devices, and give it back.

    Raises BytegolfError for what is not trained in shards: Muon needs whole matrices, tables sparse gradients.
    """
    if config.optim.algorithm != "adamw":
        raise BytegolfError(
            "train.parallel = fsdp spreads each matrix over the processes, and Muon needs it whole: set "
            "optim.algorithm=adamw, or train.parallel=ddp"
        )
    if row_tables(model):
        raise BytegolfError(
            "train.parallel = fsdp does not shard tables of n-grams or chunks: set model.ngrams.longest=0 and "
            "chunk_hash.dim=0, or train.parallel=ddp"
        )
    if config.train.adapters or config.train.qat_from:
        raise BytegolfError(
            "train.parallel = fsdp trains neither adapters nor with quantised weights: set train.parallel=ddp, or "
            "train.adapters=0 and train.qat_from=0"
        )
    from torch.distributed.device_mesh import init_device_mesh  # these take a while, and most runs have no shards
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(world.device.type, (world.size,))
    stacks = [module for module in model.modules() if isinstance(module, Stack)]
    for block in (block for stack in stacks for block in stack.blocks):
        for part in (block.mixer, block.mlp):
            if isinstance(part, nn.Module) and any(True for _ in part.parameters()):
                fully_shard(part, mesh=mesh, reshard_after_forward=True)
    # the rest stays gathered until the backward pass is over: a scale is used again behind its block
    fully_shard(model, mesh=mesh, reshard_after_forward=False)
    return model


@contextlib.contextmanager
def released(model: nn.Module) -> Iterator[None]:
    """Behind the context, in which no backward pass follows on a forward pass, tensors are shards again."""
    yield
    reshard: Any = getattr(model, "reshard", None)  # a sharded model has it
    if reshard is not None:
        reshard()


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor that may be a shard (a DTensor); every rank has to ask."""
    gather: Any = getattr(tensor, "full_tensor", None)
    found: Tensor = gather() if gather else tensor
    return found


def gathered(tensors: dict[str, Tensor], world: DistributedContext) -> dict[str, Tensor]:
    """Tensors as they are; of shards all of each, on the CPU of the leader, whom every rank has to help."""
    if not any(hasattr(tensor, "full_tensor") for tensor in tensors.values()):
        return tensors
    found = {}
    # Every rank goes through the same names in the same order, as each gathering is a collective; one by one, since
    # all tensors together may not fit on a device.
    for name, tensor in tensors.items():
        complete = whole(tensor.detach())
        if world.leads:
            found[name] = complete.cpu()
    return found


def all_finite(tensors: Iterable[Tensor], world: DistributedContext) -> bool:
    """Whether every number is finite, in any rank's share; every rank has to ask."""
    # One launch for all tensors instead of one each. A norm is finite just if every number is, as a NaN or an infinity
    # stays one through squares, sums and roots; weights are far from 1e19, whose square would be one too. A rank may
    # own no rows of a small tensor: its empty part has no norm.
    parts = [own(tensor.detach()) for tensor in tensors]
    norms = torch._foreach_norm([part for part in parts if part.numel()])
    broken = not bool(torch.stack(list(norms)).isfinite().all())
    return not world.total(float(broken))[0]


def own(tensor: Tensor) -> Tensor:
    """This rank's part of a tensor that may be a shard."""
    local: Any = getattr(tensor, "to_local", None)
    found: Tensor = local() if local else tensor
    return found


def placed(tensor: Tensor, like: Tensor) -> Tensor:
    """A whole tensor, the same on every rank, on the device of ``like`` and spread as that is; a shard as it is."""
    mesh: Any = getattr(like, "device_mesh", None)
    if mesh is None or hasattr(tensor, "device_mesh"):
        return tensor.to(like.device)
    from torch.distributed.tensor import distribute_tensor

    found: Tensor = distribute_tensor(tensor.to(like.device), mesh, like.placements)  # type: ignore[attr-defined]
    return found


# ----------------------------------------------------------------------------------------------- text and initial model


ROUTER_TOKENS = 1 << 22
"""How much of the training split a router that is made from it may see."""


class TrainingData:
    """What a model is trained on and validated with."""

    def __init__(self, tokenizer: Tokenizer, train: TokenStream, validation: TokenStream) -> None:
        # attribute by attribute, as the audit of a submission's script follows validation tokens by name
        self.tokenizer = tokenizer
        self.train = train
        self.validation = validation

    @staticmethod
    def open(config: Config) -> TrainingData:
        """The splits in ``config.data.path``.

        Raises BytegolfError where they are missing, too short for a sequence, or not in the model's alphabet.
        """
        folder, name = Path(config.data.path), config.data.tokenizer
        tokenizer = load_tokenizer(name, folder)
        if config.model.vocab_size != tokenizer.vocab_size:
            raise BytegolfError(
                f"the model has model.vocab_size = {config.model.vocab_size}, but the tokenizer {tokenizer.name} has "
                f"{tokenizer.vocab_size} ids: set model.vocab_size={tokenizer.vocab_size}, or choose another "
                "data.tokenizer"
            )
        train = open_split(folder, name, "train", tokenizer.vocab_size)
        validation = open_split(folder, name, "val", tokenizer.vocab_size)
        for stream, split in ((train, "training"), (validation, "validation")):
            if len(stream) <= config.train.seq_len:
                raise BytegolfError(
                    f"the {split} split has {len(stream)} tokens, too few for one sequence of train.seq_len = "
                    f"{config.train.seq_len}: prepare more text or lower train.seq_len"
                )
        return TrainingData(tokenizer, train, validation)


def model_to_train(config: Config, data: TrainingData, world: DistributedContext, reporter: Teller) -> LanguageModel:
    """The initial model on this rank's device, or the rank's shard of it, in the precision that is to be computed in.

    What is slow there is told.
    """
    device = world.device
    if device.type == "cpu" and (reason := native.why_not()):  # builds the kernels, if need be
        reporter.warn(reason)
    model = initial_model(config, data.tokenizer, data.train)
    # sharding moves part by part, as the whole model may not fit on the device
    model = shard(model, config, world) if shards(config, world) else model.to(device)
    for module in model.modules():
        if isinstance(module, Stack):
            module.recompute = config.train.recompute
    model.precision = pick_precision(config.train.precision, device)
    if model.precision == torch.bfloat16 and not has_bf16(device):
        reporter.warn(
            "train.precision is bf16, in which this device cannot multiply: steps take many times as long as with auto"
        )
    return model


def resolve(config: Config | str | os.PathLike[str], changes: Sequence[str | Mapping[str, Any]] = ()) -> Config:
    """The configuration of a preset's name, a TOML file or a ``Config``, with ``changes``; and, where there is a
    ``train.init``, with its model and tokenizer, on which ``changes`` of ``model.…`` hold.

    Once that is done the file's hash is in the configuration, and it comes back as it is: so a run's own config.toml
    trains it again. Raises BytegolfError if the file cannot be loaded.
    """
    config = config.with_(*changes) if isinstance(config, Config) else Config.load(os.fspath(config), changes)
    if not config.train.init or config.train.init_sha256:
        return config
    found = _start_of(config)
    own = [each for each in changes if isinstance(each, str) and each.startswith("model.")]
    taken = {
        "model": found.config.model,
        "data.tokenizer": found.tokenizer.name,
        "plugins": sorted({*config.plugins, *found.config.plugins}),
        "train.init": found.origin or str(Path(config.train.init).absolute()),
        "train.init_sha256": found.artifact.sha256,
    }
    return config.with_(taken, *own)


def _start_of(config: Config) -> LoadedModel:
    """The model of ``train.init``."""
    path = RunFolder(Path(config.train.init)).artifact if Path(config.train.init).is_dir() else Path(config.train.init)
    with contextlib.suppress(OSError):
        status = path.stat()
        return _read(config.train.init, config.data.path, status.st_mtime_ns, status.st_size)
    return _read(config.train.init, config.data.path, 0, 0)


@functools.lru_cache(maxsize=1)
def _read(source: str, data: str, *stamp: int) -> LoadedModel:
    """(why) Kept: the configuration is made of it, then the weights, and behind training the chunks before it. Weights
    as they were imported are mapped, and cost no memory.
    """
    return load_model(source, Path(data), "cpu")


def _init_weights(config: Config, model: LanguageModel) -> None:
    """Have the model begin with the weights of ``train.init``."""
    source, expected = config.train.init, config.train.init_sha256
    found = _start_of(config)
    if expected and found.artifact.sha256 != expected:
        raise BytegolfError(
            f"train.init = {source} is another model than this run began with: give that one, or set "
            "train.init_sha256 to '' and train into another --out"
        )
    try:
        model.load_state_dict(float_state(found.model))
    except RuntimeError as error:
        raise BytegolfError(
            f"the weights of train.init = {source} do not fit the model of the configuration: leave out what changes "
            "its shapes"
        ) from error


def initial_model(config: Config, tokenizer: Tokenizer, stream: TokenStream) -> LanguageModel:
    """The model before training on ``stream``: the same for the same seed and text.

    Raises BytegolfError for a model of ``train.init`` that cannot be loaded or does not fit.
    """
    torch.manual_seed(config.train.seed)
    model = LanguageModel(config.model)
    if config.train.init:
        _init_weights(config, model)
        return model
    sample = stream.slice(0, min(len(stream), ROUTER_TOKENS))
    if model.soft and config.model.soft.init == "bpe":
        from bytegolf.training.soft_boundaries import fit_to_bpe  # which reaches all that trains a tokenizer

        fit_to_bpe(model, tokenizer, sample)
    model.prepare_routers(Material(tokenizer, sample, Path(config.data.path)))
    return model
