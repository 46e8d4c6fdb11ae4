"""Where a run goes on: the state of the same run."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from swiftformer.data.class_names import differences
from swiftformer.train.recipe import TrainingRecipe
from swiftformer.train.state import read_state


def resumable_state(output: Path, recipe: TrainingRecipe, classes: list[str]) -> dict[str, Any]:
    """The newest whole state of a run.

    Raises:
        ValueError: there is none, or it belongs to another recipe or other classes.
    """
    state = read_state(output)
    # A recipe stored by an older version lacks the newer fields: then their defaults were in force.
    stored, wanted = dataclasses.asdict(type(recipe)()) | state["recipe"], dataclasses.asdict(recipe)
    differing = [f"{k} {stored[k]} -> {v}" for k, v in wanted.items() if stored[k] != v]
    if differing:
        raise ValueError(f"{output} was started with another recipe ({'; '.join(differing)}): resume with the same one")
    labels = state["config"]["id2label"]
    started = [labels[key] for key in sorted(labels, key=int)]
    if started != classes:
        found = differences(started, classes, "the run", "the data")
        raise ValueError(f"{output}: expected the classes that it was started with, found {found}")
    return state
