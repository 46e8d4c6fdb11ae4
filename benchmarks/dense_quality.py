"""Backbones side by side in dense prediction: the same head, step, data, augmentation and epochs.

    python benchmarks/dense_quality.py --recipe small_segmentation --data camvid --classes camvid \
        --epochs 20 --backbone xs --backbone mobilenetv3_large_100 --output dense

A backbone is a variant of SwiftFormer or a network of timm, with random weights. Each run leaves a line of JSON per
epoch in `OUTPUT/RECIPE-BACKBONE.jsonl`, and the averaged weights of a SwiftFormer in `OUTPUT/RECIPE-BACKBONE`, which
`swiftformer evaluate` takes; runs that are there already are not repeated. Segmenters are also evaluated in windows of
the crops' size. The table is made of what is there, with times that are measured in turn.
"""

from __future__ import annotations

import argparse
import copy
import json
import tempfile
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import timm
import torch
from torch import Tensor, nn

from swiftformer import SwiftFormerConfig, fuse, save
from swiftformer.benchmark.latency import time_calls
from swiftformer.benchmark.runtimes import Run, open_file
from swiftformer.cli_train import open_splits
from swiftformer.data.epoch_loader import seed_generators
from swiftformer.data.loaders import Normalization
from swiftformer.detection import SwiftFormerForInstanceSegmentation, SwiftFormerForObjectDetection
from swiftformer.device import select_device
from swiftformer.environment import import_openvino
from swiftformer.evaluate.segmentation import evaluate_segmenter
from swiftformer.export.graph import silent
from swiftformer.files import atomic_file
from swiftformer.segmentation import SwiftFormerForSemanticSegmentation
from swiftformer.segmentation_inference import segment_logits
from swiftformer.train.distributed import Processes
from swiftformer.train.recipes import get_recipe
from swiftformer.train.step import TrainingStep, seed_batch
from swiftformer.train.tasks import task_of
from swiftformer.variants import VARIANTS

MODELS = {
    "segment": SwiftFormerForSemanticSegmentation,
    "detect": SwiftFormerForObjectDetection,
    "instances": SwiftFormerForInstanceSegmentation,
}


class TimmMaps(nn.Module):
    """A network of timm in the place of `SwiftFormerModel` within a backbone: its maps of strides 4 to 32."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.net = timm.create_model(name, features_only=True)
        strides: list[int] = self.net.feature_info.reduction()
        self.places = [strides.index(stride) for stride in (4, 8, 16, 32)]
        self.widths = [self.net.feature_info.channels()[place] for place in self.places]
        self.encoder = SimpleNamespace(stage_indices=lambda: [1, 2, 3, 4])

    def forward(self, pixels: Tensor, **kwargs: Any) -> SimpleNamespace:
        maps = self.net(pixels)
        return SimpleNamespace(hidden_states=[None, *(maps[place] for place in self.places)])


def build(recipe: Any, backbone: str, classes: list[str]) -> Any:
    task = task_of(recipe)
    if backbone in VARIANTS:
        return task.new_network(classes, backbone, None, None)
    maps = TimmMaps(backbone)
    like = task.new_network(classes, "xs", None, None).config.to_dict()
    fields = {"embed_dims": maps.widths, "depths": [1, 1, 1, 1], "out_features": None, "out_indices": None}
    net = MODELS[recipe.task](SwiftFormerConfig(**(like | fields)))
    net.swiftformer = maps
    return net


def train(
    recipe: Any, backbone: str, sources: tuple[Any, Any], device: torch.device, workers: int, output: Path
) -> list[dict]:
    train_source, val_source = sources
    processes, task = Processes(0, 1, device), task_of(recipe)
    torch.manual_seed(recipe.seed)
    seed_generators(recipe.seed)
    net = build(recipe, backbone, train_source.classes).to(device, memory_format=torch.channels_last)
    loader = task.training_loader(train_source, 0, recipe.batch_size, workers, processes)
    objective = task.objective(train_source, Path(), workers, processes, None)  # type: ignore[arg-type]
    step = TrainingStep(recipe, net, processes, objective, updates_per_epoch=len(loader))
    normalize = Normalization(recipe, device)
    val_batches = task.validation_batches(val_source, recipe.batch_size, workers, processes)
    lines, number = [], 0
    for epoch in range(recipe.epochs):
        net.train()
        start, loss_sum = time.perf_counter(), torch.zeros((), device=device)
        for place, batch in enumerate(loader.batches(epoch)):
            number += 1
            seed_batch(recipe.seed, epoch, place, 0, device)
            loss, _ = step(normalize(batch.pixels), batch.targets.to(device), batch.indices, number)
            loss_sum += loss
        line = {"epoch": epoch + 1, "loss": loss_sum.item() / len(loader), "seconds": time.perf_counter() - start}
        if (epoch + 1) % recipe.evaluate_every == 0 or epoch + 1 == recipe.epochs:
            with torch.compiler.set_stance("force_eager"):
                result, _ = task.evaluate(step.evaluated, val_source, val_batches, lambda images: None, processes)
            line |= {name: result[name] for name in task.measures}
        lines.append(line)
        print(backbone, json.dumps(line), flush=True)
    image = next(iter(val_batches))[0]
    lines[-1] |= {
        "parameters": sum(p.numel() for p in net.parameters()),
        "backbone_parameters": sum(p.numel() for p in net.swiftformer.parameters()),
        "size": [image.shape[2], image.shape[3]],
    }
    best = step.evaluated.eval()
    if recipe.task == "segment":
        side = recipe.image_size
        with torch.compiler.set_stance("force_eager"):
            slid = partial(segment_logits, best, mode="slide", window=(side, side))
            result, _ = evaluate_segmenter(slid, val_batches, device)
        lines[-1] |= {f"windows_{name}": result[name] for name in task.measures}
    if backbone in VARIANTS:
        task.prepare(best, train_source)
        save(best, output)
    print(backbone, json.dumps(lines[-1]), flush=True)
    return lines


class Scores(nn.Module):
    """A segmenter's logits at a fourth of the picture's size, as exports have them."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, pixels: Tensor) -> Tensor:
        return self.net(pixels).logits


