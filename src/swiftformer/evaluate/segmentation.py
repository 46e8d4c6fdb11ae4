"""Intersection over union, accuracy and confusion of a segmentation model over a data set."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from swiftformer.checkpoints import load
from swiftformer.data.class_names import shortened
from swiftformer.data.dense_loaders import SegmentationEvaluationLoader
from swiftformer.data.masks import VOID
from swiftformer.data.segmentation import Relabelled, SegmentationSource, open_segmentation
from swiftformer.device import moved
from swiftformer.engines import Engine
from swiftformer.evaluate.classification import match_classes, runs_as_it_is
from swiftformer.heads.semantic_fpn import upsampled
from swiftformer.images import ImageError
from swiftformer.labels import labels_of
from swiftformer.predict_segmentation import expect_dense, open_segmenter, preprocessing_of, scores_of, window_of
from swiftformer.segmentation_inference import segment_logits
from swiftformer.train.distributed import Processes, join_processes

VALUES_AT_ONCE = 2**26  # of upsampled logits: 256 MB


class SegmentationMetrics:
    """Pixels counted by what they are and what they were taken for.

    Attributes:
        confusion: `(classes, classes)` int64, true classes in rows, predicted ones in columns, in pixels.
    """

    def __init__(self, classes: int, device: torch.device | str = "cpu") -> None:
        self.confusion = torch.zeros(classes, classes, dtype=torch.long, device=device)

    def update(self, predicted: Tensor, target: Tensor) -> None:
        """Count the pixels of maps of class indices, both of one shape; where the target is 255 they do not count.

        Raises:
            ValueError: other shapes, or indices beyond the classes.
        """
        if predicted.shape != target.shape:
            raise ValueError(
                f"expected a prediction of the target's shape {tuple(target.shape)}, found {tuple(predicted.shape)}"
            )
        classes = len(self.confusion)
        known = target != VOID
        truth, found = target[known].long(), predicted[known].long()
        for name, indices in (("target", truth), ("prediction", found)):
            if len(indices) and not 0 <= indices.min() <= indices.max() < classes:
                raise ValueError(
                    f"expected class indices from 0 to {classes - 1} in the {name}, "
                    f"found {indices.min()} to {indices.max()}"
                )
        counts = torch.bincount(truth * classes + found, minlength=classes * classes)
        self.confusion += counts.view(classes, classes)

    def merge(self, processes: Processes) -> None:
        """Add the pixels of all processes, each of which has then all of them."""
        processes.sum(self.confusion)

    def result(self) -> dict[str, Any]:
        """`miou`, `mean_accuracy` and `pixel_accuracy`, and lists with `iou` and `accuracy` of each class, in percent.

        A class that is neither there nor predicted has no intersection over union, one that is not there has no
        accuracy: None, and left out of the means.

        Raises:
            ValueError: nothing was counted.
        """
        confusion = self.confusion.cpu().double()  # Apple GPUs have no float64
        if not confusion.sum() > 0:
            raise ValueError("expected annotated pixels to evaluate on, found none")
        hits, there, predicted = confusion.diagonal(), confusion.sum(dim=1), confusion.sum(dim=0)
        iou = 100 * hits / (there + predicted - hits)  # 0 / 0 is NaN
        accuracy = 100 * hits / there
        return {
            "miou": iou.nanmean().item(),
            "mean_accuracy": accuracy.nanmean().item(),
            "pixel_accuracy": (100 * hits.sum() / confusion.sum()).item(),
            "iou": [None if value != value else value for value in iou.tolist()],
            "accuracy": [None if value != value else value for value in accuracy.tolist()],
        }


def best_classes(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """The class of every pixel, of logits `(B, classes, h, w)` resized bilinearly: `(B, *size)` int64.

    Classes are resized some at a time: all those of a large picture would need gigabytes.
    """
    step = max(VALUES_AT_ONCE // (len(logits) * size[0] * size[1]), 1)
    best = found = None
    for start in range(0, logits.shape[1], step):
        part = logits[:, start : start + step].float()
        values, classes = upsampled(part, size).max(dim=1)  # (B, H, W)
        if best is None or found is None:
            best, found = values, classes
            continue
        found = torch.where(values > best, classes + start, found)
        best = torch.maximum(best, values)
    assert found is not None
    return found


@torch.inference_mode()
def evaluate_segmenter(
    model: Callable[[Tensor], Any],
    batches: Iterable[tuple[Tensor, Tensor, int]],
    device: torch.device | str = "cpu",
    progress: Callable[[int], None] = lambda images: None,
    processes: Processes | None = None,
) -> tuple[dict[str, float], Tensor]:
    """Evaluate a segmentation model on pictures `(pixels (1, 3, H, W), mask (height, width), index)`.

    Args:
        model: a module, which is put in eval mode, or a function, such as one that slides a window; it returns logits
            `(1, classes, h, w)` or an output that has them as `logits`. They are resized to the mask.
        progress: called with the number of images of every batch.
        processes: of a distributed evaluation, in which each has batches of its own: all get the metrics of all images.

    Returns:
        `miou`, `mean_accuracy` and `pixel_accuracy` in percent, see `SegmentationMetrics.result`, `images`, and
        `images_per_second` including loading; and the confusion matrix `(classes, classes)`, true classes in rows,
        predicted ones in columns, in pixels.

    Raises:
        ValueError: no image could be read, or a mask has classes that the model does not know.
    """
    processes = processes or Processes(0, 1, torch.device(device))
    device = processes.device
    if isinstance(model, nn.Module):
        model = model.to(device).eval()
    start = time.perf_counter()
    metrics: SegmentationMetrics | None = None
    counts = torch.zeros(2, device=device, dtype=torch.long)  # images, classes
    for pixels, mask, _ in batches:
        output = model(moved(pixels, device))
        logits = getattr(output, "logits", output)
        metrics = metrics or SegmentationMetrics(logits.shape[1], device)
        mask = moved(mask, device)
        metrics.update(best_classes(logits, (mask.shape[0], mask.shape[1]))[0], mask)
        counts[0] += 1
        counts[1] = logits.shape[1]
        progress(1)
    classes = int(processes.max(counts[1:].clone()).item())
    metrics = metrics or SegmentationMetrics(classes, device)  # of a process whose share is empty
    images = int(processes.sum(counts[:1]).item())
    if images == 0:
        raise ValueError("expected readable images to evaluate on, found none")
    metrics.merge(processes)
    seconds = time.perf_counter() - start
    result = metrics.result()
    found = {name: result[name] for name in ("miou", "mean_accuracy", "pixel_accuracy")}
    return found | {"images": images, "images_per_second": images / seconds}, metrics.confusion.cpu()


def evaluate_reference(
    model: str | Path | nn.Module,
    data: str,
    split: str | None = None,
    *,
    form: str | None = None,
    classes: str | list[str] | None = None,
    reduce_zero_label: bool | None = None,
    short_side: int | None = None,
    window: int = 0,
    on_error: Literal["skip", "raise"] = "skip",
    workers: int = 2,
    engine: str = "auto",
    device: str | None = None,
    precision: str | None = None,
    threads: int | None = None,
    per_class: bool = False,
    progress: Callable[[int], None] = lambda images: None,
) -> dict[str, Any]:
    """Evaluate a checkpoint or an artifact on a split of a data set, with the preprocessing that belongs to it.

    Classes are matched by name, whatever the capitals; where none is common, by position, which a warning tells. Those
    that no pixel has need not be known. Data without names have the model's. A mask with indices beyond them is named
    and skipped.

    Args:
        model: what `swiftformer.load` takes, the folder of an artifact, or a model with `preprocessing`.
        split: `train`, `val`, `test` or `all`; by default the validation images where they lie apart, otherwise all.
        classes: of `swiftformer.data.segmentation.open_segmentation`; the model's, where the data have none.
        reduce_zero_label: of `open_segmentation`; by default as the model was trained, where it tells.
        short_side: pixels that the short side of a picture is resized to, 0 for its own size; by default as the model
            wants it.
        window: side of the windows that slide over a picture; 0 takes the whole picture at once. For an engine as in
            `swiftformer.predict_segmentation.segment`.
        on_error: of `open_segmentation`.
        engine, device, precision, threads: of `swiftformer.engines.open_engine`. A checkpoint runs in torch as it is,
            unless one of them asks for more: then in its fused form. A model is evaluated as it is.

    Returns:
        The metrics of `evaluate_segmenter`, and `unreadable`, the number of pictures that were skipped. With
        `per_class`, also `iou/CLASS` for every class, None where it does not occur.

    Raises:
        ValueError: no segmentation model, or pixels have classes that it does not know.
        CheckpointError: the model cannot be loaded.
    """
    net: Any
    given: Any = model
    if runs_as_it_is(model, engine, precision, threads):
        net = model if isinstance(model, nn.Module) else load(model, form=form)
        expect_dense(net)
        names = list(labels_of(net.config))
        preprocessing = net.preprocessing.uncropped(short_side)
    else:
        opened = open_segmenter(given, engine, device, precision, threads, form)
        size = window_of(opened, window)
        names, device = list(opened.labels), "cpu"
        preprocessing = preprocessing_of(opened, short_side, slide=size is not None)
        net = partial(_in_engine, opened, size)
    if reduce_zero_label is None:
        reduce_zero_label = preprocessing.reduce_labels
    annotated = open_segmentation(
        data,
        split,
        classes=classes,
        default_classes=names,
        reduce_zero_label=reduce_zero_label,
        on_error=on_error,
    )
    source = _matched(annotated, names)
    with join_processes(device) as processes:
        loader = SegmentationEvaluationLoader(source, preprocessing, workers, processes.rank, processes.world_size)
        if isinstance(net, nn.Module):
            net = net.to(processes.device).eval()
            if window:
                net = partial(segment_logits, net, mode="slide", window=(window, window))
        metrics, confusion = evaluate_segmenter(net, loader, processes.device, progress, processes)
    found: dict[str, Any] = {**metrics, "unreadable": len(source) - metrics["images"]}
    if per_class:
        scores = SegmentationMetrics(len(names))
        scores.confusion += confusion
        found |= {f"iou/{name}": value for name, value in zip(names, scores.result()["iou"], strict=True)}
    return found


def _in_engine(engine: Engine, window: tuple[int, int] | None, pixels: Tensor) -> Tensor:
    return torch.from_numpy(scores_of(engine, pixels[0].numpy(), window))[None]


def _matched(source: SegmentationSource, names: list[str]) -> SegmentationSource:
    """The data set with the classes of a model, and void for those that it does not know and no pixel has."""
    if source.classes == names:
        return source
    folded = {name.casefold() for name in names}
    known = [place for place, name in enumerate(source.classes) if name.casefold() in folded]
    if not known:
        return Relabelled(source, match_classes(names, source.classes, list(range(len(source.classes)))), names)
    if len(known) < len(source.classes) and (unknown := _shown(source) - {*known}):
        others = [source.classes[place] for place in sorted(unknown)]
        raise ValueError(
            f"expected pixels of classes that the model knows ({len(names)}: {shortened(names)}), "
            f"found {len(others)} others ({shortened(others)}); --classes gives the data other names, in order"
        )
    places = [VOID] * len(source.classes)
    matches = match_classes(names, [source.classes[place] for place in known], list(range(len(known))))
    for place, match in zip(known, matches, strict=True):
        places[place] = match
    return Relabelled(source, places, names)


def _shown(source: SegmentationSource) -> set[int]:
    """The indices that pixels have, in the masks that can be read."""
    found: set[int] = set()
    for index in range(len(source)):
        with suppress(ImageError):  # named when it is read for use
            found.update(np.unique(source.mask(index)).tolist())
    return found - {VOID}
