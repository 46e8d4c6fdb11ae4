"""Pictures in files: trees of one folder per class, and whatever lists files with their labels."""

from __future__ import annotations

import functools
import logging
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from PIL import Image

from swiftformer.data.class_names import shortened
from swiftformer.data.sources import is_image
from swiftformer.data.splits import SPLIT_ALIASES, USUAL, Splits, usual
from swiftformer.images import open_image

logger = logging.getLogger(__name__)
# What data to detect and to segment have beside each other, and no classes are called like.
OTHER_TASKS = {
    *("annotations", "masks", "labels", "images", "annotations_trainval", "Annotations", "JPEGImages"),
    *("SegmentationClass", "SegmentationObject", "ImageSets"),
}
# Names of splits that people give besides those of `splits.SPLIT_ALIASES`: training_set, seg_test, val2017.
TRAINING, EVALUATION = (
    re.compile(rf"([a-z]+[_-])?({kinds})([_-]?(set|data|images|\d+))?", re.IGNORECASE)
    for kinds in ("train|training", "val|valid|validation|test|testing")
)
UNREAD = (".heic", ".heif")  # of phones; Pillow reads them only with a package that is not needed here
LEFT_BEHIND = ("__MACOSX", "@eaDir")  # in archives from a Mac, and beside the pictures on Synology's servers


class FileSource:
    """Image files below `root`, by their paths relative to it, with their labels."""

    def __init__(self, root: Path, files: Sequence[str], labels: Sequence[int], classes: Sequence[str]) -> None:
        self.root = str(root)
        self.files = list(files)
        self.labels = list(labels)
        self.classes = list(classes)

    def __len__(self) -> int:
        return len(self.files)

    def image(self, index: int, short_side: int | None = None) -> Image.Image:
        return open_image(self.name(index), None, short_side)

    def name(self, index: int) -> str:
        return str(Path(self.root, self.files[index]))

    def key(self, index: int) -> str:
        return self.files[index].replace(os.sep, "/")


class ImageFolderSource(FileSource):
    """`ROOT/CLASS/**/*.jpg`, classes in alphabetical order.

    Args:
        splits: the roots of all splits of the data. A folder without pictures is a class where one of them has some
            of it; otherwise it is left out, with a warning.

    Raises:
        ValueError: there are no such files, or the folders are called like splits.
    """

    def __init__(self, root: Path, splits: Sequence[Path] = ()) -> None:
        folders = sorted(entry.name for entry in os.scandir(root) if entry.is_dir() and not _hidden(entry.name))
        unread: list[Path] = []
        found = {name: sorted(_pictures(root / name, unread)) for name in folders}
        refuse_other_tasks(root)
        _refuse_splits(root, folders)
        empty = [name for name in folders if not found[name] and not any(any(_pictures(s / name)) for s in splits)]
        classes = [name for name in folders if name not in empty]
        files = [str(file.relative_to(root)) for name in classes for file in found[name]]
        if not files:
            found_kinds = f"{len(unread)} files {unread[0].suffix}, which are not read" if unread else "none"
            raise ValueError(f"{root}: expected one folder of images per class, found {found_kinds}")
        if empty:
            _tell(f"{root}: no classes are made of {len(empty)} folders without pictures ({shortened(empty)})")
        if unread:
            _tell(f"{root}: {len(unread)} pictures of kinds that are not read are left out ({unread[0].name}, ...)")
        labels = [label for label, name in enumerate(classes) for _ in found[name]]
        super().__init__(root, files, labels, classes)


