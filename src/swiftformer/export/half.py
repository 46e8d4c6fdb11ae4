"""float16: what has to change in a fused network before a runtime computes all of it in half precision."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from swiftformer.deploy import SMALLEST_HALF, DeployAttention
from swiftformer.export.graph import DeployGraph

LARGEST_POOLED, LARGEST_KEY = 2.0**8, 2.0**4  # so that their products stay far below 65504 on other images as well


def fit_half(graph: DeployGraph, images: Any) -> None:
    """Make attention compute in float16 throughout, in place, by powers of two in the weights, which round nothing.

    float16 ends at 65504. Where keys and queries are normalised, they are squared and summed over up to 512 channels,
    and their size cancels out: it is made about 1 on the first four images. Where they are not, queries are summed over
    all tokens: sum and keys are made small, and the products with them take back what that changes.

    Args:
        images: `(N, C, H, W)` float32, as the graph takes them.
    """
    attentions = [m for m in graph.modules() if isinstance(m, DeployAttention)]
    found: list[Tensor] = []
    hooks = [m.key_query.register_forward_hook(lambda module, given, output: found.append(output)) for m in attentions]
    with torch.inference_mode():
        graph(torch.from_numpy(images[:4]))
    for hook in hooks:
        hook.remove()
    with torch.no_grad():
        for attention, output in zip(attentions, found, strict=True):
            attention.smallest = SMALLEST_HALF
            key, query = output.split(attention.dim, dim=1)
            if attention.normalize:
                factors = [_power(part.square().mean().sqrt(), 1.0) for part in (key, query)]
            else:
                pooled = query.abs().sum(dim=(2, 3)).max()
                factors = [_power(key.abs().max(), LARGEST_KEY), _power(pooled, LARGEST_POOLED)]
            _scale(attention, *factors)


def _power(size: Tensor, wanted: float) -> float:
    """The power of two that brings a size next to the one that is wanted."""
    return float(2.0 ** round(math.log2(wanted / size.clamp(1e-6, 1e6).item())))


def _scale(attention: DeployAttention, of_key: float, of_query: float) -> None:
    """Multiply keys and queries, and divide what is made of them by the same where they are not normalised."""
    dim = attention.dim
    both: Any = attention.key_query
    output: Any = attention.output
    for part, factor in ((slice(dim), of_key), (slice(dim, None), of_query)):
        for tensor in (both.weight, both.bias):
            tensor[part] *= factor
    if not attention.normalize:
        output.weight[:, :dim] /= of_key * of_query
        output.weight[:, dim:] /= of_query
