"""Pictures like those that a model will see, to calibrate int8 with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from swiftformer.data.image_folder import is_for_other_tasks
from swiftformer.data.splits import NoSuchSplitError
from swiftformer.files import expanded
from swiftformer.images import ImageSource


def calibration_pictures(data: str | Path, count: int) -> Sequence[ImageSource]:
    """Pictures spread evenly over a folder of pictures or the training split of a data set, with masks or without;
    over all of it where there is no such split.

    Raises:
        ValueError: no such data, or no pictures in it.
    """
    from swiftformer.data.mask_folders import recognise
    from swiftformer.data.segmentation import open_segmentation
    from swiftformer.data.sources import is_image, open_source
    from swiftformer.predict import find_images

    folder = expanded(data)
    masks = recognise(folder) if folder.is_dir() else None
    with_masks = masks is not None and masks.has_pairs
    with_objects = None if with_masks else _with_objects(folder)
    folder = with_objects or folder
    if with_objects or (folder.is_dir() and any(is_image(child) for child in folder.iterdir())):
        paths = [source for _, source in find_images([str(folder)])]
        return [paths[i] for i in evenly(len(paths), count)]
    source: Any
    if with_masks:
        source = _training_pictures(open_segmentation, data, classes=["any"], check_masks=False)  # no mask is read
    else:
        source = _training_pictures(open_source, data)
    return Pictures(source, evenly(len(source), count))


class Pictures(Sequence[Image.Image]):
    """Some of a data set's, each read when it is asked for: decoded, hundreds of photographs may fill the memory."""

    def __init__(self, source: Any, indices: Sequence[int]) -> None:
        self.source, self.indices = source, indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, place: Any) -> Any:
        return self.source.image(self.indices[place])


def _with_objects(folder: Path) -> Path | None:
    """Where the pictures, those to train on if they lie apart, of data to detect are."""
    for root in (folder, folder / "train"):
        if root.is_dir() and is_for_other_tasks(root):
            images = next((root / name for name in ("images", "JPEGImages") if (root / name).is_dir()), root)
            return next((part for part in sorted(images.glob("train*")) if part.is_dir()), images)
    return None


def _training_pictures(opener: Callable[..., Any], data: str | Path, **options: Any) -> Any:
    """Those to train on, or all where the data have others only."""
    try:
        return opener(str(data), "train", **options)
    except NoSuchSplitError:
        return opener(str(data), "all", **options)


def evenly(total: int, count: int) -> list[int]:
    """`count` of the numbers below `total`, or all of them, at even distances."""
    count = min(count, total)
    return [i * total // count for i in range(count)]
