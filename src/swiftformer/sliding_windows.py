"""Windows that slide over a picture, and the mean of what a model finds in them. Nothing here needs torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from PIL import Image

from swiftformer.image_processing import IMAGENET_MEAN, Preprocessing


def windows(
    size: tuple[int, int], window: tuple[int, int], stride: tuple[int, int] | None = None
) -> Iterator[tuple[slice, slice]]:
    """Rows and columns of every window over an area of `size`, height first.

    Args:
        window: height and width; an area that is smaller is taken whole.
        stride: distance of the windows, at most their size; two thirds of it by default. Windows that would stand out
            are moved in, so that every pixel is covered.

    Raises:
        ValueError: windows without pixels, or with gaps between them.
    """
    if min(window) < 1:
        raise ValueError(f"expected a window of at least 1x1 pixels to slide, found {window}")
    stride = stride or (max(window[0] * 2 // 3, 1), max(window[1] * 2 // 3, 1))
    if not (1 <= stride[0] <= window[0] and 1 <= stride[1] <= window[1]):
        raise ValueError(f"expected a stride from 1 to the window's size {tuple(window)}, found {tuple(stride)}")
    return (
        (slice(top, top + window[0]), slice(left, left + window[1]))
        for top in _starts(size[0], window[0], stride[0])
        for left in _starts(size[1], window[1], stride[1])
    )


def _starts(size: int, window: int, stride: int) -> list[int]:
    """Where windows begin along one side: `stride` apart, and the last one at the end."""
    last = max(size - window, 0)
    return [*range(0, last, stride), last]


def slid(run: Callable[[np.ndarray], np.ndarray], pixels: np.ndarray, window: tuple[int, int]) -> np.ndarray:
    """The mean of the scores in all windows, `(classes, H, W)` float32, as `segment_logits` has it.

    Args:
        run: a window `(1, C, h, w)` to logits `(1, classes, h', w')`, which are resized bilinearly.
        pixels: `(C, H, W)` float32.
        window: height and width in pixels.
    """
    size = (pixels.shape[1], pixels.shape[2])
    total: np.ndarray | None = None
    count = np.zeros(size, dtype=np.float32)
    for place in windows(size, window):
        part = np.ascontiguousarray(pixels[:, *place])
        logits = run(part[None])[0]
        if total is None:
            total = np.zeros((len(logits), *size), dtype=np.float32)
        for scores, sums in zip(logits, total, strict=True):
            sums[place] += resized_scores(scores, (part.shape[1], part.shape[2]))
        count[place] += 1
    assert total is not None
    total /= count
    return total


def resized_scores(scores: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Scores `(h, w)` of one class, bilinearly resized to `(height, width)`, float32."""
    image = Image.fromarray(np.asarray(scores, dtype=np.float32))
    return np.asarray(image.resize((size[1], size[0]), Image.Resampling.BILINEAR))


def filled(pixels: np.ndarray, size: tuple[int, int], preprocessing: Preprocessing) -> np.ndarray:
    """`(C, H, W)` at least as large as `size`, with a mean gray at the right and at the bottom, as crops have it."""
    missing = [max(wanted - found, 0) for wanted, found in zip(size, pixels.shape[1:], strict=True)]
    if not any(missing):
        return pixels
    rows, columns = (found + more for found, more in zip(pixels.shape[1:], missing, strict=True))
    gray = (np.array(IMAGENET_MEAN) - preprocessing.mean) / preprocessing.std
    area = np.empty((len(pixels), rows, columns), dtype=np.float32)
    area[:] = gray[:, None, None]
    area[:, : pixels.shape[1], : pixels.shape[2]] = pixels
    return area
