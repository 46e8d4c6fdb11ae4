"""int8 for OpenVINO through NNCF: convolutions and the head, with floating point between them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from swiftformer.export.graph import silent

# Quantised, norms, pooling and sums of branches cost accuracy and save nothing.
FLOAT_TYPES = ["Add", "Subtract", "Multiply", "Divide", "ReduceMean", "ReduceSum", "Sqrt", "Maximum", "Gelu"]


def quantize(model: Any, calibration: np.ndarray, float_layers: Sequence[str] = (), batch: int | None = None) -> Any:
    """The int8 form of an openvino.Model.

    Args:
        calibration: images `(N, C, H, W)`, as the model takes them.
        float_layers: names of layers of the fused network to leave as they are.
        batch: that the model is fixed to.
    """
    with silent():
        import nncf

    names = [
        node.get_friendly_name()
        for node in model.get_ordered_ops()
        if node.get_type_name() in ("Convolution", "GroupConvolution", "MatMul")
    ]
    # A layer's own operator, or those of the parts that it was written as.
    found = {layer: [n for n in names if f"net.{layer}/" in n or f"net.{layer}." in n] for layer in float_layers}
    assert all(found.values()), found
    kept = [name for parts in found.values() for name in parts]
    size = batch or 1
    starts = range(0, len(calibration), size)
    with silent():
        return nncf.quantize(
            model,
            # One batch at a time is made; the last one is filled up with the first images.
            nncf.Dataset(starts, lambda start: calibration.take(range(start, start + size), axis=0, mode="wrap")),
            subset_size=len(starts),
            preset=nncf.QuantizationPreset.MIXED,
            ignored_scope=nncf.IgnoredScope(names=kept, types=FLOAT_TYPES, validate=False),
            # Ranges are means over images, not over batches, whose extremes are those of their widest images.
            advanced_parameters=nncf.AdvancedQuantizationParameters(batchwise_statistics=True),
        )
