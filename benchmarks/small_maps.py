"""Convolutions of maps of a few pixels: what torch takes to learn, and what this package.

    python benchmarks/small_maps.py

Milliseconds of a forward and a backward pass on one thread, medians of calls in turn, for each side of square maps, of
a depth-wise 3x3 convolution and of the two 1x1 convolutions around it that widen to four times the channels and back.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
from torch import nn

from swiftformer.convolutions import DepthWiseConv2d, PointWiseConv2d


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--channels", type=int, default=220)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--sides", default="1,2,3,4,5,7")
    parser.add_argument("--rounds", type=int, default=30)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    dim, wide = arguments.channels, 4 * arguments.channels
    print("| convolution | type | map | torch, ms | swiftformer, ms | ratio |\n|---|---|---|---|---|---|")
    for dtype in (torch.bfloat16, torch.float32):
        for side in map(int, arguments.sides.split(",")):
            for name, theirs, ours in (
                ("depth-wise", nn.Conv2d(dim, dim, 3, padding=1, groups=dim), DepthWiseConv2d(dim)),
                (f"1x1, {dim} to {wide}", nn.Conv2d(dim, wide, 1), PointWiseConv2d(dim, wide)),
                (f"1x1, {wide} to {dim}", nn.Conv2d(wide, dim, 1), PointWiseConv2d(wide, dim)),
            ):
                before, after = milliseconds(
                    (theirs.to(dtype), ours.to(dtype)), side, arguments.batch, arguments.rounds
                )
                kind = f"{name} | {str(dtype).removeprefix('torch.')} | {side}x{side}"
                print(f"| {kind} | {before:.2f} | {after:.2f} | {before / after:.1f} |")


def milliseconds(convolutions: tuple[nn.Conv2d, ...], side: int, batch: int, rounds: int) -> list[float]:
    """Medians of the convolutions' times, which take turns."""
    first = convolutions[0]
    x = torch.randn(batch, first.in_channels, side, side, dtype=first.weight.dtype)
    x = x.contiguous(memory_format=torch.channels_last).requires_grad_()
    upstream = torch.ones_like(first(x))
    times: list[list[float]] = [[] for _ in convolutions]
    for _ in range(rounds + 2):
        for conv, taken in zip(convolutions, times, strict=True):
            start = time.perf_counter()
            conv(x).backward(upstream)
            taken.append(time.perf_counter() - start)
    return [1e3 * statistics.median(taken[2:]) for taken in times]


if __name__ == "__main__":
    main()
