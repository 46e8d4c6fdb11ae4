"""A checkpoint of a classifier or a segmentation model as the layers of `native`, read and fused in NumPy: importing
torch takes seconds.

The formulas are those of `swiftformer.deploy`, in float64.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from swiftformer.engines.base import ONE_CLASS
from swiftformer.engines.native import Member, named
from swiftformer.image_processing import Preprocessing
from swiftformer.load_report import LoadReport
from swiftformer.locate import CheckpointError, Located

if TYPE_CHECKING:
    from swiftformer.model_kinds import Task

logger = logging.getLogger(__name__)
FORMS = ("uniform", "l2", "uniform-unnormalized", "l2-unnormalized")
# What `native` computes, by fields of `SwiftFormerConfig`.
COMPUTED = {"hidden_act": "gelu", "num_channels": 3, "down_patch_size": 3, "down_stride": 2, "down_pad": 1}


@dataclass(frozen=True)
class Fused:
    """A network: layers and tensors as `swiftformer.engines.native.named` gives them."""

    layers: list[dict[str, Any]]
    tensors: dict[str, np.ndarray]
    preprocessing: Preprocessing
    labels: tuple[str, ...]


def read_fused(located: Located, form: str | None) -> Fused | None:
    """The fused layers of a model that transformers or `swiftformer.save` wrote.

    None for every other checkpoint, and where `swiftformer.load` refuses, or warns of something that changes answers.

    Raises:
        CheckpointError: a numeric form that is asked for, and is not the checkpoint's.
    """
    try:
        from safetensors import SafetensorError
        from safetensors.numpy import load_file
    except ImportError:
        return None
    if form in FORMS and located.form in FORMS and form != located.form:
        raise CheckpointError(f"{located.path}: its form is {located.form!r}, but form={form!r} was asked for")
    try:
        if (
            located.task not in ("classification", "segmentation")
            or located.weights.suffix != ".safetensors"
            or not located.config
        ):
            return None
        if located.preprocessing is None or form not in (None, located.form):
            return None
        with np.errstate(all="ignore"):
            return _fused(located, _Weights(load_file(located.weights)))
    except (ArithmeticError, AttributeError, KeyError, OSError, SafetensorError, TypeError, ValueError) as error:
        logger.debug("%s: left to torch (%r)", located.path, error)
        return None


def _fused(located: Located, weights: _Weights) -> Fused | None:
    config, preprocessing = located.config, located.preprocessing
    assert preprocessing is not None
    depths = config["stage_depths"] if isinstance(config["depths"], str) else config["depths"]
    dims, segments = config["embed_dims"], located.task == "segmentation"
    if not _is_computed(config, depths, segments) or located.form not in FORMS:
        return None
    if not segments and config.get("distillation", True) is not weights.has("dist_head.weight"):
        return None
    if config.get("problem_type") not in ONE_CLASS:
        return None
    names: dict[int, str] = {int(i): str(name) for i, name in config["id2label"].items()}
    labels = tuple(names[i] for i in sorted(names))
    if len(labels) < (2 if segments else 1):
        return None
    network = _Network(config, weights, located.form or "")
    members = [("stem", "stem", network.stem(dims[0], preprocessing))]
    for stage, (depth, dim) in enumerate(zip(depths, dims, strict=True)):
        members += network.stage(2 * stage, depth, dim)
        if segments:
            members.append(("lateral", f"decode_head.lateral.{stage}", network.lateral(stage, dim)))
        if stage + 1 < len(dims):
            place = 2 * stage + 1
            members.append(("downsampling", f"layers.{place}", network.downsampling(place, dim, dims[stage + 1])))
    if segments:
        members += network.semantic_fpn(len(dims), len(labels))
    else:
        members.append(("head", "head", network.head(dims[-1], len(labels))))
    if weights.left():
        return None
    task: Task = "segmentation" if segments else "classification"
    report = LoadReport(located.path, located.weights, "transformers", located.form or "", task, len(labels))
    logger.info("%s", report)
    layers, tensors = named(members)
    return Fused(layers, tensors, preprocessing, labels)


def _is_computed(config: Mapping[str, Any], depths: Any, segments: bool) -> bool:
    """Whether the fields that change an answer are of their types, and such that `native` computes it."""
    dims, moves = config["embed_dims"], config["downsamples"]
    widths = [config["fpn_channels"], config["segmentation_channels"]] if segments else []
    lists = all(type(each) is list for each in (dims, depths, moves))
    if not lists or any(type(number) is not int or number < 1 for number in (*dims, *depths, *widths)):
        return False
    if not dims or dims[0] < 2:
        return False
    flags = (*moves, config["use_layer_scale"], config.get("normalize_query_key", True))
    known = all(type(config[name]) is type(value) and config[name] == value for name, value in COMPUTED.items())
    typed = type(config["batch_norm_eps"]) is float and type(config["mlp_ratio"]) in (int, float)
    if not (known and typed) or any(type(flag) is not bool for flag in flags):
        return False
    steps = [moved or dim != after for moved, dim, after in zip(moves, dims, dims[1:], strict=False)]
    return len(dims) == len(depths) == len(steps) + 1 and all(steps)


class _Weights:
    """The tensors of a file, each of which is taken once."""

    def __init__(self, tensors: Mapping[str, np.ndarray]) -> None:
        self._left = dict(tensors)

    def take(self, name: str, *shape: int) -> np.ndarray:
        """In float64; KeyError and ValueError where there is none, or one of another shape."""
        array = self._left.pop(name)
        if array.shape != shape or array.dtype not in (np.float16, np.float32):
            raise ValueError(f"{name}: expected {shape}, found {array.dtype} {array.shape}")
        return array.astype(np.float64)

    def has(self, name: str) -> bool:
        return name in self._left

    def drop_counter(self, norm: str) -> None:
        """A BatchNorm's, which changes nothing; older files have none."""
        if np.ndim(self._left.pop(f"{norm}.num_batches_tracked", 0)) > 0:
            raise ValueError(f"{norm}: expected a single counter")

    def left(self) -> list[str]:
        return list(self._left)


