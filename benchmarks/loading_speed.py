"""Images per second of loading and augmenting: this package's loader against timm's, interleaved in one run.

    python benchmarks/loading_speed.py --data FOLDER_OF_CLASSES --workers 2
    python benchmarks/loading_speed.py --data FOLDER_OF_CLASSES --pictures 40 --enlarge 3000

Both decode the same pictures with the same transform (bicubic random crops to 224 pixels, flips, RandAugment at a
strength that timm's loader survives with this Pillow), the same number of loader processes and batch, up to normalised
float32 batches. Every round times each of them once over all pictures; the table gives medians, quartiles and the ratio
within the rounds. `--enlarge` has copies of the pictures loaded that are as large as a camera's, with a camera's noise.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import timm
import torch
from PIL import Image
from timm.data import create_dataset, create_loader

from swiftformer.data.loaders import Normalization, TrainingLoader
from swiftformer.data.sources import open_source
from swiftformer.export.calibration import evenly
from swiftformer.train.recipes import get_recipe


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="one folder of pictures per class")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--batch", type=int, default=50)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--epochs", type=int, default=3, help="per round and loader")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--recipe", default="paper_s", help="for the sizes of crops, flips and the like")
    parser.add_argument("--pictures", type=int, default=0, help="only so many, evenly chosen; 0 for all")
    parser.add_argument("--enlarge", type=int, default=0, help="pixels of the short side of copies; 0 for none")
    parser.add_argument("--auto-augment", default="rand-m5-mstd0.5", help="empty for none")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if arguments.enlarge or arguments.pictures:
            copy(arguments.data, Path(folder), arguments.pictures, arguments.enlarge)
            arguments.data = Path(folder)
        compare(arguments)


def copy(data: Path, folder: Path, count: int, short_side: int) -> None:
    """JPEG copies of `count` pictures, with a short side of `short_side` pixels where that is not 0."""
    source = open_source(data, "all")
    generator = np.random.default_rng(0)
    for index in evenly(len(source), count or len(source)):
        image = source.image(index)
        if short_side:
            scale = short_side / min(image.size)
            image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
            noise = generator.normal(0, 4, (image.height, image.width, 1))
            image = Image.fromarray(np.clip(np.asarray(image) + noise, 0, 255).astype(np.uint8))
        target = folder / source.classes[source.labels[index]]
        target.mkdir(exist_ok=True)
        image.save(target / f"{index}.jpg", quality=90)


def compare(arguments: argparse.Namespace) -> None:
    settings = [f"batch_size={arguments.batch}", f"image_size={arguments.size}", "repeated_augmentation=1"]
    recipe = get_recipe(arguments.recipe, [*settings, f"auto_augment={arguments.auto_augment}"])

    source = open_source(arguments.data, "all")
    loader = TrainingLoader(source, recipe, arguments.size, arguments.batch, arguments.workers)
    normalize = Normalization(recipe, torch.device("cpu"), recipe.random_erasing)
    timm_loader = create_loader(
        create_dataset("", root=str(arguments.data), is_training=True),
        input_size=(3, arguments.size, arguments.size),
        batch_size=arguments.batch,
        is_training=True,
        scale=recipe.crop_scale,
        ratio=recipe.crop_ratio,
        hflip=recipe.horizontal_flip,
        color_jitter=recipe.color_jitter,
        auto_augment=recipe.auto_augment or None,
        interpolation=recipe.interpolation,
        re_prob=recipe.random_erasing,
        re_mode="pixel",
        num_workers=arguments.workers,
        device=torch.device("cpu"),
        persistent_workers=True,
    )
    epoch = [0]

    def ours() -> int:
        epoch[0] += 1
        return sum(len(normalize(batch.pixels)) for batch in loader.batches(epoch[0]))

    def theirs() -> int:
        return sum(len(pixels) for pixels, _ in timm_loader)

    loaders: dict[str, Callable[[], int]] = {"timm": theirs, "swiftformer": ours}
    for load in loaders.values():
        load()
    rounds = []
    for _ in range(arguments.rounds):
        speeds = {}
        for name, load in loaders.items():
            start = time.perf_counter()
            images = sum(load() for _ in range(arguments.epochs))
            speeds[name] = images / (time.perf_counter() - start)
        rounds.append(speeds)
    print(f"{len(source)} pictures, {arguments.workers} workers, torch {torch.__version__}, timm {timm.__version__}\n")
    print("| loader | images/s (median) | quartiles | times timm |")
    print("|---|---|---|---|")
    for name in loaders:
        low, middle, high = statistics.quantiles([speeds[name] for speeds in rounds], n=4)
        ratio = statistics.median(speeds[name] / speeds["timm"] for speeds in rounds)
        print(f"| {name} | {middle:.0f} | {low:.0f} to {high:.0f} | {ratio:.2f} |")


if __name__ == "__main__":
    main()
