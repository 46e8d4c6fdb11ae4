"""A teacher's logits for every training image, computed once and kept with the run."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import signal
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from swiftformer.data.loaders import evaluation_loader
from swiftformer.data.sources import Source
from swiftformer.data.splits import Subset
from swiftformer.files import atomic_file
from swiftformer.train.distributed import Processes
from swiftformer.train.interruption import StopRequest, TrainingStopped
from swiftformer.weights_file import write_tensors

if TYPE_CHECKING:
    from swiftformer.train.distillation import Teacher
    from swiftformer.train.recipe import Recipe

logger = logging.getLogger(__name__)
FILE, BEGUN = "teacher.safetensors", "teacher-begun.safetensors"
ROWS = 1 << 16  # that the processes add up at once


@torch.inference_mode()
def cached_logits(
    teacher: Teacher,
    source: Source,
    recipe: Recipe,
    output: Path,
    workers: int,
    processes: Processes,
    stop: StopRequest,
) -> Tensor:
    """The teacher's logits `(images, classes)` in float16, on the CPU, for images as evaluation prepares them.

    They are those of the file, mapped into memory, so that the processes of a machine share them.

    They are read from `output/teacher.safetensors` where that was computed by the same teacher for the same images;
    otherwise the processes compute them together and the main one writes the file. The row of an unreadable image is
    NaN.

    Raises:
        TrainingStopped: SIGTERM or Ctrl-C came. What is known by then is kept beside the file, for the next time.
    """
    from safetensors import SafetensorError

    path = output / FILE
    key = _key(teacher, recipe, source)
    known = torch.zeros(1, device=processes.device)
    with suppress(OSError, SafetensorError):
        known[0] = processes.main and _is_of(path, key)
    if not processes.sum(known).item():
        logits = torch.zeros(len(source), len(source.classes), dtype=torch.float16)
        told = torch.zeros(len(source), dtype=torch.int32)  # how many processes know a row
        begun = output / BEGUN
        with suppress(OSError, SafetensorError):
            if processes.main and _is_of(begun, key):
                logits = _read(begun).clone()
                told = logits[:, 0].isfinite().to(told)
                logits[told == 0] = 0
        left = (processes.sum(told.to(processes.device)).cpu() == 0).nonzero()[:, 0]
        logger.info("asking the teacher about %d images", len(left))
        loader = evaluation_loader(
            Subset(source, left.tolist()),  # type: ignore[arg-type]
            recipe.preprocessing,
            recipe.batch_size,
            workers,
            processes.rank,
            processes.world_size,
        )
        for pixels, _, indices in loader if len(left) else ():
            if stop.signal:
                break
            if len(indices):
                logits[left[indices]] = teacher(pixels.to(processes.device)).half().cpu()
                told[left[indices]] = 1
        stopped = processes.max(torch.tensor([stop.signal], device=processes.device)).item()
        for part in logits.split(ROWS):
            part.copy_(processes.sum(part.to(processes.device, torch.float32)))
        logits[processes.sum(told.to(processes.device)).cpu() == 0] = torch.nan
        if processes.main:
            with atomic_file(begun if stopped else path) as file:
                write_tensors({"logits": logits}, file, {"key": key})
            if not stopped:
                begun.unlink(missing_ok=True)
        processes.wait()
        if stopped:
            raise TrainingStopped(
                "stopped while the teacher was asked; its answers are kept, nothing is trained yet",
                stop.signal or signal.SIGTERM,
            )
        with suppress(OSError, SafetensorError):  # another machine may not see the file yet, or an older one
            return _read(path) if _is_of(path, key) else logits
        return logits
    return _read(path)


def _is_of(path: Path, key: str) -> bool:
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        return (file.metadata() or {}).get("key") == key


def _read(path: Path) -> Tensor:
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        return file.get_tensor("logits")


def _key(teacher: Teacher, recipe: Recipe, source: Source) -> str:
    """A checksum of the teacher, the preprocessing and the names of the images."""
    parts = [recipe.teacher, json.dumps(dataclasses.asdict(recipe.preprocessing)), *source.classes]
    digest = hashlib.sha256("\n".join(parts).encode("utf-8", "surrogateescape"))
    for tensor in teacher.state_dict().values():
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    name = getattr(source, "key", source.name)  # keys are the same wherever the data lie
    for index in range(len(source)):
        digest.update(f"\n{name(index)}".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()
