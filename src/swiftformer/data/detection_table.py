"""Annotated pictures as a few arrays: what the readers of all formats make."""

from __future__ import annotations

import math
from array import array
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from swiftformer.data.detection_checks import Box


@dataclass(frozen=True, eq=False)
class Table:
    """`N` pictures, and their `M` annotations in the order of the pictures.

    Attributes:
        names: of the classes; None where the data have none.
        category_ids: of the classes.
        files, keys: of each picture its path, and what it is called in the data set.
        image_ids: of each picture; None where they have none.
        sizes: `(N, 2)` width and height.
        pictures: `(M,)` index of the picture.
        boxes, labels, crowd: `(M, 4)`, `(M,)`, `(M,)`, as in `Objects`.
        areas: `(M,)`, NaN where nothing is said.
        segments: of each annotation the packed mask, empty where there is none; None where masks were not asked for.
        left_out: how many pictures were left out where the data were read, as those without a file.
    """

    names: list[str] | None
    category_ids: list[int]
    files: list[str]
    keys: list[str]
    image_ids: list[int] | None
    sizes: np.ndarray
    pictures: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    crowd: np.ndarray
    areas: np.ndarray
    segments: list[bytes] | None
    left_out: int = 0

    def take(self, indices: Sequence[int]) -> Table:
        """These pictures, in this order."""
        places = np.full(len(self.files), -1)
        places[list(indices)] = np.arange(len(indices))
        moved = places[self.pictures]
        rows = np.flatnonzero(moved >= 0)
        rows = rows[np.argsort(moved[rows], kind="stable")]
        return Table(
            self.names,
            self.category_ids,
            [self.files[i] for i in indices],
            [self.keys[i] for i in indices],
            None if self.image_ids is None else [self.image_ids[i] for i in indices],
            self.sizes[list(indices)].reshape(-1, 2),
            moved[rows],
            **self._rows(rows),
            left_out=self.left_out,
        )

    def keep(self, kept: np.ndarray) -> Table:
        """Without the annotations of which `kept`, `(M,)` bool, is false."""
        return Table(**{**self.__dict__, "pictures": self.pictures[kept], **self._rows(np.flatnonzero(kept))})

    def _rows(self, rows: np.ndarray) -> dict:
        taken = {name: getattr(self, name)[rows] for name in ("boxes", "labels", "crowd", "areas")}
        return taken | {"segments": None if self.segments is None else [self.segments[row] for row in rows]}


def join(tables: Sequence[Table], where: str) -> Table:
    """Tables one after the other. Raises ValueError where their classes differ."""
    first = tables[0]
    if len(tables) == 1:
        return first
    for table in tables:
        if (table.names, table.category_ids) != (first.names, first.category_ids):
            raise ValueError(f"{where}: expected the same classes in all splits, found others in {table.files[:1]}")
    ids = [i for table in tables for i in table.image_ids or ()]
    files = [file for table in tables for file in table.files]
    offsets = np.cumsum([0, *(len(table.files) for table in tables)])
    rows = {n: np.concatenate([getattr(t, n) for t in tables]) for n in ("sizes", "boxes", "labels", "crowd", "areas")}
    return Table(
        first.names,
        first.category_ids,
        files,
        [key for table in tables for key in table.keys],
        ids if len({*ids}) == len(files) else None,  # each split counts from 1
        pictures=np.concatenate([table.pictures + offset for table, offset in zip(tables, offsets, strict=False)]),
        segments=None if first.segments is None else [s for table in tables for s in table.segments or ()],
        left_out=sum(table.left_out for table in tables),
        **rows,
    )


class TableBuilder:
    """A table, picture by picture and annotation by annotation, in any order.

    Args:
        masks: keep them.

    Attributes:
        left_out: of `Table`, to be counted up.
    """

    def __init__(self, masks: bool) -> None:
        self.left_out = 0
        self.files: list[str] = []
        self.keys: list[str] = []
        self.sizes: list[tuple[int, int]] = []
        self._pictures, self._labels, self._crowd = array("q"), array("q"), array("b")
        self._boxes, self._areas = array("d"), array("d")
        self._segments: list[bytes] | None = [] if masks else None

    def picture(self, file: str, key: str, width: int, height: int) -> int:
        """Its index."""
        self.files.append(file)
        self.keys.append(key)
        self.sizes.append((width, height))
        return len(self.files) - 1

    def annotation(
        self, picture: int, box: Box, label: int, crowd: bool = False, area: float = math.nan, segment: bytes = b""
    ) -> None:
        self._pictures.append(picture)
        self._boxes.extend(box)
        self._labels.append(label)
        self._crowd.append(crowd)
        self._areas.append(area)
        if self._segments is not None:
            self._segments.append(segment)

    def table(self, names: list[str] | None, category_ids: list[int], image_ids: list[int] | None = None) -> Table:
        table = Table(
            names,
            category_ids,
            self.files,
            self.keys,
            image_ids,
            np.array(self.sizes, dtype=np.int64).reshape(-1, 2),
            np.array(self._pictures, dtype=np.int64),
            np.array(self._boxes, dtype=np.float32).reshape(-1, 4),
            np.array(self._labels, dtype=np.int64),
            np.array(self._crowd, dtype=bool),
            np.array(self._areas, dtype=np.float32),
            self._segments,
            self.left_out,
        )
        return table.take(range(len(self.files)))
