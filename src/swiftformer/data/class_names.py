"""Names of the classes that the pixels of a mask have: from files, from what a person typed, or made up."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

# Where data sets keep them, a class per line; the last is ADE20K's table.
FILES = (
    "classes.txt",
    "class_names.txt",
    "classnames.txt",
    "labels.txt",
    "label_names.txt",
    "names.txt",
    "objectInfo150.txt",
)
# In the order of the indices, for data sets that come without such a file.
KNOWN: dict[str, tuple[str, ...]] = {
    "camvid": (
        "sky",
        "building",
        "pole",
        "road",
        "pavement",
        "tree",
        "sign",
        "fence",
        "car",
        "pedestrian",
        "bicyclist",
    ),
    "voc": (
        "background",
        "aeroplane",
        "bicycle",
        "bird",
        "boat",
        "bottle",
        "bus",
        "car",
        "cat",
        "chair",
        "cow",
        "diningtable",
        "dog",
        "horse",
        "motorbike",
        "person",
        "pottedplant",
        "sheep",
        "sofa",
        "train",
        "tvmonitor",
    ),
}


def class_names(given: str | Sequence[str]) -> list[str]:
    """The names that somebody gives.

    Args:
        given: the names; or one text: a key of `KNOWN`, the path of a file as `read_names` takes it, or names with
            commas between them.

    Raises:
        ValueError: none, or one of them twice.
    """
    if isinstance(given, str):
        if given in KNOWN:
            return list(KNOWN[given])
        if Path(given).expanduser().is_file():
            return read_names(Path(given).expanduser())
        given = [name.strip() for name in given.split(",")]
    return _checked(list(given), "classes")


def find_names(root: Path) -> list[str] | None:
    """The names in the first of `FILES` that a folder has."""
    file = next((root / name for name in FILES if (root / name).is_file()), None)
    return None if file is None else read_names(file)


def read_names(file: Path) -> list[str]:
    """The names in a text file: one per line, also behind their numbers, or in the column `Name` of a table with tabs.

    Of several names for one thing (`building, edifice`) in a table the first is taken.

    Raises:
        ValueError: no text, no names, or one of them twice.
    """
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file}: expected class names as UTF-8 text ({error})") from None
    lines = [line.rstrip() for line in text.splitlines() if line.strip()]
    header = [cell.strip().lower() for cell in lines[0].split("\t")] if lines else []
    if len(header) > 1 and "name" in header:
        column = header.index("name")
        cells = [line.split("\t")[column:] for line in lines[1:]]
        names = [cell[0].strip() if cell else "" for cell in cells]
        short = [re.split(r"[,;]", name)[0].strip() for name in names]
        return _checked(short if len({*short}) == len(short) else names, str(file))
    names = [line.strip() for line in lines]
    if names[:1] == ["__ignore__"]:  # labelme's name of void, which has no index
        names = names[1:]
    numbered = [re.fullmatch(r"(\d+)[\s:,;]+(.+)", name) for name in names]
    numbers = [int(match[1]) for match in numbered if match]
    if names and numbers in (list(range(len(names))), list(range(1, len(names) + 1))):
        names = [match[2] for match in numbered if match]
    return _checked(names, str(file))


def made_up_names(count: int) -> list[str]:
    """`class_0`, `class_1`, ..."""
    return [f"class_{i}" for i in range(count)]


def _checked(names: list[str], where: str) -> list[str]:
    if not names or not all(names):
        raise ValueError(f"{where}: expected class names, found {'an empty one' if names else 'none'}")
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"{where}: expected a name of its own for every class, found {twice[0]!r} twice")
    return names
