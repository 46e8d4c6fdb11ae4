"""COCO's JSON files: which splits a folder has of them, and what is in them."""

from __future__ import annotations

import json
import math
import os
import re
from functools import partial
from pathlib import Path
from typing import Any

from swiftformer.data.dense_splits import split_of
from swiftformer.data.detection_checks import Problems, fit
from swiftformer.data.detection_splits import Openers, by_split
from swiftformer.data.detection_table import Table, TableBuilder, join
from swiftformer.data.object_masks import check_size, pack, whole_number
from swiftformer.data.orientation import upright_size
from swiftformer.data.splits import ALL
from swiftformer.images import ImageError

FOLDERS = ("annotations", "Annotations", ".")  # where the JSON files are
INSIDE = ("_annotations.coco.json", "annotations.json", "instances.json")  # in the folder of a split
KEYS = ("images", "annotations", "categories")
OTHER_KINDS = ("captions", "person_keypoints", "panoptic", "stuff", "image_info", "unlabeled")  # of COCO's files


def find(root: Path, names: set[str], masks: bool, problems: Problems) -> Openers:
    """The splits of a folder, or of one JSON file; none where it has no such files.

    Args:
        names: of splits, the usual ones and the one that is asked for.

    Raises:
        ValueError: several files for one split.
    """
    if root.is_file():
        if root.suffix.lower() != ".json":
            return {}
        base = root.parent.parent if root.parent.name in FOLDERS else root.parent
        return {ALL: partial(read, root, base, _words(root.stem), masks, problems)}
    for folder in (root / name for name in FOLDERS):
        files = [file for file in sorted(folder.glob("*.json")) if file.name[0] != "."]
        chosen = [file for file in files if file.stem.startswith("instances")] or [
            file for file in files if not file.stem.startswith(OTHER_KINDS)
        ]
        words = {file: word for file in chosen if (word := _word(file.stem, names))}
        if folder == root:  # other JSON files are likely to lie there
            chosen = [file for file in chosen if file in words or file.stem.startswith("instances_")]
        bare = {file: file.stem.removeprefix("instances_") for file in chosen if file.stem.startswith("instances_")}
        bare = {file: name for file, name in bare.items() if name != ALL}  # beside splits, all of them once more
        if words or len(bare) == len(chosen) > 1:
            found = by_split(bare | words, folder)
            return {n: partial(read, file, root, _words(file.stem), masks, problems) for n, file in found.items()}
        if len(chosen) == 1:
            return {ALL: partial(read, chosen[0], root, _words(chosen[0].stem), masks, problems)}
        if chosen:
            found_names = ", ".join(file.name for file in chosen[:5])
            raise ValueError(f"{folder}: expected files named instances_SPLIT.json, found {found_names}")
    inside = {file: file.parent.name for name in INSIDE for file in sorted(root.glob(f"*/{name}"))}
    if any(split_of(name) in names for name in inside.values()):
        usual = {f: name for f, name in inside.items() if split_of(name) in names}
        others = {f: name for f, name in inside.items() if f.name == INSIDE[0] and name[0] != "." and name != ALL}
        found = by_split(others | usual, root)
        return {n: partial(read, file, root, [inside[file]], masks, problems) for n, file in found.items()}
    alone = next((root / name for name in INSIDE if (root / name).is_file()), None)
    if alone is not None:
        return {ALL: partial(read, alone, root, [], masks, problems)}
    unusual = {f: name for f, name in inside.items() if f.name == INSIDE[0] and name[0] != "."}
    return {ALL: partial(_together, unusual, root, masks, problems)} if unusual else {}


def is_coco(file: Path) -> bool:
    """Whether a JSON file has the lists that COCO's have. All of it is read."""
    try:
        content = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(content, dict) and all(isinstance(content.get(key), list) for key in KEYS)


def _words(stem: str) -> list[str]:
    """The ends of a file's name, the longest first: `held_out` and `out` of `instances_held_out`; then all of it."""
    bare = stem.removeprefix("instances_")
    ends = [bare[place:] for place in (0, *(match.end() for match in re.finditer(r"[_.]", bare)))]
    return [word for word in dict.fromkeys([*ends, stem]) if word]


