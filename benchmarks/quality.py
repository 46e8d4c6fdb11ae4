"""Accuracy side by side: networks trained from scratch with the same step, data, augmentation and epochs.

    python benchmarks/quality.py --data cifar10 --epochs 8 --output quality

The networks and their training steps are this package's or timm's, in one loop over epochs. A run leaves its recipe and
curve in `OUTPUT/NAME.json`; runs that are there already are not repeated, so that the comparison can be made in several
sittings. The table is made of what is there.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import timm
import torch
from torch import Tensor, nn

from swiftformer import SwiftFormerForImageClassificationWithTeacher
from swiftformer.data.epoch_loader import seed_generators
from swiftformer.data.loaders import Normalization, TrainingLoader, evaluation_loader
from swiftformer.data.sources import open_source
from swiftformer.device import select_device
from swiftformer.evaluate.classification import evaluate_classifier
from swiftformer.files import atomic_file
from swiftformer.train.distillation import load_teacher
from swiftformer.train.distributed import Processes
from swiftformer.train.interruption import StopRequest
from swiftformer.train.memory import keep_freed_memory
from swiftformer.train.objectives import ClassificationObjective
from swiftformer.train.recipes import Recipe, get_recipe
from swiftformer.train.step import TrainingStep
from swiftformer.train.teacher_cache import cached_logits

NETWORKS = {
    "swiftformer-xs, l2": ("l2", "none"),
    "swiftformer-xs, uniform": ("uniform", "none"),
    "swiftformer-xs, l2, hard distillation": ("l2", "hard"),
    "swiftformer-xs, l2, soft distillation": ("l2", "soft"),
    "timm swiftformer_xs": ("swiftformer_xs", "none"),
    "timm mobilenetv3_large_100": ("mobilenetv3_large_100", "none"),
    "timm mobilenetv2_100": ("mobilenetv2_100", "none"),
}


class WithLogits(nn.Module):
    """A network of timm with the output that the training step expects."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, pixels: Tensor, return_dict: bool = True) -> SimpleNamespace:
        return SimpleNamespace(logits=self.net(pixels))


def build(kind: str, classes: int) -> Any:
    if kind in ("l2", "uniform"):
        return SwiftFormerForImageClassificationWithTeacher.from_variant(
            "xs", num_labels=classes, global_query_weighting=kind
        )
    return WithLogits(timm.create_model(kind, num_classes=classes))


def train(name: str, recipe: Recipe, data: str, teacher: str, device: torch.device, workers: int, output: Path) -> None:
    kind, distillation = NETWORKS[name]
    train_source, val_source = open_source(data, "train"), open_source(data, "test")
    seed_generators(recipe.seed)
    net = build(kind, len(train_source.classes)).to(device, memory_format=torch.channels_last)
    loader = TrainingLoader(train_source, recipe, recipe.image_size, recipe.batch_size, workers)
    normalize = Normalization(recipe, device, recipe.random_erasing)
    processes, told, told_logits = Processes(0, 1, device), None, None
    if distillation != "none":
        told = load_teacher(teacher, len(train_source.classes), recipe.mean, recipe.std).to(device)
        if recipe.cache_teacher:
            told_logits = cached_logits(told, train_source, recipe, output, workers, processes, StopRequest())
    objective = ClassificationObjective(recipe, device, told, told_logits)
    step = TrainingStep(recipe, net, processes, objective, updates_per_epoch=len(loader))
    if isinstance(net, WithLogits):
        step.clipped = list(timm.models.model_parameters(net.net, exclude_head=True))
    val_batches = evaluation_loader(val_source, recipe.preprocessing, 2 * recipe.batch_size, workers)
    curve: list[dict[str, Any]] = []
    number = 0
    for epoch in range(recipe.epochs):
        net.train()
        start, loss_sum = time.perf_counter(), torch.zeros((), device=device)
        for batch in loader.batches(epoch):
            number += 1
            loss, _ = step(normalize(batch.pixels), batch.targets.to(device), batch.indices, number)
            loss_sum += loss
        point = {"epoch": epoch + 1, "loss": loss_sum.item() / len(loader), "seconds": time.perf_counter() - start}
        if (epoch + 1) % recipe.evaluate_every == 0 or epoch + 1 == recipe.epochs:
            point |= evaluate_classifier(step.evaluated, val_batches, device)[0]
        curve.append(point)
        print(name, json.dumps(point), flush=True)
    run = {"recipe": dataclasses.asdict(recipe), "parameters": sum(p.numel() for p in net.parameters()), "curve": curve}
    with atomic_file(output / f"{name}.json") as file:
        file.write_text(json.dumps(run, indent=1))


def finished(name: str, output: Path, recipe: Recipe | None = None) -> dict[str, Any] | None:
    """What a run left. Raises ValueError where that was of another recipe."""
    file = output / f"{name}.json"
    if not file.exists():
        return None
    run = json.loads(file.read_text())
    expected = None if recipe is None else json.loads(json.dumps(dataclasses.asdict(recipe)))
    if expected not in (None, run["recipe"]):
        others = [key for key, value in expected.items() if run["recipe"].get(key) != value]
        raise ValueError(f"{file}: expected a run of the same recipe, found another {', '.join(others)}")
    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True)
    parser.add_argument("--output", type=Path, default=Path("quality"))
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--teacher", default="swiftformer-xs-cifar10", help="of the distilled runs")
    parser.add_argument("--only", choices=NETWORKS, action="append", help="repeatable; all by default")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--device")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="of the recipe")
    arguments = parser.parse_args()
    keep_freed_memory()
    fixed = ["progressive_sizes=", f"epochs={arguments.epochs}", "warmup_epochs=1", "auto_augment=", "color_jitter=0"]
    fixed += ["evaluate_every=2"]
    for name in arguments.only or NETWORKS:
        recipe = get_recipe("small_images", [*fixed, *arguments.set, f"distillation={NETWORKS[name][1]}"])
        if finished(name, arguments.output, recipe) is None:
            device = select_device(arguments.device)
            train(name, recipe, arguments.data, arguments.teacher, device, arguments.workers, arguments.output)
    print("\n| network | parameters | top-1 (after every second epoch by default) |\n|---|---|---|")
    for name in NETWORKS:
        if run := finished(name, arguments.output):
            top1 = ", ".join(f"{point['top1']:.2f}" for point in run["curve"] if "top1" in point)
            print(f"| {name} | {run['parameters']:,} | {top1} |")


if __name__ == "__main__":
    main()
