"""Pictures with objects: `open_detection` recognises the layout and finds the split. See docs/data.md."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
from PIL import Image

from swiftformer.data import coco, voc, yolo
from swiftformer.data.class_names import KNOWN, class_names, made_up_names, shortened
from swiftformer.data.dense_splits import expect_annotations, split_of
from swiftformer.data.detection_checks import Problems
from swiftformer.data.detection_files import DetectionFiles
from swiftformer.data.detection_splits import Openers, chosen_table
from swiftformer.data.detection_table import Table
from swiftformer.data.folders import content_of
from swiftformer.data.image_folder import OTHER_TASKS
from swiftformer.data.masks import AnnotationError
from swiftformer.data.object_masks import coco_mask
from swiftformer.data.objects import Objects, decode
from swiftformer.data.sources import is_image
from swiftformer.data.splits import ALL, USUAL
from swiftformer.files import expanded
from swiftformer.images import ImageError

logger = logging.getLogger(__name__)


class DetectionSource(Protocol):
    """Pictures with objects, by index. Sources can be pickled, for loader processes that are spawned.

    Attributes:
        classes: their names, in the order of the labels.
        has_masks: whether `objects` gives masks.
    """

    classes: list[str]
    has_masks: bool

    def __len__(self) -> int: ...

    def image(self, index: int) -> Image.Image:
        """The RGB image. Raises ImageError where it cannot be read, or is not of the size that was annotated."""
        ...

    def objects(self, index: int) -> Objects:
        """What is annotated in it. Raises AnnotationError where a mask is damaged."""
        ...

    def name(self, index: int) -> str:
        """What to call the image in messages."""
        ...

    def image_id(self, index: int) -> int:
        """COCO's, otherwise the index from 1."""
        ...


def bad_pictures(source: DetectionSource) -> Iterator[str]:
    """What is wrong with each picture that cannot be used; all are read, with their masks."""
    for index in range(len(source)):
        try:
            image, objects = source.image(index), source.objects(index)
            if objects.masks:
                height, width = decode(objects.masks).shape[1:]
                if (width, height) != image.size:
                    raise AnnotationError(
                        f"{source.name(index)}: expected masks of {image.width}x{image.height} pixels, "
                        f"found {width}x{height}"
                    )
        except ImageError as error:
            yield str(error)


def open_detection(
    data: str | Path,
    split: str | None = None,
    *,
    classes: str | Sequence[str] | None = None,
    default_classes: Sequence[str] | None = None,
    masks: bool | Literal["auto"] = False,
    on_error: Literal["skip", "raise"] = "skip",
) -> DetectionFiles:
    """Find the annotated pictures of a split.

    Args:
        data: a folder with COCO's JSON (`annotations/instances_SPLIT.json`, `SPLIT/_annotations.coco.json`), Pascal
            VOC's XML (`Annotations`, `JPEGImages`, `ImageSets/Main/SPLIT.txt`) or YOLO's text (`images/SPLIT` and
            `labels/SPLIT`, or `SPLIT/images` and `SPLIT/labels`); or one JSON file or `data.yaml`.
        split: as `swiftformer.data.sources.open_source` takes it; a year may stand behind the names in the data.
        classes: names in the order that the labels are to have, as `class_names` takes them (`voc` is meant without
            background). Annotations of others are left out, with a warning that counts them. By default the classes
            of the data: in the order of COCO's category ids, of YOLO's indices, of the alphabet for Pascal VOC.
        default_classes: names where the data have none (YOLO without `data.yaml`), such as those of a model; by
            default `class_0` and so on. Also those of Pascal VOC's files in which no others occur.
        masks: give the masks of the objects. Pictures in which one has none are left out; where that leaves none,
            `auto` gives boxes alone, and it is an error with True. Otherwise masks are left out.
        on_error: `skip` leaves out what is wrong, with warnings for the first problems and a count of the others;
            pictures that cannot be read are told when they are to be, and the loaders skip them. `raise` reads
            everything and refuses the first that is wrong.

    Raises:
        ValueError: nothing is recognised there, the split is missing or empty, or the objects have no masks.
        AnnotationError: something is wrong with an annotation, where `on_error` is `raise`.
    """
    root = expanded(data)
    if not root.exists():
        raise ValueError(f"{data}: no such file or folder")
    if masks:
        coco_mask()  # which may be missing
    problems = Problems(on_error)
    names = USUAL | ({split, split_of(split)} - {ALL} if split else set())
    recognised = partial(_recognised, root, masks=bool(masks), problems=problems, classes=default_classes)
    splits = recognised(names) or recognised(names | _unusual_names(root))
    if not splits:
        found = "another file" if root.is_file() else content_of(root)
        raise ValueError(
            f"{data}: expected COCO's annotations/instances_train.json and the like, Pascal VOC's Annotations and "
            f"JPEGImages, or YOLO's images/train and labels/train, found {found}"
        )
    expect_annotations(root, splits, split)
    table = chosen_table(splits, split, str(data))
    if masks:
        table = _with_masks(table, str(data), problems, required=masks is True)
    if not table.files:
        problems.finish(str(data))
        raise ValueError(
            f"{data}: expected annotated pictures, found none" + (f" ({problems.first})" if problems.first else "")
        )
    source = _with_classes(table, classes, default_classes, str(data), problems)
    problems.finish(str(data))
    if on_error == "raise" and (problem := next(bad_pictures(source), None)):
        raise AnnotationError(problem)
    return source


