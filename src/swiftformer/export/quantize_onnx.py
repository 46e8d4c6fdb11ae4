"""int8 for ONNX: QDQ nodes around convolutions and the head, weights by channel."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

BATCH = 16


def quantize(file: Path, calibration: np.ndarray, float_layers: Sequence[str] = (), batch: int | None = None) -> None:
    """Replace a float32 model by its int8 form.

    Args:
        calibration: images `(N, C, H, W)`, as the model takes them.
        float_layers: names of layers of the fused network to leave as they are.
        batch: that the model is fixed to.
    """
    import onnx
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.calibrate import CalibrationDataReader

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.batches: Iterator[np.ndarray] = iter(
                calibration[i : i + (batch or BATCH)] for i in range(0, len(calibration), batch or BATCH)
            )

        def get_next(self) -> dict[str, np.ndarray] | None:
            images = next(self.batches, None)
            if images is None or (batch is not None and len(images) < batch):
                return None
            return {"pixel_values": images}

    model = onnx.load(str(file))
    kept = [node.name for node in model.graph.node if _scope(node).removeprefix("net.") in float_layers]
    logging.getLogger().disabled = True  # it advises pre-processing that the exporter has done
    try:
        quantize_static(
            model,
            str(file),
            Reader(),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=["Conv", "Gemm"],
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            nodes_to_exclude=kept,
            calibrate_method=CalibrationMethod.MinMax,
        )
    finally:
        logging.getLogger().disabled = False


def _scope(node: object) -> str:
    """The name of the module that a node was exported from."""
    for prop in getattr(node, "metadata_props", ()):
        if prop.key == "pkg.torch.onnx.name_scopes":
            scopes = [part.strip(" '\"") for part in prop.value.strip("[]").split(",")]
            return scopes[-2] if len(scopes) > 1 else ""
    return ""
