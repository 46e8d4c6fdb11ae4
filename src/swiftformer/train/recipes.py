"""Training recipes: functions that return a frozen recipe, and the overrides that the command line gives."""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Callable, Iterable
from typing import Any, ClassVar, Literal

from swiftformer.train.dense_recipe import DetectionRecipe, InstanceRecipe, SegmentationRecipe
from swiftformer.train.recipe import Recipe, TrainingRecipe

__all__ = [
    "RECIPES",
    "DetectionRecipe",
    "InstanceRecipe",
    "Recipe",
    "SegmentationRecipe",
    "TrainingRecipe",
    "get_recipe",
]


def paper_xs() -> Recipe:
    """ImageNet-1k as in the paper and the authors' code, for XS: no RandAugment, no Mixup, no CutMix.

    swiftformer train --data imagenet --variant xs --recipe paper_xs

    The learning rate is that of the authors' code (2e-3; the paper's text says 1e-3). Other than there, it follows
    every update instead of every epoch, clipping leaves out the heads, as the paper that proposed it does, and products
    are in bf16: `--set precision=fp32` is as the authors trained. Published: 75.7% top-1 after about 36 hours on eight
    A100; not run by this project.
    """
    return Recipe(
        epochs=300,
        warmup_epochs=5,
        batch_size=128,
        total_batch_size=2048,
        lr=2e-3,
        warmup_lr=1e-6,
        min_lr=1e-5,
        weight_decay=0.025,
        optimizer_eps=1e-8,
        clip_agc=0.01,
        ema_decay=0.99996,
        ema_warmup=False,
        image_size=224,
        crop_pct=0.875,
        color_jitter=0.4,
        interpolation="bicubic",
        random_erasing=0.25,
        repeated_augmentation=3,
        label_smoothing=0.1,
        distillation="hard",
        distillation_alpha=0.5,
        distillation_tau=1.0,
    )


def paper_s() -> Recipe:
    """As `paper_xs`, with RandAugment. Published for S: 78.5% top-1; not run by this project."""
    return dataclasses.replace(paper_xs(), auto_augment="rand-m9-mstd0.5-inc1")


def paper_l1() -> Recipe:
    """As `paper_s`, with Mixup and CutMix. Published for L1: 80.9% top-1; not run by this project."""
    return dataclasses.replace(paper_s(), mixup=0.8, cutmix=1.0, mix_prob=1.0, mix_switch_prob=0.5)


def paper_l3() -> Recipe:
    """As `paper_l1`. Published for L3: 83.0% top-1; not run by this project."""
    return paper_l1()


def small_images() -> Recipe:
    """From scratch on small pictures (CIFAR and the like), at 64 pixels. On a GPU, set `epochs=300`.

    swiftformer train --data cifar10 --variant xs --recipe small_images

    The bundled model's card tells hardware, hours and accuracy.
    """
    return Recipe(
        epochs=48,
        warmup_epochs=2,
        batch_size=128,
        lr=2e-3,
        weight_decay=0.05,
        ema_decay=0.999,
        image_size=64,
        progressive_sizes=(32, 48),
        crop_scale=(0.45, 1.0),
        auto_augment="rand-m5-mstd0.5-inc1",
        random_erasing=0.1,
        evaluate_every=4,
    )


def finetune() -> Recipe:
    """From a checkpoint to one's own classes.

    swiftformer train --data FOLDER --model CHECKPOINT --recipe finetune

    On the command line, image size, batch size and learning rate follow checkpoint and data: see `train/fitting.py`.
    """
    return Recipe(
        epochs=30,
        warmup_epochs=3,
        batch_size=32,
        lr=2e-4,
        min_lr=1e-6,
        ema_decay=0.999,
        crop_scale=(0.35, 1.0),
        auto_augment="rand-m7-mstd0.5-inc1",
        crop_pct=0.875,
    )


