"""Pictures in files with annotated objects: the source, whatever the format."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
from PIL import Image

from swiftformer.data.detection_table import Table
from swiftformer.data.masks import AnnotationError
from swiftformer.data.object_masks import mask_areas, unpack
from swiftformer.data.objects import Objects
from swiftformer.data.orientation import UNDO, stored_size
from swiftformer.images import open_image

logger = logging.getLogger(__name__)


class DetectionFiles:
    """Pictures in files with their objects; see `swiftformer.data.detection.DetectionSource`.

    Args:
        table: whose labels are indices of `classes`.
        category_ids: of each class the number in the data, for results in COCO's form.

    Attributes:
        left_out: how many pictures were left out when the data were opened.
    """

    def __init__(self, table: Table, classes: Sequence[str], category_ids: Sequence[int]) -> None:
        self.classes = list(classes)
        self.category_ids = list(category_ids)
        self.has_masks = table.segments is not None
        self.left_out = table.left_out
        self._files, self._image_ids, self._sizes = table.files, table.image_ids, table.sizes.astype(np.int32)
        self._boxes, self._areas = table.boxes, table.areas
        self._labels, self._crowd = table.labels.astype(np.int32), table.crowd
        self._starts = np.searchsorted(table.pictures, np.arange(len(table.files) + 1))
        # One object rather than one for each annotation: loader processes then copy none of it.
        lengths = [len(segment) for segment in table.segments or ()]
        self._segments = b"".join(table.segments or ())
        self._segment_starts = np.cumsum([0, *lengths])
        self._told = False

    def __len__(self) -> int:
        return len(self._files)

    def name(self, index: int) -> str:
        return self._files[index]

    def image_id(self, index: int) -> int:
        return index + 1 if self._image_ids is None else self._image_ids[index]

    def counts(self) -> list[int]:
        """How many objects there are of each class."""
        return np.bincount(self._labels, minlength=len(self.classes)).tolist()

    def size(self, index: int) -> tuple[int, int]:
        """Width and height that the annotations are for."""
        width, height = self._sizes[index].tolist()
        return width, height

    def image(self, index: int) -> Image.Image:
        file, expected = self._files[index], self.size(index)
        image = open_image(file)
        if image.size == expected:
            return image
        stored, orientation = stored_size(file)
        if stored == expected and orientation in UNDO:
            if not self._told:
                logger.warning(
                    "%s: annotated as it is stored (%dx%d), and its EXIF data turn it: this and others that they turn "
                    "by 90 degrees are taken as they are stored; those turned by 180, and square ones, cannot be told",
                    file,
                    *expected,
                )
                self._told = True
            return image.transpose(UNDO[orientation])
        raise AnnotationError(
            f"{file}: expected {expected[0]}x{expected[1]} pixels, as annotated, found {image.width}x{image.height}"
        )

    def objects(self, index: int) -> Objects:
        rows = slice(int(self._starts[index]), int(self._starts[index + 1]))
        boxes, areas, masks = self._boxes[rows].copy(), self._areas[rows].copy(), None
        said = ~np.isnan(areas)
        if self.has_masks:
            places = self._segment_starts[rows.start : rows.stop + 1]
            try:
                packed = [self._segments[places[i] : places[i + 1]] for i in range(len(boxes))]
                masks = [unpack(segment, *self.size(index)) for segment in packed]
                if not said.all():
                    areas[~said] = mask_areas([masks[i] for i in np.flatnonzero(~said)])
            except ValueError as error:
                raise AnnotationError(f"{self._files[index]}: {error}") from None
        else:
            areas[~said] = ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]))[~said]
        return Objects(boxes, self._labels[rows].astype(np.int64), self._crowd[rows].copy(), areas, masks)
