"""Objects found in a picture: from what a detection model gives to boxes and masks in the picture's pixels.

NumPy only; COCO's format needs pycocotools.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from swiftformer.data.object_masks import RLE, coco_mask

if TYPE_CHECKING:
    import supervision


@dataclass(frozen=True, eq=False)
class Detections:
    """The objects of one picture, best score first.

    Attributes:
        boxes: `(n, 4)` float32, x0 y0 x1 y1 in pixels of the upright picture.
        scores: `(n,)` float32, in [0, 1].
        labels: `(n,)` int64 class indices.
        masks: `(n, height, width)` bool at the picture's size; None of a model that gives boxes only.

    Raises:
        ValueError: arrays that do not belong together.
    """

    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    masks: np.ndarray | None = None

    def __post_init__(self) -> None:
        count = len(self.scores)
        found = {"boxes": self.boxes.shape, "labels": self.labels.shape}
        if found != {"boxes": (count, 4), "labels": (count,)}:
            raise ValueError(f"expected boxes ({count}, 4) and labels ({count},) for {count} scores, found {found}")
        if self.masks is not None and (self.masks.ndim != 3 or len(self.masks) != count):
            raise ValueError(f"expected masks of shape ({count}, height, width), found {self.masks.shape}")

    def __len__(self) -> int:
        return len(self.scores)

    def __getitem__(self, places: np.ndarray | slice) -> Detections:
        """Some of them: a slice, indices, or a bool for each."""
        masks = None if self.masks is None else self.masks[places]
        return Detections(self.boxes[places], self.scores[places], self.labels[places], masks)

    def keep(self, threshold: float) -> Detections:
        """Those with at least this score."""
        return self[self.scores >= threshold]

    def to_supervision(self, names: Sequence[str] | None = None) -> supervision.Detections:
        """For the `supervision` library, with `class_name` in its data where `names` of all classes are given.

        Raises:
            ValueError: supervision is not installed.
        """
        try:
            import supervision
        except ImportError:
            raise ValueError("expected the supervision library, found none: pip install supervision") from None
        data: dict[str, Any] = (
            {} if names is None else {"class_name": np.array([names[i] for i in self.labels.tolist()], dtype=str)}
        )
        return supervision.Detections(
            xyxy=self.boxes, mask=self.masks, confidence=self.scores, class_id=self.labels, data=data
        )

    def coco_results(self, image_id: int, category_ids: Sequence[int]) -> list[dict[str, Any]]:
        """Entries of a COCO results file.

        Args:
            category_ids: of each class.

        Returns:
            `{"image_id", "category_id", "bbox": [x, y, width, height], "score", "segmentation"?}` of each object, the
            mask as compressed run lengths in text.

        Raises:
            ValueError: masks, and pycocotools is not installed.
        """
        results: list[dict[str, Any]] = [
            {"image_id": image_id, "category_id": category_ids[label], "bbox": box, "score": score}
            for label, box, score in zip(
                self.labels.tolist(), corners_to_sides(self.boxes).tolist(), self.scores.tolist(), strict=True
            )
        ]
        if self.masks is not None:
            for result, run_lengths in zip(results, encode_masks(self.masks), strict=True):
                result["segmentation"] = run_lengths | {"counts": run_lengths["counts"].decode("ascii")}
        return results


def corners_to_sides(boxes: np.ndarray) -> np.ndarray:
    """x0 y0 x1 y1 to x y width height, `(n, 4)` float64."""
    corners = boxes.astype(np.float64)
    return np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1)


def encode_masks(masks: Iterable[np.ndarray]) -> list[RLE]:
    """Each `(height, width)` bool to COCO's run lengths `{"size": [height, width], "counts": bytes}`.

    Raises:
        ValueError: pycocotools is not installed.
    """
    encode = coco_mask().encode
    # One at a time: all those of a large picture together would need gigabytes once more.
    return [encode(np.asfortranarray(mask, dtype=np.uint8)) for mask in masks]


def post_process(
    outputs: Mapping[str, Any],
    size: tuple[int, int],
    threshold: float = 0.0,
    extent: tuple[float, float] | None = None,
) -> Detections:
    """What a model gives for one picture, in the picture's pixels.

    Args:
        outputs: `scores` `(D,)`, where 0 is a place without an object; `labels` `(D,)`; `boxes` `(D, 4)`, centre x,
            centre y, width and height as shares of the input; and perhaps `masks` `(D, M, M)`, probabilities inside
            the box.
        size: height and width of the picture.
        threshold: objects with a lower score are left out.
        extent: height and width, in pixels of the picture, of what the input shows, where that is not the picture
            alone: see `Preprocessing.extent`.

    Returns:
        Boxes clipped to the picture, those outside of it left out; masks where the probability is at least 0.5.

    Raises:
        ValueError: an output is missing.
    """
    if missing := {"scores", "labels", "boxes"} - set(outputs):
        raise ValueError(f"expected the outputs scores, labels and boxes, found no {', '.join(sorted(missing))}")
    height, width = size
    scores = np.asarray(outputs["scores"], dtype=np.float32)
    centre, sides = np.split(np.asarray(outputs["boxes"], dtype=np.float64), 2, axis=1)
    down, across = size if extent is None else extent
    boxes = np.concatenate([centre - sides / 2, centre + sides / 2], axis=1) * (across, down, across, down)
    clipped = boxes.clip(0, (width, height, width, height))
    kept = (scores > 0) & (scores >= threshold) & (clipped[:, 2:] > clipped[:, :2]).all(axis=1)
    order = np.flatnonzero(kept)[np.argsort(-scores[kept], kind="stable")]
    masks = None
    if "masks" in outputs:  # they fill the box as the model sees it, whatever part of it lies outside
        masks = paste_masks(np.asarray(outputs["masks"], dtype=np.float32)[order], boxes[order], size)
    labels = np.rint(np.asarray(outputs["labels"])[order]).astype(np.int64)
    return Detections(clipped[order].astype(np.float32), scores[order], labels, masks)


def paste_masks(masks: np.ndarray, boxes: np.ndarray, size: tuple[int, int], threshold: float = 0.5) -> np.ndarray:
    """Resize masks bilinearly to their boxes: `(n, *size)` bool.

    The points of a mask are the centres of an even grid over the box, at fractions of pixels as the box has them, and
    outside of it the probability is 0. (torchvision's `paste_masks_in_image` rounds boxes to whole pixels, which moves
    the outlines of small objects by up to one.)

    Args:
        masks: `(n, M, M)` probabilities.
        boxes: `(n, 4)` x0 y0 x1 y1 in pixels; they may reach beyond the picture.
        threshold: probability from which a pixel belongs to the object.
    """
    pasted = np.zeros((len(masks), *size), dtype=bool)
    for out, mask, (x0, y0, x1, y1) in zip(pasted, masks, boxes.tolist(), strict=True):
        rows, from_rows = _bilinear(y0, y1, mask.shape[0], size[0])
        columns, from_columns = _bilinear(x0, x1, mask.shape[1], size[1])
        out[rows, columns] = from_rows @ mask @ from_columns.T >= threshold
    return pasted


def _bilinear(low: float, high: float, points: int, pixels: int) -> tuple[slice, np.ndarray]:
    """Along one axis, the pixels of a box and their weights `(pixels, points)` of the points of its mask."""
    spacing = max(high - low, 1e-6) / points
    start = min(max(int(np.floor(low - spacing)), 0), pixels)
    stop = max(min(int(np.ceil(high + spacing)), pixels), start)
    places = (np.arange(start, stop) + 0.5 - low) / spacing - 0.5  # of the pixels' centres, in points
    weights = 1 - np.abs(places[:, None] - np.arange(points))
    return slice(start, stop), weights.clip(0, None).astype(np.float32)
