"""WebDataset shards: local tar files of samples `KEY.jpg`, `KEY.cls`, possibly on several disks."""

from __future__ import annotations

import glob
import itertools
import json
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from swiftformer.data.parquet import numbered_classes
from swiftformer.data.shard_index import ShardIndex, index_shard
from swiftformer.data.splits import ALL, SPLIT_ALIASES, Splits
from swiftformer.images import ImageError, open_image

NAMES = tuple(dict.fromkeys(alias for aliases in SPLIT_ALIASES.values() for alias in aliases))
MOST = 100_000  # shards of one pattern
CLASS_FILES, DATASET_INFO = ("classnames.txt", "classes.txt"), "dataset_info.json"
SHARD = re.compile(r"(?:(.*?)[-_.])?\d+(?:-of-\d+)?")


class ShardSource:
    """The pictures in tar files, in the order of the files, each read from its place when it is asked for.

    A sample is the files with one name up to the first dot: a picture, and its label as an ASCII number in `.cls` or as
    `label` or `cls` in `.json`. Class names come from `classnames.txt`, `classes.txt` or `dataset_info.json` in the
    shards' folder or the one above.

    Raises:
        ValueError: a file is no tar, holds no samples, or labels lie beyond the class names.
    """

    def __init__(self, files: Sequence[Path]) -> None:
        self.files = [str(file) for file in files]
        self._shards: list[ShardIndex] = [index_shard(file) for file in files]
        self._ends = np.cumsum([len(shard) for shard in self._shards])
        self.labels: list[int] = np.concatenate([shard.labels for shard in self._shards]).tolist()
        names = _class_names(files[0].parent) or _class_names(files[0].absolute().parent.parent)
        if names and max(self.labels) >= len(names):
            raise ValueError(f"{files[0]}: expected labels from 0 to {len(names) - 1}, found {max(self.labels)}")
        self.classes = names or numbered_classes(self.labels, str(files[0]))

    def __len__(self) -> int:
        return len(self.labels)

    def _find(self, index: int) -> tuple[int, int]:
        index = range(len(self))[index]
        shard = int(np.searchsorted(self._ends, index, side="right"))
        return shard, index - int(self._ends[shard]) + len(self._shards[shard])

    def image(self, index: int, short_side: int | None = None) -> Image.Image:
        shard, row = self._find(index)
        size = int(self._shards[shard].sizes[row])
        try:
            # Opened anew each time: nothing to share between processes, and no limit on the number of shards.
            with Path(self.files[shard]).open("rb") as opened:
                opened.seek(int(self._shards[shard].offsets[row]))
                content = opened.read(size)
        except OSError as error:
            raise ImageError(f"{self.name(index)}: cannot be read ({error.strerror})") from error
        if len(content) < size:
            raise ImageError(f"{self.name(index)}: expected {size} bytes, found {len(content)}")
        return open_image(content, self.name(index), short_side)

    def name(self, index: int) -> str:
        return f"{self.files[self._find(index)[0]]} {self.key(index)}"

    def key(self, index: int) -> str:
        shard, row = self._find(index)
        return bytes(self._shards[shard].keys[row]).decode("utf-8", "surrogateescape")


def _class_names(folder: Path) -> list[str]:
    for name in CLASS_FILES:
        if (folder / name).is_file():
            lines = (folder / name).read_text(encoding="utf-8-sig").splitlines()
            return [line.strip() for line in lines if line.strip()]
    try:
        features: Any = json.loads((folder / DATASET_INFO).read_bytes())["features"]
        return next(
            list(map(str, features[key]["names"])) for key in ("label", "cls") if "names" in features.get(key, ())
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, StopIteration):
        return []


def in_folder(root: Path, names: Sequence[str]) -> list[Path]:
    """The tar files of a folder, of `data` in it, of folders that are called after a split and of those with tar files
    alone.

    Empty where they seem to be archives beside a tree of class folders.
    """
    subfolders = [folder for folder in root.iterdir() if folder.is_dir() and folder.name[0] != "."]
    inside = [folder for folder in subfolders if folder.name in ("data", *names)]
    others = [folder for folder in subfolders if folder not in inside]
    # Several without any of a known name may be anything, such as parts of one split.
    if inside or len(others) == 1:
        inside += [folder for folder in others if _only_shards(folder)]
    files = [file for folder in (root, *inside) for file in folder.glob("*.tar") if file.name[0] != "."]
    # The folder's own name says nothing here: class folders may lie below `train`, too.
    if any(_split_of(file.relative_to(root), names) for file in files):
        return [file for file in files if _split_of(p := file.relative_to(root), names) or _other_split(p)]
    return files if len(inside) == len(subfolders) else []


