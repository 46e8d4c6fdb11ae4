"""Pictures of a data set one at a time, as models of pictures of any size are evaluated."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sized
from typing import Generic, TypeVar

from torch.utils.data import Dataset

from swiftformer.data.lasting_loader import ShareLoader
from swiftformer.data.samplers import Share
from swiftformer.data.skipped import Skipped
from swiftformer.images import ImageError

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


class SingleLoader(ShareLoader[Sample]):
    """Pictures one at a time, in order, each readable one once: all for one process, for several their shares.

    Its length counts those of this process, readable or not.

    Args:
        read: makes a sample of an index, or raises ImageError.
        workers: processes that load.

    Raises:
        LoaderError: on iteration, where they died several times at one picture.
    """

    def __init__(
        self, source: Sized, read: Callable[[int], Sample], workers: int, rank: int = 0, world_size: int = 1
    ) -> None:
        super().__init__(SingleDataset(source, read), Share(len(source), rank, world_size), None, _as_it_is, workers)

    def __iter__(self) -> Iterator[Sample]:
        return (sample for sample in super().__iter__() if sample is not None)


def _as_it_is(sample: Sample) -> Sample:
    return sample
