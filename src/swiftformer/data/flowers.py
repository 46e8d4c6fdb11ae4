"""Flowers-102 as its authors distribute it and torchvision unpacks it: `jpg/`, `imagelabels.mat`, `setid.mat`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from swiftformer.data.image_folder import FileSource
from swiftformer.data.splits import Splits

SPLIT_IDS = {"train": "trnid", "val": "valid", "test": "tstid"}


def find(root: Path) -> Splits:
    """The three splits of a folder `flowers-102`."""
    if not ((root / "imagelabels.mat").is_file() and (root / "setid.mat").is_file()):
        return {}
    return {split: lambda split=split: _open(root, split) for split in SPLIT_IDS}  # type: ignore[misc]


def _open(root: Path, split: str) -> FileSource:
    labels = _numbers(root / "imagelabels.mat", "labels")
    ids = _numbers(root / "setid.mat", SPLIT_IDS[split])
    classes = _classes(max(labels))
    if min(labels) < 1 or min(ids) < 1 or max(ids) > len(labels):
        raise ValueError(f"{root}: expected a label from 1 for each picture, found {len(labels)} for {max(ids)}")
    files = [f"jpg/image_{number:05d}.jpg" for number in ids]
    return FileSource(root, files, [labels[number - 1] - 1 for number in ids], classes)


def _classes(count: int) -> list[str]:
    from torchvision.datasets import Flowers102

    names = list(getattr(Flowers102, "classes", ()))  # torchvision before 0.22 has none
    return names if len(names) >= count else [str(i) for i in range(1, max(count, 102) + 1)]


def _numbers(file: Path, variable: str) -> list[int]:
    try:
        from scipy.io import loadmat
    except ImportError:
        raise ValueError(
            f"{file}: reading it needs the scipy library (pip install 'swiftformer[flowers]'), found none"
        ) from None
    try:
        found: Any = loadmat(file, variable_names=[variable])[variable]
    except Exception as error:  # damaged files raise anything
        raise ValueError(f"{file}: expected a MATLAB file with {variable} ({error})") from error
    if not isinstance(found, np.ndarray) or found.dtype.kind not in "uif" or not found.size:
        raise ValueError(f"{file}: expected numbers in {variable}, found none")
    return [int(number) for number in found.ravel()]
