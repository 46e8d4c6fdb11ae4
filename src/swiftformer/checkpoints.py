"""Find, verify, load and save SwiftFormer checkpoints of every release, each in its right numeric form."""

from __future__ import annotations

import dataclasses
import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from swiftformer.convert import (
    SEGMENTATION_KEYS,
    Naming,
    convert_state_dict,
    detect_naming,
    infer_config,
)
from swiftformer.files import atomic_file, atomic_folder
from swiftformer.image_processing import AUTHORS, HUB, TIMM, Preprocessing
from swiftformer.labels import labels_of
from swiftformer.load_report import LoadReport
from swiftformer.locate import CheckpointError, Located, locate
from swiftformer.model_kinds import (
    CLASSIFIERS,
    MASK_KEYS,
    PARTS,
    RCNN_KEYS,
    REAL_TIME,
    REAL_TIME_KEYS,
    Task,
    held_detector,
    held_task,
    kind_of,
    model_class,
)
from swiftformer.normalization import refuse_folded
from swiftformer.weights_file import NOTES, read_weights, write_tensors

if TYPE_CHECKING:
    from swiftformer.config import SwiftFormerConfig
    from swiftformer.hf import SwiftFormerPreTrainedModel

logger = logging.getLogger(__name__)

Form = Literal["uniform", "l2", "uniform-unnormalized"]

FORMS: dict[str, dict[str, Any]] = {
    "uniform": {"global_query_weighting": "uniform", "normalize_query_key": True},
    "l2": {"global_query_weighting": "l2", "normalize_query_key": True},
    "uniform-unnormalized": {"global_query_weighting": "uniform", "normalize_query_key": False},
    # Never released, but a configuration can ask for it.
    "l2-unnormalized": {"global_query_weighting": "l2", "normalize_query_key": False},
}
# Where a checkpoint has them, it holds a head of the kind; and what it may hold besides of other heads.
DENSE_KEYS = {
    "segmentation": (SEGMENTATION_KEYS,),
    "detection": RCNN_KEYS,
    "instances": RCNN_KEYS,
    REAL_TIME: (REAL_TIME_KEYS,),
}
FOREIGN = {
    "detection": (MASK_KEYS, REAL_TIME_KEYS),
    "instances": (REAL_TIME_KEYS,),
    REAL_TIME: (*RCNN_KEYS, "hidden_states_norms.stage1."),
}
# What `load` decides itself, and no override may change.
DECIDED = ("global_query_weighting", "normalize_query_key", "depths", "embed_dims", "distillation")
ASK_FOR_FORM = (
    "the file does not tell its numeric form, and the wrong one gives wrong predictions without an error: pass form="
    "'uniform' (weights of March 2023), 'l2' (July 2023) or 'uniform-unnormalized' (March 2023, Core ML build)"
)


