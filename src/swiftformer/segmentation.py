"""Semantic segmentation: SwiftFormer's four maps through a Semantic FPN head, as in the paper's table 3."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import initialization as init
from transformers.modeling_outputs import SemanticSegmenterOutput

from swiftformer.config import SwiftFormerConfig
from swiftformer.heads.semantic_fpn import SemanticFPNHead, upsampled
from swiftformer.hf import SwiftFormerBackbone


class SwiftFormerForSemanticSegmentation(SwiftFormerBackbone):
    """A backbone that returns all its stages, and a Semantic FPN head behind it.

    Keys: those of the backbone, so that classifiers load into it, and `decode_head.*`. `config.out_features` is every
    stage, whatever it was.

    Raises:
        ValueError: fewer than two classes; what is no object is a class as well.
    """

    def __init__(self, config: SwiftFormerConfig) -> None:
        num_labels = config.num_labels or 0
        if num_labels < 2:
            raise ValueError(f"expected at least 2 classes, of which one may be the background, found {num_labels}")
        config = copy.deepcopy(config)
        config.out_indices = list(range(1, len(config.depths) + 1))
        super().__init__(config)
        self.num_labels: int = num_labels
        self.decode_head = SemanticFPNHead(
            self.channels,
            num_labels,
            fpn_channels=config.fpn_channels,
            channels=config.segmentation_channels,
            dropout=config.segmentation_dropout,
            eps=config.batch_norm_eps,
        )
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        head = getattr(self, "decode_head", None)  # the backbone is initialised before it is made
        if head is None or not isinstance(module, nn.Conv2d):
            return
        # The head begins as in the configuration that the paper's figures come from.
        if module is head.classifier:
            init.normal_(module.weight, std=0.01)
        elif any(module is conv for conv in head.fpn.modules()):
            init.xavier_uniform_(module.weight)
        elif any(module is conv for conv in head.scale_heads.modules()):
            init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(  # type: ignore[override]
        self,
        pixel_values: Tensor,
        labels: Tensor | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> tuple | SemanticSegmenterOutput:
        """Score every class at every fourth pixel.

        Args:
            pixel_values: `(B, num_channels, H, W)`, normalised.
            labels: `(B, height, width)` class indices, of any size; `config.semantic_loss_ignore_index` does not count.
            output_hidden_states: return all 8 feature maps of the encoder as well.
            return_dict: False for a plain tuple `(loss?, logits, hidden_states?)`.

        Returns:
            `logits` `(B, num_labels, H/4, W/4)`, rounded up; `loss` if labels were given; `hidden_states` on request.

        Raises:
            ValueError: images or labels of another shape, labels that are no whole numbers, or a class that would never
                be learned, as it is `config.semantic_loss_ignore_index`.
        """
        outputs = super().forward(pixel_values, output_hidden_states=output_hidden_states, return_dict=True)
        logits = self.decode_head(outputs.feature_maps)  # type: ignore[union-attr]
        loss = None if labels is None else self._loss(logits, labels)
        hidden_states = outputs.hidden_states  # type: ignore[union-attr]
        if not (self.config.return_dict if return_dict is None else return_dict):
            return tuple(v for v in (loss, logits, hidden_states) if v is not None)
        return SemanticSegmenterOutput(loss=loss, logits=logits, hidden_states=hidden_states)

    def _loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Mean cross-entropy of the pixels that count, at the labels' size; zero where none does."""
        if labels.ndim != 3 or len(labels) != len(logits):
            raise ValueError(f"expected labels of shape ({len(logits)}, height, width), found {tuple(labels.shape)}")
        if labels.is_floating_point():
            raise ValueError(f"expected labels of whole numbers, such as torch.int64, found {labels.dtype}")
        labels, ignored = labels.long(), self.config.semantic_loss_ignore_index
        if 0 <= ignored < self.num_labels:
            raise ValueError(
                f"expected a semantic_loss_ignore_index that is none of {self.num_labels} classes, found {ignored}"
            )
        scores = upsampled(logits.float(), labels.shape[1:])  # (B, num_labels, height, width)
        total = F.cross_entropy(scores, labels, ignore_index=ignored, reduction="sum")
        return total / (labels != ignored).sum().clamp_min(1)
