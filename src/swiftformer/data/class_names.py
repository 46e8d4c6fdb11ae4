"""Names of classes: from files, from what a person typed, or made up; and what messages say of them."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from itertools import pairwise
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
NUMBERS = ("idx", "index", "id", "number")  # the column of a table that numbers the classes
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


def class_names(given: str | Sequence[str], reduce_zero_label: bool = False) -> list[str]:
    """The names that somebody gives.

    Args:
        given: the names; or one text: a key of `KNOWN`, the path of a file as `read_names` takes it, or names with
            commas between them.
        reduce_zero_label: the classes begin at 1 in the masks.

    Raises:
        ValueError: none, one of them twice, or the path of a file that is not there.
    """
    if isinstance(given, str):
        if given in KNOWN:
            return list(KNOWN[given])
        path = os.path.expanduser(given)  # noqa: PTH111 - those of pathlib raise for a long list of names
        if os.path.isfile(path):  # noqa: PTH113
            return read_names(Path(path), reduce_zero_label)
        is_path = "," not in given and (os.sep in given or "/" in given)
        if is_path or given.lower().endswith(".txt"):
            found = "a folder" if os.path.isdir(path) else "no such file"  # noqa: PTH112
            raise ValueError(f"{given}: expected class names or a file with them, found {found}")
        given = [name.strip() for name in given.split(",")]
    return _checked(list(given), "classes")


def find_names(root: Path, reduce_zero_label: bool = False) -> list[str] | None:
    """The names in the first of `FILES` that a folder has."""
    file = next((root / name for name in FILES if (root / name).is_file()), None)
    return None if file is None else read_names(file, reduce_zero_label)


def read_names(file: Path, reduce_zero_label: bool = False) -> list[str]:
    """The names in a text file: one per line, also behind their numbers, or in the column `Name` of a table with tabs.

    Numbers are the indices in the masks, in order. Of several names for one thing (`building, edifice`) in a table the
    first is taken.

    Args:
        reduce_zero_label: the classes begin at 1 in the masks, and so have the numbers to; as in `objectInfo150.txt`.

    Raises:
        ValueError: no text, no names, one of them twice, or numbers that begin elsewhere or leave some out.
    """
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file}: expected class names as UTF-8 text ({error})") from None
    lines = [line.rstrip() for line in text.splitlines() if line.strip()]
    header = [cell.strip().lower() for cell in lines[0].split("\t")] if lines else []
    first = 1 if reduce_zero_label or file.name == FILES[-1] else 0
    if len(header) > 1 and "name" in header:
        rows = [line.split("\t") for line in lines[1:]]
        names = _column(rows, header.index("name"))
        short = [re.split(r"[,;]", name)[0].strip() for name in names]
        names = _checked(short if len({*short}) == len(short) else names, str(file))
        numbers = [_column(rows, header.index(column)) for column in NUMBERS if column in header]
        if numbers and all(number.isdecimal() for number in numbers[0]):
            _expect_indices([int(number) for number in numbers[0]], first, file)
        return names
    names = [line.strip() for line in lines]
    if names[:1] == ["__ignore__"]:  # labelme's name of void, which has no index
        names = names[1:]
    matches = [match for name in names if (match := re.fullmatch(r"(\d+)[\s:,;]+(.+)", name))]
    if matches and len(matches) == len(names) and int(matches[0][1]) < 2:  # not "3 wheeler", "4 wheeler"
        _expect_indices([int(match[1]) for match in matches], first, file)
        names = [match[2] for match in matches]
    return _checked(names, str(file))


def made_up_names(count: int) -> list[str]:
    """`class_0`, `class_1`, ..."""
    return [f"class_{i}" for i in range(count)]


def shortened(names: Sequence[str]) -> str:
    """The first five names, for a message."""
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")


def differences(names: Sequence[str], others: Sequence[str], here: str, there: str) -> str:
    """How two lists of classes differ, for a message; `here` and `there` are what they are of."""
    mine, theirs = ([name for name in a if name not in {*b}] for a, b in ((names, others), (others, names)))
    only = [
        f"{len(some)} only in {where} ({shortened(some)})" for some, where in ((mine, here), (theirs, there)) if some
    ]
    return " and ".join(only) or "the same names in another order"


def _column(rows: Sequence[Sequence[str]], column: int) -> list[str]:
    """A cell of every row, empty where the row is too short."""
    return [row[column].strip() if column < len(row) else "" for row in rows]


def _expect_indices(numbers: list[int], first: int, file: Path) -> None:
    """Numbers that do not say which index a class has in the masks would be taken for others than they mean."""
    if numbers[0] != first:
        why = "as 0 is void in the masks (reduce_zero_label)" if first else "unless 0 is void (reduce_zero_label)"
        raise ValueError(f"{file}: expected numbers that begin at {first}, {why}, found {numbers[0]}")
    for before, number in pairwise(numbers):
        if number != before + 1:
            raise ValueError(f"{file}: expected numbers that count up, found {number} after {before}")


def _checked(names: list[str], where: str) -> list[str]:
    if not names or not all(names):
        raise ValueError(f"{where}: expected class names, found {'an empty one' if names else 'none'}")
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"{where}: expected a name of its own for every class, found {twice[0]!r} twice")
    return names
