"""ONNX models in ONNX Runtime."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

import numpy as np

from swiftformer.artifact import Artifact
from swiftformer.engines.base import Engine, EngineError, EngineOptions, expect_stored
from swiftformer.messages import one_line

PROVIDERS = {
    "cpu": ["CPUExecutionProvider"],
    "cuda": ["CUDAExecutionProvider", "CPUExecutionProvider"],
    "tensorrt": ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"],
    "coreml": ["CoreMLExecutionProvider", "CPUExecutionProvider"],
}


class OnnxRuntimeEngine(Engine):
    """An InferenceSession.

    Args:
        file: the .onnx file.
        device: a key of `PROVIDERS`; of `cuda` and `tensorrt` also with a number, such as `cuda:1`.
    """

    def __init__(self, file: Path, artifact: Artifact, device: str = "cpu", threads: int | None = None) -> None:
        import onnxruntime

        kind, _, index = device.partition(":")
        if kind not in PROVIDERS or (":" in device and not (index.isdecimal() and kind in ("cuda", "tensorrt"))):
            raise EngineError(f"device: expected one of {', '.join(PROVIDERS)} for onnxruntime, found {device!r}")
        first, *others = PROVIDERS[kind]
        if first not in onnxruntime.get_available_providers():
            raise EngineError(f"device: expected an onnxruntime with {first}, found one without")
        if kind in ("cuda", "tensorrt") and hasattr(onnxruntime, "preload_dlls"):
            with contextlib.redirect_stdout(sys.stderr):
                onnxruntime.preload_dlls()  # CUDA's libraries where pip installed them: torch is not there to load them
        providers = [(first, {"device_id": index}) if index else first, *others]
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        if threads is not None:
            options.intra_op_num_threads = threads
        try:
            self.session = onnxruntime.InferenceSession(str(file), options, providers=providers)
        except Exception as error:  # of many classes, all of them the runtime's own
            raise EngineError(f"{file}: onnxruntime refuses it ({one_line(error)})") from None
        if self.session.get_providers()[0] != first:
            raise EngineError(f"device: expected {first} to start, found that onnxruntime fell back")
        self.name = f"onnxruntime {artifact.precision} {device}"
        self.preprocessing, self.labels = artifact.preprocessing, artifact.labels
        self.outputs, self.input_shape = artifact.outputs, artifact.input_shape
        self._input = self.session.get_inputs()[0].name

    def run(self, batch: np.ndarray) -> list[np.ndarray]:
        return self.session.run(None, {self._input: batch})


def open_artifact(folder: Path, artifact: Artifact, options: EngineOptions) -> Engine:
    """See `swiftformer.engines.open_engine`."""
    expect_stored("onnxruntime", artifact, options.precision)
    return OnnxRuntimeEngine(folder / artifact.file, artifact, options.device or "cpu", options.threads)
