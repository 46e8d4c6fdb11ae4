"""Recipes of detection, instance segmentation and semantic segmentation: what they add to `TrainingRecipe`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from swiftformer.image_processing import Preprocessing
from swiftformer.train.recipe import TrainingRecipe


@dataclass(frozen=True)
class DetectionRecipe(TrainingRecipe):
    """Object detection with Faster R-CNN, or in real time with D-FINE.

    Attributes:
        short_side: that pictures are resized to, in training before `scale`; 0 leaves them as they are.
        longest: limit of the long side where a picture is resized whole, as in evaluation; 0 for none.
        scale: range of the factor by which a picture is resized before a square of `image_size` is cut out of it.
        short_sides: instead of squares, train on whole pictures with one of these short sides, none for squares.
        vertical_flip: probability.
        color_distortion: strength of random brightness, contrast, saturation and hue; 0 switches it off.
        min_visible: share of an object that has to be in a square to be learned.
        frozen_stages: stages of the backbone that do not learn, with the stem.
        frozen_batch_norm: keep the backbone's BatchNorms as they were.
        fpn_channels, box_channels: widths of the feature pyramid, and of the layers behind it that class a region.
        anchor_sizes, anchor_ratios: of the boxes that proposals begin with; a size for each of five levels.
        proposals: regions that are looked at; in training twice as many.
        samples: of these that are learned from, per picture.
        nms_threshold: overlap from which on the lower score of two boxes of a class is dropped.
        detections_per_image: at most.
        detector: `rcnn`, which the fields from `fpn_channels` to `nms_threshold` belong to, or `d-fine`.
        detr_channels, detr_ffn_channels: width of D-FINE, and that of its hidden layers.
        detr_layers, detr_queries: layers of its decoder, and objects that it can see at once.
    """

    task = "detect"

    short_side: int = 800
    longest: int = 1333
    scale: tuple[float, float] = (0.5, 1.5)
    short_sides: tuple[int, ...] = ()
    vertical_flip: float = 0.0
    color_distortion: float = 1.0
    min_visible: float = 0.25
    frozen_stages: int = 0
    frozen_batch_norm: bool = False
    fpn_channels: int = 256
    box_channels: int = 1024
    anchor_sizes: tuple[int, ...] = (32, 64, 128, 256, 512)
    anchor_ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
    proposals: int = 1000
    samples: int = 512
    nms_threshold: float = 0.5
    detections_per_image: int = 100
    detector: Literal["rcnn", "d-fine"] = "rcnn"
    detr_channels: int = 256
    detr_ffn_channels: int = 1024
    detr_layers: int = 3
    detr_queries: int = 300

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.scale[0] <= self.scale[1]:
            raise ValueError(f"expected scale as two positive factors, the smaller first, found {self.scale}")
        if 0 < self.longest < max(self.short_side, *self.short_sides, 0):
            raise ValueError(
                f"expected longest of 0 or at least short_side and short_sides, found longest {self.longest}, "
                f"short_side {self.short_side} and short_sides {self.short_sides}"
            )
        if not 0 <= self.frozen_stages <= 4 or min(self.short_side, self.longest) < 0:
            raise ValueError(
                f"expected frozen_stages from 0 to 4, and short_side and longest of at least 0, "
                f"found {self.frozen_stages}, {self.short_side}, {self.longest}"
            )
        if self.short_sides and min(self.short_sides) < 32:
            raise ValueError(f"expected short_sides of at least 32, found {self.short_sides}")
        if len(self.anchor_sizes) != 5:
            raise ValueError(f"expected five anchor_sizes, one for each level, found {self.anchor_sizes}")
        if self.detector != "rcnn" and self.task == "instances":
            raise ValueError(f"expected detector rcnn for instances, found {self.detector}")
        if self.detr_channels % 8 or min(self.detr_channels, self.detr_layers, self.detr_queries) < 1:
            raise ValueError(
                f"expected detr_channels as a multiple of 8, and detr_layers and detr_queries of at least 1, "
                f"found {self.detr_channels}, {self.detr_layers}, {self.detr_queries}"
            )

    @property
    def preprocessing(self) -> Preprocessing:
        """How the trained model wants its images: whole, at `short_side`."""
        return Preprocessing(
            size=(self.image_size, self.image_size),
            resize="whole",
            resize_to=self.short_side or None,
            longest=(self.longest or None) if self.short_side else None,
            interpolation="bilinear",
            mean=self.mean,
            std=self.std,
        )

    @property
    def network_fields(self) -> dict[str, Any]:
        """Those of `SwiftFormerConfig` that this recipe decides."""
        return {
            "image_size": self.image_size,
            "drop_path_rate": self.drop_path_rate,
            "frozen_stages": self.frozen_stages,
            "frozen_batch_norm": self.frozen_batch_norm,
            "fpn_channels": self.fpn_channels,
            "box_channels": self.box_channels,
            "anchor_sizes": list(self.anchor_sizes),
            "anchor_ratios": list(self.anchor_ratios),
            "detection_proposals": self.proposals,
            "detection_samples": self.samples,
            "detection_nms_threshold": self.nms_threshold,
            "detections_per_image": self.detections_per_image,
            "detector": self.detector,
            "detr_channels": self.detr_channels,
            "detr_ffn_channels": self.detr_ffn_channels,
            "detr_layers": self.detr_layers,
            "detr_queries": self.detr_queries,
        }


@dataclass(frozen=True)
class InstanceRecipe(DetectionRecipe):
    """Instance segmentation with Mask R-CNN.

    Attributes:
        mask_channels: width of the layers that draw an object's mask.
    """

    task = "instances"

    mask_channels: int = 256

    @property
    def network_fields(self) -> dict[str, Any]:
        """As those of detection."""
        return super().network_fields | {"mask_channels": self.mask_channels}


@dataclass(frozen=True)
class SegmentationRecipe(TrainingRecipe):
    """Semantic segmentation.

    Attributes:
        scale: range of the factor by which a picture is resized before a square of `image_size` is cut out of it.
        color_distortion: strength of random brightness, contrast, saturation and hue; 0 switches it off.
        class_weights: `balanced` weighs the loss by the inverse square root of how often a class occurs.
        short_side: pictures are resized to it, in training before `scale`; 0 leaves them as they are.
        frozen_stages: stages of the backbone that do not learn, with the stem.
        frozen_batch_norm: keep the backbone's BatchNorms as they were.
        fpn_channels, head_channels: widths of the feature pyramid and of the head.
        head_dropout: before the classifier.
    """

    task = "segment"

    scale: tuple[float, float] = (0.5, 2.0)
    color_distortion: float = 1.0
    class_weights: Literal["none", "balanced"] = "none"
    short_side: int = 0
    frozen_stages: int = 0
    frozen_batch_norm: bool = False
    fpn_channels: int = 256
    head_channels: int = 128
    head_dropout: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.scale[0] <= self.scale[1]:
            raise ValueError(f"expected scale as two positive factors, the smaller first, found {self.scale}")
        if min(self.fpn_channels, self.head_channels) < 1 or not 0 <= self.head_dropout < 1:
            raise ValueError(
                f"expected fpn_channels and head_channels of at least 1 and head_dropout in [0, 1), "
                f"found {self.fpn_channels}, {self.head_channels}, {self.head_dropout}"
            )
        if not 0 <= self.frozen_stages <= 4 or self.short_side < 0:
            raise ValueError(
                f"expected frozen_stages from 0 to 4 and a short_side of at least 0, "
                f"found {self.frozen_stages} and {self.short_side}"
            )

    @property
    def preprocessing(self) -> Preprocessing:
        """How the trained model wants its images: whole, at `short_side`."""
        size = (self.image_size, self.image_size)
        like = Preprocessing(size=size, interpolation="bilinear", mean=self.mean, std=self.std)
        return like.uncropped(self.short_side)
