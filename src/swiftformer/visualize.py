"""Pictures of results: masks laid over photographs, with a legend. Pillow and NumPy only."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from swiftformer.data.masks import VOID

READABLE = 360  # pixels: pictures whose short side is shorter are enlarged, for their legend and outlines,
LARGE = 2000  # as long as the long side stays below this
PAPER, INK = (255, 255, 255), (38, 38, 42)
# Where every palette begins: colours that people have names for, neighbours far apart.
FIRST_COLORS = (
    (60, 120, 216),
    (236, 88, 64),
    (54, 166, 92),
    (248, 188, 48),
    (146, 92, 206),
    (34, 184, 196),
    (240, 118, 182),
    (154, 104, 62),
    (168, 206, 64),
    (196, 32, 100),
    (252, 146, 58),
    (132, 196, 252),
)


def palette(count: int) -> np.ndarray:
    """Colours `(count, 3)` uint8, each as far from those before it as the eye can have it.

    A class keeps its colour whatever the number of classes.
    """
    chosen, candidates = _palette()
    if count <= len(chosen):
        return chosen[:count].copy()
    rounds = math.ceil((count - len(chosen)) / len(candidates))  # beyond a thousand classes colours come again
    return np.concatenate([chosen, *[candidates] * rounds])[:count]


@lru_cache(maxsize=1)
def _palette() -> tuple[np.ndarray, np.ndarray]:
    """The first 256 colours, and all others that are neither pale nor dark nor glaring."""
    levels = np.linspace(0, 255, 18).round()
    colors = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), axis=-1).reshape(-1, 3).astype(np.uint8)
    lab = _oklab(colors)
    chroma = np.hypot(lab[:, 1], lab[:, 2])
    usable = (lab[:, 0] > 0.42) & (lab[:, 0] < 0.9) & (chroma > 0.06) & (chroma < 0.22)
    colors, lab = colors[usable], lab[usable]
    chosen = np.array(FIRST_COLORS, dtype=np.uint8)
    distance = np.min([((lab - first) ** 2).sum(axis=1) for first in _oklab(chosen)], axis=0)
    order = []
    for _ in range(VOID + 1 - len(chosen)):
        order.append(int(distance.argmax()))
        distance = np.minimum(distance, ((lab - lab[order[-1]]) ** 2).sum(axis=1))
    return np.concatenate([chosen, colors[order]]), np.delete(colors, order, axis=0)


def _oklab(colors: np.ndarray) -> np.ndarray:
    """sRGB `(N, 3)` uint8 to Oklab, where distances are those that the eye sees (bottosson.github.io/posts/oklab)."""
    srgb = colors / 255
    linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    cones = linear @ np.array(
        [
            [0.4122214708, 0.2119034982, 0.0883024619],
            [0.5363325363, 0.6806995451, 0.2817188376],
            [0.0514459929, 0.1073969566, 0.6299787005],
        ]
    )
    return np.cbrt(cones) @ np.array(
        [
            [0.2104542553, 1.9779984951, 0.0259040371],
            [0.7936177850, -2.4285922050, 0.7827717662],
            [-0.0040720468, 0.4505937099, -0.8086757660],
        ]
    )


def overlay_mask(
    image: Image.Image,
    mask: np.ndarray,
    colors: np.ndarray | None = None,
    *,
    opacity: float = 0.6,
    outline: int | None = None,
) -> Image.Image:
    """Tint every class and draw the borders between them.

    Args:
        image: RGB.
        mask: `(height, width)` class indices; 255 stays as it is.
        colors: `(classes, 3)` uint8; by default those of `palette`.
        opacity: of the tint, from 0 to 1.
        outline: width of the borders in pixels; 0 for none, by default one that fits the picture.

    Raises:
        ValueError: a mask of another size, or with more classes than colours.
    """
    if mask.shape != (image.height, image.width):
        raise ValueError(
            f"expected a mask of the picture's shape {(image.height, image.width)}, found {tuple(mask.shape)}"
        )
    known = mask != VOID
    count = int(mask[known].max()) + 1 if known.any() else 0
    colors = palette(count) if colors is None else colors
    if len(colors) < count:
        raise ValueError(f"expected colours for {count} classes, found {len(colors)}")
    pixels = np.asarray(image.convert("RGB"), dtype=np.float32)
    tint = np.zeros((max(len(colors), VOID + 1), 3), dtype=np.float32)
    tint[: len(colors)] = colors
    tinted = tint[mask]
    # With colours of its own, and in its shadows, the picture would change the tints beyond recognition.
    gray = pixels @ np.array([0.299, 0.587, 0.114], dtype=np.float32)
    pale = 255 * ((pixels + gray[:, :, None]) / 510) ** 0.8
    blended = np.where(known[:, :, None], (1 - opacity) * pale + opacity * tinted, pixels)
    width = max(round(min(mask.shape) / 400), 1) if outline is None else outline
    if width > 0:
        line = _borders(mask, width)
        blended[line] = np.where(known[line][:, None], 0.15 * tinted[line] + 0.85 * 255, 255)
    return Image.fromarray(blended.round().astype(np.uint8))


def _borders(mask: np.ndarray, width: int) -> np.ndarray:
    """Where classes meet, as lines of `width` pixels: `(height, width)` bool."""
    line = np.zeros(mask.shape, dtype=bool)
    line[:, :-1] |= mask[:, :-1] != mask[:, 1:]
    line[:-1] |= mask[:-1] != mask[1:]
    thick = line.copy()
    for step in range(1, width):  # downwards and to the right, in turn to both sides
        shift = (step + 1) // 2 * (1 if step % 2 else -1)
        thick |= _shifted(line, shift, 0) | _shifted(line, 0, shift) | _shifted(line, shift, shift)
    return thick


def _shifted(line: np.ndarray, down: int, right: int) -> np.ndarray:
    moved = np.zeros_like(line)
    height, width = line.shape
    moved[max(down, 0) : height + min(down, 0), max(right, 0) : width + min(right, 0)] = line[
        max(-down, 0) : height + min(-down, 0), max(-right, 0) : width + min(-right, 0)
    ]
    return moved


def text_size(width: int, height: int) -> int:
    """Pixels of text that goes with a picture."""
    return max(round(0.03 * math.sqrt(width * height)), 13)


def draw_legend(
    entries: Sequence[tuple[str, Sequence[int]]], width: int, size: int, font: str | None = None
) -> Image.Image:
    """Names with their colours, in columns, on white.

    Args:
        entries: name and colour of each.
        width: of the result, in pixels; names that are longer are cut.
        size: of the text, in pixels.
        font: a TrueType file or name, for scripts that Pillow's own font lacks.
    """
    letters = ImageFont.truetype(font, size) if font else ImageFont.load_default(size)
    gap, chip = size // 2, size
    room = width - 2 * gap - chip - gap
    names = [_shortened(name, letters, room) for name, _ in entries]
    cell = chip + gap + math.ceil(max((letters.getlength(name) for name in names), default=0)) + 2 * gap
    columns = max((width - gap) // cell, 1)
    # As many in each row as it takes, so that the last one is not left with a single name.
    columns = math.ceil(len(entries) / math.ceil(len(entries) / columns)) if entries else 1
    pitch = round(1.6 * size)
    legend = Image.new("RGB", (width, pitch * math.ceil(len(entries) / columns) + gap), PAPER)
    draw = ImageDraw.Draw(legend)
    for i, (name, (_, color)) in enumerate(zip(names, entries, strict=True)):
        left, middle = gap + i % columns * cell, gap // 2 + i // columns * pitch + pitch // 2
        solid, shape = _chip(color, chip)
        legend.paste(solid, (left, middle - chip // 2), shape)
        draw.text((left + chip + gap, middle), name, INK, letters, anchor="lm")
    return legend


def _chip(color: Sequence[int], size: int) -> tuple[Image.Image, Image.Image]:
    """A square with round corners, and its smooth shape."""
    shape = Image.new("L", (4 * size, 4 * size))
    ImageDraw.Draw(shape).rounded_rectangle((0, 0, 4 * size - 1, 4 * size - 1), radius=size, fill=255)
    solid = Image.new("RGB", (size, size), tuple(int(value) for value in color))
    return solid, shape.resize((size, size), Image.Resampling.LANCZOS)


def _shortened(name: str, letters: ImageFont.FreeTypeFont | ImageFont.ImageFont, room: float) -> str:
    if letters.getlength(name) <= room:
        return name
    while name and letters.getlength(name + "...") > room:
        name = name[:-1]
    return name + "..."


def draw_segmentation(
    image: Image.Image,
    mask: np.ndarray,
    labels: Sequence[str],
    *,
    colors: np.ndarray | None = None,
    opacity: float = 0.6,
    outline: int | None = None,
    legend: bool = True,
    font: str | None = None,
) -> Image.Image:
    """A picture with its classes in colours, and below it which colour is which.

    Args:
        image: RGB. A small one is enlarged by a whole factor until it is readable.
        mask: `(height, width)` class indices, 255 for void.
        labels: names of all classes.
        colors: `(classes, 3)` uint8; by default those of `palette`.
        opacity, outline: of `overlay_mask`.
        legend: with the classes that occur.
        font: of `draw_legend`.

    Raises:
        ValueError: a mask of another size, or with more classes than names.
    """
    present = np.unique(mask[mask != VOID])
    if len(present) and present[-1] >= len(labels):
        raise ValueError(f"expected class indices below the number of names, {len(labels)}, found {present[-1]}")
    colors = palette(len(labels)) if colors is None else colors
    factor = min(math.ceil(READABLE / min(image.size)), LARGE // max(image.size))
    if factor > 1 and mask.shape == (image.height, image.width):
        image = image.resize((factor * image.width, factor * image.height), Image.Resampling.BICUBIC)
        mask = mask.repeat(factor, axis=0).repeat(factor, axis=1)
    drawn = overlay_mask(image, mask, colors, opacity=opacity, outline=outline)
    if not legend or not len(present):
        return drawn
    size = text_size(*drawn.size)
    names = draw_legend([(labels[i], colors[i]) for i in present.tolist()], max(drawn.width, 12 * size), size, font)
    together = Image.new("RGB", (names.width, drawn.height + names.height), PAPER)
    together.paste(drawn)
    together.paste(names, (0, drawn.height))
    return together
