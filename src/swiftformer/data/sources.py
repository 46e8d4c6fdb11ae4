"""Where labelled images come from: ImageFolder trees, Parquet files in the hub layout, `datasets` names."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from PIL import Image

from swiftformer.image_processing import ImageError, open_image

# What people call the split that is not trained on, in order of preference.
SPLIT_ALIASES: dict[str, tuple[str, ...]] = {
    "train": ("train", "training"),
    "val": ("val", "validation", "valid", "dev", "test", "testing"),
    "test": ("test", "testing", "val", "validation", "valid"),
}
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".jp2", ".avif")


def is_image(file: Path) -> bool:
    """Whether a file in a folder is taken for a picture, by its name. Hidden files (macOS's `._a.jpg`) are not."""
    return file.suffix.lower() in IMAGE_SUFFIXES and not file.name.startswith(".")


class Source(Protocol):
    """Labelled images by index. `classes` are the class names in the order of the labels."""

    classes: list[str]
    labels: list[int]

    def __len__(self) -> int: ...

    def image(self, index: int) -> Image.Image:
        """The RGB image. Raises ImageError where it cannot be read."""
        ...

    def name(self, index: int) -> str:
        """What to call the image in messages."""
        ...


class ImageFolderSource:
    """`ROOT/CLASS/**/*.jpg`, classes in alphabetical order."""

    def __init__(self, root: Path) -> None:
        self.classes = sorted(folder.name for folder in root.iterdir() if folder.is_dir() and folder.name[0] != ".")
        self.files: list[Path] = []
        self.labels: list[int] = []
        for label, name in enumerate(self.classes):
            for file in sorted((root / name).rglob("*")):
                if is_image(file):
                    self.files.append(file)
                    self.labels.append(label)
        if not self.files:
            raise ValueError(f"{root}: expected one folder of images per class, found none")

    def __len__(self) -> int:
        return len(self.files)

    def image(self, index: int) -> Image.Image:
        return open_image(self.files[index])

    def name(self, index: int) -> str:
        return str(self.files[index])


class ParquetSource:
    """Parquet shards in the layout of the hub: an image column `{bytes, path}` and a label column.

    The encoded pictures are held in memory, in Arrow's buffers, which loader processes share.
    """

    def __init__(self, files: Sequence[Path]) -> None:
        import pyarrow
        import pyarrow.parquet

        try:
            table = pyarrow.concat_tables([pyarrow.parquet.read_table(file) for file in files])
        except pyarrow.ArrowInvalid as error:
            raise ValueError(f"{files[0]}: expected a Parquet file ({error})") from error
        image = next((n for n in ("image", "img", "picture") if n in table.column_names), None)
        label = next((n for n in ("label", "labels", "fine_label", "class") if n in table.column_names), None)
        if image is None or label is None:
            raise ValueError(
                f"{files[0]}: expected an image column (image, img) and a label column (label), "
                f"found {', '.join(table.column_names)}"
            )
        self._images = table.column(image)  # in chunks: together they may be longer than Arrow's 32-bit offsets
        self.labels: list[int] = table.column(label).to_pylist()
        names = _class_names(table.schema.metadata, label)
        _check_labels(self.labels, names, str(files[0]))
        self.classes = names or [str(i) for i in range(max(self.labels) + 1)]
        self._file = files[0]

    def __len__(self) -> int:
        return len(self.labels)

    def image(self, index: int) -> Image.Image:
        return _open_entry(self._images[index].as_py(), self.name(index))

    def name(self, index: int) -> str:
        return f"{self._file} row {index}"


def _class_names(metadata: dict[bytes, bytes] | None, label: str) -> list[str] | None:
    try:
        features = json.loads((metadata or {})[b"huggingface"])["info"]["features"]
        return list(features[label]["names"])
    except (KeyError, TypeError, ValueError):
        return None


def _check_labels(labels: list[Any], classes: list[str] | None, name: str) -> None:
    """Raise ValueError for a split without rows, without labels, or with labels that name no class."""
    if not labels:
        raise ValueError(f"{name}: expected labelled images, found none")
    odd = next((label for label in labels if label is not None and not isinstance(label, int)), None)
    if odd is not None:
        raise ValueError(f"{name}: expected whole numbers as labels, found {odd!r}")
    missing = sum(label is None or label < 0 for label in labels)
    if missing:
        raise ValueError(f"{name}: expected a label for every image, found {missing} without one")
    if classes is not None and max(labels) >= len(classes):
        raise ValueError(f"{name}: expected labels from 0 to {len(classes) - 1}, found {max(labels)}")


def _open_entry(entry: Any, name: str) -> Image.Image:
    """An image as Parquet and `datasets` store it: encoded bytes, or a dictionary of bytes and path."""
    content = (entry.get("bytes") or entry.get("path")) if isinstance(entry, dict) else entry
    if content is None:
        raise ImageError(f"{name}: expected an image, found an empty cell")
    return open_image(content, name)


class DatasetsSource:
    """A split of a data set that the `datasets` library loads by name or path."""

    def __init__(self, dataset: Any, name: str) -> None:
        import datasets

        features = dataset.features
        image = next((n for n, f in features.items() if isinstance(f, datasets.Image)), None)
        label = next((n for n, f in features.items() if isinstance(f, datasets.ClassLabel)), None)
        if image is None or label is None:
            raise ValueError(f"{name}: expected an Image and a ClassLabel column, found {features}")
        self._images = dataset.cast_column(image, datasets.Image(decode=False)).select_columns([image])
        self._column, self._name = image, name
        self.labels: list[int] = list(dataset[label])
        self.classes = list(features[label].names)
        _check_labels(self.labels, self.classes, name)

    def __len__(self) -> int:
        return len(self.labels)

    def image(self, index: int) -> Image.Image:
        return _open_entry(self._images[index][self._column], self.name(index))

    def name(self, index: int) -> str:
        return f"{self._name} row {index}"


def open_source(data: str | Path, split: str) -> Source:
    """Find the images of a split.

    Args:
        data: a folder with `train/` and `val/` trees of one folder per class; a folder of Parquet shards named
            `SPLIT-*.parquet`; one Parquet file; a tree of one folder per class (any split); or a name for
            `datasets.load_dataset`.
        split: `train`, `val` or `test`; other usual names of the same thing are found as well.

    Raises:
        ValueError: nothing is recognised there, or the split is missing.
    """
    path = Path(data).expanduser()
    if path.is_file():
        return ParquetSource([path])
    if not path.exists():
        return _from_datasets(str(data), split)
    aliases = SPLIT_ALIASES.get(split, (split,))
    for folder in (path, path / "data"):
        for alias in aliases:
            if shards := sorted(folder.glob(f"{alias}-*.parquet")) or sorted(folder.glob(f"{alias}.parquet")):
                return ParquetSource(shards)
    for alias in aliases:
        if (path / alias).is_dir():
            return ImageFolderSource(path / alias)
    splits = sorted({a for names in SPLIT_ALIASES.values() for a in names if (path / a).is_dir()})
    splits += sorted(file.name for file in path.glob("**/*.parquet"))[:4]
    if splits:
        raise ValueError(f"{path}: expected a split named one of {', '.join(aliases)}, found {', '.join(splits)}")
    return ImageFolderSource(path)


def _from_datasets(name: str, split: str) -> Source:
    if name.startswith((".", "/", "~")):
        raise ValueError(f"{name}: no such file or folder")
    try:
        import datasets
    except ImportError:
        raise ValueError(
            f"{name}: no such folder; loading it by name needs the datasets library (pip install datasets)"
        ) from None
    try:
        available = datasets.get_dataset_split_names(name)
        found = next((s for s in SPLIT_ALIASES.get(split, (split,)) if s in available), None)
        if found is not None:
            return DatasetsSource(datasets.load_dataset(name, split=found), f"{name} {found}")
    except ValueError:
        raise
    except Exception as error:
        raise ValueError(
            f"{name}: no such folder, and the datasets library cannot load it ({type(error).__name__}: "
            f"{str(error).splitlines()[0] if str(error) else 'no details'})"
        ) from error
    raise ValueError(f"{name}: expected a split like {split}, found {', '.join(available)}")
