"""Augmentation of pictures together with the boxes and masks of their objects, on torchvision's transforms."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from swiftformer.data.dense_transforms import LONGEST, color_steps
from swiftformer.image_processing import IMAGENET_MEAN

PADDING = 32  # sides of batches of whole pictures are multiples of it, as the strides of a detector want
SMALLEST = 1.0  # pixels of width and height that an object needs

Target = dict[str, Tensor]


class _ResizedCrop(v2.Transform):
    """Resize and crop in one step, which costs what comes out and not what lies between.

    Parameters are `size`, the height and width that the whole picture is resized to, and `top`, `left`, `height` and
    `width` of the part of that which is taken. Boxes are not clipped.

    Args:
        canvas: height and width that are padded to at the right and at the bottom.
        fill: colour there. Masks have 0.
    """

    def __init__(self, canvas: tuple[int, int] | None = None, fill: Sequence[int] = (0, 0, 0)) -> None:
        super().__init__()
        self.canvas, self.fill = canvas, tuple(fill)

    def transform(self, x: Any, params: dict[str, Any]) -> Any:
        (new_height, new_width), top, left = params["size"], params["top"], params["left"]
        height, width = params["height"], params["width"]
        canvas = self.canvas or (height, width)
        if isinstance(x, tv_tensors.BoundingBoxes):
            old_height, old_width = x.canvas_size
            factors = torch.tensor([new_width / old_width, new_height / old_height] * 2)
            moved = x.as_subclass(Tensor) * factors - torch.tensor([left, top] * 2)
            return tv_tensors.BoundingBoxes(moved, format=x.format, canvas_size=canvas)  # type: ignore[call-overload]
        if isinstance(x, tv_tensors.Mask):
            rows = _nearest(top, height, x.shape[1], new_height)
            columns = _nearest(left, width, x.shape[2], new_width)
            cut = x.as_subclass(Tensor).index_select(1, rows).index_select(2, columns)
            return tv_tensors.Mask(F.pad(cut, [0, 0, canvas[1] - width, canvas[0] - height], fill=0))
        if not isinstance(x, Image.Image):
            return x
        across, down = x.width / new_width, x.height / new_height
        box = (left * across, top * down, min((left + width) * across, x.width), min((top + height) * down, x.height))
        # Pillow looks beyond the box where the filter does: the same as resizing first.
        part = x.resize((width, height), Image.Resampling.BILINEAR, box=box)
        if canvas == (height, width):
            return part
        padded = Image.new("RGB", canvas[::-1], self.fill)
        padded.paste(part)
        return padded


def _nearest(start: int, count: int, old: int, new: int) -> Tensor:
    """Of pixels `start` to `start + count` of `new`, the places among `old` that their centres fall on."""
    centres = (torch.arange(start, start + count, dtype=torch.float64) + 0.5) * (old / new)
    return centres.long().clamp_(max=old - 1)


class RandomScaledCrop(_ResizedCrop):
    """Large-scale jitter: resize by a random factor, keeping the aspect, and take a random part of a fixed size.

    Args:
        size: height and width of what comes out; what is smaller is padded.
        scale: range of the factor.
        short_side: pixels that a factor of 1 makes of the short side; 0 for as many as it has.
    """

    def __init__(
        self, size: tuple[int, int], scale: tuple[float, float], short_side: int = 0, fill: Sequence[int] = (0, 0, 0)
    ) -> None:
        super().__init__(size, fill)
        self.size, self.scale, self.short_side = size, scale, short_side

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        sides = F.get_size(flat_inputs[0])
        factor = 1.0
        if self.short_side:
            factor = min(self.short_side / min(sides), LONGEST * self.short_side / max(sides))
        factor *= torch.empty(()).uniform_(*self.scale).item()
        size = [max(round(side * factor), 1) for side in sides]
        height, width = min(size[0], self.size[0]), min(size[1], self.size[1])
        top, left = int(torch.randint(size[0] - height + 1, ())), int(torch.randint(size[1] - width + 1, ()))
        return {"size": size, "top": top, "left": left, "height": height, "width": width}


class MultiScaleResize(_ResizedCrop):
    """Resize the whole picture, keeping the aspect.

    Args:
        short_sides: pixels of the short side, one of which is drawn.
        longest: pixels that the long side has at most; the short side is then shorter. Four times the short side that
            is drawn is the most in any case.
    """

    def __init__(self, short_sides: tuple[int, ...], longest: int) -> None:
        super().__init__()
        if not short_sides or min(short_sides) < 1 or longest < max(short_sides):
            raise ValueError(
                f"expected short sides of at least 1 and a longest side that is no shorter, found {short_sides}, "
                f"{longest}"
            )
        self.short_sides, self.longest = tuple(short_sides), longest

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        sides = F.get_size(flat_inputs[0])
        short_side = self.short_sides[int(torch.randint(len(self.short_sides), ()))]
        factor = min(short_side / min(sides), min(self.longest, LONGEST * short_side) / max(sides))
        height, width = (max(round(side * factor), 1) for side in sides)
        return {"size": [height, width], "top": 0, "left": 0, "height": height, "width": width}


class _Augmentation:
    """Resize, drop what is no longer to be seen, flip, distort the colours.

    Attributes:
        divisor: what a collate function pads the sides of a batch to multiples of.
        fill: colour of that padding.
    """

    def __init__(
        self,
        resize: _ResizedCrop,
        divisor: int,
        horizontal_flip: float,
        vertical_flip: float,
        color_distortion: float,
        min_visible: float,
        mean: Sequence[float],
    ) -> None:
        shares = (horizontal_flip, vertical_flip, min_visible)
        if not all(0 <= share <= 1 for share in shares) or color_distortion < 0:
            raise ValueError(
                "expected horizontal_flip, vertical_flip and min_visible in [0, 1] and color_distortion of at least "
                f"0, found {horizontal_flip}, {vertical_flip}, {min_visible}, {color_distortion}"
            )
        self.resize, self.divisor, self.min_visible = resize, divisor, min_visible
        self.fill = _color(mean)
        flips: list[v2.Transform] = [v2.RandomHorizontalFlip(horizontal_flip), v2.RandomVerticalFlip(vertical_flip)]
        self.transforms = v2.Compose(flips + color_steps(color_distortion))

    def __call__(
        self, image: Image.Image, boxes: np.ndarray, labels: np.ndarray, masks: np.ndarray | None = None
    ) -> tuple[Tensor, Target]:
        """An augmented picture and its objects.

        Args:
            image: RGB.
            boxes: `(n, 4)`, x0, y0, x1, y1 in pixels.
            labels: `(n,)`.
            masks: `(n, height, width)` uint8, 0 and 1.

        Returns:
            Pixels `(3, H, W)` uint8, and the `m <= n` objects that are left: `class_labels` `(m,)` int64; `boxes`
            `(m, 4)` float32, centre x, centre y, width and height in shares of W and H; `masks` `(m, H, W)` bool.
        """
        corners = tv_tensors.BoundingBoxes(  # type: ignore[call-overload]
            torch.as_tensor(boxes, dtype=torch.float32).reshape(-1, 4),
            format=tv_tensors.BoundingBoxFormat.XYXY,
            canvas_size=(image.height, image.width),
        )
        parts = [image, corners] + ([] if masks is None else [tv_tensors.Mask(torch.from_numpy(masks))])
        image, corners, *drawn = self.resize(*parts)
        kept, clipped = self._visible(corners, drawn[0] if drawn else None)
        corners = tv_tensors.wrap(clipped, like=corners)
        drawn = [tv_tensors.Mask(mask.as_subclass(Tensor)[kept]) for mask in drawn]
        pixels, corners, *drawn = self.transforms(tv_tensors.Image(F.pil_to_tensor(image)), corners, *drawn)
        height, width = pixels.shape[-2:]
        x0, y0, x1, y1 = (corners.as_subclass(Tensor) / torch.tensor([width, height] * 2)).unbind(1)
        target = {
            "class_labels": torch.as_tensor(labels, dtype=torch.int64)[kept],
            "boxes": torch.stack([(x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0], dim=1),
        }
        if drawn:
            target["masks"] = drawn[0].as_subclass(Tensor).view(torch.bool)
        return pixels.as_subclass(Tensor), target

    def _visible(self, corners: tv_tensors.BoundingBoxes, masks: tv_tensors.Mask | None) -> tuple[Tensor, Tensor]:
        """Indices of the objects of which enough is left, and their boxes: clipped, or around the mask that is."""
        whole = corners.as_subclass(Tensor)
        height, width = corners.canvas_size
        clipped = whole.clamp(min=0).minimum(torch.tensor([width, height] * 2, dtype=whole.dtype))
        kept = _area(clipped) >= (self.min_visible - 1e-4) * _area(whole)
        if masks is not None:
            drawn = masks.as_subclass(Tensor)
            cut = (clipped != whole).any(1)
            kept &= drawn.flatten(1).any(1).bool()
            for index in (cut & kept).nonzero().flatten().tolist():
                clipped[index] = _around(drawn[index])
        kept &= (clipped[:, 2:] - clipped[:, :2] >= SMALLEST).all(1)
        indices = kept.nonzero().flatten()
        return indices, clipped[indices]


def _area(boxes: Tensor) -> Tensor:
    return (boxes[:, 2:] - boxes[:, :2]).clamp(min=0).prod(1)


def _around(mask: Tensor) -> Tensor:
    """The box of a mask that is not empty."""
    columns, rows = mask.any(0).nonzero(), mask.any(1).nonzero()
    return torch.stack([columns[0, 0], rows[0, 0], columns[-1, 0] + 1, rows[-1, 0] + 1]).float()


def _color(mean: Sequence[float]) -> tuple[int, ...]:
    return tuple(round(255 * value) for value in mean)


class DetectionAugmentation(_Augmentation):
    """Large-scale jitter to one size, flips and colours. All of it follows torch's generator on the CPU.

    Args:
        size: height and width that come out, or the side of a square; what is smaller is padded at the right and at
            the bottom.
        scale: range of the factor by which a picture is resized before the crop.
        short_side: pixels that a factor of 1 makes of the short side; 0 leaves the picture as large as it is.
        horizontal_flip, vertical_flip: probabilities.
        color_distortion: strength of random brightness, contrast, saturation and hue, each of which half of the
            pictures get; 0 switches it off, 1 is usual.
        mean: colour around pictures that are too small, with values in [0, 1].
        min_visible: share of a box that has to be in the crop; objects of which less is left are dropped. What is
            left of an object with a mask has the box of the mask that is left.
    """

    def __init__(
        self,
        size: int | tuple[int, int],
        *,
        scale: tuple[float, float] = (0.1, 2.0),
        short_side: int = 0,
        horizontal_flip: float = 0.5,
        vertical_flip: float = 0.0,
        color_distortion: float = 1.0,
        mean: Sequence[float] = IMAGENET_MEAN,
        min_visible: float = 0.25,
    ) -> None:
        height, width = (size, size) if isinstance(size, int) else size
        if min(height, width) < 1 or short_side < 0 or not 0 < scale[0] <= scale[1]:
            raise ValueError(
                f"expected a size of at least 1, a short side of at least 0 and a scale of two positive factors, the "
                f"smaller first, found {size}, {short_side}, {scale}"
            )
        crop = RandomScaledCrop((height, width), scale, short_side, _color(mean))
        super().__init__(crop, 1, horizontal_flip, vertical_flip, color_distortion, min_visible, mean)


class MultiScaleAugmentation(_Augmentation):
    """Whole pictures at random sizes, flips and colours, as most published results on COCO were trained with.

    Args:
        short_sides: pixels of the short side, one of which is drawn; a single one is the paper's recipe.
        longest: pixels that the long side has at most.
        horizontal_flip, vertical_flip: probabilities.
        color_distortion: as `DetectionAugmentation` has it.
        mean: colour with which the pictures of a batch are padded to one size, with values in [0, 1].
    """

    def __init__(
        self,
        short_sides: tuple[int, ...] = (800,),
        longest: int = 1333,
        *,
        horizontal_flip: float = 0.5,
        vertical_flip: float = 0.0,
        color_distortion: float = 0.0,
        mean: Sequence[float] = IMAGENET_MEAN,
    ) -> None:
        resize = MultiScaleResize(short_sides, longest)
        super().__init__(resize, PADDING, horizontal_flip, vertical_flip, color_distortion, 0.0, mean)
