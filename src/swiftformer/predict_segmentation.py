"""Segment pictures: the class of every pixel, from whatever a picture comes as."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from swiftformer.image_processing import ImageError, ImageSource, Preprocessing, open_image
from swiftformer.predict import listed, names_of

if TYPE_CHECKING:
    from swiftformer.engines import Engine
    from swiftformer.segmentation import SwiftFormerForSemanticSegmentation


@dataclass(frozen=True)
class ClassShare:
    """A class and how much of the picture it covers, in percent."""

    label: str
    index: int
    percent: float


@dataclass(frozen=True, eq=False)
class SegmentationResult:
    """One picture's classes, or the reason why there are none.

    Attributes:
        mask: `(height, width)` class indices at the picture's own size (upright, where its metadata turn it), uint8
            for up to 256 classes, otherwise int32; None where there is an error.
        classes: those that occur, the largest first.
    """

    image: str
    mask: np.ndarray | None = None
    classes: list[ClassShare] = field(default_factory=list)
    error: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """For JSON: `{"image", "height", "width", "classes": [{"label", "index", "percent"}], "error"?}`."""
        fields: dict[str, Any] = {"image": self.image}
        if self.mask is not None:
            fields |= {"height": self.mask.shape[0], "width": self.mask.shape[1]}
        fields["classes"] = [vars(share) for share in self.classes]
        return fields | ({"error": self.error} if self.error else {})


def segment(
    images: ImageSource | Iterable[ImageSource],
    model: str | Path | SwiftFormerForSemanticSegmentation | Engine,
    *,
    names: Iterable[str] | None = None,
    form: str | None = None,
    short_side: int | None = None,
    engine: str = "auto",
    device: str | None = None,
    precision: str | None = None,
    threads: int | None = None,
    skip_broken: bool = True,
) -> Iterator[SegmentationResult]:
    """Segment pictures, one at a time, as each may have another size.

    Args:
        images: anything that `open_image` reads; one, or several.
        model: a checkpoint reference, the folder of an exported artifact, an engine that gives `logits`, or a model.
        names: what to call the images in results; their paths by default.
        form: numeric form of the checkpoint, where its file cannot tell.
        short_side: pixels that the short side of a picture is resized to, 0 for its own size; by default as the model
            wants it. A model with a fixed input gets pictures stretched to that.
        engine, device, precision, threads: of `swiftformer.engines.open_engine`; in torch the device is by default CUDA
            if there is one.
        skip_broken: report a picture that cannot be read in its result's `error` and go on; False raises.

    Yields:
        A result for each picture, in order.

    Raises:
        ImageError: a picture cannot be read, and `skip_broken` is False.
        CheckpointError, ArtifactError: the model cannot be loaded.
        EngineError: the engine is missing, or does not run this model.
        ValueError: no segmentation model.
    """
    runner = open_segmenter(model, engine, device, precision, threads, form)
    preprocessing = preprocessing_of(runner, short_side)
    sources = listed(images)
    called = list(names) if names is not None else names_of(sources)
    for source, name in zip(sources, called, strict=True):
        try:
            image = open_image(source, name)
            pixels = preprocessing.prepare(image, name)
        except ImageError as error:
            if not skip_broken:
                raise
            yield SegmentationResult(name, error=str(error))
            continue
        logits = runner(pixels[None])["logits"]
        if logits.ndim != 4:
            raise ValueError(f"expected logits of shape (1, classes, height, width), found {logits.shape}")
        mask = resized_classes(logits[0], (image.height, image.width))
        yield SegmentationResult(name, mask, _shares(mask, runner.labels))


def resized_classes(logits: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The class of every pixel, of logits `(classes, h, w)` resized bilinearly: `size`, uint8, or int32 for many."""
    height, width = size
    best = np.full(size, -np.inf, dtype=np.float32)
    found = np.zeros(size, dtype=np.uint8 if len(logits) <= 256 else np.int32)
    for index, scores in enumerate(np.asarray(logits, dtype=np.float32)):
        # One class at a time: those of a large picture would need gigabytes.
        resized = np.asarray(Image.fromarray(scores).resize((width, height), Image.Resampling.BILINEAR))
        better = resized > best
        found[better] = index
        best[better] = resized[better]
    return found


def preprocessing_of(engine: Engine, short_side: int | None = None) -> Preprocessing:
    """How an engine wants pictures to segment: whole, and stretched where its input is fixed.

    Raises:
        ValueError: no segmentation model, or another short side than that of a fixed input.
    """
    if "logits" not in engine.outputs:
        raise ValueError(f"expected a segmentation model, found one with the outputs {', '.join(engine.outputs)}")
    height, width = engine.input_shape[2:]
    if height is None or width is None:
        return engine.preprocessing.uncropped(short_side)
    if short_side not in (None, min(height, width)):
        raise ValueError(f"short_side: expected {min(height, width)}, as the input is fixed, found {short_side}")
    return replace(engine.preprocessing, size=(height, width), resize="squash", resize_to=None)


def expect_dense(model: Any) -> None:
    """Raise ValueError for a model that segments nothing."""
    if getattr(model, "decode_head", None) is None:
        raise ValueError(f"expected a segmentation model, found a {type(model).__name__}")


def open_segmenter(
    model: str | Path | SwiftFormerForSemanticSegmentation | Engine,
    engine: str = "auto",
    device: str | None = None,
    precision: str | None = None,
    threads: int | None = None,
    form: str | None = None,
) -> Engine:
    """An engine for what `segment` takes as a model: a checkpoint in its fused form, a model as it is."""
    from swiftformer.artifact import is_artifact
    from swiftformer.engines import Engine, open_engine

    if isinstance(model, Engine):
        return model
    if isinstance(model, (str, Path)) and is_artifact(model):
        return open_engine(model, engine, device=device, precision=precision, threads=threads, form=form)
    from swiftformer.checkpoints import load
    from swiftformer.deploy import fuse
    from swiftformer.engines.torch import TorchEngine

    net: Any = load(model, form=form) if isinstance(model, (str, Path)) else model
    expect_dense(net)
    labels = tuple(net.config.id2label[i] for i in range(net.config.num_labels))
    if isinstance(model, (str, Path)):
        net = fuse(net)
    mode = "torch" if engine == "auto" else engine
    return TorchEngine(net.eval(), labels, mode=mode, device=device, precision=precision, threads=threads)


def _shares(mask: np.ndarray, labels: tuple[str, ...]) -> list[ClassShare]:
    counts = np.bincount(mask.ravel(), minlength=len(labels))
    order = np.argsort(-counts, kind="stable").tolist()
    return [ClassShare(labels[i], i, 100 * int(counts[i]) / mask.size) for i in order if counts[i]]