def _word(stem: str, names: set[str]) -> str | None:
    """What a file's name says of the split, as in `instances_train2017`."""
    return next((word for word in _words(stem) if word in names or split_of(word) in names), None)


def _together(files: dict[Path, str], root: Path, masks: bool, problems: Problems) -> Table:
    """The pictures of several files, each in a folder of this name."""
    return join([read(file, root, [name], masks, problems) for file, name in files.items()], str(root))


def read(file: Path, root: Path, split: list[str], masks: bool, problems: Problems) -> Table:
    """The pictures and annotations of a JSON file.

    Args:
        root: folder of the data set.
        split: names of the folders that the pictures may be in, if there are any.
        masks: keep the masks.

    Raises:
        ValueError: no such JSON.
    """
    content = _load(file, masks)
    ids, names = _categories(content["categories"], file)
    label_of = {category: label for label, category in enumerate(ids)}
    builder = TableBuilder(masks)
    folders = _holding(_folders(file, root, split), root, content["images"], file)
    index_of = _pictures(builder, content["images"], file, folders, problems)
    for number, entry in enumerate(content["annotations"]):
        try:
            problem, what = _annotate(builder, entry, index_of, label_of), "clipped"
        except ValueError as error:
            problem, what = str(error), "skipped"
        if problem:
            found = entry.get("id") if isinstance(entry, dict) else None
            found = f"number {number + 1}" if found is None else found
            problems.report(f"{file}: annotation {found}: {problem}", what)
    known = [image for image, index in index_of.items() if index is not None]
    whole = [int(image) for image in known if whole_number(image) >= 0]
    return builder.table(names, ids, whole if len(whole) == len(known) else None)


def _load(file: Path, masks: bool) -> dict[str, Any]:
    """The JSON, with `segmentation` packed (an error in its place where it is wrong), or left out."""

    def shrink(entry: dict[str, Any]) -> dict[str, Any]:
        # While the file is parsed: the polygons of COCO would otherwise take gigabytes.
        if "segmentation" in entry:
            segmentation = entry.pop("segmentation")
            if masks:
                try:
                    entry["segmentation"] = pack(segmentation)
                except ValueError as error:
                    entry["segmentation"] = error
        return entry

    try:
        content = json.loads(file.read_bytes(), object_hook=shrink)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file}: expected JSON, found damage ({error})") from None
    if not isinstance(content, dict) or not all(isinstance(content.get(key), list) for key in KEYS):
        found = ", ".join(map(str, list(content)[:5])) if isinstance(content, dict) else type(content).__name__
        raise ValueError(
            f"{file}: expected COCO's lists of images, annotations and categories, found {found or 'none'}"
        )
    return content


def _categories(entries: list[Any], file: Path) -> tuple[list[int], list[str]]:
    try:
        found = sorted((int(entry["id"]), str(entry["name"])) for entry in entries)
    except (KeyError, TypeError, ValueError):
        raise ValueError(f"{file}: expected categories with an id and a name, found others") from None
    ids, names = [pair[0] for pair in found], [pair[1] for pair in found]
    if not names or len({*ids}) < len(ids) or len({*names}) < len(names):
        twice = next((name for pair in found for name in pair if [*ids, *names].count(name) > 1), "none")
        raise ValueError(f"{file}: expected categories with ids and names of their own, found {twice} repeatedly")
    return ids, names


def _folders(file: Path, root: Path, split: list[str]) -> list[str]:
    """Where the pictures may be, in order of preference."""
    words = list(dict.fromkeys(name for word in split for name in (word, split_of(word))))
    below = [part for word in words for part in (f"images/{word}", word, f"{word}/images", f"images/{word}/images")]
    folders = [root / part for part in [*below, "images", "."]] + [file.parent, file.parent / "images"]
    return list(dict.fromkeys(str(folder) for folder in folders if folder.is_dir()))


def _with_slashes(name: str, folders: list[str]) -> str:
    """What Windows wrote as `train\\a.jpg`, unless a file is called so."""
    if "\\" not in name or any(_is_file(folder, name) for folder in folders):
        return name
    return name.replace("\\", "/")


