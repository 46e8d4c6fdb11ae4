"""OpenVINO's own models and ONNX models in OpenVINO."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np

from swiftformer.artifact import Artifact
from swiftformer.engines.base import Engine, EngineError, EngineOptions
from swiftformer.environment import import_openvino
from swiftformer.messages import one_line

TYPES = {"fp32": "f32", "bf16": "bf16", "fp16": "f16"}


_core_turn = Lock()


def shared_core() -> Any:
    """The process's one openvino.Core.

    Each CPU plugin gives the thread that loads it a stack for signals and takes it away when it is freed. Of two that
    go in the order in which they came, the second puts the first one's freed stack back, and the next signal kills the
    process.
    """
    with _core_turn:  # `cache` alone would let two threads make one each
        return _core()


@cache
def _core() -> Any:
    return import_openvino().Core()


def _is_onnx(file: Path) -> bool:
    """Asked first, because OpenVINO's readers of other formats print what they make of a broken file."""
    from openvino.frontend import FrontEndManager

    return FrontEndManager().load_by_framework("onnx").supported(str(file))


class OpenVinoEngine(Engine):
    """A compiled model, tuned for latency. Threads that call it at once take turns.

    Args:
        file: .xml or .onnx.
        precision: a key of `TYPES`, to compute in; int8 parts stay int8. By default the artifact's.
    """

    def __init__(
        self,
        file: Path,
        artifact: Artifact,
        device: str = "CPU",
        precision: str | None = None,
        threads: int | None = None,
    ) -> None:
        core = shared_core()
        if device.split(".")[0] not in {name.split(".")[0] for name in core.available_devices}:
            raise EngineError(
                f"device: expected one of {', '.join(core.available_devices)} for openvino, found {device!r}"
            )
        if precision not in (None, *TYPES):
            raise EngineError(f"precision: expected one of {', '.join(TYPES)} for openvino, found {precision!r}")
        stored = artifact.precision
        # On a CPU fp16 is how weights are stored, and what is not int8 is computed in bf16 where that is quick.
        computed = precision or {"fp16": "fp32" if device == "CPU" else "fp16", "int8": None}.get(stored, stored)
        config: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY"}
        if computed is not None:
            config["INFERENCE_PRECISION_HINT"] = TYPES[computed]
        if threads is not None:
            config["INFERENCE_NUM_THREADS"] = threads
        try:
            if file.suffix == ".onnx" and not _is_onnx(file):
                raise RuntimeError("expected an ONNX model, found something else")
            self.compiled = core.compile_model(str(file), device, config)
        except RuntimeError as error:
            raise EngineError(f"{file}: openvino refuses it ({one_line(error, -1)})") from None
        if (
            computed == "bf16"
            and device == "CPU"
            and "BF16" not in core.get_property(device, "OPTIMIZATION_CAPABILITIES")
        ):
            computed = "fp32"  # silently, as its hints are
        self.request, self.turn = self.compiled.create_infer_request(), Lock()
        self.name = " ".join(dict.fromkeys(["openvino", stored, computed or stored, device.lower()]))
        self.preprocessing, self.labels = artifact.preprocessing, artifact.labels
        self.outputs, self.input_shape = artifact.outputs, artifact.input_shape

    def run(self, batch: np.ndarray) -> list[np.ndarray]:
        with self.turn:
            results = self.request.infer([batch], share_inputs=True)
            return [np.array(results[i], dtype=np.float32) for i in range(len(self.outputs))]


def open_artifact(folder: Path, artifact: Artifact, options: EngineOptions) -> Engine:
    """See `swiftformer.engines.open_engine`."""
    device = (options.device or "cpu").upper()
    return OpenVinoEngine(folder / artifact.file, artifact, device, options.precision, options.threads)
