"""Files in folders."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path


def files_below(folder: Path, above: tuple[str, ...] = ()) -> Iterator[Path]:
    """The files in a folder and in those below it, through links as well, without hidden ones; in order.

    Args:
        above: real paths of the folders that this one was reached through; a link back to one of them is not followed.
    """
    place = os.path.realpath(folder)
    if place in above:
        return
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                yield from files_below(Path(entry.path), (*above, place))
            else:
                yield Path(entry.path)


def content_of(folder: Path) -> str:
    """The first names in a folder, for messages."""
    found = sorted(entry.name for entry in folder.iterdir() if not entry.name.startswith("."))
    return ", ".join(found[:5]) + (", ..." if len(found) > 5 else "") if found else "an empty folder"
