"""The detection head as it is deployed: one picture, tensors of fixed shapes, nothing that depends on what is seen.

What torchvision's modules compute (`swiftformer.heads.rcnn`), written so that a graph of it can be exported: instead of
lists of the boxes that are left, all boxes stay, and those that are out have a score of -1.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import nms, roi_align

from swiftformer.heads.rcnn import (
    BOX_SIZE,
    MASK_SIZE,
    SAMPLING_RATIO,
    SCORE_THRESHOLD,
    RCNNHead,
    fitting_levels,
)

RPN_WEIGHTS, BOX_WEIGHTS = (1.0, 1.0, 1.0, 1.0), (10.0, 10.0, 5.0, 5.0)  # of the four numbers that shift a box
LONGEST_STEP = math.log(1000.0 / 16)  # by which a box may grow at once, as torchvision has it
CANDIDATES = 1000  # boxes, the best of all regions and classes, that the last suppression is made over
OUT = -1.0
DETECTION_OUTPUTS = ("scores", "labels", "boxes", "masks")


class DeployRCNN(nn.Module):
    """Feature maps of one picture to its objects.

    Args:
        lateral: the 1x1 convolutions of the pyramid, with what stands before them folded in.
        with_masks: whether there is a mask branch.
        detections: places for objects.
    """

    def __init__(self, head: RCNNHead, lateral: Sequence[nn.Module], with_masks: bool, detections: int) -> None:
        super().__init__()
        fpn, regions = head.fpn, head.roi_heads
        self.lateral = nn.ModuleList(lateral)
        self.output = nn.ModuleList(copy.deepcopy(block[0]) for block in fpn.layer_blocks)  # type: ignore[index]
        self.rpn_head = copy.deepcopy(head.rpn.head)
        generator: Any = head.rpn.anchor_generator
        self.strides, cells = generator.strides, generator.cell_anchors
        for level, cell in enumerate(cells):
            self.register_buffer(f"cell_{level}", cell.detach().clone().float(), persistent=False)
        self.box_head, self.box_predictor = copy.deepcopy(regions.box_head), copy.deepcopy(regions.box_predictor)
        self.mask_head = copy.deepcopy(regions.mask_head) if with_masks else None
        self.mask_predictor = copy.deepcopy(regions.mask_predictor) if with_masks else None
        self.proposals = head.rpn.pre_nms_top_n(), head.rpn.post_nms_top_n()
        self.rpn_threshold, self.nms_threshold = float(head.rpn.nms_thresh), float(regions.nms_thresh)
        self.detections = detections

    def forward(self, maps: Sequence[Tensor], size: tuple[int, int]) -> tuple[Tensor, ...]:
        """Maps `(1, C_i, H_i, W_i)`, the finest first, of an input of `size` (H, W) to `scores` `(1, D)`, `labels`
        `(1, D)`, `boxes` `(1, D, 4)`, and `masks` `(1, D, 28, 28)` where there is a mask branch.

        See `swiftformer.detection.SwiftFormerDetectionOutput`.
        """
        levels = self._pyramid(maps)
        regions, there = self._propose(levels, size)
        scores, labels, boxes = self._classify(levels[:-1], regions, there, size)
        height, width = size
        corners = boxes / boxes.new_tensor([width, height, width, height])
        shares = torch.cat([(corners[:, :2] + corners[:, 2:]) / 2, corners[:, 2:] - corners[:, :2]], dim=1)
        found = (scores > 0).to(boxes.dtype)
        outputs = [scores * found, labels * found.to(labels.dtype), shares * found[:, None]]
        if self.mask_head is not None:
            outputs.append(self._masks(levels[:-1], boxes, labels) * found[:, None, None])
        return tuple(output[None] for output in outputs)

    def _pyramid(self, maps: Sequence[Tensor]) -> list[Tensor]:
        levels = [conv(x) for conv, x in zip(self.lateral, maps, strict=True)]
        for fine in range(len(levels) - 2, -1, -1):
            levels[fine] = levels[fine] + F.interpolate(levels[fine + 1], size=levels[fine].shape[2:], mode="nearest")
        levels = [conv(x) for conv, x in zip(self.output, levels, strict=True)]
        return [*levels, F.max_pool2d(levels[-1], kernel_size=1, stride=2)]

    def _propose(self, levels: Sequence[Tensor], size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Boxes `(n, 4)` that may hold an object, x0 y0 x1 y1 in pixels, and whether each of them counts `(n,)`."""
        objectness, deltas = self.rpn_head(list(levels))
        boxes, scores = [], []
        for level, (of_level, shifts) in enumerate(zip(objectness, deltas, strict=True)):
            anchors = self._anchors(level, of_level.shape[-2:])
            chance = of_level[0].permute(1, 2, 0).flatten()  # (h * w * anchors,)
            shifts = shifts[0].permute(1, 2, 0).reshape(-1, 4)
            best, places = chance.topk(min(self.proposals[0], chance.shape[0]))
            chosen = clipped(shifted(anchors[places], shifts[places], RPN_WEIGHTS), size)
            score = torch.where(large_enough(chosen, 1e-3), best.sigmoid(), OUT)
            boxes.append(chosen)
            scores.append(suppressed(chosen, score, self.rpn_threshold))
        all_boxes, all_scores = torch.cat(boxes), torch.cat(scores)
        best, places = all_scores.topk(min(self.proposals[1], all_scores.shape[0]))
        return all_boxes[places], best >= 0

    def _anchors(self, level: int, grid: Sequence[int]) -> Tensor:
        """`(h * w * anchors, 4)`."""
        cell = getattr(self, f"cell_{level}")
        rows, columns = (torch.arange(side, device=cell.device) * self.strides[level] for side in grid)
        y, x = torch.meshgrid(rows, columns, indexing="ij")
        corners = torch.stack([x, y, x, y], dim=-1).reshape(-1, 1, 4).to(cell.dtype)
        return (corners + cell[None]).reshape(-1, 4)

    def _classify(
        self, levels: Sequence[Tensor], regions: Tensor, there: Tensor, size: tuple[int, int]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Scores `(D,)`, -1 where there is nothing, labels `(D,)` from 0 on, and boxes `(D, 4)` in pixels."""
        logits, deltas = self.box_predictor(self.box_head(pooled(levels, regions, BOX_SIZE, self.strides)))
        scores = torch.where(there[:, None], logits.softmax(dim=1)[:, 1:], OUT)  # without the background
        classes = scores.shape[1]
        deltas = deltas.view(-1, classes + 1, 4)[:, 1:].reshape(-1, 4)
        boxes = clipped(shifted(regions.repeat_interleave(classes, dim=0), deltas, BOX_WEIGHTS), size)
        flat = torch.where(large_enough(boxes, 1e-2) & (scores.flatten() > SCORE_THRESHOLD), scores.flatten(), OUT)
        best, places = flat.topk(min(CANDIDATES, flat.shape[0]))
        boxes, labels = boxes[places], places % classes
        apart = boxes + (labels * (max(size) + 1)).to(boxes.dtype)[:, None]  # classes do not overlap each other
        best, order = suppressed(apart, best, self.nms_threshold).topk(min(self.detections, best.shape[0]))
        free = self.detections - best.shape[0]
        labels, boxes = labels[order], boxes[order]
        return F.pad(best, (0, free), value=OUT), F.pad(labels, (0, free)), F.pad(boxes, (0, 0, 0, free))

    def _masks(self, levels: Sequence[Tensor], boxes: Tensor, labels: Tensor) -> Tensor:
        """`(D, 28, 28)` probabilities of the class that each box was given."""
        assert self.mask_head is not None and self.mask_predictor is not None
        logits = self.mask_predictor(
            self.mask_head(pooled(levels, boxes, MASK_SIZE, self.strides))
        )  # (D, classes + 1, ...)
        places = (labels + 1).view(-1, 1, 1, 1).expand(-1, 1, *logits.shape[2:])
        return logits.gather(1, places)[:, 0].sigmoid()


def shifted(boxes: Tensor, deltas: Tensor, weights: tuple[float, float, float, float]) -> Tensor:
    """Boxes `(n, 4)` moved and scaled by what a layer says (arXiv 1311.2524, appendix C)."""
    sizes = boxes[:, 2:] - boxes[:, :2]
    centres = boxes[:, :2] + 0.5 * sizes
    steps = deltas[:, :2] / deltas.new_tensor(weights[:2])
    growth = (deltas[:, 2:] / deltas.new_tensor(weights[2:])).clamp(max=LONGEST_STEP)
    centres, halves = centres + steps * sizes, 0.5 * sizes * growth.exp()
    return torch.cat([centres - halves, centres + halves], dim=1)


def clipped(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Boxes within a picture of `size` (H, W)."""
    x, y = boxes[:, 0::2].clamp(0, size[1]), boxes[:, 1::2].clamp(0, size[0])
    return torch.stack([x[:, 0], y[:, 0], x[:, 1], y[:, 1]], dim=1)


def large_enough(boxes: Tensor, smallest: float) -> Tensor:
    """Whether both sides of each box have so many pixels, `(n,)`."""
    return ((boxes[:, 2:] - boxes[:, :2]) >= smallest).all(dim=1)


def suppressed(boxes: Tensor, scores: Tensor, threshold: float) -> Tensor:
    """The scores, -1 for every box that overlaps a better one by more than the threshold."""
    kept = torch.zeros_like(scores).scatter(0, nms(boxes, scores, threshold), 1.0)
    return torch.where(kept > 0, scores, OUT)


def pooled(levels: Sequence[Tensor], boxes: Tensor, side: int, strides: Sequence[int]) -> Tensor:
    """What the pyramid has in each box, `(n, C, side, side)`, from the level that fits the box (arXiv 1612.03144).

    In a graph all levels are looked at for all boxes: which one counts is known only when the boxes are.
    """
    strides = strides[: len(levels)]
    wanted = fitting_levels(boxes, strides)
    if boxes.device.type == "cpu" and not torch.jit.is_tracing() and not torch.compiler.is_compiling():
        found = levels[0].new_zeros(len(boxes), levels[0].shape[1], side, side)
        for place, (level, stride) in enumerate(zip(levels, strides, strict=True)):
            [chosen] = torch.where(wanted == place)
            found[chosen] = roi_align(level, [boxes[chosen]], side, 1 / stride, SAMPLING_RATIO, aligned=True)
        return found
    total = None
    for place, (level, stride) in enumerate(zip(levels, strides, strict=True)):
        part = roi_align(level, [boxes], side, 1 / stride, SAMPLING_RATIO, aligned=True)
        part = part * (wanted == place).to(part.dtype).view(-1, 1, 1, 1)
        total = part if total is None else total + part
    assert total is not None
    return total
