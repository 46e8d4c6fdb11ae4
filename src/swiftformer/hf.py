"""SwiftFormer on transformers' base classes: the names, arguments, outputs and state-dict keys of `transformers`.

Code written for `transformers.SwiftFormer*` runs after changing the import. What is new is the numeric form
(`global_query_weighting`, `normalize_query_key`), both heads' logits, the backbone and `from_variant`.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.backbone_utils import BackboneMixin
from transformers.modeling_outputs import (
    BackboneOutput,
    BaseModelOutputWithNoAttention,
    ImageClassifierOutputWithNoAttention,
)
from transformers.utils import ModelOutput

from swiftformer.attention import EfficientAdditiveAttention
from swiftformer.config import SwiftFormerConfig
from swiftformer.files import atomic_file
from swiftformer.freezing import freeze
from swiftformer.model import Activation, ConvBranch, Encoder, EncoderBlock, PatchEmbedding
from swiftformer.normalization import refuse_folded
from swiftformer.stored_preprocessing import PREPROCESSING_FILE, stored_preprocessing
from swiftformer.training_kernels import GELU, BatchNorm2d


class SwiftFormerPreTrainedModel(PreTrainedModel):
    """Weight initialisation, and what transformers needs to know to load, split and checkpoint the model."""

    config: SwiftFormerConfig
    config_class = SwiftFormerConfig
    base_model_prefix = "swiftformer"
    main_input_name = "pixel_values"
    input_modalities = ("image",)  # type: ignore[assignment]
    supports_gradient_checkpointing = True
    _no_split_modules = ["ConvEncoder", "EncoderBlock"]  # noqa: RUF012
    # The losses are means over the batch. Without this, transformers' Trainer takes them for shares of the loss of all
    # devices and accumulation steps, because `forward` takes further keyword arguments.
    accepts_loss_kwargs = False
    # What `swiftformer.load` knows beyond the weights: a `Preprocessing` and a `LoadReport`. transformers resolves
    # these annotations at run time.
    preprocessing: Any
    load_report: Any
    detector: ClassVar[str | None] = None

    @classmethod
    def from_variant(cls, name: str, **kwargs: Any) -> Self:
        """A model of a named variant with random weights, in the July 2023 form.

        Args:
            name: `xs`, `s`, `l1` or `l3`.
            kwargs: fields of `SwiftFormerConfig`, such as `num_labels=10` or `drop_path_rate=0.1`.

        Raises:
            ValueError: unknown variant, or fields that do not fit together.
        """
        return cls(SwiftFormerConfig.from_variant(name, **kwargs))

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """As transformers', with what the checkpoint's `preprocessor_config.json` says as the model's `preprocessing`.

        Without such a file, or with one of a step that `Preprocessing` cannot reproduce, the model has none.
        """
        loaded = super().from_pretrained(*args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded  # with `output_loading_info`
        reference = args[0] if args else kwargs.get("pretrained_model_name_or_path")
        if reference is not None and (found := stored_preprocessing(reference, kwargs)) is not None:
            model.preprocessing = found
        return loaded

    def save_pretrained(
        self, save_directory: str | os.PathLike, is_main_process: bool = True, *args: Any, **kwargs: Any
    ) -> None:
        """As transformers', with the model's `preprocessing` as `preprocessor_config.json` beside it, over any other.

        Raises:
            ValueError: the model has the normalisation folded in, which a checkpoint cannot tell.
        """
        refuse_folded(self)
        folder, preprocessing = Path(save_directory), getattr(self, "preprocessing", None)
        if preprocessing is not None and is_main_process and not folder.is_file():  # before it is sent to a hub
            with atomic_file(folder / PREPROCESSING_FILE) as file:
                file.write_text(json.dumps(preprocessing.to_dict(self.detector), indent=2) + "\n")
        super().save_pretrained(save_directory, is_main_process, *args, **kwargs)

    def _get_files_timestamps(self, working_dir: str | os.PathLike) -> dict[str, float]:
        """Without what `save_pretrained` has just written: transformers uploads what changes after this."""
        known = super()._get_files_timestamps(working_dir)
        if getattr(self, "preprocessing", None) is not None:
            known.pop(PREPROCESSING_FILE, None)
        return known

    @classmethod
    def is_custom_code(cls) -> bool:
        """Whether transformers leaves modules without parameters of their own as they are, as in others' classes."""
        return cls.is_remote_code() or not cls.__module__.startswith(("transformers.", "swiftformer."))

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            init.trunc_normal_(module.weight, std=0.02)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, ConvBranch):
            init.ones_(module.layer_scale)
        elif isinstance(module, EfficientAdditiveAttention):
            init.normal_(module.w_g)
        elif isinstance(module, EncoderBlock) and module.use_layer_scale:
            init.constant_(module.layer_scale_1, self.config.layer_scale_init_value)
            init.constant_(module.layer_scale_2, self.config.layer_scale_init_value)