def load(
    reference: str | Path,
    *,
    form: str | None = None,
    num_labels: int | None = None,
    labels: list[str] | None = None,
    task: Task | None = None,
    ema: bool = False,
    strict: bool = True,
    **overrides: Any,
) -> SwiftFormerPreTrainedModel:
    """Load a checkpoint of any release. Nothing in the file is executed.

    Args:
        reference: a bundled name, a transformers or timm hub id, a timm model name, a local folder (transformers,
            timm, or a training run), or a file (authors' .pth, .safetensors, .bin).
        form: `uniform`, `l2` or `uniform-unnormalized`; needed only where the file cannot tell.
        num_labels: number of classes wanted; where the checkpoint has another, its heads are replaced.
        labels: class names wanted, in order; the heads are replaced where their number or names differ.
        task: `classification`, `segmentation`, `detection`, `instances` (instance segmentation) or `backbone`; by
            default what the checkpoint holds. What detects is a `detector="rcnn"` or `"d-fine"`, for real time; by
            default the checkpoint's.
        ema: take the averaged weights of an authors' training checkpoint.
        strict: False allows missing and unexpected keys; `model.load_report` lists them.
        overrides: fields of `SwiftFormerConfig`, such as `drop_path_rate=0.1` or `out_indices=[1, 2, 3, 4]`.

    Returns:
        The model in eval mode and float32, with `.config`, `.preprocessing` and `.load_report`.

    Raises:
        CheckpointError: not found, truncated, corrupt, foreign, of unknown form, or with keys that do not fit.
        ValueError: arguments that do not fit together.
    """
    from swiftformer.config import SwiftFormerConfig
    from swiftformer.hf import SwiftFormerBackbone

    known = {f.name for f in dataclasses.fields(SwiftFormerConfig)} | {"out_features", "out_indices"}
    if wrong := [name for name in overrides if name not in known or name in DECIDED]:
        raise ValueError(f"expected fields of SwiftFormerConfig that loading leaves open, found {', '.join(wrong)}")
    if labels is not None and num_labels not in (None, len(labels)):
        raise ValueError(f"expected {num_labels} labels, found {len(labels)}")
    located = locate(reference)
    located, naming, state_dict = read_state_dict(located, ema)
    config = _read_config(located, naming, state_dict, form)
    if task not in (None, *PARTS):
        raise ValueError(f"task must be one of {', '.join(PARTS)}, found {task!r}")
    has_norms = any(key.startswith("hidden_states_norms.") for key in state_dict)
    task = task or held_task(state_dict)
    kind: str = task
    if task in ("detection", "instances"):
        held = held_detector(state_dict) if task == "detection" else "rcnn"
        config["detector"] = overrides.get("detector", held)
        kind = kind_of(task, config["detector"])

    if labels is not None:
        num_labels = len(labels)
    if task == "backbone":
        chosen = {key for key in ("out_features", "out_indices") if key in overrides}
        if chosen or not has_norms:
            config = {key: value for key, value in config.items() if key not in ("out_features", "out_indices")}
        if not chosen and "out_features" not in config:
            config["out_indices"] = list(range(1, len(config["depths"]) + 1))
        model: Any = SwiftFormerBackbone(_checked_config(located, config | overrides))
        replaced = False
    else:
        _, counted, besides = CLASSIFIERS[kind]
        stored = max(len(state_dict.get(counted, ())) - besides, 0)
        if stored == 0 and num_labels is None:
            raise CheckpointError(f"{located.path}: expected a {task} head, found none; pass num_labels")
        replaced, config = _resolve_labels(config, stored, num_labels, labels)
        checked = _checked_config(located, config | overrides)
        model = model_class(task, checked.detector)(checked)

    missing, unexpected = _fill(model, state_dict, located, kind, replaced, strict)
    model.preprocessing = located.preprocessing or {"transformers": HUB, "authors": AUTHORS, "timm": TIMM}[naming]
    if located.preprocessing is None and naming == "transformers":
        logger.info("%s: no preprocessor_config.json: pictures are prepared as for MBZUAI's checkpoints", located.path)
    model.load_report = LoadReport(
        path=located.path,
        weights=located.weights,
        naming=naming,
        form=model.config.form,
        task=task,
        num_labels=None if task == "backbone" else model.config.num_labels,
        head_replaced=replaced,
        missing=missing,
        unexpected=unexpected,
    )
    logger.info("%s", model.load_report)
    return model.eval()


def _checked_config(located: Located, fields: dict[str, Any]) -> SwiftFormerConfig:
    from huggingface_hub.errors import StrictDataclassError

    from swiftformer.config import SwiftFormerConfig

    try:
        return SwiftFormerConfig(**fields)
    except (StrictDataclassError, TypeError) as error:
        raise CheckpointError(
            f"{located.path}: its configuration is broken ({' '.join(str(error).split())})"
        ) from error


