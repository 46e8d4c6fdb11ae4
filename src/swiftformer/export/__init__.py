"""Write a model for a device, run what was written, and compare it with the model before calling it done."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib import import_module, metadata, util
from pathlib import Path
from typing import TYPE_CHECKING, Any

import swiftformer
from swiftformer.artifact import Artifact, checksums, read_artifact, sha256
from swiftformer.engines.base import BackendMissingError
from swiftformer.files import atomic_folder
from swiftformer.image_processing import HUB, ImageSource

if TYPE_CHECKING:
    from swiftformer.hf import SwiftFormerPreTrainedModel

__all__ = ["FORMATS", "ExportError", "Format", "export"]

logger = logging.getLogger(__name__)


class ExportError(ValueError):
    """A model, a format or an option that cannot be exported, or an export that does not agree with its model."""


@dataclass(frozen=True)
class Format:
    """A target.

    Attributes:
        module: of this package, with `write(graph, options, folder) -> file name`.
        needs: module that must be installed, and the extra that installs it.
        precisions: the first is the default.
        dynamic: whether batch and size may be free; otherwise they are fixed.
        packages: whose versions are noted in the artifact.
        calibrated: whether int8 wants pictures to calibrate with.
        takes_images: whether a classifier of three channels takes images and gives probabilities: normalisation and
            softmax are then always in the graph.
    """

    module: str
    needs: tuple[str, str]
    precisions: tuple[str, ...]
    dynamic: bool
    packages: tuple[str, ...]
    calibrated: bool = True
    takes_images: bool = False


FORMATS: dict[str, Format] = {
    "onnx": Format("onnx", ("onnxscript", "onnx"), ("fp32", "fp16", "int8"), True, ("onnx", "onnxscript")),
    "openvino": Format("openvino", ("openvino", "openvino"), ("fp32", "fp16", "bf16", "int8"), True, ("openvino",)),
    "torch-export": Format("torch_export", ("torch", ""), ("fp32", "fp16", "bf16"), True, ()),
    "aoti": Format("aoti", ("torch", ""), ("fp32", "bf16"), True, ()),
    "tensorrt": Format("onnx", ("onnxscript", "onnx"), ("fp32", "fp16"), False, ("onnx", "onnxscript")),
    "qnn": Format("onnx", ("onnxscript", "onnx"), ("fp32", "fp16"), False, ("onnx", "onnxscript")),
    "coreml": Format(
        "coreml",
        ("coremltools", "coreml"),
        ("fp16", "fp32", "int8", "palettized"),
        False,
        ("coremltools",),
        calibrated=False,
        takes_images=True,
    ),
    "executorch": Format("executorch", ("executorch", "executorch"), ("fp32", "int8"), False, ("executorch",)),
    "executorch-coreml": Format("executorch", ("executorch", "executorch"), ("fp16", "fp32"), False, ("executorch",)),
    "executorch-vulkan": Format("executorch", ("executorch", "executorch"), ("fp32", "fp16"), False, ("executorch",)),
    "litert": Format("litert", ("litert_torch", "litert"), ("fp32", "fp16", "int8"), False, ("litert-torch",)),
}

# Largest difference of the outputs over their largest value. For int8 and palettes this only catches nonsense:
# `evaluate` judges them.
TOLERANCES = {"fp32": 1e-4, "fp16": 0.02, "bf16": 0.1, "int8": 1.0, "palettized": 1.0}


@dataclass(frozen=True)
class Options:
    """What an exporter is asked for.

    Attributes:
        format, precision: a key of `FORMATS`, and one of its precisions.
        batch, size: fixed number of images, and height and width in pixels; None leaves them free.
        softmax: probabilities instead of logits.
        normalize: take pixels from 0 to 255.
        preprocessing: of the exported model, for targets that take pictures themselves.
        labels: names of the classes.
        example: images as the graph takes them, `(B, C, H, W)` float32, to trace with.
        calibration: the same, many of them, for int8.
        float_layers: of int8, names of layers of the fused network to leave in floating point.
        device: to compile for, where the target is compiled here.
    """

    format: str
    precision: str
    batch: int | None
    size: tuple[int, int] | None
    softmax: bool
    normalize: bool
    labels: tuple[str, ...]
    example: Any
    calibration: Any = None
    float_layers: tuple[str, ...] = ()
    device: str = "cpu"


def export(
    model: str | Path | SwiftFormerPreTrainedModel,
    output: str | Path,
    format: str = "onnx",
    *,
    precision: str | None = None,
    batch: int | None = None,
    size: tuple[int, int] | None = None,
    dynamic: bool | None = None,
    softmax: bool = False,
    normalize: bool = False,
    images: Sequence[ImageSource] | None = None,
    calibration: Sequence[ImageSource] | None = None,
    max_drop: float | None = None,
    top1: Callable[[Any], float] | None = None,
    form: str | None = None,
) -> Artifact:
    """Export a model from its fused form, run the result, and compare it with the model in PyTorch.

    Args:
        model: what `swiftformer.load` takes, or a classifier or backbone.
        output: folder of the artifact; one that exists is replaced file by file, and only by a whole artifact.
        format: a key of `FORMATS`.
        precision: one of the format's; its first by default.
        batch: images per call; with a fixed size 1 by default.
        size: height and width in pixels; by default the preprocessing's where sizes are fixed.
        dynamic: leave the size free, and the batch too unless it is given; by default where the format can.
        softmax: give probabilities instead of logits.
        normalize: take pixels from 0 to 255, with the normalisation in the first convolution.
        images: pictures for the comparison; by default photographs that come with the package.
        calibration: pictures for int8, a few hundred like those that the model will see.
        max_drop: points of top-1 that int8 may lose: as many of the most sensitive layers stay in floating point as it
            takes. Needs `top1`.
        top1: the accuracy of a model or of the artifact in a folder, in percent, such as `swiftformer.evaluate`'s.
        form: numeric form of a checkpoint, where its file cannot tell.

    Returns:
        The artifact, with the comparison; empty where the runtime here has no backend for the format.

    Raises:
        ExportError: unknown or unsuitable options, a missing package, or a result that differs by more than
            `TOLERANCES`; then nothing is written.
        CheckpointError: the model cannot be loaded.
        OSError: the output cannot be written.
    """
    from swiftformer.checkpoints import load
    from swiftformer.deploy import fuse
    from swiftformer.export.compare import compare, pictures, raw_pixels
    from swiftformer.export.graph import DeployGraph
    from swiftformer.export.search import write_within_drop

    target, precision = _checked(format, precision, calibration)
    if (max_drop is None) != (top1 is None) or (
        max_drop is not None and not (precision == "int8" and target.calibrated)
    ):
        raise ExportError(
            "max_drop: expected together with int8 that is calibrated, and a measure of accuracy, found it without"
        )
    reference = model if isinstance(model, (str, Path)) else None
    net: Any = load(reference, form=form) if reference is not None else model
    net = net.eval()
    if dynamic and not target.dynamic:
        raise ExportError(f"{format} takes inputs of one size only: expected a fixed size, found dynamic=True")
    free = size is None and (target.dynamic if dynamic is None else dynamic)
    preprocessing = getattr(net, "preprocessing", None) or HUB
    if not free:
        size, batch = size or preprocessing.size, batch or 1
        if min(size) < 32 or batch < 1:
            raise ExportError(
                f"expected a size of at least 32 pixels and a batch of at least 1, found {size} and {batch}"
            )
        # Pictures that reach the model are of its size.
        preprocessing = replace(
            preprocessing, size=size, resize_to=round(preprocessing.short_side * min(size) / min(preprocessing.size))
        )
    classifier = hasattr(net.config, "id2label") and hasattr(net, "head")
    if softmax and not classifier:
        raise ExportError("softmax: expected a classifier, found a backbone")
    labels = tuple(net.config.id2label[i] for i in range(net.num_labels)) if classifier else ()
    channels = net.config.num_channels
    if target.takes_images and labels:
        softmax, normalize = True, normalize or channels == 3
    example = pictures(images, preprocessing, channels)
    options = Options(
        format=format,
        precision=precision,
        batch=batch,
        size=size,
        softmax=softmax,
        normalize=normalize,
        labels=labels,
        example=raw_pixels(example, preprocessing) if normalize else example,
    )
    if calibration is not None:
        prepared = pictures(calibration, preprocessing, channels)
        options = replace(options, calibration=raw_pixels(prepared, preprocessing) if normalize else prepared)
    fused = fuse(net, raw_input=normalize)
    outputs = tuple(fused.out_features) or (("probabilities",) if softmax else ("logits",))
    artifact = Artifact(
        format=format,
        precision=precision,
        file="",
        task="classification" if classifier else "backbone",
        outputs=outputs,
        channels=channels,
        batch=batch,
        size=size,
        value_range="0-255" if normalize else "normalized",
        preprocessing=(
            replace(preprocessing, mean=fused.preprocessing.mean, std=fused.preprocessing.std)
            if normalize and fused.preprocessing
            else preprocessing
        ),
        labels=labels,
        source=_source(reference, net),
        versions={"swiftformer": swiftformer.__version__, **_versions("torch", *target.packages)},
    )
    output = Path(output)
    _check_writable(output)
    writer = import_module(f"swiftformer.export.{target.module}")
    graph = DeployGraph(fused, softmax=softmax)

    def write(folder: Path, float_layers: tuple[str, ...] = ()) -> None:
        file = writer.write(graph, replace(options, float_layers=float_layers), folder)
        replace(artifact, file=file, float_layers=float_layers, checksums=checksums(folder)).write(folder)

    with atomic_folder(output) as folder:
        accuracy = {}
        if top1 is not None and max_drop is not None:
            accuracy["float_top1"] = top1(net)
            inputs = options.calibration
            _, accuracy["top1"] = write_within_drop(
                fused, inputs, write, top1, folder, accuracy["float_top1"], max_drop
            )
        else:
            write(folder)
        try:
            difference = compare(folder, net, example, options)
        except BackendMissingError as reason:
            difference = {}
            logger.warning("%s: lowered, but not run and not compared: %s", output, reason)
        artifact = replace(read_artifact(folder), comparison=difference | accuracy)
        artifact.write(folder)
    return artifact


def calibration_pictures(data: str | Path, count: int) -> list[ImageSource]:
    """Pictures spread evenly over a folder of pictures or a data set's training split.

    Raises:
        ValueError: no such data, or no pictures in it.
    """
    from swiftformer.data.sources import open_source
    from swiftformer.predict import find_images

    folder = Path(data)
    if folder.is_dir() and not any(child.is_dir() for child in folder.iterdir()) and not list(folder.glob("*.parquet")):
        found = [source for _, source in find_images([str(data)])]
        return found[:: max(len(found) // count, 1)][:count]
    source = open_source(str(data), "train")
    return [source.image(i) for i in range(0, len(source), max(len(source) // count, 1))][:count]


def top1_on(data: str) -> Callable[[Any], float]:
    """A function that measures the top-1 accuracy, in percent, of a model or of the artifact in a folder."""
    from swiftformer.evaluate.classification import evaluate_reference

    return lambda model: evaluate_reference(model, data)["top1"]


def _checked(format: str, precision: str | None, calibration: Any) -> tuple[Format, str]:
    if format not in FORMATS:
        raise ExportError(f"unknown format {format!r}: expected one of {', '.join(FORMATS)}")
    target = FORMATS[format]
    precision = precision or target.precisions[0]
    if precision not in target.precisions:
        raise ExportError(f"{format}: expected a precision of {', '.join(target.precisions)}, found {precision!r}")
    calibrated = precision == "int8" and target.calibrated
    if calibrated != (calibration is not None):
        wanted = "pictures to calibrate int8 with" if calibrated else f"no calibration for {precision}"
        raise ExportError(f"{format}: expected {wanted}, found {'none' if calibration is None else 'some'}")
    module, extra = target.needs
    if util.find_spec(module) is None:
        raise ExportError(f"the format {format} needs {module}: pip install 'swiftformer[{extra}]'")
    return target, precision


def _check_writable(output: Path) -> None:
    """Before minutes of work: the nearest folder that exists must take a new file."""
    folder = output
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    if not folder.is_dir():
        raise NotADirectoryError(f"{folder}: expected a folder, found a file")
    if not os.access(folder, os.W_OK):
        raise PermissionError(f"{folder}: expected a folder that can be written to")


def _source(reference: str | Path | None, net: Any) -> dict[str, Any]:
    report = getattr(net, "load_report", None)
    source: dict[str, Any] = {"model": str(reference) if reference is not None else type(net).__name__}
    source["form"] = net.config.form
    if report is not None:
        source["sha256"] = sha256(report.path) if report.path.is_file() else _weights_checksum(report.path)
    return source


def _weights_checksum(folder: Path) -> str:
    files = [*folder.glob("*.safetensors"), *folder.glob("*.bin")]
    return sha256(min(files)) if files else ""


def _versions(*packages: str) -> dict[str, str]:
    return {package: metadata.version(package) for package in packages}
