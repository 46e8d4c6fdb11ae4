"""D-FINE as it is deployed: every BatchNorm folded, and each block of parallel convolutions as one."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F
from transformers.models.d_fine.modeling_d_fine import DFineConvNormLayer, DFineRepVggBlock

from swiftformer.deploy import norm_before, norm_behind
from swiftformer.heads.d_fine import DFineHead, best
from swiftformer.real_time_detection import SwiftFormerForRealTimeDetection


class DeployDFine(nn.Module):
    """Feature maps of pictures to their objects.

    Args:
        norms: of the maps, in front of the head.
        detections: places for objects.
    """

    mask_head = None

    def __init__(self, head: DFineHead, norms: Iterable[nn.BatchNorm2d], detections: int) -> None:
        super().__init__()
        self.head, self.detections = copy.deepcopy(head), detections
        model: Any = self.head.model
        del model.denoising_class_embed  # of training
        model.encoder_input_proj = nn.ModuleList(
            norm_before(norm, norm_behind(conv, behind))  # type: ignore[arg-type]
            for norm, (conv, behind) in zip(norms, model.encoder_input_proj, strict=True)
        )
        layers: list[Any] = [layer for layer in model.encoder.modules() if isinstance(layer, DFineConvNormLayer)]
        for layer in layers:
            layer.conv, layer.norm = norm_behind(layer.conv, layer.norm), nn.Identity()
        parents: list[Any] = list(model.encoder.modules())
        for parent in parents:
            for name, block in parent.named_children():
                if isinstance(block, DFineRepVggBlock):
                    setattr(parent, name, nn.Sequential(merged(block), block.activation))

    def forward(self, maps: Sequence[Tensor], size: tuple[int, int]) -> tuple[Tensor, ...]:
        """Maps `(B, C_i, H_i, W_i)` of all stages, of an input of `size` (H, W), to `scores` `(B, D)`, `labels`
        `(B, D)` and `boxes` `(B, D, 4)`.

        See `swiftformer.detection.SwiftFormerDetectionOutput`.
        """
        logits, boxes = self.head(list(maps)[-3:], size)
        return best(logits, boxes, self.detections)


def merged(block: Any) -> nn.Module:
    """The sum of a 3x3 and a 1x1 convolution as one (arXiv 2101.03697)."""
    conv = copy.deepcopy(block.conv1.conv)
    conv.weight.add_(F.pad(block.conv2.conv.weight, (1, 1, 1, 1)))
    conv.bias.add_(block.conv2.conv.bias)
    return conv


def deploy_d_fine(model: SwiftFormerForRealTimeDetection) -> DeployDFine:
    """The head of a detector, with the norms of the backbone's maps folded into its projections."""
    norms: list[Any] = list(model.hidden_states_norms.values())
    return DeployDFine(model.detection_head, norms, model.config.detections_per_image)
