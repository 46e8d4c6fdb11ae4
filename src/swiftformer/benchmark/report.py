"""Benchmark results for people: tables and a plot."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from swiftformer.benchmark.peers import OURS, cells
from swiftformer.reports import console

PLOT_COLUMNS = 3
CALLS = {"p95_ms": 20, "p99_ms": 100}  # that a percentile takes, to be another than the largest


def benchmark_table(result: dict[str, Any]) -> None:
    """A table for each variant, batch and size, the fastest candidate first, and one of this project over its peers;
    then who is missing in them."""
    for cell, rows in cells(row for row in result["rows"] if "error" not in row).items():
        lines = [
            (
                f"{row['implementation']} {row['engine']}",
                row["precision"],
                f"{row['median_ms']:.2f}",
                *(f"{row[name]:.2f}" if row["calls"] >= calls else "" for name, calls in CALLS.items()),
                f"{row['images_per_second']:.0f}",
                *(
                    f"{row[name]:.{digits}f}" if name in row else ""
                    for name, digits in (("load_seconds", 1), ("start_seconds", 1), ("memory_mb", 0))
                ),
                f"{row['difference']:.0e}",
            )
            for row in sorted(rows, key=lambda row: row["median_ms"])
        ]
        headings = ("", "precision", "median ms", "p95", "p99", "images/s", "load s", "start s", "MB", "difference")
        _print(_title(*cell), headings, lines)
    summary = [
        (
            _title(found["variant"], found["batch"], found["size"]),
            *(_ratio(found[name]) for name in ("float32", "any_precision", "transformers_eager")),
        )
        for found in result["against_peers"]
    ]
    if any(text for line in summary for text in line[1:]):
        compared = ("", "float32, best peer", "any precision, best peer", "float32, transformers eager")
        _print("times as fast as the peers", compared, summary)
    for row in result["rows"]:
        name = f"{_title(row['variant'], row['batch'], row['size'])}: {row['implementation']} {row['engine']}"
        for kind, text in (("error", "fails"), ("footprint_error", "has no start-up and memory")):
            if kind in row:
                console().print(Text(f"{name} {row['precision']} {text} ({row[kind]})"))
    if result["not_installed"]:
        console().print(Text(f"not installed: {'; '.join(result['not_installed'])}"))


def attention_table(result: dict[str, Any]) -> None:
    """A row for each number of tokens: milliseconds of each module, and megabytes that it holds at most."""
    names = list(dict.fromkeys(row["module"] for row in result["rows"]))
    found = {(row["tokens"], row["module"]): row for row in result["rows"]}
    lines = [
        (
            str(count),
            *(f"{found[count, n]['median_ms']:.3g} ms, {found[count, n]['peak_mb']:.3g} MB" for n in names),
        )
        for count in dict.fromkeys(row["tokens"] for row in result["rows"])
    ]
    if result["slopes"]:
        lines.append(("slope", *(f"{result['slopes'][name]:.2f}" for name in names)))
    _print(f"width {result['dim']}; time, peak MB", ("tokens", *names), lines)


def layers_table(result: dict[str, Any]) -> None:
    """A row for each layer, in order."""
    lines = [
        (row["layer"], row["kind"], f"{row['median_ms']:.3f}", f"{100 * row['share']:.1f}%") for row in result["rows"]
    ]
    lines.append(("all", "", f"{result['total_ms']:.3f}", "100%"))
    height, width = result["size"]
    _print(f"batch {result['batch']}, {height}x{width}", ("layer", "kind", "median ms", "share"), lines)


def plot_benchmark(result: dict[str, Any], file: Path) -> None:
    """Bars of median times, a panel for each variant, batch and size, this project's in another colour.

    Nothing is drawn where nothing was measured.
    """
    from matplotlib.figure import Figure

    from swiftformer.train.plots import GRID, INK, SECOND, save_figure

    measured = cells(row for row in result["rows"] if "error" not in row)
    if not measured:
        return
    columns = min(len(measured), PLOT_COLUMNS)
    lines = math.ceil(len(measured) / columns)
    most = max(len(rows) for rows in measured.values())
    figure = Figure(figsize=(5.5 * columns, lines * (1 + 0.28 * most)), layout="constrained")
    axes = figure.subplots(lines, columns, squeeze=False).flatten()
    for axis, (cell, rows) in zip(axes, measured.items(), strict=False):
        ordered = sorted(rows, key=lambda row: -row["median_ms"])
        names = [f"{row['implementation']} {row['engine']} {row['precision']}" for row in ordered]
        colours = [INK if row["implementation"] == OURS else SECOND for row in ordered]
        bars = axis.barh(names, [row["median_ms"] for row in ordered], color=colours)
        axis.bar_label(bars, fmt="%.1f", padding=2, fontsize=7)
        axis.set(title=_title(*cell), xlabel="median ms")
        axis.grid(axis="x", color=GRID)
        axis.set_axisbelow(True)
        axis.tick_params(labelsize=7)
    for axis in axes[len(measured) :]:
        axis.remove()
    save_figure(figure, file)


def _title(variant: str, batch: int, size: Sequence[int]) -> str:
    return f"{variant}, batch {batch}, {size[0]}x{size[1]}"


def _ratio(compared: dict[str, Any] | None) -> str:
    if compared is None:
        return ""
    low, high = compared["ratio_quartiles"]
    return f"{compared['ratio']:.2f}x ({low:.2f} to {high:.2f})\n{compared['ours']}\n{compared['peer']}"


def _print(title: str, headings: Sequence[str], lines: Sequence[Sequence[str]]) -> None:
    table = Table(box=None, pad_edge=False, title=title, title_justify="left")
    for i, heading in enumerate(headings):
        table.add_column(heading, justify="left" if i == 0 else "right")
    for line in lines:
        table.add_row(*(Text(cell) for cell in line))
    console().print(table)
