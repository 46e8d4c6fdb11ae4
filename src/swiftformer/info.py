"""What a model costs: parameters, multiply-accumulates, and the feature map behind every stage, at any input size."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, get_args

import torch
from torch.utils.flop_counter import FlopCounterMode

from swiftformer.checkpoints import load
from swiftformer.config import SwiftFormerConfig
from swiftformer.heads.rcnn import BOX_SIZE, MASK_SIZE
from swiftformer.model import Stage
from swiftformer.model_kinds import REAL_TIME, Task, kind_of, model_class
from swiftformer.variants import VARIANTS

TASKS = get_args(Task)
HEADS = ("heads", "head")  # rows that are no part of the backbone


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
    """Totals for one image, and the rows that they are made of: those of the backbone, and one for the head."""

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
            "backbone": self._share(head=False),
            "head": self._share(head=True),
            "layers": [vars(layer) | {"shape": list(layer.shape)} for layer in self.layers],
        }

    def _share(self, head: bool) -> dict[str, Any]:
        layers = [layer for layer in self.layers if (layer.name in HEADS) == head]
        return {"parameters": sum(layer.parameters for layer in layers), "gmacs": sum(layer.gmacs for layer in layers)}


def complexity(
    config: SwiftFormerConfig,
    size: tuple[int, int] = (224, 224),
    task: Task = "classification",
) -> Complexity:
    """Count parameters and multiply-accumulates (half of PyTorch's FLOP count) of one image.

    Nothing is computed, as the model lives on the meta device; but for D-FINE, which cannot, and looks at an empty
    image. Of R-CNN what follows the proposals is counted for as many proposals and objects as the configuration allows.

    Args:
        size: height and width of the image, at least 32 pixels each.
        task: whose head is counted as well; a backbone has none.

    Raises:
        ValueError: a smaller size, another task, or a detector that the task has not.
    """
    if min(size) < 32:
        raise ValueError(f"expected a size of at least 32x32 pixels, found {size[0]}x{size[1]}")
    if task not in TASKS:
        raise ValueError(f"expected a model for {', '.join(TASKS)} to count, found one for {task}")
    real_time = kind_of(task, config.detector) == REAL_TIME
    with torch.device("cpu" if real_time else "meta"):
        model: Any = model_class("classification" if task == "backbone" else task, config.detector)(config).eval()
        model.requires_grad_(False)  # of layer scales, which modules are called with, the counter looks for gradients
        x = torch.zeros(1, config.num_channels, *size)
    layers: list[Layer] = []

    def count(name: str, call: Any, given: Any, parameters: int) -> Any:
        with FlopCounterMode(display=False) as counter:
            output = call(given)
        first = output[0] if isinstance(output, tuple) else output
        gmacs = counter.get_total_flops() / 2e9
        layers.append(Layer(name, tuple(first.shape[1:]), parameters, gmacs, first.numel() * 4 / 2**20))
        return output

    members: list[tuple[str, Any]] = [("stem", model.swiftformer.patch_embed)]
    stage = 0
    for member in model.swiftformer.encoder.network:
        stage += isinstance(member, Stage)
        members.append((f"stage{stage}" if isinstance(member, Stage) else f"downsampling{stage}", member))
    maps = []
    with torch.inference_mode():
        for name, member in members:
            x = count(name, member, x, _parameters(member))
            if isinstance(member, Stage):
                maps.append(x)
        if task == "classification":
            modules = [module for module in (model.norm, model.head, model.dist_head) if module is not None]
            count("heads", model.heads, x, sum(map(_parameters, modules)))
        elif task == "segmentation":
            norms = list(model.hidden_states_norms.values())
            maps = [norm(x) for norm, x in zip(norms, maps, strict=True)]
            parameters = _parameters(model.decode_head) + sum(map(_parameters, norms))
            count("head", model.decode_head, maps, parameters)
        elif task != "backbone":
            norms = list(model.hidden_states_norms.values())
            maps = [norm(x) for norm, x in zip(norms, maps[-len(norms) :], strict=True)]
            parameters = _parameters(model.detection_head) + sum(map(_parameters, norms))
            count("head", partial(_detect, model.detection_head, config, size), maps, parameters)
    return Complexity(
        size=size,
        parameters=sum(layer.parameters for layer in layers),
        gmacs=sum(layer.gmacs for layer in layers),
        activation_megabytes=sum(layer.megabytes for layer in layers),
        layers=layers,
    )


def _detect(head: Any, config: SwiftFormerConfig, size: tuple[int, int], maps: list[torch.Tensor]) -> torch.Tensor:
    """Run the layers of a detector's head; the result has the shape of its boxes, `(1, D, 4)`."""
    if config.detector == "d-fine":
        head(maps, size)
    else:
        head.rpn.head(list(head.fpn({str(level): x for level, x in enumerate(maps)}).values()))
        heads, width = head.roi_heads, config.fpn_channels
        heads.box_predictor(heads.box_head(maps[0].new_empty(config.detection_proposals, width, BOX_SIZE, BOX_SIZE)))
        if heads.has_mask():
            regions = maps[0].new_empty(config.detections_per_image, width, MASK_SIZE, MASK_SIZE)
            heads.mask_predictor(heads.mask_head(regions))
    return maps[0].new_empty(1, config.detections_per_image, 4)


def _parameters(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def describe(model: str, size: tuple[int, int] | None = None, form: str | None = None) -> dict[str, Any]:
    """`complexity` of a variant (`xs`, `s`, `l1`, `l3`) or of a checkpoint, with what is known about it.

    Args:
        model: variant name or checkpoint reference.
        size: height and width in pixels; 224x224 for a variant, the checkpoint's own size otherwise.
        form: numeric form of a checkpoint whose file cannot tell.

    Raises:
        ValueError: a size below 32x32 pixels.
        CheckpointError: the checkpoint cannot be loaded.
    """
    if model.lower() in VARIANTS:
        if form is not None:
            raise ValueError(f"form: expected none for a variant, found {form!r}; all forms cost the same")
        variant = VARIANTS[model.lower()]
        totals = complexity(SwiftFormerConfig.from_variant(variant.name), size or (224, 224))
        published = (
            f"{variant.gmacs} GMACs at 224x224, {variant.top1}% ImageNet-1k top-1, {variant.neural_engine_ms} ms on an "
            f"iPhone 14, {variant.a100_images_per_second} images/s on an A100"
        )
        return {"model": variant.name, **totals.to_dict(), "published": published}
    loaded: Any = load(model, form=form)
    report = loaded.load_report
    totals = complexity(loaded.config, size or loaded.preprocessing.size, report.task)
    return {
        "model": model,
        "task": report.task,
        **totals.to_dict(),
        "form": report.form,
        "naming": report.naming,
        "classes": report.num_labels,
        "path": str(report.path),
        "preprocessing": loaded.preprocessing.to_dict(loaded.detector),
    }
