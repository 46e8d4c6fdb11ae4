"""What a training step makes smaller: the losses of a network's output, and the hits that the log tells of."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from swiftformer.data.masks import VOID
from swiftformer.heads.semantic_fpn import upsampled
from swiftformer.train.distillation import Teacher, distillation_loss
from swiftformer.train.losses import ClassificationLoss
from swiftformer.train.recipe import Recipe, TrainingRecipe

PRECISIONS = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def autocast(recipe: TrainingRecipe, device: torch.device) -> torch.autocast:
    """The precision that a recipe computes in."""
    return torch.autocast(device.type, PRECISIONS[recipe.precision], enabled=recipe.precision != "fp32")


class Objective(Protocol):
    """The loss of a batch."""

    def arguments(self, targets: Any) -> dict[str, Any]:
        """What the network is called with besides the pixels."""
        ...

    def __call__(self, predicted: Any, pixels: Tensor, targets: Any, indices: Tensor) -> tuple[Tensor, Tensor]:
        """The loss and the number of hits, as scalars on the device.

        Args:
            predicted: what the network made of `pixels`.
            pixels: `(B, 3, H, W)`, normalised.
            targets: of the task.
            indices: of the images in the data, `(B,)`.
        """
        ...


class ClassificationObjective:
    """Cross-entropy of the class head, and of the distillation head where there is a teacher.

    Targets are class indices `(B,)` or distributions `(B, classes)`. A hit is an image that the class head (without
    distillation: both heads together) gets right.

    Args:
        teacher: of the distillation that the recipe asks for.
        teacher_logits: the teacher's `(images, classes)` where they are known already; then it is not asked.
        class_weights: `(classes,)`, of the criterion.
    """

    def __init__(
        self,
        recipe: Recipe,
        device: torch.device,
        teacher: Teacher | None = None,
        teacher_logits: Tensor | None = None,
        class_weights: Tensor | None = None,
    ) -> None:
        self.recipe, self.teacher, self.teacher_logits = recipe, teacher, teacher_logits
        self.criterion = ClassificationLoss(recipe.label_smoothing, class_weights).to(device)
        self.autocast = autocast(recipe, device)

    def arguments(self, targets: Any) -> dict[str, Any]:
        """See `Objective`."""
        return {}

    def __call__(self, predicted: Any, pixels: Tensor, targets: Any, indices: Tensor) -> tuple[Tensor, Tensor]:
        """See `Objective`."""
        logits = predicted.logits if self.teacher is None else predicted.cls_logits
        loss = self.criterion(logits.float(), targets)
        if self.teacher is not None:
            loss = self._distil(loss, predicted.distillation_logits.float(), pixels, indices)
        classes = targets.argmax(1) if targets.ndim > 1 else targets
        return loss, (logits.argmax(1) == classes).sum()

    def _distil(self, loss: Tensor, logits: Tensor, pixels: Tensor, indices: Tensor) -> Tensor:
        assert self.teacher is not None and self.recipe.distillation != "none"
        if self.teacher_logits is None:
            with self.autocast:
                told = self.teacher(pixels)
        else:
            told = self.teacher_logits[indices]
            known = told.isfinite().all(dim=1)  # but for pictures that could not be read when the teacher was asked
            if not known.any():
                return loss + 0 * logits.sum()  # all weights have gradients in every process
            told = told[known].to(logits)
            if not known.all():  # a mask on a GPU would be waited for
                logits = logits[known.nonzero()[:, 0].to(logits.device)]
        kind, alpha, tau = self.recipe.distillation, self.recipe.distillation_alpha, self.recipe.distillation_tau
        return distillation_loss(loss, logits, told, kind, alpha, tau)


class SegmentationObjective:
    """Cross-entropy of every pixel that is not void, of logits brought to the size of the mask.

    The mean is over the pixels of a batch: several processes, each with void of its own, weigh theirs alike.

    Targets are class indices `(B, H, W)`. The hits are the share of its pixels that each image gets right, summed.

    Args:
        class_weights: `(classes,)`.
    """

    def __init__(self, device: torch.device, class_weights: Tensor | None = None) -> None:
        self.class_weights = None if class_weights is None else class_weights.to(device)

    def arguments(self, targets: Any) -> dict[str, Any]:
        """See `Objective`."""
        return {}

    def __call__(self, predicted: Any, pixels: Tensor, targets: Any, indices: Tensor) -> tuple[Tensor, Tensor]:
        """See `Objective`."""
        logits = upsampled(predicted.logits.float(), targets.shape[1:])  # (B, classes, H, W)
        known = targets != VOID
        # Over the number of pixels, not their weights; a batch may be void throughout.
        loss = F.cross_entropy(logits, targets, self.class_weights, ignore_index=VOID, reduction="sum")
        right = ((logits.argmax(1) == targets) & known).flatten(1).sum(1) / known.flatten(1).sum(1).clamp(min=1)
        return loss / known.sum().clamp(min=1), right.sum()


class DetectionObjective:
    """The sum of a detector's losses, which it computes itself.

    Targets are `labels` of the network's call. There are no hits.
    """

    def arguments(self, targets: Any) -> dict[str, Any]:
        """See `Objective`."""
        return {"labels": targets}

    def __call__(self, predicted: Any, pixels: Tensor, targets: Any, indices: Tensor) -> tuple[Tensor, Tensor]:
        """See `Objective`."""
        return predicted.loss, predicted.loss.new_zeros(())
