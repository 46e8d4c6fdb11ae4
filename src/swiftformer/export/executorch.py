"""ExecuTorch: a program for XNNPACK on a CPU, for Core ML or for Vulkan; shapes are fixed."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from swiftformer.engines.executorch import wrong_pair
from swiftformer.export.formats import ExportError, Options
from swiftformer.export.graph import DeployGraph, silent
from swiftformer.export.half import fit_half

FILE = "model.pte"
BATCH = 16  # to calibrate with

# XNNPACK's quantizer has 2^-12 for both, which leaves few levels to weights behind small layer scales, and to what they
# give. XNNPACK keeps biases as int32 in steps of a weight times steps of an input: with smaller ones of weights, those
# of channels without weights could overflow.
SMALLEST_WEIGHT_STEP, SMALLEST_OUTPUT_STEP = 2.0**-18, 2.0**-24


def write(graph: DeployGraph, options: Options, folder: Path) -> str:
    """See `swiftformer.export.Format`. A part that the backend does not take runs in ExecuTorch's own kernels."""
    if problem := wrong_pair():
        raise ExportError(problem)
    # XNNPACK's passes take weights in contiguous memory only.
    graph = copy.deepcopy(graph).to(memory_format=torch.contiguous_format)
    if options.format != "executorch" and options.precision == "fp16":
        fit_half(graph, options.example)
    with silent():
        (folder / FILE).write_bytes(to_executorch(graph, options))
    return FILE


def to_executorch(graph: DeployGraph, options: Options) -> bytes:
    """The program of a graph in contiguous memory."""
    from executorch.exir import to_edge_transform_and_lower

    assert options.batch is not None and options.size is not None
    example = torch.zeros(options.batch, options.example.shape[1], *options.size)
    module: Any = graph
    if options.precision == "int8":
        module = quantize(graph, options.calibration, options.float_layers)
    with torch.no_grad():
        program = torch.export.export(module, (example,))
    lowered = to_edge_transform_and_lower(program, partitioner=[partitioner(options)])
    return lowered.to_executorch().buffer


def partitioner(options: Options) -> Any:
    """What decides which operators the backend of a format takes."""
    if options.format == "executorch-coreml":
        import coremltools
        from executorch.backends.apple.coreml.compiler import CoreMLBackend
        from executorch.backends.apple.coreml.partition import CoreMLPartitioner

        half = options.precision == "fp16"
        specs = CoreMLBackend.generate_compile_specs(
            compute_precision=coremltools.precision.FLOAT16 if half else coremltools.precision.FLOAT32,
            minimum_deployment_target=coremltools.target.iOS16,
        )
        return CoreMLPartitioner(compile_specs=specs)
    if options.format == "executorch-vulkan":
        from executorch.backends.vulkan.partitioner.vulkan_partitioner import VulkanPartitioner

        return VulkanPartitioner({"force_fp16": options.precision == "fp16"})
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner

    return XnnpackPartitioner()


def quantize(graph: DeployGraph, calibration: Any, float_layers: tuple[str, ...] = ()) -> torch.fx.GraphModule:
    """The int8 form for XNNPACK: convolutions and the head, weights by channel, with floating point between them.

    Norms, pooling and residual sums stay as they are: quantised, they cost accuracy and save nothing.

    Args:
        calibration: images `(N, C, H, W)`, as the graph takes them.
        float_layers: names of layers of the fused network to leave as they are.
    """
    from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
        XNNPACKQuantizer,
        get_symmetric_quantization_config,
    )
    from torchao.quantization.pt2e import HistogramObserver, PerChannelMinMaxObserver
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    aten = torch.ops.aten
    kept = {f"net.{name}" for name in float_layers}

    def quantized(node: torch.fx.Node) -> bool:
        if node.op != "call_function":  # a weight goes with its layer
            return True
        scopes = {path for path, _ in node.meta.get("nn_module_stack", {}).values()}
        return node.target in (aten.conv2d.default, aten.linear.default, aten.relu.default) and not scopes & kept

    config = get_symmetric_quantization_config(is_per_channel=True)
    weights = PerChannelMinMaxObserver.with_args(eps=SMALLEST_WEIGHT_STEP)
    outputs = HistogramObserver.with_args(eps=SMALLEST_OUTPUT_STEP)
    config = replace(
        config,
        weight=replace(config.weight, observer_or_fake_quant_ctr=weights),
        output_activation=replace(config.output_activation, observer_or_fake_quant_ctr=outputs),
    )
    quantizer = XNNPACKQuantizer().set_global(config).set_filter_function(quantized)
    images = torch.from_numpy(calibration)
    with torch.no_grad():
        # Calibration may take any number of images at a time; the batch of 2 is not taken for a constant.
        batch = {"pixel_values": {0: torch.export.Dim("batch", min=1)}}
        program = torch.export.export(graph, (images[:1].expand(2, -1, -1, -1).contiguous(),), dynamic_shapes=batch)
        prepared = prepare_pt2e(program.module(), quantizer)
        for part in images.split(BATCH):
            prepared(part)
        return convert_pt2e(prepared)
