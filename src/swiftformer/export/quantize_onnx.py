"""int8 for ONNX: QDQ nodes around convolutions and the head, weights by channel."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from swiftformer.export.graph import silent

BATCH = 16
QUANTIZED = ["Conv", "Gemm"]


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
            size = batch or BATCH
            # The last batch is filled up with the first images.
            self.batches = iter(np.resize(calibration, (-(-len(calibration) // size), size, *calibration.shape[1:])))

        def get_next(self) -> dict[str, np.ndarray] | None:
            images = next(self.batches, None)
            return None if images is None else {"pixel_values": images}

    model = onnx.load(str(file))
    scopes = {node.name: _scope(node).removeprefix("net.") for node in model.graph.node if node.op_type in QUANTIZED}
    kept = [name for name, scope in scopes.items() if scope in float_layers]
    assert len(kept) == len(float_layers), (kept, float_layers)
    with silent():  # it advises pre-processing that the exporter has done
        quantize_static(
            model,
            str(file),
            Reader(),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=QUANTIZED,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            nodes_to_exclude=kept,
            calibrate_method=CalibrationMethod.MinMax,
        )


def _scope(node: object) -> str:
    """The name of the module that a node was exported from."""
    for prop in getattr(node, "metadata_props", ()):
        if prop.key == "pkg.torch.onnx.name_scopes":
            scopes = [part.strip(" '\"") for part in prop.value.strip("[]").split(",")]
            return scopes[-2] if len(scopes) > 1 else ""
    return ""
