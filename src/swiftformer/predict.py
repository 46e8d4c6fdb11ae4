"""Classify pictures: from paths, folders, globs, bytes, arrays or tensors to labels with probabilities."""

from __future__ import annotations

import glob
import io
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from swiftformer.data.sources import is_image
from swiftformer.image_processing import HUB, ImageError, ImageSource
from swiftformer.locate import DEFAULT_MODEL

if TYPE_CHECKING:
    from swiftformer.hf import SwiftFormerForImageClassification


# What could be iterated over, but is a single picture.
ONE_IMAGE = (str, Path, bytes, bytearray, memoryview, np.ndarray, Image.Image, io.IOBase)


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

    A path that does not exist stays in the list, to be reported by name.

    Raises:
        ImageError: a folder without pictures, or a glob without matches.
    """
    found: list[tuple[str, ImageSource]] = []
    for reference in references:
        path = Path(reference).expanduser()
        if reference == "-":
            found.append(("-", sys.stdin.buffer.read()))
        elif path.is_dir():
            files = sorted(file for file in path.rglob("*") if is_image(file))
            if not files:
                raise ImageError(f"{reference}: expected a folder with images, found none")
            found += [(str(f), f) for f in files]
        elif not path.exists() and any(c in reference for c in "*?["):
            matches = sorted(glob.glob(str(path), recursive=True))  # noqa: PTH207 absolute patterns too
            if not matches:
                raise ImageError(f"{reference}: expected a pattern that matches files, found no match")
            for match in matches:
                found += find_images([match]) if Path(match).is_dir() else [(match, Path(match))]
        else:
            found.append((reference, path))
    return found


def classify(
    images: ImageSource | Iterable[ImageSource],
    model: str | Path | SwiftFormerForImageClassification = DEFAULT_MODEL,
    *,
    names: Iterable[str] | None = None,
    form: str | None = None,
    top_k: int = 5,
    batch_size: int = 16,
    device: str | None = None,
    skip_broken: bool = True,
) -> Iterator[Classified]:
    """Classify pictures in batches.

    Args:
        images: anything that `open_image` reads; one, or several.
        model: a checkpoint reference, or a model; one that did not come from `load` gets the hub's preprocessing.
        names: what to call the images in results; their paths by default.
        form: numeric form of the checkpoint, where its file cannot tell.
        top_k: classes per picture; fewer where the model has fewer.
        batch_size: pictures per forward pass.
        device: `cpu`, `cuda`, ...; CUDA if there is one.
        skip_broken: report a picture that cannot be read in its result's `error` and go on; False raises.

    Yields:
        A result for each picture, in order.

    Raises:
        ImageError: a picture cannot be read, and `skip_broken` is False.
        CheckpointError: the model cannot be loaded.
    """
    import torch

    from swiftformer.checkpoints import load
    from swiftformer.device import select_device

    if top_k < 1 or batch_size < 1:
        raise ValueError(f"expected top_k and batch_size of at least 1, found {top_k} and {batch_size}")
    net: Any = load(model, form=form, task="classification") if isinstance(model, (str, Path)) else model
    where = select_device(device)
    net = net.to(where).eval()
    preprocessing = getattr(net, "preprocessing", HUB)
    sources = list(images) if isinstance(images, Iterable) and not isinstance(images, ONE_IMAGE) else [images]
    called = list(names) if names is not None else [_name(s, i) for i, s in enumerate(sources)]
    for start in range(0, len(sources), batch_size):
        pixels: list[np.ndarray] = []
        errors: dict[int, str] = {}
        for i in range(start, min(start + batch_size, len(sources))):
            try:
                pixels.append(preprocessing.prepare(sources[i], called[i]))
            except ImageError as error:
                if not skip_broken:
                    raise
                errors[i] = str(error)
        probabilities = iter(())
        if pixels:
            with torch.inference_mode():
                logits = net(torch.from_numpy(np.stack(pixels)).to(where)).logits
            probabilities = iter(logits.float().softmax(dim=1).cpu())
        for i in range(start, min(start + batch_size, len(sources))):
            if i in errors:
                yield Classified(called[i], error=errors[i])
                continue
            best: Any = next(probabilities).topk(min(top_k, net.config.num_labels))
            yield Classified(
                called[i],
                [
                    Prediction(net.config.id2label[int(index)], int(index), float(probability))
                    for probability, index in zip(best.values, best.indices, strict=True)
                ],
            )


def _name(source: ImageSource, index: int) -> str:
    return str(source) if isinstance(source, (str, Path)) else f"image {index}"
