"""Model files in the runtimes that need no torch, as a program on a device has them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from swiftformer.engines import open_engine
from swiftformer.engines.openvino import TYPES, shared_core

Run = Callable[[np.ndarray], np.ndarray]


def open_file(file: Path, engine: str, precision: str, threads: int | None) -> Run:
    """What makes logits `(N, classes)` of images `(N, 3, H, W)`.

    Args:
        file: an artifact of this project (a folder), or a peer's .onnx or .xml.
        engine: `onnxruntime` or `openvino`, and of artifacts also `native`, `executorch` or `litert`.
        precision: to compute in; int8 is in the file, but for `native`.
        threads: by default the runtime's own choice.
    """
    if file.is_dir():
        computed = precision if engine == "native" or (engine == "openvino" and precision != "int8") else None
        opened = open_engine(file, engine, precision=computed, threads=threads)
        return lambda images: opened(images)["logits"]
    return {"onnxruntime": _onnxruntime, "openvino": _openvino}[engine](file, precision, threads)


def _onnxruntime(file: Path, precision: str, threads: int | None) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if threads is not None:
        options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    entry = session.get_inputs()[0].name
    return lambda images: session.run(None, {entry: images})[0]


def _openvino(file: Path, precision: str, threads: int | None) -> Run:
    config: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY"}
    if precision != "int8":  # left to itself OpenVINO computes the rest of an int8 model in bf16 where it can
        config["INFERENCE_PRECISION_HINT"] = TYPES[precision]
    if threads is not None:
        config["INFERENCE_NUM_THREADS"] = threads
    request = shared_core().compile_model(str(file), "CPU", config).create_infer_request()
    return lambda images: np.array(request.infer([images], share_inputs=True)[0], np.float32)
