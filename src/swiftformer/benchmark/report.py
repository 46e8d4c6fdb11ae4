"""Benchmark results for people: tables and a plot."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from swiftformer.reports import console

OURS = "swiftformer"


def benchmark_table(result: dict[str, Any]) -> None:
    """A row for each candidate, a table for each variant and batch, the fastest first."""
    for (variant, batch), rows in _cells(result["rows"]).items():
        ordered = sorted((row for row in rows if "error" not in row), key=lambda row: row["median_ms"])
        if not ordered:
            continue
        height, width = ordered[0]["size"]
        cells = [
            (
                f"{row['implementation']} {row['engine']}",
                row["precision"],
                f"{row['median_ms']:.2f}",
                f"{row['p95_ms']:.2f}",
                f"{row['p99_ms']:.2f}",
                f"{row['images_per_second']:.0f}",
                *(
                    (f"{row['load_seconds']:.1f}", f"{row['start_seconds']:.1f}", f"{row['memory_mb']:.0f}")
                    if "memory_mb" in row
                    else ("", "", "")
                ),
                f"{row['difference']:.0e}",
            )
            for row in ordered
        ]
        headings = ("", "precision", "median ms", "p95", "p99", "images/s", "load s", "start s", "MB", "difference")
        _print(f"{variant}, batch {batch}, {height}x{width}", headings, cells)


def attention_table(result: dict[str, Any]) -> None:
    """A row for each number of tokens: milliseconds and megabytes of each module."""
    names = list(dict.fromkeys(row["module"] for row in result["rows"]))
    found = {(row["tokens"], row["module"]): row for row in result["rows"]}
    cells = [
        (str(count), *(f"{found[count, n]['median_ms']:.3g} ms, {found[count, n]['memory_mb']:.3g} MB" for n in names))
        for count in dict.fromkeys(row["tokens"] for row in result["rows"])
    ]
    if result["slopes"]:
        cells.append(("slope", *(f"{result['slopes'][name]:.2f}" for name in names)))
    _print(f"width {result['dim']}, batch {result['batch']}", ("tokens", *names), cells)


def layers_table(result: dict[str, Any]) -> None:
    """A row for each layer, in order."""
    cells = [
        (row["layer"], row["kind"], f"{row['median_ms']:.3f}", f"{100 * row['share']:.1f}%") for row in result["rows"]
    ]
    cells.append(("all", "", f"{result['total_ms']:.3f}", "100%"))
    height, width = result["size"]
    _print(f"batch {result['batch']}, {height}x{width}", ("layer", "kind", "median ms", "share"), cells)


def plot_benchmark(result: dict[str, Any], file: Path) -> None:
    """Bars of median times, a panel for each variant and batch, this project's in another colour."""
    from swiftformer.train.plots import GRID, INK, SECOND, new_figure, save_figure

    cells = _cells([row for row in result["rows"] if "error" not in row])
    most = max(len(rows) for rows in cells.values())
    figure, axes = new_figure(5.5 * len(cells), 1 + 0.28 * most, columns=len(cells))
    for axis, ((variant, batch), rows) in zip(axes, cells.items(), strict=True):
        ordered = sorted(rows, key=lambda row: -row["median_ms"])
        names = [f"{row['implementation']} {row['engine']} {row['precision']}" for row in ordered]
        colours = [INK if row["implementation"] == OURS else SECOND for row in ordered]
        bars = axis.barh(names, [row["median_ms"] for row in ordered], color=colours)
        axis.bar_label(bars, fmt="%.1f", padding=2, fontsize=7)
        axis.set(title=f"{variant}, batch {batch}", xlabel="median ms")
        axis.grid(axis="x", color=GRID)
        axis.set_axisbelow(True)
        axis.tick_params(labelsize=7)
    save_figure(figure, file)


def _cells(rows: Sequence[dict[str, Any]]) -> dict[tuple[str, int], list[dict[str, Any]]]:
    cells: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for row in rows:
        cells.setdefault((row["variant"], row["batch"]), []).append(row)
    return cells


def _print(title: str, headings: Sequence[str], cells: Sequence[Sequence[str]]) -> None:
    table = Table(box=None, pad_edge=False, title=title, title_justify="left")
    for i, heading in enumerate(headings):
        table.add_column(heading, justify="left" if i == 0 else "right")
    for row in cells:
        table.add_row(*(Text(cell) for cell in row))
    console().print(table)
