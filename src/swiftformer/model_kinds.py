"""What the models of each task are made of: their classes, and which keys of a state dict are whose."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

from swiftformer.convert import DETECTION_KEYS, HEAD_KEYS, SEGMENTATION_KEYS

Task = Literal["classification", "segmentation", "detection", "instances", "backbone"]

MASK_KEYS = f"{DETECTION_KEYS}roi_heads.mask_"
BOX_PREDICTOR = f"{DETECTION_KEYS}roi_heads.box_predictor."
REAL_TIME = "real-time detection"  # a kind of model for the task of detection
REAL_TIME_KEYS = f"{DETECTION_KEYS}model."
RCNN_KEYS = tuple(f"{DETECTION_KEYS}{part}." for part in ("fpn", "rpn", "roi_heads"))
# The layers that know the classes, of each kind of model, the tensor that counts them, and how many it counts besides.
CLASSIFIERS: dict[str, tuple[tuple[str, ...], str, int]] = {
    "classification": (("head.", "dist_head."), "head.weight", 0),
    "segmentation": (("decode_head.classifier.",), "decode_head.classifier.weight", 0),
    "detection": ((BOX_PREDICTOR,), f"{BOX_PREDICTOR}cls_score.weight", 1),
    "instances": ((BOX_PREDICTOR, f"{MASK_KEYS}predictor."), f"{BOX_PREDICTOR}cls_score.weight", 1),
    REAL_TIME: (
        tuple(
            f"{REAL_TIME_KEYS}{part}." for part in ("enc_score_head", "decoder.class_embed", "denoising_class_embed")
        ),
        f"{REAL_TIME_KEYS}enc_score_head.weight",
        0,
    ),
}
# What a model of each task has besides stem and stages.
PARTS: dict[str, tuple[str, ...]] = {
    "classification": HEAD_KEYS,
    "segmentation": ("hidden_states_norms.", SEGMENTATION_KEYS),
    "detection": ("hidden_states_norms.", DETECTION_KEYS),
    "instances": ("hidden_states_norms.", DETECTION_KEYS),
    "backbone": ("hidden_states_norms.",),
}


def held_task(keys: Iterable[str]) -> Task:
    """What the model does whose keys these are."""
    keys = set(keys)
    if any(key.startswith(SEGMENTATION_KEYS) for key in keys):
        return "segmentation"
    if any(key.startswith(DETECTION_KEYS) for key in keys):
        return "instances" if any(key.startswith(MASK_KEYS) for key in keys) else "detection"
    has_norms = any(key.startswith("hidden_states_norms.") for key in keys)
    return "backbone" if has_norms and "head.weight" not in keys else "classification"


def held_detector(keys: Iterable[str]) -> str:
    """The `detector` of `SwiftFormerConfig` whose keys these are, if they are any's."""
    return "d-fine" if any(key.startswith(REAL_TIME_KEYS) for key in keys) else "rcnn"


def kind_of(task: Task, detector: str) -> str:
    """The task, but for detection the kind of its model.

    Raises:
        ValueError: a detector that does not give masks, for instances.
    """
    if task == "instances" and detector != "rcnn":
        raise ValueError(f"detector: expected rcnn for instances, found {detector!r}")
    return REAL_TIME if task == "detection" and detector == "d-fine" else task


def model_class(task: Task, detector: str = "rcnn") -> Any:
    """Of a task, but for backbones.

    Args:
        detector: of `SwiftFormerConfig`.
    """
    if kind_of(task, detector) == REAL_TIME:
        from swiftformer.real_time_detection import SwiftFormerForRealTimeDetection

        return SwiftFormerForRealTimeDetection
    if task == "classification":
        from swiftformer.hf import SwiftFormerForImageClassification

        return SwiftFormerForImageClassification
    if task == "segmentation":
        from swiftformer.segmentation import SwiftFormerForSemanticSegmentation

        return SwiftFormerForSemanticSegmentation
    from swiftformer.detection import SwiftFormerForInstanceSegmentation, SwiftFormerForObjectDetection

    return SwiftFormerForInstanceSegmentation if task == "instances" else SwiftFormerForObjectDetection
