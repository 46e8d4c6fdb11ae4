"""Any picture as RGB: files, bytes, arrays and tensors, of every mode, upright, with one clear line where it fails."""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

ImageSource = Any  # path, bytes, binary file, PIL image, NumPy array or torch tensor
BRIGHTEST = 1.15 * 255  # of floats up to 255: resampled pictures overshoot a little
MAX_PIXELS = 178_956_970  # Pillow's own limit for refusing a decompression bomb: 537 MB of RGB


class ImageError(ValueError):
    """A picture that cannot be read; the message names it and says what was found."""


def listed(images: ImageSource | Iterable[ImageSource]) -> list[ImageSource]:
    """One picture or several, as a list. Arrays and tensors of 4 dimensions are several."""
    one = isinstance(images, (str, os.PathLike, bytes, bytearray, memoryview, Image.Image)) or hasattr(images, "read")
    if one or not isinstance(images, Iterable):
        return [images]
    if isinstance(images, np.ndarray) or hasattr(images, "detach"):
        pixels: Any = images
        return [pixels] if pixels.ndim < 4 else list(pixels)
    return list(images)


def open_image(source: ImageSource, name: str | None = None, short_side: int | None = None) -> Image.Image:
    """Read a picture as RGB, upright, whatever its mode.

    Animations give their first frame; EXIF orientation is applied; transparency is laid over white; 16-bit values
    are scaled to 8 bits.

    Args:
        source: path; bytes or binary file with an encoded picture; PIL image; or pixels as a NumPy array or torch
            tensor, `(H, W)`, `(H, W, C)` or `(C, H, W)` with 1, 3 or 4 channels: uint8, integers with that range or,
            where a value is larger, that of 16 bits, floats in [0, 1] or up to 255. An ImageError that stands for a
            picture is raised as it is.
        name: what to call the picture in errors; the path, if there is one.
        short_side: let JPEG files be decoded at a half, a fourth or an eighth of their size, which is quicker, as long
            as their short side keeps so many pixels.

    Raises:
        ImageError: missing, empty, truncated, too large, or no picture at all; an array or a tensor that is not finite,
            or that looks as if it were normalised.
    """
    if isinstance(source, ImageError):
        raise source
    if isinstance(source, (str, os.PathLike)):
        path = os.fsdecode(source)
        return _decode(path, name or path, short_side)
    if isinstance(source, (bytes, bytearray, memoryview)):
        return _decode(io.BytesIO(source), name or "image", short_side)
    if isinstance(source, Image.Image):
        return _guarded(lambda: _to_rgb(source, name or "image"), source, name or "image")
    if hasattr(source, "read"):
        return _decode(source, name or str(getattr(source, "name", "image")), short_side)
    if hasattr(source, "detach") or isinstance(source, np.ndarray):
        called = name or "array"
        return _guarded(lambda: _to_rgb(_from_array(_as_array(source), called), called), source, called)
    raise ImageError(
        f"{name or 'image'}: expected a path, bytes, file, PIL image, array or tensor, found {type(source).__name__}"
    )


def _decode(file: Any, name: str, short_side: int | None) -> Image.Image:
    def opened() -> Image.Image:
        with warnings.catch_warnings():
            # MAX_PIXELS is the limit here; oddities in the metadata are no reason to fail either.
            warnings.simplefilter("ignore")
            with Image.open(file) as image:
                return _to_rgb(image, name, short_side)

    return _guarded(opened, file, name)


def _guarded(read: Callable[[], Image.Image], file: Any, name: str) -> Image.Image:
    """Whatever goes wrong in `read` becomes an ImageError with one line."""
    try:
        return read()
    except FileNotFoundError:
        raise ImageError(f"{name}: no such file") from None
    except IsADirectoryError:
        raise ImageError(f"{name}: expected a file, found a folder") from None
    except PermissionError:
        raise ImageError(f"{name}: no permission to read it") from None
    except Image.DecompressionBombError:
        raise ImageError(f"{name}: expected at most {MAX_PIXELS:,} pixels, found more") from None
    except Image.UnidentifiedImageError:
        raise ImageError(f"{name}: {_describe(file)}") from None
    except ImageError:
        raise
    except Exception as error:
        raise ImageError(f"{name}: broken image ({str(error) or type(error).__name__})") from error


def _describe(file: Any) -> str:
    try:
        if isinstance(file, (str, Path)):
            with Path(file).open("rb") as opened:
                head = opened.read(32)
        else:
            file.seek(0)
            head = file.read(32)
    except (OSError, ValueError):
        head = b"?"
    if not head:
        return "expected an image, found an empty file"
    return f"expected an image, found a file that starts with {head[:12]!r}"


