"""Core ML: an ML Program for iOS 16 and later that takes a picture and gives class names, all of it in float16."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

import swiftformer
from swiftformer.engines.coreml import quiet, unique
from swiftformer.export.formats import ExportError, Options
from swiftformer.export.graph import DeployGraph
from swiftformer.export.half import fit_half
from swiftformer.export.neural_engine import check_kept, check_neural_engine

FILE = "model.mlpackage"
PALETTE_BITS = 6
FACTOR = 32  # of the coarsest map


def write(graph: DeployGraph, options: Options, folder: Path) -> str:
    """See `swiftformer.export.Format`. What the Neural Engine would not take is an ExportError."""
    if options.batch != 1 and (options.normalize or options.labels):
        raise ExportError(f"coreml takes one picture at a time: expected a batch of 1, found {options.batch}")
    segments = graph.net.decode_head is not None
    if segments and options.size is not None and any(side % FACTOR for side in options.size):
        # Others make factors of upsampling that are no whole numbers, of which Core ML's rounding is not documented.
        height, width = options.size
        raise ExportError(
            f"coreml: expected a height and width of multiples of {FACTOR} to segment, found {height}x{width}"
        )
    if options.precision != "fp32":
        fit_half(graph, options.example)
    with quiet():
        classes = graph.net.config.num_labels if segments else None
        model = describe(compress(to_coreml(graph, options), options.precision), options, classes)
        spec = model.get_spec()
        half = options.precision != "fp32"
        labels = unique(options.labels)
        problems = check_neural_engine(spec, half=half, image=options.normalize, labels=labels)
        problems += check_kept(spec, graph.net)
        if problems:
            raise ExportError(f"coreml: {'; '.join(problems)}")
        model.save(str(folder / FILE))
    return FILE


def to_coreml(graph: DeployGraph, options: Options) -> Any:
    """The MLModel of a graph, its weights not compressed."""
    import coremltools as ct
    import numpy as np

    assert options.batch is not None and options.size is not None
    shape = (options.batch, options.example.shape[1], *options.size)
    example = torch.from_numpy(options.example[:1]).expand(shape).contiguous()
    program = torch.export.export(graph, (example,)).run_decompositions({})
    # The mean is taken away in the graph: coremltools would do an image's bias in float32.
    pixels = (
        ct.ImageType(name="pixel_values", shape=shape, color_layout=ct.colorlayout.RGB)
        if options.normalize
        else ct.TensorType(name="pixel_values", shape=shape, dtype=np.float32)
    )
    names = list(graph.net.outputs)
    if options.labels:
        outputs: dict[str, Any] = {"classifier_config": ct.ClassifierConfig(unique(options.labels))}
    else:
        outputs = {"outputs": [ct.TensorType(name=name, dtype=np.float32) for name in names]}
    half = options.precision != "fp32"
    return ct.convert(
        program,
        inputs=[pixels],
        convert_to="mlprogram",
        minimum_deployment_target=ct.target.iOS16,
        compute_precision=ct.precision.FLOAT16 if half else ct.precision.FLOAT32,
        skip_model_load=True,
        **outputs,
    )


def compress(model: Any, precision: str) -> Any:
    """int8: weights of one scale per output channel. palettized: weights out of 64 values per layer, found by k-means.

    Layers of fewer than 2048 weights stay as they are; what is computed is in float16 either way.
    """
    if precision not in ("int8", "palettized"):
        return model
    from coremltools.optimize import coreml

    if precision == "int8":
        config: Any = coreml.OpLinearQuantizerConfig(mode="linear_symmetric")
        return coreml.linear_quantize_weights(model, coreml.OptimizationConfig(global_config=config))
    config = coreml.OpPalettizerConfig(mode="kmeans", nbits=PALETTE_BITS)
    return coreml.palettize_weights(model, coreml.OptimizationConfig(global_config=config))


def describe(model: Any, options: Options, segmented: int | None = None) -> Any:
    """The same model with the names and texts that Xcode shows. Author and licence are the weights' and stay free.

    Args:
        segmented: number of a segmentation model's classes.
    """
    import coremltools as ct

    assert options.size is not None
    height, width = options.size
    spec = model.get_spec()
    if options.labels:
        ct.utils.rename_feature(spec, "classLabel_probs", "probabilities")
    model = ct.models.MLModel(spec, weights_dir=model.weights_dir, skip_model_load=True)
    kind = f"classifier, {len(options.labels)} classes" if options.labels else "features"
    if segmented is not None:
        kind = f"segmentation model, {segmented} classes"
    model.short_description = f"SwiftFormer {kind}, {height}x{width} pixels, {options.precision}"
    model.version = swiftformer.__version__
    model.input_description["pixel_values"] = (
        "RGB picture; it is normalised in the model" if options.normalize else "Normalised picture, NCHW"
    )
    if options.labels:
        model.output_description["classLabel"] = "Most probable class"
        model.output_description["probabilities"] = "Probability of each class"
    if segmented is not None:
        model.output_description["logits"] = "Score of each class at every fourth pixel, NCHW"
    return model
