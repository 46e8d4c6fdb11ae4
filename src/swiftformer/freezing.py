"""Keep a part of a model as it is in training, as dense models do with small batches or little data."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

if TYPE_CHECKING:
    from swiftformer.hf import SwiftFormerModel


def freeze(model: SwiftFormerModel, stages: int = 0, batch_norm: bool = False) -> None:
    """Put parts of a model into eval mode and take their gradients away, in place.

    `train()` undoes the first half, and transformers' `from_pretrained` the second, so both are repeated after them.

    Args:
        stages: from the input on, the stem and the downsampling between them included; 0 freezes none, nor the stem.
        batch_norm: every BatchNorm of the model.
    """
    frozen: list[nn.Module] = []
    if stages > 0:
        end = model.encoder.stage_indices()[stages - 1]
        frozen += [model.patch_embed, *model.encoder.network[:end]]
    if batch_norm:
        frozen += [module for module in model.modules() if isinstance(module, _BatchNorm)]
    for module in frozen:
        module.eval().requires_grad_(False)
