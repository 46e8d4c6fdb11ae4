"""Where the native engine's time goes, layer by layer, beside what its matrix kernel reaches at best.

    python benchmarks/native_roofline.py --variant xs --batch 1 --precision bf16

The limit is what one thread of the engine reaches in a matrix product that stays in its first-level cache, times the
threads. Arithmetic is that of the convolutions and products; GELU, norms and sums come on top. Bytes are the weights
once, and the maps read and written once for each pass over them. Times are medians over `--repeats` calls.
In int8, the first convolution (with AMX both of the stem) and the head are held against the same limit, but computed
in bfloat16 or float32; so is, in float32 with AMX, whose weights are three bfloat16, what AVX-512 computes.
"""

from __future__ import annotations

import argparse
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
    print(f"limit {limit / 1e9:.0f} billion multiply-adds a second, in all {1e3 * seconds.sum():.2f} ms\n")
    in_parts = network.precision == "fp32" and network.isa == "amx"
    weight_bytes = 6 if in_parts else WEIGHT_BYTES[arguments.precision]
    rows = list(work_of(layers, tensors, (arguments.size, arguments.size), weight_bytes))
    print("| layer | million multiply-adds | MB | ms | share of the time | share of the limit |")
    print("|---|---|---|---|---|---|")
    total = 0.0
    for (name, operations, size, maps), spent in zip(rows, seconds, strict=True):
        operations *= arguments.batch
        size += maps * arguments.batch
        total += operations
        shares = f"{100 * spent / seconds.sum():.0f}% | {100 * operations / spent / limit:.0f}%"
        print(f"| {name} | {operations / 1e6:.1f} | {size / 1e6:.2f} | {1e3 * spent:.3f} | {shares} |")
    print(f"| all | {total / 1e6:.0f} | | {1e3 * seconds.sum():.2f} | | {100 * total / seconds.sum() / limit:.0f}% |")


if __name__ == "__main__":
    main()
