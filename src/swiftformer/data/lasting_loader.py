"""A loader that goes on where its processes die."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from itertools import islice
from typing import Any, Generic, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset

from swiftformer.data.processes import begin, log_files, quietly_started
from swiftformer.data.samplers import Share
from swiftformer.processors import are_forked

logger = logging.getLogger(__name__)
RESTARTS = 3  # of the loader processes, at one and the same batch

Batch = TypeVar("Batch")


class LoaderError(RuntimeError):
    """The processes that load images die again and again."""


class LastingLoader(Generic[Batch]):
    """torch's DataLoader, with new processes where some have died.

    Args:
        workers: processes that load.
        pin_memory: as the DataLoader's, or a function that is asked when the first batch is.
        options: of the DataLoader.
    """

    def __init__(
        self, dataset: Dataset, workers: int, pin_memory: bool | Callable[[], bool] = False, **options: Any
    ) -> None:
        self.workers, self._pin_memory = workers, pin_memory
        self._dataset, self._options = dataset, options
        self._loader: DataLoader[Batch] | None = None

    def batches(self, seek: Callable[[int], None], start: int, stop: int, where: str) -> Iterator[Batch]:
        """Batches `start` to `stop`. Where a loading process dies, new ones go on at the batch that was owed.

        Args:
            seek: lets the sampler begin at a batch.
            where: the batches are from, for messages.

        Raises:
            LoaderError: they died several times at one batch.
        """
        place, deaths = start, 0
        while place < stop:
            seek(place)
            if self._loader is None:
                self._loader = self._new_loader()
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
                if "Caught " in str(error) or self.workers == 0:
                    raise
                self._loader = None
                # Its SIGCHLD may still be on the way, and torch raises wherever that arrives.
                with suppress(RuntimeError):
                    time.sleep(0.1)
                deaths += 1
                if deaths == RESTARTS:
                    raise LoaderError(
                        f"the processes that load images died {deaths} times at batch {place} of {where}: "
                        f"{_expected()} for {self.workers} of them, try fewer workers ({error})"
                    ) from error
                logger.warning("a process that loads images died (%s); starting new ones at batch %d", error, place)

    def _new_loader(self) -> DataLoader[Batch]:
        return DataLoader(
            self._dataset,
            num_workers=self.workers,
            worker_init_fn=partial(begin, log_files()),
            persistent_workers=self.workers > 0,
            # Of its own, so that starting processes does not move the model's.
            generator=torch.Generator(),
            pin_memory=self._pin_memory() if callable(self._pin_memory) else self._pin_memory,
            **self._options,
        )


class ShareLoader(Generic[Batch]):
    """Batches of a share in its order, each picture once.

    Args:
        batch_size: pictures per batch; None for samples as they are.
        collate: makes a batch of a list of samples, or of a sample.
        workers: processes that load.

    Raises:
        LoaderError: on iteration, where they died several times at one batch.
    """

    def __init__(
        self, dataset: Dataset, share: Share, batch_size: int | None, collate: Callable[[Any], Batch], workers: int
    ) -> None:
        self.share, self.batch_size = share, batch_size
        self._loader: LastingLoader[Batch] = LastingLoader(
            dataset,
            workers,
            batch_size=batch_size,
            sampler=share,
            collate_fn=collate,
            pin_memory=lambda: torch.cuda.is_initialized(),  # evaluating on a CPU is not to begin with a GPU
        )

    def __len__(self) -> int:
        return -(-len(self.share) // (self.batch_size or 1))

    def __iter__(self) -> Iterator[Batch]:
        return self._loader.batches(self._seek, 0, len(self), "the evaluation")

    def _seek(self, place: int) -> None:
        self.share.start = place * (self.batch_size or 1)


def _expected() -> str:
    memory = "expected enough memory (/dev/shm as well)" if sys.platform == "linux" else "expected enough memory"
    return memory if are_forked() else f"{memory}, and a script that does its work below `if __name__ == '__main__':`,"
