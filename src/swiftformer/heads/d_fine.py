"""D-FINE (arXiv 2410.13842), of transformers' parts: a detection transformer that is fast enough for video."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import DFineConfig, ResNetConfig
from transformers.loss.loss_d_fine import DFineLoss
from transformers.modeling_outputs import BaseModelOutput
from transformers.models.d_fine.modeling_d_fine import DFineForObjectDetection
from transformers.utils import is_scipy_available

from swiftformer.config import SwiftFormerConfig

LEVELS = 3  # maps, each with half the sides of the one before
POINTS = [3, 6, 3]  # of each level that a head of a decoder's layer looks at, around a box
FIRST_SCORE = 0.01  # of every class, before training


class DFineHead(DFineForObjectDetection):
    """transformers' D-FINE in its small form (S), without a backbone: feature maps to boxes.

    Every layer of the decoder has its own layers for classes and boxes, as in the paper's code; transformers shares
    them.

    Args:
        in_channels: widths of the maps, the finest first.
        num_labels: classes.
        config: of its fields those that begin with `detr_`.
    """

    def __init__(self, in_channels: Sequence[int], num_labels: int, config: SwiftFormerConfig) -> None:
        super().__init__(d_fine_config(in_channels, num_labels, config))
        del self.model.backbone  # the maps take its place
        del self.class_embed, self.bbox_embed  # the decoder has them as well

    def forward(  # type: ignore[override]
        self, maps: Sequence[Tensor], size: tuple[int, int]
    ) -> tuple[Tensor, Tensor]:
        """What is seen in pictures, in eval mode.

        Args:
            maps: `(B, in_channels[i], H_i, W_i)`.
            size: H and W of the pictures.

        Returns:
            Logits `(B, detr_queries, num_labels)`, and boxes `(B, detr_queries, 4)`: x and y of the centre, width and
            height, as shares of W and H.

        Raises:
            ValueError: fewer places in the maps than queries.
        """
        found, scale = self._decoded(maps, size, None)
        boxes = found.intermediate_reference_points[:, -1]
        return found.intermediate_logits[:, -1], boxes * boxes.new_tensor(scale)

    def losses(
        self, maps: Sequence[Tensor], size: tuple[int, int], labels: list[dict[str, Tensor]]
    ) -> dict[str, Tensor]:
        """The losses by name, in training, of labels as shares of W and H. See `forward`."""
        found, losses = self._decoded(maps, size, labels)[0], {}
        for name, loss in d_fine_losses(found, labels, self.config).items():
            losses[name] = loss
        return losses

    def _decoded(
        self, maps: Sequence[Tensor], size: tuple[int, int], labels: list[dict[str, Tensor]] | None
    ) -> tuple[Any, tuple[float, float, float, float]]:
        raise NotImplementedError
