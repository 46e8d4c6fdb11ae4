"""Classify pictures: from paths, folders, globs, bytes, arrays or tensors to labels with probabilities."""

from __future__ import annotations

import glob
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from swiftformer.data.folders import files_below
from swiftformer.data.sources import is_image
from swiftformer.image_processing import Preprocessing
from swiftformer.images import ImageError, ImageSource, listed, open_image
from swiftformer.locate import DEFAULT_MODEL, stored_task

if TYPE_CHECKING:
    from PIL import Image

    from swiftformer.engines import Engine
    from swiftformer.hf import SwiftFormerForImageClassification


@dataclass(frozen=True)
class Prediction:
    """A class and its softmax probability, in [0, 1]."""

    label: str
    index: int
    probability: float


@dataclass(frozen=True)
class Classified:
    """One picture's predictions, best first, or the reason why there are none."""

    image: str
    predictions: list[Prediction] = field(default_factory=list)
    error: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """For JSON: `{"image", "predictions": [{"label", "index", "probability"}], "error"?}`."""
        fields: dict[str, Any] = {"image": self.image, "predictions": [vars(p) for p in self.predictions]}
        return fields | ({"error": self.error} if self.error else {})


def find_images(references: Iterable[str]) -> list[tuple[str, ImageSource]]:
    """Names and sources of what a person typed: files, folders (searched through), globs, `-` for standard input.

    A path that does not exist stays in the list, to be reported by name; so does what else stands for no picture, with
    an ImageError as its source.

    Raises:
        ImageError: a single reference that stands for no picture.
    """
    found: list[tuple[str, ImageSource]] = []
    references = list(references)
    for reference in references:
        try:
            found += _images_of(reference)
        except ImageError as error:
            if len(references) == 1:
                raise
            found.append((reference, error))
    return found


def _images_of(reference: str) -> list[tuple[str, ImageSource]]:
    if reference == "-":
        return [("-", sys.stdin.buffer.read())]
    try:
        path = Path(reference).expanduser()
        exists, is_folder = path.exists(), path.is_dir()
    except (OSError, RuntimeError, ValueError) as error:  # such as a name that is too long, or ~ of nobody
        raise ImageError(f"{reference}: expected a picture, found none ({error})") from None
    if is_folder:
        if pictures := _pictures_below(path):
            return pictures
        raise ImageError(f"{reference}: expected a folder with images, found none")
    if exists or not any(c in reference for c in "*?["):
        return [(reference, path)]
    found: list[tuple[str, ImageSource]] = []
    for match in map(Path, sorted(glob.glob(str(path), recursive=True))):  # noqa: PTH207 absolute patterns too
        found += (_pictures_below(match) if match.is_dir() else []) or [(str(match), match)]
    if not found:
        raise ImageError(f"{reference}: expected a pattern that matches files, found no match")
    return found


def _pictures_below(folder: Path) -> list[tuple[str, ImageSource]]:
    return [(str(file), file) for file in sorted(filter(is_image, files_below(folder)))]


def prepared(
    sources: Sequence[ImageSource], names: Sequence[str], preprocessing: Preprocessing, skip_broken: bool
) -> Iterator[tuple[str, Image.Image | None, np.ndarray, str]]:
    """Of each picture its name, the RGB image, its pixels `(3, H, W)`, and an empty text; where it cannot be read no
    image, no pixels, and why, or ImageError where `skip_broken` is False."""
    for source, name in zip(sources, names, strict=True):
        try:
            image = open_image(source, name)
            pixels = preprocessing.prepare(image, name)
        except ImageError as error:
            if not skip_broken:
                raise
            yield name, None, np.empty(0, np.float32), str(error)
        else:
            yield name, image, pixels, ""


