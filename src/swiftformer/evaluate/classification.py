"""Top-1 and top-5 accuracy over a data set."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn


@torch.inference_mode()
def evaluate_classifier(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor, Tensor]],
    device: torch.device | str = "cpu",
    progress: Callable[[int], None] = lambda images: None,
) -> dict[str, float]:
    """Evaluate a classifier on batches of `(pixels (B, 3, H, W), labels (B,), indices (B,))`.

    Args:
        model: returns an output with `logits` `(B, classes)`; it is put in eval mode.
        progress: called with the number of images of every batch.

    Returns:
        `top1` and `top5` in percent, `images`, and `images_per_second` including loading.
    """
    model = model.to(device).eval()
    images, top1, top5, start = 0, torch.zeros((), device=device), torch.zeros((), device=device), time.perf_counter()
    for pixels, labels, _ in batches:
        if len(labels) == 0:
            continue
        labels = labels.to(device, non_blocking=True)
        logits = model(pixels.to(device, non_blocking=True)).logits
        best = logits.topk(min(5, logits.shape[1]), dim=1).indices  # (B, 5)
        hits = best == labels[:, None]
        top1 += hits[:, 0].sum()
        top5 += hits.any(dim=1).sum()
        images += len(labels)
        progress(len(labels))
    if images == 0:
        raise ValueError("expected readable images to evaluate on, found none")
    seconds = time.perf_counter() - start
    return {
        "top1": 100 * top1.item() / images,
        "top5": 100 * top5.item() / images,
        "images": images,
        "images_per_second": images / seconds,
    }
