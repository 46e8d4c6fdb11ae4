"""Two-way tables between the key names of the three releases: the authors', transformers' and timm's.

Pure renaming: no tensor is changed. transformers' names are the common form; `NAMES` is read in both directions.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, Literal, TypeVar

Naming = Literal["transformers", "authors", "timm"]
T = TypeVar("T")

# transformers, authors, timm. A name is replaced where it stands between dots or at an end of the key.
NAMES: tuple[tuple[str, str, str], ...] = (
    ("depth_wise_conv", "dwconv", "dwconv"),
    ("point_wise_conv1", "pwconv1", "pwconv1"),
    ("point_wise_conv2", "pwconv2", "pwconv2"),
    ("attn.proj", "attn.Proj", "attn.proj"),
    ("layer_scale", "layer_scale", "layer_scale.gamma"),
    ("layer_scale_1", "layer_scale_1", "layer_scale_1.gamma"),
    ("layer_scale_2", "layer_scale_2", "layer_scale_2.gamma"),
    ("dist_head", "dist_head", "head_dist"),
    ("patch_embed.patch_embedding", "patch_embed", "stem"),
    # The norms of the dense-prediction backbone; timm has no such model.
    ("hidden_states_norms.stage1", "norm0", "norm0"),
    ("hidden_states_norms.stage2", "norm2", "norm2"),
    ("hidden_states_norms.stage3", "norm4", "norm4"),
    ("hidden_states_norms.stage4", "norm6", "norm6"),
)
COLUMN: dict[Naming, int] = {"transformers": 0, "authors": 1, "timm": 2}

HEAD_KEYS = ("norm.", "head.", "dist_head.")
SEGMENTATION_KEYS = "decode_head."
DETECTION_KEYS = "detection_head."


def detect_naming(keys: Iterable[str]) -> Naming | None:
    """Which release's names `keys` are, or None where they are no SwiftFormer's."""
    keys = set(keys)
    if any(key.endswith("patch_embed.patch_embedding.0.weight") for key in keys):
        return "transformers"
    if "patch_embed.0.weight" in keys and any(key.endswith(".attn.w_g") for key in keys):
        return "authors"
    if "stem.0.weight" in keys and any(key.endswith(".attn.w_g") for key in keys):
        return "timm"
    return None


def convert_state_dict(state_dict: Mapping[str, T], source: Naming, target: Naming) -> dict[str, T]:
    """Rename the keys of a state dict.

    Args:
        state_dict: keys in `source`'s naming, with or without heads.
        source, target: `"transformers"`, `"authors"` or `"timm"`.

    Raises:
        ValueError: the model has a part that `target` cannot name (a dense head; timm: the norms in front of one).
    """
    common = _to_transformers(state_dict, source)
    for keys, kind in ((SEGMENTATION_KEYS, "segmentation"), (DETECTION_KEYS, "detection")):
        if target != "transformers" and any(key.startswith(keys) for key in common):
            raise ValueError(f"{target} has no names for a {kind} head: expected a classifier or a backbone")
    if target == "timm" and any(key.startswith("hidden_states_norms.") for key in common):
        raise ValueError("timm has no names for the norms of a dense-prediction backbone: expected a classifier")
    return dict(common) if target == "transformers" else _from_transformers(common, target)


def _to_transformers(state_dict: Mapping[str, T], source: Naming) -> dict[str, T]:
    if source == "transformers":
        # A bare `SwiftFormerModel` is saved without its prefix.
        bare = not any(key.startswith("swiftformer.") for key in state_dict)
        return {f"swiftformer.{key}" if bare else key: value for key, value in state_dict.items()}
    places = _timm_places(state_dict) if source == "timm" else None
    renamed = {}
    for key, value in state_dict.items():
        name = _rename(key, COLUMN[source], COLUMN["transformers"])
        if places is not None:
            name = re.sub(r"^(stages\.\d+\.(?:blocks|downsample))", lambda m: places[str(m[1])], name)
        else:
            name = re.sub(r"^network\.(\d+)\.(\d+)\.", r"encoder.network.\1.blocks.\2.", name)
            name = re.sub(r"^network\.", "encoder.network.", name)
        renamed[f"swiftformer.{name}" if name.startswith(("encoder.", "patch_embed.")) else name] = value
    return renamed


def _from_transformers(state_dict: Mapping[str, T], target: Naming) -> dict[str, T]:
    renamed = {}
    if target == "timm":
        places = {place: stage for stage, place in _timm_places_of_network(state_dict).items()}
    for key, value in state_dict.items():
        name = key.removeprefix("swiftformer.")
        if target == "timm":
            name = re.sub(r"^encoder\.network\.\d+(\.blocks)?", lambda m: places[str(m[0])], name)
        else:
            name = re.sub(r"^encoder\.network\.(\d+)\.(blocks\.)?", r"network.\1.", name)
        renamed[_rename(name, COLUMN["transformers"], COLUMN[target])] = value
    return renamed


def _rename(key: str, source: int, target: int) -> str:
    for row in NAMES:
        if row[source] == row[target]:
            continue
        key, replaced = re.subn(rf"(^|\.){re.escape(row[source])}(?=\.|$)", rf"\g<1>{row[target]}", key)
        if replaced and row[target].startswith(row[source]):  # layer_scale -> layer_scale.gamma: once is enough
            break
    return key


def _timm_places(state_dict: Mapping[str, Any]) -> dict[str, str]:
    """`stages.1.downsample` -> `encoder.network.1`, `stages.1.blocks` -> `encoder.network.2.blocks`, ..."""
    stages = sorted({int(m[1]) for key in state_dict if (m := re.match(r"stages\.(\d+)\.blocks\.", key))})
    places, index = {}, 0
    for stage in stages:
        if any(key.startswith(f"stages.{stage}.downsample.") for key in state_dict):
            places[f"stages.{stage}.downsample"] = f"encoder.network.{index}"
            index += 1
        places[f"stages.{stage}.blocks"] = f"encoder.network.{index}.blocks"
        index += 1
    return places


def _timm_places_of_network(state_dict: Mapping[str, Any]) -> dict[str, str]:
    """As `_timm_places`, read off transformers' keys."""
    prefix = r"swiftformer\.encoder\.network\.(\d+)\."
    indices = sorted({int(m[1]) for key in state_dict if (m := re.match(prefix, key))})
    places, stage = {}, 0
    for index in indices:
        if any(key.startswith(f"swiftformer.encoder.network.{index}.blocks.") for key in state_dict):
            places[f"stages.{stage}.blocks"] = f"encoder.network.{index}.blocks"
            stage += 1
        else:
            places[f"stages.{stage}.downsample"] = f"encoder.network.{index}"
    return places


