"""What can be exported, and what is asked of an exporter."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


class ExportError(ValueError):
    """A model, a format or an option that cannot be exported, or an export that does not agree with its model."""


@dataclass(frozen=True)
class Format:
    """A target.

    Attributes:
        module: of this package, with `write(graph, options, folder) -> file name`.
        extra: of this package's extras, that installs what is needed.
        needs: modules that must be installed.
        precisions: the first is the default.
        int8_needs: modules that int8 needs besides.
        dynamic: whether batch and size may be free; otherwise they are fixed.
        least_free: pixels that a free side has at least.
        packages: whose versions are noted in the artifact.
        calibrated: whether int8 wants pictures to calibrate with.
        takes_images: whether a classifier of three channels takes images and gives probabilities: normalisation and
            softmax are then always in the graph.
        compared_in: the engine that the artifact is compared in.
    """

    module: str
    extra: str
    needs: tuple[str, ...]
    precisions: tuple[str, ...]
    int8_needs: tuple[str, ...] = ()
    dynamic: bool = False
    least_free: int = 32
    packages: tuple[str, ...] = ()
    calibrated: bool = True
    takes_images: bool = False
    compared_in: str = "torch"


ONNX = ("onnx", "onnxscript", "onnxruntime")

# Pixels of a free side: torch.export takes every convolution with a stride for one that gives more than 1x1, which 32
# pixels do not.
LEAST_TRACED = 33

FORMATS: dict[str, Format] = {
    "onnx": Format(
        "onnx", "onnx", ONNX, ("fp32", "fp16", "int8"), dynamic=True, packages=ONNX, compared_in="onnxruntime"
    ),
    "openvino": Format(
        "openvino",
        "openvino",
        ("openvino",),
        ("fp32", "fp16", "bf16", "int8"),
        int8_needs=("nncf",),
        dynamic=True,
        packages=("openvino",),
        compared_in="openvino",
    ),
    "native": Format(
        "native",
        "native",
        ("swiftformer_native",),
        ("fp32", "bf16", "int8"),
        dynamic=True,
        calibrated=False,
        packages=("safetensors",),
        compared_in="native",
    ),
    "torch-export": Format(
        "torch_export", "", ("torch",), ("fp32", "fp16", "bf16"), dynamic=True, least_free=LEAST_TRACED
    ),
    "aoti": Format("aoti", "", ("torch",), ("fp32", "bf16"), dynamic=True, least_free=LEAST_TRACED),
    "tensorrt": Format("onnx", "onnx", ONNX, ("fp32", "fp16"), packages=ONNX, compared_in="onnxruntime"),
    "qnn": Format("onnx", "onnx", ONNX, ("fp32", "fp16"), packages=ONNX, compared_in="onnxruntime"),
    "coreml": Format(
        "coreml",
        "coreml",
        ("coremltools",),
        ("fp16", "fp32", "int8", "palettized"),
        packages=("coremltools",),
        calibrated=False,
        takes_images=True,
        compared_in="coreml",
    ),
    "executorch": Format(
        "executorch",
        "executorch",
        ("executorch",),
        ("fp32", "int8"),
        packages=("executorch",),
        compared_in="executorch",
    ),
    "executorch-coreml": Format(
        "executorch",
        "executorch,coreml",
        ("executorch", "coremltools"),
        ("fp16", "fp32"),
        packages=("executorch", "coremltools"),
        compared_in="executorch",
    ),
    "executorch-vulkan": Format(
        "executorch",
        "executorch",
        ("executorch",),
        ("fp32", "fp16"),
        packages=("executorch",),
        compared_in="executorch",
    ),
    "litert": Format(
        "litert",
        "litert",
        ("litert_torch", "ai_edge_litert"),
        ("fp32", "fp16", "int8"),
        packages=("litert-torch", "ai-edge-litert"),
        compared_in="litert",
    ),
}

# Largest difference of the outputs over their largest value. For int8 and palettes this catches what is broken, such as
# an output of zeros: how good they are, `evaluate` tells.
# With `tf32`, which torch's convolutions of float32 are computed in on a GPU, of ten bits.
TOLERANCES = {"tf32": 0.02, "fp32": 1e-4, "fp16": 0.02, "bf16": 0.1, "int8": 0.5, "palettized": 0.5}


@dataclass(frozen=True)
class Options:
    """What an exporter is asked for.

    Attributes:
        format, precision: a key of `FORMATS`, and one of its precisions.
        batch, size: fixed number of images, and height and width in pixels; None leaves them free.
        softmax: probabilities instead of logits.
        normalize: take pixels from 0 to 255.
        labels: names of a classifier's classes.
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
