"""Where the pictures of a folder have their masks: which pairs of files there are, by split."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from swiftformer.data.class_names import KNOWN
from swiftformer.data.folders import content_of, files_below
from swiftformer.data.sources import is_image
from swiftformer.data.splits import ALL, USUAL, usual

# In order of preference.
IMAGE_FOLDERS = ("images", "image", "imgs", "img")
MASK_FOLDERS = ("annotations", "masks", "labels", "annotation", "mask", "label")
# A mask is called like its picture, or with one of these behind the name. JPEG and WebP would change the indices.
MASK_ENDINGS = ("", "_mask", "_label", "_gt")
MASK_SUFFIXES = (".png", ".bmp", ".tif", ".tiff", ".gif")
VOC_FOLDERS = ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation")


@dataclass(frozen=True)
class Pair:
    """A picture and its mask, as paths; None for what is missing, with `key` to tell which it is."""

    key: str
    image: str | None
    mask: str | None


@dataclass(frozen=True)
class MaskFolders:
    """What was recognised.

    Attributes:
        root: the folder that the layout begins in.
        splits: the pairs of each split, by its name in the data; `all` alone where they are not divided.
        reduce_zero_label: index 0 is what belongs to no class, and the classes begin at 1, as in ADE20K.
        classes: the names that go with the layout, where it has some.
    """

    root: Path
    splits: dict[str, list[Pair]] = field(default_factory=dict)
    reduce_zero_label: bool = False
    classes: tuple[str, ...] | None = None

    @property
    def has_pairs(self) -> bool:
        """Whether some picture has a mask; boxes in text files lie in the same folders."""
        return any(pair.image and pair.mask for pairs in self.splits.values() for pair in pairs)


def find(root: Path, split: str | None = None) -> MaskFolders:
    """Recognise the layout of a folder, whose splits have usual names, or one of them that of `split`.

    Raises:
        ValueError: nothing is recognised.
    """
    if found := recognise(root, split):
        return found
    raise ValueError(
        f"{root}: expected folders with pictures and masks, such as images/train and annotations/train, train/images "
        f"and train/masks, or JPEGImages and SegmentationClass; found {content_of(root)}"
    )


def recognise(root: Path, split: str | None = None) -> MaskFolders | None:
    """As `find`, None where nothing is recognised.

    Raises:
        ValueError: several data sets.
    """
    names = USUAL | ({split} if split else set())
    for layout in (_voc, _beside_splits, _below_splits):
        if found := layout(root, names):
            return found
    return None


def _beside_splits(root: Path, names: set[str]) -> MaskFolders | None:
    """`images/SPLIT` and `annotations/SPLIT`, or both without splits."""
    images, masks = _first(root, IMAGE_FOLDERS, is_image), _first(root, MASK_FOLDERS, _is_mask)
    if images is None or masks is None:
        return None
    divided = sorted(d.name for d in images.iterdir() if d.is_dir() and (masks / d.name).is_dir())
    if not names & {*map(usual, divided)}:
        return MaskFolders(root, {ALL: _pairs(root, images, masks)})
    splits = {usual(name): _pairs(root, images / name, masks / name) for name in divided}
    return MaskFolders(root, splits, reduce_zero_label="training" in divided)


def _below_splits(root: Path, names: set[str]) -> MaskFolders | None:
    """`SPLIT/images` and `SPLIT/masks`; where none has a name of a split, all together."""
    splits = {}
    for folder in sorted(entry for entry in root.iterdir() if entry.is_dir()):
        images, masks = _first(folder, IMAGE_FOLDERS, is_image), _first(folder, MASK_FOLDERS, _is_mask)
        if images is not None and masks is not None:
            splits[usual(folder.name)] = _pairs(root, images, masks)
    if splits and not names & {*splits}:
        splits = {ALL: [pair for pairs in splits.values() for pair in pairs]}
    return MaskFolders(root, splits) if splits else None


def _voc(root: Path, names: set[str]) -> MaskFolders | None:
    """Pascal VOC: splits are lists of names. Also the folder that `VOC2012` is in."""
    folders = [root, *sorted(root.glob("VOC*")), *sorted(root.glob("VOCdevkit/VOC*"))]
    found = [folder for folder in folders if _is_voc(folder)]
    if not found:
        return None
    if len(found) > 1:
        raise ValueError(f"{root}: expected one data set, found {', '.join(folder.name for folder in found)}")
    base = found[0]
    images, masks, lists = (base / name for name in VOC_FOLDERS)
    classes = KNOWN["voc"] if base.resolve().name.startswith("VOC20") else None
    files = sorted(lists.glob("*.txt")) if lists.is_dir() else []
    if not files:
        return MaskFolders(base, {ALL: _pairs(base, images, masks)}, classes=classes)
    by_stem, mask_of = _by_stem(images, is_image), _by_stem(masks, _is_mask)
    splits = {}
    for file in files:
        text = file.read_text(encoding="utf-8-sig", errors="replace")
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        stems = [line if line in by_stem or line in mask_of else line.split()[0] for line in lines]
        splits[usual(file.stem)] = [Pair(s, _text(by_stem.get(s)), _text(mask_of.get(s))) for s in stems]
    return MaskFolders(base, splits, classes=classes)


def _is_voc(folder: Path) -> bool:
    return all((folder / name).is_dir() for name in VOC_FOLDERS[:2])


def _first(root: Path, names: Iterable[str], wanted: Callable[[Path], bool]) -> Path | None:
    """The first folder that holds such files; where none does, the first that is there."""
    folders = [root / name for name in names if (root / name).is_dir()]
    holding = (folder for folder in folders if len(folders) == 1 or next(_walk(folder, wanted), None))
    return next(holding, folders[0] if folders else None)


def _pairs(root: Path, images: Path, masks: Path) -> list[Pair]:
    """Every picture with its mask, and the masks that have no picture."""
    mask_of = _by_stem(masks, _is_mask)
    pairs, used = [], set()
    for image in _files(images, is_image):
        path = image.relative_to(images)
        called = [f"{name.as_posix()}{ending}" for name in (path.with_suffix(""), path) for ending in MASK_ENDINGS]
        stem = next((name for name in called if name in mask_of), None)
        used.add(stem)
        pairs.append(Pair(str(image.relative_to(root)), str(image), None if stem is None else str(mask_of[stem])))
    alone = [mask for stem, mask in mask_of.items() if stem not in used]
    return pairs + [Pair(str(mask.relative_to(root)), None, str(mask)) for mask in alone]


def _files(folder: Path, wanted: Callable[[Path], bool]) -> list[Path]:
    """In this folder and those below, without hidden ones."""
    return sorted(_walk(folder, wanted))


def _walk(folder: Path, wanted: Callable[[Path], bool]) -> Iterator[Path]:
    return filter(wanted, files_below(folder))


def _by_stem(folder: Path, wanted: Callable[[Path], bool]) -> dict[str, Path]:
    return {file.relative_to(folder).with_suffix("").as_posix(): file for file in _files(folder, wanted)}


def _is_mask(file: Path) -> bool:
    return file.suffix.lower() in MASK_SUFFIXES


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)
