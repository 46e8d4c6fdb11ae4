"""Faster and Mask R-CNN (arXiv 1506.01497, 1703.06870) with a feature pyramid, of torchvision's parts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.detection import faster_rcnn, rpn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.roi_heads import RoIHeads, fastrcnn_loss, maskrcnn_inference
from torchvision.ops import FeaturePyramidNetwork, roi_align
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from swiftformer.config import SwiftFormerConfig

BOX_SIZE, MASK_SIZE = 7, 14  # pixels of a level that a region is resampled to; masks come out at twice theirs
SAMPLING_RATIO = 2  # points per pixel and axis of that
SCORE_THRESHOLD = 0.05  # of boxes that go into the suppression of overlapping ones
CANONICAL_SIZE, CANONICAL_LEVEL = 224, 4  # a region of this side is looked at on the map of stride 2**4
HALF = (torch.float16, torch.bfloat16)


class RPNHead(rpn.RPNHead):
    """torchvision's, whose outputs stay exact enough for coordinates where convolutions run in half precision."""

    def forward(self, x: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        objectness, deltas = super().forward(x)
        return [y.float() for y in objectness], [y.float() for y in deltas]


class BoxPredictor(faster_rcnn.FastRCNNPredictor):
    """torchvision's, with outputs in float32 for the same reason."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        scores, deltas = super().forward(x)
        return scores.float(), deltas.float()


class LevelAnchors(AnchorGenerator):
    """torchvision's, at known distances: its own are a picture's side over a map's, rounded down, and too short where
    the map's was rounded up.

    Args:
        sizes: sides of the anchors of each level, in pixels.
        ratios: their heights as shares of their widths.
        strides: pixels of a picture per pixel of each level.
    """

    def __init__(self, sizes: Sequence[int], ratios: Sequence[float], strides: Sequence[int]) -> None:
        super().__init__(tuple((size,) for size in sizes), (tuple(ratios),) * len(sizes))
        self.strides = tuple(strides)

    def forward(self, image_list: ImageList, feature_maps: list[Tensor]) -> list[Tensor]:
        """Maps `(B, C, H_i, W_i)` to the anchors `(n, 4)` of each picture, x0 y0 x1 y1 in pixels."""
        device = feature_maps[0].device
        grids: Any = [x.shape[-2:] for x in feature_maps]
        strides = [[torch.tensor(stride, device=device)] * 2 for stride in self.strides]
        self.set_cell_anchors(feature_maps[0].dtype, device)
        anchors = torch.cat(self.grid_anchors(grids, strides))
        return [anchors] * len(image_list.image_sizes)


class RegionPooling(nn.Module):
    """What a pyramid has in each region, from the level that fits the region's size (arXiv 1612.03144, equation 1).

    As torchvision's MultiScaleRoIAlign, but with points at the centres of pixels (`aligned`), as in Detectron2 and
    MMDetection, whose results are the published ones. Half a pixel of a map is a good part of a small object.

    Args:
        side: of the result, in pixels.
        strides: pixels of a picture per pixel of each level that is looked at.
    """

    def __init__(self, side: int, strides: Sequence[int]) -> None:
        super().__init__()
        self.side, self.strides = side, tuple(strides)

    def forward(self, pyramid: Mapping[str, Tensor], boxes: list[Tensor], sizes: list[tuple[int, int]]) -> Tensor:
        """Maps `(B, C, H_i, W_i)`, the finest first, and boxes `(n, 4)` of each picture in pixels to the boxes of all,
        `(N, C, side, side)`."""
        maps = list(pyramid.values())[: len(self.strides)]
        places = fitting_levels(torch.cat(boxes), self.strides)
        pictures = torch.cat([box.new_full((len(box), 1), index) for index, box in enumerate(boxes)])
        regions = torch.cat([pictures, torch.cat(boxes)], dim=1)  # (N, 5)
        pooled = maps[0].new_zeros(len(regions), maps[0].shape[1], self.side, self.side)
        for level, (x, stride) in enumerate(zip(maps, self.strides, strict=True)):
            [chosen] = torch.where(places == level)
            part = roi_align(x, regions[chosen].to(x.dtype), self.side, 1 / stride, SAMPLING_RATIO, aligned=True)
            pooled = pooled.index_copy(0, chosen, part.to(pooled.dtype))
        return pooled


def fitting_levels(boxes: Tensor, strides: Sequence[int]) -> Tensor:
    """The place in `strides` of the level on which each box `(n, 4)` is looked at, `(n,)`."""
    first, last = (round(math.log2(stride)) for stride in (strides[0], strides[-1]))
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    levels = torch.floor(CANONICAL_LEVEL + torch.log2(area.sqrt() / CANONICAL_SIZE) + 1e-6)
    return levels.clamp(first, last) - first


class RegionHeads(RoIHeads):
    """torchvision's, but that masks are learned where they are: its targets lie half a pixel off."""

    def forward(
        self,
        features: dict[str, Tensor],
        proposals: list[Tensor],
        image_shapes: list[tuple[int, int]],
        targets: list[dict[str, Tensor]] | None = None,
    ) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
        """As torchvision's; its methods draw the samples, and make boxes and losses."""
        matched: list[Tensor] = []
        if self.training:
            proposals, matched, labels, regression = self.select_training_samples(proposals, targets)
        pooled = self.box_head(self.box_roi_pool(features, proposals, image_shapes))
        logits, deltas = self.box_predictor(pooled)
        if self.training:
            names = ("loss_classifier", "loss_box_reg")
            losses = dict(zip(names, fastrcnn_loss(logits, deltas, labels, regression), strict=True))
            if self.has_mask():
                assert targets is not None
                losses["loss_mask"] = self.mask_loss(features, proposals, image_shapes, matched, labels, targets)
            return [], losses
        found = zip(*self.postprocess_detections(logits, deltas, proposals, image_shapes), strict=True)
        result = [{"boxes": boxes, "scores": scores, "labels": labels} for boxes, scores, labels in found]
        if self.has_mask():
            mask_logits = self.mask_logits(features, [one["boxes"] for one in result], image_shapes)
            masks = maskrcnn_inference(mask_logits, [one["labels"] for one in result])
            for one, of_one in zip(result, masks, strict=True):
                one["masks"] = of_one
        return result, {}

    def mask_logits(
        self, features: dict[str, Tensor], boxes: list[Tensor], image_shapes: list[tuple[int, int]]
    ) -> Tensor:
        """Of all boxes, `(N, classes + 1, 28, 28)`."""
        assert self.mask_roi_pool is not None and self.mask_head is not None and self.mask_predictor is not None
        return self.mask_predictor(self.mask_head(self.mask_roi_pool(features, boxes, image_shapes)))

    def mask_loss(
        self,
        features: dict[str, Tensor],
        proposals: list[Tensor],
        image_shapes: list[tuple[int, int]],
        matched: list[Tensor],
        labels: list[Tensor],
        targets: list[dict[str, Tensor]],
    ) -> Tensor:
        """Mean binary cross-entropy of the masks of the proposals that show an object (arXiv 1703.06870, section 3).

        Args:
            matched: of each proposal its target's place in the picture.
            labels: of each proposal, 0 for the background.
        """
        shown = [label > 0 for label in labels]
        boxes = [proposal[some] for proposal, some in zip(proposals, shown, strict=True)]
        logits = self.mask_logits(features, boxes, image_shapes)
        if len(logits) == 0:
            return logits.sum()
        drawn = []
        for target, match, some, box in zip(targets, matched, shown, boxes, strict=True):
            # Of hundreds of objects only those that were matched become floating point.
            places, own = match[some].unique(return_inverse=True)
            masks = target["masks"][places].to(box.dtype)[:, None]  # (n, 1, H, W)
            regions = torch.cat([own.to(box.dtype)[:, None], box], dim=1)
            drawn.append(roi_align(masks, regions, logits.shape[-1], spatial_scale=1.0, aligned=True)[:, 0])
        classes = torch.cat([label[some] for label, some in zip(labels, shown, strict=True)])
        chosen = logits[torch.arange(len(classes), device=classes.device), classes]  # (N, 28, 28)
        return F.binary_cross_entropy_with_logits(chosen.float(), torch.cat(drawn))


class RCNNHead(nn.Module):
    """Feature maps to boxes, and to masks within them.

    Without the resizing and normalisation of torchvision's models: `swiftformer.image_processing` does both.

    Args:
        in_channels: widths of the maps, the finest first.
        num_labels: classes, without the background.
        masks: whether there is a mask branch.
        config: of its fields those of detection.
    """

    def __init__(self, in_channels: Sequence[int], num_labels: int, masks: bool, config: SwiftFormerConfig) -> None:
        super().__init__()
        width, proposals, strides = config.fpn_channels, config.detection_proposals, config.stage_strides
        self.fpn = FeaturePyramidNetwork(list(in_channels), width, extra_blocks=LastLevelMaxPool())
        with torch.device("cpu"):  # its anchors are neither parameters nor buffers: no later load would fill them
            anchors = LevelAnchors(config.anchor_sizes, config.anchor_ratios, (*strides, 2 * strides[-1]))
        self.rpn = rpn.RegionProposalNetwork(
            anchors,
            RPNHead(width, anchors.num_anchors_per_location()[0]),
            fg_iou_thresh=0.7,
            bg_iou_thresh=0.3,
            batch_size_per_image=256,
            positive_fraction=0.5,
            pre_nms_top_n={"training": 2 * proposals, "testing": proposals},
            post_nms_top_n={"training": 2 * proposals, "testing": proposals},
            nms_thresh=0.7,
        )
        mask_branch: dict[str, Any] = {}
        if masks:
            channels = config.mask_channels
            mask_branch = {
                "mask_roi_pool": RegionPooling(MASK_SIZE, strides),
                "mask_head": MaskRCNNHeads(width, (channels,) * 4, dilation=1),
                "mask_predictor": MaskRCNNPredictor(channels, channels, num_labels + 1),
            }
        self.roi_heads = RegionHeads(
            RegionPooling(BOX_SIZE, strides),
            faster_rcnn.TwoMLPHead(width * BOX_SIZE**2, config.box_channels),
            BoxPredictor(config.box_channels, num_labels + 1),
            fg_iou_thresh=0.5,
            bg_iou_thresh=0.5,
            batch_size_per_image=config.detection_samples,
            positive_fraction=0.25,
            bbox_reg_weights=None,
            score_thresh=SCORE_THRESHOLD,
            nms_thresh=config.detection_nms_threshold,
            detections_per_img=config.detections_per_image,
            **mask_branch,
        )

    def forward(
        self,
        pixel_values: Tensor,
        maps: Sequence[Tensor],
        sizes: list[tuple[int, int]],
        targets: list[dict[str, Tensor]] | None,
    ) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
        """Detections of each picture in eval mode, losses in training.

        Args:
            pixel_values: `(B, C, H, W)`; only their size is looked at.
            maps: `(B, in_channels[i], H_i, W_i)`.
            sizes: height and width of each picture within `pixel_values`.
            targets: in training, of each picture `boxes` `(n, 4)`, x0 y0 x1 y1 in pixels, `labels` `(n,)` from 1 on,
                and `masks` `(n, H, W)` where there is a mask branch.

        Returns:
            Of each picture `boxes` and `labels` in the same terms, `scores` `(n,)`, and `masks` `(n, 1, 28, 28)`,
            probabilities within the box; and the losses by name.
        """
        levels = self.fpn({str(level): x for level, x in enumerate(maps)})
        # Anchors and coordinates take the type of the levels.
        levels = {name: x.float() if x.dtype in HALF else x for name, x in levels.items()}
        device, dtype = pixel_values.device.type, next(self.parameters()).dtype
        with torch.autocast(device, dtype) if dtype in HALF else nullcontext():  # layers of half take the levels
            proposals, losses = self.rpn(ImageList(pixel_values, sizes), levels, targets)
            detections, more = self.roi_heads(levels, proposals, sizes, targets)
        return detections, losses | more
