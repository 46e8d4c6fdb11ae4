"""The criterion on the class head."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class ClassificationLoss(nn.Module):
    """Cross-entropy with label smoothing and weights of the classes, averaged over the images of a batch.

    `-sum_c w_c t_c log p_c`, where the target t is `1 - smoothing` at the true class plus `smoothing / classes`
    everywhere (arXiv 1512.00567, section 7). Without weights it equals timm's LabelSmoothingCrossEntropy, and
    SoftTargetCrossEntropy where targets are distributions already; with them, torch's on such targets.

    Args:
        smoothing: in [0, 1); left aside where targets are distributions.
        weights: one per class; none for 1 everywhere.
    """

    weights: Tensor | None

    def __init__(self, smoothing: float = 0.0, weights: Tensor | None = None) -> None:
        super().__init__()
        self.smoothing = smoothing
        self.register_buffer("weights", weights)

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """`(B, classes)` and targets `(B,)` or `(B, classes)` to a scalar."""
        losses = -logits.log_softmax(dim=1)
        if self.weights is not None:
            losses = losses * self.weights
        if targets.ndim == 2:
            return (losses * targets).sum(dim=1).mean()
        true = losses.gather(1, targets[:, None]).squeeze(1)
        return ((1 - self.smoothing) * true + self.smoothing * losses.mean(dim=1)).mean()


def balanced_weights(labels: Sequence[int], classes: int) -> Tensor:
    """Weights that give every class the same share of the loss: `images / (present classes * images of the class)`.

    Their mean over the images is 1. A class without images gets 0, as nothing can be learnt about it.
    """
    counts = torch.bincount(torch.tensor(labels), minlength=classes).float()
    present = counts > 0
    return torch.where(present, len(labels) / (present.sum() * counts.clamp(min=1)), 0.0)
