"""Top-1 and top-5 accuracy over a data set."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from swiftformer.checkpoints import load
from swiftformer.data.loaders import evaluation_loader
from swiftformer.data.sources import open_source
from swiftformer.device import select_device


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


def evaluate_reference(
    model: str,
    data: str,
    split: str = "val",
    *,
    form: str | None = None,
    batch_size: int = 64,
    workers: int = 2,
    device: str | None = None,
    progress: Callable[[int], None] = lambda images: None,
) -> dict[str, float]:
    """Evaluate a checkpoint on a split of a data set, with the preprocessing that belongs to the checkpoint.

    Classes are matched by name; where the names are the same in order or none is common, by position.

    Returns:
        As `evaluate_classifier`, and `unreadable`, the number of pictures that were skipped.

    Raises:
        ValueError: the data set has classes that the model does not know.
        CheckpointError: the model cannot be loaded.
    """
    source = open_source(data, split)
    net: Any = load(model, form=form, task="classification")
    names = [net.config.id2label[i] for i in range(net.num_labels)]
    source.labels = _match_classes(names, source.classes, source.labels)
    loader = evaluation_loader(source, net.preprocessing, batch_size, workers)
    metrics = evaluate_classifier(net, loader, select_device(device), progress)
    return metrics | {"unreadable": len(source) - metrics["images"]}


def _match_classes(names: list[str], classes: list[str], labels: list[int]) -> list[int]:
    """The labels of a data set with `classes`, as indices of a model with `names`."""
    known = set(classes) & set(names)
    if classes == names or (not known and len(classes) == len(names)):
        return list(labels)
    unknown = [name for name in classes if name not in known]
    if unknown:
        raise ValueError(
            f"expected classes that the model knows ({len(names)}: {', '.join(names[:5])}, ...), "
            f"found {len(unknown)} others ({', '.join(unknown[:5])})"
        )
    if len({*names}) < len(names):  # ImageNet has two kinds of crane
        twice = sorted({name for name in names if names.count(name) > 1})
        raise ValueError(f"cannot match classes by name, as the model has several called {', '.join(twice)}")
    place = {name: i for i, name in enumerate(names)}
    return [place[classes[label]] for label in labels]
