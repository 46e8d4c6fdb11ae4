"""CIFAR-10 and CIFAR-100 as their authors distribute them, in the binary and the Python version.

The formats are described at https://www.cs.toronto.edu/~kriz/cifar.html.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from swiftformer.data.splits import Splits
from swiftformer.images import open_image

PIXELS = 3 * 32 * 32
BATCHES = {"train": [f"data_batch_{i}" for i in range(1, 6)], "test": ["test_batch"]}
# What a pickled array consists of, by the module names of NumPy 1 and 2. `_codecs.encode` makes bytes in old protocols.
ALLOWED: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    **{(f"numpy.{core}.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0] for core in ("core", "_core")},
    **{(f"numpy.{core}.numeric", "_frombuffer"): np.empty(0).__reduce_ex__(5)[0] for core in ("core", "_core")},
    ("_codecs", "encode"): lambda text, encoding: text.encode("latin1"),
}


class CifarSource:
    """Pictures `(N, 3, 32, 32)` uint8 with their labels."""

    def __init__(self, pixels: np.ndarray, labels: Sequence[int], classes: list[str], where: Path) -> None:
        if not len(labels):
            raise ValueError(f"{where}: expected labelled images, found none")
        if max(labels) >= len(classes) or min(labels) < 0:
            raise ValueError(
                f"{where}: expected labels from 0 to {len(classes) - 1}, found {min(labels)}, {max(labels)}"
            )
        self.pixels = pixels
        self.labels = [int(label) for label in labels]
        self.classes = classes
        self._where = str(where)

    def __len__(self) -> int:
        return len(self.labels)

    def image(self, index: int, short_side: int | None = None) -> Image.Image:
        return open_image(self.pixels[index], self.name(index), short_side)

    def name(self, index: int) -> str:
        return f"{self._where} picture {index}"

    def key(self, index: int) -> str:
        return str(index)


def find(root: Path) -> Splits:
    """The splits `train` and `test` of a folder `cifar-10-batches-bin`, `-py`, `cifar-100-binary` or `-python`."""

    def has(*names: str) -> bool:
        return all((root / name).is_file() for name in names)

    if has("batches.meta.txt"):
        read = _binary_10
    elif has("fine_label_names.txt"):
        read = _binary_100
    elif has("batches.meta"):
        read = _python_10
    elif has("meta", "train", "test"):
        read = _python_100
    else:
        return {}
    return {split: lambda split=split: read(root, split) for split in BATCHES}  # type: ignore[misc]


def _binary_10(root: Path, split: str) -> CifarSource:
    records = np.concatenate([_records(root / f"{name}.bin", 1) for name in BATCHES[split]])
    return _binary(records, _lines(root / "batches.meta.txt"), root / split)


def _binary_100(root: Path, split: str) -> CifarSource:
    records = _records(root / f"{split}.bin", 2)  # the coarse label, then the fine one
    return _binary(records[:, 1:], _lines(root / "fine_label_names.txt"), root / split)


def _binary(records: np.ndarray, classes: list[str], where: Path) -> CifarSource:
    return CifarSource(records[:, 1:].reshape(-1, 3, 32, 32), records[:, 0].tolist(), classes, where)


def _records(file: Path, labels: int) -> np.ndarray:
    content = np.frombuffer(_read(file), dtype=np.uint8)
    length = labels + PIXELS
    if content.size == 0 or content.size % length:
        raise ValueError(f"{file}: expected records of {length} bytes, found {content.size} bytes")
    return content.reshape(-1, length)


def _lines(file: Path) -> list[str]:
    lines = _read(file).decode("utf-8", "replace").splitlines()
    return [line.strip() for line in lines if line.strip()]


def _python_10(root: Path, split: str) -> CifarSource:
    classes = _unpickle(root / "batches.meta", "label_names")["label_names"]
    batches = [_batch(root / name, "labels") for name in BATCHES[split]]
    labels = [label for _, batch in batches for label in batch]
    return CifarSource(np.concatenate([pixels for pixels, _ in batches]), labels, list(classes), root / split)


def _python_100(root: Path, split: str) -> CifarSource:
    classes = _unpickle(root / "meta", "fine_label_names")["fine_label_names"]
    pixels, labels = _batch(root / split, "fine_labels")
    return CifarSource(pixels, labels, list(classes), root / split)


def _batch(file: Path, key: str) -> tuple[np.ndarray, list[int]]:
    batch = _unpickle(file, "data", key)
    data, labels = batch["data"], batch[key]
    if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.shape != (len(labels), PIXELS):
        found = f"{data.dtype} {data.shape}" if isinstance(data, np.ndarray) else type(data).__name__
        raise ValueError(f"{file}: expected uint8 pixels of shape ({len(labels)}, {PIXELS}), found {found}")
    return data.reshape(-1, 3, 32, 32), labels


class _ArrayUnpickler(pickle.Unpickler):
    """Reads plain containers and arrays, and nothing that could run code."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in ALLOWED:
            raise pickle.UnpicklingError(f"refused {module}.{name}")
        return ALLOWED[module, name]


def _unpickle(file: Path, *keys: str) -> dict[str, Any]:
    """The dictionary in a pickle; its strings are those of Python 2."""
    content = io.BytesIO(_read(file))
    try:
        found = _ArrayUnpickler(content, encoding="latin1").load()
    except Exception as error:  # damaged pickles raise anything
        raise ValueError(f"{file}: expected a pickle of arrays and plain containers ({error})") from error
    if not isinstance(found, dict) or not all(isinstance(found.get(key), (list, np.ndarray)) for key in keys):
        raise ValueError(f"{file}: expected a pickled dictionary with lists {', '.join(keys)}, found none")
    return found


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except FileNotFoundError:
        raise ValueError(f"{file}: expected this file of CIFAR, found none") from None
