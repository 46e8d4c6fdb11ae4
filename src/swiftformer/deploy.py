"""The form in which SwiftFormer is run: every BatchNorm and layer scale folded, both heads one, fewer products.

`fuse(model)` gives a `DeployModel`, which computes the same function as a `SwiftFormerForImageClassification`, a
`SwiftFormerForSemanticSegmentation` or a `SwiftFormerBackbone` with nothing but convolutions, activations, one linear
layer and what attention and feature pyramids need besides.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from swiftformer.attention import EfficientAdditiveAttention
from swiftformer.deploy_detection import DETECTION_OUTPUTS, DeployRCNN
from swiftformer.detection import SwiftFormerForObjectDetection
from swiftformer.heads.semantic_fpn import SemanticFPNHead, merged, pyramid
from swiftformer.hf import SwiftFormerBackbone, SwiftFormerForImageClassification
from swiftformer.image_processing import Preprocessing
from swiftformer.model import ConvBranch, Downsampling, EncoderBlock, Mlp, Stage
from swiftformer.normalization import NormalizingConv2d, fold_normalization
from swiftformer.segmentation import SwiftFormerForSemanticSegmentation

if TYPE_CHECKING:
    from swiftformer.deploy_d_fine import DeployDFine

# Mean square of a vector that counts as zero; and for graphs that compute it in float16, whose smallest normal number
# this is: the factor is then 128, and a zero vector stays zero.
SMALLEST = 1e-24
SMALLEST_HALF = 2.0**-14


class DeployBranch(nn.Module):
    """`x + project(act(expand(depth_wise(x))))`: a conv encoder or a local representation."""

    def __init__(self, branch: ConvBranch) -> None:
        super().__init__()
        self.depth_wise = norm_behind(branch.depth_wise_conv, branch.norm)
        self.expand = copied(branch.point_wise_conv1)
        self.act = copy.deepcopy(branch.act)
        self.project = scaled_behind(branch.point_wise_conv2, branch.layer_scale)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.project(self.act(self.expand(self.depth_wise(x))))


class DeployAttention(nn.Module):
    """Efficient additive attention on feature maps `(B, D, H, W)`, layer scale included.

    Keys and queries come from one product, and `Wf(Wp(g * k) + q)` is one product as well, with the matrix
    `[Wf Wp, Wf]` and the input `[g * k, q]`. Three things keep it cheap, and the values small enough for float16:

    - Keys and queries are divided by their root mean square, not by their norm; the factor sqrt(D) is in the weights.
    - The scores of the l2 form are not normalised as a map: the pooled query is divided by their norm instead.
    - The size of `w_g` cancels out, so it is such that no score is above 1 (Cauchy-Schwarz).

    Attributes:
        key_query: gives `(B, 2 D, H, W)`, or both as a tuple.
        smallest: mean square of a vector that counts as zero.
    """

    smallest: float = SMALLEST

    def __init__(self, attention: EfficientAdditiveAttention, layer_scale: Tensor | None) -> None:
        super().__init__()
        self.dim = dim = attention.final.out_features
        self.normalize = attention.normalize_query_key
        key, query, proj, final = (getattr(attention, name) for name in ("to_key", "to_query", "proj", "final"))
        self.key_query: nn.Module = pointwise(
            torch.cat([key.weight, query.weight]).double(), torch.cat([key.bias, query.bias]).double(), key.weight
        )
        f, p = final.weight.double(), proj.weight.double()
        bias = f @ proj.bias.double() + final.bias.double()
        weight = torch.cat([f @ p, f * dim**-0.5 if self.normalize else f], dim=1)
        if layer_scale is not None:
            scale = layer_scale.flatten().double()
            weight, bias = weight * scale[:, None], bias * scale
        self.output = pointwise(weight, bias, final.weight)
        self.pooled_scale = 1 / dim if self.normalize else 1.0
        self.score: nn.Module | None = None
        if attention.global_query_weighting == "l2":
            w_g = attention.w_g.detach().double().T  # (1, D)
            w_g = w_g / w_g.norm().clamp_min(1e-30) * dim**-0.5
            self.score = pointwise(w_g, None, final.weight)

    def forward(self, x: Tensor) -> Tensor:
        both = self.key_query(x)
        key, query = both if isinstance(both, tuple) else both.split(self.dim, dim=1)  # (B, D, H, W) each
        if self.normalize:
            key, query = unit_rms(key, self.smallest), unit_rms(query, self.smallest)
        if self.score is None:
            pooled = (total(query) * self.pooled_scale).to(x.dtype)  # (B, D, 1, 1)
        else:
            score = self.score(query)  # (B, 1, H, W)
            norm = torch.rsqrt(total(score * score).clamp_min(self.smallest))  # (B, 1, 1, 1)
            pooled = (total(query * score) * (norm * self.pooled_scale)).to(x.dtype)
        return self.output(torch.cat([pooled * key, query], dim=1))


class DeployMlp(nn.Module):
    """`project(act(expand(x)))`, with the BatchNorm in front and the layer scale behind."""

    def __init__(self, mlp: Mlp, layer_scale: Tensor | None) -> None:
        super().__init__()
        self.expand = norm_before(mlp.norm1, mlp.fc1)
        self.act = copy.deepcopy(mlp.act)
        self.project = copied(mlp.fc2) if layer_scale is None else scaled_behind(mlp.fc2, layer_scale)

    def forward(self, x: Tensor) -> Tensor:
        return self.project(self.act(self.expand(x)))


class DeployEncoder(nn.Module):
    """Local representation, attention, MLP."""

    def __init__(self, block: EncoderBlock) -> None:
        super().__init__()
        scales = (block.layer_scale_1, block.layer_scale_2) if block.use_layer_scale else (None, None)
        self.local = DeployBranch(block.local_representation)
        self.attention = DeployAttention(block.attn, scales[0])
        self.mlp = DeployMlp(block.linear, scales[1])

    def forward(self, x: Tensor) -> Tensor:
        x = self.local(x)
        x = x + self.attention(x)
        return x + self.mlp(x)


class DeploySemanticFPN(nn.Module):
    """The Semantic FPN head, with the norms of the maps in front of it."""

    def __init__(self, head: SemanticFPNHead, norms: Sequence[Any]) -> None:
        super().__init__()
        lateral: Any = head.fpn.lateral
        self.lateral = nn.ModuleList(norm_before(norm, conv) for norm, conv in zip(norms, lateral, strict=True))
        self.output = copy.deepcopy(head.fpn.output)
        scale_heads: Any = head.scale_heads
        self.scale_heads = nn.ModuleList(
            nn.ModuleList(nn.Sequential(norm_behind(step.conv, step.norm), nn.ReLU()) for step in steps)
            for steps in scale_heads
        )
        self.classifier = copied(head.classifier)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        return self.classifier(merged(self.scale_heads, pyramid(self.lateral, self.output, maps)))


class DeployModel(nn.Module):
    """A fused network in eval mode, made by `fuse`.

    Attributes:
        config: of the model that was fused.
        preprocessing: what its input needs.
        out_features: names of the feature maps of a backbone; empty for a model with a head.
    """

    def __init__(self, model: SwiftFormerForImageClassification | SwiftFormerBackbone) -> None:
        super().__init__()
        self.config = copy.deepcopy(model.config)
        self.preprocessing: Preprocessing | None = getattr(model, "preprocessing", None)
        stem: Any = model.swiftformer.patch_embed.patch_embedding
        self.stem = nn.Sequential(norm_behind(stem[0], stem[1]), nn.ReLU(), norm_behind(stem[3], stem[4]), nn.ReLU())
        self.layers = nn.ModuleList()
        self.stage_ends: list[int] = []
        for layer in model.swiftformer.encoder.network:
            if isinstance(layer, Stage):
                members: list[Any] = list(layer.blocks)
                blocks = [DeployEncoder(b) if isinstance(b, EncoderBlock) else DeployBranch(b) for b in members]
                self.stage_ends.append(len(self.layers))
                self.layers.append(nn.Sequential(*blocks))
            else:
                assert isinstance(layer, Downsampling)
                self.layers.append(norm_behind(layer.proj, layer.norm))
        self.out_features: list[str] = []
        self.norms = nn.ModuleDict()
        self.head: nn.Module = nn.Identity()
        self.decode_head: DeploySemanticFPN | None = None
        self.detection_head: DeployRCNN | DeployDFine | None = None
        if isinstance(model, SwiftFormerForObjectDetection):
            self.detection_head = deploy_detection(model)
        elif hasattr(model, "detection_head"):
            from swiftformer.deploy_d_fine import deploy_d_fine

            self.detection_head = deploy_d_fine(model)  # type: ignore[arg-type]
        elif isinstance(model, SwiftFormerForSemanticSegmentation):
            self.decode_head = DeploySemanticFPN(model.decode_head, list(model.hidden_states_norms.values()))
        elif isinstance(model, SwiftFormerBackbone):
            self.out_features = list(model.out_features)
            norms: dict[str, Any] = dict(model.hidden_states_norms.items())
            self.norms.update({name: norm_alone(norm) for name, norm in norms.items()})
        else:
            self.head = merged_heads(model)
        self.eval().requires_grad_(False)

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of what `forward` returns."""
        if self.detection_head is not None:
            return DETECTION_OUTPUTS if self.detection_head.mask_head is not None else DETECTION_OUTPUTS[:-1]
        return tuple(self.out_features) or ("logits",)

    def forward(self, pixel_values: Tensor) -> Tensor | tuple[Tensor, ...]:
        """`(B, num_channels, H, W)` to logits, to the feature maps of a backbone, or to what a detector finds.

        Logits are `(B, num_labels)`, and of a segmentation model `(B, num_labels, H/4, W/4)`, rounded up. For detectors
        see `swiftformer.deploy_detection.DeployRCNN`, which takes one picture, and
        `swiftformer.deploy_d_fine.DeployDFine`.
        """
        x = self.stem(pixel_values)
        dense = self.out_features or self.decode_head is not None or self.detection_head is not None
        maps = {"stem": x}
        for place, layer in enumerate(self.layers):
            x = layer(x)
            if dense and place in self.stage_ends:
                maps[f"stage{self.stage_ends.index(place) + 1}"] = x
        if self.detection_head is not None:
            return self.detection_head(list(maps.values())[1:], (pixel_values.shape[2], pixel_values.shape[3]))
        if self.decode_head is not None:
            return self.decode_head(list(maps.values())[1:])
        if self.out_features:
            return tuple(
                self.norms[name](maps[name]) if name in self.norms else maps[name] for name in self.out_features
            )
        return self.head(x.mean(dim=(2, 3)))


