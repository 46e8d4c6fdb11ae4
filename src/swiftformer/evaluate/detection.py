"""COCO's average precision of a detector, with masks or without, over a data set."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from swiftformer.checkpoints import load
from swiftformer.data.class_names import shortened
from swiftformer.data.detection import DetectionSource, open_detection
from swiftformer.data.detection_files import DetectionFiles
from swiftformer.data.detection_loaders import DetectionEvaluationLoader
from swiftformer.data.objects import Objects
from swiftformer.detections import post_process
from swiftformer.device import moved
from swiftformer.engines import Engine
from swiftformer.evaluate.classification import match_classes, runs_as_it_is, tell_of_positions
from swiftformer.evaluate.coco_metrics import CocoMetrics
from swiftformer.files import atomic_file, check_file
from swiftformer.labels import labels_of
from swiftformer.predict_detection import expect_detector, gives_masks, open_detector, preprocessing_of
from swiftformer.train.distributed import Processes, join_processes

logger = logging.getLogger(__name__)

USUAL = 100  # detections of a class in a picture that count for COCO


def evaluate_detector(
    model: Callable[[Tensor], Any],
    batches: Iterable[tuple[Tensor, tuple[int, int], int]],
    source: DetectionSource,
    device: torch.device | str = "cpu",
    progress: Callable[[int], None] = lambda images: None,
    processes: Processes | None = None,
    with_masks: bool = False,
    max_detections: int = USUAL,
) -> tuple[dict[str, float], None]:
    """Evaluate a detector on pictures `(pixels (1, 3, H, W), (height, width), index)`.

    Args:
        model: a module, which is put in eval mode, or a function; it returns `scores`, `labels`, `boxes` and, with
            masks, `masks` by name, as `swiftformer.detections.post_process` takes them of each picture.
        source: what is in the pictures.
        progress: called with the number of images of every batch.
        processes: of a distributed evaluation, in which each has batches of its own: all get the metrics of all images.
        with_masks: evaluate masks as well as boxes.
        max_detections: of a class in a picture that count.

    Returns:
        The metrics of `CocoMetrics.result`, without those of sizes that no object has and without lists; `images`, and
        `images_per_second` including loading. There is no confusion matrix.

    Raises:
        ValueError: no image could be read, the data have no objects, or a model with other outputs.
    """
    metrics = new_metrics(source.classes, with_masks, max_detections)
    speed = measure(metrics, model, batches, source, device, progress, processes)
    return _numbers(metrics.result()) | speed, None


def new_metrics(classes: Sequence[str], with_masks: bool, max_detections: int) -> CocoMetrics:
    """Recall by one, ten, and as many detections as count."""
    return CocoMetrics(classes, with_masks, (1, min(10, max_detections), max_detections))


@torch.inference_mode()
def measure(
    metrics: CocoMetrics,
    model: Callable[[Tensor], Any],
    batches: Iterable[tuple[Tensor, tuple[int, int], int]],
    source: DetectionSource,
    device: torch.device | str = "cpu",
    progress: Callable[[int], None] = lambda images: None,
    processes: Processes | None = None,
    extent: Callable[[tuple[int, int]], tuple[float, float]] = lambda size: size,
) -> dict[str, float]:
    """Add all pictures to the metrics, in every process those of all; arguments as of `evaluate_detector`.

    Args:
        extent: of a picture's size, see `Preprocessing.extent`.

    Returns:
        `images` and `images_per_second`.
    """
    processes = processes or Processes(0, 1, torch.device(device))
    if isinstance(model, nn.Module):
        model = model.to(processes.device).eval()
    names = ("scores", "labels", "boxes", "masks") if metrics.with_masks else ("scores", "labels", "boxes")
    start = time.perf_counter()
    for pixels, size, index in batches:
        output = model(moved(pixels, processes.device))
        arrays = {name: torch.as_tensor(output[name])[0].float().cpu().numpy() for name in names if name in output}
        height, width = (int(side) for side in size)
        detections = post_process(arrays, (height, width), extent=extent((height, width)))
        metrics.update(source.image_id(index), (height, width), source.objects(index), detections)
        progress(1)
    metrics.merge(processes)
    if not len(metrics):
        raise ValueError("expected readable images to evaluate on, found none")
    return {"images": len(metrics), "images_per_second": len(metrics) / (time.perf_counter() - start)}


def evaluate_reference(
    model: str | Path | nn.Module,
    data: str,
    split: str | None = None,
    *,
    form: str | None = None,
    classes: str | list[str] | None = None,
    short_side: int | None = None,
    max_detections: int | None = None,
    on_error: Literal["skip", "raise"] = "skip",
    workers: int = 2,
    engine: str = "auto",
    device: str | None = None,
    precision: str | None = None,
    threads: int | None = None,
    per_class: bool = False,
    output: Path | None = None,
    progress: Callable[[int], None] = lambda images: None,
) -> dict[str, Any]:
    """Evaluate a checkpoint or an artifact on a split of a data set, with the preprocessing that belongs to it.

    Classes are matched by name, whatever the capitals; where none is common, by position. Those of which
    the data show no object need not be known. Of data with boxes only, the boxes of a model that gives masks count.

    Args:
        model: what `swiftformer.load` takes, the folder of an artifact, or a model with `preprocessing`.
        split: `train`, `val`, `test` or `all`; by default the validation images where they lie apart, otherwise all.
        classes: of `swiftformer.data.detection.open_detection`; the model's, where the data have none.
        on_error: of `open_detection`.
        short_side: pixels that the short side of a picture is resized to, 0 for its own size; by default as the model
            wants it.
        max_detections: of a class in a picture that count; by default as many as the model gives, and 100 at least.
        engine, device, precision, threads: of `swiftformer.engines.open_engine`. A checkpoint runs in torch as it is,
            unless one of them asks for more: then in its fused form. A model is evaluated as it is.
        output: a file for all detections in COCO's format of results, with the data's own category ids, `file_name`,
            and the data's own image ids where all are numbers that occur once; otherwise 1, 2, ... in order.

    Returns:
        The metrics of `evaluate_detector`, and `unreadable`, the number of pictures that were skipped, also when the
        data were opened (where a part is held out, those of all the data). With
        `per_class`, also `AP/CLASS`, and `mask_AP/CLASS`, for every class, None where it does not occur.

    Raises:
        ValueError: no detector, or the data set has objects of classes that it does not know.
        CheckpointError: the model cannot be loaded.
    """
    net: Any
    as_it_is = runs_as_it_is(model, engine, precision, threads)
    given: Any = model
    fused = getattr(model, "outputs", None) is not None  # takes one picture and gives a tuple, as an engine does
    if as_it_is and not fused:
        net = model if isinstance(model, nn.Module) else load(model, form=form)
        expect_detector(net)
        names = list(labels_of(net.config))
        preprocessing, masks = net.preprocessing.uncropped(short_side), gives_masks(net)
        places = net.config.detections_per_image
    else:
        opened = open_detector(given, engine, device, precision, threads, form)
        names, preprocessing, device = list(opened.labels), preprocessing_of(opened, short_side), "cpu"
        net, masks, places = partial(_in_engine, opened), "masks" in opened.outputs, _places(opened)
    if output is not None:
        check_file(output)
    annotated = open_detection(
        data, split, classes=classes, default_classes=names, masks="auto" if masks else False, on_error=on_error
    )
    if masks and not annotated.has_masks:
        logger.warning("%s: boxes only in all pictures, so the masks that the model gives are not evaluated", data)
    source = _Relabelled(annotated, names)
    limit = max_detections or max(places, USUAL)
    if limit != USUAL:
        logger.info("AP counts up to %d objects per class and picture, where COCO counts %d", limit, USUAL)
    metrics = new_metrics(names, annotated.has_masks, limit)
    with join_processes(device) as processes:
        loader = DetectionEvaluationLoader(source, preprocessing, workers, processes.rank, processes.world_size)
        speed = measure(metrics, net, loader, source, processes.device, progress, processes, preprocessing.extent)
        result = metrics.result()
        if output is not None and processes.main:
            with atomic_file(output) as file:
                called = {source.image_id(index): source.name(index) for index in range(len(source))}
                file.write_text(json.dumps(metrics.coco_results(source.categories, called)))
    found: dict[str, Any] = _numbers(result) | speed
    found["unreadable"] = len(source) - len(metrics) + annotated.left_out
    if per_class:
        for measure_ in ("AP", "mask_AP") if metrics.with_masks else ("AP",):
            values = zip(names, result[f"{measure_}_per_class"], strict=True)
            found |= {f"{measure_}/{name}": value for name, value in values}
    return found


def _numbers(result: dict[str, Any]) -> dict[str, float]:
    return {name: value for name, value in result.items() if isinstance(value, float)}


def _places(engine: Engine) -> int:
    """How many objects an engine gives at most. An artifact, whose input is fixed, is asked with an empty picture."""
    config = getattr(getattr(engine, "net", None), "config", None)
    if config is not None:
        return config.detections_per_image
    shape = [side or 1 for side in engine.input_shape]
    return engine(np.zeros(shape, np.float32))["scores"].shape[1]


def _in_engine(engine: Engine, pixels: Tensor) -> dict[str, Any]:
    return engine(pixels.numpy())


def _matched(names: list[str], classes: list[str], counts: list[int]) -> np.ndarray:
    """Of each class of the data its index among those of a model, -1 for one without objects that it does not know."""
    folded = {name.casefold() for name in names}
    known = {name for name in classes if name.casefold() in folded}
    if not known and len(names) == len(classes):
        tell_of_positions(classes, names)
        return np.arange(len(classes))
    if unknown := [name for name, count in zip(classes, counts, strict=True) if count and name not in known]:
        raise ValueError(
            f"expected objects of classes that the model knows ({len(names)}: {shortened(names)}), "
            f"found {len(unknown)} others ({shortened(unknown)}); --classes chooses among those of the data"
        )
    places = np.full(len(classes), -1)
    kept = [place for place, name in enumerate(classes) if name in known]
    places[kept] = match_classes(names, [classes[place] for place in kept], list(range(len(kept))))
    return places


class _Relabelled:
    """A data set with the classes of a model.

    Attributes:
        categories: the data's category id of each class that they have.
    """

    def __init__(self, source: DetectionFiles, names: list[str]) -> None:
        self.source, self.classes, self.has_masks = source, names, source.has_masks
        self.places = _matched(names, source.classes, source.counts())
        ids = zip(self.places.tolist(), source.category_ids, strict=True)
        self.categories = {place: category for place, category in ids if place >= 0}

    def __len__(self) -> int:
        return len(self.source)

    def image(self, index: int) -> Image.Image:
        return self.source.image(index)

    def objects(self, index: int) -> Objects:
        objects = self.source.objects(index)
        return replace(objects, labels=self.places[objects.labels])

    def name(self, index: int) -> str:
        return self.source.name(index)

    def image_id(self, index: int) -> int:
        return self.source.image_id(index)
