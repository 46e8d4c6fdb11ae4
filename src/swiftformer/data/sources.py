"""Where labelled images come from: `open_source` recognises the layout and finds the split. See docs/data.md."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from PIL import Image

from swiftformer.data.splits import ALL, SPLIT_ALIASES, NoSuchSplitError, Splits, choose
from swiftformer.files import expanded

IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".jfif", ".jpe", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"),
    *(".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".avif"),
)
# Of iNaturalist's taxonomy: what counts as a class.
LEVELS = ("name", "supercategory", "kingdom", "phylum", "class", "order", "family", "genus")
# Folders that data sets bring along; one stands for the other where both are there.
KNOWN_FOLDERS = (
    ("cifar-10-batches-bin", "cifar-10-batches-py"),
    ("cifar-100-binary", "cifar-100-python"),
    ("flowers-102",),
)


def is_image(file: Path) -> bool:
    """Whether a file in a folder is taken for a picture, by its name. Hidden files (macOS's `._a.jpg`) are not."""
    return file.suffix.lower() in IMAGE_SUFFIXES and not file.name.startswith(".")


class Source(Protocol):
    """Labelled images by index. `classes` are the class names in the order of the labels.

    Sources can be pickled, for loader processes that are spawned.
    """

    classes: list[str]
    labels: list[int]

    def __len__(self) -> int: ...

    def image(self, index: int, short_side: int | None = None) -> Image.Image:
        """The RGB image, of JPEG files perhaps at a fraction of its size, with a short side of at least `short_side`
        pixels. Raises ImageError where it cannot be read."""
        ...

    def name(self, index: int) -> str:
        """What to call the image in messages."""
        ...


def open_source(data: str | Path, split: str | None = None, *, level: str = "name") -> Source:
    """Find the images of a split.

    Args:
        data: a folder in one of the layouts that docs/data.md describes: trees of one folder per class, Parquet files,
            WebDataset shards, CIFAR, Flowers-102, iNaturalist; one Parquet or tar file; a pattern of tar files such as
            `/{disk1,disk2}/train-{0000..0146}.tar`; or a name for `datasets.load_dataset`.
        split: `train`, `val` or `test`, also found under other usual names of the same thing; `all` for everything;
            None for the validation split, where there is none the test split, otherwise everything. Data with no
            split to validate on is cut: 10 % of each class are `val`, the rest is `train`; see `splits.held_out`.
        level: for iNaturalist, what counts as a class: one of `LEVELS`.

    Raises:
        ValueError: nothing is recognised there, the split is missing or empty, or a level is asked of other data.
    """
    if level not in LEVELS:
        raise ValueError(f"level: expected one of {', '.join(LEVELS)}, found {level!r}")
    return choose(_find_splits(str(data), split, level), split, str(data))


def _find_splits(data: str, split: str | None, level: str) -> Splits:
    from swiftformer.data import cifar, flowers, hub, image_folder, inaturalist, parquet, shards

    if "://" in data:
        raise ValueError(
            f"{data}: expected a file or folder on this machine or a data set's name on the hub, found an address; "
            f"copy or mount it first"
        )
    path = expanded(data)
    if path.is_dir() and (splits := inaturalist.find(path, level)):
        return splits
    if level != "name":
        raise ValueError(f"{data}: expected iNaturalist data (train2018.json, ...) for level={level}, found none")
    if path.is_file():
        return shards.find([path]) if path.suffix == ".tar" else {ALL: lambda: parquet.ParquetSource([path])}
    if not path.exists():
        if shards.is_pattern(data):
            return shards.find(shards.expand(str(path)))
        return hub.find(data)
    if splits := cifar.find(path) or flowers.find(path):
        return splits
    names = [alias for aliases in SPLIT_ALIASES.values() for alias in aliases]
    if split is not None and split not in (ALL, *names):
        names.append(split)
    if splits := image_folder.find(path, names) | parquet.find(path, names):
        return splits
    if tars := shards.in_folder(path, names):
        return shards.find(tars, names)
    if folder := _known_folder(path):
        return cifar.find(folder) or flowers.find(folder)
    files = sorted(file.name for depth in ("*", "*/*", "*/*/*") for file in path.glob(f"{depth}.parquet"))
    if files and not image_folder.has_classes(path):
        wanted = SPLIT_ALIASES.get(split or "val", (split,))
        raise NoSuchSplitError(f"{path}: expected a split named one of {', '.join(map(str, wanted))}, found {files[0]}")
    return {ALL: lambda: image_folder.ImageFolderSource(path)}


def _known_folder(root: Path) -> Path | None:
    """The folder of CIFAR or Flowers-102 in the folder that it was unpacked to."""
    found = [next((root / n for n in names if (root / n).is_dir()), None) for names in KNOWN_FOLDERS]
    folders = [folder for folder in found if folder is not None]
    if len(folders) > 1:
        raise ValueError(f"{root}: expected one data set, found {', '.join(folder.name for folder in folders)}")
    return folders[0] if folders else None
