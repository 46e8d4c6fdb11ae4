"""Latency and throughput, with this project and its peers measured in turn in one run."""

from __future__ import annotations

import logging
import platform
import random
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from importlib import metadata
from itertools import chain, product
from pathlib import Path
from typing import Any

import numpy as np
import torch

from swiftformer.benchmark.candidates import CANDIDATES, Candidate, Case, to_numpy
from swiftformer.benchmark.footprint import footprint
from swiftformer.benchmark.peers import against_peers
from swiftformer.device import select_device
from swiftformer.engines.base import checked_threads
from swiftformer.messages import one_line
from swiftformer.processors import processors
from swiftformer.variants import get_variant

logger = logging.getLogger(__name__)

# Largest difference of the logits over their largest value, by precision: a peer beyond it computes something else. Of
# several variants at 32 to 224 pixels, bf16 was found to differ by up to 0.05, int8 by up to 0.43 here and 0.57 in
# peers; what ignores its pictures differs by 1. On a GPU torch's convolutions of float32 are of TF32: ten bits.
AGREEMENT = {"fp32": 1e-3, "tf32": 0.02, "bf16": 0.15, "fp16": 0.05, "int8": 0.6}
AS_FLOAT32 = 1e-4  # what should be bfloat16 and differs by less is not: that differs by a hundred times as much
PACKAGES = (
    *("torch", "timm", "transformers", "swiftformer-native", "openvino", "onnxruntime", "nncf"),
    *("executorch", "litert-torch", "ai-edge-litert"),
)


def run_benchmark(
    variants: Sequence[str] = ("xs",),
    batches: Sequence[int] = (1, 16),
    sizes: Sequence[tuple[int, int]] = ((224, 224),),
    *,
    implementations: Sequence[str] = (),
    engines: Sequence[str] = (),
    precisions: Sequence[str] = (),
    threads: int | None = None,
    device: str = "cpu",
    rounds: int = 10,
    seconds: float = 0.3,
    footprints: bool = True,
    progress: Callable[[str], None] = lambda text: None,
    save: Callable[[dict[str, Any]], None] = lambda result: None,
) -> dict[str, Any]:
    """Time every candidate that is installed, for every variant, batch and size.

    In each round every candidate is called in turn, in an order of its own, so that a slow moment of the machine hits
    all. All compute the July 2023 form with the same weights, but for transformers, which knows only that of March;
    each is compared with the model of its form before it is timed. One that fails, or computes something else, gets a
    row with an `error`.

    Args:
        variants: xs, s, l1, l3.
        batches: images per call.
        sizes: height and width in pixels.
        implementations, engines, precisions: which candidates to take; empty for all.
        threads: of every candidate on a CPU; by default one for each processor that this process may run on.
        device: `cpu` or `cuda`.
        rounds: of every candidate.
        seconds: that each candidate is timed for in a round; it is called at least twice.
        footprints: also run each candidate once in a process of its own, for its memory and its start-up; on a CPU, and
            not those that would be compiled again for it.
        progress: called with what is being done.
        save: called with the result so far after every variant, batch and size.

    Returns:
        `{"machine", "not_installed", "rows", "against_peers"}`; each row has `implementation`, `engine`, `precision`,
        `variant`, `batch`, `size`, what `summary` tells of its calls, `difference`, and `prepare_seconds`, which is
        loading, fusing, exporting, quantising and compiling in one (of several that share a file, the first writes
        it), and what `footprint` measures; or an `error`. `not_installed` names candidates that were asked for. The
        comparisons are those of `swiftformer.benchmark.peers.against_peers`.

    Raises:
        ValueError: nothing to measure or nothing installed, no such device or name, a size below 32 pixels, or too many
            threads.
    """
    device = str(select_device(device))
    for name, values in (("variants", variants), ("batches", batches), ("sizes", sizes)):
        if not values:
            raise ValueError(f"{name}: expected at least one, found none")
    threads = processors() if threads is None else checked_threads(threads)
    for name in variants:
        get_variant(name)
    if too_small := [f"{height}x{width}" for height, width in sizes if min(height, width) < 32]:
        raise ValueError(f"size: expected at least 32 pixels, found {', '.join(too_small)}")
    asked = _asked_for(implementations, engines, precisions, device)
    chosen = [candidate for candidate in asked if not candidate.missing()]
    if not chosen:
        packages = sorted({package for candidate in asked for package in candidate.missing()})
        raise ValueError(f"expected one of these packages for what was asked for, found none: {', '.join(packages)}")
    rows: list[dict[str, Any]] = []
    missing = [str(candidate) for candidate in asked if candidate.missing()]
    on_gpu = device.startswith("cuda")
    machine = (
        describe_machine(device) | {"threads": threads} | ({"float32": "TF32, where the GPU has it"} if on_gpu else {})
    )
    result: dict[str, Any] = {"machine": machine, "not_installed": missing, "rows": rows, "against_peers": []}
    # Beyond its limit of compilations dynamo would run a function eagerly, and only log that.
    with (
        _keeping_threads(),
        _tf32() if on_gpu else nullcontext(),
        torch._dynamo.config.patch(fail_on_recompile_limit_hit=True),
    ):
        for variant, batch, size in product(dict.fromkeys(variants), dict.fromkeys(batches), dict.fromkeys(sizes)):
            rows += _measure(chosen, variant, batch, size, threads, device, rounds, seconds, footprints, progress)
            result["against_peers"] = against_peers(rows)
            save(result)
    return result


