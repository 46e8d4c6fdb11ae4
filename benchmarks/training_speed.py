"""Images per second of a whole training step: this package against timm's training functions, interleaved in one run.

    python benchmarks/training_speed.py --variant xs --size 64 --batch 128

A step is forward, backward, adaptive gradient clipping, AdamW and the average of the weights, on the same random
images, with the same network (July 2023 form), precision and batch. timm's side is made of what timm's train.py uses:
its model, optimizer, `dispatch_clip_grad` and ModelEmaV3; as it comes, and with channels last and a fused AdamW
(`--channels-last --opt-kwargs fused=True`), as this package has both. Every round times each of them once, so that a
slow moment of the machine hits all; the table gives medians, quartiles and the ratios to timm within the rounds.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections.abc import Callable

import timm
import torch
from timm.loss import LabelSmoothingCrossEntropy
from timm.optim import create_optimizer_v2
from timm.utils import ModelEmaV3, dispatch_clip_grad
from torch import Tensor
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from swiftformer import SwiftFormerForImageClassificationWithTeacher, training_operators
from swiftformer.train.distributed import Processes
from swiftformer.train.memory import keep_freed_memory
from swiftformer.train.objectives import ClassificationObjective
from swiftformer.train.recipes import get_recipe
from swiftformer.train.step import TrainingStep

Step = Callable[[], None]


def ours(arguments: argparse.Namespace, pixels: Tensor, targets: Tensor, compiled: bool) -> Step:
    settings = [f"precision={arguments.precision}", f"compile={compiled}", f"batch_size={arguments.batch}"]
    recipe = get_recipe("small_images", settings)
    device = torch.device(arguments.device)
    net = SwiftFormerForImageClassificationWithTeacher.from_variant(arguments.variant, num_labels=1000)
    net = net.to(device, memory_format=torch.channels_last).train()
    objective = ClassificationObjective(recipe, device)
    step = TrainingStep(recipe, net, Processes(0, 1, device), objective, updates_per_epoch=1000)
    pixels = pixels.contiguous(memory_format=torch.channels_last)
    indices, number = torch.arange(arguments.batch), [0]

    def run() -> None:
        number[0] += 1
        step(pixels, targets, indices, number[0])

    return run


def without_kernels(step: Step) -> Step:
    kernels = training_operators.KERNELS, training_operators.FLOAT_KERNELS

    def run() -> None:
        training_operators.KERNELS = training_operators.FLOAT_KERNELS = None
        try:
            step()
        finally:
            training_operators.KERNELS, training_operators.FLOAT_KERNELS = kernels

    return run


def theirs(arguments: argparse.Namespace, pixels: Tensor, targets: Tensor, tuned: bool, compiled: bool) -> Step:
    device = torch.device(arguments.device)
    net = timm.create_model(f"swiftformer_{arguments.variant}", num_classes=1000).to(device).train()
    if tuned:
        net = net.to(memory_format=torch.channels_last)
        pixels = pixels.contiguous(memory_format=torch.channels_last)
    fused = {"fused": True} if tuned else {}
    optimizer = create_optimizer_v2(net, opt="adamw", lr=2e-3, weight_decay=0.05, **fused)
    ema = ModelEmaV3(net, decay=0.999, use_warmup=True)
    forward = torch.compile(net) if compiled else net
    criterion = LabelSmoothingCrossEntropy(0.1)
    dtype = {"bf16": torch.bfloat16, "fp32": torch.float32}[arguments.precision]
    number = [0]

    def run() -> None:
        number[0] += 1
        with torch.autocast(device.type, dtype, enabled=arguments.precision != "fp32"):
            output = forward(pixels)
            loss = criterion(output, targets)
        loss.backward()
        dispatch_clip_grad(timm.models.model_parameters(net, exclude_head=True), value=0.01, mode="agc")
        optimizer.step()
        optimizer.zero_grad()
        ema.update(net, step=number[0])

    return run


def seconds(step: Step, times: int, device: torch.device) -> float:
    start = time.perf_counter()
    for _ in range(times):
        step()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return (time.perf_counter() - start) / times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--variant", default="xs")
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--precision", choices=("bf16", "fp32"), default="bf16")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--steps", type=int, help="per round and implementation; 2, or 20 on a GPU, by default")
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    parser.add_argument("--keep-memory", action="store_true", help="as `swiftformer train` does, for all")
    parser.add_argument("--profile", action="store_true", help="say where this package's time goes instead")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    if arguments.keep_memory:
        keep_freed_memory()
    torch.backends.cudnn.benchmark = True  # as timm's train.py and `swiftformer train` have it
    torch.backends.cuda.matmul.allow_tf32 = True  # as timm's train.py alone, here for all
    pixels = torch.randn(arguments.batch, 3, arguments.size, arguments.size, device=device)
    targets = torch.randint(0, 1000, (arguments.batch,), device=device)
    processor = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} threads"
    print(f"{platform.machine()}, {processor}, torch {torch.__version__}, timm {timm.__version__}")
    print(f"{arguments.variant}, {arguments.size} pixels, batch {arguments.batch}, {arguments.precision}\n")
    if arguments.profile:
        show_profile(ours(arguments, pixels, targets, compiled=False), device)
        return
    steps = {
        "timm, as it comes": theirs(arguments, pixels, targets, False, False),
        "timm, channels_last, fused AdamW": theirs(arguments, pixels, targets, True, False),
        "swiftformer": ours(arguments, pixels, targets, compiled=False),
    }
    single = arguments.precision == "fp32"
    if (training_operators.FLOAT_KERNELS if single else training_operators.KERNELS) is not None:
        steps["swiftformer, without swiftformer-native"] = without_kernels(steps["swiftformer"])
    if not arguments.no_compile:
        steps["timm, channels_last, fused AdamW, compile"] = theirs(arguments, pixels, targets, True, True)
        steps["swiftformer, compile"] = ours(arguments, pixels, targets, compiled=True)
    times = arguments.steps or (20 if device.type == "cuda" else 2)
    for step in steps.values():
        seconds(step, max(3, times), device)
    rounds = [{name: seconds(step, times, device) for name, step in steps.items()} for _ in range(arguments.rounds)]
    bases = [name for name in steps if name.startswith("timm")]
    print(f"| implementation | images/s (median) | quartiles | {' | '.join(f'times {base}' for base in bases)} |")
    print("|---" * (3 + len(bases)) + "|")
    for name in steps:
        speeds = [arguments.batch / row[name] for row in rounds]
        low, _, high = statistics.quantiles(speeds, n=4)
        ratios = [f"{statistics.median(row[base] / row[name] for row in rounds):.2f}" for base in bases]
        print(f"| {name} | {statistics.median(speeds):.0f} | {low:.0f} to {high:.0f} | {' | '.join(ratios)} |")


def show_profile(step: Step, device: torch.device) -> None:
    seconds(step, 3, device)
    gpu = device.type == "cuda"
    with profile(activities=[ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * gpu) as found:
        seconds(step, 5, device)
    # On a GPU, of kernels: the operators that start them, and what is around these, have the same time again.
    own = [
        (event.self_device_time_total if gpu else event.self_cpu_time_total, event)
        for event in found.key_averages()
        if not gpu or (event.device_type != DeviceType.CPU and not event.is_user_annotation)
    ]
    total = sum(taken for taken, _ in own)
    print("| operator | share | ms per step | calls per step |")
    print("|---|---|---|---|")
    for taken, event in sorted(own, key=lambda each: -each[0])[:18]:
        print(f"| {event.key} | {100 * taken / total:.1f}% | {taken / 5000:.1f} | {event.count / 5:.0f} |")


if __name__ == "__main__":
    main()