def _only_shards(folder: Path) -> bool:
    """Whether there are tar files, and nothing else but the names of classes."""
    found = False
    try:
        with os.scandir(folder) as entries:
            for entry in entries:  # the first other file ends it: class folders may be large
                if entry.name.endswith(".tar"):
                    found = True
                elif entry.name[0] != "." and entry.name not in (*CLASS_FILES, DATASET_INFO):
                    return False
    except OSError:
        return False
    return found


def find(files: Sequence[Path], names: Sequence[str] = NAMES) -> Splits:
    """Tar files by the split that their names or folders tell, as in `imagenet1k-train-0000.tar` or `train/0000.tar`.

    Raises:
        ValueError: no files, or some tell a split and some do not.
    """
    groups: dict[str, list[Path]] = {}
    for file in sorted(files, key=lambda file: (file.name, str(file))):
        groups.setdefault(_split_of(file, names) or ALL, []).append(file)
    if len(groups) > 1:
        for file in groups.pop(ALL, []):
            groups.setdefault(_other_split(file) or ALL, []).append(file)
    if ALL in groups and len(groups) > 1:
        raise ValueError(f"{groups[ALL][0]}: expected a split in the name as in those of other shards, found none")
    return {name: lambda group=group: ShardSource(group) for name, group in groups.items()}  # type: ignore[misc]


def _split_of(file: Path, names: Sequence[str]) -> str | None:
    words = [*re.split(r"[-_.]", file.stem.lower()), file.parent.name.lower()]
    return next((word for word in words if word in names), None)


def _other_split(file: Path) -> str | None:
    """What numbered shards are called, as `heldout` of `set-heldout-0000.tar` and of `heldout/0000.tar`."""
    if not (shard := SHARD.fullmatch(file.stem)):
        return None
    name = re.split(r"[-_.]", shard[1])[-1] if shard[1] else file.parent.name
    return name.lower() if name.lower() not in ("", ALL) else None


def is_pattern(text: str) -> bool:
    """Whether a text has what shells expand: braces, asterisks, question marks or brackets."""
    return any(character in text for character in "{*?[")


def expand(pattern: str) -> list[Path]:
    """The tar files that a pattern names, such as `/{disk1,disk2}/train-*.tar` or `/a/train-{0000..0146}.tar`.

    Raises:
        ValueError: a file that braces name is missing, a part matches nothing, or something else than a tar file.
    """
    files: dict[Path, None] = {}
    missing = []
    for text in _braces(pattern):
        found = [Path(text)] if Path(text).exists() else [Path(name) for name in sorted(glob.glob(text))]  # noqa: PTH207
        if not found:
            missing.append(text)
        files.update(dict.fromkeys(found))
    if missing:
        raise ValueError(f"{pattern}: expected tar files, found none at {missing[0]} (and {len(missing) - 1} others)")
    odd = next((file for file in files if file.suffix != ".tar" or not file.is_file()), None)
    if odd is not None:
        raise ValueError(f"{pattern}: expected tar files, found {odd}")
    return list(files)


def _braces(pattern: str) -> list[str]:
    """Expand `{a,b}` and `{08..11}` as bash does, also one in another; the latter keeps leading zeros."""
    start = pattern.find("{")
    if start < 0:
        return [pattern]
    depth, cuts = 0, [start]
    for place in range(start, len(pattern)):
        depth += (pattern[place] == "{") - (pattern[place] == "}")
        if depth == 0 or (depth == 1 and pattern[place] == ","):
            cuts.append(place)
        if depth == 0:
            break
    parts = [pattern[a + 1 : b] for a, b in itertools.pairwise(cuts)]
    numbers = re.fullmatch(r"(\d+)\.\.(\d+)", parts[0]) if len(parts) == 1 else None
    if depth or (len(parts) < 2 and numbers is None):
        raise ValueError(f"{pattern}: expected braces such as {{a,b}} or {{0000..0146}}, found {pattern[start:]}")
    choices = _range(numbers[1], numbers[2]) if numbers else (text for part in parts for text in _braces(part))
    ends = _braces(pattern[cuts[-1] + 1 :])
    texts = list(itertools.islice((pattern[:start] + c + end for c in choices for end in ends), MOST + 1))
    if len(texts) > MOST:
        raise ValueError(f"{pattern}: expected at most {MOST} files, found more")
    return texts


def _range(first: str, last: str) -> Iterator[str]:
    step = 1 if int(first) <= int(last) else -1
    width = max(len(first), len(last)) if "0" in (first[0], last[0]) else 0
    return (f"{number:0{width}d}" for number in range(int(first), int(last) + step, step))
