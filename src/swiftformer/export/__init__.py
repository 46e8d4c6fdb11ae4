"""Write a model for a device, run what was written, and compare it with the model before calling it done."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from importlib import import_module, metadata, util
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import swiftformer
from swiftformer.artifact import Artifact, ArtifactError, checksums, is_artifact, read_artifact, sha256
from swiftformer.engines.base import ONE_CLASS, BackendMissingError, package_of
from swiftformer.export.calibration import calibration_pictures
from swiftformer.export.formats import FORMATS, TOLERANCES, ExportError, Format, Options
from swiftformer.files import atomic_folder, check_writable
from swiftformer.image_processing import HUB, Preprocessing
from swiftformer.images import ImageSource
from swiftformer.labels import labels_of
from swiftformer.locate import WEIGHT_FILES

if TYPE_CHECKING:
    from swiftformer.hf import SwiftFormerPreTrainedModel

__all__ = ["FORMATS", "TOLERANCES", "ExportError", "Format", "Options", "calibration_pictures", "export", "top1_on"]

logger = logging.getLogger(__name__)
DETECTING = ("detection", "instances")
# fp16 is of the stored weights; what is computed stays in float32.
DETECTORS_TAKEN = {"onnx": ("fp32",), "openvino": ("fp32", "fp16"), "torch-export": ("fp32",)}


def export(
    model: str | Path | SwiftFormerPreTrainedModel,
    output: str | Path,
    format: str = "onnx",
    *,
    precision: str | None = None,
    batch: int | Literal["dynamic"] | None = None,
    size: tuple[int, int] | Literal["dynamic"] | None = None,
    softmax: bool = False,
    normalize: bool = False,
    images: Sequence[ImageSource] | None = None,
    calibration: Sequence[ImageSource] | None = None,
    max_drop: float | None = None,
    top1: Callable[[Any], float] | None = None,
    device: str = "cpu",
    form: str | None = None,
) -> Artifact:
    """Export a model from its fused form, run the result, and compare it with the model in PyTorch, in float32.

    Args:
        model: what `swiftformer.load` takes, or a model, which is not changed.
        output: folder of the artifact; a whole one that exists is replaced, and only by a whole one.
        format: a key of `FORMATS`.
        precision: one of the format's; its first by default.
        batch: images per call, or `"dynamic"`; by default dynamic where the size is, otherwise 1.
        size: height and width in pixels, or `"dynamic"`; by default dynamic where the format can be, otherwise the
            preprocessing's.
        softmax: give probabilities instead of logits.
        normalize: take pixels from 0 to 255, with the normalisation in the first convolution.
        images: pictures for the comparison; by default photographs that come with the package.
        calibration: pictures for int8, a few hundred like those that the model will see.
        max_drop: points of top-1 that int8 may lose: as many of the most sensitive layers stay in floating point as it
            takes. Needs `top1`.
        top1: the accuracy of a model or of the artifact in a folder, in percent, such as `top1_on` gives.
        device: `cpu` or `cuda`, to compile for; of aoti only.
        form: numeric form of a checkpoint, where its file cannot tell.

    Returns:
        The artifact, with the comparison; empty where the runtime here has no backend for the format.

    Raises:
        ExportError: unknown or unsuitable options, a missing package, or a result that differs by more than
            `TOLERANCES`; then nothing is written.
        CheckpointError: the model cannot be loaded.
        OSError: the output cannot be written.
    """
    import torch

    from swiftformer.checkpoints import load
    from swiftformer.deploy import fuse
    from swiftformer.device import select_device
    from swiftformer.export.compare import compare, pictures, raw_pixels
    from swiftformer.export.graph import DeployGraph
    from swiftformer.export.search import write_within_drop
    from swiftformer.hf import SwiftFormerPreTrainedModel

    output = Path(output)
    target, precision = _known(format, precision)
    if device != "cpu" and format != "aoti":
        raise ExportError(f"device: expected cpu for {format}, found {device!r}")
    try:
        select_device(device)
    except ValueError as error:
        raise ExportError(str(error)) from None
    reference = model if isinstance(model, (str, Path)) else None
    check_writable(output)
    if any((output / name).exists() for name in WEIGHT_FILES) and not is_artifact(output):
        raise ExportError(f"{output}: expected a folder for the artifact alone, found a checkpoint in it")
    given: Any = load(model, form=form) if isinstance(model, (str, Path)) else copy.deepcopy(model)
    if not isinstance(given, SwiftFormerPreTrainedModel):
        raise ExportError(f"expected a model as it is before fusing, found a {type(given).__name__}")
    net: Any = given.cpu().float().eval()
    net.preprocessing = getattr(net, "preprocessing", None) or HUB
    task = _task(net)
    if task in DETECTING:
        batch, size = _detector_shape(format, precision, batch, size, net.preprocessing)
    else:
        batch, size = _shape(format, batch, size, net.preprocessing)
    _check_calibration(target, format, precision, calibration, max_drop, top1)
    if size is not None:
        net.preprocessing = _resized(net.preprocessing, size, task)  # pictures that reach the model are of its size
    channels = net.config.num_channels
    labels = () if task == "backbone" else labels_of(net.config)
    if softmax and task != "classification":
        raise ExportError(f"softmax: expected a classifier, found a model for {task}")
    exclusive = getattr(net.config, "problem_type", None) in ONE_CLASS
    if softmax and not exclusive:
        raise ExportError(f"softmax: expected one class per picture, found a model for {net.config.problem_type}")
    if max_drop is not None and task != "classification":
        raise ExportError(f"max_drop: expected a classifier, found a model for {task}")
    if normalize and channels != 3:
        raise ExportError(f"normalize: expected a model of 3 channels, found {channels}")
    _expect_installed(target, format, precision)  # last of all: nobody should install what does not serve them
    if target.takes_images and labels and task == "classification" and exclusive:
        softmax, normalize = True, normalize or channels == 3

    def prepared(sources: Sequence[ImageSource] | None) -> Any:
        found = pictures(sources, net.preprocessing, channels)
        return raw_pixels(found, net.preprocessing) if normalize else found

    options = Options(
        format=format,
        precision=precision,
        batch=batch,
        size=size,
        softmax=softmax,
        normalize=normalize,
        labels=labels if task == "classification" and exclusive else (),
        example=prepared(images),
        calibration=prepared(calibration) if calibration is not None else None,
        device=device,
    )
    machine_code = {"cpu": torch.backends.cpu.get_cpu_capability()} if format == "aoti" and device == "cpu" else {}
    fused = fuse(net, raw_input=normalize)
    graph = DeployGraph(fused, softmax=softmax)
    assert fused.preprocessing is not None
    artifact = Artifact(
        format=format,
        precision=precision,
        file="",
        task=task,
        outputs=graph.outputs,
        channels=channels,
        batch=batch,
        size=size,
        value_range="0-255" if normalize else "normalized",
        preprocessing=fused.preprocessing,
        labels=labels,
        device=device,
        source=_source(reference, net),
        versions={"swiftformer": swiftformer.__version__, **_versions("torch", *target.packages), **machine_code},
    )
    writer = import_module(f"swiftformer.export.{target.module}")

    def write(folder: Path, float_layers: tuple[str, ...] = ()) -> None:
        file = writer.write(graph, replace(options, float_layers=float_layers), folder)
        replace(artifact, file=file, float_layers=float_layers, checksums=checksums(folder)).write(folder)

    earlier = _files(output)
    with atomic_folder(output) as folder:
        accuracy = {}
        if top1 is not None and max_drop is not None:
            accuracy["float_top1"] = top1(net)
            accuracy["top1"] = write_within_drop(
                fused, options.calibration, write, top1, folder, accuracy["float_top1"], max_drop
            )
        else:
            write(folder)
        try:
            difference = compare(folder, net, options)
        except BackendMissingError as reason:
            difference = {}
            logger.warning("%s: lowered, but not run and not compared: %s", output, reason)
        artifact = replace(read_artifact(folder), comparison=difference | accuracy)
        artifact.write(folder)
    for name in earlier - set(artifact.checksums):
        (output / name).unlink(missing_ok=True)
        for folder in [*Path(name).parents][:-1]:
            with suppress(OSError):  # it holds other files
                (output / folder).rmdir()
    return artifact


def top1_on(data: str, split: str | None = None) -> Callable[[Any], float]:
    """A function that measures the top-1 accuracy, in percent, of a model or of the artifact in a folder.

    Args:
        data, split: as `swiftformer.evaluate.classification.evaluate_reference` takes them.
    """
    from swiftformer.evaluate.classification import evaluate_reference

    def top1(model: Any) -> float:
        if isinstance(model, (str, Path)) and is_artifact(model):
            engine = FORMATS[read_artifact(model).format].compared_in
            return evaluate_reference(model, data, split, engine=engine)["top1"]
        return evaluate_reference(model, data, split, device="cpu")["top1"]

    return top1


def _known(format: str, precision: str | None) -> tuple[Format, str]:
    if format not in FORMATS:
        raise ExportError(f"unknown format {format!r}: expected one of {', '.join(FORMATS)}")
    target = FORMATS[format]
    precision = precision or target.precisions[0]
    if precision not in target.precisions:
        raise ExportError(f"{format}: expected a precision of {', '.join(target.precisions)}, found {precision!r}")
    return target, precision


def _check_calibration(
    target: Format, format: str, precision: str, calibration: Any, max_drop: float | None, top1: Any
) -> None:
    calibrated = precision == "int8" and target.calibrated
    if calibrated != (calibration is not None):
        if calibrated:
            raise ExportError(
                f"{format}: expected pictures to calibrate int8 with, found none; --calibration takes a folder"
            )
        raise ExportError(f"{format}: expected no calibration for {precision}, found some")
    if (max_drop is None) != (top1 is None) or (max_drop is not None and not calibrated):
        raise ExportError(
            "max_drop: expected together with int8 that is calibrated, and a measure of accuracy, found it without"
        )


def _expect_installed(target: Format, format: str, precision: str) -> None:
    for module in (*target.needs, *(target.int8_needs if precision == "int8" else ())):
        if util.find_spec(module) is None:
            raise ExportError(f"{format} {precision} needs {module}: pip install {package_of(target.extra)}")


def _shape(
    format: str,
    batch: int | Literal["dynamic"] | None,
    size: tuple[int, int] | Literal["dynamic"] | None,
    preprocessing: Preprocessing,
) -> tuple[int | None, tuple[int, int] | None]:
    """Batch and size, None for what is free."""
    dynamic, least = FORMATS[format].dynamic, FORMATS[format].least_free
    if size not in (None, "dynamic") and not _are_counts(size, 2):
        raise ExportError(f"size: expected height and width, or 'dynamic', found {size!r}")
    if batch not in (None, "dynamic") and not _are_counts([batch], 1):
        raise ExportError(f"batch: expected a number of at least 1, or 'dynamic', found {batch!r}")
    for name, value in (("batch", batch), ("size", size)):
        if value == "dynamic" and not dynamic:
            raise ExportError(f"{format} takes inputs of one shape only: expected a fixed {name}, found dynamic")
    if size is None:
        size = "dynamic" if dynamic and min(preprocessing.size) >= least else preprocessing.size
    if batch is None:
        batch = "dynamic" if size == "dynamic" else 1
    pixels = min(preprocessing.size if size == "dynamic" else size)
    if pixels < 32:
        raise ExportError(f"expected a size of at least 32 pixels, found {pixels}")
    if size == "dynamic" and pixels < least:
        raise ExportError(f"{format} takes free sizes of at least {least} pixels: expected a fixed size for {pixels}")
    return (None if batch == "dynamic" else int(batch)), (None if size == "dynamic" else _as_ints(size))


def _are_counts(values: Any, length: int) -> bool:
    return (
        isinstance(values, (tuple, list))
        and len(values) == length
        and all(isinstance(value, Integral) and not isinstance(value, bool) and int(value) >= 1 for value in values)
    )


def _as_ints(size: Sequence[int]) -> tuple[int, int]:
    height, width = size
    return int(height), int(width)


def _detector_shape(
    format: str,
    precision: str,
    batch: int | Literal["dynamic"] | None,
    size: tuple[int, int] | Literal["dynamic"] | None,
    preprocessing: Preprocessing,
) -> tuple[int, tuple[int, int]]:
    """One picture of a fixed size: the graph's anchors are those of a size, and boxes need float32."""
    if precision not in DETECTORS_TAKEN.get(format, ()):
        taken = "; ".join(f"{name} {' or '.join(precisions)}" for name, precisions in DETECTORS_TAKEN.items())
        raise ExportError(f"detectors are exported to {taken}: found {format} {precision}")
    if batch not in (None, 1) or isinstance(size, str) or not (size is None or _are_counts(size, 2)):
        raise ExportError(f"detectors take one picture of a fixed size: found batch {batch} and size {size}")
    size = preprocessing.size if size is None else size
    if min(size) < 32 or size[0] % 32 or size[1] % 32:
        raise ExportError(f"expected a height and width of multiples of 32 for a detector, found {size[0]}x{size[1]}")
    return 1, _as_ints(size)


