"""Detect objects in pictures: boxes with classes and scores, and masks where the model gives them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from swiftformer.detections import Detections, post_process
from swiftformer.image_processing import Preprocessing
from swiftformer.images import ImageSource, listed
from swiftformer.predict import names_of, prepared

if TYPE_CHECKING:
    from swiftformer.detection import SwiftFormerForObjectDetection
    from swiftformer.engines import Engine

OUTPUTS = ("scores", "labels", "boxes")


@dataclass(frozen=True, eq=False)
class DetectionResult:
    """One picture's objects, or the reason why there are none.

    Attributes:
        size: height and width of the picture in pixels (upright, where its metadata turn it).
        detections: in the picture's pixels; None where there is an error.
        labels: names of all classes.
    """

    image: str
    size: tuple[int, int] | None = None
    detections: Detections | None = None
    labels: tuple[str, ...] = ()
    error: str | None = None

    def objects(self) -> list[dict[str, Any]]:
        """`{"label", "index", "score", "box": [x0, y0, x1, y1], "area"?}`, best first; the area is the mask's."""
        if self.detections is None:
            return []
        found = self.detections
        entries: list[dict[str, Any]] = [
            {
                "label": self.labels[index],
                "index": index,
                "score": round(score, 4),
                "box": [round(value, 2) for value in box],
            }
            for index, score, box in zip(
                found.labels.tolist(), found.scores.tolist(), found.boxes.tolist(), strict=True
            )
        ]
        if found.masks is not None:
            for entry, area in zip(entries, found.masks.sum(axis=(1, 2)).tolist(), strict=True):
                entry["area"] = area
        return entries

    def to_dict(self) -> dict[str, Any]:
        """For JSON: `{"image", "height", "width", "objects", "error"?}`, see `objects`."""
        fields: dict[str, Any] = {"image": self.image}
        if self.size is not None:
            fields |= {"height": self.size[0], "width": self.size[1]}
        return fields | {"objects": self.objects()} | ({"error": self.error} if self.error else {})


def detect(
    images: ImageSource | Iterable[ImageSource],
    model: str | Path | SwiftFormerForObjectDetection | Engine,
    *,
    names: Iterable[str] | None = None,
    form: str | None = None,
    short_side: int | None = None,
    threshold: float = 0.5,
    engine: str = "auto",
    device: str | None = None,
    precision: str | None = None,
    threads: int | None = None,
    skip_broken: bool = True,
) -> Iterator[DetectionResult]:
    """Detect objects in pictures, one picture at a time, as each may have another size.

    Args:
        images: anything that `open_image` reads; one, or several.
        model: a checkpoint reference, the folder of an exported artifact, an engine that gives boxes, or a model.
        names: what to call the images in results; their paths by default.
        form: numeric form of the checkpoint, where its file cannot tell.
        short_side: pixels that the short side of a picture is resized to, 0 for its own size; by default as the model
            wants it. A model with a fixed input gets pictures filled up to that.
        threshold: lowest score of the objects in results, from 0 to 1.
        engine, device, precision, threads: of `swiftformer.engines.open_engine`; in torch the device is by default CUDA
            if there is one.
        skip_broken: report a picture that cannot be read in its result's `error` and go on; False raises.

    Yields:
        A result for each picture, in order.

    Raises:
        ImageError: a picture cannot be read, and `skip_broken` is False.
        CheckpointError, ArtifactError: the model cannot be loaded.
        EngineError: the engine is missing, or does not run this model.
        ValueError: no detector, or a threshold that is none.
    """
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold: expected a score from 0 to 1, found {threshold}")
    runner = open_detector(model, engine, device, precision, threads, form)
    preprocessing = preprocessing_of(runner, short_side)
    sources = listed(images)
    called = names_of(sources, names)
    for name, image, pixels, error in prepared(sources, called, preprocessing, skip_broken):
        if image is None:
            yield DetectionResult(name, labels=runner.labels, error=error)
            continue
        outputs = {key: rows[0] for key, rows in runner(pixels[None]).items()}
        size = (image.height, image.width)
        found = post_process(outputs, size, threshold, preprocessing.extent(size))
        yield DetectionResult(name, size, found, runner.labels)


