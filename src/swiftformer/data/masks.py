"""Masks in files: a class index for every pixel."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from swiftformer.images import ImageError

VOID = 255  # of masks: belongs to no class, and counts for nothing
INDEX_MODES = ("1", "L", "P", "I", "I;16", "I;16B", "I;16L")
# Pillow spreads gray values of 2 and 4 bits, to which some tools shrink masks, over 0 to 255.
SPREAD = {2: 85, 4: 17}
BITS_PER_SAMPLE = 258  # a tag of TIFF


class AnnotationError(ImageError):
    """A mask, a box or a row that is missing or cannot be used; the message names it and says what was found."""


def read_mask(file: str | Path, reduce_zero_label: bool = False) -> np.ndarray:
    """The indices in a gray or palette picture: `(H, W)` uint8, or int32 where it has more than 8 bits.

    Args:
        reduce_zero_label: 0 becomes 255, and the others one less.

    Raises:
        AnnotationError: it cannot be read, or holds colours.
    """
    try:
        with Image.open(file) as image:
            spread = _spread(image)
            mode, pixels = image.mode, np.array(image)
    except FileNotFoundError:
        raise AnnotationError(f"{file}: expected a mask, found no such file") from None
    except Exception as error:  # damaged pictures raise anything
        raise AnnotationError(f"{file}: expected a mask, found a broken image ({error})") from None
    if mode not in INDEX_MODES:
        raise AnnotationError(
            f"{file}: expected a mask of class indices (a gray or palette picture), found colours ({mode})"
        )
    mask: np.ndarray = pixels.astype(np.uint8 if mode in ("1", "L", "P") else np.int32)
    mask = mask // spread
    if reduce_zero_label:
        mask = np.where((mask == 0) | (mask == VOID), VOID, mask - 1).astype(mask.dtype)
    return mask


def _spread(image: Any) -> int:
    """What indices were multiplied by, told before the pixels are read."""
    if image.mode != "L" or not image.tile:
        return 1
    if image.format == "PNG":
        return SPREAD.get({"L;2": 2, "L;4": 4}.get(str(image.tile[0][3]), 8), 1)
    return SPREAD.get(getattr(image, "tag_v2", {}).get(BITS_PER_SAMPLE, (8,))[0], 1)


def largest_indices(files: tuple[str, ...]) -> tuple[int, ...]:
    """In each mask; -1 where it cannot be read, or holds nothing but void. Files that do not change are read once."""
    return _largest_indices(files, tuple(_stamp(file) for file in files))


def _stamp(file: str) -> tuple[int, int] | None:
    try:
        status = Path(file).stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size


@lru_cache(maxsize=8)  # training opens two splits, and each looks at the masks of both
def _largest_indices(files: tuple[str, ...], stamps: tuple[tuple[int, int] | None, ...]) -> tuple[int, ...]:
    def largest(file: str) -> int:
        try:
            mask = read_mask(file)
        except AnnotationError:  # named when it is read for use
            return -1
        indices = mask[mask != VOID]
        return int(indices.max()) if indices.size else -1

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        return tuple(pool.map(largest, files))
