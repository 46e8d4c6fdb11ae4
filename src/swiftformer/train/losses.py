"""The criterion on the class head."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class ClassificationLoss(nn.Module):
    """Torch's cross-entropy with label smoothing (arXiv 1512.00567, section 7), averaged over the images of a batch.

    `-sum_c w_c t_c log p_c`, where the target t is `1 - smoothing` at the true class plus `smoothing / classes`
    everywhere. The mean is over images also where classes have weights, so that it is the same over several processes.

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
        if targets.ndim == 2:
            return F.cross_entropy(logits, targets, self.weights)
        if self.weights is not None:
            # Of class indices torch takes the mean by the weights that happen to be in the batch.
            targets = F.one_hot(targets, logits.shape[1]).to(logits)
        return F.cross_entropy(logits, targets, self.weights, label_smoothing=self.smoothing)


def balanced_weights(labels: Sequence[int], classes: int) -> Tensor:
    """Weights that give every class the same share of the loss: `images / (present classes * images of the class)`.

    Their mean over the images is 1. A class without images gets 0, as nothing can be learnt about it.
    """
    counts = torch.bincount(torch.tensor(labels), minlength=classes).float()
    present = counts > 0
    return torch.where(present, len(labels) / (present.sum() * counts.clamp(min=1)), 0.0)