def infer_config(state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of `SwiftFormerConfig` that the shapes of a state dict in transformers' naming tell.

    What they cannot tell is the numeric form, the activation, strides and dropout rates.

    Raises:
        ValueError: the state dict is not a whole SwiftFormer.
    """
    stages: dict[int, int] = {}
    downsampling: dict[int, str] = {}
    for key in state_dict:
        if m := re.match(r"swiftformer\.encoder\.network\.(\d+)\.blocks\.(\d+)\.", key):
            stages[int(m[1])] = max(stages.get(int(m[1]), 0), int(m[2]) + 1)
        elif m := re.match(r"(swiftformer\.encoder\.network\.(\d+)\.proj)\.weight", key):
            downsampling[int(m[2])] = m[1]
    try:
        stem = state_dict["swiftformer.patch_embed.patch_embedding.0.weight"]
        attention = {
            index: f"swiftformer.encoder.network.{index}.blocks.{depth - 1}" for index, depth in stages.items()
        }
        dims = [int(state_dict[f"{attention[index]}.attn.to_query.weight"].shape[0]) for index in sorted(stages)]
        hidden = state_dict[f"{attention[min(stages)]}.linear.fc1.weight"].shape[0]
    except (KeyError, ValueError) as error:
        raise ValueError(f"not a whole SwiftFormer: {error} is missing") from error
    ratio = hidden / dims[0]
    fields: dict[str, Any] = {
        "num_channels": int(stem.shape[1]),
        "depths": [stages[index] for index in sorted(stages)],
        "embed_dims": dims,
        "mlp_ratio": int(ratio) if ratio == int(ratio) else ratio,
        "downsamples": [index + 1 in downsampling for index in sorted(stages)[:-1]] + [True],
        "use_layer_scale": f"{attention[min(stages)]}.layer_scale_1" in state_dict,
        "distillation": "head.weight" not in state_dict or "dist_head.weight" in state_dict,
    }
    if downsampling:
        first = state_dict[f"{downsampling[min(downsampling)]}.weight"]
        fields["down_patch_size"] = int(first.shape[-1])
    if "head.weight" in state_dict:
        fields["num_labels"] = int(state_dict["head.weight"].shape[0])
    return fields