def find(root: Path, names: Iterable[str]) -> Splits:
    """The splits `ROOT/NAME/CLASS/...` among `names`, and beside a training split others with some of its classes."""
    inside = sorted(entry.name for entry in os.scandir(root) if entry.is_dir() and not _hidden(entry.name))
    others = any(usual(name) not in USUAL for name in inside)
    called = {name: name for name in inside}
    if not others or sum(usual(name) in USUAL for name in inside) > 1:  # `Train` alone beside others may be a class
        called = {usual(name): name for name in inside} | called  # `Train`, but rather `train`
    places = {usual(name): root / called[usual(name)] for name in names if usual(name) in called}
    folders = {name: place for name, place in places.items() if _is_split(place, others)}
    for name in ("test", "testing"):  # of contests: pictures without classes, beside others with them
        if name in folders and len(folders) > 1 and not _has_folders(folders[name]) and any(_pictures(folders[name])):
            del folders[name]
    if train := next((folders[name] for name in SPLIT_ALIASES["train"] if name in folders), None):
        classes = {entry.name for entry in os.scandir(train) if entry.is_dir() and not _hidden(entry.name)}
        for name in inside:
            if any((root / name / of_class).is_dir() for of_class in classes):
                folders.setdefault(usual(name), root / name)
    roots = [*folders.values()]
    return {name: lambda folder=folder: ImageFolderSource(folder, roots) for name, folder in folders.items()}  # type: ignore[misc]


def is_for_other_tasks(root: Path) -> bool:
    """Whether a folder has the folders that data to detect and to segment have beside each other, and no others."""
    folders = {entry.name for entry in os.scandir(root) if entry.is_dir() and not _hidden(entry.name)}
    return len(folders) > 1 and folders <= OTHER_TASKS


def refuse_other_tasks(root: Path) -> None:
    """Raise ValueError for data to detect and to segment."""
    if is_for_other_tasks(root):
        folders = sorted(entry.name for entry in os.scandir(root) if entry.is_dir() and not _hidden(entry.name))
        raise ValueError(
            f"{root}: expected one folder of images per class, found {shortened(folders)}, which look like data to "
            f"segment or detect: those are trained on with --task segment, detect or instances"
        )


def _refuse_splits(root: Path, folders: Sequence[str]) -> None:
    train, held = ([name for name in folders if kind.fullmatch(name)] for kind in (TRAINING, EVALUATION))
    if train and held:
        raise ValueError(
            f"{root}: expected one folder of images per class, or splits called train and val (or test), found "
            f"{shortened([*train, *held])}"
        )


def has_classes(root: Path) -> bool:
    """Whether there are two or more folders with pictures."""
    folders = (entry for entry in root.iterdir() if entry.is_dir() and not _hidden(entry.name))
    return sum(any(_pictures(folder)) for folder in folders) > 1


def _hidden(name: str) -> bool:
    return name.startswith(".") or name in LEFT_BEHIND


def _pictures(folder: Path, unread: list[Path] | None = None) -> Iterator[Path]:
    """The pictures in a folder and those in it; `unread` gets those of `UNREAD`."""
    for parent, folders, files in os.walk(folder, followlinks=True):
        if {"recipe.json", "train.log"} <= {*files}:  # what training left there, curves among it
            folders[:] = []
            continue
        folders[:] = [name for name in folders if not _hidden(name) and not _leads_back(Path(parent), name)]
        if unread is not None:
            unread += (Path(parent, name) for name in files if name.lower().endswith(UNREAD) and name[0] != ".")
        yield from (path for name in files if is_image(path := Path(parent, name)))


def _leads_back(parent: Path, name: str) -> bool:
    """Whether a folder is a link to one that it was reached through, or that it lies in."""
    if not (parent / name).is_symlink():
        return False
    target = Path(os.path.realpath(parent / name))
    through = (Path(os.path.realpath(each)) for each in (parent, *parent.parents))
    return any(each == target for each in through) or Path(os.path.realpath(parent)).is_relative_to(target)


@functools.cache  # as training opens the same folder twice
def _tell(warning: str) -> None:
    logger.warning(warning)


def _has_folders(folder: Path) -> bool:
    return any(entry.is_dir() and not _hidden(entry.name) for entry in os.scandir(folder))


def _is_split(folder: Path, others: bool) -> bool:
    """Whether a folder holds classes. Beside other folders, one of pictures is itself a class, even as `train`."""
    entries = [entry for entry in os.scandir(folder) if not _hidden(entry.name)]
    if any(entry.is_dir() for entry in entries):
        return True
    if any(entry.name.endswith(".tar") for entry in entries):
        return False
    return not (others and any(is_image(Path(entry.path)) for entry in entries))
