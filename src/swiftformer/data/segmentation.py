"""Pictures with a class for every pixel: `open_segmentation` recognises the layout and finds the split.

See docs/data.md.
"""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
from PIL import Image

from swiftformer.data.class_names import KNOWN, class_names, find_names, made_up_names
from swiftformer.data.dense_splits import expect_annotations
from swiftformer.data.mask_folders import MaskFolders, Pair, find
from swiftformer.data.masks import VOID, AnnotationError, largest_indices, read_mask
from swiftformer.data.orientation import UNDO, stored_size
from swiftformer.data.splits import choose
from swiftformer.files import expanded
from swiftformer.images import ImageError, open_image

logger = logging.getLogger(__name__)

REPORTED = 10  # pairs that are left out, by name
SAMPLED = 20  # masks that are looked at for the commonest mistakes
WHITE = f"no index but 0 and {VOID}, which is void: a foreground drawn in {VOID} has to become 1"


class SegmentationSource(Protocol):
    """Pictures with masks, by index. `classes` are the class names in the order of the indices in the masks.

    Sources can be pickled, for loader processes that are spawned.

    Attributes:
        reduce_zero_label: in the files 0 is void and the classes begin at 1; `mask` has made 255 and 0 of that.
    """

    classes: list[str]
    reduce_zero_label: bool

    def __len__(self) -> int: ...

    def image(self, index: int) -> Image.Image:
        """The RGB image. Raises ImageError where it cannot be read."""
        ...

    def mask(self, index: int) -> np.ndarray:
        """`(H, W)` uint8 or int32 class indices, 255 for void. Raises AnnotationError where they cannot be had."""
        ...

    def name(self, index: int) -> str:
        """What to call the image in messages."""
        ...


class MaskFileSource:
    """Pictures and masks in files.

    Args:
        pairs: paths of each picture and its mask.
        reduce_zero_label: index 0 becomes void, and the others one less.
    """

    def __init__(
        self, pairs: Sequence[tuple[str, str]], classes: Sequence[str], reduce_zero_label: bool = False
    ) -> None:
        self.pairs = list(pairs)
        self.classes = list(classes)
        self.reduce_zero_label = reduce_zero_label

    def __len__(self) -> int:
        return len(self.pairs)

    def image(self, index: int) -> Image.Image:
        return open_image(self.name(index))

    def mask(self, index: int) -> np.ndarray:
        file = self.pairs[index][1]
        mask = read_mask(file, self.reduce_zero_label)
        beyond = (mask != VOID) & ((mask < 0) | (mask >= len(self.classes)))
        if beyond.any():
            first = int(self.reduce_zero_label)
            raise AnnotationError(
                f"{file}: expected class indices from {first} to {len(self.classes) - 1 + first}, and {VOID} for void, "
                f"found {int(mask[beyond].max()) + first}"
            )
        return mask

    def name(self, index: int) -> str:
        return self.pairs[index][0]


class Relabelled:
    """A source with other classes: index `i` becomes `places[i]`."""

    def __init__(self, source: SegmentationSource, places: Sequence[int], classes: Sequence[str]) -> None:
        self.source = source
        self.classes = list(classes)
        self.reduce_zero_label = source.reduce_zero_label
        self.places = np.full(max(len(places), VOID + 1), VOID, dtype=np.int32)
        self.places[: len(places)] = places
        self.places[VOID] = VOID

    def __len__(self) -> int:
        return len(self.source)

    def image(self, index: int) -> Image.Image:
        return self.source.image(index)

    def mask(self, index: int) -> np.ndarray:
        return self.places[self.source.mask(index)]

    def name(self, index: int) -> str:
        return self.source.name(index)


def read_pair(source: SegmentationSource, index: int) -> tuple[Image.Image, np.ndarray]:
    """A picture and its mask.

    Raises:
        ImageError: one of them cannot be read, or their sizes differ.
    """
    image, mask = source.image(index), source.mask(index)
    if mask.shape == image.size != (image.height, image.width):
        image = _as_stored(image, source.name(index))
    if mask.shape != (image.height, image.width):
        found = "x".join(map(str, mask.shape[::-1]))
        raise AnnotationError(
            f"{source.name(index)}: expected a mask of {image.width}x{image.height} pixels, found {found}"
        )
    return image, mask