def fuse(model: SwiftFormerForImageClassification | SwiftFormerBackbone, *, raw_input: bool = False) -> DeployModel:
    """Fold a model into the form in which it is run. The model itself is not changed.

    Args:
        model: a classifier, a segmentation model, a detector or a backbone, of any numeric form.
        raw_input: let the result take pixels from 0 to 255, with the normalisation of `model.preprocessing` in the
            first convolution.

    Returns:
        The same function as of the model in eval mode, up to rounding: to 1e-4 relative in float32, and where the
        result is run in half precision to 0.05 in bfloat16 and 0.01 in float16, each against the model in float32; in
        float16 the forms that do not normalise keys and queries may overflow, unless `swiftformer.export` fits them.
        Weights are folded in float64 and kept in the model's dtype, in channels-last memory.

    Raises:
        ValueError: another kind of model or of heads, or a model that does not know its normalisation.
    """
    if not isinstance(model, (SwiftFormerForImageClassification, SwiftFormerBackbone)):
        raise ValueError(
            f"expected a SwiftFormer classifier, segmentation model, detector or backbone, found {type(model).__name__}"
        )
    if model.device.type == "mps":  # which knows no float64
        return fuse(copy.deepcopy(model).cpu(), raw_input=raw_input).to(model.device)
    if raw_input:
        preprocessing = getattr(model, "preprocessing", None)
        if preprocessing is None:
            raise ValueError("expected a model with preprocessing, as swiftformer.load gives it, found one without")
        model = fold_normalization(model, preprocessing.mean, preprocessing.std)  # type: ignore[assignment]
    with torch.no_grad():
        return DeployModel(model).to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def deploy_detection(model: SwiftFormerForObjectDetection) -> DeployRCNN:
    """The head of a detector, with the norms of the backbone's maps folded into the pyramid."""
    norms: list[Any] = list(model.hidden_states_norms.values())
    blocks: Any = model.detection_head.fpn.inner_blocks
    lateral = [norm_before(norm, block[0]) for norm, block in zip(norms, blocks, strict=True)]
    return DeployRCNN(model.detection_head, lateral, model.with_masks, model.config.detections_per_image)


