"""What can be told of a Core ML program without Apple's hardware: its operators, shapes, ends and weights.

Apple publishes no list of what the Neural Engine takes, and what it takes it need not get: Core ML decides on the
device. `docs/coreml.md` tells how to see it there.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from math import prod
from typing import Any

from torch import nn

from swiftformer.deploy import DeployAttention, DeployModel
from swiftformer.engines.mil import DTYPES, FLOAT16, dimensions, main_block
from swiftformer.normalization import NormalizingConv2d

IOS16 = 7  # specification version
LONGEST = 16384  # of a dimension
HIGHEST_RANK = 4
FLOAT32 = 11

# Convolutions, products, sums along axes, upsampling, element-wise arithmetic and activations, all on maps of four
# dimensions, are what is known to be taken. No normalisation is among them: layer and instance norms of some axes go to
# the CPU.
TAKEN = frozenset(
    [
        "add",
        "cast",
        "clip",
        "concat",
        "const",
        "constexpr_affine_dequantize",
        "constexpr_lut_to_dense",
        "conv",
        "gelu",
        "linear",
        "maximum",
        "minimum",
        "mul",
        "real_div",
        "reduce_mean",
        "reduce_sum",
        "relu",
        "relu6",
        "rsqrt",
        "sigmoid",
        "silu",
        "softmax",
        "split",
        "sub",
        "tanh",
        "upsample_bilinear",
        "upsample_nearest_neighbor",
    ]
)
# Behind everything else; it makes names of numbers, on the CPU.
LAST = "classify"


def check_neural_engine(spec: Any, *, half: bool = True, image: bool = True, labels: Sequence[str] = ()) -> list[str]:
    """What is not as the Neural Engine needs it; empty where all is.

    Args:
        spec: a protobuf Model.
        half: everything but the two ends must be float16.
        image: the input must be an RGB image.
        labels: of the classes; empty for tensors as outputs.
    """
    block, problems = main_block(spec), []
    if spec.specificationVersion != IOS16:
        problems.append(f"expected specification {IOS16} of iOS 16, found {spec.specificationVersion}")
    for kind, count in sorted(Counter(op.type for op in block.operations).items()):
        if kind not in TAKEN and not (labels and kind == LAST and count == 1 and block.operations[-1].type == LAST):
            problems.append(f"expected operators that the Neural Engine takes, found {count} of {kind}")
    for op in block.operations:
        if op.type in ("const", LAST):
            continue
        for output in op.outputs:
            kind = output.type.tensorType
            if any(d.WhichOneof("dimension") != "constant" for d in kind.dimensions):
                problems.append(f"expected a fixed shape of {output.name}, found a free one")
                continue
            shape = dimensions(output.type)
            if len(shape) > HIGHEST_RANK or max(shape, default=1) > LONGEST:
                problems.append(
                    f"expected at most {HIGHEST_RANK} dimensions of at most {LONGEST} for {output.name}, found {shape}"
                )
            if half and kind.dataType == FLOAT32 and op.type != "cast":
                problems.append(f"expected float16 for {output.name}, found float32")
            elif kind.dataType not in (FLOAT16, FLOAT32):
                problems.append(f"expected a floating-point {output.name}, found {DTYPES.get(kind.dataType)}")
    source = spec.description.input[0].type
    rgb = source.WhichOneof("Type") == "imageType" and source.imageType.colorSpace == source.imageType.RGB
    if image and not rgb:
        problems.append(f"expected an RGB image as input, found {source.WhichOneof('Type')}")
    if labels and (found := class_labels(block)) != list(labels):
        others = "others" if len(found) == len(labels) else len(found)
        problems.append(f"expected the names of {len(labels)} classes, found {others}")
    return problems


def check_kept(spec: Any, net: DeployModel) -> list[str]:
    """What of a network is not in its program: attention, convolutions, linear layers, weights; empty where all is."""
    block = main_block(spec)
    count = Counter(op.type for op in block.operations)
    shapes = {op.outputs[0].name: dimensions(op.outputs[0].type) for op in block.operations if op.type != LAST}
    weights = sum(
        prod(shapes[op.inputs[name].arguments[0].name])
        for op in block.operations
        if op.type in ("conv", "linear")
        for name in ("weight", "bias")
        if name in op.inputs
    )
    modules = list(net.modules())
    expected = {
        # Keys and queries are one product, which only attention divides, and it alone puts maps together.
        "attention layers": sum(isinstance(m, DeployAttention) for m in modules),
        "convolutions": sum(isinstance(m, nn.Conv2d | NormalizingConv2d) for m in modules),
        "linear layers": sum(isinstance(m, nn.Linear) for m in modules),
        "weights": sum(p.numel() for p in net.parameters()),
    }
    found = {
        "attention layers": min(count["split"], count["concat"]),
        "convolutions": count["conv"],
        "linear layers": count["linear"],
        "weights": weights,
    }
    return [f"expected {n} {what}, found {found[what]}" for what, n in expected.items() if found[what] != n]


def class_labels(block: Any) -> list[str]:
    """The names of the classes in a program, in order."""
    last = block.operations[-1]
    if last.type != LAST:
        return []
    values = last.inputs["classes"].arguments[0].value.immediateValue.list.values
    return [value.immediateValue.tensor.strings.values[0] for value in values]
