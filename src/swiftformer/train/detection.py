"""Learning to detect objects, with or without their masks."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from swiftformer.checkpoints import load
from swiftformer.config import SwiftFormerConfig
from swiftformer.data.detection import DetectionSource
from swiftformer.data.detection_loaders import DetectionEvaluationLoader, DetectionTrainingLoader
from swiftformer.data.detection_transforms import DetectionAugmentation, MultiScaleAugmentation
from swiftformer.data.object_masks import coco_mask
from swiftformer.evaluate.detection import evaluate_detector
from swiftformer.images import ImageError
from swiftformer.model_kinds import Task as ModelTask
from swiftformer.model_kinds import model_class
from swiftformer.train.dense_recipe import DetectionRecipe
from swiftformer.train.distributed import Processes
from swiftformer.train.interruption import StopRequest
from swiftformer.train.objectives import DetectionObjective
from swiftformer.train.tasks import Task


class Detection(Task):
    """See `Task`. Pictures are evaluated one at a time, as whole ones."""

    counts_hits = False

    def __init__(self, recipe: DetectionRecipe) -> None:
        coco_mask()  # before anything else: the first evaluation may be hours away
        self.recipe = recipe
        self.with_masks = recipe.task == "instances"
        self.model_task: ModelTask = "instances" if self.with_masks else "detection"
        self.measures = ("AP", "AP50", "AP75")  # type: ignore[misc]
        if self.with_masks:
            self.measures = ("mask_AP", "mask_AP50", "mask_AP75", "AP", "AP50", "AP75")  # type: ignore[misc]

    def new_network(self, classes: list[str], variant: str, model: str | None, form: str | None) -> Any:
        """The backbone of a checkpoint of any kind; the head is new unless it is a detector."""
        if model is not None:
            return load(model, form=form, task=self.model_task, labels=classes, **self.recipe.network_fields)
        id2label = dict(enumerate(classes))
        label2id = {name: i for i, name in id2label.items()}
        kind = model_class(self.model_task, self.recipe.detector)
        return kind.from_variant(variant, id2label=id2label, label2id=label2id, **self.recipe.network_fields)

    def network_of(self, config: dict[str, Any]) -> Any:
        return model_class(self.model_task, self.recipe.detector)(SwiftFormerConfig.from_dict(config))

    def prepare(self, net: Any, source: DetectionSource) -> None:
        net.preprocessing = self.recipe.preprocessing

    def training_loader(
        self, source: DetectionSource, epoch: int, batch_size: int, workers: int, processes: Processes
    ) -> DetectionTrainingLoader:
        recipe = self.recipe
        shared: dict[str, Any] = {
            "horizontal_flip": recipe.horizontal_flip,
            "vertical_flip": recipe.vertical_flip,
            "color_distortion": recipe.color_distortion,
        }
        transform: DetectionAugmentation | MultiScaleAugmentation
        if recipe.short_sides:
            transform = MultiScaleAugmentation(
                recipe.short_sides, recipe.longest or sys.maxsize, mean=recipe.mean, **shared
            )
        else:
            transform = DetectionAugmentation(
                recipe.image_size,
                scale=recipe.scale,
                short_side=recipe.short_side,
                min_visible=recipe.min_visible,
                mean=recipe.mean,
                **shared,
            )
        return DetectionTrainingLoader(
            source,
            transform,
            batch_size,
            workers,
            processes.rank,
            processes.world_size,
            seed=recipe.seed,
            pin_memory=processes.device.type == "cuda",
        )

    def validation_batches(
        self, source: DetectionSource, batch_size: int, workers: int, processes: Processes
    ) -> DetectionEvaluationLoader:
        if not any(_shows_objects(source, index) for index in range(len(source))):
            raise ValueError("expected objects in the pictures to validate on, found none")
        return DetectionEvaluationLoader(
            source, self.recipe.preprocessing, workers, processes.rank, processes.world_size
        )

    def objective(
        self, source: DetectionSource, output: Path, workers: int, processes: Processes, stop: StopRequest
    ) -> DetectionObjective:
        return DetectionObjective()

    def evaluate(
        self, net: nn.Module, source: Any, batches: Any, progress: Callable[[int], None], processes: Processes
    ) -> tuple[dict[str, float], None]:
        max_detections = max(100, self.recipe.detections_per_image)
        return evaluate_detector(
            net, batches, source, processes.device, progress, processes, self.with_masks, max_detections
        )


def _shows_objects(source: DetectionSource, index: int) -> bool:
    try:
        return not source.objects(index).crowd.all()
    except ImageError:  # the loader names it
        return False
