"""What training takes from swiftformer-native, against torch: GELU, BatchNorm, L2 normalisation, depth-wise
convolutions, MLPs and the sum with a scaled branch.

    python benchmarks/training_kernels.py

Milliseconds of a forward and a backward pass in bfloat16 (of depth-wise convolutions and sums on maps of float32),
channels last, medians of calls in turn. Maps are those of XS in training, by default with 128 pictures of 64 pixels.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from swiftformer import training_operators
from swiftformer.l2_normalization import l2_normalize
from swiftformer.train.memory import keep_freed_memory
from swiftformer.training_operators import batch_norm, depth_wise, gelu, mlp, sum_with_scaled

STAGES = (48, 56, 112, 220)  # channels


class Case:
    """What torch does, what the kernels do, what both take, and what they learn."""

    def __init__(self, name: str, theirs: Callable, ours: Callable, inputs: list[Tensor], *weights: Tensor) -> None:
        self.map = "x".join(str(size) for size in inputs[0].shape[1:])
        self.name, self.functions, self.inputs, self.learned = name, (theirs, ours), inputs, [*inputs, *weights]


def maps(batch: int, channels: int, side: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    x = torch.randn(batch, channels, side, side).to(dtype)
    return x.contiguous(memory_format=torch.channels_last).requires_grad_()


def batch_norm_case(batch: int, channels: int, side: int) -> Case:
    norm = nn.BatchNorm2d(channels)

    def ours(x: Tensor) -> Tensor:
        return batch_norm(x, norm.weight, norm.bias, norm.eps)[0]

    return Case("BatchNorm", norm, ours, [maps(batch, channels, side)], norm.weight, norm.bias)


def l2_normalize_case(batch: int, channels: int, side: int) -> Case:
    tokens = torch.randn(batch, side * side, channels).bfloat16().requires_grad_()

    def theirs(x: Tensor) -> Tensor:  # as autocast does
        return F.normalize(x.float(), dim=-1).bfloat16()

    return Case("L2 normalisation", theirs, lambda x: l2_normalize(x, -1), [tokens])


def depth_wise_case(batch: int, channels: int, side: int) -> Case:
    conv = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)

    def theirs(x: Tensor) -> Tensor:  # as autocast does
        return F.conv2d(x.bfloat16(), conv.weight.bfloat16(), conv.bias.bfloat16(), padding=1, groups=channels)  # type: ignore[union-attr]

    def ours(x: Tensor) -> Tensor:
        return depth_wise(x, conv.weight, conv.bias)

    inputs = [maps(batch, channels, side, torch.float32)]
    return Case("depth-wise convolution", theirs, ours, inputs, conv.weight, conv.bias)  # type: ignore[arg-type]


def mlp_case(batch: int, channels: int, side: int) -> Case:
    """With the kernel for GELU on both sides."""
    expand, project = nn.Conv2d(channels, 4 * channels, 1), nn.Conv2d(4 * channels, channels, 1)
    weights = expand.weight, expand.bias, project.weight, project.bias

    def theirs(x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return project(gelu(expand(x)))

    def ours(x: Tensor) -> Tensor:
        return mlp(x, *weights)

    return Case("MLP", theirs, ours, [maps(batch, channels, side)], *weights)  # type: ignore[arg-type]


def cases(batch: int, channels: int, side: int) -> list[Case]:
    def theirs(x: Tensor, scale: Tensor, branch: Tensor) -> Tensor:
        return x + scale * branch

    scale = torch.ones(channels, 1, 1).requires_grad_()
    summed = [maps(batch, channels, side, torch.float32), scale, maps(batch, channels, side)]
    return [
        mlp_case(batch, channels, side),
        Case("GELU", F.gelu, gelu, [maps(batch, 4 * channels, side)]),
        batch_norm_case(batch, channels, side),
        l2_normalize_case(batch, channels, side),
        depth_wise_case(batch, channels, side),
        Case("scaled sum", theirs, sum_with_scaled, summed),
    ]


def milliseconds(
    functions: tuple[Callable, Callable], inputs: list[Tensor], learned: list[Tensor], rounds: int
) -> list[float]:
    """Medians of the functions' times, which take turns; gradients are those of `learned`."""
    upstream = torch.ones_like(functions[0](*inputs))
    times: list[list[float]] = [[] for _ in functions]
    for _ in range(rounds + 2):
        for function, taken in zip(functions, times, strict=True):
            start = time.perf_counter()
            torch.autograd.grad(function(*inputs), learned, upstream)
            taken.append(time.perf_counter() - start)
    return [1e3 * statistics.median(taken[2:]) for taken in times]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--size", type=int, default=64, help="pixels of a picture each way")
    parser.add_argument("--rounds", type=int, default=30)
    arguments = parser.parse_args()
    if training_operators.KERNELS is None:
        parser.error("expected swiftformer-native and a processor with AVX-512 BF16, found none")
    batch, size = arguments.batch, arguments.size
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}, batch {batch}, {size} pixels\n")
    keep_freed_memory()
    print("| operation | map | torch, ms | swiftformer-native, ms | ratio |\n|---|---|---|---|---|")
    found = [batch_norm_case(batch, 24, size // 2)]  # the stem's
    found += [case for stage, channels in enumerate(STAGES) for case in cases(batch, channels, size // (4 << stage))]
    for case in found:
        before, after = milliseconds(case.functions, case.inputs, case.learned, arguments.rounds)
        print(f"| {case.name} | {case.map} | {before:.2f} | {after:.2f} | {before / after:.1f} |")


if __name__ == "__main__":
    main()
