"""SwiftFormer's configuration: transformers' arguments and defaults, and the numeric form."""

# No postponed annotations here: `strict` checks values against the types themselves.

import json
import os
from pathlib import Path
from typing import Any, ClassVar, Self

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig
from transformers.activations import ACT2CLS
from transformers.backbone_utils import BackboneConfigMixin

from swiftformer.variants import get_variant

# Written in place of `depths` where stock transformers would load the weights and compute something else: its
# configuration class then stops with an error that shows this sentence. The depths go to `stage_depths`.
STOCK_REFUSAL = (
    "stock transformers computes another function from these weights; load them with the swiftformer package"
)

AT_LEAST_ONE = (
    "fpn_channels",
    "segmentation_channels",
    "detection_proposals",
    "detection_samples",
    "box_channels",
    "mask_channels",
    "detections_per_image",
    "detr_channels",
    "detr_ffn_channels",
    "detr_layers",
    "detr_queries",
)
DETECTORS = ("rcnn", "d-fine")
DETR_HEADS = 8


@strict
class SwiftFormerConfig(BackboneConfigMixin, PreTrainedConfig):
    """Configuration of a SwiftFormer model. Arguments and defaults are those of `transformers.SwiftFormerConfig`.

    Args:
        image_size: nominal input size in pixels; any size runs.
        num_channels: channels of the input image.
        depths: blocks per stage, at least one each.
        embed_dims: channels per stage; as many as `depths`.
        mlp_ratio: expansion of conv encoders and MLPs.
        downsamples: whether a downsampling layer stands behind each stage. The one behind the last stage is ignored;
            a change of width always brings one.
        hidden_act: activation of conv encoders, local representations and MLPs (the stem keeps its ReLU).
        down_patch_size: kernel size of the downsampling convolutions, in pixels.
        down_stride: their stride.
        down_pad: their padding.
        drop_path_rate: stochastic depth of the last block, in [0, 1); grows linearly with depth, and acts, as in the
            authors' code, on the attention and MLP branches of the SwiftFormer encoders only.
        drop_mlp_rate: dropout inside the MLPs.
        drop_conv_encoder_rate: element-wise dropout on the branch of the conv encoders.
        use_layer_scale: scales on the attention and MLP branches.
        layer_scale_init_value: their initial value.
        batch_norm_eps: epsilon of every BatchNorm.
        global_query_weighting: `"uniform"` (March 2023, transformers hub checkpoints) or `"l2"` (July 2023, timm).
        normalize_query_key: L2-normalise queries and keys; False only in the March 2023 Core ML build.
        distillation: whether the classifier has a second head, averaged with the first one at inference.
        out_features, out_indices: stages that the backbone returns, of `stem`, `stage1`, `stage2`, ...
        frozen_stages: of backbones and dense models, how many stages from the input on are not trained, the stem and
            the downsampling between them included: no gradients, no dropout, BatchNorm with its running statistics.
        frozen_batch_norm: the same for every BatchNorm of stem, stages and downsampling. The norms of the returned
            maps, which a classifier's checkpoint does not have, and those of heads are trained in any case.
        fpn_channels: width of the feature pyramid in a dense model.
        segmentation_channels: width of the semantic segmentation head behind it.
        segmentation_dropout: share of channels dropped in front of its classifier.
        semantic_loss_ignore_index: label of pixels that do not count.
        anchor_sizes: of a detector, the side in pixels of the anchors at each level of the pyramid, the finest first;
            one level more than stages.
        anchor_ratios: their heights as shares of their widths.
        detection_proposals: regions that are looked at closely in each picture; twice as many in training.
        detection_samples: of these the number that is learned from.
        box_channels: width of the layers that class and refine a region.
        mask_channels: width of the layers that draw its mask.
        detection_nms_threshold: overlap from which on the lower score of two boxes of a class is dropped.
        detections_per_image: at most.
        detector: what boxes come from: `rcnn`, Faster R-CNN, to which the fields above belong, or `d-fine`, a detector
            for real time, to which `detections_per_image` and the fields below do.
        detr_channels: width of D-FINE, a multiple of 8.
        detr_ffn_channels: width of the hidden layers in the encoder and decoder of D-FINE.
        detr_layers: layers of the decoder of D-FINE.
        detr_queries: objects that D-FINE can see at once.

    Raises:
        ValueError: lengths or ranges that do not fit together.
    """

    model_type: ClassVar[str] = "swiftformer"

    image_size: int | list[int] | tuple[int, int] = 224
    num_channels: int = 3
    depths: list[int] | tuple[int, ...] = (3, 3, 6, 4)
    embed_dims: list[int] | tuple[int, ...] = (48, 56, 112, 220)
    mlp_ratio: int | float = 4
    downsamples: list[bool] | tuple[bool, ...] = (True, True, True, True)
    hidden_act: str = "gelu"
    down_patch_size: int | list[int] | tuple[int, int] = 3
    down_stride: int = 2
    down_pad: int = 1
    drop_path_rate: float | int = 0.0
    drop_mlp_rate: float | int = 0.0
    drop_conv_encoder_rate: float | int = 0.0
    use_layer_scale: bool = True
    layer_scale_init_value: float = 1e-5
    batch_norm_eps: float = 1e-5
    global_query_weighting: str = "uniform"
    normalize_query_key: bool = True
    distillation: bool = True
    frozen_stages: int = 0
    frozen_batch_norm: bool = False
    fpn_channels: int = 256
    segmentation_channels: int = 128
    segmentation_dropout: float | int = 0.1
    semantic_loss_ignore_index: int = 255
    anchor_sizes: list[int] | tuple[int, ...] = (32, 64, 128, 256, 512)
    anchor_ratios: list[float] | tuple[float, ...] = (0.5, 1.0, 2.0)
    detection_proposals: int = 1000
    detection_samples: int = 512
    box_channels: int = 1024
    mask_channels: int = 256
    detection_nms_threshold: float = 0.5
    detections_per_image: int = 100
    detector: str = "rcnn"
    detr_channels: int = 256
    detr_ffn_channels: int = 1024
    detr_layers: int = 3
    detr_queries: int = 300
    _out_features: list[str] | None = None
    _out_indices: list[int] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        self._check()
        self.stage_names = ["stem"] + [f"stage{i}" for i in range(1, len(self.depths) + 1)]
        self.set_output_features_output_indices(
            out_indices=kwargs.pop("out_indices", None), out_features=kwargs.pop("out_features", None)
        )
        super().__post_init__(**kwargs)

    def _check(self) -> None:
        depths = self.depths
        if len(depths) != len(self.embed_dims):
            raise ValueError(
                f"depths and embed_dims must have one entry per stage: found {len(depths)} depths "
                f"{list(depths)} and {len(self.embed_dims)} embed_dims {list(self.embed_dims)}"
            )
        if not depths or any(depth < 1 for depth in depths):
            raise ValueError(f"expected at least one stage with depths of at least 1, found {list(depths)}")
        if any(dim < 1 for dim in self.embed_dims) or self.embed_dims[0] < 2:
            raise ValueError(f"expected positive embed_dims, the first at least 2, found {list(self.embed_dims)}")
        if len(self.downsamples) < len(depths) - 1:
            raise ValueError(
                f"downsamples must have an entry for each of the {len(depths) - 1} steps between stages, "
                f"found {len(self.downsamples)}"
            )
        if self.hidden_act not in ACT2CLS:
            raise ValueError(f"unknown hidden_act {self.hidden_act!r}: expected one of {', '.join(sorted(ACT2CLS))}")
        if self.global_query_weighting not in ("uniform", "l2"):
            raise ValueError(
                f"global_query_weighting must be 'uniform' (March 2023) or 'l2' (July 2023), "
                f"found {self.global_query_weighting!r}"
            )
        for name in ("drop_path_rate", "drop_mlp_rate", "drop_conv_encoder_rate", "segmentation_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be in [0, 1), found {getattr(self, name)}")
        for name in AT_LEAST_ONE:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, found {getattr(self, name)}")
        for name in ("anchor_sizes", "anchor_ratios"):
            if not getattr(self, name) or min(getattr(self, name)) <= 0:
                raise ValueError(f"{name} must be positive numbers, found {getattr(self, name)}")
        if not 0 < self.detection_nms_threshold <= 1:
            raise ValueError(f"detection_nms_threshold must be in (0, 1], found {self.detection_nms_threshold}")
        if self.detector not in DETECTORS:
            raise ValueError(f"detector must be one of {', '.join(DETECTORS)}, found {self.detector!r}")
        if self.detr_channels % DETR_HEADS:
            raise ValueError(f"detr_channels must be a multiple of {DETR_HEADS}, found {self.detr_channels}")
        if not 0 <= self.frozen_stages <= len(depths):
            raise ValueError(f"frozen_stages must be from 0 to {len(depths)}, found {self.frozen_stages}")

    @classmethod
    def from_variant(cls, name: str, **kwargs: Any) -> Self:
        """Configuration of a named variant in the July 2023 form. Keyword arguments override any field.

        Raises:
            ValueError: `name` is not one of `xs`, `s`, `l1`, `l3`.
        """
        variant = get_variant(name)
        if "id2label" not in kwargs:
            kwargs.setdefault("num_labels", 1000)
        defaults = {"depths": variant.depths, "embed_dims": variant.embed_dims, "global_query_weighting": "l2"}
        return cls(**(defaults | kwargs))

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Self:
        """As transformers', and reads what `to_json_file` wrote in place of the depths."""
        if isinstance(config_dict.get("depths"), str) and "stage_depths" in config_dict:
            config_dict = dict(config_dict)
            config_dict["depths"] = config_dict.pop("stage_depths")
        found = super().from_dict(config_dict, **kwargs)
        config = found[0] if isinstance(found, tuple) else found  # with `return_unused_kwargs`
        config._check()  # transformers sets what it is given besides the file without asking
        return found

    @classmethod
    def from_json_file(cls, json_file: str | os.PathLike) -> Self:
        """As transformers', and reads what `to_json_file` wrote in place of the depths."""
        return cls.from_dict(json.loads(Path(json_file).read_text(encoding="utf-8")))

    @property
    def form(self) -> str:
        """The numeric form: `"uniform"`, `"uniform-unnormalized"` or `"l2"`; `"l2-unnormalized"` was never released."""
        return self.global_query_weighting + ("" if self.normalize_query_key else "-unnormalized")

    @property
    def stage_strides(self) -> tuple[int, ...]:
        """Pixels of a picture per pixel of each stage's map."""
        strides = [4]  # of the stem
        for place in range(1, len(self.depths)):
            wider = self.embed_dims[place] != self.embed_dims[place - 1]
            strides.append(strides[-1] * (self.down_stride if wider or self.downsamples[place - 1] else 1))
        return tuple(strides)

    @property
    def is_stock(self) -> bool:
        """Whether `transformers.SwiftFormer*` computes the same function from the same weights."""
        return self.form == "uniform" and self.distillation and self.hidden_act == "gelu"

    def to_json_file(self, json_file_path: str | os.PathLike, use_diff: bool = True) -> None:
        """As transformers'; where stock transformers would compute something else, in a form that it refuses."""
        text = self.to_json_string(use_diff=use_diff)
        if not self.is_stock:
            fields = json.loads(text)
            fields |= {"stage_depths": fields["depths"], "depths": f"{self.form}: {STOCK_REFUSAL}"}
            text = json.dumps(fields, indent=2, sort_keys=True) + "\n"
        Path(json_file_path).write_text(text, encoding="utf-8")
