"""Parquet files in the layout of the hub."""

from __future__ import annotations

import glob
import json
import logging
import re
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from swiftformer.data.cache import cache_folder, cached_path
from swiftformer.data.splits import ALL, USUAL, Splits, usual
from swiftformer.files import atomic_file
from swiftformer.images import ImageError, open_image
from swiftformer.processors import are_forked

logger = logging.getLogger(__name__)

NUMBERS = re.compile(r"[-_.]?\d+(?:-of-\d+)?$")
IMAGE_COLUMNS = ("image", "img", "picture")
LABEL_COLUMNS = ("label", "labels", "fine_label", "class")
MOST_UNUSED = 100  # times as many numbers as classes that have pictures
FEW_ENOUGH = 30_000  # classes, of which the pictures of a split may show few
IN_MEMORY, COPIED = 2 * 2**30, 64 * 2**20  # bytes on disk, of all files; where each loader process has a copy


class ParquetSource:
    """Parquet shards in the layout of the hub: an image column `{bytes, path}` and a label column.

    The encoded pictures of up to 2 GiB of files are held in memory, in Arrow's buffers, which forked loader processes
    share; where they are not forked, of up to 64 MiB. Those of larger ones are unpacked once, to Arrow files in the
    cache folder, and mapped from there: Parquet itself can only be read in groups of many rows, so that a shuffled
    epoch would read everything many times.

    Raises:
        ValueError: no Parquet files, no such columns, rows without a label, or too little space to unpack.
    """

    def __init__(self, files: Sequence[Path]) -> None:
        import pyarrow
        import pyarrow.parquet

        try:
            schema = pyarrow.parquet.read_schema(files[0])
            image = next((name for name in IMAGE_COLUMNS if name in schema.names), None)
            label = next((name for name in LABEL_COLUMNS if name in schema.names), None)
            if image is None or label is None:
                raise ValueError(
                    f"{files[0]}: expected an image column (image, img) and a label column (label), "
                    f"found {', '.join(schema.names)}"
                )
            mapped = sum(file.stat().st_size for file in files) > (IN_MEMORY if are_forked() else COPIED)
            columns = [label] if mapped else [image, label]
            tables = [pyarrow.parquet.read_table(file, columns=columns) for file in files]
            table = pyarrow.concat_tables(tables)
        except (pyarrow.ArrowException, OSError) as error:
            details = next(iter(str(error).splitlines()), type(error).__name__)
            raise ValueError(f"{files[0]}: expected a Parquet file ({details})") from error
        self._files, self._ends = list(files), np.cumsum([len(part) for part in tables])
        self._mapped = _unpack(files, image) if mapped else []
        # In chunks: together they may be longer than Arrow's 32-bit offsets.
        self._images = _map(self._mapped) if mapped else table.column(image)
        # True and False are labels too, but no numbers in torch.
        self.labels: list[int] = [int(v) if isinstance(v, bool) else v for v in table.column(label).to_pylist()]
        names = _class_names(schema.metadata, label)
        check_labels(self.labels, names, str(files[0]))
        self.classes = names or numbered_classes(self.labels, str(files[0]))

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | ({"_images": None} if self._mapped else {})

    def __len__(self) -> int:
        return len(self.labels)

    def image(self, index: int, short_side: int | None = None) -> Image.Image:
        if self._images is None:  # in a spawned process
            self._images = _map(self._mapped)
        return open_entry(self._images[index].as_py(), self.name(index), short_side)

    def name(self, index: int) -> str:
        file = int(np.searchsorted(self._ends, index, side="right"))
        return f"{self._files[file]} row {index - int(self._ends[file - 1] if file else 0)}"

    def key(self, index: int) -> str:
        return str(index)


def _unpack(files: Sequence[Path], column: str) -> list[Path]:
    """The column of each file as an uncompressed Arrow file in the cache folder."""
    import pyarrow
    import pyarrow.parquet
    from filelock import FileLock

    def target(file: Path) -> Path:
        stat = file.stat()
        return cached_path("parquet", file, ".arrow", stat.st_size, stat.st_mtime_ns, column)

    cache = cache_folder() / "parquet"
    cache.mkdir(parents=True, exist_ok=True)
    with FileLock(cache / ".lock"):  # for the processes of one training run
        missing = [file for file in files if not _is_arrow(target(file))]
        if missing:
            needed, free = sum(_unpacked_bytes(file, column) for file in missing), shutil.disk_usage(cache).free
            if needed > free:
                raise ValueError(
                    f"{cache}: expected {needed / 1e9:.1f} GB of free space to unpack Parquet files to, "
                    f"found {free / 1e9:.1f}; SWIFTFORMER_CACHE names another folder"
                )
            logger.info("unpacking %d Parquet files (%.1f GB) to %s, once", len(missing), needed / 1e9, cache)
        for file in missing:
            with atomic_file(target(file)) as temporary, pyarrow.parquet.ParquetFile(file) as table:
                schema = pyarrow.schema([table.schema_arrow.field(column)])
                with pyarrow.ipc.new_file(str(temporary), schema) as writer:
                    for batch in table.iter_batches(batch_size=256, columns=[column]):
                        writer.write_batch(batch)
    return [target(file) for file in files]


