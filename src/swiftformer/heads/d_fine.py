"""D-FINE (arXiv 2410.13842), of transformers' parts: a detection transformer that is fast enough for video."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import initialization as init
from transformers.loss.loss_d_fine import DFineLoss
from transformers.modeling_outputs import BaseModelOutput
from transformers.models.d_fine import DFineConfig
from transformers.models.d_fine.modeling_d_fine import DFineForObjectDetection
from transformers.models.resnet import ResNetConfig
from transformers.utils import is_scipy_available

from swiftformer.config import SwiftFormerConfig

POINTS = [3, 6, 3]  # of each map that a head of the decoder's attention looks at, around a box
FIRST_SCORE = 0.01  # of every class before training


class DFineHead(nn.Module):
    """transformers' D-FINE, of the depths and points of its small form, without a backbone: feature maps to boxes.

    Every layer of the decoder has its own layers for classes and boxes, as in the paper's code; transformers shares
    them.

    Args:
        in_channels: widths of the maps of strides 8, 16 and 32.
        num_labels: classes.
        config: of its fields those that begin with `detr_`.
    """

    def __init__(self, in_channels: Sequence[int], num_labels: int, config: SwiftFormerConfig) -> None:
        super().__init__()
        # Its own forward pass, and what it shares between layers, are not needed.
        self.model: Any = DFineForObjectDetection(d_fine_config(in_channels, num_labels, config)).model
        del self.model.backbone  # the maps take its place

    def initialize(self) -> None:
        """Scores of `FIRST_SCORE`, and boxes where the queries are: what transformers' own model with a head begins
        with, which is not kept. What was loaded stays."""
        decoder, config = self.model.decoder, self.model.config
        chance = config.initializer_bias_prior_prob or 1 / (config.num_labels + 1)
        for layer in decoder.class_embed:
            init.xavier_uniform_(layer.weight)
            init.constant_(layer.bias, -math.log((1 - chance) / chance))
        for layer in decoder.bbox_embed:
            init.zeros_(layer.layers[-1].weight)
            init.zeros_(layer.layers[-1].bias)

    def forward(self, maps: Sequence[Tensor], size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Logits and boxes of every query, in eval mode.

        Args:
            maps: `(B, in_channels[i], H_i, W_i)`.
            size: H and W of the pictures.

        Returns:
            `(B, detr_queries, num_labels)`, and `(B, detr_queries, 4)`: x and y of the centre, width and height, as
            shares of W and H.
        """
        found = self._decoded(maps, None)
        boxes = found.intermediate_reference_points[:, -1]
        return found.intermediate_logits[:, -1], boxes * boxes.new_tensor(self._reach(maps, size))

    def losses(
        self, maps: Sequence[Tensor], size: tuple[int, int], labels: list[dict[str, Tensor]]
    ) -> dict[str, Tensor]:
        """The losses by name, in training. Arguments are those of `forward`, errors those of `d_fine_losses`.

        Args:
            labels: of each picture `class_labels` `(n,)` and `boxes` `(n, 4)`, as shares of W and H.
        """
        reach = maps[0].new_tensor(self._reach(maps, size), dtype=torch.float32)
        within = [{"class_labels": of["class_labels"].long(), "boxes": of["boxes"].float() / reach} for of in labels]
        found = self._decoded(maps, within)
        losses = d_fine_losses(found, within, self.model.config)
        if found.denoising_meta_values is None:  # no objects: its weights need a gradient all the same
            losses["loss_vfl"] = losses["loss_vfl"] + 0 * self.model.denoising_class_embed.weight.sum()
        return losses

    def _decoded(self, maps: Sequence[Tensor], labels: list[dict[str, Tensor]] | None) -> Any:
        """transformers' output; boxes are shares of what `_reach` says that the maps cover."""
        height, width = self._grid(maps)
        doublings = range(len(maps) - 1, -1, -1)
        projected = [
            _filled(project(x), (height << i, width << i))
            for project, x, i in zip(self.model.encoder_input_proj, maps, doublings, strict=True)
        ]
        levels = self.model.encoder(projected).last_hidden_state
        # Half precision is too coarse for coordinates.
        levels = [x.to(self.model.enc_score_head.weight.dtype) for x in levels]
        with torch.autocast(levels[0].device.type, enabled=False):
            # A backbone's maps would be `inputs_embeds`; behind the encoder transformers asks for their batch alone.
            encoded = BaseModelOutput(last_hidden_state=levels)  # type: ignore[arg-type]
            return self.model(None, inputs_embeds=levels[0], encoder_outputs=encoded, labels=labels, return_dict=True)

    def _grid(self, maps: Sequence[Tensor]) -> tuple[int, int]:
        """Rows and columns of the coarsest map, with further rows where there are fewer places than queries."""
        height, width = maps[-1].shape[2:]
        places = sum(4**level for level in range(len(maps)))  # in each of its pixels
        return max(height, math.ceil(self.model.config.num_queries / (places * width))), width

    def _reach(self, maps: Sequence[Tensor], size: tuple[int, int]) -> list[float]:
        """What the maps cover, as shares of W, H, W and H: more than a picture, as they are rounded or filled up."""
        height, width = (32 * side / whole for side, whole in zip(self._grid(maps), size, strict=True))
        return [width, height, width, height]