def read_state_dict(located: Located, ema: bool) -> tuple[Located, Naming, dict[str, Tensor]]:
    """What was located, with the notes that this package left in its file, the naming there, and the weights in ours.

    Raises:
        CheckpointError: the file is broken, or holds something else.
    """
    state_dict, notes = read_weights(located.weights, ema=ema)
    if notes and not located.config:
        try:
            located = dataclasses.replace(
                located,
                form=notes["form"],
                labels=notes["labels"],
                preprocessing=Preprocessing.from_dict(notes["preprocessing"]),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise CheckpointError(f"{located.weights}: its notes are broken ({error})") from error
    naming = detect_naming(state_dict)
    if naming is None:
        found = ", ".join(list(state_dict)[:3]) or "nothing"
        raise CheckpointError(f"{located.weights}: expected the weights of a SwiftFormer, found {found}")
    return located, naming, convert_state_dict(state_dict, naming, "transformers")


def _read_config(located: Located, naming: Naming, state_dict: dict[str, Tensor], form: str | None) -> dict[str, Any]:
    """Fields for `SwiftFormerConfig`, with the numeric form resolved."""
    if form is not None and form not in FORMS:
        raise ValueError(f"form must be one of {', '.join(FORMS)}, found {form!r}")
    try:
        inferred = infer_config(state_dict)
    except ValueError as error:
        raise CheckpointError(f"{located.weights}: {error}") from error
    try:
        return _resolve_config(located, naming, inferred, form)
    except (KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{located.path}: its configuration is broken ({error})") from error


def _resolve_config(located: Located, naming: Naming, inferred: dict[str, Any], form: str | None) -> dict[str, Any]:
    config = dict(located.config)
    if isinstance(config.get("depths"), str):  # the refusal written for stock transformers
        config["depths"] = config.pop("stage_depths")
    for name in ("depths", "embed_dims"):
        if name in config and list(config[name]) != inferred[name]:
            raise CheckpointError(
                f"{located.path}: config.json says {name} {list(config[name])}, the weights have {inferred[name]}"
            )
    told = located.form or ("l2" if naming == "timm" else None)
    resolved = form or told
    if resolved is None:
        raise CheckpointError(f"{located.path}: {ASK_FOR_FORM}")
    if told is not None and told not in FORMS:
        raise CheckpointError(f"{located.path}: expected a form of {', '.join(FORMS)}, found {told!r}")
    if form is not None and told is not None and form != told:
        raise CheckpointError(f"{located.path}: its form is {told!r}, but form={form!r} was asked for")
    config = inferred | config | FORMS[resolved]
    if located.labels and "id2label" not in config and len(located.labels) == inferred.get("num_labels"):
        config["id2label"] = dict(enumerate(located.labels))
    if inferred.get("num_labels") == 1000 and "id2label" not in config:
        from timm.data import ImageNetInfo

        info = ImageNetInfo("imagenet-1k")
        config["id2label"] = {i: info.index_to_description(i) for i in range(1000)}
    if "id2label" in config:
        named = {int(i): str(label) for i, label in config["id2label"].items()}
        config["id2label"] = dict(enumerate(named[i] for i in sorted(named)))  # whatever number is first
        config["label2id"] = {label: i for i, label in config["id2label"].items()}
        config.pop("num_labels", None)
    return config


def numbered(count: int) -> list[str]:
    """What transformers calls classes that have no names."""
    return [f"LABEL_{i}" for i in range(count)]


def _resolve_labels(
    config: dict[str, Any], stored: int, num_labels: int | None, labels: list[str] | None
) -> tuple[bool, dict[str, Any]]:
    """Whether the layers of `stored` classes are replaced, and the config with the labels that the model will have."""
    names = [config["id2label"][i] for i in sorted(config.get("id2label", {}))]
    if names and len(names) != stored and labels is None and num_labels in (None, stored):
        logger.warning("expected names of %d classes, found %d: the classes get numbers instead", stored, len(names))
    if names == numbered(len(names)) and labels is not None and len(labels) == stored:
        names = labels  # they were none
    wanted = stored if num_labels is None else num_labels
    replaced = wanted != stored or (labels is not None and bool(names) and labels != names)
    if replaced or labels is not None or len(names) != stored:
        new = labels or numbered(wanted)
        # Another kind of label may need another loss: transformers works it out anew.
        others = ("num_labels", "problem_type") if replaced else ("num_labels",)
        config = {key: value for key, value in config.items() if key not in others}
        config["id2label"] = dict(enumerate(new))
        config["label2id"] = {label: i for i, label in enumerate(new)}
    return replaced, config


def _fill(
    model: nn.Module, state_dict: dict[str, Tensor], located: Located, kind: str, replaced: bool, strict: bool
) -> tuple[list[str], list[str]]:
    wanted = model.state_dict()
    # Stray counters of BatchNorm change nothing; older files lack them.
    optional = {key for key in wanted if key.endswith("num_batches_tracked")}
    own = PARTS["detection" if kind == REAL_TIME else kind]
    new: tuple[str, ...] = own if kind == "backbone" else ()
    if replaced:
        classifiers = CLASSIFIERS[kind][0]
        dense = DENSE_KEYS.get(kind)
        new = classifiers if dense and any(key.startswith(dense) for key in state_dict) else own
        state_dict = {key: value for key, value in state_dict.items() if not key.startswith(classifiers)}
    if kind == "instances" and not any(key.startswith(MASK_KEYS) for key in state_dict):
        new = (*new, MASK_KEYS)
    foreign = tuple(part for parts in PARTS.values() for part in parts if kind == "backbone" or part not in own)
    foreign += FOREIGN.get(kind, ())
    allowed_missing = {key for key in wanted if key.startswith(new)}
    allowed_unexpected = {key for key in state_dict if key.startswith(foreign)}
    missing = sorted(wanted.keys() - state_dict.keys() - optional)
    unexpected = sorted(state_dict.keys() - wanted.keys())
    bad_missing = [key for key in missing if key not in allowed_missing]
    bad_unexpected = [key for key in unexpected if key not in allowed_unexpected]
    if strict and (bad_missing or bad_unexpected):
        raise CheckpointError(
            f"{located.weights}: {len(bad_missing)} keys missing {bad_missing[:3]}, {len(bad_unexpected)} unexpected "
            f"{bad_unexpected[:3]}; strict=False allows it"
        )
    for key, tensor in state_dict.items():
        if key in wanted and tensor.shape != wanted[key].shape:
            raise CheckpointError(
                f"{located.weights}: {key} expected shape {tuple(wanted[key].shape)}, found {tuple(tensor.shape)}"
                f"{_other_widths(located, model)}"
            )
    model.load_state_dict({key: tensor for key, tensor in state_dict.items() if key in wanted}, strict=False)
    return missing, unexpected


def _other_widths(located: Located, model: Any) -> str:
    """What the configuration asked for is wider or narrower than stored, by name, for an error."""
    found = {key: value for key, value in located.config.items() if key.endswith("_channels")}
    differing = [key for key, value in found.items() if getattr(model.config, key, value) != value]
    told = (f"{key} {found[key]} where {getattr(model.config, key)} was asked for" for key in differing)
    return f"; it has {', '.join(told)}" if differing else ""


def save(
    model: SwiftFormerPreTrainedModel,
    path: str | Path,
    *,
    format: Literal["transformers", "authors", "timm"] = "transformers",
    dtype: torch.dtype | None = None,
) -> Path:
    """Save a model so that it is either there completely or not at all.

    Args:
        path: a folder for `transformers`; a file for `authors` (.pth) and `timm` (.safetensors, or .pth).
        format: `transformers` writes config, weights and preprocessing; stock transformers loads it where it computes
            the same function, and refuses it otherwise. `authors` and `timm` write a state dict in their naming.
        dtype: floating-point type of the stored weights, such as `torch.float16`; the model's own by default.

    Returns:
        `path`.

    Raises:
        ValueError: the format cannot hold the model without changing its predictions (timm: the l2 form only), or
            the model is a fused one.
    """
    from swiftformer.hf import SwiftFormerPreTrainedModel

    if not isinstance(model, SwiftFormerPreTrainedModel):
        raise ValueError(f"expected a SwiftFormer model that can be trained, found {type(model).__name__}")
    refuse_folded(model)
    path = Path(path)
    preprocessing = getattr(model, "preprocessing", None) or HUB
    state_dict = {
        key: value.detach().to("cpu", dtype if dtype and value.is_floating_point() else None).contiguous()
        for key, value in model.state_dict().items()
    }
    if format == "transformers":
        config = type(model.config)(**model.config.to_dict())
        config.architectures = [type(model).__name__.removesuffix("WithTeacher")]
        config.dtype = dtype or model.dtype
        with atomic_folder(path) as folder:
            write_tensors(state_dict, folder / "model.safetensors", {"format": "pt"})
            config.to_json_file(folder / "config.json")
            fields = json.dumps(preprocessing.to_dict(model.detector), indent=2) + "\n"
            (folder / "preprocessor_config.json").write_text(fields)
        return path
    if format not in ("authors", "timm"):
        raise ValueError(f"format must be 'transformers', 'authors' or 'timm', found {format!r}")
    _check_fits(model.config, format)
    renamed = convert_state_dict(state_dict, "transformers", format)
    labels = labels_of(model.config) if "head.weight" in state_dict else None
    notes = json.dumps({"form": model.config.form, "labels": labels, "preprocessing": preprocessing.to_dict()})
    with atomic_file(path) as file:
        if path.suffix == ".safetensors":
            write_tensors(renamed, file, {"format": "pt", NOTES: notes})
        else:
            torch.save({"model" if format == "authors" else "state_dict": renamed, NOTES: notes}, file)
    return path


def _check_fits(config: SwiftFormerConfig, format: str) -> None:
    """Raise ValueError where the code behind a format would compute another function from the weights."""
    fixed = {"hidden_act": "gelu", "batch_norm_eps": 1e-5, "down_stride": 2, "down_pad": 1}
    problems = [f"{name} {getattr(config, name)}" for name, value in fixed.items() if getattr(config, name) != value]
    if format == "timm" and config.form != "l2":
        problems.append(f"form {config.form}")
    if format == "timm" and not config.distillation:
        problems.append("a single head")
    if format == "timm" and not config.use_layer_scale:
        problems.append("no layer scales in encoders alone")
    if problems:
        expected = ", ".join(f"{name} {value}" for name, value in fixed.items())
        expected += ", form l2, two heads and layer scales" if format == "timm" else ""
        raise ValueError(f"{format} computes with {expected}; found {', '.join(problems)}")
