"""What a run is resumed from: its last states, with checksums."""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path
from typing import Any

import torch

from swiftformer.files import atomic_file

logger = logging.getLogger(__name__)
FOLDER = "states"
KEEP = 2  # the one before the last is there for the case that the last is damaged


def has_state(run: Path) -> bool:
    """Whether a run folder holds something to resume from."""
    return any((run / FOLDER).glob("epoch-*.sha256"))


def write_state(run: Path, epochs: int, images: int, state: dict[str, Any]) -> Path:
    """Save the state after `epochs` whole epochs and `images` of the next, and remove those before the last `KEEP`.

    Args:
        state: tensors and plain values, so that no code is needed to read it.
    """
    path = run / FOLDER / (f"epoch-{epochs:04d}" + (f"-images-{images:09d}" if images else "") + ".pt")
    with atomic_file(path) as file:
        torch.save(state, file)
        checksum = _checksum(file)
    with atomic_file(path.with_suffix(".sha256")) as file:
        file.write_text(f"{checksum}  {path.name}\n")
    for old in _states(run)[:-KEEP]:
        old.unlink()
        old.with_suffix(".sha256").unlink(missing_ok=True)
    return path


def _states(run: Path) -> list[Path]:
    """Oldest first. Names sort by progress: `epoch-0003`, `epoch-0003-images-000001280`, `epoch-0004`."""
    return sorted((run / FOLDER).glob("epoch-*.pt"), key=lambda path: path.stem)


def read_state(run: Path) -> dict[str, Any]:
    """The newest state that is whole. A damaged one is named in the log, and the one before it is taken.

    Raises:
        ValueError: there is none, or all are damaged.
    """
    paths = _states(run)[::-1]
    if not paths:
        raise ValueError(f"{run / FOLDER}: expected the state of a run to resume, found none")
    for path in paths:
        try:
            told = path.with_suffix(".sha256").read_text().split()[0]
            if told == _checksum(path):
                return torch.load(path, map_location="cpu", weights_only=True)
            logger.warning("%s is damaged (its checksum differs); trying the one before", path)
        except (OSError, IndexError) as error:
            logger.warning("%s cannot be used (%s); trying the one before", path, error)
    raise ValueError(f"{run / FOLDER}: expected a state that is whole, found {len(paths)} damaged ones")


def _checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
