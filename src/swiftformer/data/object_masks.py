"""Polygons and run lengths of annotated objects: packed to bytes until a picture is read, then COCO's RLE."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Any

import numpy as np

RLE = dict[str, Any]  # {"size": [height, width], "counts": bytes}, as pycocotools has it

POLYGONS, COUNTS, TEXT = b"P", b"C", b"T"  # first byte: what follows it
SIXES = bytes(range(48, 112))  # of compressed counts: six bits each, the highest says that more follow


def coco_mask() -> Any:
    """The module `pycocotools.mask`.

    Raises:
        ValueError: it is not installed.
    """
    try:
        from pycocotools import mask
    except ImportError:
        raise ValueError(
            "expected pycocotools for the masks of objects, found none: pip install 'swiftformer[dense]'"
        ) from None
    return mask


def whole_number(value: Any) -> int:
    """An integer, also as a float such as pandas writes; -1 for anything else."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value != value // 1:
        return -1
    return int(value)


def mask_areas(masks: Sequence[RLE]) -> np.ndarray:
    """Pixels of each, `(n,)` float64. pycocotools itself fails on more than 255 at once."""
    area = coco_mask().area
    return np.array([float(area(mask)) for mask in masks])


def pack(segmentation: Any) -> bytes:
    """COCO's `segmentation` as bytes; none where it is missing or empty.

    Raises:
        ValueError: no polygons of three or more points and no run lengths; `expected ..., found ...`.
    """
    if segmentation is None or segmentation == []:
        return b""
    if isinstance(segmentation, dict):
        return _pack_run_lengths(segmentation)
    if isinstance(segmentation, list):
        return pack_polygons(segmentation)
    raise ValueError(f"expected polygons or run lengths, found {type(segmentation).__name__}")


def pack_polygons(polygons: Sequence[Sequence[float]]) -> bytes:
    """Polygons `x0, y0, x1, y1, ...` in pixels. Raises as `pack`; parts of less than three points are left out."""
    for polygon in polygons:
        if not isinstance(polygon, (list, tuple)):
            raise ValueError(f"expected polygons, found {type(polygon).__name__}")
    whole = [polygon for polygon in polygons if len(polygon) >= 6 and len(polygon) % 2 == 0]
    if polygons and not whole:
        raise ValueError(f"expected polygons of 3 or more points, found {len(polygons[0])} coordinates")
    polygons = whole
    try:
        numbers = np.array([len(polygons), *map(len, polygons), *chain.from_iterable(polygons)], dtype=np.float64)
    except (TypeError, ValueError):
        raise ValueError("expected the coordinates of polygons to be numbers, found something else") from None
    if not np.isfinite(numbers).all():
        raise ValueError("expected finite coordinates of polygons, found NaN or infinity")
    return POLYGONS + numbers.tobytes()


def _pack_run_lengths(rle: dict[str, Any]) -> bytes:
    given, counts = rle.get("size"), rle.get("counts")
    size = [whole_number(side) for side in given] if isinstance(given, list) else []
    if len(size) != 2 or not all(side > 0 for side in size):
        raise ValueError(f"expected run lengths with the size [height, width], found {given}")
    head = np.array(size, dtype=np.int64).tobytes()
    if isinstance(counts, str):
        counts = counts.encode(errors="replace")
        if not counts or counts.translate(None, SIXES) or (counts[-1] - 48) & 0x20:
            raise ValueError("expected compressed run lengths, found damaged ones")
        return TEXT + head + counts
    if not isinstance(counts, list) or not all(isinstance(count, int) and count >= 0 for count in counts):
        raise ValueError("expected run lengths as numbers or text, found something else")
    if sum(counts) != size[0] * size[1]:
        raise ValueError(f"expected run lengths of {size[0] * size[1]} pixels, found {sum(counts)}")
    return COUNTS + head + np.array(counts, dtype=np.int64).tobytes()


def check_size(packed: bytes, width: int, height: int) -> None:
    """Raise ValueError where what was packed does not belong to a picture of this size."""
    if not packed:
        return
    if packed[:1] != POLYGONS:
        found = np.frombuffer(packed, np.int64, 2, 1)
        if found[0] != height or found[1] != width:
            raise ValueError(f"expected run lengths of a picture of {width}x{height}, found {found[1]}x{found[0]}")
        return
    numbers = np.frombuffer(packed, np.float64, offset=1)
    coordinates = numbers[1 + int(numbers[0]) :]
    side = max(width, height)
    if coordinates.min() < -side or coordinates.max() > 2 * side:  # would take memory as long as they are
        raise ValueError(f"expected polygons about a picture of {width}x{height}, found coordinates far outside")


def _pixels(counts: bytes) -> int | None:
    """The sum of compressed run lengths, None where one is negative."""
    digits = np.frombuffer(counts, np.uint8).astype(np.int64) - 48
    last = (digits & 0x20) == 0
    starts = np.concatenate([[0], np.flatnonzero(last)[:-1] + 1])
    lengths = np.diff(np.append(starts, len(digits)))
    if lengths.max() > 7:
        return None
    places = np.arange(len(digits)) - np.repeat(starts, lengths)
    values = np.add.reduceat((digits & 0x1F) << (5 * places), starts)
    values -= np.where(digits[last] & 0x10, 1 << (5 * lengths), 0)
    values[1::2] = np.cumsum(values[1::2])  # from the fourth on they are differences to the one before the last
    values[2::2] = np.cumsum(values[2::2])
    return int(values.sum()) if values.min() >= 0 else None


def unpack(packed: bytes, width: int, height: int) -> RLE:
    """Run lengths of the mask in a picture of this size.

    Raises:
        ValueError: damaged, or pycocotools is missing.
    """
    mask = coco_mask()
    if packed[:1] == TEXT:
        pixels = _pixels(packed[17:])
        if pixels != width * height:
            found = "damaged ones" if pixels is None else f"those of {pixels}"
            raise ValueError(f"expected run lengths of {width * height} pixels, found {found}")
        return {"size": [height, width], "counts": packed[17:]}
    if packed[:1] == COUNTS:
        counts = np.frombuffer(packed, np.int64, offset=17).tolist()
        return mask.frPyObjects({"size": [height, width], "counts": counts}, height, width)
    numbers = np.frombuffer(packed, np.float64, offset=1)
    ends = 1 + int(numbers[0]) + np.cumsum(numbers[1 : 1 + int(numbers[0])]).astype(int)
    starts = [1 + int(numbers[0]), *ends[:-1]]
    polygons = [numbers[start:end].tolist() for start, end in zip(starts, ends, strict=True)]
    return mask.merge(mask.frPyObjects(polygons, height, width))
