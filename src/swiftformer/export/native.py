"""The layers of a fused network and their weights in float32, for `swiftformer_native`, this project's own engine."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from swiftformer.deploy import DeployBranch, DeployEncoder, DeployModel, DeploySemanticFPN
from swiftformer.engines.native import NETWORK, OUTPUTS, WEIGHTS, Member, named
from swiftformer.export.formats import ExportError
from swiftformer.export.graph import DeployGraph
from swiftformer.normalization import NormalizingConv2d

if TYPE_CHECKING:
    from swiftformer.export.formats import Options


def write(graph: DeployGraph, options: Options, folder: Path) -> str:
    """See `swiftformer.export.Format`. The precision is that to compute in by default; the weights stay float32."""
    from safetensors.numpy import save_file

    if options.softmax:
        raise ExportError("native: expected a network that gives logits, found softmax")
    layers, tensors = network_of(graph.net)
    save_file(tensors, folder / WEIGHTS)
    (folder / NETWORK).write_text(json.dumps({"layers": layers}, indent=2) + "\n")
    return NETWORK


def network_of(net: DeployModel) -> tuple[list[dict[str, Any]], dict[str, np.ndarray]]:
    """The layers of a fused network and their tensors, see `swiftformer.engines.native.named`. What lies behind the
    last map of a backbone is left out.

    Raises:
        ExportError: a network that the engine does not compute.
    """
    _check(net)
    members = list(_members(net))
    while members[-1][0] not in OUTPUTS:
        members.pop()
    plain = ({key: _plain(value) for key, value in arguments.items()} for _, _, arguments in members)
    return named((kind, name, arguments) for (kind, name, _), arguments in zip(members, plain, strict=True))


def _check(net: DeployModel) -> None:
    config = net.config
    if net.detection_head is not None:
        raise ExportError("native: expected a classifier, a segmentation model or a backbone, found a detector")
    if config.hidden_act != "gelu":
        raise ExportError(f"native: expected the activation gelu, found {config.hidden_act}")
    if config.num_channels != 3:
        raise ExportError(f"native: expected a model of 3 channels, found {config.num_channels}")
    for place, layer in enumerate(net.layers):
        steps: Any = None if place in net.stage_ends else (layer.kernel_size, layer.stride, layer.padding)
        if steps not in (None, ((3, 3), (2, 2), (1, 1))):
            raise ExportError(
                "native: expected downsampling of a 3x3 kernel, stride 2 and padding 1, found "
                f"{steps[0][0]}x{steps[0][1]}, {steps[1][0]} and {steps[2][0]}"
            )


def _members(net: DeployModel) -> Iterator[Member]:
    yield "stem", "stem", _stem(net)
    yield from _output(net, "stem")
    for place, layer in enumerate(net.layers):
        if place not in net.stage_ends:
            yield "downsampling", f"layers.{place}", {"weight": layer.weight, "bias": layer.bias}
            continue
        blocks: Any = layer
        for number, block in enumerate(blocks):
            name = f"layers.{place}.{number}"
            if isinstance(block, DeployEncoder):
                yield "encoder", name, _encoder(block)
            else:
                yield "branch", name, _branch(block)
        stage = net.stage_ends.index(place)
        yield from _output(net, f"stage{stage + 1}")
        if net.decode_head is not None:
            yield "lateral", f"decode_head.lateral.{stage}", _product(net.decode_head.lateral[stage])
    if net.decode_head is not None:
        yield from _semantic_fpn(net.decode_head)
    elif not net.out_features:
        yield "head", "head", {"weight": net.head.weight, "bias": net.head.bias}


def _semantic_fpn(head: DeploySemanticFPN) -> Iterator[Member]:
    """Every level is classified before its last enlarging, which then has as many channels as there are classes: both
    are linear. The levels share the bias."""
    scale_heads: Any = head.scale_heads
    classifier = _product(head.classifier)
    classifier["bias"] = classifier["bias"] / len(scale_heads)
    for level in reversed(range(len(scale_heads))):
        name = f"decode_head.{level}"
        yield "pyramid_level", name, {"index": level}
        yield "convolution", f"{name}.output", _convolution(head.output[level], relu=False)
        for step, (conv, _) in enumerate(scale_heads[level]):
            if step > 0:
                yield "enlarging", f"{name}.enlarging.{step}", {"level": level - step}
            yield "convolution", f"{name}.{step}", _convolution(conv, relu=True)
        yield "scores", f"{name}.scores", classifier
    yield "scores_output", "decode_head.output", {}


def _convolution(conv: Any, relu: bool) -> dict[str, Any]:
    return {"weight": conv.weight, "bias": conv.bias, "relu": relu}


def _stem(net: DeployModel) -> dict[str, Any]:
    """Pixels as bytes are made to `(pixels / 255 - mean) / std`."""
    first, _, second, _ = net.stem.children()
    arguments = {"weight1": first.weight, "bias1": first.bias, "weight2": second.weight, "bias2": second.bias}
    if isinstance(first, NormalizingConv2d):  # takes `pixels - fill`
        mean = first.fill.flatten() / 255
        return arguments | {"mean": mean, "std": torch.full_like(mean, 1 / 255)}
    if net.preprocessing is not None:
        arguments |= {"mean": torch.tensor(net.preprocessing.mean), "std": torch.tensor(net.preprocessing.std)}
    return arguments


def _branch(branch: DeployBranch, prefix: str = "") -> dict[str, Any]:
    depth_wise: Any = branch.depth_wise
    arguments = {"depth_wise": depth_wise.weight, "depth_wise_bias": depth_wise.bias}
    return arguments | _products(prefix, expand=branch.expand, project=branch.project)


def _products(prefix: str = "", **convs: Any) -> dict[str, Any]:
    """1x1 convolutions as matrices `(out, in)`, each with its bias."""
    found: dict[str, Any] = {}
    for name, conv in convs.items():
        found |= {f"{prefix}{name}": conv.weight.flatten(1), f"{prefix}{name}_bias": conv.bias}
    return found


def _product(conv: Any) -> dict[str, Any]:
    return {"weight": conv.weight.flatten(1), "bias": conv.bias}


def _encoder(block: DeployEncoder) -> dict[str, Any]:
    attention = block.attention
    score: Any = attention.score
    return {
        **_branch(block.local, "local_"),
        **_products(key_query=attention.key_query, output=attention.output),  # (2 D, D), (D, 2 D)
        "score": None if score is None else score.weight.flatten(),  # (D,)
        "normalize": attention.normalize,
        "pooled_scale": attention.pooled_scale,
        **_products(expand=block.mlp.expand, project=block.mlp.project),
    }


def _output(net: DeployModel, name: str) -> Iterator[Member]:
    """Each map has a norm of its own but that of the stem."""
    if name not in net.out_features:
        return
    arguments: dict[str, Any] = {}
    if name in net.norms:
        norm: Any = net.norms[name]
        arguments = {"factor": norm.weight.flatten(), "shift": norm.bias}
    yield "output", f"norms.{name}", arguments


def _plain(value: Any) -> Any:
    return value.detach().cpu().float().numpy() if isinstance(value, Tensor) else value
