"""What is wrong with annotations: boxes that leave their picture, and how much is told of it all."""

from __future__ import annotations

import logging
import math
from typing import Literal

from swiftformer.data.masks import AnnotationError

logger = logging.getLogger(__name__)

REPORTED = 10  # problems, one by one
TOLERANCE = 1.0  # pixels that a box may reach over the edge unreported

Box = tuple[float, float, float, float]


class Problems:
    """What is wrong with annotations: the first are logged one by one, or the very first is refused."""

    def __init__(self, on_error: Literal["skip", "raise"]) -> None:
        if on_error not in ("skip", "raise"):
            raise ValueError(f"on_error: expected 'skip' or 'raise', found {on_error!r}")
        self.on_error = on_error
        self.count = 0
        self.first: str | None = None

    def report(self, text: str, what: str = "skipped") -> None:
        """Raises AnnotationError where that was chosen."""
        if self.on_error == "raise":
            raise AnnotationError(text)
        self.first = self.first or text
        self.count += 1
        if self.count <= REPORTED:
            logger.warning("%s %s", what, text)

    def finish(self, where: str) -> None:
        """Tell how many there were beyond the first."""
        if self.count > REPORTED:
            logger.warning("%d more problems of the annotations of %s", self.count - REPORTED, where)


def fit(box: Box, width: int, height: int) -> tuple[Box, str | None]:
    """A box x0, y0, x1, y1 within its picture, and what to report where it had to be clipped.

    Raises:
        ValueError: not finite, empty, or nothing of it in the picture.
    """
    x0, y0, x1, y1 = box
    if not all(map(math.isfinite, box)):
        raise ValueError(f"expected finite coordinates of a box, found {_text(box)}")
    if x1 <= x0 or y1 <= y0:
        raise ValueError(f"expected a box of some width and height, found {_text(box)}")
    if x0 >= 0 and y0 >= 0 and x1 <= width and y1 <= height:
        return box, None
    clipped = (max(x0, 0.0), max(y0, 0.0), min(x1, float(width)), min(y1, float(height)))
    expected = f"expected a box within {width}x{height} pixels, found {_text(box)}"
    if clipped[2] - clipped[0] < min(1, (x1 - x0) / 2) or clipped[3] - clipped[1] < min(1, (y1 - y0) / 2):
        raise ValueError(expected)
    beyond = max(-x0, -y0, x1 - width, y1 - height)
    return clipped, expected if beyond > TOLERANCE else None


def _text(box: Box) -> str:
    return f"x {box[0]:g} to {box[2]:g}, y {box[1]:g} to {box[3]:g}"
