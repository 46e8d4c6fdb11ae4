"""What a run learns. The loop asks a task for all that differs between them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sized
from pathlib import Path
from typing import Any, ClassVar, Protocol

from swiftformer.data.epoch_loader import EpochLoader
from swiftformer.train.distributed import Processes
from swiftformer.train.interruption import StopRequest
from swiftformer.train.objectives import Objective
from swiftformer.train.recipe import TrainingRecipe


class Examples(Sized, Protocol):
    """What every task's data are: named pictures with the names of their classes."""

    classes: list[str]

    def name(self, index: int) -> str:
        """What to call the picture in messages."""
        ...


class Task(ABC):
    """A recipe's task.

    Attributes:
        measures: what evaluation finds, in percent; the first decides which epoch is best.
        erasing: probability with which training images are partly erased.
        counts_hits: whether its objective counts what the network gets right in training.
    """

    measures: ClassVar[tuple[str, ...]]
    erasing: float = 0.0
    counts_hits: bool = True

    @abstractmethod
    def new_network(self, classes: list[str], variant: str, model: str | None, form: str | None) -> Any:
        """A network with random weights, or with those of the checkpoint `model`.

        Raises:
            ValueError: the recipe cannot be had with this checkpoint.
            CheckpointError: the checkpoint cannot be loaded.
        """

    @abstractmethod
    def network_of(self, config: dict[str, Any]) -> Any:
        """The network of a run that goes on, with random weights."""

    @abstractmethod
    def prepare(self, net: Any, source: Any) -> None:
        """Tell a network how its pictures are to be prepared, as it learns them from `source`."""

    @abstractmethod
    def training_loader(
        self, source: Any, epoch: int, batch_size: int, workers: int, processes: Processes
    ) -> EpochLoader[Any]:
        """Augmented batches of an epoch."""

    @abstractmethod
    def validation_batches(self, source: Any, batch_size: int, workers: int, processes: Processes) -> Iterable[Any]:
        """Batches to evaluate on, of this process's share."""

    @abstractmethod
    def objective(self, source: Any, output: Path, workers: int, processes: Processes, stop: StopRequest) -> Objective:
        """The loss on the training images."""

    @abstractmethod
    def evaluate(
        self, net: Any, source: Any, batches: Iterable[Any], progress: Callable[[int], None], processes: Processes
    ) -> tuple[dict[str, float], Any]:
        """The measures over all processes' batches, and the confusion matrix `(classes, classes)`, or None.

        Args:
            source: that the batches come from, through `validation_batches`.

        Raises:
            ValueError: no picture could be read.
        """


def task_of(recipe: TrainingRecipe) -> Task:
    """The task that a recipe is for."""
    from swiftformer.train.dense_recipe import DetectionRecipe, SegmentationRecipe
    from swiftformer.train.recipe import Recipe

    if isinstance(recipe, Recipe):
        from swiftformer.train.classification import Classification

        return Classification(recipe)
    if isinstance(recipe, DetectionRecipe):
        from swiftformer.train.detection import Detection

        return Detection(recipe)
    assert isinstance(recipe, SegmentationRecipe)
    from swiftformer.train.segmentation import Segmentation

    return Segmentation(recipe)
