"""Pictures that are left out: what the log tells of them."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence

from swiftformer.data.masks import AnnotationError
from swiftformer.images import ImageError

logger = logging.getLogger(__name__)

REPORTED = 10  # by name, of those with one fault


class Skipped:
    """Names every picture that cannot be read, and of annotations with one fault, which all may have, the first.

    Each process that loads pictures tells what it meets itself.
    """

    def __init__(self) -> None:
        self.faults: Counter[str] = Counter()

    def tell(self, errors: Sequence[ImageError], others: int = 0) -> None:
        """Log the errors of pictures that were skipped, and how many others there were."""
        named = [error for error in errors if not isinstance(error, AnnotationError) or self._is_new(error)]
        for error in named:
            logger.warning("skipped %s", error)
        if named and others:
            logger.warning("skipped %d others behind them", others)

    def _is_new(self, error: AnnotationError) -> bool:
        fault = str(error).partition(": expected ")[2].rpartition(", found")[0]
        self.faults[fault] += 1
        if self.faults[fault] == REPORTED + 1:
            logger.warning("others are skipped for the same reason, and not named: expected %s", fault)
        return self.faults[fault] <= REPORTED
