"""Splits of pictures whose annotations lie apart from them."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from swiftformer.data.folders import files_below
from swiftformer.data.sources import is_image
from swiftformer.data.splits import ALL, SPLIT_ALIASES, SYNONYMS, usual


def split_of(name: str) -> str:
    """The name without a year, as `usual` has it: `train` of `Train2017`."""
    return usual(re.sub(r"[-_]?(19|20)\d\d$", "", name) or name)


def expect_annotations(data: Path, splits: Iterable[str], split: str | None) -> None:
    """Of data with a training split, raise ValueError where a folder has pictures to validate on and no split is
    theirs: others would be taken in their place.

    Args:
        splits: that the data have, by their names.
        split: that is asked for.
    """
    names = {"val", *(name for name, meant in SYNONYMS.items() if meant == "val")}
    found = {*map(split_of, splits)}
    divided = bool(found & {*SPLIT_ALIASES["train"]}) and not found & {ALL, "trainval", *names}
    if not data.is_dir() or not divided or split not in (None, *names):
        return
    places = [place for place in (data, data / "images", data / "JPEGImages") if place.is_dir()]
    for folder in sorted(folder for place in places for folder in place.iterdir() if split_of(folder.name) in names):
        if folder.is_dir() and any(map(is_image, files_below(folder))):
            raise ValueError(f"{data}: expected annotations for the pictures in {folder.relative_to(data)}, found none")