def _to_rgb(image: Image.Image, name: str, short_side: int | None = None) -> Image.Image:
    if image.width * image.height > MAX_PIXELS:
        raise ImageError(f"{name}: expected at most {MAX_PIXELS:,} pixels, found {image.width}x{image.height}")
    if image.width == 0 or image.height == 0:
        raise ImageError(f"{name}: expected a picture, found {image.width}x{image.height} pixels")
    if getattr(image, "n_frames", 1) > 1:
        image.seek(0)
    if short_side:
        image.draft(None, (short_side, short_side))  # type: ignore[arg-type]
    image.load()
    try:
        image = ImageOps.exif_transpose(image)
    except Exception:  # broken EXIF data: the pixels are still good
        image = image.copy()
    if image.mode == "RGB" and not image.has_transparency_data:
        return image
    if image.mode.startswith("I") or image.mode == "F":
        return Image.fromarray(_to_uint8(np.asarray(image), name)).convert("RGB")
    if image.mode in ("RGBa", "La"):
        image = image.convert(image.mode.upper())
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")
    return image.convert("RGB")


def _to_uint8(pixels: np.ndarray, name: str) -> np.ndarray:
    """Scale gray values of any type to 0..255; ImageError for floats beyond that."""
    if pixels.dtype == np.uint8:
        return pixels
    if pixels.dtype == bool:
        return pixels.astype(np.uint8) * 255
    if np.issubdtype(pixels.dtype, np.floating):
        peak = float(np.nanmax(pixels, initial=0.0))
        if peak > BRIGHTEST:
            raise ImageError(f"{name}: expected floats in [0, 1] or [0, 255], found up to {peak:.4g}")
        # Resampled pictures overshoot 1 a little; Pillow's mode F and some arrays go up to 255.
        pixels = np.nan_to_num(pixels.astype(np.float64)) * (255.0 if peak <= 2.0 else 1.0)
        return np.clip(np.rint(pixels), 0, 255).astype(np.uint8)
    # Integers of 32 bits, such as Pillow's mode I, hold values of 8 or of 16 bits.
    if pixels.dtype.itemsize == 2 or int(pixels.max(initial=0)) > 255:
        return np.clip(np.rint(pixels / (32767 / 255 if pixels.dtype == np.int16 else 257)), 0, 255).astype(np.uint8)
    return np.clip(pixels, 0, 255).astype(np.uint8)


def _as_array(source: Any) -> np.ndarray:
    if isinstance(source, np.ndarray):
        return source
    tensor = source.detach()
    array: np.ndarray = (tensor.float() if tensor.is_floating_point() else tensor).cpu().numpy()  # it has no bfloat16
    return array


def _expect_pixel_values(pixels: np.ndarray, name: str) -> None:
    if pixels.dtype.kind not in "buif" or pixels.dtype == np.int8:
        raise ImageError(f"{name}: expected pixels of uint8, a wider integer or floats, found {pixels.dtype}")
    lowest, highest = float(pixels.min(initial=0)), float(pixels.max(initial=0))
    if not np.isfinite([lowest, highest]).all():
        raise ImageError(f"{name}: expected finite values, found {lowest} to {highest}")
    # Resampled pictures undershoot zero a little.
    if lowest < (-0.15 * max(highest, 1.0) if pixels.dtype.kind == "f" else 0):
        raise ImageError(
            f"{name}: expected values in [0, 1] or [0, 255], found {lowest:.4g} to {highest:.4g}; what is normalised "
            "goes to the model or the engine itself"
        )


def _from_array(pixels: np.ndarray, name: str) -> Image.Image:
    if pixels.dtype != np.uint8:
        _expect_pixel_values(pixels, name)
        if pixels.dtype.kind in "ui" and pixels.max(initial=0) <= 255:
            pixels = pixels.astype(np.uint8)  # in a wider type than they need
    if pixels.ndim == 3 and pixels.shape[0] in (1, 3, 4) and pixels.shape[2] not in (1, 3, 4):
        pixels = pixels.transpose(1, 2, 0)  # (C, H, W) -> (H, W, C)
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[:, :, 0]
    if not (pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] in (3, 4))) or pixels.size == 0:
        raise ImageError(f"{name}: expected pixels of shape (H, W), (H, W, C) or (C, H, W), found {pixels.shape}")
    return Image.fromarray(np.ascontiguousarray(_to_uint8(pixels, name)))
