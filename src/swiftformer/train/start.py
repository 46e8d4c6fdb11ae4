"""What a run begins with: batches that can be learned from, or the state of the same run."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from swiftformer.data.class_names import differences
from swiftformer.train.recipe import TrainingRecipe
from swiftformer.train.state import has_state, read_state
from swiftformer.train.tasks import Examples

ONE_PIXEL = 32  # side of the images of which one pixel is left behind all strides


def resumable_state(output: Path, recipe: TrainingRecipe, train: Examples, val: Examples) -> dict[str, Any]:
    """The newest whole state of a run.

    Raises:
        ValueError: there is none, or it belongs to another recipe, other classes or another number of images.
    """
    state = read_state(output)
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
    counts = [len(train), len(val)]
    if (known := state.get("pictures", counts)) != counts:  # which states of older versions do not tell
        raise ValueError(
            f"{output}: expected the {known[0]} training and {known[1]} validation images that it was started with, "
            f"found {counts[0]} and {counts[1]}; on others, start another run from it: --model {output}"
        )
    return state


def what_is_left(output: Path) -> str:
    """What of a run that fails there is to resume, for its error."""
    if not has_state(output):
        return f"{output} holds no state to resume yet"
    return f"the last state stays in {output}, for --resume"


def check_batch(recipe: TrainingRecipe, batch_size: int, images: int) -> None:
    """Raise ValueError for single images of which the strides leave one pixel, as BatchNorm cannot learn from that."""
    if batch_size == 1 and recipe.image_size_at(0) <= ONE_PIXEL:
        raise ValueError(
            f"expected 2 or more images at once where they have {ONE_PIXEL} pixels, found 1 (batch_size "
            f"{recipe.batch_size}, total_batch_size {recipe.total_batch_size}, {images} training images)"
        )
