"""Where a run begins: a new network, a checkpoint, or the state of the same run."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from swiftformer.checkpoints import load
from swiftformer.hf import SwiftFormerForImageClassificationWithTeacher
from swiftformer.train.recipes import Recipe
from swiftformer.train.state import read_state


def new_network(recipe: Recipe, classes: list[str], variant: str, model: str | None, form: str | None) -> Any:
    """A `SwiftFormerForImageClassificationWithTeacher` with random weights, or with those of the checkpoint `model`.

    Raises:
        ValueError: the recipe distils, and the checkpoint has a single head.
        CheckpointError: the checkpoint cannot be loaded.
    """
    id2label = dict(enumerate(classes))
    if model is None:
        # The class that returns both heads' logits, which distillation needs; weights and function are the same.
        return SwiftFormerForImageClassificationWithTeacher.from_variant(
            variant,
            id2label=id2label,
            label2id={name: i for i, name in id2label.items()},
            image_size=recipe.image_size,
            drop_path_rate=recipe.drop_path_rate,
        )
    loaded = load(model, form=form, task="classification", labels=classes, drop_path_rate=recipe.drop_path_rate)
    if recipe.distillation != "none" and not loaded.config.distillation:
        raise ValueError(f"{model}: expected a model with a distillation head, found one with a single head")
    net = SwiftFormerForImageClassificationWithTeacher(loaded.config)
    net.load_state_dict(loaded.state_dict())
    return net


def resumable_state(output: Path, recipe: Recipe, classes: list[str]) -> dict[str, Any]:
    """The newest whole state of a run.

    Raises:
        ValueError: there is none, or it belongs to another recipe or other classes.
    """
    state = read_state(output)
    # A recipe stored by an older version lacks the newer fields: then their defaults were in force.
    stored, wanted = dataclasses.asdict(Recipe()) | state["recipe"], dataclasses.asdict(recipe)
    differing = [f"{k} {stored[k]} -> {v}" for k, v in wanted.items() if stored[k] != v]
    if differing:
        raise ValueError(f"{output} was started with another recipe ({'; '.join(differing)}): resume with the same one")
    labels = state["config"]["id2label"]
    if [labels[key] for key in sorted(labels, key=int)] != classes:
        raise ValueError(f"{output} was started with the classes {list(labels.values())}, found {classes}")
    return state
