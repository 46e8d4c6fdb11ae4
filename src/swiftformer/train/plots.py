"""Pictures of a run: its curves, and the confusion matrix of the last evaluation."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from swiftformer.files import atomic_file

INK, SECOND, GRID = "#1f4e79", "#c0504d", "#dddddd"
MAX_NAMED_CLASSES = 40  # more names than this would lie on each other
MAX_CLASSES = 400  # a picture of more shows nothing


class RunPictures:
    """`curves.png` and `confusion.png` of a run folder: drawn behind the first epoch, then so often that each takes a
    twentieth of the time at most, and behind the last one.

    Args:
        measure: that of validation.
        classes: names of those of the confusion matrix.
    """

    def __init__(self, output: Path, measure: str, classes: list[str]) -> None:
        self._output, self._measure, self._classes = output, measure, classes
        self._due: dict[str, float] = {}  # on the clock of time.perf_counter

    def draw(self, confusion: Tensor | None, last: bool) -> bool:
        """Behind an epoch; whether there is a new `confusion.png`."""
        curves = partial(plot_curves, self._output / "metrics.jsonl", measure=self._measure)
        self._draw("curves.png", curves, last)
        if confusion is None:
            return False
        return self._draw("confusion.png", partial(plot_confusion, confusion, self._classes), last)

    def _draw(self, name: str, plot: Callable[..., None], last: bool) -> bool:
        began = time.perf_counter()
        if began < self._due.get(name, began) and not last:
            return False
        plot(target=self._output / name)
        ended = time.perf_counter()
        self._due[name] = ended + 20 * (ended - began)
        return True


def plot_curves(metrics: Path, target: Path, measure: str = "top1") -> None:
    """Draw loss, accuracy and learning rate over the epochs of a `metrics.jsonl`; `measure` is that of validation."""
    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    figure, axes = new_figure(12, 3.6, columns=3)
    panels = (
        ("loss", {"loss": "training"}),
        ("quality, %", {"train_accuracy": "training", measure: f"validation ({measure})"}),
        ("learning rate", {"lr": ""}),
    )
    for axis, (title, series) in zip(axes, panels, strict=True):
        for color, (key, label) in zip((INK, SECOND), series.items(), strict=False):
            points = [(line["epoch"], line[key]) for line in lines if key in line]
            if not points:
                continue
            axis.plot(*zip(*points, strict=True), color=color, label=label, marker="." if len(points) < 60 else "")
        axis.set(title=title, xlabel="epoch")
        axis.grid(color=GRID)
        if len(series) > 1 and axis.lines:
            axis.legend(frameon=False)
    save_figure(figure, target)


def plot_confusion(confusion: Tensor, classes: list[str], target: Path) -> None:
    """Draw a confusion matrix `(classes, classes)`, each row as shares of its true class.

    Of more than 400 classes, the 40 with the most errors: of their own pictures, or by being taken for others.
    """
    shares = confusion / confusion.sum(dim=1, keepdim=True).clamp(min=1)
    title = ""
    if len(classes) > MAX_CLASSES:
        errors = confusion.sum(dim=0) + confusion.sum(dim=1) - 2 * confusion.diagonal()
        chosen = errors.topk(MAX_NAMED_CLASSES).indices.sort().values
        title = f"the {MAX_NAMED_CLASSES} of {len(classes)} classes with the most errors"
        shares, classes = shares[chosen][:, chosen], [classes[i] for i in chosen]
    classes = [name.encode("utf-8", "replace").decode() for name in classes]  # of a folder it may be in another code
    side = min(max(4.0, 0.35 * len(classes)), 14.0)
    figure, (axis,) = new_figure(side + 1.5, side + 0.8)
    image = axis.imshow(100 * shares.numpy(), cmap="Blues", vmin=0, vmax=100)
    figure.colorbar(image, ax=axis, label="% of the true class", shrink=0.8)
    axis.set(title=title, xlabel="predicted", ylabel="true")
    if len(classes) <= MAX_NAMED_CLASSES:
        axis.set_xticks(range(len(classes)), classes, rotation=90, parse_math=False)
        axis.set_yticks(range(len(classes)), classes, parse_math=False)
    save_figure(figure, target)


def new_figure(width: float, height: float, columns: int = 1) -> tuple[Any, Any]:
    from matplotlib.figure import Figure  # without pyplot: no window system, no global state

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(1, columns, squeeze=False)[0]


def save_figure(figure: Any, target: Path) -> None:
    with atomic_file(target) as file:
        figure.savefig(file, format="png", dpi=110)
