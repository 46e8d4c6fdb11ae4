"""Pictures of results: boxes, masks and names of objects laid over photographs. Pillow and NumPy only."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from swiftformer.visualize import INK, LARGE, PAPER, READABLE, draw_legend, palette, text_size

if TYPE_CHECKING:
    from swiftformer.detections import Detections

SHADES = (0.0, 0.24, -0.16, 0.38, -0.28, 0.12)  # towards white or black, of objects of one class in turn
CROWDED = 0.2  # share of the picture that plates may cover; a quarter of it where they are larger than
SMALL = 0.5  # of the objects' areas
ROOMY = 0.15  # share of an object that a plate may cover before it rather lies below
HIDDEN = 0.3  # share of a plate that may lie under others
HALO = 0.4  # opacity of the dark lines beside the coloured ones

Area = tuple[int, int, int, int]  # left, top, right, bottom
Letters = ImageFont.FreeTypeFont | ImageFont.ImageFont


@dataclass(frozen=True)
class _Style:
    """Sizes in pixels that go with a picture's."""

    line: int
    letters: Letters
    plate: int  # height
    margin: int  # of a plate, left and right of its text


def draw_detections(
    image: Image.Image,
    detections: Detections,
    labels: Sequence[str],
    *,
    masks: bool = True,
    colors: np.ndarray | None = None,
    by_object: bool | None = None,
    opacity: float = 0.45,
    plates: bool | None = None,
    fixed_size: bool = False,
    font: str | None = None,
) -> Image.Image:
    """A picture with the objects in it, those with the best scores on top.

    Args:
        image: RGB. A small one is enlarged by a whole factor until it is readable.
        detections: in its pixels.
        labels: names of all classes.
        masks: draw them where there are some.
        colors: `(classes, 3)` uint8; by default those of `palette`, in shades for objects of one class.
        by_object: give every object a colour of its own; by default where there is a single class.
        opacity: of the masks, from 0 to 1.
        plates: with class and score beside every object; by default in a crowded picture scores alone, or none where
            they would hide the objects, and colours are explained below the picture.
        fixed_size: neither enlarge the picture nor add to it, as for a video.
        font: a TrueType file or name, for scripts that Pillow's own font lacks.

    Raises:
        ValueError: classes beyond the names, or masks of another size than the picture.
    """
    if len(detections) and int(detections.labels.max()) >= len(labels):
        raise ValueError(
            f"expected class indices below the number of names, {len(labels)}, found {detections.labels.max()}"
        )
    shape = (image.height, image.width)
    outlines = detections.masks if masks else None
    if outlines is not None and outlines.shape[1:] != shape:
        raise ValueError(f"expected masks of the picture's shape {shape}, found {outlines.shape[1:]}")
    by_object = (len(labels) == 1 and colors is None) if by_object is None else by_object
    base = palette(len(labels)) if colors is None else colors
    tints = _tints(detections, base, by_object, shaded=colors is None and not fixed_size)
    image = image.convert("RGB")
    factor = 1 if fixed_size else max(min(math.ceil(READABLE / min(image.size)), LARGE // max(image.size)), 1)
    if factor > 1:
        image = image.resize((factor * image.width, factor * image.height), Image.Resampling.BICUBIC)
    style = _style(image, font)
    areas = _areas(detections.boxes * factor, image)
    texts = _texts(detections, labels, areas, style, image, plates)
    if outlines is not None:
        image = _with_masks(image, outlines, areas, tints, opacity, style.line, factor)
    if outlines is None or texts == _full(detections, labels):
        _draw_boxes(image, areas, tints, style.line if outlines is None else max(style.line // 2, 1))
    if texts:
        _draw_plates(image, texts, areas, tints, style, keep_all=plates is True)
    if fixed_size or len(labels) == 1 or texts == _full(detections, labels) or not len(detections):
        return image
    present = np.unique(detections.labels).tolist()
    size = text_size(*image.size)
    legend = draw_legend([(labels[i], base[i]) for i in present], max(image.width, 12 * size), size, font)
    together = Image.new("RGB", (legend.width, image.height + legend.height), PAPER)
    together.paste(image)
    together.paste(legend, (0, image.height))
    return together


def _style(image: Image.Image, font: str | None) -> _Style:
    size = max(round(0.019 * math.sqrt(image.width * image.height)), 12)
    letters = ImageFont.truetype(font, size) if font else ImageFont.load_default(size)
    line = max(round(min(image.size) / 260), 2)
    return _Style(line, letters, round(1.45 * size), max(round(0.4 * size), 3))


def _tints(detections: Detections, base: np.ndarray, by_object: bool, shaded: bool) -> np.ndarray:
    """A colour `(n, 3)` uint8 for every object."""
    if by_object:
        return palette(len(detections))
    tints = base[detections.labels].astype(np.float64)
    if shaded:
        seen: dict[int, int] = {}
        for i, label in enumerate(detections.labels.tolist()):
            shade = SHADES[seen.get(label, 0) % len(SHADES)]
            tints[i] += abs(shade) * ((255 if shade > 0 else 0) - tints[i])
            seen[label] = seen.get(label, 0) + 1
    return tints.round().astype(np.uint8)


def _areas(boxes: np.ndarray, image: Image.Image) -> list[Area]:
    """Boxes in whole pixels, right and bottom exclusive, within the picture."""
    limits = np.array([image.width, image.height] * 2)
    corners = boxes.round().clip(0, limits).astype(int)
    corners[:, :2] = np.minimum(corners[:, :2], limits[:2] - 1)
    corners[:, 2:] = np.maximum(corners[:, 2:], corners[:, :2] + 1)
    return [(left, top, right, bottom) for left, top, right, bottom in corners.tolist()]


def _full(detections: Detections, labels: Sequence[str]) -> list[str]:
    pairs = zip(detections.labels.tolist(), detections.scores.tolist(), strict=True)
    return [f"{labels[label]} {score:.2f}" for label, score in pairs]


def _texts(
    detections: Detections,
    labels: Sequence[str],
    areas: list[Area],
    style: _Style,
    image: Image.Image,
    plates: bool | None,
) -> list[str]:
    """What plates say: as much as there is room for."""
    full = _full(detections, labels)
    if plates or not full:
        return full
    scores = [f"{score:.2f}" for score in detections.scores.tolist()]
    middle = float(np.median([(right - left) * (bottom - top) for left, top, right, bottom in areas]))
    for texts in () if plates is False else (full, scores):
        covered = [style.plate * (style.letters.getlength(text) + 2 * style.margin) for text in texts]
        limit = CROWDED if np.median(covered) <= SMALL * middle else CROWDED / 4
        if sum(covered) <= limit * image.width * image.height:
            return texts
    return []


def _with_masks(
    image: Image.Image,
    masks: np.ndarray,
    areas: list[Area],
    tints: np.ndarray,
    opacity: float,
    line: int,
    factor: int,
) -> Image.Image:
    """Tint objects, the largest first so that none is hidden, with a smooth line around each."""
    pixels = np.asarray(image, dtype=np.float32).copy()
    sizes = [int(mask.sum()) for mask in masks]
    for i in sorted(range(len(masks)), key=lambda i: -sizes[i]):
        place = _extent(masks[i], 2 * line)
        if place is None:
            continue
        rows, columns = place
        part = Image.fromarray(masks[i][rows, columns].view(np.uint8) * np.uint8(255))
        if factor > 1:
            part = part.resize((factor * part.width, factor * part.height), Image.Resampling.BICUBIC)
        soft = np.asarray(part.filter(ImageFilter.GaussianBlur(line)), dtype=np.float32) / 255
        # Near an outline the blurred mask tells the distance to it, in pixels, positive inside.
        distance = (soft - 0.5) * math.sqrt(2 * math.pi) * line
        fill = opacity * np.asarray(part, dtype=np.float32)[:, :, None] / 255
        edge = (line / 2 + 0.5 - np.abs(distance)).clip(0, 1)[:, :, None]
        halo = HALO * (line / 2 + 1.5 - np.abs(distance)).clip(0, 1)[:, :, None] * (distance < 0)[:, :, None]
        here = pixels[
            rows.start * factor : rows.stop * factor, columns.start * factor : columns.stop * factor
        ]  # a view
        tint = tints[i].astype(np.float32)
        here += fill * (tint - here)
        here -= halo * here
        here += edge * (tint + 0.25 * (255 - tint) - here)
    return Image.fromarray(pixels.round().clip(0, 255).astype(np.uint8))


def _extent(mask: np.ndarray, margin: int) -> tuple[slice, slice] | None:
    """Rows and columns of an object, and some around it."""
    slices = []
    for axis in (1, 0):
        places = np.flatnonzero(mask.any(axis=axis))
        if not len(places):
            return None
        slices.append(slice(max(int(places[0]) - margin, 0), min(int(places[-1]) + 1 + margin, mask.shape[1 - axis])))
    return slices[0], slices[1]


def _draw_boxes(image: Image.Image, areas: list[Area], tints: np.ndarray, line: int) -> None:
    """Coloured lines with thin dark ones beside them, so that they stand out from light and dark pictures."""
    dark = Image.new("L", image.size)
    draw = ImageDraw.Draw(dark)
    for left, top, right, bottom in areas:
        draw.rectangle((left - 1, top - 1, right, bottom), outline=round(255 * HALO), width=line + 2)
    image.paste(Image.new("RGB", image.size), mask=dark)
    draw = ImageDraw.Draw(image)
    for (left, top, right, bottom), tint in reversed(list(zip(areas, tints.tolist(), strict=True))):
        draw.rectangle((left, top, right - 1, bottom - 1), outline=tuple(tint), width=line)


def _draw_plates(
    image: Image.Image, texts: list[str], areas: list[Area], tints: np.ndarray, style: _Style, keep_all: bool
) -> None:
    """A plate beside every object; the best choose first, and those that find no free place are left out."""
    taken: list[Area] = []
    placed = []
    for text, area, tint in zip(texts, areas, tints.tolist(), strict=True):
        width = min(math.ceil(style.letters.getlength(text)) + 2 * style.margin, image.width)
        place, hidden = _free_place(area, (width, style.plate), image.size, taken)
        if hidden <= HIDDEN or keep_all:
            taken.append(place)
            placed.append((text, place, tint))
    for text, place, tint in reversed(placed):
        _draw_plate(image, text, place, tint, style)


def _free_place(area: Area, size: tuple[int, int], limits: tuple[int, int], taken: list[Area]) -> tuple[Area, float]:
    """Where a plate is least hidden by those that are placed, and what share of it is."""
    (left, top, right, bottom), (width, height) = area, size
    above = [(left, top - height), (right - width, top - height)]
    below = [(left, bottom), (right - width, bottom)]
    inside = [(x, y) for y in (top, bottom - height) for x in (left, right - width)]
    roomy = width * height <= ROOMY * (right - left) * (bottom - top)
    corners = [*above, *inside, *below] if roomy else [*above, *below, *inside]
    corners.append(((left + right - width) // 2, (top + bottom - height) // 2))
    best, least = area, math.inf
    for rank, (x, y) in enumerate(corners):
        inside_x, inside_y = min(max(x, 0), limits[0] - width), min(max(y, 0), max(limits[1] - height, 0))
        place = (inside_x, inside_y, inside_x + width, inside_y + height)
        moved = abs(inside_y - y) / height + abs(inside_x - x) / width  # away from its object
        hidden = sum(_overlap(place, other) for other in taken) / (width * height)
        if (cost := hidden + 0.2 * (moved > 0) * moved + 0.001 * rank) < least:
            best, least, share = place, cost, hidden
    return best, share


def _overlap(one: Area, other: Area) -> int:
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    return max(width, 0) * max(height, 0)


def _draw_plate(image: Image.Image, text: str, place: Area, tint: list[int], style: _Style) -> None:
    width, height = place[2] - place[0], place[3] - place[1]
    shape = Image.new("L", (4 * width, 4 * height))
    ImageDraw.Draw(shape).rounded_rectangle((0, 0, 4 * width - 1, 4 * height - 1), radius=height, fill=255)
    shape = shape.resize((width, height), Image.Resampling.LANCZOS)
    image.paste(Image.new("RGB", (width, height), tuple(tint)), place[:2], shape)
    luminance = np.array([0.299, 0.587, 0.114]) @ np.array(tint)
    ink = INK if luminance > 140 else PAPER
    middle = place[1] + height / 2
    ImageDraw.Draw(image).text((place[0] + style.margin, middle), text, ink, style.letters, anchor="lm")