def _recognised(root: Path, names: set[str], masks: bool, problems: Problems, classes: Sequence[str] | None) -> Openers:
    """The splits in the first format that is there; none where none is."""
    for find in (coco.find, partial(voc.find, classes=classes), yolo.find):
        if splits := find(root, names, masks, problems):
            return splits
    return {}


def _unusual_names(root: Path) -> set[str]:
    """What folders of pictures and files of COCO's are called, for data in which no split has a usual name."""
    if root.is_file():
        return set()
    entries = [entry for entry in root.iterdir() if entry.name[0] != "." and entry.name not in OTHER_TASKS]
    folders = [entry for entry in entries if entry.is_dir()]
    files = [entry for entry in entries if entry.suffix == ".json" and coco.is_coco(entry)]
    shown = [folder for folder in folders if any(map(is_image, chain(folder.iterdir(), folder.glob("images/*"))))]
    return {entry.stem for entry in files} | {folder.name for folder in shown}


def _with_masks(table: Table, where: str, problems: Problems, required: bool) -> Table:
    """Without the pictures in which an object has no mask. Where that leaves no objects, all without masks,
    or a ValueError where they are `required`."""
    has_mask = np.array([len(segment) > 0 for segment in table.segments or ()], dtype=bool)
    if has_mask.all():
        return table
    counts = np.bincount(table.pictures, minlength=len(table.files))
    without = np.bincount(table.pictures[~has_mask], minlength=len(table.files))
    if not ((counts > 0) & (without == 0)).any():
        if not required:
            return replace(table, segments=None)
        raise ValueError(f"{where}: expected objects with masks, found {without.sum()} with boxes only")
    for picture in np.flatnonzero(without):
        problems.report(
            f"{table.files[picture]}: expected a mask for each of {counts[picture]} objects, "
            f"found {without[picture]} with a box only"
        )
    whole = np.flatnonzero(without == 0).tolist()
    return replace(table.take(whole), left_out=table.left_out + len(table.files) - len(whole))


def _with_classes(
    table: Table,
    given: str | Sequence[str] | None,
    otherwise: Sequence[str] | None,
    where: str,
    problems: Problems,
) -> DetectionFiles:
    names = None if given is None else list(KNOWN["voc"][1:]) if given == "voc" else class_names(given)
    if table.names is None:
        names = names or list(otherwise or made_up_names(len(table.category_ids)))
        if not names:
            raise ValueError(f"{where}: expected objects or names of classes, found none")
        for row in np.flatnonzero(table.labels >= len(names)):
            file = table.files[table.pictures[row]]
            problems.report(f"{file}: expected class indices from 0 to {len(names) - 1}, found {table.labels[row]}")
        table = table.keep(table.labels < len(names))
        return DetectionFiles(table, names, range(1, len(names) + 1))
    if names is None or names == table.names:
        return DetectionFiles(table, table.names, table.category_ids)
    if not {*names} & {*table.names}:
        raise ValueError(f"{where}: expected some of the classes {shortened(names)}, found {shortened(table.names)}")
    place_of = {name: place for place, name in enumerate(names)}
    places = np.array([place_of.get(name, -1) for name in table.names])
    counts = np.bincount(table.labels[places[table.labels] < 0], minlength=len(places))
    if counts.any():
        others = [name for name, count in zip(table.names, counts, strict=True) if count]
        logger.warning("%s: left out %d objects of other classes: %s", where, counts.sum(), shortened(others))
    if missing := [name for name in names if name not in table.names]:
        logger.warning("%s: knows no objects of the classes %s", where, shortened(missing))
    id_of = dict(zip(table.names, table.category_ids, strict=True))
    ids = [id_of.get(name, max(table.category_ids) + 1 + place) for place, name in enumerate(names)]
    table.labels[:] = places[table.labels]
    return DetectionFiles(table.keep(table.labels >= 0), names, ids)