def paper_ade20k_semantic_fpn() -> SegmentationRecipe:
    """ADE20K as in the paper: Semantic FPN, 512 pixels, batch 32, AdamW from 2e-4, poly schedule.

    swiftformer train --data ADEChallengeData2016 --model CHECKPOINT --recipe paper_ade20k_semantic_fpn

    64 epochs of 20,210 pictures are 40,384 updates, 1 % more than the paper's 40,000. Published: 41.4 mIoU with L1,
    43.9 with L3, from ImageNet weights; not run by this project. The weight decay is that of the recipe's origin
    (arXiv 2102.12122).
    """
    return SegmentationRecipe(
        epochs=64,
        warmup_epochs=0,
        batch_size=4,
        total_batch_size=32,
        lr=2e-4,
        min_lr=0.0,
        schedule="poly",
        weight_decay=1e-4,
        clip_agc=0.0,
        ema_decay=0.0,
        image_size=512,
        short_side=512,
        evaluate_every=8,
    )


def small_segmentation() -> SegmentationRecipe:
    """A few hundred labelled pictures on a modest machine: narrow head, averaged weights.

    swiftformer train --data camvid --model swiftformer-xs-cifar10 --recipe small_segmentation
    """
    return SegmentationRecipe(
        epochs=100,
        warmup_epochs=2,
        batch_size=8,
        lr=1e-3,
        min_lr=1e-5,
        weight_decay=0.05,
        ema_decay=0.995,
        image_size=256,
        fpn_channels=96,
        head_channels=96,
        evaluate_every=5,
    )


def paper_coco_mask_rcnn() -> InstanceRecipe:
    """COCO as in the paper: Mask R-CNN with a feature pyramid, 12 epochs, 1333x800, batch 32, AdamW from 2e-4.

    swiftformer train --data coco --model CHECKPOINT --recipe paper_coco_mask_rcnn

    Published: box AP 41.2 and mask AP 38.1 with L1, 42.7 and 39.1 with L3, from ImageNet weights; not run by this
    project. What the paper leaves open is that of the recipe's origin (arXiv 2102.12122): steps behind epochs 8 and
    11, and weight decay.
    """
    return InstanceRecipe(
        epochs=12,
        warmup_epochs=0,
        batch_size=4,
        total_batch_size=32,
        lr=2e-4,
        schedule="multistep",
        milestones=(8, 11),
        weight_decay=1e-4,
        clip_agc=0.0,
        ema_decay=0.0,
        image_size=800,
        short_side=800,
        longest=1333,
        short_sides=(800,),
        color_distortion=0.0,
    )


def small_detection() -> DetectionRecipe:
    """A few hundred pictures with boxes on a modest machine: narrow head, averaged weights.

    swiftformer train --data bccd --model swiftformer-xs-cifar10 --recipe small_detection
    """
    return DetectionRecipe(**SMALL_DETECTION)


def small_real_time_detection() -> DetectionRecipe:
    """As `small_detection`, for real time: D-FINE, which learns more slowly.

    swiftformer train --data bccd --model swiftformer-xs-cifar10 --recipe small_real_time_detection
    """
    return DetectionRecipe(**SMALL_DETECTION | REAL_TIME)


def small_instances() -> InstanceRecipe:
    """As `small_detection`, with masks.

    swiftformer train --data nuclei --model swiftformer-xs-cifar10 --recipe small_instances
    """
    return InstanceRecipe(**SMALL_DETECTION, mask_channels=96)


SMALL_DETECTION: dict[str, Any] = {
    "epochs": 60,
    "warmup_epochs": 2,
    "batch_size": 4,
    "lr": 7e-4,
    "min_lr": 1e-5,
    "weight_decay": 0.05,
    "clip_agc": 0.02,
    "ema_decay": 0.995,
    "image_size": 256,
    "short_side": 240,
    "longest": 1333,
    "scale": (0.7, 1.4),
    "color_distortion": 0.5,
    "fpn_channels": 96,
    "box_channels": 256,
    "anchor_sizes": (16, 32, 64, 128, 256),
    "proposals": 300,
    "samples": 128,
    "evaluate_every": 5,
}
REAL_TIME: dict[str, Any] = {
    "epochs": 150,
    "warmup_epochs": 5,
    "detector": "d-fine",
    "detr_channels": 128,
    "detr_ffn_channels": 512,
    "detr_queries": 100,
    "evaluate_every": 10,
}


def smoke() -> Recipe:
    """Two epochs at 32 pixels, with a few hundred pictures seconds: do data, model and machine work together?"""
    return Recipe(epochs=2, warmup_epochs=1, batch_size=16, image_size=32, ema_decay=0.9, precision="fp32")


