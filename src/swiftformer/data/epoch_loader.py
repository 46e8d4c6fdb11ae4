"""Batches that depend on the epoch and their place in it alone, whatever happens to the processes that load them."""

from __future__ import annotations

import random
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sized
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch.utils.data import Dataset

from swiftformer.data.lasting_loader import LastingLoader
from swiftformer.data.samplers import Draws
from swiftformer.data.skipped import REPORTED, Skipped
from swiftformer.images import ImageError

Batch = TypeVar("Batch")


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
            return self.sample(read, place, min(offset, 1))
        others = f", nor are {len(self) - 1} others" if len(self) > 1 else ""
        raise ValueError(f"expected readable images, found none: {errors[0]}{others}")

    @abstractmethod
    def read(self, place: int) -> Any:
        """What the source has at a place. Raises ImageError where it cannot be read."""

    @abstractmethod
    def sample(self, read: Any, place: int, unreadable: int) -> Any:
        """What was read, augmented; `unreadable` is 1 where it stands in for a picture that could not be."""


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
        self._loader: LastingLoader[Batch] = LastingLoader(
            dataset,
            workers,
            batch_size=batch_size,
            sampler=sampler,
            drop_last=True,
            collate_fn=collate,
            pin_memory=pin_memory,
        )

    def __len__(self) -> int:
        """Batches per epoch."""
        return len(self.sampler) // self.batch_size

    def batches(self, epoch: int, start: int = 0, stop: int | None = None) -> Iterator[Batch]:
        """Batches `start` to `stop` of an epoch; they depend on the epoch and their place alone.

        Where a loading process dies, new ones go on at the batch that was owed.

        Raises:
            LoaderError: they died several times at one batch.
        """
        stop = len(self) if stop is None else stop

        def seek(place: int) -> None:
            self.sampler.set_epoch(epoch, place * self.batch_size)

        return self._loader.batches(seek, start, stop, f"epoch {epoch + 1}")


def expect_images(found: int, batch_size: int, world_size: int) -> None:
    """Raise ValueError where there are fewer images than one batch of all processes."""
    if found < batch_size * world_size:
        raise ValueError(f"expected at least one batch of {batch_size * world_size} training images, found {found}")