class SwiftFormerModel(SwiftFormerPreTrainedModel):
    """Stem and stages without a head. Keys: `patch_embed.*`, `encoder.network.*`."""

    def __init__(self, config: SwiftFormerConfig) -> None:
        super().__init__(config)
        activation: Activation = GELU if config.hidden_act == "gelu" else partial(ACT2FN.__getitem__, config.hidden_act)
        self.patch_embed = PatchEmbedding(config.num_channels, config.embed_dims[0], config.batch_norm_eps)
        self.encoder = Encoder(config, activation)
        self.post_init()

    def forward(
        self,
        pixel_values: Tensor | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> tuple | BaseModelOutputWithNoAttention:
        """Compute the feature maps.

        Args:
            pixel_values: `(B, num_channels, H, W)`, normalised, any H and W from 32 pixels.
            output_hidden_states: return the stem's output and that of each stage and downsampling layer as well.
            return_dict: False for a plain tuple.

        Returns:
            `last_hidden_state` `(B, embed_dims[-1], H/32, W/32)`, rounded up; `hidden_states`, 8 for four stages.

        Raises:
            ValueError: no `pixel_values`, or not four-dimensional, or another number of channels.
        """
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        if return_dict is None:
            return_dict = self.config.return_dict
        hidden_states = self.encoder(self.patch_embed(self._checked(pixel_values)))
        all_hidden_states = hidden_states if output_hidden_states else None
        if not return_dict:
            return (hidden_states[-1],) if all_hidden_states is None else (hidden_states[-1], all_hidden_states)
        return BaseModelOutputWithNoAttention(last_hidden_state=hidden_states[-1], hidden_states=all_hidden_states)

    def _checked(self, pixel_values: Tensor | None) -> Tensor:
        if pixel_values is None:
            raise ValueError("You have to specify pixel_values")
        if pixel_values.ndim != 4 or pixel_values.shape[1] != self.config.num_channels:
            raise ValueError(
                f"expected pixel_values of shape (batch, {self.config.num_channels}, height, width), "
                f"found {tuple(pixel_values.shape)}"
            )
        return pixel_values


class SwiftFormerForImageClassification(SwiftFormerPreTrainedModel):
    """SwiftFormer with its classification heads: BatchNorm, global average, and the mean of two linear layers."""

    def __init__(self, config: SwiftFormerConfig) -> None:
        super().__init__(config)
        self.num_labels: int = config.num_labels or 0
        self.swiftformer = SwiftFormerModel(config)
        self.norm = BatchNorm2d(config.embed_dims[-1], eps=config.batch_norm_eps)
        self._make_heads()
        self.post_init()

    def _make_heads(self) -> None:
        def head() -> nn.Module:
            return nn.Linear(self.config.embed_dims[-1], self.num_labels) if self.num_labels > 0 else nn.Identity()

        self.head = head()
        self.dist_head = head() if self.config.distillation else None

    def reset_classifier(self, num_labels: int, id2label: dict[int, str] | None = None) -> None:
        """Replace both heads by new ones for `num_labels` classes, on the same device and in the same dtype.

        Args:
            num_labels: number of classes; 0 makes the model return the pooled features `(B, embed_dims[-1])`.
            id2label: class names by index.

        Raises:
            ValueError: `id2label` has another length than `num_labels`.
        """
        if num_labels < 0 or (id2label is not None and len(id2label) != num_labels):
            raise ValueError(f"expected {num_labels} class names, found {len(id2label or {})}")
        self.config.id2label = id2label or {i: f"LABEL_{i}" for i in range(num_labels)}
        self.config.label2id = {label: i for i, label in self.config.id2label.items()}
        self.config.problem_type = None  # transformers' losses set it from the number of labels, once
        self.num_labels = num_labels
        like = self.norm.weight
        self._make_heads()
        for module in (self.head, self.dist_head):
            if module is not None:
                module.to(device=like.device, dtype=like.dtype).train(self.training)
                self._init_weights(module)

    def heads(self, last_hidden_state: Tensor) -> tuple[Tensor, Tensor | None]:
        """Class and distillation logits, each `(B, num_labels)`, of feature maps `(B, embed_dims[-1], h, w)`."""
        pooled = self.norm(last_hidden_state).mean(dim=(2, 3))
        return self.head(pooled), self.dist_head(pooled) if self.dist_head is not None else None

    def forward(
        self,
        pixel_values: Tensor | None = None,
        labels: Tensor | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> tuple | ImageClassifierOutputWithNoAttention:
        """Classify images.

        Args:
            pixel_values: `(B, num_channels, H, W)`, normalised.
            labels: `(B,)` class indices; `(B,)` values for one label (mean-square loss); `(B, num_labels)` floats, 0
                or 1, for several labels per image: the dtype decides, unless `config.problem_type` does.
            output_hidden_states: return the feature maps as well.
            return_dict: False for a plain tuple `(loss?, logits, hidden_states?)`.

        Returns:
            `logits` `(B, num_labels)`, the mean of both heads; `loss` if labels were given; `hidden_states` on request.
        """
        loss, logits, _, _, outputs = self._classify(pixel_values, labels, output_hidden_states)
        if not (self.config.return_dict if return_dict is None else return_dict):
            return tuple(v for v in (loss, logits, outputs.hidden_states) if v is not None)
        return ImageClassifierOutputWithNoAttention(loss=loss, logits=logits, hidden_states=outputs.hidden_states)

    def _classify(
        self, pixel_values: Tensor | None, labels: Tensor | None, output_hidden_states: bool | None
    ) -> tuple[Tensor | None, Tensor, Tensor, Tensor | None, BaseModelOutputWithNoAttention]:
        outputs = self.swiftformer(pixel_values, output_hidden_states=output_hidden_states, return_dict=True)
        cls_logits, distillation_logits = self.heads(outputs.last_hidden_state)
        logits = cls_logits if distillation_logits is None else (cls_logits + distillation_logits) / 2
        loss = None if labels is None else self.loss_function(labels, logits, self.config)
        return loss, logits, cls_logits, distillation_logits, outputs


@dataclass
class SwiftFormerForImageClassificationWithTeacherOutput(ModelOutput):
    """Output of `SwiftFormerForImageClassificationWithTeacher`, in the style of DeiT's.

    Attributes:
        loss: of the mean logits, if labels were given.
        logits: mean of both heads, `(B, num_labels)`.
        cls_logits: class head, `(B, num_labels)`.
        distillation_logits: distillation head, `(B, num_labels)`; None where the model has none.
        hidden_states: feature maps, on request.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    cls_logits: Tensor | None = None
    distillation_logits: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None


class SwiftFormerForImageClassificationWithTeacher(SwiftFormerForImageClassification):
    """The same model and weights, returning the logits of each head as well: what distillation trains on."""

    def forward(  # type: ignore[override]
        self,
        pixel_values: Tensor | None = None,
        labels: Tensor | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> tuple | SwiftFormerForImageClassificationWithTeacherOutput:
        """As `SwiftFormerForImageClassification.forward`, with both heads' logits in the output."""
        loss, logits, cls_logits, distillation_logits, outputs = self._classify(
            pixel_values, labels, output_hidden_states
        )
        output = SwiftFormerForImageClassificationWithTeacherOutput(
            loss=loss,
            logits=logits,
            cls_logits=cls_logits,
            distillation_logits=distillation_logits,
            hidden_states=outputs.hidden_states,
        )
        return output if (self.config.return_dict if return_dict is None else return_dict) else output.to_tuple()


class SwiftFormerBackbone(BackboneMixin, SwiftFormerPreTrainedModel):
    """Feature maps of the stages, for detection and segmentation models that take a `backbone_config`.

    Stages are `stem` (stride 4), `stage1` (4), `stage2` (8), `stage3` (16), `stage4` (32). Each returned stage goes
    through its own BatchNorm, as in the authors' dense-prediction code; `stem` is returned as it is.
    """

    has_attentions = False

    def __init__(self, config: SwiftFormerConfig) -> None:
        super().__init__(config)
        self.swiftformer = SwiftFormerModel(config)
        self.num_features = [config.embed_dims[0], *config.embed_dims]
        self.hidden_states_norms = nn.ModuleDict(
            {
                stage: BatchNorm2d(channels, eps=config.batch_norm_eps)
                for stage, channels in zip(self.out_features, self.channels, strict=True)
                if stage != "stem"
            }
        )
        self.post_init()
        freeze(self.swiftformer, config.frozen_stages, config.frozen_batch_norm)

    def train(self, mode: bool = True) -> Self:
        """As torch's, but what the configuration freezes stays in eval mode and without gradients."""
        super().train(mode)
        freeze(self.swiftformer, self.config.frozen_stages, self.config.frozen_batch_norm)
        return self

    def forward(  # type: ignore[override]
        self,
        pixel_values: Tensor,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> tuple | BackboneOutput:
        """Compute the feature maps of the stages in `config.out_features`.

        Args:
            pixel_values: `(B, num_channels, H, W)`, normalised.
            output_hidden_states: return all 8 feature maps of the encoder as well.
            return_dict: False for a plain tuple `(feature_maps, hidden_states?)`.

        Returns:
            `feature_maps`: a tuple of `(B, channels, H/stride, W/stride)`, in the order of the stages.
        """
        hidden_states = self.swiftformer(pixel_values, output_hidden_states=True, return_dict=True).hidden_states
        maps = {"stem": hidden_states[0]}
        maps |= zip(
            self.stage_names[1:], (hidden_states[i] for i in self.swiftformer.encoder.stage_indices()), strict=True
        )
        feature_maps = tuple(
            self.hidden_states_norms[stage](maps[stage]) if stage != "stem" else maps[stage]
            for stage in self.out_features
        )
        wanted = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        output = BackboneOutput(feature_maps=feature_maps, hidden_states=hidden_states if wanted else None)
        return output if (self.config.return_dict if return_dict is None else return_dict) else output.to_tuple()


def register() -> None:
    """Make transformers' Auto classes and pipelines return this package's models for `model_type="swiftformer"`.

    Meant to be called once; calling it again changes nothing. transformers' `AutoBackbone.from_pretrained` asks the hub
    even for a local folder: `SwiftFormerBackbone.from_pretrained` does not.
    """
    from transformers.models.auto import (
        AutoBackbone,
        AutoConfig,
        AutoModel,
        AutoModelForImageClassification,
        AutoModelForInstanceSegmentation,
        AutoModelForObjectDetection,
        AutoModelForSemanticSegmentation,
    )

    from swiftformer.detection import SwiftFormerForInstanceSegmentation, SwiftFormerForObjectDetection
    from swiftformer.segmentation import SwiftFormerForSemanticSegmentation

    AutoConfig.register("swiftformer", SwiftFormerConfig, exist_ok=True)
    AutoModel.register(SwiftFormerConfig, SwiftFormerModel, exist_ok=True)
    AutoModelForImageClassification.register(SwiftFormerConfig, SwiftFormerForImageClassification, exist_ok=True)
    AutoModelForSemanticSegmentation.register(SwiftFormerConfig, SwiftFormerForSemanticSegmentation, exist_ok=True)
    AutoModelForObjectDetection.register(SwiftFormerConfig, SwiftFormerForObjectDetection, exist_ok=True)
    AutoModelForInstanceSegmentation.register(SwiftFormerConfig, SwiftFormerForInstanceSegmentation, exist_ok=True)
    AutoBackbone.register(SwiftFormerConfig, SwiftFormerBackbone, exist_ok=True)
