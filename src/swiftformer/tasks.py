"""What a model is for, told before it is loaded."""

from __future__ import annotations

import json
from pathlib import Path

from swiftformer.artifact import is_artifact, read_artifact
from swiftformer.locate import locate


def stored_task(reference: str | Path) -> str:
    """`classification`, `segmentation` or `backbone`, of a checkpoint or an artifact.

    Raises:
        CheckpointError, ArtifactError: it cannot be found or read.
    """
    if is_artifact(reference):
        return read_artifact(reference).task
    config = locate(reference).weights.parent / "config.json"
    names = (json.loads(config.read_text(encoding="utf-8")).get("architectures") or [""]) if config.is_file() else [""]
    if "ForSemanticSegmentation" in names[0]:
        return "segmentation"
    return "backbone" if "Backbone" in names[0] else "classification"