def _as_stored(image: Image.Image, file: str) -> Image.Image:
    """A picture as its file has it, for a mask that was drawn without regard to the EXIF orientation."""
    _, orientation = stored_size(file) if Path(file).is_file() else (None, 1)
    if orientation not in UNDO:
        return image
    _tell_stored(str(Path(file).parent))
    return image.transpose(UNDO[orientation])


@functools.cache
def _tell_stored(folder: str) -> None:
    logger.warning(
        "%s: masks are as the pictures are stored, and the EXIF data of some turn these by 90 degrees: those are "
        "taken as they are stored; those turned by 180, and square ones, cannot be told and stay turned",
        folder,
    )


def bad_pairs(source: SegmentationSource) -> Iterator[str]:
    """What is wrong with each picture or mask that cannot be used; all are read."""
    for index in range(len(source)):
        try:
            read_pair(source, index)
        except ImageError as error:
            yield str(error)


def open_segmentation(
    data: str | Path,
    split: str | None = None,
    *,
    classes: str | Sequence[str] | None = None,
    default_classes: Sequence[str] | None = None,
    reduce_zero_label: bool | None = None,
    on_error: Literal["skip", "raise"] = "skip",
    check_masks: bool = True,
) -> MaskFileSource:
    """Find the pictures and masks of a split.

    Args:
        data: a folder with `images/SPLIT` and `annotations/SPLIT` (or `masks`, `labels`); `SPLIT/images` and
            `SPLIT/masks`; either without splits; or Pascal VOC's `JPEGImages`, `SegmentationClass` and
            `ImageSets/Segmentation`. A mask is called like its picture; palette pictures give their indices.
        split: as `swiftformer.data.sources.open_source` takes it.
        classes: names in the order of the indices, as `class_names` takes them. By default those of `classes.txt` or
            the like beside the data, or those of a known data set (`class_names.KNOWN`) that the folder is called like
            and has as many classes as.
        default_classes: names where the data have none, such as those of a model; by default `class_0` and so on to the
            largest index in the masks of all splits, which are all read for that.
        reduce_zero_label: index 0 belongs to no class and the classes begin at 1; by default so where the folders are
            called `images/training` and `annotations/training`, as those of ADE20K are.
        on_error: `skip` leaves out, with a warning, pictures without a mask and masks without a picture; what else is
            wrong shows when a pair is read, and the loaders skip it. `raise` reads everything and refuses the first
            that is wrong.
        check_masks: look at the first masks, whether the names are those of their classes.

    Raises:
        ValueError: nothing is recognised there, the split is missing or empty, most masks have more classes than there
            are names, or there are more than 255 classes.
        AnnotationError: a pair that cannot be used, where `on_error` is `raise`.
    """
    root = expanded(data)
    if not root.is_dir():
        if not root.exists():
            raise ValueError(f"{data}: no such folder")
        raise ValueError(f"{data}: expected a folder with pictures and masks, found a file")
    folders = find(root, split)
    expect_annotations(folders.root, folders.splits, split)
    files = [_PairList(pairs) for pairs in folders.splits.values()]
    chosen = choose({name: lambda f=f: f for name, f in zip(folders.splits, files, strict=True)}, split, str(data))  # type: ignore[misc]
    by_name = {pairs.name(i): pair for pairs in files for i, pair in enumerate(pairs.pairs)}
    complete, problems = [], []
    for name in dict.fromkeys(chosen.name(i) for i in range(len(chosen))):  # Pascal VOC's trainval repeats others
        pair = by_name[name]
        if pair.image and pair.mask:
            complete.append((pair.image, pair.mask))
        else:
            missing = "a mask" if pair.image else "a picture for the mask"
            problems.append(f"{pair.image or pair.mask or pair.key}: expected {missing}, found none")
    if problems and on_error == "raise":
        raise AnnotationError(problems[0])
    for left_out in problems[:REPORTED]:
        logger.warning("skipped %s", left_out)
    if len(problems) > REPORTED:
        logger.warning("skipped %d others of %s for the same reason", len(problems) - REPORTED, data)
    if not complete:
        raise ValueError(
            f"{data}: expected pictures with masks, found none" + (f" ({problems[0]})" if problems else "")
        )
    if reduce_zero_label is None and folders.reduce_zero_label:
        logger.info("%s is laid out as ADE20K: index 0 is taken for void, and the classes begin at 1", data)
    reduce_zero_label = folders.reduce_zero_label if reduce_zero_label is None else reduce_zero_label
    names = _classes(folders, classes, default_classes, reduce_zero_label)
    if len(names) > VOID:
        raise ValueError(f"{data}: expected at most {VOID} classes, as index {VOID} is void, found {len(names)}")
    if check_masks:
        _expect_names_for_all(folders, names, reduce_zero_label)
    source = MaskFileSource(complete, names, reduce_zero_label)
    if on_error == "raise" and (problem := next(bad_pairs(source), None)):
        raise AnnotationError(problem)
    return source


