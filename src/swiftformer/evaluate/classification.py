"""Accuracy, calibration and confusion of a classifier over a data set."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from swiftformer.artifact import is_artifact
from swiftformer.checkpoints import load
from swiftformer.data.class_names import shortened
from swiftformer.data.loaders import evaluation_loader
from swiftformer.data.sources import open_source
from swiftformer.device import moved
from swiftformer.engines import Engine, open_engine
from swiftformer.labels import labels_of
from swiftformer.train.distributed import Processes, join_processes

logger = logging.getLogger(__name__)
CALIBRATION_BINS = 15


@torch.inference_mode()
def evaluate_classifier(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor, Tensor]],
    device: torch.device | str = "cpu",
    progress: Callable[[int], None] = lambda images: None,
    processes: Processes | None = None,
) -> tuple[dict[str, float], Tensor]:
    """Evaluate a classifier on batches of `(pixels (B, 3, H, W), labels (B,), indices (B,))`.

    Args:
        model: returns an output with `logits` `(B, classes)`; it is put in eval mode.
        progress: called with the number of images of every batch.
        processes: of a distributed evaluation, in which each has batches of its own: all get the metrics of all images.

    Returns:
        `top1`, `top5` and `calibration_error` in percent, `images`, and `images_per_second` including loading; and the
        confusion matrix `(classes, classes)`, true classes in rows, predicted ones in columns, in images. The
        calibration error is the expected one, over 15 bins of equal width (arXiv 1706.04599, equation 3).

    Raises:
        ValueError: no image could be read.
        FloatingPointError: logits are infinite or NaN, in any process.
    """
    processes = processes or Processes(0, 1, torch.device(device))
    device = processes.device
    model = model.to(device).eval()
    start = time.perf_counter()
    counts = torch.zeros(2, device=device, dtype=torch.long)  # images, and hits among the first five
    confusion = torch.zeros(0, device=device, dtype=torch.long)
    bins = torch.zeros(2, CALIBRATION_BINS, device=device)  # sums of confidence and of hits
    broken = torch.zeros(1, device=device, dtype=torch.bool)
    for pixels, labels, _ in batches:
        if len(labels) == 0:
            continue
        labels = moved(labels, device)
        logits = model(moved(pixels, device)).logits.float()
        classes = logits.shape[1]
        best = logits.topk(min(5, classes), dim=1).indices  # (B, 5)
        counts[0] += len(labels)
        counts[1] += (best == labels[:, None]).any(dim=1).sum()
        if len(confusion) == 0:
            confusion = torch.zeros(classes * classes, device=device, dtype=torch.long)
        confusion.index_add_(0, labels * classes + best[:, 0], torch.ones_like(labels))
        broken |= ~logits.isfinite().all()
        confidence = logits.softmax(dim=1).amax(dim=1).nan_to_num()  # (B,)
        places = (confidence * CALIBRATION_BINS).long().clamp_(max=CALIBRATION_BINS - 1)
        bins[0].index_add_(0, places, confidence)
        bins[1].index_add_(0, places, (best[:, 0] == labels).float())
        progress(len(labels))
    if processes.max(broken.long()).item():  # asked by all processes, so that none waits for one that has raised
        raise FloatingPointError("expected finite logits, found others (weights or statistics that are not finite?)")
    entries = int(processes.max(torch.tensor([len(confusion)], device=device)).item())
    if len(confusion) == 0:  # a process whose share is empty adds nothing
        confusion = torch.zeros(entries, device=device, dtype=torch.long)
    for sums in (counts, confusion, bins):
        processes.sum(sums)
    images, top5 = counts.tolist()
    if images == 0:
        raise ValueError("expected readable images to evaluate on, found none")
    seconds = time.perf_counter() - start
    confusion = confusion.view(math.isqrt(len(confusion)), -1).cpu()
    metrics = {
        "top1": 100 * confusion.diagonal().sum().item() / images,
        "top5": 100 * top5 / images,
        "calibration_error": 100 * (bins[0] - bins[1]).abs().sum().item() / images,
        "images": images,
        "images_per_second": images / seconds,
    }
    return metrics, confusion


class _InEngine(nn.Module):
    """An engine with the output that `evaluate_classifier` expects."""

    def __init__(self, engine: Engine) -> None:
        super().__init__()
        self.engine = engine

    def forward(self, pixels: Tensor) -> SimpleNamespace:
        probabilities = self.engine.probabilities(pixels.numpy())
        return SimpleNamespace(logits=torch.from_numpy(np.log(np.maximum(probabilities, 1e-30))))


def evaluate_reference(
    model: str | Path | nn.Module,
    data: str,
    split: str | None = None,
    *,
    form: str | None = None,
    level: str = "name",
    batch_size: int = 64,
    workers: int = 2,
    engine: str = "auto",
    device: str | None = None,
    precision: str | None = None,
    threads: int | None = None,
    per_class: bool = False,
    progress: Callable[[int], None] = lambda images: None,
) -> dict[str, float]:
    """Evaluate a checkpoint or an artifact on a split of a data set, with the preprocessing that belongs to it.

    Classes are matched by name; where the names are the same in order or none is common, by position (then a
    warning says so).

    Args:
        model: what `swiftformer.load` takes, the folder of an artifact, or a model with `preprocessing`.
        split: `train`, `val`, `test` or `all`; by default the validation images where they lie apart, otherwise all.
        level: what a class is, in the data of iNaturalist.
        engine, device, precision, threads: of `swiftformer.engines.open_engine`. A checkpoint runs in torch as it is,
            unless one of them asks for more: then in its fused form. A model is evaluated as it is.

    Returns:
        The metrics of `evaluate_classifier`, and `unreadable`, the number of pictures that were skipped. With
        `per_class`, also `top1/CLASS` for every class that has images.

    Raises:
        ValueError: the data set has classes that the model does not know.
        CheckpointError: the model cannot be loaded.
        FloatingPointError: its logits are infinite or NaN.
    """
    source = open_source(data, split, level=level)
    net: Any
    given: Any = model
    if runs_as_it_is(model, engine, precision, threads):
        net = model if isinstance(model, nn.Module) else load(model, form=form, task="classification")
        names, preprocessing = list(labels_of(net.config)), net.preprocessing
    else:
        net = _InEngine(open_engine(given, engine, device=device, precision=precision, threads=threads, form=form))
        names, preprocessing, device = list(net.engine.labels), net.engine.preprocessing, "cpu"
    source.labels = match_classes(names, source.classes, source.labels)
    with join_processes(device) as processes:
        rank, world_size = processes.rank, processes.world_size
        loader = evaluation_loader(source, preprocessing, batch_size, workers, rank, world_size)
        metrics, confusion = evaluate_classifier(net, loader, processes.device, progress, processes)
    metrics["unreadable"] = len(source) - metrics["images"]
    if per_class:
        counts = confusion.sum(dim=1).tolist()
        hits = confusion.diagonal().tolist()
        # ImageNet has two classes called crane: names that are not unique get their number as well.
        keys = [name if names.count(name) == 1 else f"{name} ({i})" for i, name in enumerate(names)]
        metrics |= {f"top1/{keys[i]}": 100 * hits[i] / count for i, count in enumerate(counts) if count}
    return metrics


def runs_as_it_is(model: Any, engine: str, precision: str | None, threads: int | None) -> bool:
    """Whether what is evaluated is a model or a checkpoint of which no engine is asked, and not one that runs in an
    engine.

    Raises:
        ValueError: a model, with options of an engine.
    """
    plain = engine == "auto" and precision is None and threads is None
    if not isinstance(model, nn.Module):
        return plain and not is_artifact(model)
    if not plain:
        raise ValueError("expected engine, precision and threads together with a reference, found a model")
    return True


def tell_of_positions(classes: list[str], names: list[str]) -> None:
    """Warn that classes of data and those of a model have nothing in common but their number."""
    logger.warning(
        "no class of the data (%s) is called like one of the model's (%s): they are matched by position",
        shortened(classes),
        shortened(names),
    )


def match_classes(names: list[str], classes: list[str], labels: list[int]) -> list[int]:
    """The labels of a data set with `classes`, as indices of a model with `names`; capitals do not matter."""
    folded = {name.casefold(): name for name in names}
    if len(folded) == len({*names}):
        classes = [folded.get(name.casefold(), name) for name in classes]
    known = set(classes) & set(names)
    if classes == names:
        return list(labels)
    if not known and len(classes) == len(names):
        tell_of_positions(classes, names)
        return list(labels)
    unknown = [name for name in classes if name not in known]
    if unknown:
        raise ValueError(
            f"expected classes that the model knows ({len(names)}: {shortened(names)}), "
            f"found {len(unknown)} others ({shortened(unknown)})"
        )
    if len({*names}) < len(names):  # ImageNet has two kinds of crane
        twice = sorted({name for name in names if names.count(name) > 1})
        raise ValueError(f"cannot match classes by name, as the model has several called {', '.join(twice)}")
    place = {name: i for i, name in enumerate(names)}
    return [place[classes[label]] for label in labels]
