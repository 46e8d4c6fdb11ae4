"""Pictures in files: trees of one folder per class, and whatever lists files with their labels."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from PIL import Image

from swiftformer.data.sources import is_image
from swiftformer.data.splits import SPLIT_ALIASES, Splits
from swiftformer.image_processing import open_image


class FileSource:
    """Image files below `root`, by their paths relative to it, with their labels."""

    def __init__(self, root: Path, files: Sequence[str], labels: Sequence[int], classes: Sequence[str]) -> None:
        self.root = str(root)
        self.files = list(files)
        self.labels = list(labels)
        self.classes = list(classes)

    def __len__(self) -> int:
        return len(self.files)

    def image(self, index: int) -> Image.Image:
        return open_image(self.name(index))

    def name(self, index: int) -> str:
        return str(Path(self.root, self.files[index]))

    def key(self, index: int) -> str:
        return self.files[index].replace(os.sep, "/")


class ImageFolderSource(FileSource):
    """`ROOT/CLASS/**/*.jpg`, classes in alphabetical order.

    Raises:
        ValueError: there are no such files.
    """

    def __init__(self, root: Path) -> None:
        classes = sorted(folder.name for folder in root.iterdir() if folder.is_dir() and folder.name[0] != ".")
        files: list[str] = []
        labels: list[int] = []
        for label, name in enumerate(classes):
            found = [str(file.relative_to(root)) for file in sorted((root / name).rglob("*")) if is_image(file)]
            files += found
            labels += [label] * len(found)
        if not files:
            raise ValueError(f"{root}: expected one folder of images per class, found none")
        super().__init__(root, files, labels, classes)


def find(root: Path, names: Iterable[str]) -> Splits:
    """The splits `ROOT/NAME/CLASS/...` among `names`."""
    aliases = {alias for group in SPLIT_ALIASES.values() for alias in group}
    others = any(f.is_dir() and f.name[0] != "." and f.name not in aliases for f in root.iterdir())
    return {
        name: lambda folder=root / name: ImageFolderSource(folder)  # type: ignore[misc]
        for name in names
        if (root / name).is_dir() and _is_split(root / name, others)
    }


def _is_split(folder: Path, others: bool) -> bool:
    """Whether a folder holds classes. Beside other folders, one of pictures is itself a class, even as `train`."""
    entries = [entry for entry in os.scandir(folder) if not entry.name.startswith(".")]
    if any(entry.is_dir() for entry in entries):
        return True
    if any(entry.name.endswith(".tar") for entry in entries):
        return False
    return not (others and any(is_image(Path(entry.path)) for entry in entries))
