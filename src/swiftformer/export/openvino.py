"""OpenVINO's own format, straight from torch."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from swiftformer.deploy import DeployAttention
from swiftformer.environment import import_openvino
from swiftformer.export.formats import Options
from swiftformer.export.graph import DeployGraph, silent


def write(graph: DeployGraph, options: Options, folder: Path) -> str:
    """See `swiftformer.export.Format`."""
    openvino = import_openvino()
    model = to_openvino(graph, options)
    if options.precision == "int8":
        from swiftformer.export.quantize_openvino import quantize

        model = quantize(model, options.calibration, options.float_layers, options.batch)
    # fp16 and int8 are about size as well; fp32 is what it says, and bf16 is chosen at run time.
    openvino.save_model(model, folder / "model.xml", compress_to_fp16=options.precision in ("fp16", "int8"))
    return "model.xml"


def to_openvino(graph: DeployGraph, options: Options) -> Any:
    """The openvino.Model of a graph, in float32."""
    openvino = import_openvino()
    graph = copy.deepcopy(graph)
    for attention in (module for module in graph.modules() if isinstance(module, DeployAttention)):
        attention.key_query = TwoProducts(attention.key_query)
    example = torch.from_numpy(options.example[:2])
    batch = -1 if options.batch is None else options.batch
    height, width = options.size or (-1, -1)
    shape = openvino.PartialShape([batch, options.example.shape[1], height, width])
    with silent():
        model = openvino.convert_model(graph, example_input=example, input=[("pixel_values", shape)])
    names = list(graph.outputs)
    for port, name in zip(model.outputs, names, strict=True):
        port.tensor.set_names({name})
    return model


class TwoProducts(nn.Module):
    """Keys and queries from a product each. OpenVINO would copy what one product gives to split it."""

    def __init__(self, both: nn.Module) -> None:
        super().__init__()
        assert isinstance(both, nn.Conv2d) and both.bias is not None
        self.parts = nn.ModuleList(nn.Conv2d(both.in_channels, both.out_channels // 2, 1) for _ in range(2))
        for part, weight, bias in zip(self.parts, both.weight.chunk(2), both.bias.chunk(2), strict=True):
            part.weight, part.bias = nn.Parameter(weight), nn.Parameter(bias)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return tuple(part(x) for part in self.parts)
