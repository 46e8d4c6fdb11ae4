"""The SwiftFormer architecture, top to bottom (arXiv 2303.15446, figure 3).

    image -> PatchEmbedding -> Stage 1 -> Downsampling -> Stage 2 -> Downsampling -> Stage 3 -> Downsampling -> Stage 4

Every stage is a row of `ConvEncoder` blocks followed by one `EncoderBlock`, the only place where tokens look at each
other. Feature maps are `(B, C, H, W)` throughout; module names are those of the checkpoints on the transformers hub.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from swiftformer.attention import EfficientAdditiveAttention
from swiftformer.convolutions import DepthWiseConv2d, PointWiseConv2d
from swiftformer.mlp import mlp
from swiftformer.training_kernels import BatchNorm2d, add_scaled

if TYPE_CHECKING:
    from swiftformer.config import SwiftFormerConfig

Activation = Callable[[], nn.Module]


class DropPath(nn.Module):
    """Stochastic depth: in training, drops a sample's whole branch with probability `drop_prob` (arXiv 1603.09382)."""

    def __init__(self, drop_prob: float = 0.0) -> None:
        super().__init__()
        self.drop_prob = drop_prob

    def forward(self, x: Tensor) -> Tensor:
        if self.drop_prob == 0.0 or not self.training:
            return x
        keep_prob = 1 - self.drop_prob
        mask = x.new_empty((x.shape[0],) + (1,) * (x.ndim - 1)).bernoulli_(keep_prob)  # (B, 1, 1, 1)
        return x * mask.div_(keep_prob)

    def extra_repr(self) -> str:
        return f"drop_prob={self.drop_prob:g}"