def _is_file(folder: str, name: str) -> bool:
    """Also of folders that may not be read, and of names that are too long."""
    return os.path.isfile(os.path.join(folder, name))  # noqa: PTH113, PTH118


def _holding(folders: list[str], root: Path, entries: list[Any], file: Path) -> list[str]:
    """These folders; where none of them has any of the first pictures, also the others of the data set.

    Raises:
        ValueError: several of those have pictures of the same name, of which one is meant.
    """
    named = (entry.get("file_name") for entry in entries[:20] if isinstance(entry, dict))
    names = [_with_slashes(name, folders) for name in named if isinstance(name, str)]
    if any(_is_file(folder, name) for folder in folders for name in names):
        return folders
    below = [path for base in (root / "images", root) if base.is_dir() for path in sorted(base.iterdir())]
    others = {path.resolve(): str(path) for path in below if path.is_dir() and path.name[0] != "."}
    for name in names:
        if len(having := [folder for folder in others.values() if _is_file(folder, name)]) > 1:
            raise ValueError(f"{file}: expected {name} in one folder, found it in {' and '.join(having)}")
    return [*folders, *others.values()]


def _pictures(
    builder: TableBuilder, entries: list[Any], file: Path, folders: list[str], problems: Problems
) -> dict[Any, tuple[int, int, int] | None]:
    """Of each image id the index, width and height; None where the picture is left out."""
    index_of: dict[Any, tuple[int, int, int] | None] = {}
    for number, entry in enumerate(entries):
        try:
            image, name = entry["id"], entry["file_name"]
            if image in index_of:
                raise ValueError(f"expected an id of its own, found {image} again")
            index_of[image] = None
            name = _with_slashes(name, folders)
            path = next((os.path.join(folder, name) for folder in folders if _is_file(folder, name)), None)  # noqa: PTH118
            if path is None:
                looked = dict.fromkeys(map(os.path.normpath, folders[:4]))
                raise ValueError(f"expected its file in {', '.join(looked)}, found none")
            size = whole_number(entry.get("width")), whole_number(entry.get("height"))
            if min(size) < 1:
                size = upright_size(path)
            index_of[image] = (builder.picture(path, str(name), *size), *size)
            continue
        except (KeyError, TypeError, AttributeError):
            problems.report(f"{file}: image number {number + 1}: expected an id and a file_name, found {entry!s:.80}")
        except ImageError as error:
            problems.report(str(error))
        except ValueError as error:
            problems.report(f"{file}: image {name}: {error}")
        builder.left_out += 1
    return index_of


def _annotate(
    builder: TableBuilder,
    entry: Any,
    index_of: dict[Any, tuple[int, int, int] | None],
    label_of: dict[int, int],
) -> str | None:
    """What was wrong with an annotation that was taken after all. Raises ValueError where it cannot be used."""
    try:
        image, category = entry["image_id"], entry["category_id"]
        box, crowd, area = entry["bbox"], bool(entry.get("iscrowd")), entry.get("area")
        known, label = image in index_of, label_of.get(category)
    except (KeyError, TypeError, AttributeError):
        raise ValueError(f"expected an image_id, a category_id and a bbox, found {entry!s:.80}") from None
    if not known:
        raise ValueError(f"expected the id of an image, found {image}")
    if label is None:
        raise ValueError(f"expected the id of a category, found {category}")
    place = index_of[image]
    if place is None:  # its picture was reported
        return None
    index, width, height = place
    try:
        left, top, across, down = map(float, box)
    except (TypeError, ValueError):
        raise ValueError(f"expected a bbox of four numbers, found {box!s:.80}") from None
    within, clipped = fit((left, top, left + across, top + down), width, height)
    segment = entry.get("segmentation", b"")
    if isinstance(segment, ValueError):
        raise segment
    check_size(segment, width, height)
    said = isinstance(area, (int, float)) and area > 0 and math.isfinite(area)
    builder.annotation(index, within, label, crowd, float(area) if said else math.nan, segment)
    return clipped
