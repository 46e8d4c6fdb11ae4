"""The Semantic FPN head (arXiv 1901.02446, figures 2 and 3): a feature pyramid and the sum of its levels.

    maps -> 1x1 lateral, coarse added to fine -> 3x3 output -> per level: 3x3, BatchNorm, ReLU, upsampling, repeated
    down to the finest level -> sum -> dropout -> 1x1 classifier

Every upsampling goes to the size of the next finer map, not by a factor of two, so any image size works.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from swiftformer.training_kernels import BatchNorm2d


class FeaturePyramid(nn.Module):
    """FPN (arXiv 1612.03144): every map gets what the coarser ones know, and all get the same width."""

    def __init__(self, in_channels: Sequence[int], channels: int) -> None:
        super().__init__()
        self.lateral = nn.ModuleList(nn.Conv2d(width, channels, kernel_size=1) for width in in_channels)
        self.output = nn.ModuleList(nn.Conv2d(channels, channels, kernel_size=3, padding=1) for _ in in_channels)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Maps `(B, in_channels[i], H_i, W_i)`, the finest first, to as many `(B, channels, H_i, W_i)`."""
        return pyramid(self.lateral, self.output, maps)


class ConvNormAct(nn.Module):
    """3x3 convolution, BatchNorm, ReLU."""

    def __init__(self, in_channels: int, channels: int, eps: float) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, channels, kernel_size=3, padding=1, bias=False)
        self.norm = BatchNorm2d(channels, eps=eps)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x)).relu()


class SemanticFPNHead(nn.Module):
    """Feature maps to class scores per pixel of the finest map.

    Args:
        in_channels: widths of the maps, the finest first.
        num_labels: classes.
        fpn_channels: width of the pyramid.
        channels: width behind it.
        dropout: share of channels dropped in front of the classifier.
        eps: of the BatchNorms.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        num_labels: int,
        fpn_channels: int = 256,
        channels: int = 128,
        dropout: float = 0.1,
        eps: float = 1e-5,
    ) -> None:
        super().__init__()
        self.fpn = FeaturePyramid(in_channels, fpn_channels)
        # One step for each size between a level and the finest; the finest has one as well.
        self.scale_heads = nn.ModuleList(
            nn.ModuleList(
                ConvNormAct(fpn_channels if step == 0 else channels, channels, eps) for step in range(max(1, level))
            )
            for level in range(len(in_channels))
        )
        self.dropout = nn.Dropout2d(dropout)
        self.classifier = nn.Conv2d(channels, num_labels, kernel_size=1)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Maps `(B, in_channels[i], H_i, W_i)`, the finest first, to logits `(B, num_labels, H_0, W_0)`."""
        return self.classifier(self.dropout(merged(self.scale_heads, self.fpn(maps))))


def nearest(x: Tensor, size: Sequence[int]) -> Tensor:
    """`(B, C, h, w)` to `(B, C, *size)`, the nearest value."""
    return F.interpolate(x, size=tuple(size), mode="nearest")


def pyramid(
    lateral: Iterable[nn.Module],
    output: Iterable[nn.Module],
    maps: Sequence[Tensor],
    enlarge: Callable[[Tensor, Sequence[int]], Tensor] = nearest,
) -> list[Tensor]:
    """Apply the convolutions of a `FeaturePyramid`, with the top-down sums between them.

    Args:
        enlarge: brings a coarse map to the size of a finer one.
    """
    levels = [conv(x) for conv, x in zip(lateral, maps, strict=True)]
    for fine in range(len(levels) - 2, -1, -1):
        levels[fine] = levels[fine] + enlarge(levels[fine + 1], levels[fine].shape[2:])
    return [conv(x) for conv, x in zip(output, levels, strict=True)]


def merged(scale_heads: nn.ModuleList, levels: Sequence[Tensor]) -> Tensor:
    """The sum of all levels at the finest one's size, `(B, channels, H_0, W_0)`."""
    total = None
    for level, (steps, x) in enumerate(zip(scale_heads, levels, strict=True)):
        assert isinstance(steps, nn.ModuleList)
        for step, block in enumerate(steps, start=1):
            x = block(x)
            if level > 0:
                x = upsampled(x, levels[level - step].shape[2:])
        total = x if total is None else total + x
    assert total is not None
    return total


def upsampled(x: Tensor, size: Sequence[int]) -> Tensor:
    """`(B, C, h, w)` to `(B, C, *size)`, bilinear between the centres of pixels."""
    return F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=False)