def d_fine_config(in_channels: Sequence[int], num_labels: int, config: SwiftFormerConfig) -> DFineConfig:
    """transformers' configuration; the backbone in it has the right widths, and is not kept."""
    width, levels = config.detr_channels, len(in_channels)
    shape: dict[str, Any] = {"hidden_sizes": list(in_channels), "depths": [1] * levels, "out_indices": [1, 2, 3]}
    fields: dict[str, Any] = {"num_labels": num_labels, "tie_word_embeddings": False}
    return DFineConfig(
        backbone_config=ResNetConfig(**shape),
        freeze_backbone_batch_norms=False,
        initializer_range=(3 * width) ** -0.5,  # the deviation that torch's linear layers of this width begin with
        initializer_bias_prior_prob=FIRST_SCORE,
        encoder_in_channels=list(in_channels),
        encoder_hidden_dim=width,
        encoder_ffn_dim=config.detr_ffn_channels,
        hidden_expansion=0.5,
        depth_mult=1 / 3,
        d_model=width,
        decoder_in_channels=[width] * levels,
        decoder_ffn_dim=config.detr_ffn_channels,
        decoder_layers=config.detr_layers,
        decoder_n_points=POINTS,
        num_queries=config.detr_queries,
        **fields,
    )


def d_fine_losses(outputs: Any, labels: list[dict[str, Tensor]], config: DFineConfig) -> dict[str, Tensor]:
    """transformers' criterion, on outputs of its model in training that are put together as in the paper's code.

    transformers itself puts the distributions of a layer together with the boxes of the one before, and leaves out
    those of the last layer.

    Raises:
        ValueError: scipy is missing, which matches boxes and objects.
    """
    if not is_scipy_available():
        raise ValueError("expected scipy for training a d-fine detector, found none: pip install 'swiftformer[dense]'")
    parts = {
        "logits": outputs.intermediate_logits,  # (B, layers + 1, queries, ...), from before the first refinement on
        "pred_boxes": outputs.intermediate_reference_points.clamp(0, 1),
        "pred_corners": outputs.intermediate_predicted_corners,  # (B, layers, queries, ...)
        "ref_points": outputs.initial_reference_points,
    }
    encoder = {"logits": outputs.enc_topk_logits, "pred_boxes": outputs.enc_topk_bboxes.clamp(0, 1)}
    noise, denoised = outputs.denoising_meta_values, {}
    if noise is not None:
        split = {name: part.split(noise["dn_num_split"], dim=2) for name, part in parts.items()}
        parts = {name: part[1] for name, part in split.items()}
        denoised = {
            "dn_auxiliary_outputs": _by_layer({name: part[0] for name, part in split.items()}),
            "denoising_meta_values": noise,
        }
    first, *layers, last = _by_layer(parts)
    criterion = DFineLoss(config).to(encoder["logits"].device)
    return criterion(last | {"auxiliary_outputs": [first, *layers, encoder]} | denoised, labels)


def _by_layer(parts: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
    """What the criterion takes of each layer, and in front of them of the boxes that the first layer refines."""
    teacher = {"teacher_corners": parts["pred_corners"][:, -1], "teacher_logits": parts["logits"][:, -1]}
    layers = [
        {name: part[:, layer - parts["pred_corners"].shape[1]] for name, part in parts.items()} | teacher
        for layer in range(parts["pred_corners"].shape[1])
    ]
    return [{name: parts[name][:, 0] for name in ("logits", "pred_boxes")}, *layers]


def best(logits: Tensor, boxes: Tensor, places: int) -> tuple[Tensor, Tensor, Tensor]:
    """The pairs of a query and a class with the highest scores; without suppression, as queries compete for objects.

    Args:
        logits, boxes: `(B, queries, classes)` and `(B, queries, 4)`.

    Returns:
        Scores `(B, places)`, the highest first and filled up with 0, labels `(B, places)`, boxes `(B, places, 4)`.
    """
    classes = logits.shape[2]
    scores, chosen = logits.sigmoid().flatten(1).topk(min(places, logits.shape[1] * classes), dim=1)
    found = boxes.gather(1, (chosen // classes)[..., None].expand(-1, -1, 4))
    free = places - scores.shape[1]
    return F.pad(scores, (0, free)), F.pad(chosen % classes, (0, free)), F.pad(found, (0, 0, 0, free))


def _filled(x: Tensor, size: Sequence[int]) -> Tensor:
    """Zeros to the right of a map and below it, up to `size`."""
    missing = size[0] - x.shape[2], size[1] - x.shape[3]
    return F.pad(x, (0, missing[1], 0, missing[0])) if any(missing) else x
