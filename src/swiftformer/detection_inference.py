"""From a detector's output to objects, as transformers' image processors give them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchvision.ops import box_convert

from swiftformer.detections import Detections, post_process

Sizes = Sequence[tuple[int, int]] | Tensor


def post_process_object_detection(
    outputs: Any, threshold: float = 0.5, target_sizes: Sizes | None = None
) -> list[dict[str, Tensor]]:
    """The objects of each picture, the best first.

    Args:
        outputs: with `scores`, `labels` and `boxes`, see `swiftformer.detection.SwiftFormerDetectionOutput`.
        threshold: objects have a higher score.
        target_sizes: height and width of each picture; by default boxes are shares of the input.

    Returns:
        Of each picture `scores` `(n,)`, `labels` `(n,)`, and `boxes` `(n, 4)`: x0 y0 x1 y1.

    Raises:
        ValueError: another number of sizes than of pictures.
    """
    sizes = _sizes(target_sizes, len(outputs.scores)) if target_sizes is not None else [(1, 1)] * len(outputs.scores)
    found = []
    for place, (height, width) in enumerate(sizes):
        scores, labels, boxes = (outputs[name][place] for name in ("scores", "labels", "boxes"))
        kept = scores > threshold
        corners = box_convert(boxes[kept], "cxcywh", "xyxy") * boxes.new_tensor([width, height, width, height])
        found.append({"scores": scores[kept], "labels": labels[kept], "boxes": corners})
    return found


def post_process_instance_segmentation(
    outputs: Any, threshold: float = 0.5, target_sizes: Sizes | None = None, return_binary_maps: bool = False
) -> list[dict[str, Any]]:
    """The instances of each picture.

    Args:
        outputs: with `masks` besides what `post_process_object_detection` needs.
        threshold: instances have a higher score.
        target_sizes: height and width of each picture.
        return_binary_maps: a map for each instance instead of one in which the better covers the worse.

    Returns:
        Of each picture `segments_info`, a list of `{"id", "label_id", "was_fused", "score"}`, the best first, and
        `segmentation`: `(height, width)` with the ids, -1 where there is nothing, or `(n, height, width)` of 0 and 1.

    Raises:
        ValueError: no masks or sizes, or another number of sizes than of pictures.
    """
    if outputs.masks is None or target_sizes is None:
        raise ValueError(f"expected {'masks' if outputs.masks is None else 'target_sizes'}, found none")
    found: list[dict[str, Any]] = []
    for place, size in enumerate(_sizes(target_sizes, len(outputs.scores))):
        arrays = {name: outputs[name][place].float().cpu().numpy() for name in ("scores", "labels", "boxes", "masks")}
        objects: Detections = post_process(arrays, size)
        objects = objects[objects.scores > threshold]
        assert objects.masks is not None
        masks = torch.from_numpy(objects.masks)
        if return_binary_maps:
            segmentation = masks.int()
        else:
            segmentation = torch.full(size, -1, dtype=torch.int32)
            for index in range(len(objects) - 1, -1, -1):
                segmentation[masks[index]] = index
        info = [
            {"id": index, "label_id": label, "was_fused": False, "score": round(score, 6)}
            for index, (label, score) in enumerate(zip(objects.labels.tolist(), objects.scores.tolist(), strict=True))
        ]
        found.append({"segmentation": segmentation, "segments_info": info})
    return found


def _sizes(target_sizes: Sizes, pictures: int) -> list[tuple[int, int]]:
    sizes = target_sizes.tolist() if isinstance(target_sizes, Tensor) else target_sizes
    if len(sizes) != pictures:
        raise ValueError(f"expected {pictures} target sizes, one for each picture, found {len(sizes)}")
    return [(int(height), int(width)) for height, width in sizes]