class _PairList:
    """The pairs of a split as `choose` divides and joins them: pictures of one class."""

    def __init__(self, pairs: Sequence[Pair]) -> None:
        self.pairs = list(pairs)
        self.classes = ["pictures"]
        self.labels = [0] * len(self.pairs)

    def __len__(self) -> int:
        return len(self.pairs)

    def image(self, index: int) -> Image.Image:
        return open_image(self.name(index))

    def name(self, index: int) -> str:
        pair = self.pairs[index]
        return pair.image or pair.mask or pair.key

    def key(self, index: int) -> str:
        return self.pairs[index].key.replace(os.sep, "/")


def _classes(
    folders: MaskFolders,
    given: str | Sequence[str] | None,
    otherwise: Sequence[str] | None,
    reduce_zero_label: bool,
) -> list[str]:
    if given is not None:
        return class_names(given, reduce_zero_label)
    if names := find_names(folders.root, reduce_zero_label) or list(folders.classes or ()):
        return names
    known = KNOWN.get(folders.root.resolve().name.lower(), ())
    if otherwise and not known:
        return list(otherwise)
    files = _mask_files(folders)
    largest = max(largest_indices(files), default=-1)
    count = largest + (0 if reduce_zero_label else 1)
    if known and count == len(known):
        logger.info("%s is called like a known data set of as many classes: %s", folders.root, ", ".join(known))
        return list(known)
    if otherwise:
        return list(otherwise)
    if count < 2:
        found = WHITE if largest == 0 else f"none in {len(files)} files" + _damage(files)
        raise ValueError(f"{folders.root}: expected masks with the indices of two or more classes, found {found}")
    logger.info(
        "%s has no file with class names (classes.txt, one per line): the largest index in %d masks makes %d classes",
        folders.root,
        len(files),
        count,
    )
    _tell_a_stray_index(files, count)
    return made_up_names(count)


def _damage(files: Sequence[str]) -> str:
    """What is wrong with the first mask, if it cannot be read."""
    try:
        read_mask(files[0])
    except (ImageError, IndexError) as error:
        return f" ({error})" if files else ""
    return ""


def _mask_files(folders: MaskFolders) -> tuple[str, ...]:
    """Of all splits, in order."""
    return tuple(sorted({pair.mask for pairs in folders.splits.values() for pair in pairs if pair.mask}))


def _expect_names_for_all(folders: MaskFolders, names: Sequence[str], reduce_zero_label: bool) -> None:
    """Look at the first masks for the two commonest mistakes: too few names, and a foreground that is void.

    Raises:
        AnnotationError: most of them have indices beyond the names.
    """
    files = _mask_files(folders)[:SAMPLED]
    largest = largest_indices(files)
    if len(names) == 2 and max(largest, default=-1) == 0:
        logger.warning("%s: the first masks hold %s", folders.root, WHITE)
    first = int(reduce_zero_label)
    last = len(names) - 1 + first
    beyond = [(file, index) for file, index in zip(files, largest, strict=True) if index > last]
    if 2 * len(beyond) > len(files):
        raise AnnotationError(
            f"{beyond[0][0]}: expected class indices from {first} to {last}, as there are names for, and {VOID} for "
            f"void, found {beyond[0][1]}; "
            f"{len(beyond) - 1} others of the first {len(files)} masks have the same problem"
        )


def _tell_a_stray_index(files: Sequence[str], count: int) -> None:
    """Warn where a mask alone makes the number of classes: under 1 % of all, or far from the indices of the others."""
    *others, last = sorted(zip(largest_indices(tuple(files)), files, strict=True))
    second = others[-1][0] if others else last[0]
    if second < last[0] and (len(files) > 100 or second < last[0] - 1):
        logger.warning(
            "%s: of %d masks the only one with index %d, which makes %d classes; the others end at %d: "
            "if that is a mistake, mend it or give the names of the classes",
            last[1],
            len(files),
            last[0],
            count,
            second,
        )
