"""Where the native engine's time goes, layer by layer, beside what its matrix kernel reaches at best.

    python benchmarks/native_roofline.py --variant xs --batch 1 --precision bf16

A layer takes no less than its arithmetic at the rate of products, nor than its bytes at that of memory: the larger of
both is its limit. The rate of products is what one thread of the engine reaches at best in a matrix product that stays
in its caches, times the threads; that of memory what the threads reach when they read an array as large as all weights
again and again. Arithmetic is that of the convolutions and products; GELU, norms and sums come on top. Bytes are the
weights once, and the maps read and written once for each pass over them. Times are medians over `--repeats` calls.
In int8, the first convolution (with AMX both of the stem) and the head are held against the same limit, but computed
in bfloat16 or float32; so is, in float32 with AMX, whose weights are three bfloat16, what AVX-512 computes.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import swiftformer_native
import torch

from swiftformer import SwiftFormerForImageClassification, fuse
from swiftformer.benchmark.latency import describe_machine
from swiftformer.engines.native import build
from swiftformer.export.native import network_of

WEIGHT_BYTES = {"fp32": 4, "bf16": 2, "int8": 1}


def work_of(
    layers: list[dict[str, Any]], tensors: Mapping[str, np.ndarray], size: tuple[int, int], weight_bytes: int
) -> Iterator[tuple[str, float, float, float]]:
    """Name, multiply-adds, bytes of weights and bytes of maps of every layer for a picture."""
    height, width = size
    channels = 3
    for layer in layers:
        shapes = {name: tensors[place].shape for name, place in layer["tensors"].items()}
        weights = {name: int(np.prod(shape)) for name, shape in shapes.items() if len(shape) > 1}
        convolutions = {"stem": ("weight1", "weight2"), "downsampling": ("weight",)}.get(layer["kind"], ())
        for name in convolutions:
            before = height * width * channels
            height, width, channels = (height + 1) // 2, (width + 1) // 2, shapes[name][0]
            after = height * width * channels
            label = f"{layer['kind']} {channels} channels"
            yield label, weights[name] * height * width, weights[name] * weight_bytes, 4 * (before + after)
        if convolutions:
            continue
        pixels, total = height * width, sum(weights.values())
        if layer["kind"] == "head":
            yield "head", total, total * weight_bytes, 4 * pixels * channels
            continue
        passes = 2 if layer["kind"] == "encoder" else 1
        moved = 4 * pixels * channels * (2 * passes + (4 if passes == 2 else 0))  # keys and queries, there and back
        yield f"{layer['kind']} {channels} channels, {height}x{width}", total * pixels, total * weight_bytes, moved


def reading_rate(size: int, threads: int) -> float:
    """Bytes per second at which threads together read an array of `size` bytes again and again."""
    torch.set_num_threads(threads)
    values = torch.ones(size // 4)
    best = float("inf")
    for _ in range(20):
        start = time.perf_counter()
        values.sum()
        best = min(best, time.perf_counter() - start)
    return size / best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--variant", default="xs")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--precision", choices=WEIGHT_BYTES, default="bf16")
    parser.add_argument("--isa", default="auto")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--repeats", type=int, default=50)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    layers, tensors = network_of(fuse(SwiftFormerForImageClassification.from_variant(arguments.variant).eval()))
    network = build(layers, tensors, arguments.isa, arguments.precision, arguments.threads)
    limit = swiftformer_native.product_limit(arguments.isa, arguments.precision) * network.threads
    pixels = np.random.default_rng(0).standard_normal((arguments.batch, 3, arguments.size, arguments.size), np.float32)
    measured = []
    for _ in range(arguments.repeats + 3):
        network(pixels)
        measured.append(network.layer_seconds)
    seconds = np.median(measured[3:], axis=0)
    machine = {key: value for key, value in describe_machine().items() if key in ("processor", "cores")}
    print(f"{machine}, {network.isa} {network.precision}, {network.threads} threads")
    in_parts = network.precision == "fp32" and network.isa == "amx"
    weight_bytes = 6 if in_parts else WEIGHT_BYTES[arguments.precision]
    rows = list(work_of(layers, tensors, (arguments.size, arguments.size), weight_bytes))
    reading = reading_rate(int(sum(weights for _, _, weights, _ in rows)), network.threads)
    print(f"limits: {limit / 1e9:.0f} billion multiply-adds and {reading / 1e9:.0f} GB a second\n")
    print("| layer | million multiply-adds | MB | ms | share of the time | its limit, ms | share of the limit |")
    print("|---|---|---|---|---|---|---|")
    least = 0.0
    for (name, operations, weights, maps), spent in zip(rows, seconds, strict=True):
        operations, size = operations * arguments.batch, weights + maps * arguments.batch
        by_products, by_memory = operations / limit, size / reading
        bound = max(by_products, by_memory)
        least += bound
        limited = f"{1e3 * bound:.3f} by {'products' if by_products > by_memory else 'memory'}"
        amounts = f"{operations / 1e6:.1f} | {size / 1e6:.2f} | {1e3 * spent:.3f} | {100 * spent / seconds.sum():.0f}%"
        print(f"| {name} | {amounts} | {limited} | {100 * bound / spent:.0f}% |")
    print(f"| all | | | {1e3 * seconds.sum():.2f} | | {1e3 * least:.2f} | {100 * least / seconds.sum():.0f}% |")


if __name__ == "__main__":
    main()
