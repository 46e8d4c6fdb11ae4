"""Batches that depend on the epoch and their place in it alone, whatever happens to the processes that load them."""

from __future__ import annotations

import logging
import random
import time
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sized
from contextlib import suppress
from itertools import islice
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from swiftformer.data.processes import ignore_signals, quietly_started
from swiftformer.data.samplers import Draws
from swiftformer.data.skipped import REPORTED, Skipped
from swiftformer.image_processing import ImageError

logger = logging.getLogger(__name__)
RESTARTS = 3  # of the loader processes, at one and the same batch

Batch = TypeVar("Batch")


class LoaderError(RuntimeError):
    """The processes that load images die again and again."""


def seed_generators(seed: int) -> None:
    """Seed Python's, NumPy's and torch's CPU generators of this process; `seed` is below 2**32."""
    random.seed(seed)
    np.random.seed(seed)
    # Of the CPU; torch.manual_seed does much more, too much for every picture.
    torch.default_generator.manual_seed(seed)


class DrawnDataset(Dataset):
    """The sample of a draw `(index, seed)`. An unreadable picture is named in the log and the next one stands in."""

    def __init__(self, source: Sized) -> None:
        self.length = len(source)
        self.skipped = Skipped()

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, draw: tuple[int, int]) -> Any:
        index, seed = draw
        seed_generators(seed)
        errors: list[ImageError] = []  # the first ones
        for offset in range(len(self)):
            place = (index + offset) % len(self)
            try:
                read = self.read(place)
            except ImageError as error:
                if len(errors) < REPORTED:
                    errors.append(error)
                continue
            self.skipped.tell(errors, offset - len(errors))
            return self.sample(read, place, offset)
        others = f", nor are {len(self) - 1} others" if len(self) > 1 else ""
        raise ValueError(f"expected readable images, found none: {errors[0]}{others}")

    @abstractmethod
    def read(self, place: int) -> Any:
        """What the source has at a place. Raises ImageError where it cannot be read."""

    @abstractmethod
    def sample(self, read: Any, place: int, unreadable: int) -> Any:
        """What was read, augmented; `unreadable` tells how many places before could not be."""


class EpochLoader(Generic[Batch]):
    """Batches of shuffled, augmented samples for one of `world_size` processes.

    Args:
        sampler: the draws of this process.
        batch_size: images per batch and process.
        collate: makes a batch of a list of samples.
        workers: processes that load.
    """

    def __init__(
        self,
        dataset: DrawnDataset,
        sampler: Draws,
        batch_size: int,
        collate: Callable[[list[Any]], Batch],
        workers: int,
        pin_memory: bool,
    ) -> None:
        self.batch_size = batch_size
        self.sampler = sampler
        self._dataset = dataset
        self._options: dict[str, Any] = {
            "batch_size": batch_size,
            "sampler": sampler,
            "drop_last": True,
            "num_workers": workers,
            "collate_fn": collate,
            "worker_init_fn": ignore_signals,
            "pin_memory": pin_memory,
            "persistent_workers": workers > 0,
        }
        self._loader: DataLoader[Batch] | None = None

    def __len__(self) -> int:
        """Batches per epoch."""
        return len(self.sampler) // self.batch_size

    def batches(self, epoch: int, start: int = 0, stop: int | None = None) -> Iterator[Batch]:
        """Batches `start` to `stop` of an epoch; they depend on the epoch and their place alone.

        Where a loading process dies, new ones go on at the batch that was owed.

        Raises:
            LoaderError: they died several times at one batch.
        """
        place, deaths = start, 0
        stop = len(self) if stop is None else stop
        while place < stop:
            self.sampler.set_epoch(epoch, place * self.batch_size)
            if self._loader is None:
                # A generator of its own, so that starting processes does not move the model's.
                self._loader = DataLoader(self._dataset, generator=torch.Generator(), **self._options)
            try:
                for batch in islice(quietly_started(self._loader), stop - place):
                    yield batch
                    place, deaths = place + 1, 0
                if place < stop:
                    raise AssertionError(f"{stop} batches were promised, {place} came")
            except ValueError as error:
                # torch puts the traceback of the process in front.
                if not (text := str(error)).startswith("Caught ValueError in DataLoader worker"):
                    raise
                raise ValueError(text.strip().splitlines()[-1].removeprefix("ValueError: ")) from error
            except (RuntimeError, OSError, EOFError) as error:
                # What a dead process leaves behind, as opposed to an error that a living one reports.
                died = ("DataLoader worker", "Pin memory thread exited")
                if isinstance(error, RuntimeError) and not str(error).startswith(died):
                    raise
                if "Caught " in str(error) or self._options["num_workers"] == 0:
                    raise
                self._loader = None
                # Its SIGCHLD may still be on the way, and torch raises wherever that arrives.
                with suppress(RuntimeError):
                    time.sleep(0.1)
                deaths += 1
                if deaths == RESTARTS:
                    raise LoaderError(
                        f"the processes that load images died {deaths} times at batch {place} of epoch {epoch + 1}: "
                        f"expected enough memory (/dev/shm as well) for {self._options['num_workers']} of them, "
                        f"try fewer workers ({error})"
                    ) from error
                logger.warning("a process that loads images died (%s); starting new ones at batch %d", error, place)


def expect_images(found: int, batch_size: int, world_size: int) -> None:
    """Raise ValueError where there are fewer images than one batch of all processes."""
    if found < batch_size * world_size:
        raise ValueError(f"expected at least one batch of {batch_size * world_size} training images, found {found}")
