"""Segment pictures: the class of every pixel, from whatever a picture comes as."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from swiftformer.image_processing import Preprocessing
from swiftformer.images import ImageSource, listed
from swiftformer.predict import names_of, prepared
from swiftformer.sliding_windows import filled, resized_scores, slid

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

    def coco_results(self, image_id: int) -> list[dict[str, Any]]:
        """Entries of a COCO results file, in the form of COCO's stuff.

        Returns:
            `{"image_id", "category_id", "segmentation"}` of each class that occurs, categories counted from 1, its
            pixels as compressed run lengths in text.

        Raises:
            ValueError: pycocotools is not installed.
        """
        from swiftformer.detections import encode_masks

        if self.mask is None:
            return []
        indices = [share.index for share in self.classes]
        masks = encode_masks(self.mask == index for index in indices)
        return [
            {
                "image_id": image_id,
                "category_id": index + 1,
                "segmentation": mask | {"counts": mask["counts"].decode("ascii")},
            }
            for index, mask in zip(indices, masks, strict=True)
        ]


def segment(
    images: ImageSource | Iterable[ImageSource],
    model: str | Path | SwiftFormerForSemanticSegmentation | Engine,
    *,
    names: Iterable[str] | None = None,
    form: str | None = None,
    short_side: int | None = None,
    window: int = 0,
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
            wants it. A model with a fixed input gets pictures stretched to that, or windows of pictures of this size.
        window: side of the windows that slide over a picture, whose scores are averaged; 0 takes the whole picture at
            once. Of a model with a fixed input it must be the short side of that, and the windows are of its size.
        engine, device, precision, threads: of `swiftformer.engines.open_engine`; in torch the device is by default CUDA
            if there is one.
        skip_broken: report a picture that cannot be read in its result's `error` and go on; False raises.

    Yields:
        A result for each picture, in order.

    Raises:
        ImageError: a picture cannot be read, and `skip_broken` is False.
        CheckpointError, ArtifactError: the model cannot be loaded.
        EngineError: the engine is missing, or does not run this model.
        ValueError: no segmentation model, or a window that it does not take.
    """
    runner = open_segmenter(model, engine, device, precision, threads, form)
    size = window_of(runner, window)
    preprocessing = preprocessing_of(runner, short_side, slide=size is not None)
    sources = listed(images)
    called = names_of(sources, names)
    for name, image, pixels, error in prepared(sources, called, preprocessing, skip_broken):
        if image is None:
            yield SegmentationResult(name, error=error)
            continue
        mask = resized_classes(scores_of(runner, pixels, size), (image.height, image.width))
        yield SegmentationResult(name, mask, _shares(mask, runner.labels))


def scores_of(engine: Engine, pixels: np.ndarray, window: tuple[int, int] | None = None) -> np.ndarray:
    """The scores of every class in a picture `(C, H, W)`: `(classes, h, w)`; with a window `(classes, H, W)`.

    A picture that is smaller than the fixed input of an engine is filled up for it.
    """

    def run(batch: np.ndarray) -> np.ndarray:
        logits = engine(batch)["logits"]
        if logits.ndim != 4:
            raise ValueError(f"expected logits of shape (1, classes, height, width), found {logits.shape}")
        return logits

    if window is None:
        return run(pixels[None])[0]
    height, width = pixels.shape[1:]
    if engine.input_shape[2] is not None:
        pixels = filled(pixels, window, engine.preprocessing)
    return slid(run, pixels, window)[:, :height, :width]


def resized_classes(logits: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The class of every pixel, of logits `(classes, h, w)` resized bilinearly: `size`, uint8, or int32 for many."""
    best = np.full(size, -np.inf, dtype=np.float32)
    found = np.zeros(size, dtype=np.uint8 if len(logits) <= 256 else np.int32)
    for index, scores in enumerate(logits):
        # One class at a time: those of a large picture would need gigabytes.
        resized = resized_scores(scores, size)
        better = resized > best
        found[better] = index
        best[better] = resized[better]
    return found


def preprocessing_of(engine: Engine, short_side: int | None = None, slide: bool = False) -> Preprocessing:
    """How an engine wants pictures to segment: whole, and stretched where its input is fixed and no window slides.

    Args:
        slide: windows slide over the pictures, which by default are of their own size where the input is fixed.

    Raises:
        ValueError: no segmentation model, or another short side than that of a fixed input.
    """
    if "logits" not in engine.outputs:
        raise ValueError(f"expected a segmentation model, found one with the outputs {', '.join(engine.outputs)}")
    height, width = engine.input_shape[2:]
    if height is None or width is None:
        return engine.preprocessing.uncropped(short_side)
    if slide:
        return engine.preprocessing.uncropped(short_side or 0)
    if short_side not in (None, min(height, width)):
        raise ValueError(f"short_side: expected {min(height, width)}, as the input is fixed, found {short_side}")
    return replace(engine.preprocessing, size=(height, width), resize="squash", resize_to=None)


def window_of(engine: Engine, side: int) -> tuple[int, int] | None:
    """Height and width of the windows that an engine takes, None for `side` 0.

    Raises:
        ValueError: another side than the short one of a fixed input.
    """
    if side < 0:
        raise ValueError(f"window: expected at least 0 pixels, found {side}")
    height, width = engine.input_shape[2:]
    if side == 0:
        return None
    if height is None or width is None:
        return side, side
    if side != min(height, width):
        raise ValueError(f"window: expected {min(height, width)}, as the input is fixed, found {side}")
    return height, width


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
    if isinstance(model, (str, Path)):
        if not is_artifact(model):
            from swiftformer.locate import stored_task

            task = stored_task(model)
            if task != "segmentation":
                raise ValueError(f"{model}: expected a segmentation model, found one for {task}")
        return open_engine(model, engine, device=device, precision=precision, threads=threads, form=form)
    from swiftformer.engines.torch import TorchEngine

    net: Any = model
    expect_dense(net)
    return TorchEngine.of_model(net, engine, device, precision, threads)


def _shares(mask: np.ndarray, labels: tuple[str, ...]) -> list[ClassShare]:
    counts = np.bincount(mask.ravel(), minlength=len(labels))
    order = np.argsort(-counts, kind="stable").tolist()
    return [ClassShare(labels[i], i, 100 * int(counts[i]) / mask.size) for i in order if counts[i]]
