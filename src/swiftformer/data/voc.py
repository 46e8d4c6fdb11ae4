"""Pascal VOC's XML files: a picture and its boxes in each."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from xml.etree import ElementTree

from swiftformer.data.class_names import KNOWN, shortened
from swiftformer.data.dense_splits import split_of
from swiftformer.data.detection_checks import Box, Problems, fit
from swiftformer.data.detection_splits import Openers, by_split
from swiftformer.data.detection_table import Table, TableBuilder
from swiftformer.data.folders import files_below
from swiftformer.data.orientation import upright_size
from swiftformer.data.sources import is_image
from swiftformer.data.splits import ALL
from swiftformer.images import ImageError

CLASSES = KNOWN["voc"][1:]  # without background
XML_FOLDERS = ("Annotations", "annotations")
IMAGE_FOLDERS = ("JPEGImages", "images")
LISTS = "ImageSets/Main"


@dataclass(frozen=True)
class Annotated:
    """What an XML file says: number, name, box and difficulty of each object, with what is wrong with others; or
    `error`."""

    width: int = 0
    height: int = 0
    objects: list[tuple[int, str, Box, bool]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    error: str | None = None


def find(root: Path, names: set[str], masks: bool, problems: Problems, classes: Sequence[str] | None = None) -> Openers:
    """The splits of a folder, as `coco.find`.

    Args:
        classes: those that the data have, where no others occur; then VOC's own; otherwise those that occur.
    """
    if root.is_file():
        return {}
    bases = [root, *sorted(root.glob("VOC*")), *sorted(root.glob("VOCdevkit/VOC*"))]
    found = [base for base in bases if (base / LISTS).is_dir() and _first(base, XML_FOLDERS, "*.xml")]
    if len(found) > 1:
        raise ValueError(f"{root}: expected one data set, found {', '.join(base.name for base in found)}")
    base = found[0] if found else root
    files = _pairs_by_split(base, names)
    if not files:
        return {}
    parsed = {xml: parse(xml) for pairs in files.values() for _, xml in pairs if xml is not None and xml.is_file()}
    there = {name for annotated in parsed.values() for _, name, _, _ in annotated.objects}
    ordered = next((list(known) for known in (classes or (), CLASSES) if known and there <= {*known}), sorted(there))
    read = partial(_table, base=base, parsed=parsed, classes=ordered, masks=masks, problems=problems)
    return {name: partial(read, pairs) for name, pairs in files.items()}


Pairs = list[tuple[Path | None, Path | None]]  # picture and XML


def _pairs_by_split(base: Path, names: set[str]) -> dict[str, Pairs]:
    xmls = _first(base, XML_FOLDERS, "**/*.xml")
    images = _first(base, IMAGE_FOLDERS, "*")
    if xmls is not None and images is not None:
        xml_of, image_of = _by_stem(xmls, lambda file: file.suffix == ".xml"), _by_stem(images, is_image)
        lists = {file: _rows(file, {*xml_of, *image_of}) for file in sorted((base / LISTS).glob("*.txt"))}
        named = [file for file in lists if split_of(file.stem) in names | {"trainval"}]
        if named:  # beside them lie lists for each class, of two columns
            others = [file for file, rows in lists.items() if rows and all(len(row) == 1 for row in rows)]
            chosen = by_split({file: file.stem for file in dict.fromkeys(named + others)}, base / LISTS)
            return {n: [(image_of.get(s), xmls / f"{s}.xml") for s, *_ in lists[file]] for n, file in chosen.items()}
        pairs = {stem: (image_of.get(stem), xml_of.get(stem)) for stem in sorted({*xml_of, *image_of})}
        divided = {stem.split("/")[0] for stem in xml_of if "/" in stem}
        if any(split_of(name) in names for name in divided):
            found = by_split({name: name for name in sorted(divided)}, xmls)
            return {n: [p for stem, p in pairs.items() if stem.startswith(f"{f}/")] for n, f in found.items()}
        return {ALL: list(pairs.values())}
    entries = [entry for entry in sorted(base.iterdir()) if entry.is_dir() and entry.name[0] != "."]
    beside = {folder: folder.name for folder in entries if next(folder.glob("*.xml"), None)}
    folders = by_split(beside, base) if any(split_of(name) in names for name in beside.values()) else {}
    if not folders and next(base.glob("*.xml"), None):
        folders = {ALL: base}
    return {name: _beside(folder) for name, folder in folders.items()}


def _rows(file: Path, stems: set[str]) -> list[list[str]]:
    """The columns of each line; one that is the name of a picture, with spaces in it, is one column."""
    text = file.read_text(encoding="utf-8-sig", errors="replace")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return [[line] if line in stems else line.split() for line in lines]


def _beside(folder: Path) -> Pairs:
    """Pictures and XML files in one folder."""
    image_of = {file.stem: file for file in folder.iterdir() if is_image(file)}
    xml_of = {xml.stem: xml for xml in folder.glob("*.xml") if xml.name[0] != "."}
    return [(image_of.get(stem), xml_of.get(stem)) for stem in sorted({*image_of, *xml_of})]


def _first(base: Path, names: tuple[str, ...], pattern: str) -> Path | None:
    return next((base / name for name in names if next((base / name).glob(pattern), None)), None)


def _by_stem(folder: Path, wanted: Callable[[Path], bool]) -> dict[str, Path]:
    return {file.relative_to(folder).with_suffix("").as_posix(): file for file in filter(wanted, files_below(folder))}


def parse(xml: Path) -> Annotated:
    """What a file says; sizes are 0 where it says none. Boxes count from 0, and end before their last coordinate."""
    try:
        tree = ElementTree.parse(xml).getroot()
    except (ElementTree.ParseError, OSError, ValueError) as error:
        return Annotated(error=f"{xml}: expected Pascal VOC's XML, found damage ({error})")
    objects, problems = [], []
    for number, entry in enumerate(tree.findall("object"), 1):
        corners = entry.find("bndbox")
        texts = [corners.findtext(side, "") if corners is not None else "" for side in ("xmin", "ymin", "xmax", "ymax")]
        name = (entry.findtext("name") or "").strip()
        try:
            x0, y0, x1, y1 = map(float, texts)
        except ValueError:
            problems.append(f"{xml}: object {number}: expected a bndbox of four numbers, found {', '.join(texts)}")
            continue
        if not name:
            problems.append(f"{xml}: object {number}: expected a name, found none")
            continue
        objects.append((number, name, (x0 - 1, y0 - 1, x1, y1), (entry.findtext("difficult") or "").strip() == "1"))
    sides = [tree.findtext(f"size/{side}", "").strip() for side in ("width", "height")]
    width, height = [int(float(side)) if re.fullmatch(r"\d+(\.0*)?", side) else 0 for side in sides]
    return Annotated(width, height, objects, problems)


def _table(
    pairs: Pairs, base: Path, parsed: dict[Path, Annotated], classes: list[str], masks: bool, problems: Problems
) -> Table:
    builder = TableBuilder(masks)
    label_of = {name: label for label, name in enumerate(classes)}
    alone = [image.name for image, xml in pairs if image and xml is None]  # no list says that they belong to the data
    if alone:
        problems.report(
            f"{base}: expected an XML file for each picture, found {len(alone)} without: {shortened(alone)}"
        )
    for image, xml in pairs:
        if xml is None:
            continue
        before = len(builder.files)
        annotated = parsed.get(xml)
        if annotated is None:
            problems.report(f"{xml}: expected the annotations of {image.name if image else 'a picture'}, found none")
        elif annotated.error is not None:
            problems.report(annotated.error)
        elif image is None:
            problems.report(f"{xml}: expected a picture for it, found none")
        else:
            _add(builder, image, xml, annotated, label_of, base, problems)
        builder.left_out += len(builder.files) == before
    return builder.table(classes, list(range(1, len(classes) + 1)))


def _add(
    builder: TableBuilder,
    image: Path,
    xml: Path,
    annotated: Annotated,
    label_of: dict[str, int],
    base: Path,
    problems: Problems,
) -> None:
    size = annotated.width, annotated.height
    if not all(size):
        try:
            size = upright_size(str(image))
        except ImageError as error:
            problems.report(str(error))
            return
    index = builder.picture(str(image), image.relative_to(base).as_posix(), *size)
    for problem in annotated.problems:
        problems.report(problem)
    for number, name, box, difficult in annotated.objects:
        try:
            within, clipped = fit(box, *size)
        except ValueError as error:
            problems.report(f"{xml}: object {number} ({name}): {error}")
            continue
        if clipped:
            problems.report(f"{xml}: object {number} ({name}): {clipped}", "clipped")
        builder.annotation(index, within, label_of[name], difficult)
