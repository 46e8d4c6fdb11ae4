"""Object detection and instance segmentation: SwiftFormer's four maps through Faster or Mask R-CNN, as in table 3 of
the paper."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import box_convert
from transformers import initialization as init
from transformers.modeling_outputs import ModelOutput

from swiftformer.config import SwiftFormerConfig
from swiftformer.heads.rcnn import MASK_SIZE, RCNNHead
from swiftformer.hf import SwiftFormerBackbone


@dataclass
class SwiftFormerDetectionOutput(ModelOutput):
    """What is seen in pictures, `config.detections_per_image` (D) places for each, filled up with a score of 0.

    Attributes:
        loss: in training.
        loss_dict: its parts.
        scores: `(B, D)`, the highest first.
        labels: `(B, D)` class indices.
        boxes: `(B, D, 4)`: x and y of the centre, width and height, as shares of the input.
        masks: `(B, D, 28, 28)`, of instance segmentation: probabilities at the points of a grid over the box.
        logits, pred_boxes: the same for transformers' `post_process_object_detection`: `(B, D, num_labels + 1)`, the
            last for no object, and `(B, D, 4)`; of D-FINE `(B, Q, num_labels)` and `(B, Q, 4)` of its Q queries.
        hidden_states: feature maps of the encoder, on request.
    """

    loss: Tensor | None = None
    loss_dict: dict[str, Tensor] | None = None
    scores: Tensor | None = None
    labels: Tensor | None = None
    boxes: Tensor | None = None
    masks: Tensor | None = None
    logits: Tensor | None = None
    pred_boxes: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None


class SwiftFormerForObjectDetection(SwiftFormerBackbone):
    """A backbone that returns all its stages, and Faster R-CNN with a feature pyramid behind it.

    Keys: those of the backbone, so that classifiers load into it, and `detection_head.*`. `config.out_features` is
    every stage, whatever it was.

    Raises:
        ValueError: no class, another detector, not one size of anchors for each of the pyramid's levels, one more than
            stages, or a `down_stride` other than 2.
    """

    with_masks: ClassVar[bool] = False
    detector: ClassVar[str | None] = "rcnn"

    def __init__(self, config: SwiftFormerConfig) -> None:
        num_labels = config.num_labels or 0
        if num_labels < 1:
            raise ValueError(f"expected at least 1 class, without the background, found {num_labels}")
        if config.detector != "rcnn":
            raise ValueError(
                f"expected the detector rcnn, found {config.detector!r}; SwiftFormerForRealTimeDetection and "
                f"swiftformer.load take it"
            )
        if len(config.anchor_sizes) != len(config.depths) + 1:
            raise ValueError(
                f"expected {len(config.depths) + 1} anchor_sizes, one for each stage and one more, "
                f"found {list(config.anchor_sizes)}"
            )
        if config.down_stride != 2:
            raise ValueError(f"expected a down_stride of 2 for a pyramid of maps, found {config.down_stride}")
        config = copy.deepcopy(config)
        config.out_indices = list(range(1, len(config.depths) + 1))
        super().__init__(config)
        self.num_labels: int = num_labels
        self.detection_head = RCNNHead(self.channels, num_labels, self.with_masks, config)
        self.post_init()

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """As transformers'; with the `config` of a D-FINE, which AutoModelForObjectDetection gives, that one."""
        if cls is SwiftFormerForObjectDetection and getattr(kwargs.get("config"), "detector", "rcnn") == "d-fine":
            from swiftformer.real_time_detection import SwiftFormerForRealTimeDetection

            return SwiftFormerForRealTimeDetection.from_pretrained(*args, **kwargs)
        return super().from_pretrained(*args, **kwargs)

    @classmethod
    def _from_config(cls, config: SwiftFormerConfig, **kwargs: Any) -> Any:
        """As `from_pretrained`, of AutoModelForObjectDetection's `from_config`."""
        if cls is SwiftFormerForObjectDetection and config.detector == "d-fine":
            from swiftformer.real_time_detection import SwiftFormerForRealTimeDetection

            return SwiftFormerForRealTimeDetection._from_config(config, **kwargs)
        return super()._from_config(config, **kwargs)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        head = getattr(self, "detection_head", None)  # the backbone is initialised before it is made
        if head is None or not isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
            return
        # As in Detectron2, whose configurations the published results of Mask R-CNN come from.
        predictor = head.roi_heads.box_predictor
        if module is predictor.bbox_pred:
            init.normal_(module.weight, std=0.001)
        elif module is predictor.cls_score or any(module is conv for conv in head.rpn.head.modules()):
            init.normal_(module.weight, std=0.01)
        elif any(module is layer for layer in [*head.fpn.modules(), *head.roi_heads.box_head.modules()]):
            init.kaiming_uniform_(module.weight, a=1)
        elif any(module is layer for layer in head.roi_heads.modules()):  # the mask branch
            init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        else:
            return
        if module.bias is not None:
            init.zeros_(module.bias)

    def forward(  # type: ignore[override]
        self,
        pixel_values: Tensor,
        labels: list[dict[str, Tensor]] | None = None,
        pixel_mask: Tensor | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> tuple | SwiftFormerDetectionOutput:
        """Find objects; in training, their losses.

        Args:
            pixel_values: `(B, num_channels, H, W)`, normalised.
            labels: of each picture, in transformers' convention, `class_labels` `(n,)` from 0 on, `boxes` `(n, 4)`:
                x and y of the centre, width and height, as shares of H and W; and `masks` `(n, H, W)` for instances.
                n may be 0. They count in training, and are not looked at in eval mode.
            pixel_mask: `(B, H, W)`, 1 where a picture is and 0 to its right and below it; by default it fills all.
            output_hidden_states: return all 8 feature maps of the encoder as well.
            return_dict: False for a plain tuple of what there is.

        Returns:
            In training `loss` and `loss_dict`, in eval mode `scores`, `labels`, `boxes` and `masks`.

        Raises:
            ValueError: training without labels, or labels that do not fit the pictures.
        """
        outputs = super().forward(pixel_values, output_hidden_states=output_hidden_states, return_dict=True)
        batch, height, width = pixel_values.shape[0], *pixel_values.shape[2:]
        sizes = [(height, width)] * batch if pixel_mask is None else _sizes(pixel_mask, (batch, height, width))
        targets = self._targets(labels, batch, (height, width)) if self.training else None
        found, losses = self.detection_head(pixel_values, outputs.feature_maps, sizes, targets)  # type: ignore[union-attr]
        output = SwiftFormerDetectionOutput(hidden_states=outputs.hidden_states)  # type: ignore[union-attr]
        if self.training:
            output["loss"], output["loss_dict"] = torch.stack(list(losses.values())).sum(), losses
        else:
            for name, value in self._padded(found, (height, width)).items():
                output[name] = value
        return output if (self.config.return_dict if return_dict is None else return_dict) else output.to_tuple()

    def compile_static_parts(self) -> None:
        """Compile, in place, what depends on the size of the input alone: backbone, pyramid, proposals' layers."""
        for part in (self.swiftformer, self.detection_head.fpn, self.detection_head.rpn.head):
            part.compile(dynamic=False)

    def _targets(
        self, labels: list[dict[str, Tensor]] | None, batch: int, size: tuple[int, int]
    ) -> list[dict[str, Tensor]]:
        """Labels in torchvision's terms: pixels and corners, the background as class 0."""
        height, width = size
        targets = []
        for of_one in check_labels(labels, batch, self.num_labels):
            classes, boxes = of_one["class_labels"], of_one["boxes"].float()
            corners = box_convert(boxes, "cxcywh", "xyxy") * boxes.new_tensor([width, height, width, height])
            target = {"boxes": corners, "labels": classes.long() + 1}
            if self.with_masks:
                masks = of_one.get("masks")
                if masks is None or masks.shape != (len(classes), *size):
                    found = "none" if masks is None else str(tuple(masks.shape))
                    raise ValueError(f"expected masks of shape ({len(classes)}, {height}, {width}), found {found}")
                target["masks"] = masks
            targets.append(target)
        return targets

    def _padded(self, found: list[dict[str, Tensor]], size: tuple[int, int]) -> dict[str, Tensor]:
        places, (height, width) = self.config.detections_per_image, size
        filled: dict[str, list[Tensor]] = {"scores": [], "labels": [], "boxes": []}
        if self.with_masks:
            filled["masks"] = []
        for of_one in found:
            free = places - len(of_one["scores"])
            boxes = of_one["boxes"] / of_one["boxes"].new_tensor([width, height, width, height])
            filled["scores"].append(F.pad(of_one["scores"], (0, free)))
            filled["labels"].append(F.pad(of_one["labels"] - 1, (0, free)))
            filled["boxes"].append(F.pad(box_convert(boxes, "xyxy", "cxcywh"), (0, 0, 0, free)))
            if self.with_masks:
                masks = of_one["masks"].reshape(-1, 2 * MASK_SIZE, 2 * MASK_SIZE)
                filled["masks"].append(F.pad(masks, (0, 0, 0, 0, 0, free)))
        outputs = {name: torch.stack(values) for name, values in filled.items()}
        # The same as chances of each class and of no object, whose softmax DETR's post-processing takes.
        scores, classes = outputs["scores"][..., None], outputs["labels"][..., None]
        chances = torch.cat([scores.new_zeros(*scores.shape[:2], self.num_labels), 1 - scores], dim=2)
        outputs["logits"] = chances.scatter(2, classes, scores).clamp_min(1e-12).log()
        outputs["pred_boxes"] = outputs["boxes"]
        return outputs


class SwiftFormerForInstanceSegmentation(SwiftFormerForObjectDetection):
    """The same with a mask for every object: Mask R-CNN."""

    with_masks = True


def check_labels(labels: list[dict[str, Tensor]] | None, batch: int, num_labels: int) -> list[dict[str, Tensor]]:
    """Classes and boxes of `batch` pictures as they are; ValueError where they cannot be learned from."""
    if labels is None or len(labels) != batch:
        found = "none" if labels is None else str(len(labels))
        raise ValueError(f"expected labels of {batch} pictures to train on, found {found}")
    for of_one in labels:
        if missing := {"class_labels", "boxes"} - set(of_one):
            raise ValueError(f"expected {' and '.join(sorted(missing))} in labels, found {', '.join(of_one) or 'none'}")
        classes, boxes = of_one["class_labels"], of_one["boxes"]
        if boxes.shape != (len(classes), 4):
            raise ValueError(f"expected boxes of shape ({len(classes)}, 4), found {tuple(boxes.shape)}")
    classes, boxes = (torch.cat([of_one[name].flatten() for of_one in labels]) for name in ("class_labels", "boxes"))
    if len(classes):
        smallest = torch.cat([of_one["boxes"][:, 2:].flatten() for of_one in labels]).min()
        ends = classes.min(), classes.max(), boxes.min(), boxes.max(), smallest
        first, last, least, most, side = torch.stack([end.float() for end in ends]).tolist()
        if not 0 <= first <= last < num_labels:
            raise ValueError(f"expected class_labels from 0 to {num_labels - 1}, found {first:.0f} to {last:.0f}")
        if not -0.01 <= least <= most <= 1.01:  # nor NaN
            raise ValueError(f"expected boxes as shares of the picture, from 0 to 1, found {least:g} to {most:g}")
        if not side > 0:
            raise ValueError(f"expected boxes with a width and a height, found one of {side:g}")
    return labels


def _sizes(pixel_mask: Tensor, shape: tuple[int, ...]) -> list[tuple[int, int]]:
    if tuple(pixel_mask.shape) != shape:
        raise ValueError(f"expected a pixel_mask of shape {shape}, found {tuple(pixel_mask.shape)}")
    heights, widths = (pixel_mask.amax(dim=axis).sum(dim=1).tolist() for axis in (2, 1))
    return [(math.ceil(height), math.ceil(width)) for height, width in zip(heights, widths, strict=True)]
