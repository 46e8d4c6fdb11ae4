"""An exported artifact: a folder with a graph and `metadata.json`. Nothing here needs torch."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from swiftformer.files import expanded
from swiftformer.image_processing import Preprocessing

METADATA = "metadata.json"
SCHEMA = 1
PRECISIONS = ("fp32", "fp16", "bf16", "int8", "palettized")
TASKS = ("classification", "segmentation", "detection", "instances", "backbone")


class ArtifactError(ValueError):
    """An artifact that is absent, broken, foreign or of another version."""


@dataclass(frozen=True)
class Artifact:
    """What `metadata.json` tells about an exported model.

    Attributes:
        format: a key of `swiftformer.export.FORMATS`.
        precision: one of `PRECISIONS`.
        file: the graph, in the artifact's folder; a file or a folder.
        task: one of `TASKS`.
        outputs: names of the outputs in order: `logits`, or `probabilities` where softmax is in the graph, or the names
            of a backbone's feature maps.
        channels: of the input.
        batch: images per call; None for any number.
        size: height and width of the input in pixels; None for any.
        value_range: of the input, `normalized` by `preprocessing`, or `0-255` where the graph normalises.
        preprocessing: what makes the input from a picture.
        labels: names of the classes.
        float_layers: of int8, the layers that were left in floating point.
        device: that the graph was compiled for; `cpu` also where it is compiled later.
        source: the model that was exported, with the `sha256` of its weights where they came from a file.
        versions: of the packages that wrote the artifact; of machine code also `cpu`, the instructions it may use.
        comparison: with the model in PyTorch: `images`, `top1_agreement` (of a segmentation model, of its pixels; of a
            detector, of its `objects`) and `max_relative_difference`; with `max_drop` also `float_top1` and `top1` on
            the validation pictures.
        checksums: sha256 of every file of the graph.
    """

    format: str
    precision: str
    file: str
    task: str
    outputs: tuple[str, ...]
    channels: int
    batch: int | None
    size: tuple[int, int] | None
    value_range: str
    preprocessing: Preprocessing
    labels: tuple[str, ...]
    float_layers: tuple[str, ...] = ()
    device: str = "cpu"
    source: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    comparison: dict[str, float] = field(default_factory=dict)
    checksums: dict[str, str] = field(default_factory=dict)

    @property
    def input_shape(self) -> tuple[int | None, int, int | None, int | None]:
        """Batch, channels, height, width; None for what is free."""
        height, width = self.size or (None, None)
        return self.batch, self.channels, height, width

    def to_dict(self) -> dict[str, Any]:
        fields = asdict(self)
        fields["preprocessing"] = self.preprocessing.to_dict()
        fields["input"] = {"name": "pixel_values", "layout": "NCHW", "dtype": "float32", "shape": self.input_shape}
        return {"schema": SCHEMA, **fields}

    def write(self, folder: Path) -> None:
        (folder / METADATA).write_text(json.dumps(self.to_dict(), indent=2) + "\n")


def is_artifact(path: str | Path) -> bool:
    """Whether a path is the folder of an artifact, whole or not."""
    return (expanded(path) / METADATA).is_file()


def read_artifact(folder: str | Path) -> Artifact:
    """Read and check an artifact.

    Raises:
        ArtifactError: not an artifact, of a newer version, with fields of another kind than this version writes, or
            with files that are missing or changed.
    """
    folder = expanded(folder)
    try:
        fields = json.loads((folder / METADATA).read_text(encoding="utf-8"))
    except OSError:
        raise ArtifactError(f"{folder}: expected an exported artifact, found no {METADATA} in it") from None
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"{folder / METADATA}: expected JSON, found {error}") from None
    schema = fields.pop("schema", None) if isinstance(fields, dict) else None
    if schema != SCHEMA:
        raise ArtifactError(f"{folder / METADATA}: expected schema {SCHEMA} of this version, found {schema!r}")
    fields.pop("input", None)
    _check(fields, folder / METADATA)
    try:
        preprocessing = Preprocessing.from_dict(fields["preprocessing"])
        sides = (*preprocessing.size, preprocessing.resize_to or 1, preprocessing.longest or 1)
        if not all(map(_is_count, sides)) or not all(
            map(math.isfinite, (*preprocessing.mean, *preprocessing.std, *(preprocessing.filling or ())))
        ):
            raise ValueError(str(preprocessing))
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        reason = f"none with {error}" if isinstance(error, LookupError) else error
        raise ArtifactError(f"{folder / METADATA}: expected a preprocessing that is known, found {reason}") from None
    artifact = Artifact(
        **{
            **fields,
            "outputs": tuple(fields["outputs"]),
            "size": tuple(fields["size"]) if fields["size"] else None,
            "preprocessing": preprocessing,
            "labels": tuple(fields["labels"]),
            "float_layers": tuple(fields.get("float_layers", ())),
        }
    )
    try:
        _check_files(folder, artifact)
    except OSError as error:
        raise ArtifactError(f"{folder}: expected files that can be read, found {error}") from None
    return artifact


def _check_files(folder: Path, artifact: Artifact) -> None:
    for name, expected in artifact.checksums.items():
        file = folder / name
        if not file.is_file():
            raise ArtifactError(f"{folder}: expected the file {name}, found none")
        if (found := sha256(file)) != expected:
            raise ArtifactError(
                f"{file}: expected sha256 {expected[:12]}..., found {found[:12]}...: damaged or changed"
            )
    if not (folder / artifact.file).exists():
        raise ArtifactError(f"{folder}: expected the file {artifact.file}, found none")


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _is_inside(value: Any) -> bool:
    """Whether it is a path that does not lead out of the folder that it is relative to."""
    path = PurePosixPath(value) if isinstance(value, str) and value.isprintable() else PurePosixPath()
    return bool(path.parts) and not path.is_absolute() and ".." not in path.parts


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(text, str) for text in value)


def _is_size(value: Any) -> bool:
    return value is None or (isinstance(value, list) and len(value) == 2 and all(map(_is_count, value)))


def _is_mapping(value: Any) -> bool:
    return isinstance(value, dict)


def _is_text_mapping(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(text, str) for text in value.values())


# Field: what it has to be.
CHECKS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "format": ("a name", lambda value: isinstance(value, str)),
    "precision": (f"one of {', '.join(PRECISIONS)}", lambda value: value in PRECISIONS),
    "file": ("a path in the artifact's folder", _is_inside),
    "task": (f"one of {', '.join(TASKS)}", lambda value: value in TASKS),
    "outputs": ("a list of names", lambda value: _are_texts(value) and len(value) > 0),
    "channels": ("a positive number", _is_count),
    "batch": ("a positive number or null", lambda value: value is None or _is_count(value)),
    "size": ("height and width, or null", _is_size),
    "value_range": ("normalized or 0-255", lambda value: value in ("normalized", "0-255")),
    "preprocessing": ("an object", _is_mapping),
    "labels": ("a list of names", _are_texts),
    "float_layers": ("a list of names", _are_texts),
    "device": ("a name", lambda value: isinstance(value, str)),
    "source": ("an object", _is_mapping),
    "versions": ("an object of texts", _is_text_mapping),
    "comparison": ("an object", _is_mapping),
    "checksums": (
        "an object of texts by paths in the artifact's folder",
        lambda value: _is_text_mapping(value) and all(map(_is_inside, value)),
    ),
}
OPTIONAL = ("float_layers", "device", "source", "versions", "comparison", "checksums")


def _check(fields: Mapping[str, Any], file: Path) -> None:
    missing = [name for name in CHECKS if name not in fields and name not in OPTIONAL]
    unknown = [name for name in fields if name not in CHECKS]
    if missing or unknown:
        wrong = ", ".join([*(f"no {name}" for name in missing), *(repr(name) for name in unknown)])
        raise ArtifactError(f"{file}: expected the fields of an artifact of this version, found {wrong}")
    for name, value in fields.items():
        expected, is_right = CHECKS[name]
        if not is_right(value):
            raise ArtifactError(f"{file}: {name}: expected {expected}, found {_shortened(value)}")


def _shortened(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def checksums(folder: Path) -> dict[str, str]:
    """sha256 of every file below a folder, by its path in it."""
    return {f.relative_to(folder).as_posix(): sha256(f) for f in sorted(folder.rglob("*")) if f.is_file()}


def sha256(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
