"""What every engine keeps to: arrays in, named arrays out. Pictures and labels stay outside."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from importlib import util
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np

from swiftformer.artifact import Artifact
from swiftformer.image_processing import Preprocessing
from swiftformer.messages import is_out_of_memory, one_line

ROUNDING = 0.05  # of probabilities in low precision
NATIVE = "./native, in a clone of swiftformer"  # what pip installs: no package index has it
ONE_CLASS = (None, "single_label_classification")  # problem types of transformers
MOST_THREADS = 1024  # more crash some runtimes


@dataclass(frozen=True)
class EngineOptions:
    """How a model is to be run, as `swiftformer.engines.open_engine` takes it."""

    device: str | None = None
    precision: str | None = None
    threads: int | None = None
    form: str | None = None
    isa: str | None = None
    pin: bool = False

    @property
    def only_for_native(self) -> str | None:
        """The name of an option that is set and only `native` has, if any."""
        return "isa" if self.isa is not None else "pin" if self.pin else None


class EngineError(ValueError):
    """A runtime that is missing or refuses the model, or an input that does not fit it."""


class BackendMissingError(EngineError):
    """A runtime without the part that a model was lowered for; the model itself may be sound."""


def checked_threads(threads: Any) -> int:
    """A number of threads.

    Raises:
        EngineError: none from 1 to `MOST_THREADS`.
    """
    whole = isinstance(threads, Integral) and not isinstance(threads, bool)
    if not whole or not 1 <= int(threads) <= MOST_THREADS:
        raise EngineError(f"threads: expected a number from 1 to {MOST_THREADS}, found {threads!r}")
    return int(threads)


def package_of(extra: str) -> str:
    """What pip installs for one of this package's extras; empty for the package alone."""
    if extra == "native":
        return NATIVE
    return f"'swiftformer[{extra}]'" if extra else "swiftformer"


def expect_stored(engine: str, artifact: Artifact, precision: str | None) -> None:
    """Of an engine that has no choice: an EngineError for another precision than the artifact is stored in."""
    if precision not in (None, artifact.precision):
        raise EngineError(
            f"{engine} computes as the artifact is stored: expected {artifact.precision}, found {precision}"
        )


def expect_torch(reference: str | Path) -> None:
    """Of what runs in torch or is fused there: an EngineError where it is not installed."""
    if util.find_spec("torch") is None:
        raise EngineError(
            f"{reference}: expected an exported artifact where torch is not installed, found none there; this "
            "checkpoint needs torch: pip install swiftformer"
        )


def expect_cpu(engine: str, device: str | None) -> None:
    """Of an engine that runs nowhere else: an EngineError for another device."""
    if device not in (None, "cpu"):
        raise EngineError(f"device: expected cpu for {engine}, found {device!r}")


class Engine(ABC):
    """A loaded model.

    Attributes:
        name: of the engine, with its precision and device, for people.
        preprocessing: what makes the input from a picture.
        labels: names of the classes.
        outputs: names of what a call returns, in order.
        input_shape: batch, channels, height and width of the input; None for what is free.
        problem_type: of a classifier, transformers'; None for one class per picture.
        task: of an artifact, a `swiftformer.model_kinds.Task`.
        reason: of the lines of its runtime's errors, the one that says why.
    """

    name: str
    preprocessing: Preprocessing
    labels: tuple[str, ...]
    outputs: tuple[str, ...]
    input_shape: tuple[int | None, int | None, int | None, int | None]
    problem_type: str | None = None
    task: str | None = None
    reason: int = -1

    def __call__(self, batch: np.ndarray) -> dict[str, np.ndarray]:
        """`(N, channels, H, W)` to arrays of N rows each, by the names of `outputs`.

        A model with a fixed batch is called as often as it takes; what is missing of the last batch is filled up.

        Raises:
            EngineError: an input of another shape, or one that the runtime fails on.
            MemoryError, torch.OutOfMemoryError: there is not enough memory.
        """
        batch = np.ascontiguousarray(batch, dtype=np.float32)
        if (
            batch.ndim != 4
            or len(batch) == 0
            or any(
                wanted not in (None, found) for wanted, found in zip(self.input_shape[1:], batch.shape[1:], strict=True)
            )
        ):
            expected = ", ".join("N" if i == 0 else str(n or "any") for i, n in enumerate(self.input_shape))
            raise EngineError(f"expected an input of shape ({expected}), found {batch.shape}")
        fixed = self.input_shape[0]
        if fixed is None or fixed == len(batch):
            return dict(zip(self.outputs, self._guarded(batch), strict=True))
        rows: list[list[np.ndarray]] = []
        for start in range(0, len(batch), fixed):
            part = batch[start : start + fixed]
            padded = np.concatenate([part, np.repeat(part[-1:], fixed - len(part), axis=0)])
            rows.append([output[: len(part)] for output in self._guarded(padded)])
        return {name: np.concatenate(parts) for name, parts in zip(self.outputs, zip(*rows, strict=True), strict=True)}

    def _guarded(self, batch: np.ndarray) -> list[np.ndarray]:
        try:
            return self.run(batch)
        except EngineError:
            raise
        except Exception as error:  # of many classes, the runtimes' own
            if is_out_of_memory(error):
                raise
            reason = one_line(error, self.reason)
            raise EngineError(f"{self.name} fails on an input of shape {batch.shape} ({reason})") from error

    @abstractmethod
    def run(self, batch: np.ndarray) -> list[np.ndarray]:
        """A C-contiguous float32 batch that fits `input_shape` to the outputs in order."""

    def probabilities(self, batch: np.ndarray) -> np.ndarray:
        """`(N, channels, H, W)` to `(N, classes)`, each row of sum 1.

        Raises:
            EngineError: another shape, not a classifier, one of another number of classes than there are labels, or
                one that gives no finite numbers.
        """
        if self.problem_type not in ONE_CLASS:
            raise EngineError(f"expected a classifier of one class per picture, found one for {self.problem_type}")
        if self.outputs == ("probabilities",):
            rows = self(batch)["probabilities"]
            sums = rows.sum(axis=1)
            if not (rows.min() >= -ROUNDING and np.abs(sums - 1).max() <= ROUNDING):
                raise EngineError(
                    f"{self.name}: expected probabilities of sum 1, found {rows.min():.4g} to {rows.max():.4g} "
                    f"and sums of {sums.min():.4g} to {sums.max():.4g}"
                )
            return self._labelled(rows)
        if self.outputs != ("logits",):
            raise EngineError(f"expected a classifier, found a model with the outputs {', '.join(self.outputs)}")
        logits = self(batch)["logits"].astype(np.float64)
        if logits.ndim != 2:
            raise EngineError(f"expected a classifier, found a segmentation model (logits of shape {logits.shape})")
        if not np.isfinite(logits).all():
            raise EngineError(f"{self.name}: expected finite logits, found others (weights that are not finite?)")
        powers = np.exp(logits - logits.max(axis=1, keepdims=True))
        return self._labelled(powers / powers.sum(axis=1, keepdims=True))

    def _labelled(self, probabilities: np.ndarray) -> np.ndarray:
        if probabilities.shape[1:] != (len(self.labels),):
            raise EngineError(
                f"{self.name}: expected a label for each of {probabilities.shape[1]} classes, found {len(self.labels)}"
            )
        return probabilities
