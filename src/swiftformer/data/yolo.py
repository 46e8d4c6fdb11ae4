"""YOLO's text files: a row for each object, its class and its box or polygon in shares of the picture."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Iterable, Iterator
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from swiftformer.data.class_names import find_names
from swiftformer.data.dense_splits import split_of
from swiftformer.data.detection_checks import Box, Problems, fit
from swiftformer.data.detection_splits import Openers, by_split
from swiftformer.data.detection_table import Table, TableBuilder
from swiftformer.data.folders import files_below
from swiftformer.data.object_masks import check_size, pack_polygons
from swiftformer.data.orientation import upright_size
from swiftformer.data.sources import is_image
from swiftformer.data.splits import ALL, SYNONYMS
from swiftformer.images import ImageError

logger = logging.getLogger(__name__)

TABLES = ("data.yaml", "data.yml", "dataset.yaml", "dataset.yml")
ENTRIES = ("train", "val", "test")  # of the table, with folders of pictures
NAME_FILES = ("classes.txt", "labels.txt", "names.txt")  # may lie among the label files, and are none


def find(root: Path, names: set[str], masks: bool, problems: Problems) -> Openers:
    """The splits of a folder, or of the one that a `data.yaml` is in, as `coco.find`."""
    yaml_file: Path | None = root
    if not root.is_file():
        yaml_file = next((root / name for name in TABLES if (root / name).is_file()), None)
    elif root.suffix not in (".yaml", ".yml"):
        return {}
    root = root.parent if root.is_file() else root
    content = {} if yaml_file is None else _load(yaml_file)
    places = _listed(root, content, yaml_file) if yaml_file else {}
    others = _folders(root, names)  # of splits that no table names
    places |= {n: of_split for n, of_split in others.items() if not places or (n != ALL and _meant(n) not in places)}
    if not places:
        return {}
    classes = _names(content, yaml_file) or find_names(root) or find_names(root / "labels")
    count = len(classes) if classes else _count(places)
    read = partial(_table, root=root, classes=classes, count=count, masks=masks, problems=problems)
    return {name: partial(read, of_split) for name, of_split in places.items()}


def _meant(name: str) -> str:
    return SYNONYMS.get(split_of(name), split_of(name))


def _load(file: Path) -> dict[str, Any]:
    import yaml

    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{file}: expected YAML, found damage ({' '.join(str(error).split())})") from None
    if not isinstance(content, dict):
        raise ValueError(f"{file}: expected a table with names, found {type(content).__name__}")
    return content


def _names(content: dict[str, Any], file: Path | None) -> list[str] | None:
    """Of the classes in the order of their indices: a list, or a table from index to name."""
    names = content.get("names")
    if isinstance(names, dict) and set(names) == {*range(len(names))}:
        names = [names[index] for index in range(len(names))]
    if names is None:
        return None
    if not isinstance(names, list) or not names or len({*map(str, names)}) < len(names):
        raise ValueError(
            f"{file}: expected names as a list without repetitions, or as a table with the indices from 0, "
            f"found {names!s:.80}"
        )
    return [str(name) for name in names]


# Folders of pictures and of labels; or a text file with the paths of pictures, and None.
Place = tuple[Path, Path | None]


def _folders(root: Path, names: set[str]) -> dict[str, list[Place]]:
    """`images/SPLIT` and `labels/SPLIT`, `SPLIT/images` and `SPLIT/labels`, or one pair without splits."""
    images, labels = root / "images", root / "labels"
    whole = images.is_dir() and labels.is_dir()
    divided = [entry.name for entry in sorted((images if whole else root).iterdir()) if entry.is_dir()]
    pairs = {
        name: (images / name, labels / name) if whole else (root / name / "images", root / name / "labels")
        for name in divided
    }
    found = {pair: name for name, pair in pairs.items() if pair[0].is_dir() and _has_labels(pair[1])}
    if not any(split_of(name) in names for name in found.values()):
        return {ALL: [(images, labels)]} if whole and _has_labels(labels) else {}
    return {name: [pair] for name, pair in by_split(found, root).items()}


def _count(places: dict[str, list[Place]]) -> int:
    """Of the classes, by the largest index in all splits."""
    largest = -1
    for place in chain.from_iterable(places.values()):
        for file in _labels_of(place):
            firsts = (line.split(None, 1)[0] for line in _text(file).splitlines() if line.strip())
            largest = max(largest, max((int(first) for first in firsts if first.isdecimal()), default=-1))
    return largest + 1


def _text(file: Path) -> str:
    return file.read_text(encoding="utf-8-sig", errors="replace")


def _label_files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(file for file in files_below(folder) if file.suffix == ".txt" and file.name not in NAME_FILES)


def _has_labels(folder: Path) -> bool:
    return bool(_label_files(folder))


def _labels_of(place: Place) -> Iterable[Path]:
    images, labels = place
    return _label_files(labels) if labels is not None else (file for _, file in _listed_pictures(images) if file)


def _listed_pictures(file: Path) -> Iterator[tuple[Path, Path | None]]:
    """The pictures that a text file names, from where it is or from the folder above, with their label files."""
    names = (line.strip() for line in _text(file).splitlines())
    for name in dict.fromkeys(names):
        if name:
            names_here = dict.fromkeys((name, name.replace("\\", "/")))  # which Windows writes otherwise
            paths = [folder / each for each in names_here for folder in (file.parent, file.parent.parent)]
            image = next((path for path in paths if path.is_file()), paths[0])
            labels = _beside(image.parent) / f"{image.stem}.txt"
            yield image, labels if labels.is_file() else None


def _beside(images: Path) -> Path:
    """The folder of labels for one of pictures: `labels` in the place of the last `images`."""
    if "images" not in images.parts:
        return images
    place = len(images.parts) - 1 - images.parts[::-1].index("images")
    return Path(*images.parts[:place], "labels", *images.parts[place + 1 :])


def _listed(root: Path, content: dict[str, Any], file: Path) -> dict[str, list[Place]]:
    """What a `data.yaml` names for its splits. What is missing is told, unless all is, as in one of another machine.

    Raises:
        ValueError: pictures to train or to validate on of which none has labels.
    """
    base = root / str(content.get("path") or "")
    splits: dict[str, list[Place]] = {}
    missing: list[str] = []
    for split in ENTRIES:
        entries = content.get(split)
        of_split: list[Place] = []
        for entry in entries if isinstance(entries, list) else [entries] if entries else []:
            names = dict.fromkeys((str(entry), str(entry).replace("\\", "/")))  # which Windows writes otherwise
            paths = [path for n in names for path in (base / n, root / n, root / n.removeprefix("../"))]
            if (place := _place(paths)) is not None:
                of_split.append(place)
            else:
                missing.append(f"{split}: no pictures in {entry}")
        if any(True for place in of_split for _ in _labels_of(place)):
            splits[split] = of_split
        elif of_split and split != "test":
            raise ValueError(f"{file}: {split}: expected pictures with labels in {entries}, found none with labels")
    for entry in missing if splits else ():
        logger.warning("%s: %s", file, entry)
    return splits


def _place(paths: list[Path]) -> Place | None:
    # Labels lie beside a link to pictures, or else beside what it leads to.
    places = [Path(os.path.abspath(path)) for path in paths] + [path.resolve() for path in paths]  # noqa: PTH100
    for place in places:
        if place.is_dir() and "images" in place.parts and any(map(is_image, files_below(place))):
            return place, _beside(place)
        if place.suffix == ".txt" and place.is_file() and any(image.is_file() for image, _ in _listed_pictures(place)):
            return place, None
    return None


def _pictures_of(place: Place) -> tuple[list[tuple[Path, Path | None]], list[Path]]:
    """The pictures with their label files, and label files without a picture."""
    images, labels = place
    if labels is None:
        return list(_listed_pictures(images)), []
    text_of = {file.relative_to(labels).with_suffix("").as_posix(): file for file in _label_files(labels)}
    files = sorted(filter(is_image, files_below(images)))
    names = [file.relative_to(images).with_suffix("").as_posix() for file in files]
    known = {*names}
    alone = [text for name, text in text_of.items() if name not in known]
    return [(file, text_of.get(name)) for file, name in zip(files, names, strict=True)], alone  # also a.jpg and a.png


def _table(
    places: list[Place], root: Path, classes: list[str] | None, count: int, masks: bool, problems: Problems
) -> Table:
    builder = TableBuilder(masks)
    for place in places:
        pictures, alone = _pictures_of(place)
        for image, text in pictures:
            try:
                size = upright_size(str(image))
            except ImageError as error:
                problems.report(str(error))
                builder.left_out += 1
                continue
            key = image.relative_to(root).as_posix() if image.is_relative_to(root) else image.as_posix()
            index = builder.picture(str(image), key, *size)
            if text is not None:  # a picture without a file shows no object
                _add(builder, index, text, size, count, problems)
        for text in alone:
            problems.report(f"{text}: expected a picture for it, found none")
            builder.left_out += 1
    return builder.table(classes, list(range(1, count + 1)))


def _add(builder: TableBuilder, index: int, file: Path, size: tuple[int, int], count: int, problems: Problems) -> None:
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        problems.report(f"{file}: expected rows of text, found damage ({error})")
        return
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            label, box, polygon = row(line, *size)
            if not 0 <= label < count:
                raise ValueError(f"expected class indices from 0 to {count - 1}, found {label}")
            within, clipped = fit(box, *size)
            segment = b"" if polygon is None else pack_polygons([polygon])
            check_size(segment, *size)
        except ValueError as error:
            problems.report(f"{file}: row {number}: {error}")
            continue
        if clipped:
            problems.report(f"{file}: row {number}: {clipped}", "clipped")
        builder.annotation(index, within, label, segment=segment)


def row(line: str, width: int, height: int) -> tuple[int, Box, list[float] | None]:
    """Class index, box and, where there is one, polygon in pixels of a picture of this size.

    Raises:
        ValueError: neither a box of four numbers nor a polygon.
    """
    try:
        first, *numbers = map(float, line.split())
    except ValueError:
        raise ValueError(f"expected a class and numbers, found {line.strip()[:80]!r}") from None
    if not first.is_integer() or not all(map(math.isfinite, numbers)):
        raise ValueError(f"expected a class index and finite numbers, found {line.strip()[:80]!r}")
    if len(numbers) == 4:
        x, y, across, down = numbers
        if across <= 0 or down <= 0:
            raise ValueError(f"expected a box of some width and height, found {across:g} x {down:g}")
        left, top, right, bottom = x - across / 2, y - down / 2, x + across / 2, y + down / 2
        return int(first), (left * width, top * height, right * width, bottom * height), None
    if len(numbers) < 6 or len(numbers) % 2:
        raise ValueError(f"expected 4 numbers of a box or 3 or more points of a polygon, found {len(numbers)} numbers")
    polygon = [value * (height if place % 2 else width) for place, value in enumerate(numbers)]
    xs, ys = polygon[::2], polygon[1::2]
    return int(first), (min(xs), min(ys), max(xs), max(ys)), polygon
