"""OpenVINO's own format, straight from torch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from swiftformer.export.graph import DeployGraph, silent

if TYPE_CHECKING:
    from swiftformer.export import Options


def write(graph: DeployGraph, options: Options, folder: Path) -> str:
    """See `swiftformer.export.Format`."""
    import openvino

    model = to_openvino(graph, options)
    if options.precision == "int8":
        from swiftformer.export.quantize_openvino import quantize

        model = quantize(model, options.calibration, options.float_layers, options.batch)
    # fp16 and int8 are about size as well; fp32 is what it says, and bf16 is chosen at run time.
    openvino.save_model(model, folder / "model.xml", compress_to_fp16=options.precision in ("fp16", "int8"))
    return "model.xml"


def to_openvino(graph: DeployGraph, options: Options) -> Any:
    """The openvino.Model of a graph, in float32."""
    import openvino
    import torch

    example = torch.from_numpy(options.example[:2])
    batch = -1 if options.batch is None else options.batch
    height, width = options.size or (-1, -1)
    shape = openvino.PartialShape([batch, options.example.shape[1], height, width])
    with silent():
        model = openvino.convert_model(graph, example_input=example, input=[("pixel_values", shape)])
    names = list(graph.net.out_features) or ["probabilities" if graph.softmax else "logits"]
    for port, name in zip(model.outputs, names, strict=True):
        port.tensor.set_names({name})
    return model
