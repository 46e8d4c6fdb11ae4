"""What a run is resumed from: its last states, with checksums."""

from __future__ import annotations

import hashlib
import logging
import re
from pathlib import Path
from typing import Any

import torch

from swiftformer.files import atomic_file

logger = logging.getLogger(__name__)
FOLDER = "states"


def has_state(run: Path) -> bool:
    """Whether a run folder holds something to resume from."""
    return any((run / FOLDER).glob("epoch-*.sha256"))


def what_is_left(output: Path) -> str:
    """What of a run that fails there is to resume, for its error."""
    if not has_state(output):
        return f"{output} holds no state to resume yet"
    return f"the last state stays in {output}, for --resume"


def write_state(run: Path, epochs: int, images: int, state: dict[str, Any], keep: int = 2) -> Path:
    """Save the state after `epochs` whole epochs and `images` of the next, and remove older ones.

    Args:
        state: tensors and plain values, so that no code is needed to read it.
        keep: how many stay: more than one, for the case that the last is damaged.

    Raises:
        OSError: from writing; the earlier states stay.
    """
    for leftover in (run / FOLDER).glob(".epoch-*.tmp"):  # of a process that was killed while it wrote
        leftover.unlink(missing_ok=True)
    path = run / FOLDER / (f"epoch-{epochs:04d}" + (f"-images-{images:09d}" if images else "") + ".pt")
    with atomic_file(path) as file:
        with file.open("wb") as opened:
            try:
                torch.save(state, opened)
            except RuntimeError as error:  # torch hides that the disk is full behind one of its own
                raise error.__context__ if isinstance(error.__context__, OSError) else error from None
        checksum = _checksum(file)
    with atomic_file(path.with_suffix(".sha256")) as file:
        file.write_text(f"{checksum}  {path.name}\n")
    states = _states(run)
    last = states.index(path)
    # Further on are states that were damaged, so that the run went back behind them.
    for old in states[last + 1 :] + states[: last + 1][:-keep]:
        old.unlink(missing_ok=True)
        old.with_suffix(".sha256").unlink(missing_ok=True)
    return path


def _states(run: Path) -> list[Path]:
    """Oldest first: `epoch-0003.pt`, `epoch-0003-images-000001280.pt`, `epoch-0004.pt`."""
    return sorted((run / FOLDER).glob("epoch-*.pt"), key=lambda path: [int(n) for n in re.findall(r"\d+", path.stem)])


def read_state(run: Path) -> dict[str, Any]:
    """The newest state that is whole. A damaged one is named in the log, and the one before it is taken.

    Raises:
        ValueError: there is none, or all are damaged.
    """
    paths = _states(run)[::-1]
    if not paths:
        raise ValueError(f"{run / FOLDER}: expected a state to resume from, found none; without --resume it begins")
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