def _resized(preprocessing: Preprocessing, size: tuple[int, int], task: str) -> Preprocessing:
    """For another size, with as much of a picture around the crop as before, and none of it beyond the picture.

    Pictures that are left whole are squashed, or for a detector, whose anchors have proportions, filled up: a graph of
    one size takes nothing else, and no part of them may go.
    """
    if preprocessing.resize == "whole":
        resize: Any = "fit" if task in DETECTING else "squash"
        return replace(preprocessing, size=size, resize=resize, resize_to=None, longest=None)
    ratio = max(new / old for new, old in zip(size, preprocessing.size, strict=True))
    resize_to = None if preprocessing.resize_to is None else max(round(preprocessing.resize_to * ratio), *size)
    return replace(preprocessing, size=size, resize_to=resize_to)


def _files(output: Path) -> set[str]:
    """Of the whole artifact that stands in a folder, if there is one: what a damaged one names is left alone."""
    try:
        return set(read_artifact(output).checksums)
    except ArtifactError:
        return set()


def _task(net: Any) -> str:
    if hasattr(net, "detection_head"):
        return "instances" if net.with_masks else "detection"
    if hasattr(net, "decode_head"):
        return "segmentation"
    return "classification" if hasattr(net, "head") else "backbone"


def _source(reference: str | Path | None, net: Any) -> dict[str, Any]:
    report = getattr(net, "load_report", None)
    source: dict[str, Any] = {"model": str(reference) if reference is not None else type(net).__name__}
    source["form"] = net.config.form
    if net.config.problem_type not in ONE_CLASS:
        source["problem_type"] = net.config.problem_type
    if reference is not None and report is not None:  # a model may have learned since it was loaded
        source["sha256"] = sha256(report.weights)
    return source


def _versions(*packages: str) -> dict[str, str]:
    """Of those that go by these names: what is imported as onnxruntime may have come as onnxruntime-gpu."""
    found = {}
    for package in packages:
        with suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found
