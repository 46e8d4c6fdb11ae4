"""What `swiftformer.load` tells about what it found."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from swiftformer.convert import Naming
    from swiftformer.model_kinds import Task


@dataclass(frozen=True)
class LoadReport:
    """What `load` found.

    Attributes:
        path: the file or folder that was read.
        weights: the file with the tensors.
        naming: whose key names it uses.
        form: the numeric form that was resolved.
        task: what the model as returned does.
        num_labels: classes of the model as returned; None for a backbone.
        head_replaced: the class counts differed, and the heads are new and untrained.
        missing, unexpected: keys, after `strict=False` or where a head or the backbone's norms were added or dropped.
    """

    path: Path
    weights: Path
    naming: Naming
    form: str
    task: Task
    num_labels: int | None
    head_replaced: bool = False
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        text = f"loaded {self.path}: {self.naming} names, form {self.form}"
        text += f", {self.num_labels} classes" if self.num_labels is not None else ", backbone"
        if self.head_replaced:
            text += ", heads replaced by untrained ones"
        for name, keys in (("missing", self.missing), ("unexpected", self.unexpected)):
            if keys:
                text += f", {len(keys)} {name} ({', '.join(keys[:3])}{', ...' if len(keys) > 3 else ''})"
        return text
