"""int8 for OpenVINO through NNCF: convolutions and the head, with floating point between them."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np

# Quantised, the norms of queries and keys and the pooling cost accuracy and save nothing.
FLOAT_TYPES = ["Multiply", "Divide", "ReduceMean", "ReduceSum", "Sqrt", "Maximum", "Gelu"]


def quantize(model: Any, calibration: np.ndarray, float_layers: Sequence[str] = ()) -> Any:
    """The int8 form of an openvino.Model.

    Args:
        calibration: images `(N, C, H, W)`, as the model takes them.
        float_layers: names of layers of the fused network to leave as they are.
    """
    import nncf

    logging.getLogger("nncf").setLevel(logging.ERROR)
    kept = [
        node.get_friendly_name()
        for node in model.get_ordered_ops()
        if any(f"net.{layer}/" in node.get_friendly_name() for layer in float_layers)
        and node.get_type_name() in ("Convolution", "GroupConvolution", "MatMul")
    ]
    return nncf.quantize(
        model,
        nncf.Dataset([image[None] for image in calibration]),
        subset_size=len(calibration),
        preset=nncf.QuantizationPreset.MIXED,
        ignored_scope=nncf.IgnoredScope(names=kept, types=FLOAT_TYPES, validate=False),
    )
