"""What a training run writes down: `train.log`, `metrics.jsonl`, TensorBoard, and Weights & Biases if present."""

from __future__ import annotations

import errno
import json
import logging
import os
from collections.abc import Callable, Collection
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TextIO

from swiftformer.data.processes import log_file
from swiftformer.files import atomic_file
from swiftformer.messages import named
from swiftformer.train.dashboards import Dashboard, TensorBoard, WeightsAndBiases, weights_and_biases

logger = logging.getLogger(__name__)


class RunLog:
    """The records of a run; a context manager.

    `output/metrics.jsonl` is the record that counts: what cannot be written there is an error. TensorBoard
    (`output/tensorboard`, and below it `steps`) and Weights & Biases never stop a run: the first thing that goes wrong
    with one is a warning, and it is left out from then on.

    Weights & Biases is used where it is installed: in the project `swiftformer`, offline where no key is configured,
    switched off by `WANDB_MODE=disabled`. A resumed run goes on in the same W&B run, where the epochs and steps that
    are trained again appear twice.

    Args:
        output: the run folder.
        recipe: the configuration that W&B shows.
        measures: names of what an epoch tells of its evaluation, besides those that begin with `val_`.
        epochs_done: finished epochs of a run that goes on; whatever was written down after them is dropped.
        rank: of the process: others than the first write their warnings, if there are any, to `train-RANK.log`.

    Raises:
        OSError: on entry, `train.log` or `metrics.jsonl` cannot be written.
        ValueError: on entry, another process has the log.
    """

    def __init__(
        self,
        output: str | Path,
        recipe: dict[str, Any],
        measures: Collection[str] = ("top1", "top5", "calibration_error"),
        *,
        epochs_done: int = 0,
        rank: int = 0,
    ) -> None:
        self.output, self.recipe, self.epochs_done, self.rank = Path(output), recipe, epochs_done, rank
        self._measures = measures
        self._file: logging.FileHandler | None = None
        self._level = logging.NOTSET
        self._dashboards: list[Dashboard] = []

    def __enter__(self) -> Self:
        package = logging.getLogger("swiftformer")
        self._level = package.level
        self.output.mkdir(parents=True, exist_ok=True)
        if self.rank:  # several machines cannot append to one file without losing lines
            self._file = log_file(self.output / f"train-{self.rank}.log", delay=True)
            self._file.setLevel(logging.WARNING)
            package.addHandler(self._file)
            return self
        self._file = log_file(self.output / "train.log")
        assert self._file.stream is not None
        if not _locked(self._file.stream):
            self._file.close()
            self._file = None
            raise ValueError(f"{self.output}: another process trains in this folder; wait for it or choose another")
        _forget_lines_after(self.output / "metrics.jsonl", self.epochs_done)
        if self._level == logging.NOTSET:
            package.setLevel(logging.INFO)
        package.addHandler(self._file)
        starts: dict[str, Callable[[], Dashboard | None]] = {
            TensorBoard.name: lambda: TensorBoard(self.output / "tensorboard"),
            WeightsAndBiases.name: lambda: weights_and_biases(self.output, self.recipe),
        }
        for name, start in starts.items():
            try:
                dashboard = start()
            except Exception as error:
                logger.warning("%s is left out: %s", name, named(error))
            else:
                self._dashboards += [] if dashboard is None else [dashboard]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is None:
            return
        if error is not None:
            self._note(logging.ERROR, f"stopped by {named(error)}")
        self._tell(lambda dashboard: dashboard.close(failed=error is not None))
        self._dashboards = []
        package = logging.getLogger("swiftformer")
        package.removeHandler(self._file)
        package.setLevel(self._level)
        self._file.close()
        self._file = None

    def epoch(self, metrics: dict[str, float]) -> None:
        """Write down the metrics of an epoch; `metrics["epoch"]` counts from 1.

        Raises:
            OSError: `metrics.jsonl` cannot be written.
        """
        if self.rank:
            return
        with (self.output / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(metrics) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self._note(logging.INFO, "  ".join(f"{name} {value:.6g}" for name, value in _numbers(metrics).items()))
        tagged = {self._tag(name): value for name, value in _numbers(metrics).items() if name != "epoch"}
        self._tell(lambda dashboard: dashboard.scalars("epoch", int(metrics["epoch"]), tagged))

    def step(self, step: int, metrics: dict[str, float]) -> None:
        """Show metrics of an update of the weights, counted over the whole run; they are kept in no file of ours."""
        tagged = {f"step/{name}": value for name, value in _numbers(metrics).items()}
        self._tell(lambda dashboard: dashboard.scalars("step", step, tagged))

    def figure(self, name: str, picture: Path, epoch: int) -> None:
        """Show a PNG as it is after an epoch, counted from 1."""
        self._tell(lambda dashboard: dashboard.image(name, picture, epoch))

    def _tell(self, what: Callable[[Dashboard], None]) -> None:
        for dashboard in list(self._dashboards):
            try:
                what(dashboard)
            except Exception as error:
                self._dashboards.remove(dashboard)
                with suppress(Exception):
                    dashboard.close(failed=True)
                logger.warning("%s is left out from here on: %s", dashboard.name, named(error))

    def _tag(self, name: str) -> str:
        if "/" in name:
            return name
        if name in self._measures or name.startswith("val_"):
            return f"val/{name.removeprefix('val_')}"
        return f"train/{name.removeprefix('train_')}"

    def _note(self, level: int, message: str) -> None:
        """A line for train.log alone: a person sees the same on the terminal in another way."""
        if self._file is not None:
            self._file.handle(logger.makeRecord(logger.name, level, "", 0, message, (), None))


def _numbers(metrics: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if isinstance(value, int | float)}


def _forget_lines_after(path: Path, epochs: int) -> None:
    """Drop what was written after the state was saved, a torn last line included: it will be trained again."""
    if path.exists():
        lines = path.read_bytes().splitlines()[:epochs]
        with atomic_file(path) as file:
            file.write_bytes(b"".join(line + b"\n" for line in lines))


def _locked(file: TextIO) -> bool:
    """Lock a file as long as this process has it open; False where another one has. Without locks, on Windows or a file
    system that has none, True."""
    try:
        import fcntl
    except ImportError:
        return True
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in (errno.EACCES, errno.EAGAIN)
    return True
