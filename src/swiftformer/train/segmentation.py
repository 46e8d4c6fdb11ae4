"""Learning to segment."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from swiftformer.checkpoints import load
from swiftformer.config import SwiftFormerConfig
from swiftformer.data.dense_loaders import SegmentationEvaluationLoader, SegmentationTrainingLoader
from swiftformer.data.dense_transforms import SegmentationAugmentation
from swiftformer.data.masks import VOID
from swiftformer.data.segmentation import SegmentationSource
from swiftformer.evaluate.segmentation import evaluate_segmenter
from swiftformer.images import ImageError
from swiftformer.segmentation import SwiftFormerForSemanticSegmentation
from swiftformer.train.dense_recipe import SegmentationRecipe
from swiftformer.train.distributed import Processes
from swiftformer.train.interruption import StopRequest, TrainingStopped
from swiftformer.train.objectives import SegmentationObjective
from swiftformer.train.tasks import Task

logger = logging.getLogger(__name__)


class Segmentation(Task):
    """See `Task`. Pictures are evaluated one at a time, at the size of their masks."""

    measures = ("miou", "pixel_accuracy", "mean_accuracy")

    def __init__(self, recipe: SegmentationRecipe) -> None:
        self.recipe = recipe

    def new_network(self, classes: list[str], variant: str, model: str | None, form: str | None) -> Any:
        """The backbone of a checkpoint of any kind; the head is new unless it is a segmenter of the same classes."""
        recipe = self.recipe
        fields: dict[str, Any] = {
            "image_size": recipe.image_size,
            "drop_path_rate": recipe.drop_path_rate,
            "frozen_stages": recipe.frozen_stages,
            "frozen_batch_norm": recipe.frozen_batch_norm,
            "fpn_channels": recipe.fpn_channels,
            "segmentation_channels": recipe.head_channels,
            "segmentation_dropout": recipe.head_dropout,
        }
        if model is not None:
            return load(model, form=form, task="segmentation", labels=classes, **fields)
        id2label = dict(enumerate(classes))
        label2id = {name: i for i, name in id2label.items()}
        return SwiftFormerForSemanticSegmentation.from_variant(variant, id2label=id2label, label2id=label2id, **fields)

    def network_of(self, config: dict[str, Any]) -> Any:
        return SwiftFormerForSemanticSegmentation(SwiftFormerConfig.from_dict(config))

    def prepare(self, net: Any, source: SegmentationSource) -> None:
        net.preprocessing = replace(self.recipe.preprocessing, reduce_labels=source.reduce_zero_label)

    def training_loader(
        self, source: SegmentationSource, epoch: int, batch_size: int, workers: int, processes: Processes
    ) -> SegmentationTrainingLoader:
        recipe = self.recipe
        augmentation = SegmentationAugmentation(
            recipe.image_size,
            scale=recipe.scale,
            short_side=recipe.short_side,
            horizontal_flip=recipe.horizontal_flip,
            color_distortion=recipe.color_distortion,
            mean=recipe.mean,
        )
        return SegmentationTrainingLoader(
            source,
            augmentation,
            batch_size,
            workers,
            processes.rank,
            processes.world_size,
            seed=recipe.seed,
            pin_memory=processes.device.type == "cuda",
        )

    def validation_batches(
        self, source: SegmentationSource, batch_size: int, workers: int, processes: Processes
    ) -> SegmentationEvaluationLoader:
        return SegmentationEvaluationLoader(
            source, self.recipe.preprocessing, workers, processes.rank, processes.world_size
        )

    def objective(
        self, source: SegmentationSource, output: Path, workers: int, processes: Processes, stop: StopRequest
    ) -> SegmentationObjective:
        balanced = self.recipe.class_weights == "balanced"
        weights = rarity_weights(source, processes, stop) if balanced else None
        return SegmentationObjective(processes.device, weights)

    def evaluate(
        self, net: nn.Module, source: Any, batches: Iterable[Any], progress: Callable[[int], None], processes: Processes
    ) -> tuple[dict[str, float], Tensor]:
        return evaluate_segmenter(net, batches, processes.device, progress, processes)


def rarity_weights(source: SegmentationSource, processes: Processes, stop: StopRequest) -> Tensor:
    """`(classes,)`, in proportion to the inverse square root of each class's pixels; their mean over the pixels is 1.

    The inverse itself would let a few wrongly annotated pixels of a rare class decide. A class without pixels gets 0.
    Each process counts its share of the masks.

    Raises:
        TrainingStopped: SIGTERM or Ctrl-C came.
    """
    logger.info("counting the pixels of each class in %d masks", len(source))
    counts = torch.zeros(VOID + 1, dtype=torch.long)
    for index in range(processes.rank, len(source), processes.world_size):
        if stop.signal:
            break
        try:
            counts += torch.bincount(torch.from_numpy(source.mask(index)).flatten().long(), minlength=len(counts))
        except ImageError:
            continue  # the loader names it
    if asked := int(processes.max(torch.tensor([stop.signal], device=processes.device)).item()):
        raise TrainingStopped("stopped while the pixels of classes were counted; nothing is trained yet", asked)
    counts = processes.sum(counts.to(processes.device)).cpu()
    known = counts[: len(source.classes)].double()
    weights = torch.where(known > 0, known.clamp(min=1).rsqrt(), 0.0)
    return (weights * known.sum() / (weights * known).sum()).float()
