"""Cross-entropy of softcapped logits, per position, in nats.

Legend: N positions, V alphabet.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from bytegolf.ops import native
from bytegolf.ops.autograd import Saved, differentiable, wide


def softcap_cross_entropy(logits: Float[Tensor, "N V"], targets: Int[Tensor, " N"], cap: float) -> Float[Tensor, " N"]:
    """−log softmax(cap·tanh(logits/cap))[target] per position, in nats and fp32 (S0); cap 0 = no cap.

    Raises IndexError where a target is none of the alphabet's.
    """
    if torch.compiler.is_compiling():
        return softcap_cross_entropy_reference(logits, targets, cap)
    return (_native if native.usable(logits) else _eager)(logits, targets, cap)


def softcap_cross_entropy_reference(
    logits: Float[Tensor, "N V"], targets: Int[Tensor, " N"], cap: float
) -> Float[Tensor, " N"]:
    """The formula."""
    z = logits.to(wide(logits.dtype))
    return F.cross_entropy(cap * torch.tanh(z / cap) if cap > 0 else z, targets, reduction="none")


# ------------------------------------------------------------------------------------------------- eager
#
# (why) Both forms work out the gradient in the forward pass: the capped logits and the softmax lie in the cache then,
# and what is kept is one (N, V) tensor in the logits' dtype instead of two in fp32. The backward pass scales its rows.


def _forward(logits: Tensor, targets: Tensor, cap: float) -> tuple[Tensor, Saved, tuple[()]]:
    z = logits.to(wide(logits.dtype))
    if cap > 0:
        tanh = torch.tanh_(z / cap)
        z = tanh * cap
    losses = torch.logsumexp(z, -1) - z.gather(-1, targets.unsqueeze(-1)).squeeze(-1)
    if not logits.requires_grad:
        return losses, (), ()
    grad = torch.softmax(z, -1)
    grad.scatter_add_(-1, targets.unsqueeze(-1), grad.new_full((), -1.0).expand(*targets.shape, 1))
    if cap > 0:
        grad.addcmul_(grad * tanh, tanh, value=-1)  # d cap·tanh(z/cap)/dz = 1 − tanh²
    return losses, (grad.to(logits.dtype),), ()


def _backward(g: Tensor, grad: Tensor) -> tuple[Tensor]:
    return (grad * g.unsqueeze(-1).to(grad.dtype),)


_eager = differentiable(_forward, _backward)


# ------------------------------------------------------------------------------------------------- native


def _native_forward(logits: Tensor, targets: Tensor, cap: float) -> tuple[Tensor, Saved, tuple[()]]:
    wanted = logits.requires_grad  # (why) asked first: of a copy that is contiguous it is not true
    logits, targets = logits.contiguous(), targets.long().contiguous()
    native.check_range(targets, logits.shape[1], "target")
    losses = logits.new_empty(logits.shape[0], dtype=wide(logits.dtype))
    grad = torch.empty_like(logits) if wanted else None
    native.call("cross_entropy_forward", logits, logits, targets, losses, grad, *logits.shape, cap)
    return losses, (grad,), ()


def _native_backward(g: Tensor, grad: Tensor) -> tuple[Tensor]:
    out = torch.empty_like(grad)
    native.call("cross_entropy_backward", grad, grad, g.contiguous(), out, *grad.shape)
    return (out,)


_native = differentiable(_native_forward, _native_backward)
