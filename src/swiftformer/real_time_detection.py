"""Object detection in real time: SwiftFormer's maps of strides 8, 16 and 32 through D-FINE."""

from __future__ import annotations

import copy
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from swiftformer.config import SwiftFormerConfig
from swiftformer.detection import SwiftFormerDetectionOutput, check_labels
from swiftformer.heads.d_fine import DFineHead, best
from swiftformer.hf import SwiftFormerBackbone


class SwiftFormerForRealTimeDetection(SwiftFormerBackbone):
    """A backbone that returns its last three stages, and transformers' D-FINE behind it.

    Keys: those of the backbone, so that classifiers load into it, and `detection_head.*`. `config.out_features` is the
    last three stages and `config.detector` is `d-fine`, whatever they were.

    Raises:
        ValueError: no class, or other strides than those of four stages with a downsampling layer between each two.
    """

    with_masks: ClassVar[bool] = False
    detector: ClassVar[str | None] = "d-fine"

    def __init__(self, config: SwiftFormerConfig) -> None:
        num_labels = config.num_labels or 0
        if num_labels < 1:
            raise ValueError(f"expected at least 1 class, found {num_labels}")
        config = copy.deepcopy(config)
        config.detector = "d-fine"
        config.out_indices = list(range(1, len(config.depths) + 1))[-3:]
        super().__init__(config)
        if len(config.depths) != 4 or len(self.swiftformer.encoder.network) != 7 or config.down_stride != 2:
            raise ValueError(
                f"expected four stages with strides 4, 8, 16 and 32, found {len(config.depths)} with downsamples "
                f"{list(config.downsamples)} and down_stride {config.down_stride}"
            )
        self.num_labels: int = num_labels
        self.detection_head = DFineHead(self.channels, num_labels, config)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if module is getattr(self, "detection_head", None):
            self.detection_head.initialize()

    def forward(  # type: ignore[override]
        self,
        pixel_values: Tensor,
        labels: list[dict[str, Tensor]] | None = None,
        pixel_mask: Tensor | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> tuple | SwiftFormerDetectionOutput:
        """Find objects; in training, their losses.

        Args:
            pixel_values: `(B, num_channels, H, W)`, normalised.
            labels: as of `SwiftFormerForObjectDetection.forward`, without masks.
            pixel_mask: not looked at, as in transformers' D-FINE: what fills up a batch is part of its pictures.
            output_hidden_states: return all 8 feature maps of the encoder as well.
            return_dict: False for a plain tuple of what there is.

        Returns:
            In training `loss` and `loss_dict`, in eval mode `scores`, `labels`, `boxes`, `logits` and `pred_boxes`.

        Raises:
            ValueError: training without labels, or labels that do not fit the pictures.
        """
        outputs: Any = super().forward(pixel_values, output_hidden_states=output_hidden_states, return_dict=True)
        size = pixel_values.shape[2], pixel_values.shape[3]
        output = SwiftFormerDetectionOutput(hidden_states=outputs.hidden_states)
        if self.training:
            checked = check_labels(labels, len(pixel_values), self.num_labels)
            losses = self.detection_head.losses(outputs.feature_maps, size, checked)
            output["loss"], output["loss_dict"] = torch.stack(list(losses.values())).sum(), losses
        else:
            logits, boxes = self.detection_head(outputs.feature_maps, size)
            found = best(logits, boxes, self.config.detections_per_image)
            output["scores"], output["labels"], output["boxes"] = found
            output["logits"], output["pred_boxes"] = logits, boxes
        return output if (self.config.return_dict if return_dict is None else return_dict) else output.to_tuple()

    def compile_static_parts(self) -> None:
        """Compile, in place, what depends on the size of the input alone: backbone and the encoder's convolutions."""
        encoder = self.detection_head.model.encoder
        for part in (self.swiftformer, *encoder.fpn_blocks, *encoder.pan_blocks):
            part.compile(dynamic=False)