@contextmanager
def _keeping_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _tf32() -> Iterator[None]:
    """All float32 products of a GPU are of TF32, as those of convolutions are by default: what is a convolution in one
    candidate is a linear layer in another."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def _asked_for(
    implementations: Sequence[str], engines: Sequence[str], precisions: Sequence[str], device: str
) -> list[Candidate]:
    """The candidates of these names that run on the device, installed or not; of no names, all."""
    found = CANDIDATES
    for field, names in (("implementation", implementations), ("engine", engines), ("precision", precisions)):
        known = dict.fromkeys(getattr(candidate, field) for candidate in CANDIDATES)
        if unknown := [name for name in names if name not in known]:
            raise ValueError(f"{field}s: expected some of {', '.join(known)}, found {', '.join(unknown)}")
        found = [candidate for candidate in found if not names or getattr(candidate, field) in names]
    if not (found_here := [candidate for candidate in found if device.split(":")[0] in candidate.devices]):
        asked = ", ".join((*implementations, *engines, *precisions)) or "all"
        raise ValueError(f"expected a candidate that runs on {device}, found none of {asked}")
    return found_here


def _measure(
    chosen: Iterable[Candidate],
    variant: str,
    batch: int,
    size: tuple[int, int],
    threads: int,
    device: str,
    rounds: int,
    seconds: float,
    footprints: bool,
    progress: Callable[[str], None],
) -> list[dict[str, Any]]:
    cell = f"{variant}, batch {batch}, {size[0]}x{size[1]}"
    folder = Path(tempfile.mkdtemp(prefix="swiftformer-benchmark-"))
    try:
        case = Case(variant, batch, size, threads, device, folder)
        rows: list[dict[str, Any]] = []
        failed: list[dict[str, Any]] = []
        measured: list[Candidate] = []
        calls: list[Callable[..., Any]] = []
        times: list[list[list[float]]] = []  # of a candidate, its rounds
        for candidate in chosen:
            progress(f"{cell}: preparing {candidate}")
            row: dict[str, Any] = {
                "implementation": candidate.implementation,
                "engine": candidate.engine,
                "precision": candidate.precision,
                "variant": variant,
                "batch": batch,
                "size": list(size),
            }
            start = time.perf_counter()
            try:
                calls.append(candidate.call(case))
                found = [to_numpy(calls[-1]())]
                row["prepare_seconds"] = time.perf_counter() - start
                found += [to_numpy(calls[-1](number)) for number in range(1, len(case.batches))]
                kind = "tf32" if device != "cpu" and candidate.precision == "fp32" else candidate.precision
                row["difference"] = _agreeing(np.concatenate(found), case.expected(candidate), kind)
                if candidate.precision == "bf16" and row["difference"] < AS_FLOAT32:
                    raise ValueError("float32 was computed instead")
            except Exception as error:  # whatever a peer's package may raise: the others are still measured
                reason = one_line(error)
                logger.warning("%s: %s fails (%s)", cell, candidate, reason)
                failed.append(row | {"error": reason})
                del calls[len(rows) :]  # one that was made
                continue
            rows.append(row)
            measured.append(candidate)
            times.append([])
        generator = random.Random(cell)
        for number in range(rounds):
            progress(f"{cell}: round {number + 1} of {rounds}")
            for place in generator.sample(range(len(calls)), len(calls)):
                if "error" in rows[place]:
                    continue
                try:
                    times[place].append(time_calls(calls[place], seconds))
                except Exception as error:  # as above
                    rows[place]["error"] = one_line(error)
                    logger.warning("%s: %s fails (%s)", cell, measured[place], rows[place]["error"])
        for row, by_round in zip(rows, times, strict=True):
            if "error" not in row:
                row |= summary(by_round, batch)
        calls.clear()  # their threads and memory
        for row, candidate in zip(rows, measured, strict=True):
            if footprints and device == "cpu" and not candidate.compiled and "error" not in row:
                progress(f"{cell}: starting {candidate}")
                try:
                    row |= footprint(candidate, case)
                except Exception as error:  # whatever a peer's package may do: what is measured stays
                    row["footprint_error"] = one_line(error)
                    logger.warning("%s: no footprint of %s (%s)", cell, candidate, row["footprint_error"])
        return rows + failed
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _agreeing(found: np.ndarray, expected: np.ndarray, precision: str) -> float:
    """The largest difference of a logit over the largest logit; a ValueError beyond `AGREEMENT`.

    Or that of what tells the pictures apart, logits less their mean over the pictures, whichever is larger: of one that
    gives all pictures the same logits this is 1.

    Args:
        found, expected: `(pictures, classes)`.
    """
    apart = found - found.mean(axis=0), expected - expected.mean(axis=0)
    difference = float(np.max([np.abs(a - b).max() / np.abs(b).max() for a, b in ((found, expected), apart)]))
    if not difference <= AGREEMENT[precision]:
        raise ValueError(
            f"expected a relative difference of at most {AGREEMENT[precision]} from the model, found {difference:.2g}"
        )
    return difference


def time_calls(call: Callable[[], Any], seconds: float) -> list[float]:
    """Seconds of each call, over at least two calls and `seconds`, behind one that is not counted."""
    call()  # the threads of the engine before may still spin, and the caches hold its weights
    measured: list[float] = []
    end = time.perf_counter() + seconds
    while len(measured) < 2 or time.perf_counter() < end:
        start = time.perf_counter()
        call()
        measured.append(time.perf_counter() - start)
    return measured


def summary(by_round: Sequence[Sequence[float]], batch: int) -> dict[str, Any]:
    """What is told of the seconds of each call.

    Returns:
        `rounds_ms`, the median of each round; `median_ms`, theirs (a round lasts about as long in a slow moment, and
        has fewer calls, so that a median of all calls would be one of quick moments); `p95_ms` and `p99_ms` of all
        calls, whose number is `calls`; `images_per_second` by the median.
    """
    rounds = [1e3 * statistics.median(measured) for measured in by_round]
    calls = list(chain.from_iterable(by_round))
    p95, p99 = (1e3 * float(np.percentile(calls, q)) for q in (95, 99))
    median = statistics.median(rounds)
    return {
        "median_ms": median,
        "p95_ms": p95,
        "p99_ms": p99,
        "images_per_second": 1e3 * batch / median,
        "calls": len(calls),
        "rounds_ms": rounds,
    }


def describe_machine(device: str = "cpu") -> dict[str, Any]:
    """Processor, its features that matter, cores, and versions of the packages."""
    machine: dict[str, Any] = {"system": platform.platform(), "python": platform.python_version()}
    machine["cores"] = processors()
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        fields = dict(line.split(":", 1) for line in lines if ":" in line)
        named = {key.strip(): value.strip() for key, value in fields.items()}
        machine["processor"] = named.get("model name", platform.processor())
        wanted = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8")
        machine["features"] = [name for name in wanted if name in named.get("flags", "").split()]
    if device.startswith("cuda"):
        machine["gpu"] = torch.cuda.get_device_name(device)
    for package in PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            machine[package] = metadata.version(package)
    return machine
