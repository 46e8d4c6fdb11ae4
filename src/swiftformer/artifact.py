"""An exported artifact: a folder with a graph and `metadata.json`. Nothing here needs torch."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from swiftformer.image_processing import Preprocessing

METADATA = "metadata.json"
SCHEMA = 1


class ArtifactError(ValueError):
    """An artifact that is absent, broken, foreign or of another version."""


@dataclass(frozen=True)
class Artifact:
    """What `metadata.json` tells about an exported model.

    Attributes:
        format: a key of `swiftformer.export.FORMATS`.
        precision: `fp32`, `fp16`, `bf16`, `int8` or `palettized`.
        file: the graph, in the artifact's folder; a file or a folder.
        task: `classification`, `segmentation` or `backbone`.
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
        source: the model that was exported, `sha256` of its weights included.
        versions: of the packages that wrote the artifact.
        comparison: with the model in PyTorch: `images`, `top1_agreement` (of a segmentation model, of its pixels; of a
            detector, of its `objects`) and `max_relative_difference`.
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
    return (Path(path) / METADATA).is_file()


def read_artifact(folder: str | Path) -> Artifact:
    """Read and check an artifact.

    Raises:
        ArtifactError: not an artifact, of a newer version, or with files that are missing or changed.
    """
    folder = Path(folder)
    try:
        fields = json.loads((folder / METADATA).read_text())
    except OSError:
        raise ArtifactError(f"{folder}: expected an exported artifact, found no {METADATA} in it") from None
    except ValueError as error:
        raise ArtifactError(f"{folder / METADATA}: expected JSON, found {error}") from None
    schema = fields.pop("schema", None) if isinstance(fields, dict) else None
    if schema != SCHEMA:
        raise ArtifactError(f"{folder / METADATA}: expected schema {SCHEMA} of this version, found {schema!r}")
    fields.pop("input", None)
    try:
        artifact = Artifact(
            **{
                **fields,
                "outputs": tuple(fields["outputs"]),
                "size": tuple(fields["size"]) if fields["size"] else None,
                "preprocessing": Preprocessing.from_dict(fields["preprocessing"]),
                "labels": tuple(fields["labels"]),
                "float_layers": tuple(fields.get("float_layers", ())),
            }
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ArtifactError(f"{folder / METADATA}: expected the fields of an artifact, found {error}") from None
    for name, expected in artifact.checksums.items():
        file = folder / name
        if not file.is_file():
            raise ArtifactError(f"{folder}: expected the file {name}, found none")
        if (found := sha256(file)) != expected:
            raise ArtifactError(
                f"{file}: expected sha256 {expected[:12]}..., found {found[:12]}...: damaged or changed"
            )
    return artifact


def checksums(folder: Path) -> dict[str, str]:
    """sha256 of every file below a folder, by its path in it."""
    return {f.relative_to(folder).as_posix(): sha256(f) for f in sorted(folder.rglob("*")) if f.is_file()}


def sha256(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
