"""Adaptive gradient clipping (arXiv 2102.06171) of all parameters at once."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

LEAST = 1e-3  # a unit's weights count as if they had this norm at least, so that zeros can begin to learn


@torch.no_grad()
def clip_adaptively(parameters: Iterable[Tensor], factor: float) -> None:
    """Scale gradients down, in place, to at most `factor` times the norm of the weights.

    The norms are those of a unit, which is a row of a matrix, an output channel of a convolution, or a whole vector.
    Does what timm's `adaptive_clip_grad` does, with far fewer operations. (Limits below 1e-6, of factors below 1e-3,
    are kept as well, where timm's gradients get smaller than that.)
    """
    learned = [parameter for parameter in parameters if parameter.grad is not None]
    if not learned:
        return
    gradients: list[Tensor] = [parameter.grad for parameter in learned]  # type: ignore[misc]
    most = _norms([parameter.detach() for parameter in learned])
    torch._foreach_clamp_min_(most, LEAST)
    torch._foreach_mul_(most, factor)
    torch._foreach_div_(most, _norms(gradients))  # by 0: infinite, which is more than 1
    torch._foreach_clamp_max_(most, 1.0)
    torch._foreach_mul_(gradients, most)


def _norms(tensors: list[Tensor]) -> list[Tensor]:
    """Of each tensor, one for each unit, in a shape that multiplies it."""
    vectors = [tensor for tensor in tensors if tensor.ndim <= 1]
    whole = iter(torch._foreach_norm(vectors) if vectors else [])
    return [
        next(whole)
        if tensor.ndim <= 1
        else torch.linalg.vector_norm(tensor, dim=tuple(range(1, tensor.ndim)), keepdim=True)
        for tensor in tensors
    ]
