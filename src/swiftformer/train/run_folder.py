"""What a run leaves in its folder besides log and states: recipe, weights, model card."""

from __future__ import annotations

import dataclasses
import json
from itertools import chain
from pathlib import Path
from typing import Any

from swiftformer.checkpoints import save
from swiftformer.config import SwiftFormerConfig
from swiftformer.files import atomic_file
from swiftformer.labels import labels_of
from swiftformer.messages import one_line
from swiftformer.train.dense_recipe import DetectionRecipe, InstanceRecipe, SegmentationRecipe
from swiftformer.train.distributed import Processes
from swiftformer.train.model_card import write_model_card
from swiftformer.train.recipe import Recipe, TrainingRecipe
from swiftformer.variants import variant_of

RECIPES: tuple[type[TrainingRecipe], ...] = (Recipe, SegmentationRecipe, DetectionRecipe, InstanceRecipe)
RECIPE_FILE = "recipe.json"


def write_recipe(recipe: dict[str, Any], folder: Path) -> None:
    """Write `recipe.json`."""
    with atomic_file(folder / RECIPE_FILE) as file:
        file.write_text(json.dumps(recipe, indent=2) + "\n")


def read_recipe(run: Path) -> TrainingRecipe:
    """The recipe that `write_recipe` has written for a run.

    Raises:
        ValueError: there is none.
    """
    stored = stored_fields(run)
    try:
        # Of the tasks that have all these fields the one with the fewest others: older runs lack the newer fields.
        names: dict[Any, set[str]] = {kind: {field.name for field in dataclasses.fields(kind)} for kind in RECIPES}
        if unknown := {*stored} - {*chain.from_iterable(names.values())}:
            raise ValueError(f"unknown fields {', '.join(sorted(unknown))}")
        kind = min((kind for kind in RECIPES if {*stored} <= names[kind]), key=lambda kind: len(names[kind]))
        fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in stored.items()}
        return kind(**fields)
    except (TypeError, ValueError) as error:
        raise _damaged(run, error) from None


def stored_fields(run: Path) -> dict[str, Any]:
    """What `write_recipe` has written for a run, as it stands there.

    Raises:
        ValueError: there is none.
    """
    try:
        stored = json.loads((run / RECIPE_FILE).read_text(encoding="utf-8"))
        if not isinstance(stored, dict):
            raise ValueError(f"{type(stored).__name__} instead of fields")
    except (OSError, ValueError) as error:
        raise _damaged(run, error) from None
    return stored


def _damaged(run: Path, error: Exception) -> ValueError:
    return ValueError(f"{run / RECIPE_FILE}: expected the recipe of a run, found damage ({one_line(error)})")


def save_weights(model: Any, recipe: dict[str, Any], folder: Path) -> None:
    """Save a checkpoint with the recipe inside."""
    save(model, folder)
    write_recipe(recipe, folder)


def write_card(
    output: Path,
    recipe: TrainingRecipe,
    metrics: dict[str, float],
    config: SwiftFormerConfig,
    processes: Processes,
    **known: Any,
) -> None:
    """Write the model card of a run whose `metrics.jsonl` is up to date; `known` is the rest of what it tells."""
    variant = variant_of(config.depths, config.embed_dims)
    lines = (output / "metrics.jsonl").read_text().splitlines()
    write_model_card(
        output,
        recipe=dataclasses.asdict(recipe),
        task=recipe.task,
        metrics=metrics,
        classes=list(labels_of(config)),
        model_name=f"SwiftFormer-{variant.name.upper()}" if variant else "SwiftFormer",
        world_size=processes.world_size,
        device=processes.device.type,
        seconds=sum(json.loads(line)["seconds"] for line in lines),
        **known,
    )