def smoke_segmentation() -> SegmentationRecipe:
    """As `smoke`, for segmentation."""
    return SegmentationRecipe(
        epochs=2,
        warmup_epochs=1,
        batch_size=2,
        image_size=64,
        ema_decay=0.9,
        precision="fp32",
        fpn_channels=16,
        head_channels=16,
    )


def smoke_detection() -> DetectionRecipe:
    """As `smoke`, for detection."""
    return DetectionRecipe(**SMOKE_DETECTION)


def smoke_instances() -> InstanceRecipe:
    """As `smoke`, for instance segmentation."""
    return InstanceRecipe(**SMOKE_DETECTION, mask_channels=16)


SMOKE_DETECTION = SMALL_DETECTION | {
    "epochs": 2,
    "warmup_epochs": 1,
    "batch_size": 2,
    "ema_decay": 0.9,
    "precision": "fp32",
    "image_size": 64,
    "short_side": 64,
    "longest": 128,
    "fpn_channels": 16,
    "box_channels": 16,
    "anchor_sizes": (8, 16, 32, 64, 128),
    "proposals": 50,
    "samples": 16,
    "evaluate_every": 1,
}


RECIPES: dict[str, Callable[[], TrainingRecipe]] = {
    "paper_xs": paper_xs,
    "paper_s": paper_s,
    "paper_l1": paper_l1,
    "paper_l3": paper_l3,
    "small_images": small_images,
    "finetune": finetune,
    "smoke": smoke,
    "paper_ade20k_semantic_fpn": paper_ade20k_semantic_fpn,
    "small_segmentation": small_segmentation,
    "smoke_segmentation": smoke_segmentation,
    "paper_coco_mask_rcnn": paper_coco_mask_rcnn,
    "small_detection": small_detection,
    "small_real_time_detection": small_real_time_detection,
    "small_instances": small_instances,
    "smoke_detection": smoke_detection,
    "smoke_instances": smoke_instances,
}


def get_recipe(name: str, settings: Iterable[str] = ()) -> Any:
    """A recipe by name with overrides.

    Args:
        name: a key of `RECIPES`.
        settings: `key=value`, each key a field of the recipe; tuples are written `0.5,1`. Epochs that are no more than
            the recipe warms up for are warmed up for half of them, unless `warmup_epochs` says otherwise.

    Returns:
        The recipe of the task that it is for.

    Raises:
        ValueError: unknown recipe or field, or a value of another type.
    """
    if name not in RECIPES:
        raise ValueError(f"unknown recipe {name!r}: expected one of {', '.join(RECIPES)}")
    recipe = RECIPES[name]()
    hints = typing.get_type_hints(type(recipe))
    types_ = {key: kind for key, kind in hints.items() if typing.get_origin(kind) is not ClassVar}
    changes = {}
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals or key not in types_:
            raise ValueError(f"expected key=value with a key of {', '.join(types_)}; found {setting!r}")
        try:
            changes[key] = _parse(text, types_[key])
        except ValueError:
            kind = types_[key]
            expected = str(kind).replace("typing.", "") if typing.get_origin(kind) else kind.__name__
            raise ValueError(f"{key}: expected {expected}, found {text!r}") from None
    if "warmup_epochs" not in changes and changes.get("epochs", math.inf) <= recipe.warmup_epochs:
        changes["warmup_epochs"] = changes["epochs"] // 2
    return dataclasses.replace(recipe, **changes)


def _parse(text: str, kind: Any) -> Any:
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        if text not in args:
            raise ValueError(text)
        return text
    if origin is types.UnionType:  # X | None
        return None if text.lower() == "none" else _parse(text, args[0])
    if origin is tuple:
        values = [value for value in text.strip("()[]").split(",") if value.strip()]
        if args[-1] is Ellipsis:
            return tuple(_parse(value.strip(), args[0]) for value in values)
        if len(values) != len(args):
            raise ValueError(text)
        return tuple(_parse(value.strip(), arg) for value, arg in zip(values, args, strict=True))
    if kind is bool:
        if text.lower() not in ("true", "false"):
            raise ValueError(text)
        return text.lower() == "true"
    return kind(text)
