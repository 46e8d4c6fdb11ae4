"""Second derivatives, forward-mode derivatives, vmap and torch.func, for autograd functions made for training."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad


def differentiated_once(backward: Callable) -> Callable:
    """A gradient that cannot itself be differentiated, and says so where that is tried.

    `torch.autograd.function.once_differentiable` says nothing where the gradient that comes in is a constant: what goes
    out would then count as one as well, although it depends on what was kept.
    """

    def once(ctx: Any, *gradients: Tensor | None) -> Any:
        with torch.no_grad():
            found = backward(ctx, *gradients)
        known = [each for each in (*gradients, *ctx.saved_tensors) if each is not None]
        if not torch.is_grad_enabled() or not any(each.requires_grad for each in known):
            return found
        outputs = found if isinstance(found, tuple) else (found,)
        refuse: Any = torch._C._functions.DelayedError(b"a kernel's gradient is differentiated once only", len(outputs))
        marked = (None if each is None else each.detach().requires_grad_() for each in outputs)
        return refuse(*marked)

    return once


def is_transformed(x: Tensor) -> bool:
    """Whether a transformation of functions, such as `torch.func.grad`, vmap or forward mode, looks at it."""
    if torch.compiler.is_compiling():
        return False
    if forward_ad._current_level >= 0 or torch._C._are_functorch_transforms_active():
        return True
    return torch._C._functorch.is_legacy_batchedtensor(x)