def preprocessing_of(engine: Engine, short_side: int | None = None) -> Preprocessing:
    """How an engine wants pictures to detect objects in: whole, and filled up where its input is fixed.

    Raises:
        ValueError: no detector, or another short side than that of a fixed input.
    """
    if not {*OUTPUTS} <= {*engine.outputs}:
        raise ValueError(f"expected a detector, found a model with the outputs {', '.join(engine.outputs)}")
    height, width = engine.input_shape[2:]
    if height is None or width is None:
        return engine.preprocessing.uncropped(short_side)
    if short_side not in (None, min(height, width)):
        raise ValueError(f"short_side: expected {min(height, width)}, as the input is fixed, found {short_side}")
    return replace(engine.preprocessing, size=(height, width), resize="fit", resize_to=None, longest=None)


def expect_detector(model: Any) -> None:
    """Raise ValueError for a model that detects nothing."""
    if getattr(model, "detection_head", None) is None:
        raise ValueError(f"expected a detector, found a {type(model).__name__}")


def gives_masks(model: Any) -> bool:
    """Whether a detector gives a mask for every object."""
    outputs = getattr(model, "outputs", None)  # of the fused form
    return bool(model.with_masks) if outputs is None else "masks" in outputs


def open_detector(
    model: str | Path | SwiftFormerForObjectDetection | Engine,
    engine: str = "auto",
    device: str | None = None,
    precision: str | None = None,
    threads: int | None = None,
    form: str | None = None,
) -> Engine:
    """An engine for what `detect` takes as a model: a checkpoint in its fused form, a model as it is."""
    from swiftformer.artifact import is_artifact
    from swiftformer.engines import TORCH_MODES, Engine, EngineError, open_engine

    if isinstance(model, Engine):
        return model
    if isinstance(model, (str, Path)) and is_artifact(model):
        return open_engine(model, engine, device=device, precision=precision, threads=threads, form=form)
    if engine not in ("auto", "torch", *TORCH_MODES):
        called = model if isinstance(model, (str, Path)) else type(model).__name__
        raise EngineError(
            f"{called}: a detector runs in torch; expected an artifact of `swiftformer export` for engine {engine}, "
            "found none"
        )
    from torch import nn

    from swiftformer.checkpoints import load
    from swiftformer.deploy import DeployModel, fuse
    from swiftformer.engines.torch import TorchEngine

    class InOrder(nn.Module):
        """A detector whose outputs are a tuple in the order of their names, as those of a fused one are."""

        def __init__(self, net: nn.Module, names: tuple[str, ...]) -> None:
            super().__init__()
            self.net, self.names, self.training = net, names, net.training
            self.preprocessing, self.config = getattr(net, "preprocessing", None), net.config

        def forward(self, pixels: Any) -> tuple[Any, ...]:
            outputs = self.net(pixels)
            return outputs if type(outputs) is tuple else tuple(outputs[name] for name in self.names)

    net: Any = load(model, form=form) if isinstance(model, (str, Path)) else model
    expect_detector(net)
    if isinstance(model, (str, Path)):
        net = fuse(net)
    if isinstance(net, DeployModel):
        mode = "torch" if engine == "auto" else engine
        return TorchEngine.fused(net, mode=mode, device=device, precision=precision, threads=threads)
    if precision not in (None, "fp32"):
        raise EngineError(f"precision: expected fp32 for a detector, found {precision}")
    outputs = (*OUTPUTS, "masks") if gives_masks(net) else OUTPUTS
    return TorchEngine.of_model(InOrder(net, outputs), engine, device, threads=threads, outputs=outputs)
