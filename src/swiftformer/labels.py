"""Names of the classes that a model knows."""

from __future__ import annotations

from typing import Any


def labels_of(config: Any) -> tuple[str, ...]:
    """In order, of transformers' configuration of a model; empty where it names none."""
    names: dict[int, str] = config.id2label or {}
    return tuple(names[index] for index in sorted(names))
