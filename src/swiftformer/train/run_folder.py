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
from swiftformer.messages import one_line
from swiftformer.train.dense_recipe import DetectionRecipe, InstanceRecipe, SegmentationRecipe
from swiftformer.train.distributed import Processes
from swiftformer.train.model_card import write_model_card
from swiftformer.train.recipe import Recipe, TrainingRecipe
from swiftformer.variants import variant_of

RECIPES: tuple[type[TrainingRecipe], ...] = (Recipe, SegmentationRecipe, DetectionRecipe, InstanceRecipe)


def write_recipe(recipe: dict[str, Any], folder: Path) -> None:
    """Write `recipe.json`."""
    with atomic_file(folder / "recipe.json") as file:
        file.write_text(json.dumps(recipe, indent=2) + "\n")


def read_recipe(run: Path) -> TrainingRecipe:
    """The recipe that `write_recipe` has written for a run.

    Raises:
        ValueError: there is none.
    """
    file = run / "recipe.json"
    try:
        stored = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(stored, dict):
            raise ValueError(f"{type(stored).__name__} instead of fields")
        # Of the tasks that have all these fields the one with the fewest others: older runs lack the newer fields.
        names: dict[Any, set[str]] = {kind: {field.name for field in dataclasses.fields(kind)} for kind in RECIPES}
        if unknown := {*stored} - {*chain.from_iterable(names.values())}:
            raise ValueError(f"unknown fields {', '.join(sorted(unknown))}")
        kind = min((kind for kind in RECIPES if {*stored} <= names[kind]), key=lambda kind: len(names[kind]))
        fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in stored.items()}
        return kind(**fields)
    except (OSError, TypeError, ValueError) as error:
        raise ValueError(f"{file}: expected the recipe of a run, found damage ({one_line(error)})") from None


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
    id2label: dict[Any, str] = config.id2label or {}
    write_model_card(
        output,
        recipe=dataclasses.asdict(recipe),
        task=recipe.task,
        metrics=metrics,
        classes=[id2label[i] for i in sorted(id2label)],
        model_name=f"SwiftFormer-{variant.name.upper()}" if variant else "SwiftFormer",
        world_size=processes.world_size,
        device=processes.device.type,
        seconds=sum(json.loads(line)["seconds"] for line in lines),
        **known,
    )