def _unpacked_bytes(file: Path, column: str) -> int:
    import pyarrow.parquet

    metadata = pyarrow.parquet.read_metadata(file)
    groups = (metadata.row_group(i) for i in range(metadata.num_row_groups))
    chunks = (group.column(i) for group in groups for i in range(group.num_columns))
    return sum(c.total_uncompressed_size for c in chunks if c.path_in_schema.split(".")[0] == column)


def _is_arrow(file: Path) -> bool:
    import pyarrow

    try:
        with pyarrow.memory_map(str(file)) as mapped:
            pyarrow.ipc.open_file(mapped)
    except (pyarrow.ArrowException, OSError):
        return False
    return True


def _map(files: Sequence[Path]) -> Any:
    import pyarrow

    columns = [pyarrow.ipc.open_file(pyarrow.memory_map(str(file))).read_all().column(0) for file in files]
    return pyarrow.chunked_array([chunk for column in columns for chunk in column.chunks])


def _class_names(metadata: dict[bytes, bytes] | None, label: str) -> list[str] | None:
    try:
        features = json.loads((metadata or {})[b"huggingface"])["info"]["features"]
        return list(features[label]["names"])
    except (KeyError, TypeError, ValueError):
        return None


def check_labels(labels: list[Any], classes: list[str] | None, name: str) -> None:
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


def numbered_classes(labels: Sequence[int], name: str) -> list[str]:
    """The classes of data without names: 0, 1 and so on, to the largest label.

    Raises:
        ValueError: most of them have no picture, as where labels are the numbers of products.
    """
    count, used = max(labels) + 1, len({*labels})
    if count > max(MOST_UNUSED * used, FEW_ENOUGH):
        raise ValueError(f"{name}: expected labels from 0 on, found {used} different ones up to {count - 1}")
    return [str(label) for label in range(count)]


def open_entry(entry: Any, name: str, short_side: int | None = None) -> Image.Image:
    """An image as Parquet and `datasets` store it: encoded bytes, or a dictionary of bytes and path."""
    content = (entry.get("bytes") or entry.get("path")) if isinstance(entry, dict) else entry
    if content is None:
        raise ImageError(f"{name}: expected an image, found an empty cell")
    return open_image(content, name, short_side)


def _has_pictures(file: Path) -> bool:
    import pyarrow.parquet as pq

    try:
        return not {*IMAGE_COLUMNS}.isdisjoint(pq.read_schema(file).names)
    except (OSError, ValueError):
        return False


def find(root: Path, names: Iterable[str]) -> Splits:
    """The splits `NAME-*.parquet` or `NAME.parquet` among `names`, in `root` or `root/data`, and others beside them.

    Where none has such a name and no other folder is there, files that differ in their numbers alone are all there is.
    """
    splits: dict[str, list[Path]] = {}
    others: dict[str, list[Path]] = {}
    for folder in (root, root / "data"):
        left = {file for file in folder.glob("*.parquet") if file.name[0] != "."}
        for name in names:
            files = sorted(folder.glob(f"{glob.escape(name)}-*.parquet")) or sorted(
                folder.glob(f"{glob.escape(name)}.parquet")
            )
            left.difference_update(files)
            if files:
                splits.setdefault(name, files)
        for file in sorted(left):
            name = NUMBERS.sub("", file.stem)
            (splits if usual(name) in USUAL else others).setdefault(usual(name), []).append(file)
    if splits:  # `all` stands for everything, and tables without pictures may lie about
        others = {name: f for name, f in others.items() if name not in ("", ALL) and _has_pictures(f[0])}
    folders = any(entry.is_dir() and entry.name[0] != "." and entry.name != "data" for entry in root.iterdir())
    if splits or (others and not folders):
        splits = {ALL: next(iter(others.values()))} if not splits and len(others) == 1 else others | splits
    return {name: lambda files=files: ParquetSource(files) for name, files in splits.items()}  # type: ignore[misc]