def runs_of(recipe: Any, backbone: str, classes: list[str], pixels: Tensor, folder: Path) -> dict[str, Run]:
    """How a network is called, with random weights: in torch as it is, and a segmenter in OpenVINO, which merges what
    can be merged; a SwiftFormer is fused before."""
    net = build(recipe, backbone, classes).eval()
    net_nhwc = net.to(memory_format=torch.channels_last)
    runs: dict[str, Run] = {"torch": lambda images: net_nhwc(torch.from_numpy(images))}
    if recipe.task == "segment":
        graph = fuse(net) if backbone in VARIANTS else Scores(net)
        runs |= in_openvino(graph, pixels, folder / f"{recipe.task}-{backbone}.xml")
    return runs


def in_openvino(graph: nn.Module, pixels: Tensor, file: Path) -> dict[str, Run]:
    """A network as OpenVINO's converter takes it, in float32 and bfloat16."""
    openvino = import_openvino()

    with silent(), torch.no_grad():
        graph = copy.deepcopy(graph).to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        model = openvino.convert_model(graph, example_input=pixels, input=[tuple(pixels.shape)])
    openvino.save_model(model, file, compress_to_fp16=False)
    return {f"OpenVINO {precision}": open_file(file, "openvino", precision, None) for precision in ("fp32", "bf16")}


@torch.inference_mode()
def milliseconds(recipe: Any, backbones: list[str], classes: list[str], size: list[int], rounds: int) -> dict:
    """Median times of a picture, `{backbone: {how: ms}}`; every network is called in every round."""
    pixels = torch.randn(1, 3, *size)
    with tempfile.TemporaryDirectory() as folder:
        runs = {
            (backbone, how): run
            for backbone in backbones
            for how, run in runs_of(recipe, backbone, classes, pixels, Path(folder)).items()
        }
        times: dict[tuple[str, str], list[float]] = {name: [] for name in runs}
        for _ in range(rounds):
            for name, run in runs.items():
                times[name].append(float(np.median(time_calls(lambda run=run: run(pixels.numpy()), 0.3))))  # type: ignore[misc]
    return {b: {how: 1000 * float(np.median(times[b, how])) for other, how in runs if other == b} for b in backbones}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--recipe", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--classes", help="names, as `swiftformer train` takes them")
    parser.add_argument("--backbone", action="append", required=True, help="repeatable")
    parser.add_argument("--output", type=Path, default=Path("dense"))
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--device")
    parser.add_argument("--rounds", type=int, default=10, help="of the measured times")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="of the recipe")
    arguments = parser.parse_args()
    recipe = get_recipe(arguments.recipe, [f"epochs={arguments.epochs}", *arguments.set])
    found: dict[str, list[dict]] = {}
    options = {"classes": arguments.classes, "reduce_zero_label": None}
    sources = open_splits(recipe.task, arguments.data, "name", options, "skip")
    for backbone in arguments.backbone:
        file = arguments.output / f"{arguments.recipe}-{backbone}.jsonl"
        if not file.exists():
            folder = file.with_suffix("")
            lines = train(recipe, backbone, sources, select_device(arguments.device), arguments.workers, folder)
            with atomic_file(file) as target:
                target.write_text("".join(json.dumps(line) + "\n" for line in lines))
        found[backbone] = [json.loads(line) for line in file.read_text().splitlines()]
    size = found[arguments.backbone[0]][-1]["size"]
    times = milliseconds(recipe, arguments.backbone, sources[0].classes, size, arguments.rounds)
    measures = [name for name in found[arguments.backbone[0]][-1] if name.endswith(task_of(recipe).measures)]
    hows = list(times[arguments.backbone[0]])
    print(f"\nmilliseconds of a picture of {size[0]}x{size[1]} pixels\n")
    print(f"| backbone | {' | '.join(measures)} | parameters (backbone) | {' | '.join(hows)} | minutes |")
    print("|---" * (len(measures) + len(hows) + 3) + "|")
    for backbone, lines in found.items():
        last = lines[-1]
        values = " | ".join(f"{last[name]:.2f}" for name in measures)
        parameters = f"{last['parameters']:,} ({last['backbone_parameters']:,})"
        minutes = sum(line["seconds"] for line in lines) / 60
        spent = " | ".join(f"{times[backbone][how]:.1f}" for how in hows)
        print(f"| {backbone} | {values} | {parameters} | {spent} | {minutes:.0f} |")


if __name__ == "__main__":
    main()
