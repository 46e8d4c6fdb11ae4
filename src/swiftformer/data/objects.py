"""The objects of a picture: boxes, classes and masks."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from swiftformer.data.object_masks import RLE, coco_mask


@dataclass(frozen=True, eq=False)
class Objects:
    """What is annotated in one picture, `n` objects.

    Attributes:
        boxes: `(n, 4)` float32, x0, y0, x1, y1 in pixels.
        labels: `(n,)` int64 class indices from 0.
        crowd: `(n,)` bool: COCO's `iscrowd`, Pascal VOC's `difficult`. Not learned from; in an evaluation neither hit
            nor miss.
        areas: `(n,)` float32 pixels, as annotated, otherwise those of the mask or the box.
        masks: COCO's RLE of each object; None where there are boxes only.
    """

    boxes: np.ndarray
    labels: np.ndarray
    crowd: np.ndarray
    areas: np.ndarray
    masks: list[RLE] | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def without_crowd(self) -> Objects:
        """Those that are learned from."""
        kept = np.flatnonzero(~self.crowd)
        masks = None if self.masks is None else [self.masks[i] for i in kept]
        return Objects(self.boxes[kept], self.labels[kept], self.crowd[kept], self.areas[kept], masks)

    def decoded_masks(self) -> np.ndarray | None:
        """`(n, height, width)` uint8, 0 and 1; None where there are boxes only.

        Raises:
            ValueError: no objects, whose size is unknown; damaged run lengths.
        """
        return None if self.masks is None else decode(self.masks)


def decode(masks: list[RLE]) -> np.ndarray:
    """COCO's RLE of one or more masks of one size: `(n, height, width)` uint8, 0 and 1.

    Raises:
        ValueError: none, damaged, or pycocotools is missing.
    """
    if not masks:
        raise ValueError("expected one or more masks, found none")
    return coco_mask().decode(masks).transpose(2, 0, 1)  # (height, width, n), in Fortran's order
