"""Benchmark results as Markdown: what a page about a machine needs."""

from __future__ import annotations

from typing import Any

from swiftformer.benchmark.peers import cells

HEADINGS = {
    "float32": "float32",
    "bf16": "bf16",
    "any_precision": "any precision",
    "transformers_eager": "float32, transformers eager",
}


def benchmark_markdown(result: dict[str, Any]) -> str:
    """A table of this project over its peers, and one of the median milliseconds of every candidate.

    Args:
        result: of `swiftformer.benchmark.latency.run_benchmark`.
    """
    peers = [
        [_called(found), *(text for name in HEADINGS for text in _compared(found[name]))]
        for found in result["against_peers"]
    ]
    headings = ["", *(text for name in HEADINGS.values() for text in (f"{name}: peer", "here", "times as fast"))]
    found = cells(row for row in result["rows"] if "error" not in row)
    times = {
        (f"{row['implementation']} {row['engine']}", row["precision"], cell): row["median_ms"]
        for cell, rows in found.items()
        for row in rows
    }
    names = sorted({(name, precision) for name, precision, _ in times})
    lines = [
        [*name, *(f"{times[(*name, cell)]:.2f}" if (*name, cell) in times else "" for cell in found)] for name in names
    ]
    columns = [_called({"variant": variant, "batch": batch, "size": size}) for variant, batch, size in found]
    return f"{_table(headings, peers)}\n\n{_table(['median ms', '', *columns], lines)}\n"


def _called(found: dict[str, Any]) -> str:
    height, width = found["size"]
    return f"{found['variant'].upper()}, {found['batch']}" + ("" if height == width == 224 else f", {height}x{width}")


def _compared(compared: dict[str, Any] | None) -> list[str]:
    if compared is None:
        return ["", "", ""]
    low, high = compared["ratio_quartiles"]
    return [
        f"{compared['peer_ms']:.2f} ms, {compared['peer']}",
        f"{compared['ours_ms']:.2f} ms, {compared['ours']}",
        f"{compared['ratio']:.2f} ({low:.2f} to {high:.2f})",
    ]


def _table(headings: list[str], lines: list[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(line)} |" for line in (headings, ["---"] * len(headings), *lines))
