"""ONNX: one file, Gelu as one operator; also as TensorRT and Qualcomm's tools want it, with fixed shapes."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from swiftformer.export.graph import DeployGraph, dynamic_shapes

if TYPE_CHECKING:
    from swiftformer.export import Options

OPSET = 20  # the first with Gelu


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
    return file.name


def to_onnx(graph: DeployGraph, options: Options) -> Any:
    """The ONNXProgram of a graph."""
    if options.precision == "fp16":
        graph = graph.half()
    example = torch.from_numpy(options.example[: options.batch or 2]).contiguous(memory_format=torch.channels_last)
    if options.batch is not None and len(example) < options.batch:
        example = example[:1].expand(options.batch, -1, -1, -1).contiguous(memory_format=torch.channels_last)
    names = ["features"] if not graph.net.out_features else list(graph.net.out_features)
    with quiet():
        program = torch.onnx.export(
            graph,
            (example,),
            dynamo=True,
            opset_version=OPSET,
            input_names=["pixel_values"],
            output_names=["probabilities" if graph.softmax else "logits"] if not graph.net.out_features else names,
            dynamic_shapes=dynamic_shapes(options.batch, options.size),
            optimize=True,
        )
    assert program is not None
    return program


@contextlib.contextmanager
def quiet() -> Any:
    """Without what the exporters print and warn of."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
