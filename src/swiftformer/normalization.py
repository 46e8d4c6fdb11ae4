"""Fold the normalisation of the input into the first convolution, so that the model takes pixels as they are."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from swiftformer.image_processing import Preprocessing


class NormalizingConv2d(nn.Module):
    """A convolution of `(x * scale - mean) / std`, zero-padded, computed from `x`.

    The factor is in the weights, `weight * scale / std`. What normalises to zero, `mean / scale`, is taken away from
    each channel: with it in the bias, the padding would have to be of that value, and half precision would lose what
    is left of large sums.
    """

    fill: Tensor

    def __init__(self, conv: nn.Conv2d, mean: Sequence[float], std: Sequence[float], scale: float) -> None:
        super().__init__()
        mean_, std_ = (torch.tensor(v, dtype=torch.float64).view(1, -1, 1, 1) for v in (mean, std))
        weight = conv.weight.detach().double() / std_.to(conv.weight.device)
        bias = conv.bias.detach() if conv.bias is not None else conv.weight.new_zeros(len(weight))
        self.weight = nn.Parameter((weight * scale).to(conv.weight.dtype))
        self.bias = nn.Parameter(bias.clone())
        self.register_buffer("fill", (mean_ / scale).to(conv.weight))
        self.stride = conv.stride
        self.padding = conv.padding

    def forward(self, x: Tensor) -> Tensor:
        """`(B, C, H, W)` raw pixels of any dtype to `(B, out_channels, H', W')`."""
        return F.conv2d(x.to(self.weight.dtype) - self.fill, self.weight, self.bias, self.stride, self.padding)


def refuse_folded(model: nn.Module) -> None:
    """Raise ValueError for a model with folded normalisation: its weights would be read as an ordinary model's."""
    if any(isinstance(module, NormalizingConv2d) for module in model.modules()):
        raise ValueError("expected a model that takes normalised pixels, found one with folded normalisation")


def fold_normalization(
    model: nn.Module, mean: Sequence[float], std: Sequence[float], scale: float = 1 / 255
) -> nn.Module:
    """A copy of a model that takes raw pixels instead of normalised ones; the model itself is not changed.

    Args:
        model: any SwiftFormer of this package.
        mean, std: per channel, of values in [0, 1].
        scale: what brings raw pixels to [0, 1]: 1/255 for 0..255, 1 for values that are there already.

    Returns:
        A model whose output on `x` equals that of `model` on `(x * scale - mean) / std`, up to rounding. It cannot be
        saved as a checkpoint.

    Raises:
        ValueError: another number of channels than the model's.
    """
    refuse_folded(model)
    folded = copy.deepcopy(model)
    stem = next(m for name, m in folded.named_modules() if name.endswith("patch_embedding"))
    conv = stem[0]
    if not len(mean) == len(std) == conv.in_channels:
        raise ValueError(f"expected {conv.in_channels} means and stds, found {len(mean)} and {len(std)}")
    stem[0] = NormalizingConv2d(conv, mean, std, scale)
    if isinstance(preprocessing := getattr(model, "preprocessing", None), Preprocessing):
        # Preprocessing gives (x / 255 - mean) / std: raw pixels of this scale need mean 0 and std `scale`.
        filling = preprocessing.filling or tuple(mean)
        raw: dict[str, Any] = {"mean": (0.0,) * len(mean), "std": (scale,) * len(std), "filling": filling}
        folded.preprocessing = dataclasses.replace(preprocessing, **raw)  # type: ignore[assignment]
    return folded
