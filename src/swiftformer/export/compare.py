"""An exported graph against the model it came from, on pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import torch

from swiftformer.engines import Engine, open_engine
from swiftformer.export.formats import FORMATS, TOLERANCES, ExportError, Options
from swiftformer.image_processing import Preprocessing
from swiftformer.images import ImageSource


def samples() -> list[bytes]:
    """The photographs that come with the package, as JPEG."""
    folder = resources.files("swiftformer") / "samples"
    return [file.read_bytes() for file in sorted(folder.iterdir(), key=str) if file.name.endswith(".jpg")]


def pictures(sources: Sequence[ImageSource] | None, preprocessing: Preprocessing, channels: int = 3) -> np.ndarray:
    """`(N, channels, H, W)` float32, prepared; of None the photographs that come with the package.

    All are of the preprocessing's size, also where it would leave pictures whole, so that they are a batch. A model of
    more or fewer channels than a picture has gets them in turn, which is enough to compare numbers.
    """
    sources = samples() if sources is None else sources
    if len(sources) == 0:
        raise ExportError("expected pictures, found none")
    if preprocessing.resize == "whole":
        preprocessing = replace(preprocessing, resize="squash", resize_to=None)
    images = np.stack([preprocessing.prepare(source) for source in sources])
    return images if channels == 3 else np.ascontiguousarray(images[:, [i % 3 for i in range(channels)]])


def compare(folder: Path, model: Any, options: Options) -> dict[str, float]:
    """Run an artifact and its model, in float32, on the same pictures; where the size is free, in a second one too.

    Returns:
        `images`; `top1_agreement`, the share of images, of a segmentation model of pixels, with the same best class,
        of a detector of its objects that are found again; `max_relative_difference`, the largest difference of an
        output, of a detector of the scores, over its largest value; and `objects`, as many as a detector finds.

    Raises:
        ExportError: the difference is above the precision's tolerance, of float32 on a GPU that of TF32, or not a
            number.
        EngineError: the runtime refuses the artifact; BackendMissingError where it cannot run any of the format.
    """
    runtime = FORMATS[options.format].compared_in
    engine = open_engine(folder, runtime, device=options.device if runtime == "torch" else None)
    images = options.example
    if "boxes" in engine.outputs:
        agreement = _compare_objects(engine, model, images, options)
    else:
        worst, share = _difference(engine, model, images, options)
        agreement = {"top1_agreement": share, "max_relative_difference": worst}
    worst = agreement["max_relative_difference"]
    if options.size is None:
        two = np.concatenate([images, images])[:2]
        larger = np.pad(two, ((0, 0), (0, 0), (8, 16), (16, 24)), mode="reflect")
        worst = float(np.maximum(worst, _difference(engine, model, larger, options)[0]))  # not max, which loses a NaN
    tolerance = TOLERANCES["tf32" if options.device != "cpu" and options.precision == "fp32" else options.precision]
    if not worst <= tolerance:
        raise ExportError(
            f"{options.format} {options.precision}: expected a relative difference from PyTorch of at most "
            f"{tolerance:g}, found {worst:.2g} in {engine.name}"
        )
    return {"images": len(images), **agreement, "max_relative_difference": worst}


def _difference(engine: Engine, model: Any, images: np.ndarray, options: Options) -> tuple[float, float]:
    """Largest relative difference of an output, and the share of images or pixels whose largest value is the same."""
    found = list(engine(images).values())
    with torch.inference_mode():
        output: Any = model(torch.from_numpy(_for_model(images, model, options)))
        maps = list(output.feature_maps) if hasattr(output, "feature_maps") else [output.logits]
        if options.softmax:
            maps = [maps[0].softmax(dim=1)]
    expected = [tensor.numpy() for tensor in maps]
    if [a.shape for a in found] != [b.shape for b in expected]:
        return float("inf"), 0.0
    worst = float(np.max([np.abs(a - b).max() / np.abs(b).max() for a, b in zip(found, expected, strict=True)]))
    if not all(np.isfinite(a).all() for a in found):
        worst = float("nan")
    return worst, float((found[-1].argmax(axis=1) == expected[-1].argmax(axis=1)).mean())


def _for_model(images: np.ndarray, model: Any, options: Options) -> np.ndarray:
    """Images as the graph takes them, as its model does."""
    if not options.normalize:
        return images
    pixels = images.transpose(0, 2, 3, 1).astype(np.uint8)  # (B, H, W, C)
    return np.stack([model.preprocessing.normalized(image) for image in pixels])


def _compare_objects(engine: Engine, model: Any, images: np.ndarray, options: Options) -> dict[str, float]:
    """As `compare` returns it; a difference of infinity where fewer than 95 % of the objects are found again."""
    with torch.inference_mode():
        output = model(torch.from_numpy(_for_model(images, model, options)))
    expected = {name: output[name].numpy() for name in engine.outputs}
    found = engine(images)
    objects, hits = found_again(found, expected)
    worst = float(np.abs(np.sort(found["scores"]) - np.sort(expected["scores"])).max())
    agreement = hits / objects if objects else 1.0
    worst = worst if agreement >= 0.95 else float("inf")
    return {"objects": objects, "top1_agreement": agreement, "max_relative_difference": worst}


def found_again(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> tuple[int, int]:
    """Number of objects that are expected, and how many of them have a counterpart.

    Objects of nearly the same score may change places, so they are not compared in order: a counterpart has the same
    label, a score within 0.01, corners within 0.005 of the picture's sides, and a mask within 0.02 on average.
    """
    objects = hits = 0
    for place, scores in enumerate(expected["scores"]):
        for index in np.flatnonzero(scores > 0):
            near = np.abs(found["boxes"][place] - expected["boxes"][place, index]).max(axis=1) < 0.005
            near &= np.abs(found["scores"][place] - scores[index]) < 0.01
            near &= found["labels"][place] == expected["labels"][place, index]
            if "masks" in expected:
                near &= np.abs(found["masks"][place] - expected["masks"][place, index]).mean(axis=(1, 2)) < 0.02
            objects, hits = objects + 1, hits + bool(near.any())
    return objects, hits


def raw_pixels(images: np.ndarray, preprocessing: Preprocessing) -> np.ndarray:
    """Normalised pictures `(N, C, H, W)` as the whole values from 0 to 255 that they were made of."""
    mean, std = (np.array(v, np.float32)[:, None, None] for v in (preprocessing.mean, preprocessing.std))
    return np.rint((images * std + mean) * 255)