def classify(
    images: ImageSource | Iterable[ImageSource],
    model: str | Path | SwiftFormerForImageClassification | Engine = DEFAULT_MODEL,
    *,
    names: Iterable[str] | None = None,
    form: str | None = None,
    top_k: int = 5,
    batch_size: int = 16,
    engine: str = "auto",
    device: str | None = None,
    precision: str | None = None,
    threads: int | None = None,
    skip_broken: bool = True,
) -> Iterator[Classified]:
    """Classify pictures in batches.

    Args:
        images: anything that `open_image` reads; one, or several.
        model: a checkpoint reference, the folder of an exported artifact, an engine, or a model; a model that did not
            come from `load` gets the hub's preprocessing. It stays as it is: where it would have to be moved, cast or
            put into eval mode, a copy runs.
        names: what to call the images in results; their paths by default.
        form: numeric form of the checkpoint, where its file cannot tell.
        top_k: classes per picture; fewer where the model has fewer.
        batch_size: pictures per forward pass.
        engine, device, precision, threads: of `swiftformer.engines.open_engine`; in torch the device is by default CUDA
            if there is one. Without, a checkpoint of a classifier runs in `native` where that is installed, otherwise
            in torch, whose `threads` are those of the whole process.
        skip_broken: report a picture that cannot be read in its result's `error` and go on; False raises.

    Yields:
        A result for each picture, in order.

    Raises:
        ValueError: no classifier, `top_k` or `batch_size` below 1, or another number of names than of pictures.
        ImageError: a picture cannot be read, and `skip_broken` is False.
        CheckpointError, ArtifactError: the model cannot be loaded.
        EngineError: the engine is missing, or does not run this model.
    """
    if top_k < 1 or batch_size < 1:
        raise ValueError(f"expected top_k and batch_size of at least 1, found {top_k} and {batch_size}")
    runner = _opened(model, engine, device, precision, threads, form)
    sources = listed(images)
    called = names_of(sources, names)
    for start in range(0, len(sources), batch_size):
        pixels: list[np.ndarray] = []
        errors: dict[int, str] = {}
        for i in range(start, min(start + batch_size, len(sources))):
            try:
                pixels.append(runner.preprocessing.prepare(sources[i], called[i]))
            except ImageError as error:
                if not skip_broken:
                    raise
                errors[i] = str(error)
        probabilities = iter(runner.probabilities(np.stack(pixels)) if pixels else ())
        for i in range(start, min(start + batch_size, len(sources))):
            if i in errors:
                yield Classified(called[i], error=errors[i])
                continue
            row = next(probabilities)
            best = np.argsort(-row, kind="stable")[:top_k].tolist()
            yield Classified(called[i], [Prediction(runner.labels[j], j, float(row[j])) for j in best])


def _opened(
    model: Any, engine: str, device: str | None, precision: str | None, threads: int | None, form: str | None
) -> Engine:
    from swiftformer.engines import Engine, open_engine

    if isinstance(model, Engine):
        return model
    if isinstance(model, (str, Path)):
        opened = open_engine(model, engine, device=device, precision=precision, threads=threads, form=form)
        if (task := opened.task or stored_task(model)) not in ("classification", "backbone"):
            raise ValueError(f"{model}: expected a classifier, found a model for {task}")
        return opened
    from swiftformer.engines.torch import TorchEngine

    if not hasattr(model, "config"):
        raise ValueError(f"model: expected a reference, an engine or a model, found {type(model).__name__}")
    if any(getattr(model, head, None) is not None for head in ("decode_head", "detection_head")):
        raise ValueError(f"expected a classifier, found a {type(model).__name__}")
    return TorchEngine.of_model(model, engine, device, precision, threads)


def names_of(sources: Sequence[ImageSource], names: Iterable[str] | None = None) -> list[str]:
    """What to call pictures in results: the names given, else their paths, otherwise their numbers.

    Raises:
        ValueError: another number of names than of pictures.
    """
    if names is None:
        paths = (os.fsdecode(s) if isinstance(s, (str, os.PathLike)) else None for s in sources)
        return [f"image {i}" if path is None else path for i, path in enumerate(paths)]
    called = [names] if isinstance(names, str) else list(names)
    if len(called) != len(sources):
        raise ValueError(f"names: expected one for each of {len(sources)} pictures, found {len(called)}")
    return called
