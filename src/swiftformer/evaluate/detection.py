"""COCO's average precision of a detector, with masks or without, over a data set."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from swiftformer.artifact import is_artifact
from swiftformer.checkpoints import load
from swiftformer.data.detection import DetectionSource, open_detection
from swiftformer.data.detection_loaders import DetectionEvaluationLoader
from swiftformer.data.objects import Objects
from swiftformer.detections import post_process
from swiftformer.engines import Engine
from swiftformer.evaluate.classification import match_classes
from swiftformer.evaluate.coco_metrics import CocoMetrics
from swiftformer.files import atomic_file
from swiftformer.predict_detection import expect_detector, gives_masks, open_detector, preprocessing_of
from swiftformer.train.distributed import Processes, join_processes


def evaluate_detector(
    model: Callable[[Tensor], Any],
    batches: Iterable[tuple[Tensor, tuple[int, int], int]],
    source: DetectionSource,
    device: torch.device | str = "cpu",
    progress: Callable[[int], None] = lambda images: None,
    processes: Processes | None = None,
    with_masks: bool = False,
    max_detections: int = 100,
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
        output = model(pixels.to(processes.device, non_blocking=True))
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

    Classes are matched by name; where the names are the same in order, or none is common, by position. A
    model that gives masks needs data with masks.

    Args:
        model: what `swiftformer.load` takes, the folder of an artifact, or a model with `preprocessing`.
        split: `train`, `val`, `test` or `all`; by default the validation images where they lie apart, otherwise all.
        classes: of `swiftformer.data.detection.open_detection`; the model's, where the data have none.
        short_side: pixels that the short side of a picture is resized to, 0 for its own size; by default as the model
            wants it.
        max_detections: of a class in a picture that count; by default as many as the model gives, and 100 at least.
        engine, device, precision, threads: of `swiftformer.engines.open_engine`. A checkpoint runs in torch as it is,
            unless one of them asks for more: then in its fused form. A model is evaluated as it is.
        output: a file for all detections in COCO's format of results, with the data's own image and category ids.

    Returns:
        The metrics of `evaluate_detector`, and `unreadable`, the number of pictures that were skipped. With
        `per_class`, also `AP/CLASS`, and `mask_AP/CLASS`, for every class, None where it does not occur.

    Raises:
        ValueError: no detector, or the data set has classes that it does not know.
        CheckpointError: the model cannot be loaded.
    """
    net: Any
    plain = engine == "auto" and precision is None and threads is None
    if isinstance(model, nn.Module) and not plain:
        raise ValueError("expected engine, precision and threads together with a reference, found a model")
    if isinstance(model, nn.Module) or (plain and not is_artifact(model)):
        net = model if isinstance(model, nn.Module) else load(model, form=form)
        expect_detector(net)
        names = [net.config.id2label[i] for i in range(net.config.num_labels)]
        preprocessing, masks = net.preprocessing.uncropped(short_side), gives_masks(net)
        places = net.config.detections_per_image
    else:
        opened = open_detector(model, engine, device, precision, threads, form)
        names, preprocessing, device = list(opened.labels), preprocessing_of(opened, short_side), "cpu"
        net, masks, places = partial(_in_engine, opened), "masks" in opened.outputs, _places(opened)
    annotated = open_detection(data, split, classes=classes, default_classes=names, masks=masks)
    source = _Relabelled(annotated, names)
    metrics = new_metrics(names, masks, max_detections or max(places, 100))
    with join_processes(device) as processes:
        loader = DetectionEvaluationLoader(source, preprocessing, workers, processes.rank, processes.world_size)
        speed = measure(metrics, net, loader, source, processes.device, progress, processes, preprocessing.extent)
        result = metrics.result()
        if output is not None and processes.main:
            with atomic_file(output) as file:
                file.write_text(json.dumps(metrics.coco_results(source.categories)))
    found: dict[str, Any] = _numbers(result) | speed
    found["unreadable"] = len(source) - len(metrics)
    if per_class:
        for measure_ in ("AP", "mask_AP") if metrics.with_masks else ("AP",):
            values = zip(names, result[f"{measure_}_per_class"], strict=True)
            found |= {f"{measure_}/{name}": value for name, value in values}
    return found


def _numbers(result: dict[str, Any]) -> dict[str, float]:
    return {name: value for name, value in result.items() if isinstance(value, float)}


def _places(engine: Engine) -> int:
    """How many objects an engine gives at most."""
    shape = [1 if place == 0 else side or 64 for place, side in enumerate(engine.input_shape)]
    shape[1] = engine.input_shape[1] or 3
    return engine(np.zeros(shape, np.float32))["scores"].shape[1]


def _in_engine(engine: Engine, pixels: Tensor) -> dict[str, Any]:
    return engine(pixels.numpy())


class _Relabelled:
    """A data set with the classes of a model.

    Attributes:
        categories: the data's category id of each class that they have.
    """

    def __init__(self, source: DetectionSource, names: list[str]) -> None:
        self.source, self.classes, self.has_masks = source, names, source.has_masks
        places = match_classes(names, source.classes, list(range(len(source.classes))))
        self.places = torch.tensor(places).numpy()
        self.categories = dict(zip(places, source.category_ids, strict=True))
        self.category_ids = [self.categories.get(i, 0) for i in range(len(names))]

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
