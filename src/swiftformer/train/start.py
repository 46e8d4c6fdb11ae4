"""What a run begins with: batches that can be learned from, or the state of the same run."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

from swiftformer.data.class_names import differences
from swiftformer.locate import WEIGHT_FILES
from swiftformer.train.distributed import Processes
from swiftformer.train.recipe import TrainingRecipe
from swiftformer.train.state import has_state, read_state
from swiftformer.train.tasks import Examples
from swiftformer.variants import variant_of

ONE_PIXEL = 32  # side of the images of which one pixel is left behind all strides
# What a run writes, apart from the log, and what would hide its weights from `swiftformer.load`.
WRITTEN = ("README.md", "metrics.jsonl", "curves.png", "confusion.png", "last", "raw", "tensorboard")
HIDING = ("config.json", *WEIGHT_FILES)


def first_state(
    output: Path,
    recipe: TrainingRecipe,
    train: Examples,
    val: Examples,
    variant: str | None,
    model: str | None,
    resume: bool,
) -> dict[str, Any] | None:
    """The state that a run goes on from; None for a new one, for which there has to be room.

    Raises:
        ValueError: data that no run can learn from, or as of `resumable_state` and `expect_free`.
    """
    expect_two_splits(train, val)
    if resume:
        return resumable_state(output, recipe, train, val, variant, model)
    expect_free(output)
    return None


def expect_free(output: Path) -> None:
    """Before a new run.

    Raises:
        ValueError: the folder holds a run already, or files of something else that the run would write over.
    """
    if has_state(output) or (output / "best").exists():
        raise ValueError(f"{output} holds a run already: choose another folder, or resume it")
    died_early = (output / "recipe.json").exists()  # a run that has no state yet starts again in its folder
    found = [name for name in (*HIDING, *(() if died_early else WRITTEN)) if (output / name).exists()]
    if found:
        raise ValueError(
            f"{output}: expected a folder for the run alone, found {found[0]} in it: choose another folder"
        )


def expect_two_splits(train: Examples, val: Examples) -> None:
    """Different pictures of the same classes.

    Classes that have no names are numbers up to the largest label: of both splits, where one lacks the last of them.

    Raises:
        ValueError: they are not.
    """
    if train.name(0) == val.name(0):
        raise ValueError(f"expected a split to validate on, found the training images again ({train.name(0)})")
    if train.classes == val.classes:
        return
    fewer, more = sorted((train, val), key=lambda source: len(source.classes))
    if more.classes == [str(number) for number in range(len(more.classes))] and (
        fewer.classes == more.classes[: len(fewer.classes)]
    ):
        fewer.classes = more.classes
    else:
        found = differences(train.classes, val.classes, "train", "val")
        raise ValueError(f"expected the same classes in train and val, found {found}")


def expect_agreement(
    processes: Processes,
    output: Path,
    state: dict[str, Any] | None,
    recipe: TrainingRecipe,
    train: Examples,
    val: Examples,
) -> None:
    """What each process has found for itself is the same, or they would wait for each other in different places.

    Raises:
        ValueError: it is not.
    """
    if not processes.agree(0 if state is None else state["epochs"] * 10**10 + state["images"]):
        raise ValueError(f"{output}: expected that all processes see the same states, found different ones")
    known = [dataclasses.asdict(recipe), train.classes, len(train), len(val)]
    digest = hashlib.sha256(json.dumps(known, default=str).encode("utf-8", "surrogateescape")).digest()
    if not processes.agree(int.from_bytes(digest[:7])):
        raise ValueError(
            f"expected the same recipe, classes and number of images in all processes, found {len(train.classes)} "
            f"classes, {len(train)} images to train on and {len(val)} to validate on in number {processes.rank}, and "
            "others elsewhere"
        )


def resumable_state(
    output: Path, recipe: TrainingRecipe, train: Examples, val: Examples, variant: str | None, model: str | None
) -> dict[str, Any]:
    """The newest whole state of a run.

    Args:
        variant, model: what it was started as, where that is said again.

    Raises:
        ValueError: there is none, or it belongs to another recipe, other classes, another number of images, another
            variant or another checkpoint.
    """
    state = read_state(output)
    began = state["origin"]["started_from"] if "origin" in state else model  # which older states do not tell
    if model not in (None, began):
        raise ValueError(
            f"{output} was started from {began or 'random weights'}: expected the same model, or none, found {model}"
        )
    known = variant_of(state["config"]["depths"], state["config"]["embed_dims"])
    if variant is not None and known is not None and variant.lower() != known.name:
        raise ValueError(f"{output} trains {known.name}: expected the same variant, or none, found {variant}")
    # A recipe stored by an older version lacks the newer fields: then their defaults were in force.
    stored, wanted = dataclasses.asdict(type(recipe)()) | state["recipe"], dataclasses.asdict(recipe)
    differing = [f"{k} {stored[k]} -> {v}" for k, v in wanted.items() if stored[k] != v]
    if differing:
        raise ValueError(f"{output} was started with another recipe ({'; '.join(differing)}): resume with the same one")
    labels = state["config"]["id2label"]
    started = [labels[key] for key in sorted(labels, key=int)]
    if started != train.classes:
        found = differences(started, train.classes, "the run", "the data")
        raise ValueError(f"{output}: expected the classes that it was started with, found {found}")
    told = told_of_data(train, val)
    stored_data = told | {key: state[key] for key in told if key in state}  # which states of older versions do not tell
    if stored_data["pictures"] != told["pictures"]:
        numbers = *stored_data["pictures"], *told["pictures"]
        raise ValueError(
            "{0}: expected the {1} training and {2} validation images that it was started with, found {3} and {4}; on "
            "others, start another run from it: --model {0}".format(output, *numbers)
        )
    if stored_data["reduce_zero_label"] != told["reduce_zero_label"]:
        option = "--reduce-zero-label" if stored_data["reduce_zero_label"] else "--no-reduce-zero-label"
        raise ValueError(f"{output}: expected {option} with the same data, as the run was started")
    return state


def told_of_data(train: Examples, val: Examples) -> dict[str, Any]:
    """What must be the same in a run that is resumed, besides the classes."""
    return {"pictures": [len(train), len(val)], "reduce_zero_label": getattr(train, "reduce_zero_label", False)}


def batches_at_once(recipe: TrainingRecipe, world_size: int, images: int) -> tuple[int, int, str]:
    """As `recipe.batches`, fewer at once where there are so few images, and what to tell if that was not asked for.

    Raises:
        ValueError: batches that BatchNorm cannot learn from.
    """
    batch_size, accumulation = recipe.batches(world_size)
    total, share = batch_size * accumulation * world_size, images // world_size
    told = ""
    if recipe.total_batch_size is None and 2 <= share < batch_size:
        fitting = share - share % 2  # which Mixup needs
        told = f"{images} training images: taking {fitting} at once instead of {batch_size}"
        batch_size = fitting
    elif recipe.total_batch_size not in (None, total):
        asked = recipe.total_batch_size
        told = f"batches of {world_size} processes cannot share total_batch_size {asked} equally: taking {total}"
    check_batch(recipe, batch_size, images)
    return batch_size, accumulation, told


def check_batch(recipe: TrainingRecipe, batch_size: int, images: int) -> None:
    """Raise ValueError for single images of which the strides leave one pixel, as BatchNorm cannot learn from that."""
    if batch_size == 1 and recipe.image_size_at(0) <= ONE_PIXEL:
        raise ValueError(
            f"expected 2 or more images at once where they have {ONE_PIXEL} pixels, found 1 (batch_size "
            f"{recipe.batch_size}, total_batch_size {recipe.total_batch_size}, {images} training images)"
        )
