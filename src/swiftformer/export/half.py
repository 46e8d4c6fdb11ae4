"""float16: what has to change in a fused network before a runtime computes all of it in half precision."""

from __future__ import annotations

import math
from typing import Any

import torch

from swiftformer.deploy import SMALLEST_HALF, DeployAttention
from swiftformer.export.graph import DeployGraph


def fit_half(graph: DeployGraph, images: Any) -> None:
    """Make attention compute in float16 throughout, in place.

    Keys and queries are squared and summed over up to 512 channels, and float16 ends at 65504. Their size cancels out,
    so it is made about 1 on the images, by powers of two in the weights, which round nothing.

    Args:
        images: `(N, C, H, W)` float32, as the graph takes them.
    """
    attentions = [m for m in graph.modules() if isinstance(m, DeployAttention)]
    found: list[torch.Tensor] = []
    hooks = [m.key_query.register_forward_hook(lambda module, given, output: found.append(output)) for m in attentions]
    with torch.inference_mode():
        graph(torch.from_numpy(images[:4]))
    for hook in hooks:
        hook.remove()
    for attention, output in zip(attentions, found, strict=True):
        attention.smallest = SMALLEST_HALF
        if not attention.normalize:
            continue
        both: Any = attention.key_query
        for part in (slice(attention.dim), slice(attention.dim, None)):
            size = output[:, part].square().mean().sqrt().clamp(1e-6, 1e6).item()
            for tensor in (both.weight, both.bias):
                tensor[part] *= 2.0 ** -round(math.log2(size))
