"""How a picture lies in its file: EXIF may turn it."""

from __future__ import annotations

from PIL import Image

from swiftformer.images import open_image

ORIENTATION = 0x0112  # EXIF
Transpose = Image.Transpose
# What takes an upright picture back to how it is stored, for the orientations that swap the sides.
UNDO = {5: Transpose.TRANSPOSE, 6: Transpose.ROTATE_90, 7: Transpose.TRANSVERSE, 8: Transpose.ROTATE_270}


def upright_size(file: str) -> tuple[int, int]:
    """Width and height of a picture as `open_image` gives it, from its head. Raises ImageError."""
    (width, height), orientation = stored_size(file)
    return (height, width) if orientation in UNDO else (width, height)


def stored_size(file: str) -> tuple[tuple[int, int], int]:
    """Width and height as stored, and the EXIF orientation. Raises ImageError."""
    try:
        with Image.open(file) as image:
            known = image.format != "PNG" or "exif" in image.info  # Pillow would read the whole picture to look for it
            return image.size, image.getexif().get(ORIENTATION, 1) if known else 1
    except Exception:  # open_image says what is wrong
        return open_image(file).size, 1
