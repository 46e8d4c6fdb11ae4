"""Learning to classify."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from swiftformer.checkpoints import load
from swiftformer.config import SwiftFormerConfig
from swiftformer.data.loaders import TrainingLoader, evaluation_loader
from swiftformer.data.sources import Source
from swiftformer.evaluate.classification import evaluate_classifier
from swiftformer.hf import SwiftFormerForImageClassificationWithTeacher
from swiftformer.train.distillation import load_teacher
from swiftformer.train.distributed import Processes
from swiftformer.train.interruption import StopRequest
from swiftformer.train.losses import balanced_weights
from swiftformer.train.objectives import ClassificationObjective
from swiftformer.train.recipe import Recipe
from swiftformer.train.tasks import Task
from swiftformer.train.teacher_cache import cached_logits


class Classification(Task):
    """See `Task`. Networks are the class that returns both heads' logits; weights and function are the same."""

    measures = ("top1", "top5", "calibration_error")

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.erasing = recipe.random_erasing

    def new_network(self, classes: list[str], variant: str, model: str | None, form: str | None) -> Any:
        """Its head is new where the checkpoint's classes differ."""
        recipe, id2label = self.recipe, dict(enumerate(classes))
        if len(classes) < 2:
            raise ValueError(f"expected two or more classes to tell apart, found one ({classes[0]})")
        if model is None:
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

    def network_of(self, config: dict[str, Any]) -> Any:
        return SwiftFormerForImageClassificationWithTeacher(SwiftFormerConfig.from_dict(config))

    def prepare(self, net: Any, source: Source) -> None:
        net.preprocessing = self.recipe.preprocessing

    def training_loader(
        self, source: Source, epoch: int, batch_size: int, workers: int, processes: Processes
    ) -> TrainingLoader:
        return TrainingLoader(
            source,
            self.recipe,
            self.recipe.image_size_at(epoch),
            batch_size,
            workers,
            processes.rank,
            processes.world_size,
            pin_memory=processes.device.type == "cuda",
        )

    def validation_batches(
        self, source: Source, batch_size: int, workers: int, processes: Processes
    ) -> Iterable[tuple[Tensor, Tensor, Tensor]]:
        size = max(batch_size * 3 // 2, 1)
        return evaluation_loader(source, self.recipe.preprocessing, size, workers, processes.rank, processes.world_size)

    def objective(
        self, source: Source, output: Path, workers: int, processes: Processes, stop: StopRequest
    ) -> ClassificationObjective:
        recipe = self.recipe
        teacher = teacher_logits = class_weights = None
        if recipe.distillation != "none":
            classes = source.classes
            teacher = load_teacher(recipe.teacher, len(classes), recipe.mean, recipe.std, classes)
            teacher = teacher.to(processes.device)
            if recipe.cache_teacher:
                teacher_logits = cached_logits(teacher, source, recipe, output, workers, processes, stop)
                teacher = teacher.to("cpu")
        if recipe.class_weights == "balanced":
            class_weights = balanced_weights(source.labels, len(source.classes))
        return ClassificationObjective(recipe, processes.device, teacher, teacher_logits, class_weights)

    def evaluate(
        self, net: Any, source: Any, batches: Iterable[Any], progress: Callable[[int], None], processes: Processes
    ) -> tuple[dict[str, float], torch.Tensor]:
        return evaluate_classifier(net, batches, processes.device, progress, processes)
