"""ONNX: one file, Gelu as one operator; also as TensorRT and Qualcomm's tools want it, with fixed shapes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from swiftformer.export.formats import ExportError
from swiftformer.export.graph import DeployGraph, dynamic_shapes, example_for, silent
from swiftformer.export.half import fit_half

if TYPE_CHECKING:
    from swiftformer.export.formats import Options

OPSET = 20  # the first with Gelu

# Of TensorRT's and Qualcomm's converters; anything else would be a surprise on the device.
TAKEN = frozenset(
    [
        *("Add", "Cast", "Clip", "Concat", "Conv", "Div", "Gelu", "Gemm", "Mul", "Reciprocal", "ReduceMean"),
        *("ReduceSum", "Relu", "Resize", "Sigmoid", "Softmax", "Split", "Sqrt", "Sub", "Tanh"),
    ]
)


def write(graph: DeployGraph, options: Options, folder: Path) -> str:
    """See `swiftformer.export.Format`."""
    import onnx

    file = folder / "model.onnx"
    program = to_onnx(graph, options)
    program.save(str(file), external_data=False)
    if options.precision == "int8":
        from swiftformer.export.quantize_onnx import quantize

        quantize(file, options.calibration, options.float_layers, options.batch)
    onnx.checker.check_model(str(file), full_check=True)
    if options.format != "onnx":
        others = {node.op_type for node in onnx.load(str(file)).graph.node} - TAKEN
        if others:
            raise ExportError(
                f"{options.format}: expected operators that its tools take, found {', '.join(sorted(others))}"
            )
    return file.name


def to_onnx(graph: DeployGraph, options: Options) -> Any:
    """The ONNXProgram of a graph."""
    if options.precision == "fp16":
        fit_half(graph, options.example)
        graph = graph.half()
    names = list(graph.outputs)
    with silent():
        program = torch.onnx.export(
            graph,
            (example_for(options),),
            dynamo=True,
            opset_version=OPSET,
            input_names=["pixel_values"],
            output_names=names,
            dynamic_shapes=dynamic_shapes(options.batch, options.size),
            optimize=True,
        )
    assert program is not None
    return program
