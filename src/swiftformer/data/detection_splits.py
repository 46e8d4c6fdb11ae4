"""Splits of annotated pictures: their names with a year, and choosing among them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from PIL import Image

from swiftformer.data.dense_splits import split_of
from swiftformer.data.detection_table import Table, join
from swiftformer.data.splits import Subset, choose
from swiftformer.images import open_image

Openers = dict[str, Callable[[], Table]]  # by the name of the split
Place = TypeVar("Place")


def by_split(found: Mapping[Place, str], where: Path) -> dict[str, Place]:
    """What there is for each split by its name without the year, with it where that alone tells them apart.

    Raises:
        ValueError: several of one name.
    """
    members: dict[str, list[str]] = defaultdict(list)
    for name in found.values():
        members[split_of(name)].append(name)
    places: dict[str, Place] = {}
    for place, name in found.items():
        key = split_of(name) if len(members[split_of(name)]) == 1 else name
        if key in places:
            raise ValueError(f"{where}: expected one set of annotations for the split {name}, found several")
        places[key] = place
    return places


class _Pictures:
    """A table as `choose` divides it: pictures of one class."""

    def __init__(self, table: Table) -> None:
        self.table = table
        self.classes = ["pictures"]
        self.labels = [0] * len(table.files)

    def __len__(self) -> int:
        return len(self.labels)

    def image(self, index: int) -> Image.Image:
        return open_image(self.name(index))

    def name(self, index: int) -> str:
        return self.table.files[index]

    def key(self, index: int) -> str:
        return self.table.keys[index]


def chosen_table(splits: Openers, split: str | None, where: str) -> Table:
    """The table of a split, as `swiftformer.data.splits.choose` has it; of a picture in several the first."""
    if split is not None and split not in splits:
        split = split_of(split)
    chosen: Any = choose({name: lambda o=o: _Pictures(o()) for name, o in splits.items()}, split, where)  # type: ignore[misc]
    if isinstance(chosen, Subset):
        return chosen.source.table.take(chosen.indices)  # type: ignore[attr-defined]
    if isinstance(chosen, _Pictures):
        return chosen.table
    table = join([pictures.table for pictures in chosen.sources], where)
    first = {file: index for index, file in reversed(list(enumerate(table.files)))}
    return table if len(first) == len(table.files) else table.take(sorted(first.values()))
