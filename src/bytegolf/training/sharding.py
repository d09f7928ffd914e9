"""Fully sharded training (FSDP2, `torch.distributed.fsdp.fully_shard`): each rank keeps 1/R of every tensor.

Weights are gathered for as long as they are computed with, and gradients are summed by shards: so weights, gradients
and moments of a model that does not fit on one device lie on R of them. What is sharded by itself are mixers and MLPs,
which have nearly all weights of a large model; the rest (embedding, norms, scales, routers) is gathered once a forward
pass. A block as a whole would be the usual unit, but its last branch is added within the next block
(``block.Stream``, ``prenorm.Residual``), when its scale would be gone again.

Legend: R ranks.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from bytegolf.config import Config
from bytegolf.distributed import DistributedContext
from bytegolf.errors import BytegolfError
from bytegolf.model.embed import row_tables
from bytegolf.model.lm import LanguageModel
from bytegolf.model.stack import Stack


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