def unit_rms(x: Tensor, smallest: float = SMALLEST) -> Tensor:
    """Divide `(B, D, H, W)` by its root mean square over D; a zero vector stays zero."""
    # One-channel maps are not converted: their strides are ambiguous, and torch.export would tie sizes to them.
    exact = wide(x)
    return (exact * torch.rsqrt((exact * exact).mean(dim=1, keepdim=True).clamp_min(smallest))).to(x.dtype)


def wide(x: Tensor) -> Tensor:
    """Half precision as float32: squares of small values are zero in float16, those of large ones infinite."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def total(x: Tensor) -> Tensor:
    """The sum over height and width, `(B, D, 1, 1)`; of half precision in float32, which does not overflow."""
    half = x.dtype in (torch.float16, torch.bfloat16)
    return x.sum(dim=(2, 3), keepdim=True, dtype=torch.float32 if half else None)


def affine(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """A BatchNorm in eval mode as `x * factor + shift`, each `(C,)` in float64."""
    assert norm.running_mean is not None and norm.running_var is not None
    factor = norm.weight.double() / torch.sqrt(norm.running_var.double() + norm.eps)
    return factor, norm.bias.double() - norm.running_mean.double() * factor


def norm_behind(conv: nn.Conv2d | NormalizingConv2d, norm: nn.BatchNorm2d) -> nn.Module:
    """`norm(conv(x))` as one convolution."""
    factor, shift = affine(norm)
    return changed(conv, lambda weight, bias: (weight * factor.view(-1, 1, 1, 1), bias * factor + shift))


def norm_before(norm: nn.BatchNorm2d, conv: nn.Conv2d) -> nn.Module:
    """`conv(norm(x))` as one convolution. It must be 1x1: padding would be padding of the normalised map."""
    assert conv.kernel_size == (1, 1)
    factor, shift = affine(norm)
    return changed(conv, lambda weight, bias: (weight * factor.view(1, -1, 1, 1), bias + weight[:, :, 0, 0] @ shift))


def norm_alone(norm: nn.BatchNorm2d) -> nn.Module:
    """A BatchNorm that nothing can take in, as a convolution of each channel with one weight."""
    factor, shift = affine(norm)
    conv = nn.Conv2d(len(factor), len(factor), kernel_size=1, groups=len(factor)).to(norm.weight)
    conv.weight.copy_(factor.view(-1, 1, 1, 1))
    conv.bias.copy_(shift)  # type: ignore[union-attr]
    return conv


def scaled_behind(conv: nn.Conv2d, layer_scale: Tensor) -> nn.Module:
    """`layer_scale * conv(x)` as one convolution."""
    scale = layer_scale.flatten().double()
    return changed(conv, lambda weight, bias: (weight * scale.view(-1, 1, 1, 1), bias * scale))


def copied(conv: nn.Conv2d) -> nn.Module:
    return copy.deepcopy(conv)


def changed(conv: Any, change: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]) -> nn.Module:
    """A copy of a convolution with a bias, whose weight and bias went through `change` in float64."""
    new = copy.deepcopy(conv)
    bias = conv.bias.double() if conv.bias is not None else conv.weight.new_zeros(len(conv.weight)).double()
    weight, bias = change(conv.weight.double(), bias)
    new.weight = nn.Parameter(weight.to(conv.weight.dtype))
    new.bias = nn.Parameter(bias.to(conv.weight.dtype))
    return new


def pointwise(weight: Tensor, bias: Tensor | None, like: Tensor) -> nn.Conv2d:
    """A 1x1 convolution from a matrix `(out, in)`, in the dtype and on the device of `like`."""
    conv = nn.Conv2d(weight.shape[1], weight.shape[0], kernel_size=1, bias=bias is not None).to(like)
    conv.weight.copy_(weight[:, :, None, None])
    if bias is not None:
        conv.bias.copy_(bias)  # type: ignore[union-attr]
    return conv


def merged_heads(model: SwiftFormerForImageClassification) -> nn.Module:
    """The BatchNorm in front of the heads and the mean of both heads as one linear layer behind the average."""
    factor, shift = affine(model.norm)
    heads: list[Any] = [head for head in (model.head, model.dist_head) if not isinstance(head, nn.Identity | None)]
    if other := next((head for head in heads if not isinstance(head, nn.Linear)), None):
        raise ValueError(f"expected heads of one linear layer, found {type(other).__name__}")
    if heads:
        weight = torch.stack([head.weight.double() for head in heads]).mean(dim=0)
        bias = torch.stack([head.bias.double() for head in heads]).mean(dim=0)
    else:
        weight, bias = torch.eye(len(factor), dtype=torch.float64, device=factor.device), torch.zeros_like(factor)
    linear = nn.Linear(weight.shape[1], weight.shape[0]).to(model.norm.weight)
    linear.weight.copy_(weight * factor)
    linear.bias.copy_(bias + weight @ shift)
    return linear
