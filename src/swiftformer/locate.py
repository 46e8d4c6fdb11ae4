"""Find the files behind a checkpoint reference, and what they say about themselves."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from swiftformer.files import expanded, is_path
from swiftformer.image_processing import Preprocessing
from swiftformer.messages import one_line
from swiftformer.variants import VARIANTS

BUNDLED = ("swiftformer-xs-cifar10",)
DEFAULT_MODEL = BUNDLED[0]

WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")
GRAPHS = (".onnx", ".xml", ".pt2", ".pte", ".tflite", ".mlpackage")  # of exported artifacts
SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".tar", ".ckpt")
# A training run keeps its best weights here; see train/loop.py.
RUN_FOLDERS = ("best", "last")
TASKS = {  # by a part of the class's name
    "ForSemanticSegmentation": "segmentation",
    "ForObjectDetection": "detection",
    "ForRealTimeDetection": "detection",
    "ForInstanceSegmentation": "instances",
    "Backbone": "backbone",
}


class CheckpointError(ValueError):
    """A checkpoint that cannot be used; the message says what was expected and what was found."""


@dataclass(frozen=True)
class Located:
    """The parts of a checkpoint.

    Attributes:
        path: what the user meant: the folder, or the single file.
        weights: the file with the tensors.
        config: fields of `SwiftFormerConfig`, as far as a config.json gives them.
        form: the numeric form, where the format tells.
        preprocessing: where the format tells.
        labels: class names, where the format tells them outside `config`.
        task: that a config.json names; elsewhere `classification`.
    """

    path: Path
    weights: Path
    config: dict[str, Any] = field(default_factory=dict)
    form: str | None = None
    preprocessing: Preprocessing | None = None
    labels: list[str] | None = None
    task: str = "classification"


def locate(reference: str | Path) -> Located:
    """Resolve a reference: bundled name, local file or folder, timm name, or hub id.

    A process asks the hub once for each id, and sees no later revision of it.

    Raises:
        CheckpointError: nothing is there.
    """
    text = str(reference)
    if text in BUNDLED:
        return _folder(Path(__file__).parent / "weights" / text)
    path = expanded(text)
    if text and path.is_dir():
        return _folder(path)
    if path.is_file():
        return _file(path)
    if text.endswith(SUFFIXES) or is_path(text):
        raise CheckpointError(f"{text}: no such file or folder")
    return _hub(text)


def stored_task(reference: str | Path) -> str:
    """What a model does, a `swiftformer.model_kinds.Task`, told without reading the weights; of files `classification`.

    Raises:
        CheckpointError, ArtifactError: the checkpoint or artifact cannot be found or read.
    """
    from swiftformer.artifact import is_artifact, read_artifact

    if is_artifact(reference):
        return read_artifact(reference).task
    return locate(reference).task


def _file(path: Path) -> Located:
    if path.name in WEIGHT_FILES and (path.parent / "config.json").exists():
        return _folder(path.parent, path)
    if path.suffix in GRAPHS or (path.parent / "metadata.json").is_file():
        raise CheckpointError(
            f"{path}: expected a checkpoint, or the folder of an exported artifact with its metadata.json, found a "
            "file of an artifact"
        )
    return Located(path=path, weights=path)


def _folder(path: Path, weights: Path | None = None) -> Located:
    if not (path / "config.json").exists():
        for name in RUN_FOLDERS:
            if (path / name / "config.json").exists():
                return _folder(path / name)
    weights = weights or next((path / name for name in WEIGHT_FILES if (path / name).exists()), None)
    if weights is None or not (path / "config.json").exists():
        files = sorted(file.name for file in path.iterdir()) or ["nothing"]
        if "metadata.json" in files:
            raise CheckpointError(f"{path}: expected a checkpoint, found an exported artifact")
        expected = f"config.json and {' or '.join(WEIGHT_FILES)}"
        if path.suffix in GRAPHS or any(name.endswith(GRAPHS) or name == "network.json" for name in files):
            expected += ", or the metadata.json of an exported artifact"
        raise CheckpointError(f"{path}: expected {expected}, found {', '.join(files[:8])}")
    config = _json(path / "config.json")
    if "architecture" in config:
        return _timm_folder(path, weights, config)
    if config.get("model_type") != "swiftformer":
        raise CheckpointError(
            f"{path}/config.json: expected model_type 'swiftformer', found {config.get('model_type')!r}"
        )
    processor = path / "preprocessor_config.json"
    try:
        preprocessing = Preprocessing.from_dict(_json(processor)) if processor.exists() else None
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{processor}: {error}") from error
    weighting = config.get("global_query_weighting", "uniform")
    form = str(weighting) + ("" if config.get("normalize_query_key", True) else "-unnormalized")
    # "transformers_version", "dtype" and the like say nothing about the function that the model computes.
    ignored = ("architectures", "transformers_version", "dtype", "torch_dtype", "_name_or_path")
    fields = {key: value for key, value in config.items() if key not in ignored}
    names = " ".join(map(str, config.get("architectures") or ()))
    task = next((task for kind, task in TASKS.items() if kind in names), "classification")
    return Located(path=path, weights=weights, config=fields, form=form, preprocessing=preprocessing, task=task)


def _timm_folder(path: Path, weights: Path, config: dict[str, Any]) -> Located:
    if not str(config["architecture"]).startswith("swiftformer"):
        raise CheckpointError(f"{path}/config.json: expected a SwiftFormer, found {config['architecture']!r}")
    pretrained = config.get("pretrained_cfg") or {}
    try:
        preprocessing = Preprocessing.from_timm(pretrained)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{path / 'config.json'}: {error}") from error
    return Located(
        path=path,
        weights=weights,
        form="l2",
        preprocessing=preprocessing,
        labels=config.get("label_names") or pretrained.get("label_names"),
    )


def _hub(text: str) -> Located:
    repo = re.sub(r"^hf[-_]hub:", "", text)
    repo = next((v.timm_id for v in VARIANTS.values() if repo in (f"swiftformer_{v.name}", v.timm_id[5:])), repo)
    if "/" not in repo:
        raise CheckpointError(
            f"{text}: expected a bundled name ({', '.join(BUNDLED)}), a file or folder, a hub id such as "
            f"MBZUAI/swiftformer-xs, or a timm name such as swiftformer_xs.dist_in1k"
        )
    folder = _snapshots.get(repo)
    if folder is None or not (folder / "config.json").exists() or not any((folder / f).exists() for f in WEIGHT_FILES):
        folder = _snapshots[repo] = _downloaded(text, repo)
    return _folder(folder)


_snapshots: dict[str, Path] = {}


def _downloaded(text: str, repo: str) -> Path:
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise CheckpointError(f"{text}: no such file or folder, and huggingface_hub is not installed") from None
    try:
        for weights in WEIGHT_FILES:
            wanted = ["config.json", "preprocessor_config.json", weights]
            folder = Path(snapshot_download(repo, allow_patterns=wanted))
            if (folder / weights).exists():
                break
    except Exception as error:  # the hub's own errors, and those of whatever carries its requests
        raise CheckpointError(
            f"{text}: no such file or folder, and not to be had from the hub ({one_line(error)})"
        ) from error
    return folder


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: expected JSON ({error})") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: expected a JSON object, found {type(content).__name__}")
    return content
