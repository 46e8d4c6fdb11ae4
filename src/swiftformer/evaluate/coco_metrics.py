"""COCO's average precision and recall, of boxes and of masks, through pycocotools."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from swiftformer.data.object_masks import RLE, coco_mask, mask_areas
from swiftformer.data.objects import Objects
from swiftformer.detections import Detections, corners_to_sides, encode_masks

if TYPE_CHECKING:
    from swiftformer.train.distributed import Processes

SIZES = ("all", "small", "medium", "large")  # of objects, as pycocotools has them in order
IOU_50, IOU_75 = 0, 5  # places among its thresholds 0.50, 0.55, ... 0.95


@dataclass(frozen=True, eq=False)
class _Picture:
    size: tuple[int, int]
    objects: Objects
    found: Detections  # without masks
    masks: list[RLE] | None  # theirs, as run lengths


class CocoMetrics:
    """What is in pictures and what was found in them.

    Args:
        classes: names.
        with_masks: evaluate masks as well as boxes.
        max_detections: best-scored detections of a class in a picture that count, of each recall in turn; all else
            takes the last number.

    Raises:
        ValueError: pycocotools is not installed, or numbers that fall.
    """

    def __init__(
        self, classes: Sequence[str], with_masks: bool = False, max_detections: tuple[int, int, int] = (1, 10, 100)
    ) -> None:
        coco_mask()
        if list(max_detections) != sorted(max_detections) or max_detections[0] < 1:
            raise ValueError(f"expected max_detections of at least 1 that rise, found {max_detections}")
        self.classes = list(classes)
        self.with_masks = with_masks
        self.max_detections = max_detections
        self._pictures: dict[int, _Picture] = {}

    def __len__(self) -> int:
        """Pictures."""
        return len(self._pictures)

    def update(self, image_id: int, size: tuple[int, int], objects: Objects, detections: Detections) -> None:
        """Add a picture.

        Args:
            size: its height and width.
            objects: what is in it.

        Raises:
            ValueError: a picture that was added before, classes beyond those known, or masks that are missing or of
                another size.
        """
        if image_id in self._pictures:
            raise ValueError(f"expected every picture once, found image {image_id} again")
        for name, labels in (("objects", objects.labels), ("detections", detections.labels)):
            if len(labels) and not 0 <= labels.min() <= labels.max() < len(self.classes):
                raise ValueError(
                    f"expected class indices from 0 to {len(self.classes) - 1} in the {name} of image {image_id}, "
                    f"found {labels.min()} to {labels.max()}"
                )
        masks = None
        if self.with_masks:
            for name, sizes in (("objects", _sizes_of(objects)), ("detections", _sizes_found(detections))):
                if sizes - {size}:
                    raise ValueError(f"image {image_id}: expected masks of {size} in the {name}, found {sizes}")
            masks = encode_masks(detections.masks) if detections.masks is not None else []
        else:
            objects = replace(objects, masks=None)
        self._pictures[image_id] = _Picture(size, objects, replace(detections, masks=None), masks)

    def merge(self, processes: Processes) -> None:
        """Add the pictures of all processes, each of which has then all of them; one that several have counts once."""
        for pictures in processes.gather_objects(self._pictures):
            self._pictures = pictures | self._pictures

    def result(self) -> dict[str, Any]:
        """Average precision and recall in percent, as COCO defines them: of boxes, and with `mask_` before, of masks.

        `AP` (over thresholds of intersection over union from 0.5 to 0.95), `AP50`, `AP75`; `AP_small`, `AP_medium` and
        `AP_large` (below 32 * 32 pixels, from there, from 96 * 96 on); the recalls `AR_1`, `AR_10` and `AR_100` by the
        number of detections, `AR_small`, `AR_medium` and `AR_large`; and lists `AP_per_class` and `AP50_per_class`.
        None stands where there are no such objects.

        Raises:
            ValueError: the pictures have no objects.
        """
        if all(picture.objects.crowd.all() for picture in self._pictures.values()):
            raise ValueError(f"expected annotated objects to evaluate on, found none in {len(self)} pictures")
        result = self._summary(*self._accumulated("bbox"))
        if self.with_masks:
            masks = self._summary(*self._accumulated("segm"))
            result |= {f"mask_{name}": value for name, value in masks.items()}
        return result

    def coco_results(self, category_ids: Mapping[int, int], names: Mapping[int, str]) -> list[dict[str, Any]]:
        """All detections as entries of a COCO results file, see `Detections.coco_results`, each with a `file_name`.

        Args:
            category_ids: by class index; detections of other classes are left out.
            names: of the pictures, by image id.
        """
        results = []
        for image_id, picture in sorted(self._pictures.items()):
            known = np.isin(picture.found.labels, list(category_ids))
            ids = [category_ids.get(label, 0) for label in range(len(self.classes))]
            rows = picture.found[known].coco_results(image_id, ids)
            for row, place in zip(rows, np.flatnonzero(known), strict=True):
                if picture.masks is not None:
                    run_lengths = picture.masks[place]
                    row["segmentation"] = run_lengths | {"counts": run_lengths["counts"].decode("ascii")}
                row["file_name"] = names[image_id]
            results += rows
        return results

    def _accumulated(self, kind: str) -> tuple[np.ndarray, np.ndarray]:
        """Precision `(thresholds, recalls, classes, sizes, 3)` and recall without the second axis; -1 for none."""
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval

        images = [{"id": i, "height": p.size[0], "width": p.size[1]} for i, p in sorted(self._pictures.items())]
        categories = [{"id": i, "name": name} for i, name in enumerate(self.classes)]
        truth, found = COCO(), COCO()
        annotations: dict[int, list[dict[str, Any]]] = {0: [], 1: []}
        for image in images:
            picture = self._pictures[image["id"]]
            for side, entries in enumerate((_annotations(picture, kind), _detections(picture, kind))):
                # Numbers from 1 on: pycocotools takes 0 for no match.
                first = len(annotations[side]) + 1
                annotations[side] += [
                    {"id": first + i, "image_id": image["id"], **entry} for i, entry in enumerate(entries)
                ]
        with contextlib.redirect_stdout(io.StringIO()):
            for side, index in enumerate((truth, found)):
                index.dataset = {"images": images, "categories": categories, "annotations": annotations[side]}
                index.createIndex()
            evaluation = COCOeval(truth, found, kind)
            evaluation.params.maxDets = list(self.max_detections)
            evaluation.evaluate()
            evaluation.accumulate()
        return evaluation.eval["precision"], evaluation.eval["recall"]

    def _summary(self, precision: np.ndarray, recall: np.ndarray) -> dict[str, Any]:
        result: dict[str, Any] = {
            "AP": _mean(precision[..., 0, -1]),
            "AP50": _mean(precision[IOU_50, ..., 0, -1]),
            "AP75": _mean(precision[IOU_75, ..., 0, -1]),
        }
        result |= {f"AP_{name}": _mean(precision[..., i, -1]) for i, name in enumerate(SIZES) if i}
        result |= {f"AR_{count}": _mean(recall[..., 0, i]) for i, count in enumerate(self.max_detections)}
        result |= {f"AR_{name}": _mean(recall[..., i, -1]) for i, name in enumerate(SIZES) if i}
        places = range(len(self.classes))
        result["AP_per_class"] = [_mean(precision[:, :, i, 0, -1]) for i in places]
        result["AP50_per_class"] = [_mean(precision[IOU_50, :, i, 0, -1]) for i in places]
        return result


def _annotations(picture: _Picture, kind: str) -> list[dict[str, Any]]:
    objects = picture.objects
    entries: list[dict[str, Any]] = [
        {"category_id": label, "bbox": box, "area": area, "iscrowd": int(crowd)}
        for label, box, area, crowd in zip(
            objects.labels.tolist(),
            corners_to_sides(objects.boxes).tolist(),
            objects.areas.tolist(),
            objects.crowd.tolist(),
            strict=True,
        )
    ]
    if kind == "segm":
        for entry, mask in zip(entries, objects.masks or [], strict=True):
            entry["segmentation"] = mask
    return entries


def _detections(picture: _Picture, kind: str) -> list[dict[str, Any]]:
    """The size of a detection is that of its box or of its mask, by what is evaluated."""
    found = picture.found
    boxes = corners_to_sides(found.boxes)
    areas = boxes[:, 2] * boxes[:, 3]
    if kind == "segm":
        areas = mask_areas(picture.masks or [])
    entries: list[dict[str, Any]] = [
        {"category_id": label, "bbox": box, "area": area, "iscrowd": 0, "score": score}
        for label, box, area, score in zip(
            found.labels.tolist(), boxes.tolist(), areas.tolist(), found.scores.tolist(), strict=True
        )
    ]
    if kind == "segm":
        for entry, mask in zip(entries, picture.masks or [], strict=True):
            entry["segmentation"] = mask
    return entries


def _sizes_of(objects: Objects) -> set[Any]:
    if objects.masks is None:
        return {"none"} if len(objects.labels) else set()
    return {tuple(int(side) for side in mask["size"]) for mask in objects.masks}


def _sizes_found(detections: Detections) -> set[Any]:
    if detections.masks is None:
        return {"none"} if len(detections) else set()
    return {tuple(detections.masks.shape[1:])} if len(detections) else set()


def _mean(values: np.ndarray) -> float | None:
    known = values[values > -1]
    return 100 * float(known.mean()) if known.size else None
