"""Images in, batches out: the preprocessing that belongs to a checkpoint.

Only Pillow and NumPy are needed, so training evaluation, every inference engine and a torch-free installation share
one definition.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from PIL import Image

from swiftformer.images import MAX_PIXELS, ImageError, ImageSource, listed, open_image

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

RESAMPLING: dict[str, Image.Resampling] = {
    "nearest": Image.Resampling.NEAREST,
    "box": Image.Resampling.BOX,
    "bilinear": Image.Resampling.BILINEAR,
    "hamming": Image.Resampling.HAMMING,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}

# transformers' image processors, whose post-processing is that of the detector.
IMAGE_PROCESSORS = {"rcnn": "DetrImageProcessor", "d-fine": "RTDetrImageProcessor"}
ANY_LENGTH = 1_000_000  # pixels of a long side


@dataclass(frozen=True)
class Preprocessing:
    """How a checkpoint wants its images: resizing, cropping and normalisation.

    Attributes:
        size: height and width of the result, in pixels; with `"whole"` those that the model was trained at.
        resize: `"squash"` resizes straight to `size`; `"shortest"` resizes the short side to `resize_to` and crops
            the centre, as torchvision's and timm's evaluation transforms do; `"whole"`, for dense prediction, resizes
            the short side to `resize_to` and crops nothing; `"fit"` resizes to the largest that fits into `size`, and
            fills what is left on the right and at the bottom with `filling`.
        resize_to: pixels of the short side, before the crop where there is one; for `"whole"` None leaves the picture
            at its own size.
        longest: for `"whole"`, what the long side may have at most, in pixels, where the picture is resized; None for
            any length.
        interpolation: a key of `RESAMPLING`.
        mean, std: per channel, of values in [0, 1].
        filling: the colour that `"fit"` fills with, of values in [0, 1]; by default the mean.
        reduce_labels: of a segmentation model, whether in the masks that it learned from 0 was void and the classes
            began at 1; None where that is unknown, or nothing was segmented.
    """

    size: tuple[int, int] = (224, 224)
    resize: Literal["squash", "shortest", "whole", "fit"] = "squash"
    resize_to: int | None = None
    longest: int | None = None
    interpolation: str = "bicubic"
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    filling: tuple[float, ...] | None = None
    reduce_labels: bool | None = None

    def __post_init__(self) -> None:
        if len(self.size) != 2 or min(self.size) < 1:
            raise ValueError(f"expected a size of two positive numbers (height, width), found {self.size}")
        if self.resize not in ("squash", "shortest", "whole", "fit"):
            raise ValueError(f"resize must be 'squash', 'shortest', 'whole' or 'fit', found {self.resize!r}")
        if self.longest is not None and (self.resize_to is None or self.longest < self.resize_to):
            raise ValueError(f"expected longest together with a resize_to of at most that, found {self}")
        if self.interpolation not in RESAMPLING:
            raise ValueError(f"interpolation must be one of {', '.join(RESAMPLING)}, found {self.interpolation!r}")
        if len(self.mean) != len(self.std) or any(value <= 0 for value in self.std):
            raise ValueError(f"expected as many positive std values as means, found {self.mean} and {self.std}")
        if self.filling is not None and len(self.filling) != len(self.mean):
            raise ValueError(f"expected as many values to fill with as means, found {self.filling} and {self.mean}")

    @property
    def short_side(self) -> int:
        """Pixels of the short side before the crop."""
        return self.resize_to or max(self.size)

    def uncropped(self, short_side: int | None = None) -> Preprocessing:
        """The same without a crop, for dense prediction.

        Args:
            short_side: pixels that the short side is resized to, 0 for the picture's own size; by default as here.
        """
        if short_side is not None:
            if short_side < 0:
                raise ValueError(f"expected a short side of 0 (the picture's own size) or more, found {short_side}")
            longest = None if self.longest is None or not short_side else max(self.longest, short_side)
            return replace(self, resize="whole", resize_to=short_side or None, longest=longest)
        return replace(self, resize="whole", resize_to=self.short_side) if self.resize == "shortest" else self

    def resized(self, image: Image.Image) -> np.ndarray:
        """Resize and crop an RGB image: `(H, W, 3)` uint8."""
        height, width = self.size
        filter_ = RESAMPLING[self.interpolation]
        if self.resize == "squash":
            return np.asarray(image.resize((width, height), filter_))
        if self.resize == "whole" and self.resize_to is None:
            return np.asarray(image)
        if self.resize == "fit":
            fitted = np.asarray(image.resize(self._fitted(image.width, image.height), filter_))
            pixels = np.empty((height, width, 3), np.uint8)
            pixels[:] = [round(255 * value) for value in self.filling or self.mean]
            pixels[: len(fitted), : len(fitted[0])] = fitted
            return pixels
        short, long = sorted(image.size)
        new_short, new_long = self.short_side, int(self.short_side * long / short)  # rounded down, as torchvision does
        if self.longest is not None and new_long > self.longest and self.resize == "whole":
            new_short, new_long = max(int(self.longest * short / long), 1), self.longest
        new_size = (new_short, new_long) if image.width <= image.height else (new_long, new_short)
        if new_size[0] * new_size[1] > MAX_PIXELS:
            raise ImageError(
                f"expected a less extreme shape than {image.width}x{image.height}: with a short side of "
                f"{self.short_side} it has more than {MAX_PIXELS:,} pixels"
            )
        if new_size != image.size:
            image = image.resize(new_size, filter_)
        if self.resize == "whole":
            return np.asarray(image)
        left, top = _crop_offset(image.width, width), _crop_offset(image.height, height)
        return np.asarray(image.crop((left, top, left + width, top + height)))

    def _fitted(self, width: int, height: int) -> tuple[int, int]:
        scale = min(self.size[0] / height, self.size[1] / width)
        return max(round(width * scale), 1), max(round(height * scale), 1)

    def extent(self, size: tuple[int, int]) -> tuple[float, float]:
        """Height and width, in pixels of a picture of `size` (height, width), of what the result shows from its upper
        left corner on: beyond the picture's own where there is a filling. Of pictures that are not cropped."""
        if self.resize != "fit":
            return size
        width, height = self._fitted(size[1], size[0])
        return size[0] * self.size[0] / height, size[1] * self.size[1] / width

    def normalized(self, pixels: np.ndarray) -> np.ndarray:
        """Normalise `(H, W, 3)` uint8 to `(3, H, W)` float32: `(x / 255 - mean) / std`."""
        table = (np.arange(256, dtype=np.float64) / 255).astype(np.float32)[None]
        mean, std = (np.asarray(values, dtype=np.float32)[:, None] for values in (self.mean, self.std))
        table = (table - mean) / std  # (3, 256): each of the 256 values is computed once per channel
        return np.stack([table[c][pixels[:, :, c]] for c in range(len(self.mean))])

    def prepare(self, source: ImageSource, name: str | None = None) -> np.ndarray:
        """Read, resize, crop and normalise one picture: `(3, H, W)` float32.

        Raises:
            ImageError: it cannot be read, or is too long and thin to be resized; the message begins with its name.
        """
        image = open_image(source, name)
        try:
            return self.normalized(self.resized(image))
        except ImageError as error:
            name = name or (os.fsdecode(source) if isinstance(source, (str, os.PathLike)) else "image")
            raise ImageError(f"{name}: {error}") from None

    def __call__(self, images: ImageSource | Iterable[ImageSource]) -> np.ndarray:
        """Turn one image or several into a batch: `(N, 3, H, W)` float32.

        Raises:
            ImageError: a picture cannot be read.
        """
        return np.stack([self.prepare(image) for image in listed(images)])

    def to_dict(self, detector: str | None = None) -> dict[str, Any]:
        """The content of `preprocessor_config.json`, readable by transformers' AutoImageProcessor.

        Args:
            detector: of a model that detects, a key of `IMAGE_PROCESSORS`, whose class understands what it gives.
        """
        height, width = self.size
        fields: dict[str, Any] = {
            "do_resize": True,
            "do_rescale": True,
            "do_normalize": True,
            "rescale_factor": 1 / 255,
            "resample": int(RESAMPLING[self.interpolation]),
            "image_mean": list(self.mean),
            "image_std": list(self.std),
        }
        if self.filling is not None:
            fields["filling"] = list(self.filling)
        if self.reduce_labels is not None:
            fields["do_reduce_labels"] = self.reduce_labels
        if self.resize == "squash":
            return fields | {"image_processor_type": "ViTImageProcessor", "size": {"height": height, "width": width}}
        trained = {"height": height, "width": width}
        if self.resize == "fit":
            kind = IMAGE_PROCESSORS[detector or "rcnn"]
            fields |= {"image_processor_type": kind, "do_pad": True, "pad_size": trained}
            return fields | {"size": {"max_height": height, "max_width": width}}
        if self.resize == "whole":
            longest = ANY_LENGTH if self.longest is None and detector else self.longest  # theirs need a number
            kind = IMAGE_PROCESSORS[detector or "rcnn"] if longest else "SegformerImageProcessor"
            fields |= {"image_processor_type": kind, "crop_size": trained}
            if self.resize_to is None:
                return fields | {"do_resize": False}
            size = {"shortest_edge": self.resize_to}
            return fields | {"size": size | {"longest_edge": longest} if longest else size}
        return fields | {
            "image_processor_type": "CLIPImageProcessor",
            "size": {"shortest_edge": self.short_side},
            "do_center_crop": True,
            "crop_size": {"height": height, "width": width},
            "do_convert_rgb": True,
        }

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Preprocessing:
        """Read a `preprocessor_config.json` of the ViT (resize), CLIP (and crop), SegFormer or DETR (whole) kind.

        Raises:
            ValueError: a step that this class cannot reproduce.
        """
        dense = str(fields.get("image_processor_type", "")).startswith(("Segformer", "Detr", "RTDetr"))
        if not (dense or fields.get("do_resize", True)) or not fields.get("do_rescale", True):
            raise ValueError("expected a preprocessor_config.json with do_resize and do_rescale, found one without")
        if not math.isclose(fields.get("rescale_factor", 1 / 255), 1 / 255, rel_tol=1e-6):
            raise ValueError(f"expected a rescale_factor of 1/255, found {fields['rescale_factor']}")
        normalize = fields.get("do_normalize", True)
        common: dict[str, Any] = {
            "interpolation": Image.Resampling(fields.get("resample", Image.Resampling.BILINEAR)).name.lower(),
            "mean": tuple(fields.get("image_mean", (0.5, 0.5, 0.5)) if normalize else (0.0, 0.0, 0.0)),
            "std": tuple(fields.get("image_std", (0.5, 0.5, 0.5)) if normalize else (1.0, 1.0, 1.0)),
            "filling": tuple(fields["filling"]) if fields.get("filling") else None,
            "reduce_labels": fields.get("do_reduce_labels", fields.get("reduce_labels")),  # the latter is older
        }
        size = fields.get("size", {"height": 224, "width": 224})
        if isinstance(size, int):
            size = {"height": size, "width": size}
        if dense and "max_height" in size:
            return cls(size=(size["max_height"], size["max_width"]), resize="fit", **common)
        if dense and ("shortest_edge" in size or not fields.get("do_resize", True)):
            trained = fields.get("crop_size") or {"height": 512, "width": 512}  # the processor's own default
            trained = (trained["height"], trained["width"]) if isinstance(trained, Mapping) else (trained, trained)
            resize_to = size["shortest_edge"] if fields.get("do_resize", True) else None
            longest = size.get("longest_edge") if fields.get("do_resize", True) else None
            longest = None if longest == ANY_LENGTH else longest
            return cls(size=trained, resize="whole", resize_to=resize_to, longest=longest, **common)
        if "shortest_edge" not in size:
            if fields.get("do_center_crop") and fields.get("crop_size") not in (None, size):
                raise ValueError("expected a centre crop after size.shortest_edge, found one after a fixed size")
            return cls(size=(size["height"], size["width"]), resize="squash", **common)
        crop = fields.get("crop_size", size["shortest_edge"])
        crop = (crop["height"], crop["width"]) if isinstance(crop, Mapping) else (crop, crop)
        if not fields.get("do_center_crop", True):
            raise ValueError("expected a fixed input size: size.shortest_edge needs do_center_crop")
        return cls(size=crop, resize="shortest", resize_to=size["shortest_edge"], **common)

    @classmethod
    def from_timm(cls, fields: Mapping[str, Any]) -> Preprocessing:
        """Read timm's `pretrained_cfg`: short side to `size / crop_pct` rounded down, then a centre crop.

        Raises:
            ValueError: a crop that this class cannot reproduce.
        """
        height, width = fields.get("input_size", (3, 224, 224))[1:]
        common: dict[str, Any] = {
            "size": (height, width),
            "interpolation": fields.get("interpolation", "bicubic"),
            "mean": tuple(fields.get("mean", IMAGENET_MEAN)),
            "std": tuple(fields.get("std", IMAGENET_STD)),
        }
        mode, crop_pct = fields.get("crop_mode", "center"), fields.get("crop_pct") or 0.875
        if mode == "squash" and crop_pct == 1:
            return cls(resize="squash", **common)
        if mode != "center" or height != width:
            raise ValueError(
                f"expected a crop_mode of center and a square input, or squash and a crop_pct of 1, found {mode}, "
                f"{height}x{width} and {crop_pct}"
            )
        return cls(resize="shortest", resize_to=math.floor(max(height, width) / crop_pct), **common)


def _crop_offset(size: int, target: int) -> int:
    """Where torchvision's centre crop begins; negative where the picture is smaller and a black border is added."""
    return round((size - target) / 2) if size >= target else -((target - size) // 2)


HUB = Preprocessing(interpolation="bilinear")  # ViTImageProcessor's default
AUTHORS = Preprocessing(resize="shortest", resize_to=256)
TIMM = Preprocessing(resize="shortest", resize_to=math.floor(224 / 0.95))
