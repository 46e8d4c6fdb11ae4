"""int8 whose accuracy holds: leave the most sensitive layers in floating point until it does."""

from __future__ import annotations

import logging
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from swiftformer.deploy import DeployModel
from swiftformer.export.formats import ExportError
from swiftformer.export.sensitivity import sensitivities

logger = logging.getLogger(__name__)
IMAGES = 32  # to rank the layers with


def write_within_drop(
    net: DeployModel,
    images: Any,
    write: Callable[[Path, tuple[str, ...]], None],
    top1: Callable[[str], float],
    folder: Path,
    reference: float,
    max_drop: float,
) -> float:
    """Write int8 artifacts with 0, 1, 2, 4, 8, ... layers in floating point, until one is accurate enough.

    Args:
        net: the fused network, whose layers are ranked.
        images: `(N, C, H, W)` as it takes them.
        write: writes an artifact to a folder, with the layers of these names left in floating point.
        top1: the accuracy of the artifact in a folder, in percent.
        folder: where the artifact goes.
        reference: accuracy of the float model on the same images, in percent.
        max_drop: that may be lost, in points.

    Returns:
        The accuracy.

    Raises:
        ExportError: not even half of the layers in floating point suffice.
    """
    from swiftformer.export.calibration import evenly

    ranked = list(sensitivities(net, torch.from_numpy(images[evenly(len(images), IMAGES)])))
    count, tried, found = 0, 0, 0.0
    while count <= len(ranked) // 2:
        tried = count
        left = tuple(ranked[:count])
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as scratch:
            trial = Path(scratch)
            write(trial, left)
            found = top1(str(trial))
            logger.info("int8 with %d of %d layers in floating point: top-1 %.2f%%", count, len(ranked), found)
            if found >= reference - max_drop:
                shutil.copytree(trial, folder, dirs_exist_ok=True)
                return found
        count = max(1, 2 * count)
    raise ExportError(
        f"int8: expected a top-1 of at least {reference - max_drop:.2f}% ({max_drop:g} points below {reference:.2f}%), "
        f"found {found:.2f}% with {tried} of {len(ranked)} layers in floating point"
    )