class _Network:
    """The arguments of each layer, see `swiftformer.engines.native.LAYERS`."""

    def __init__(self, config: Mapping[str, Any], weights: _Weights, form: str) -> None:
        self.take, self.has, self.drop_counter = weights.take, weights.has, weights.drop_counter
        self.eps, self.ratio = float(config["batch_norm_eps"]), config["mlp_ratio"]
        self.config = config
        self.scales: bool = config["use_layer_scale"]
        self.pools_by_score, self.normalize = form.startswith("l2"), not form.endswith("-unnormalized")

    def stem(self, dim: int, preprocessing: Preprocessing) -> dict[str, Any]:
        name = "swiftformer.patch_embed.patch_embedding"
        weight1, bias1 = self._norm_behind(f"{name}.0", f"{name}.1", dim // 2, 3, 3, 3)
        weight2, bias2 = self._norm_behind(f"{name}.3", f"{name}.4", dim, dim // 2, 3, 3)
        if any(type(value) not in (int, float) for value in (*preprocessing.mean, *preprocessing.std)):
            raise ValueError("expected numbers to normalise by")
        mean, std = (np.array(values, np.float64).reshape(3) for values in (preprocessing.mean, preprocessing.std))
        return {"weight1": weight1, "bias1": bias1, "weight2": weight2, "bias2": bias2, "mean": mean, "std": std}

    def downsampling(self, place: int, in_dim: int, out_dim: int) -> dict[str, Any]:
        name = f"swiftformer.encoder.network.{place}"
        weight, bias = self._norm_behind(f"{name}.proj", f"{name}.norm", out_dim, in_dim, 3, 3)
        return {"weight": weight, "bias": bias}

    def stage(self, place: int, depth: int, dim: int) -> Iterator[Member]:
        hidden = int(dim * self.ratio)
        for number in range(depth):
            name, layer = f"swiftformer.encoder.network.{place}.blocks.{number}", f"layers.{place}.{number}"
            if number + 1 < depth:
                yield "branch", layer, self._branch(name, dim, hidden, "")
            else:
                local = self._branch(f"{name}.local_representation", dim, dim, "local_")
                yield "encoder", layer, local | self._attention(name, dim) | self._mlp(name, dim, hidden)

    def _branch(self, name: str, dim: int, hidden: int, prefix: str) -> dict[str, Any]:
        depth_wise, bias = self._norm_behind(f"{name}.depth_wise_conv", f"{name}.norm", dim, 1, 3, 3)
        expand, expand_bias = self._layer(f"{name}.point_wise_conv1", hidden, dim, 1, 1)
        project, project_bias = self._layer(f"{name}.point_wise_conv2", dim, hidden, 1, 1)
        scale = self.take(f"{name}.layer_scale", dim, 1, 1)[:, 0, 0]
        return {
            "depth_wise": depth_wise,
            "depth_wise_bias": bias,
            f"{prefix}expand": expand[:, :, 0, 0],
            f"{prefix}expand_bias": expand_bias,
            f"{prefix}project": project[:, :, 0, 0] * scale[:, None],
            f"{prefix}project_bias": project_bias * scale,
        }

    def _attention(self, name: str, dim: int) -> dict[str, Any]:
        key, key_bias = self._layer(f"{name}.attn.to_key", dim, dim)
        query, query_bias = self._layer(f"{name}.attn.to_query", dim, dim)
        proj, proj_bias = self._layer(f"{name}.attn.proj", dim, dim)
        final, final_bias = self._layer(f"{name}.attn.final", dim, dim)
        w_g = self.take(f"{name}.attn.w_g", dim, 1)[:, 0]
        score = w_g / max(float(np.linalg.norm(w_g)), 1e-30) * dim**-0.5
        scale = self._scale(f"{name}.layer_scale_1", dim)
        output = np.concatenate([final @ proj, final * dim**-0.5 if self.normalize else final], axis=1)
        return {
            "key_query": np.concatenate([key, query]),
            "key_query_bias": np.concatenate([key_bias, query_bias]),
            "output": output * scale[:, None],
            "output_bias": (final @ proj_bias + final_bias) * scale,
            "score": score if self.pools_by_score else None,
            "normalize": self.normalize,
            "pooled_scale": 1 / dim if self.normalize else 1.0,
        }

    def _mlp(self, name: str, dim: int, hidden: int) -> dict[str, Any]:
        factor, shift = self._affine(f"{name}.linear.norm1", dim)
        expand, bias = self._layer(f"{name}.linear.fc1", hidden, dim, 1, 1)
        project, project_bias = self._layer(f"{name}.linear.fc2", dim, hidden, 1, 1)
        scale = self._scale(f"{name}.layer_scale_2", dim)
        return {
            "expand": expand[:, :, 0, 0] * factor,
            "expand_bias": bias + expand[:, :, 0, 0] @ shift,
            "project": project[:, :, 0, 0] * scale[:, None],
            "project_bias": project_bias * scale,
        }

    def head(self, dim: int, classes: int) -> dict[str, Any]:
        factor, shift = self._affine("norm", dim)
        heads = [self._layer("head", classes, dim)]
        if self.has("dist_head.weight"):
            heads.append(self._layer("dist_head", classes, dim))
        weight, bias = (np.mean([head[part] for head in heads], axis=0) for part in (0, 1))
        return {"weight": weight * factor, "bias": bias + weight @ shift}

    def lateral(self, level: int, dim: int) -> dict[str, Any]:
        factor, shift = self._affine(f"hidden_states_norms.stage{level + 1}", dim)
        weight, bias = self._layer(f"decode_head.fpn.lateral.{level}", self.config["fpn_channels"], dim, 1, 1)
        return {"weight": weight[:, :, 0, 0] * factor, "bias": bias + weight[:, :, 0, 0] @ shift}

    def semantic_fpn(self, levels: int, classes: int) -> Iterator[Member]:
        """As in `swiftformer.export.native`."""
        wide, channels = self.config["fpn_channels"], self.config["segmentation_channels"]
        weight, bias = self._layer("decode_head.classifier", classes, channels, 1, 1)
        for level in reversed(range(levels)):
            name = f"decode_head.{level}"
            yield "pyramid_level", name, {"index": level}
            output, output_bias = self._layer(f"decode_head.fpn.output.{level}", wide, wide, 3, 3)
            yield "convolution", f"{name}.output", {"weight": output, "bias": output_bias, "relu": False}
            for step in range(max(1, level)):
                if step > 0:
                    yield "enlarging", f"{name}.enlarging.{step}", {"level": level - step}
                place = f"decode_head.scale_heads.{level}.{step}"
                factor, shift = self._affine(f"{place}.norm", channels)
                conv = self.take(f"{place}.conv.weight", channels, channels if step else wide, 3, 3)
                arguments = {"weight": conv * factor[:, None, None, None], "bias": shift, "relu": True}
                yield "convolution", f"{name}.{step}", arguments
            yield "scores", f"{name}.scores", {"weight": weight[:, :, 0, 0], "bias": bias / levels}
        yield "scores_output", "decode_head.output", {}

    def _layer(self, name: str, *shape: int) -> tuple[np.ndarray, np.ndarray]:
        return self.take(f"{name}.weight", *shape), self.take(f"{name}.bias", shape[0])

    def _affine(self, name: str, dim: int) -> tuple[np.ndarray, np.ndarray]:
        self.drop_counter(name)
        weight, bias = self._layer(name, dim)
        factor = weight / np.sqrt(self.take(f"{name}.running_var", dim) + self.eps)
        return factor, bias - self.take(f"{name}.running_mean", dim) * factor

    def _norm_behind(self, conv: str, norm: str, *shape: int) -> tuple[np.ndarray, np.ndarray]:
        weight, bias = self._layer(conv, *shape)
        factor, shift = self._affine(norm, shape[0])
        return weight * factor[:, None, None, None], bias * factor + shift

    def _scale(self, name: str, dim: int) -> np.ndarray:
        return self.take(name, dim, 1, 1)[:, 0, 0] if self.scales else np.ones(dim)
