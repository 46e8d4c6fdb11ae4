"""SwiftFormer: train, fine-tune, evaluate, convert and run the efficient additive attention vision model.

Names are imported on first use, so that `import swiftformer` is quick and needs no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from swiftformer.attention import EfficientAdditiveAttention
    from swiftformer.checkpoints import load, save
    from swiftformer.config import SwiftFormerConfig
    from swiftformer.deploy import DeployModel, fuse
    from swiftformer.detection import SwiftFormerForInstanceSegmentation, SwiftFormerForObjectDetection
    from swiftformer.detection_inference import post_process_instance_segmentation, post_process_object_detection
    from swiftformer.growth import grow
    from swiftformer.hf import (
        SwiftFormerBackbone,
        SwiftFormerForImageClassification,
        SwiftFormerForImageClassificationWithTeacher,
        SwiftFormerModel,
        SwiftFormerPreTrainedModel,
        register,
    )
    from swiftformer.image_processing import Preprocessing
    from swiftformer.images import ImageError, open_image
    from swiftformer.load_report import LoadReport
    from swiftformer.locate import CheckpointError
    from swiftformer.normalization import fold_normalization
    from swiftformer.predict import classify
    from swiftformer.predict_detection import detect
    from swiftformer.predict_segmentation import segment
    from swiftformer.real_time_detection import SwiftFormerForRealTimeDetection
    from swiftformer.segmentation import SwiftFormerForSemanticSegmentation
    from swiftformer.segmentation_inference import post_process_semantic_segmentation, segment_logits
    from swiftformer.variants import VARIANTS

_MODULES = {
    "attention": ("EfficientAdditiveAttention",),
    "checkpoints": ("load", "save"),
    "config": ("SwiftFormerConfig",),
    "deploy": ("DeployModel", "fuse"),
    "detection": ("SwiftFormerForInstanceSegmentation", "SwiftFormerForObjectDetection"),
    "detection_inference": ("post_process_instance_segmentation", "post_process_object_detection"),
    "growth": ("grow",),
    "hf": (
        "SwiftFormerBackbone",
        "SwiftFormerForImageClassification",
        "SwiftFormerForImageClassificationWithTeacher",
        "SwiftFormerModel",
        "SwiftFormerPreTrainedModel",
        "register",
    ),
    "image_processing": ("Preprocessing",),
    "images": ("ImageError", "open_image"),
    "load_report": ("LoadReport",),
    "locate": ("CheckpointError",),
    "normalization": ("fold_normalization",),
    "predict": ("classify",),
    "predict_detection": ("detect",),
    "predict_segmentation": ("segment",),
    "real_time_detection": ("SwiftFormerForRealTimeDetection",),
    "segmentation": ("SwiftFormerForSemanticSegmentation",),
    "segmentation_inference": ("post_process_semantic_segmentation", "segment_logits"),
    "variants": ("VARIANTS",),
}
_PLACES = {name: module for module, names in _MODULES.items() for name in names}

__all__ = [
    "VARIANTS",
    "CheckpointError",
    "DeployModel",
    "EfficientAdditiveAttention",
    "ImageError",
    "LoadReport",
    "Preprocessing",
    "SwiftFormerBackbone",
    "SwiftFormerConfig",
    "SwiftFormerForImageClassification",
    "SwiftFormerForImageClassificationWithTeacher",
    "SwiftFormerForInstanceSegmentation",
    "SwiftFormerForObjectDetection",
    "SwiftFormerForRealTimeDetection",
    "SwiftFormerForSemanticSegmentation",
    "SwiftFormerModel",
    "SwiftFormerPreTrainedModel",
    "__version__",
    "classify",
    "detect",
    "fold_normalization",
    "fuse",
    "grow",
    "load",
    "open_image",
    "post_process_instance_segmentation",
    "post_process_object_detection",
    "post_process_semantic_segmentation",
    "register",
    "save",
    "segment",
    "segment_logits",
]


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module 'swiftformer' has no attribute {name!r}")
    return getattr(import_module(f"swiftformer.{_PLACES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
