"""Two 1x1 convolutions with an activation between them, which most of the network consists of."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from swiftformer.convolutions import is_plain_layer, scaled
from swiftformer.training_kernels import is_idle, serves_mlp
from swiftformer.training_operators import mlp as mlp_in_blocks


def mlp(
    x: Tensor,
    expand: nn.Conv2d,
    activation: nn.Module,
    project: nn.Conv2d,
    scale: Tensor | None = None,
    drop: nn.Module | None = None,
) -> Tensor:
    """`drop(scale * project(drop(activation(expand(x)))))`, maps `(B, C, H, W)`.

    In training on a CPU by a kernel, where one serves, that keeps nothing of what lies between the layers.
    """
    idle = scale is None and expand.training and (drop is None or is_idle(drop))
    if idle and all(map(is_plain_layer, (expand, project))) and serves_mlp(x, expand, activation, project):
        return mlp_in_blocks(x.to(torch.bfloat16), expand.weight, expand.bias, project.weight, project.bias)
    x = activation(expand(x))
    x = scaled(project, x if drop is None else drop(x), scale)
    return x if drop is None else drop(x)
