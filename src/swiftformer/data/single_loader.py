"""Pictures of a data set one at a time, as models of pictures of any size are evaluated."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sized
from typing import Generic, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset

from swiftformer.data.processes import ignore_signals, quietly_started
from swiftformer.data.samplers import Share
from swiftformer.data.skipped import Skipped
from swiftformer.image_processing import ImageError

Sample = TypeVar("Sample")


class SingleDataset(Dataset, Generic[Sample]):
    """What `read` makes of each index; None, and a line in the log, where it raises ImageError."""

    def __init__(self, source: Sized, read: Callable[[int], Sample]) -> None:
        self.length, self.read = len(source), read
        self.skipped = Skipped()

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Sample | None:
        try:
            return self.read(index)
        except ImageError as error:
            self.skipped.tell([error])
            return None


class SingleLoader(Generic[Sample]):
    """Pictures one at a time, in order, each readable one once: all for one process, for several their shares.

    Args:
        read: makes a sample of an index, or raises ImageError.
        workers: processes that load.
    """

    def __init__(
        self, source: Sized, read: Callable[[int], Sample], workers: int, rank: int = 0, world_size: int = 1
    ) -> None:
        self._loader: DataLoader[Sample | None] = DataLoader(
            SingleDataset(source, read),
            batch_size=None,
            sampler=Share(len(source), rank, world_size),
            num_workers=workers,
            worker_init_fn=ignore_signals,
            collate_fn=_as_it_is,
            pin_memory=torch.cuda.is_available(),
            persistent_workers=workers > 0,
        )

    def __len__(self) -> int:
        """Pictures of this process, readable or not."""
        return len(self._loader)

    def __iter__(self) -> Iterator[Sample]:
        for sample in quietly_started(self._loader):
            if sample is not None:
                yield sample


def _as_it_is(sample: Sample) -> Sample:
    return sample
