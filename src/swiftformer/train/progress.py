"""What a person sees while a model trains: a progress bar on a terminal, a line per epoch elsewhere."""

from __future__ import annotations

from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)


class TrainingProgress:
    """Shows loss, accuracy, learning rate, images per second and the time left, on standard error.

    Of several processes only one is `enabled`. `measures` are what of an evaluation it tells.
    """

    def __init__(
        self,
        epochs: int,
        steps: int,
        val_images: int,
        first_epoch: int,
        measures: tuple[str, ...] = ("top1", "top5"),
        enabled: bool = True,
    ) -> None:
        self.epochs, self.steps, self.val_images, self.enabled = epochs, steps, val_images, enabled
        self.measures = measures
        self.console = Console(stderr=True)
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[numbers]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self.console,
            disable=not (enabled and self.console.is_terminal),
        )
        self.whole = self.progress.add_task("run", total=epochs * steps, completed=first_epoch * steps, numbers="")
        self.current = self.progress.add_task("", total=steps, numbers="")

    def __enter__(self) -> Self:
        self.progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.progress.stop()

    def step(self, epoch: int, step: int, metrics: dict[str, float]) -> None:
        """Show the running means of an epoch's first `step` steps."""
        self.progress.update(self.whole, completed=epoch * self.steps + step)
        hits = f"acc {metrics['train_accuracy']:.1f}%  " if "train_accuracy" in metrics else ""
        self.progress.update(
            self.current,
            description=f"epoch {epoch + 1}/{self.epochs}",
            total=self.steps,
            completed=step,
            numbers=f"loss {metrics['loss']:.3f}  {hits}lr {metrics['lr']:.2e}  "
            f"{metrics['images_per_second']:.0f} img/s",
        )
        if step == self.steps:
            self.progress.update(self.current, description="evaluate", total=self.val_images, completed=0, numbers="")

    def evaluated(self, images: int) -> None:
        """Move the evaluation's bar forward."""
        self.progress.advance(self.current, images)

    def epoch(self, metrics: dict[str, Any]) -> None:
        """Print the line of a finished epoch, which stays above the bar."""
        hits = f"train {metrics['train_accuracy']:.2f}%  " if "train_accuracy" in metrics else ""
        line = (
            f"epoch {metrics['epoch']}/{self.epochs}  loss {metrics['loss']:.4f}  {hits}lr {metrics['lr']:.2e}  "
            f"{metrics['images_per_second']:.0f} img/s  {metrics['seconds']:.1f} s"
        )
        line += "".join(f"  {name} {metrics[name]:.2f}%" for name in self.measures if name in metrics)
        if self.enabled:
            self.console.print(line, highlight=False, soft_wrap=True)
