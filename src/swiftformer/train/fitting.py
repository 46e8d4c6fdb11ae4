"""What a recipe takes from the checkpoint, the data and the processor, where a person does not say."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeVar

from swiftformer.train.recipe import Recipe, TrainingRecipe
from swiftformer.train.run_folder import RECIPE_FILE, stored_fields

logger = logging.getLogger(__name__)
FEW = 320  # training images; of fewer, batches of 32 make too few updates for a new head
FOR_FEW = {"batch_size": 8, "lr": 1e-3}

AnyRecipe = TypeVar("AnyRecipe", bound=TrainingRecipe)


def fitted(recipe: Recipe, settings: Iterable[str], model: str | None, images: int, run: Path | None = None) -> Recipe:
    """A recipe with the checkpoint's image size and, for few images, small batches and a higher learning rate.

    Args:
        settings: `key=value` that a person gave; these keys stay.
        model: reference of the checkpoint.
        images: to train on.
        run: folder of a run that is to be resumed: then its own values are taken.

    Raises:
        CheckpointError: there is no such checkpoint.
    """
    given = {setting.partition("=")[0] for setting in settings}
    if run is not None and (run / RECIPE_FILE).exists():
        known = stored_fields(run)
        return _changed(recipe, {key: known[key] for key in ("image_size", *FOR_FEW) if key in known}, given)
    changes: dict[str, Any] = {}
    if model is not None and (size := _image_size(model)):
        changes["image_size"] = size
    if images < FEW:
        changes |= FOR_FEW
    chosen = _changed(recipe, changes, given)
    told = [f"{key}={value}" for key, value in changes.items() if getattr(recipe, key) != getattr(chosen, key)]
    if told:
        logger.info("for this checkpoint and %d training images: %s; --set decides otherwise", images, ", ".join(told))
    return chosen


def for_processor(recipe: AnyRecipe, settings: Iterable[str], device: str | None, run: Path | None = None) -> AnyRecipe:
    """In float32 or fp16 what a recipe does in bf16, where that is slow: a CPU or a GPU without instructions for it.

    Args:
        settings, run: as of `fitted`.
        device: to train on; None as in `select_device`.

    Raises:
        ValueError: no such device.
    """
    from swiftformer.device import on_cpu

    given = {setting.partition("=")[0] for setting in settings}
    if run is not None and (run / RECIPE_FILE).exists():
        known = stored_fields(run)
        return _changed(recipe, {key: known[key] for key in ("precision",) if key in known}, given)
    if recipe.precision != "bf16" or "precision" in given:
        return recipe
    if on_cpu(device):
        quick, other, where = _has_bf16(), "fp32", "processor"
    else:
        quick, other, where = _gpu_has_bf16(device), "fp16", "GPU"
    if quick:
        return recipe
    logger.info("bfloat16 is slow on this %s: precision=%s; --set decides otherwise", where, other)
    return _changed(recipe, {"precision": other}, given)


def _has_bf16() -> bool:
    """Whether oneDNN computes bfloat16 on this CPU otherwise than number by number."""
    import torch

    return torch.backends.mkldnn.is_available() and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def _gpu_has_bf16(device: str | None) -> bool:
    """Whether an NVIDIA GPU does not only emulate bfloat16, as those before Ampere do. Of other devices True."""
    import torch

    if not torch.cuda.is_available() or not (device or "cuda").startswith("cuda"):
        return True
    return torch.cuda.get_device_capability(device or "cuda") >= (8, 0)


def _changed(recipe: AnyRecipe, changes: dict[str, Any], given: set[str]) -> AnyRecipe:
    return dataclasses.replace(recipe, **{key: value for key, value in changes.items() if key not in given})


def _image_size(model: str) -> int | None:
    """Side of the square images that a checkpoint of a classifier wants, where its files tell."""
    from swiftformer.checkpoints import read_state_dict
    from swiftformer.locate import locate

    located = locate(model)
    if located.path.is_file():  # which has notes where this package wrote it
        located, _, _ = read_state_dict(located, ema=False)
    if located.preprocessing is None or located.task != "classification":
        return None
    height, width = located.preprocessing.size
    return height if height == width else None
