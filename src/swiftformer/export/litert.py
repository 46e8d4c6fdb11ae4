"""LiteRT: a .tflite file with one signature, NCHW as in PyTorch; shapes are fixed."""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from swiftformer.deploy import DeploySemanticFPN
from swiftformer.export.formats import ExportError, Options
from swiftformer.export.graph import DeployGraph, silent
from swiftformer.export.half import fit_half
from swiftformer.heads.semantic_fpn import merged, nearest, pyramid

FILE = "model.tflite"
QUANTIZED = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED")


class NamedOutputs(nn.Module):
    """A graph that gives a dictionary, whose keys become the names in the signature."""

    def __init__(self, graph: DeployGraph) -> None:
        super().__init__()
        self.wrapped = graph
        self.names = list(graph.outputs)

    def forward(self, pixel_values: Tensor) -> dict[str, Tensor]:
        found = self.wrapped(pixel_values)
        return dict(zip(self.names, found if isinstance(found, tuple) else (found,), strict=True))


class RepeatingHead(nn.Module):
    """A Semantic FPN head that enlarges by whole factors: others give litert-torch other nearest values than torch."""

    def __init__(self, head: DeploySemanticFPN) -> None:
        super().__init__()
        self.head = head

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        levels = pyramid(self.head.lateral, self.head.output, maps, repeated)
        return self.head.classifier(merged(self.head.scale_heads, levels))


def repeated(x: Tensor, size: Sequence[int]) -> Tensor:
    """`nearest`, to a size of which `x` is half, rounded up, or to its own."""
    height, width = (side * -(-wanted // side) for side, wanted in zip(x.shape[2:], size, strict=True))
    return nearest(x, (height, width))[:, :, : size[0], : size[1]]


def write(graph: DeployGraph, options: Options, folder: Path) -> str:
    """See `swiftformer.export.Format`. fp16 is how weights are stored; the device decides what it computes in."""
    check_torch()
    graph = copy.deepcopy(graph).to(memory_format=torch.contiguous_format)
    if graph.net.decode_head is not None:
        graph.net.decode_head = RepeatingHead(graph.net.decode_head)  # type: ignore[assignment]
    if options.precision == "fp16":
        fit_half(graph, options.example)
    with silent():
        model = to_litert(graph, options)
        if options.precision == "fp16":
            model = halve(model)
        elif options.precision == "int8":
            model = quantize(model, options.calibration, options.float_layers, options.batch or 1)
    (folder / FILE).write_bytes(model)
    return FILE


def check_torch() -> None:
    """litert-torch breaks inside with a torch that it was not made for."""
    from packaging.requirements import Requirement

    found = metadata.version("torch").split("+")[0]
    wanted = next(Requirement(line) for line in metadata.requires("litert-torch") or () if re.match(r"torch\b", line))
    if not wanted.specifier.contains(found, prereleases=True):
        version = metadata.version("litert-torch")
        raise ExportError(f"litert-torch {version}: expected torch{wanted.specifier}, found {found}")


def to_litert(graph: DeployGraph, options: Options) -> bytes:
    """The float32 model of a graph in contiguous memory."""
    import litert_torch

    assert options.batch is not None and options.size is not None
    example = torch.zeros(options.batch, options.example.shape[1], *options.size)
    model: Any = litert_torch.convert(NamedOutputs(graph).eval(), sample_kwargs={"pixel_values": example})
    return model.model_content()


def halve(model: bytes) -> bytes:
    """Weights in float16, half the size."""
    from ai_edge_quantizer import qtyping, quantizer
    from ai_edge_quantizer.algorithm_manager import AlgorithmName

    half = qtyping.TensorQuantizationConfig(num_bits=16, dtype=qtyping.TensorDataType.FLOAT)
    config = qtyping.OpQuantizationConfig(weight_tensor_config=half, compute_precision=qtyping.ComputePrecision.FLOAT)
    caster = quantizer.Quantizer(model)
    caster.update_quantization_recipe(".*", qtyping.TFLOperationName.ALL_SUPPORTED, config, AlgorithmName.FLOAT_CASTING)
    return bytes(caster.quantize(enable_progress_report=False).quantized_model)


def quantize(model: bytes, calibration: Any, float_layers: tuple[str, ...] = (), batch: int = 1) -> bytes:
    """int8 for convolutions and the head, weights by channel, with floating point between them.

    Args:
        calibration: images `(N, C, H, W)`, as the model takes them.
        float_layers: names of layers of the fused network to leave as they are.
        batch: that the model is fixed to.
    """
    from ai_edge_quantizer import calibrator, qtyping, quantizer, recipe_manager
    from ai_edge_quantizer.algorithm_manager import AlgorithmName
    from ai_edge_quantizer.utils import qsv_utils

    recipe = recipe_manager.RecipeManager()
    for operation in QUANTIZED:
        recipe.add_static_config(".*", qtyping.TFLOperationName(operation), 8, 8)
    for layer in float_layers:
        # The head is the only linear layer, and its result may carry the name of the output.
        regex, operation = (".*", "FULLY_CONNECTED") if layer == "head" else (scope(layer), "*")
        recipe.add_quantization_config(
            regex, qtyping.TFLOperationName(operation), algorithm_key=AlgorithmName.NO_QUANTIZE
        )
    # The extremes, not their moving average, which cuts off what few images have.
    ranges = calibrator.Calibrator(model, num_threads=1, qsv_update_func=qsv_utils.min_max_update)
    parts = np.resize(calibration, (-(-len(calibration) // batch), batch, *calibration.shape[1:]))  # the last filled up
    ranges.calibrate({"serving_default": [{"pixel_values": part} for part in parts]}, recipe)
    made = quantizer.Quantizer(model, recipe.get_quantization_recipe())
    return bytes(made.quantize(ranges.get_model_qsvs(), enable_progress_report=False).quantized_model)


def scope(layer: str) -> str:
    """A regular expression for the tensors of a layer: `Class_name` of each module around it, with slashes between."""
    parts = [part for part in layer.split(".") if part not in ("layers", "norms")]  # they are not called themselves
    return "DeployModel_net/" + "/".join(rf"[\w.]+_{re.escape(part)}" for part in parts) + "(;|$)"
