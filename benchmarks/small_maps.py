"""Depth-wise 3x3 convolutions on maps of a few pixels: what torch takes to learn, and what this package.

    python benchmarks/depth_wise.py

Milliseconds of a forward and a backward pass on one thread, medians of calls in turn, for each side of square maps.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
from torch import nn

from swiftformer.small_maps import DepthWiseConv2d


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--channels", type=int, default=220)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--sides", default="1,2,3,4")
    parser.add_argument("--rounds", type=int, default=30)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print("| | map | torch, ms | swiftformer, ms | ratio |\n|---|---|---|---|---|")
    for dtype in (torch.bfloat16, torch.float32):
        for side in map(int, arguments.sides.split(",")):
            ours = DepthWiseConv2d(arguments.channels).to(dtype)
            theirs = nn.Conv2d(arguments.channels, arguments.channels, 3, padding=1, groups=arguments.channels).to(
                dtype
            )
            x = torch.randn(arguments.batch, arguments.channels, side, side, dtype=dtype)
            x = x.contiguous(memory_format=torch.channels_last).requires_grad_()
            times: dict[nn.Module, list[float]] = {theirs: [], ours: []}
            for _ in range(arguments.rounds + 2):
                for conv, taken in times.items():
                    start = time.perf_counter()
                    conv(x).backward(torch.ones_like(x))
                    taken.append(time.perf_counter() - start)
            before, after = (1e3 * statistics.median(taken[2:]) for taken in times.values())
            name = str(dtype).removeprefix("torch.")
            print(f"| {name} | {side}x{side} | {before:.2f} | {after:.2f} | {before / after:.1f} |")


if __name__ == "__main__":
    main()
