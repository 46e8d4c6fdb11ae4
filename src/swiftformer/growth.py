"""A larger variant that begins as a smaller, trained one (the idea of Net2Net, arXiv 1511.05641).

The smaller model sits in the first channels of the larger. Nothing flows from the new channels into the old ones, and
new blocks add nothing to the old ones, so both models compute the same; training fills what is new.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from swiftformer.normalization import refuse_folded
from swiftformer.variants import get_variant

if TYPE_CHECKING:
    from swiftformer.hf import SwiftFormerPreTrainedModel

    Model = TypeVar("Model", bound=SwiftFormerPreTrainedModel)

BLOCK = re.compile(r"(?P<stage>.*encoder\.network\.(?P<layer>\d+)\.blocks\.)(?P<block>\d+)(?P<rest>\..*)")


@torch.no_grad()
def grow(model: Model, variant: str) -> Model:
    """A model of another variant that computes what `model` does, in eval mode and up to rounding.

    Args:
        model: of any task; it is not changed.
        variant: `s`, `l1` or `l3`, with no stage shallower or narrower than the model's.

    Returns:
        A model of the same class, classes, type and preprocessing, on the CPU in eval mode.

    Raises:
        ValueError: unknown variant, one that the model does not fit into, or a model with folded normalisation.
    """
    target = get_variant(variant)
    from swiftformer.hf import SwiftFormerPreTrainedModel

    if not isinstance(model, SwiftFormerPreTrainedModel):
        raise ValueError(f"expected a SwiftFormer model that can be trained, found {type(model).__name__}")
    refuse_folded(model)
    config = model.config
    found, wanted = (*config.depths, *config.embed_dims), (*target.depths, *target.embed_dims)
    fits = len(found) == len(wanted) and all(old <= new for old, new in zip(found, wanted, strict=True))
    if not fits or not all(config.downsamples):
        raise ValueError(
            f"expected a model that fits into {variant} (depths {target.depths}, widths {target.embed_dims}), found "
            f"depths {tuple(config.depths)}, widths {tuple(config.embed_dims)}, downsamples {tuple(config.downsamples)}"
        )
    fields = config.to_dict() | {"depths": list(target.depths), "embed_dims": list(target.embed_dims)}
    larger: Any = type(model)(type(config)(**fields))
    larger.to(model.dtype)
    weights = larger.state_dict()
    for name, old in model.state_dict().items():
        place = _place(name, config.depths, target.depths)
        _embed(place, old, weights[place])
    for name, new in weights.items():
        if (match := BLOCK.fullmatch(name)) and match["rest"] == ".layer_scale":
            stage = int(match["layer"]) // 2
            if config.depths[stage] - 1 <= int(match["block"]) < target.depths[stage] - 1:
                new[: config.embed_dims[stage]] = 0  # a new block: the old channels pass it by
    larger.load_state_dict(weights)
    larger.preprocessing = getattr(model, "preprocessing", None)
    return larger.eval()


def _place(name: str, old_depths: Any, new_depths: Any) -> str:
    """Where a parameter goes: the attention, in the last block of each stage, stays in the last block."""
    match = BLOCK.fullmatch(name)
    if match is None:
        return name
    stage, block = int(match["layer"]) // 2, int(match["block"])
    if block == old_depths[stage] - 1:
        block = new_depths[stage] - 1
    return f"{match['stage']}{block}{match['rest']}"


def _embed(name: str, old: Tensor, new: Tensor) -> None:
    """Write a parameter into the first channels of a larger one, and cut off what would flow into them, in place."""
    if old.ndim == 0:
        new.copy_(old)
        return
    rows = old.shape[0]
    if ".attn.to_query." in name or ".attn.to_key." in name:
        new[rows:] = 0  # further values would change the tokens' norms
    if old.ndim > 1:
        new[:rows, old.shape[1] :] = 0
        new[:rows, : old.shape[1]] = old
    else:
        new[:rows] = old
