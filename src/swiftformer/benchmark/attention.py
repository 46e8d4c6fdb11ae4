"""Time and memory of the four attention modules of the paper's figure 2, over the number of tokens."""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from swiftformer.attention import ATTENTION_MODULES
from swiftformer.benchmark.latency import describe_machine, time_calls
from swiftformer.device import select_device
from swiftformer.engines.base import checked_threads

TOKENS = (49, 196, 784, 1024, 2048, 4096, 8192, 16384)
SLOPE_FROM = 1024  # tokens; below, what does not depend on them takes much of the time


def run_attention_benchmark(
    tokens: Sequence[int] = TOKENS,
    dim: int = 64,
    *,
    device: str = "cpu",
    threads: int | None = None,
    rounds: int = 5,
    seconds: float = 0.1,
    progress: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Time each module at each number of tokens, in turn.

    Args:
        tokens: per image.
        dim: width of a token.
        threads: on the CPU; by default torch's own choice.

    Returns:
        `{"machine", "rows", "slopes"}`: rows with `module`, `tokens`, `median_ms` and `peak_mb`, the 10^6 bytes that
        a call holds at most, its result among them, its input and weights not; slopes by module, of log time over log
        tokens from 1,024 tokens on.

    Raises:
        ValueError: no such device, or too many threads.
    """
    device = str(select_device(device))
    if threads is not None:
        torch.set_num_threads(checked_threads(threads))
    torch.manual_seed(0)
    modules = {name: cls(dim).to(device).eval() for name, cls in ATTENTION_MODULES.items()}
    rows: list[dict[str, Any]] = []
    for count in dict.fromkeys(tokens):
        progress(f"{count} tokens")
        x = torch.randn(1, count, dim, device=device)
        measured: dict[str, list[float]] = {name: [] for name in modules}
        with torch.inference_mode():
            for _ in range(rounds):
                for name, module in modules.items():
                    measured[name] += time_calls(partial(_run, module, x), seconds)
            for name, module in modules.items():
                median = 1e3 * statistics.median(measured[name])
                rows.append({"module": name, "tokens": count, "median_ms": median, "peak_mb": peak(module, x) / 1e6})
    return {"machine": describe_machine(device), "dim": dim, "rows": rows, "slopes": slopes(rows)}


def _run(module: torch.nn.Module, x: torch.Tensor) -> None:
    module(x)
    if x.is_cuda:
        torch.cuda.synchronize(x.device)


def peak(module: torch.nn.Module, x: torch.Tensor) -> int:
    """Most bytes that a call holds at a time, besides what was there before."""
    if x.is_cuda:
        torch.cuda.synchronize(x.device)
        before = torch.cuda.memory_allocated(x.device)
        torch.cuda.reset_peak_memory_stats(x.device)
        _run(module, x)
        return torch.cuda.max_memory_allocated(x.device) - before
    from torch.profiler import ProfilerActivity, profile

    os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # it tells of its beginning and end otherwise
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        _run(module, x)
    # One event for each block that is taken or given back: `events()` has sums by operator instead.
    changes = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = np.cumsum([event.nbytes() for event in sorted(changes, key=lambda event: event.start_ns())], dtype=np.int64)
    return int(held.max(initial=0))


def slopes(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Slope of log time over log tokens, by module: 1 is linear, 2 quadratic."""
    found = {}
    for name in dict.fromkeys(row["module"] for row in rows):
        points = [(r["tokens"], r["median_ms"]) for r in rows if r["module"] == name and r["tokens"] >= SLOPE_FROM]
        if len(points) > 1:
            tokens, times = np.log(np.array(points)).T
            found[name] = float(np.polyfit(tokens, times, deg=1)[0])
    return found


def plot_attention(result: dict[str, Any], file: Path) -> None:
    """Time and peak memory over tokens, all logarithmic."""
    from swiftformer.train.plots import GRID, new_figure, save_figure

    figure, axes = new_figure(12, 4, columns=2)
    for name in dict.fromkeys(row["module"] for row in result["rows"]):
        rows = [row for row in result["rows"] if row["module"] == name]
        slope = result["slopes"].get(name)
        for axis, key in zip(axes, ("median_ms", "peak_mb"), strict=True):
            points = [(row["tokens"], row[key]) for row in rows]
            named = name + (f", slope {slope:.2f}" if slope and key == "median_ms" else "")
            axis.loglog(*zip(*points, strict=True), marker="o", label=named)
    for axis, label in zip(axes, ("median time, ms", "peak memory, MB"), strict=True):
        axis.set(xlabel="tokens", ylabel=label)
        axis.grid(which="both", color=GRID)
        axis.legend(frameon=False)
    save_figure(figure, file)
