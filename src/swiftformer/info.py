"""What a model costs: parameters, multiply-accumulates, and the feature map behind every stage, at any input size."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from swiftformer.checkpoints import load
from swiftformer.config import SwiftFormerConfig
from swiftformer.hf import SwiftFormerForImageClassification
from swiftformer.model import Stage
from swiftformer.variants import VARIANTS


@dataclass(frozen=True)
class Layer:
    """A member of the network: its name, output `(C, H, W)`, parameters, GMACs and the output's MB in float32."""

    name: str
    shape: tuple[int, ...]
    parameters: int
    gmacs: float
    megabytes: float


@dataclass(frozen=True)
class Complexity:
    """Totals for one image, with heads, and the rows that they are made of."""

    size: tuple[int, int]
    parameters: int
    gmacs: float
    activation_megabytes: float
    layers: list[Layer]

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "size": list(self.size),
            "parameters": self.parameters,
            "gmacs": self.gmacs,
            "activation_megabytes": self.activation_megabytes,
            "layers": [vars(layer) | {"shape": list(layer.shape)} for layer in self.layers],
        }


def complexity(config: SwiftFormerConfig, size: tuple[int, int] = (224, 224), heads: bool = True) -> Complexity:
    """Count parameters and multiply-accumulates (half of PyTorch's FLOP count) of one image.

    Nothing is computed: the model lives on the meta device.

    Args:
        size: height and width of the image, at least 32 pixels each.
        heads: count the classification heads as well.

    Raises:
        ValueError: a smaller size.
    """
    if min(size) < 32:
        raise ValueError(f"expected a size of at least 32x32 pixels, found {size[0]}x{size[1]}")
    with torch.device("meta"):
        model = SwiftFormerForImageClassification(config).eval()
        x = torch.empty(1, config.num_channels, *size)
    layers = []
    members: list[tuple[str, Any]] = [("stem", model.swiftformer.patch_embed)]
    stage = 0
    for member in model.swiftformer.encoder.network:
        stage += isinstance(member, Stage)
        members.append((f"stage{stage}" if isinstance(member, Stage) else f"downsampling{stage}", member))
    with torch.inference_mode():
        for name, member in members:
            x, macs, activations = _count(member, x)
            layers.append(Layer(name, tuple(x.shape[1:]), _parameters(member), macs / 1e9, activations))
        if heads:
            _, macs, activations = _count(model.heads, x)
            modules = [module for module in (model.norm, model.head, model.dist_head) if module is not None]
            parameters = sum(map(_parameters, modules))
            layers.append(Layer("heads", (model.num_labels,), parameters, macs / 1e9, activations))
    return Complexity(
        size=size,
        parameters=sum(layer.parameters for layer in layers),
        gmacs=sum(layer.gmacs for layer in layers),
        activation_megabytes=sum(layer.megabytes for layer in layers),
        layers=layers,
    )


def _parameters(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _count(call: Any, x: torch.Tensor) -> tuple[Any, float, float]:
    with FlopCounterMode(display=False) as counter:
        output = call(x)
    first = output[0] if isinstance(output, tuple) else output
    return output, counter.get_total_flops() / 2, first.numel() * 4 / 2**20


def describe(model: str, size: tuple[int, int] | None = None, form: str | None = None) -> dict[str, Any]:
    """`complexity` of a variant (`xs`, `s`, `l1`, `l3`) or of a checkpoint, with what is known about it.

    Args:
        model: variant name or checkpoint reference.
        size: height and width in pixels; 224x224 for a variant, the checkpoint's own size otherwise.
        form: numeric form of a checkpoint whose file cannot tell.
    """
    if model.lower() in VARIANTS:
        if form is not None:
            raise ValueError(f"form: expected none for a variant, found {form!r}; all forms cost the same")
        variant = VARIANTS[model.lower()]
        totals = complexity(SwiftFormerConfig.from_variant(variant.name), size or (224, 224))
        published = f"{variant.gmacs} GMACs at 224x224, {variant.top1}% ImageNet-1k top-1"
        return {"model": variant.name, **totals.to_dict(), "published": published}
    loaded: Any = load(model, form=form)
    report = loaded.load_report
    if report.task == "segmentation":
        raise ValueError(f"{model}: expected a classifier or a backbone to count, found a segmentation model")
    totals = complexity(loaded.config, size or loaded.preprocessing.size, heads=report.task == "classification")
    return {
        "model": model,
        **totals.to_dict(),
        "form": report.form,
        "naming": report.naming,
        "classes": report.num_labels,
        "path": str(report.path),
        "preprocessing": loaded.preprocessing.to_dict(),
    }
