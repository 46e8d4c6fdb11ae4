"""Write a model for a device, run what was written, and compare it with the model before calling it done."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib import import_module, metadata, util
from pathlib import Path
from typing import TYPE_CHECKING, Any

import swiftformer
from swiftformer.artifact import Artifact, checksums, sha256
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
    """

    module: str
    needs: tuple[str, str]
    precisions: tuple[str, ...]
    dynamic: bool
    packages: tuple[str, ...]


FORMATS: dict[str, Format] = {
    "onnx": Format("onnx", ("onnxscript", "onnx"), ("fp32", "fp16", "int8"), True, ("onnx", "onnxscript")),
    "openvino": Format("openvino", ("openvino", "openvino"), ("fp32", "fp16", "bf16", "int8"), True, ("openvino",)),
    "torch-export": Format("torch_export", ("torch", ""), ("fp32", "fp16", "bf16"), True, ()),
    "aoti": Format("aoti", ("torch", ""), ("fp32", "bf16"), True, ()),
    "tensorrt": Format("onnx", ("onnxscript", "onnx"), ("fp32", "fp16"), False, ("onnx", "onnxscript")),
    "qnn": Format("onnx", ("onnxscript", "onnx"), ("fp32", "fp16"), False, ("onnx", "onnxscript")),
}

# Largest difference of the outputs over their largest value. For int8 this only catches nonsense: `evaluate` judges it.
TOLERANCES = {"fp32": 1e-4, "fp16": 0.02, "bf16": 0.1, "int8": 1.0}


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
        example: normalised images `(B, C, H, W)` float32, to trace with.
        calibration: the same, many of them, for int8.
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
        form: numeric form of a checkpoint, where its file cannot tell.

    Returns:
        The artifact, with the comparison.

    Raises:
        ExportError: unknown or unsuitable options, a missing package, or a result that differs by more than
            `TOLERANCES`; then nothing is written.
        CheckpointError: the model cannot be loaded.
        OSError: the output cannot be written.
    """
    from swiftformer.checkpoints import load
    from swiftformer.deploy import fuse
    from swiftformer.export.compare import compare, pictures
    from swiftformer.export.graph import DeployGraph

    target, precision = _checked(format, precision, calibration)
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
    example = pictures(images, preprocessing, channels)
    options = Options(
        format=format,
        precision=precision,
        batch=batch,
        size=size,
        softmax=softmax,
        normalize=normalize,
        labels=labels,
        example=example,
        calibration=pictures(calibration, preprocessing, channels) if calibration is not None else None,
    )
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
        preprocessing=fused.preprocessing if normalize and fused.preprocessing else preprocessing,
        labels=labels,
        source=_source(reference, net),
        versions={"swiftformer": swiftformer.__version__, **_versions("torch", *target.packages)},
    )
    output = Path(output)
    _check_writable(output)
    writer = import_module(f"swiftformer.export.{target.module}")
    with atomic_folder(output) as folder:
        file = writer.write(DeployGraph(fused, softmax=softmax), options, folder)
        artifact = replace(artifact, file=file, checksums=checksums(folder))
        artifact.write(folder)
        difference = compare(folder, net, example, options)
        artifact = replace(artifact, comparison=difference)
        artifact.write(folder)
    return artifact


def _checked(format: str, precision: str | None, calibration: Any) -> tuple[Format, str]:
    if format not in FORMATS:
        raise ExportError(f"unknown format {format!r}: expected one of {', '.join(FORMATS)}")
    target = FORMATS[format]
    precision = precision or target.precisions[0]
    if precision not in target.precisions:
        raise ExportError(f"{format}: expected a precision of {', '.join(target.precisions)}, found {precision!r}")
    if (precision == "int8") != (calibration is not None):
        wanted = "pictures to calibrate int8 with" if precision == "int8" else f"no calibration for {precision}"
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