class PatchEmbedding(nn.Module):
    """The stem, two 3x3 convolutions of stride 2: `(B, num_channels, H, W)` to `(B, dim, H/4, W/4)`, rounded up."""

    def __init__(self, num_channels: int, dim: int, eps: float) -> None:
        super().__init__()
        self.patch_embedding = nn.Sequential(
            nn.Conv2d(num_channels, dim // 2, kernel_size=3, stride=2, padding=1),
            BatchNorm2d(dim // 2, eps=eps),
            nn.ReLU(),
            nn.Conv2d(dim // 2, dim, kernel_size=3, stride=2, padding=1),
            BatchNorm2d(dim, eps=eps),
            nn.ReLU(),
        )

    def forward(self, pixel_values: Tensor) -> Tensor:
        return self.patch_embedding(pixel_values)


class Downsampling(nn.Module):
    """The step between two stages: `(B, in_dim, H, W)` to `(B, out_dim, H/2, W/2)` with the default 3x3 stride 2."""

    def __init__(self, config: SwiftFormerConfig, in_dim: int, out_dim: int) -> None:
        super().__init__()
        size = config.down_patch_size
        kernel_size = (size, size) if isinstance(size, int) else (size[0], size[1])
        self.proj = nn.Conv2d(in_dim, out_dim, kernel_size, config.down_stride, config.down_pad)
        self.norm = BatchNorm2d(out_dim, eps=config.batch_norm_eps)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.proj(x))


class ConvBranch(nn.Module):
    """3x3 depth-wise, 1x1 expand, activation, 1x1 project; scaled per channel and added to its input."""

    def __init__(self, dim: int, hidden_dim: int, activation: Activation, drop_rate: float, eps: float) -> None:
        super().__init__()
        self.depth_wise_conv = DepthWiseConv2d(dim)
        self.norm = BatchNorm2d(dim, eps=eps)
        self.point_wise_conv1 = PointWiseConv2d(dim, hidden_dim)
        self.act = activation()
        self.point_wise_conv2 = PointWiseConv2d(hidden_dim, dim)
        self.dropout = nn.Dropout(drop_rate)
        self.layer_scale = nn.Parameter(torch.ones(dim, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return add_scaled(x, self.branch, self.layer_scale, self.dropout)

    def branch(self, x: Tensor, scale: Tensor | None) -> Tensor:
        x = self.norm(self.depth_wise_conv(x))
        return mlp(x, self.point_wise_conv1, self.act, self.point_wise_conv2, scale)


class ConvEncoder(ConvBranch):
    """Local features: the block that fills each stage up to its last place. Expands to `mlp_ratio * dim` channels."""


class LocalRepresentation(ConvBranch):
    """Local features in front of the attention. Does not expand: `hidden_dim` equals `dim`."""


class Mlp(nn.Module):
    """BatchNorm, then two 1x1 convolutions with an activation between them: `(B, C, H, W)` to `(B, C, H, W)`."""

    def __init__(self, dim: int, hidden_dim: int, activation: Activation, drop_rate: float, eps: float) -> None:
        super().__init__()
        self.norm1 = BatchNorm2d(dim, eps=eps)
        self.fc1 = PointWiseConv2d(dim, hidden_dim)
        self.act = activation()
        self.fc2 = PointWiseConv2d(hidden_dim, dim)
        self.drop = nn.Dropout(drop_rate)

    def forward(self, x: Tensor, scale: Tensor | None = None) -> Tensor:
        return mlp(self.norm1(x), self.fc1, self.act, self.fc2, scale, self.drop)


class EncoderBlock(nn.Module):
    """The SwiftFormer encoder: local representation, efficient additive attention, MLP.

    `use_layer_scale=False` removes the scales of the attention and MLP branches only. The authors' code and
    transformers keep the one inside the local representation, and so do all released weights.
    """

    def __init__(self, config: SwiftFormerConfig, dim: int, activation: Activation, drop_path: float) -> None:
        super().__init__()
        eps = config.batch_norm_eps
        self.local_representation = LocalRepresentation(dim, dim, activation, drop_rate=0.0, eps=eps)
        self.attn = EfficientAdditiveAttention(dim, config.global_query_weighting, config.normalize_query_key)
        self.linear = Mlp(dim, int(dim * config.mlp_ratio), activation, config.drop_mlp_rate, eps)
        self.drop_path = DropPath(drop_path)
        self.use_layer_scale = config.use_layer_scale
        if self.use_layer_scale:
            self.layer_scale_1 = nn.Parameter(torch.full((dim, 1, 1), config.layer_scale_init_value))
            self.layer_scale_2 = nn.Parameter(torch.full((dim, 1, 1), config.layer_scale_init_value))

    def forward(self, x: Tensor) -> Tensor:
        x = self.local_representation(x)
        x = add_scaled(x, self.attend, self.layer_scale_1 if self.use_layer_scale else None, self.drop_path)
        return add_scaled(x, self.linear, self.layer_scale_2 if self.use_layer_scale else None, self.drop_path)

    def attend(self, x: Tensor, scale: Tensor | None) -> Tensor:
        batch, channels, height, width = x.shape
        tokens = x.permute(0, 2, 3, 1).reshape(batch, height * width, channels)  # (B, H*W, C)
        tokens = self.attn(tokens, None if scale is None else scale.flatten())
        return tokens.reshape(batch, height, width, channels).permute(0, 3, 1, 2)  # (B, C, H, W)


class Stage(nn.Module):
    """`depth - 1` conv encoders and one SwiftFormer encoder, all at the same resolution and width."""

    def __init__(
        self, config: SwiftFormerConfig, depth: int, dim: int, activation: Activation, drop_path: float
    ) -> None:
        super().__init__()
        hidden_dim = int(dim * config.mlp_ratio)
        self.blocks = nn.ModuleList(
            ConvEncoder(dim, hidden_dim, activation, config.drop_conv_encoder_rate, config.batch_norm_eps)
            for _ in range(depth - 1)
        )
        self.blocks.append(EncoderBlock(config, dim, activation, drop_path))

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x


class Encoder(nn.Module):
    """All stages and the downsampling between them.

    `network` alternates stages and downsampling layers. A downsampling layer stands behind stage i if
    `downsamples[i]`, or if the width changes there.
    """

    def __init__(self, config: SwiftFormerConfig, activation: Activation) -> None:
        super().__init__()
        depths, dims = config.depths, config.embed_dims
        network: list[nn.Module] = []
        for i, (depth, dim) in enumerate(zip(depths, dims, strict=True)):
            # Drop path grows linearly with the depth of the block; only the last block of a stage uses it.
            drop_path = config.drop_path_rate * (sum(depths[: i + 1]) - 1) / max(sum(depths) - 1, 1)
            network.append(Stage(config, depth, dim, activation, drop_path))
            if i + 1 < len(depths) and (config.downsamples[i] or dim != dims[i + 1]):
                network.append(Downsampling(config, dim, dims[i + 1]))
        self.network = nn.ModuleList(network)
        self.gradient_checkpointing = False
        # `(module.__call__, input) -> output`; transformers assigns it when it switches checkpointing on.
        self._gradient_checkpointing_func: Callable[[Callable[[Tensor], Tensor], Tensor], Tensor] | None = None

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Return the input and the output of every member of `network`: 8 feature maps for four stages."""
        outputs = [x]
        for layer in self.network:
            if self.gradient_checkpointing and self.training and self._gradient_checkpointing_func is not None:
                x = self._gradient_checkpointing_func(layer.__call__, x)
            else:
                x = layer(x)
            outputs.append(x)
        return tuple(outputs)

    def stage_indices(self) -> list[int]:
        """Positions in `forward`'s result of the output of each stage, in order."""
        return [i + 1 for i, layer in enumerate(self.network) if isinstance(layer, Stage)]
