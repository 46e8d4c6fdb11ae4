"""Augmentation of pictures together with their masks, on torchvision's transforms.

What evaluation does to a picture is `Preprocessing.uncropped`; nothing is done to its mask.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional as F

from swiftformer.data.masks import VOID
from swiftformer.image_processing import IMAGENET_MEAN
from swiftformer.images import MAX_PIXELS

# Ranges of MMSegmentation's photometric distortion, which most published results on ADE20K were trained with; its
# brightness is added, here it multiplies.
DISTORTION = {"brightness": 0.125, "contrast": 0.5, "saturation": 0.5, "hue": 0.1}
LONGEST = 4  # times the short side that is asked for: no picture is made longer than that
CROPS = 10  # that are tried for one that shows more than one class


class RandomScale(v2.Transform):
    """Resize by a random factor, keeping the aspect.

    Args:
        scale: range of the factor, which makes no picture larger than any may be.
        short_side: pixels that a factor of 1 makes of the short side; 0 for as many as it has.
    """

    def __init__(self, scale: tuple[float, float], short_side: int = 0) -> None:
        super().__init__()
        self.scale, self.short_side = scale, short_side

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        sides = F.get_size(flat_inputs[0])
        factor = 1.0
        if self.short_side:
            factor = min(self.short_side / min(sides), LONGEST * self.short_side / max(sides))
        factor *= torch.empty(()).uniform_(*self.scale).item()
        factor = min(factor, (MAX_PIXELS / (sides[0] * sides[1])) ** 0.5)  # all of it is made before the crop
        return {"size": [max(round(side * factor), 1) for side in sides]}

    def transform(self, x: Any, params: dict[str, Any]) -> Any:
        if isinstance(x, tv_tensors.Mask):
            # torchvision's own way takes the pixel to the upper left, up to one away from the picture's.
            plain = x.as_subclass(Tensor)[None]
            resized = F.resize(plain, params["size"], InterpolationMode.NEAREST_EXACT)
            return tv_tensors.wrap(resized[0], like=x)
        return F.resize(x, params["size"], InterpolationMode.BILINEAR, antialias=True)


class RandomCropOfClasses(v2.Transform):
    """A random square; what is smaller is padded at the right and at the bottom.

    Args:
        size: its side.
        largest_share: crops in which one class has this share of the annotated pixels, or more, are drawn again, some
            times; 1 takes the first.
        fill: colour around the picture. Around the mask is void.
    """

    def __init__(self, size: int, largest_share: float, fill: Sequence[int]) -> None:
        super().__init__()
        self.size, self.largest_share, self.fill = size, largest_share, list(fill)

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        height, width = F.get_size(flat_inputs[0])
        mask = next((x for x in flat_inputs if isinstance(x, tv_tensors.Mask)), None)
        box = {"height": min(height, self.size), "width": min(width, self.size)}
        for _ in range(CROPS):
            box["top"] = int(torch.randint(height - box["height"] + 1, ()))
            box["left"] = int(torch.randint(width - box["width"] + 1, ()))
            if mask is None or self.largest_share >= 1 or self._varied(F.crop(mask, **box)):
                break
        return box

    def _varied(self, mask: Tensor) -> bool:
        counts = torch.bincount(mask.as_subclass(Tensor).flatten().long(), minlength=VOID + 1)
        counts[VOID] = 0
        return bool(counts.max() < self.largest_share * counts.sum())

    def transform(self, x: Any, params: dict[str, Any]) -> Any:
        right, bottom = self.size - params["width"], self.size - params["height"]
        x = F.crop(x, **params)
        if right == bottom == 0:
            return x
        fill: Any = VOID if isinstance(x, tv_tensors.Mask) else self.fill
        return F.pad(x, [0, 0, right, bottom], fill=fill)


def color_steps(strength: float) -> list[v2.Transform]:
    """Random brightness, contrast, saturation and hue, each for half of the pictures; none at a strength of 0."""
    limits = {name: min(width * strength, 0.5 if name == "hue" else 1) for name, width in DISTORTION.items()}
    steps = [v2.RandomApply([v2.ColorJitter(**{name: limit})], p=0.5) for name, limit in limits.items()]  # type: ignore[arg-type]
    return steps if strength else []


class SegmentationAugmentation:
    """Random scale, crop, flip and colours, as most published results on ADE20K were trained with.

    All of it follows torch's generator on the CPU.

    Args:
        size: side of the square that comes out.
        scale: range of the factor by which a picture is resized before the crop.
        short_side: pixels that a factor of 1 makes of the short side; 0 leaves the picture as large as it is.
        horizontal_flip: probability.
        color_distortion: strength of random brightness, contrast, saturation and hue, each of which half of the
            pictures get; 0 switches it off, 1 is usual.
        largest_share: of one class in a crop, see `RandomCropOfClasses`.
        mean: colour around pictures that are too small, with values in [0, 1].
    """

    def __init__(
        self,
        size: int,
        *,
        scale: tuple[float, float] = (0.5, 2.0),
        short_side: int = 0,
        horizontal_flip: float = 0.5,
        color_distortion: float = 1.0,
        largest_share: float = 0.75,
        mean: Sequence[float] = IMAGENET_MEAN,
    ) -> None:
        if size < 1 or short_side < 0 or not 0 < scale[0] <= scale[1]:
            raise ValueError(
                f"expected a size of at least 1, a short side of at least 0 and a scale of two positive factors, the "
                f"smaller first, found {size}, {short_side}, {scale}"
            )
        if not 0 <= horizontal_flip <= 1 or color_distortion < 0 or not 0 < largest_share <= 1:
            raise ValueError(
                f"expected horizontal_flip in [0, 1], color_distortion of at least 0 and largest_share in (0, 1], "
                f"found {horizontal_flip}, {color_distortion}, {largest_share}"
            )
        steps: list[v2.Transform] = [
            RandomScale(scale, short_side),
            RandomCropOfClasses(size, largest_share, [round(255 * value) for value in mean]),
            v2.RandomHorizontalFlip(horizontal_flip),
        ]
        self.transforms = v2.Compose(steps + color_steps(color_distortion))

    def __call__(self, image: Image.Image, mask: np.ndarray) -> tuple[Tensor, Tensor]:
        """An RGB image and its mask `(H, W)`: pixels `(3, size, size)` uint8, and the mask `(size, size)`."""
        pixels, classes = self.transforms(
            tv_tensors.Image(F.pil_to_tensor(image)), tv_tensors.Mask(torch.from_numpy(mask))
        )
        return pixels.as_subclass(Tensor), classes.as_subclass(Tensor)
