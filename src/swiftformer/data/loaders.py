"""Batches for training and evaluation."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler, Sampler

from swiftformer.data.sources import Source
from swiftformer.image_processing import ImageError, Preprocessing

if TYPE_CHECKING:
    from timm.data.loader import PrefetchLoader

    from swiftformer.train.recipes import Recipe

logger = logging.getLogger(__name__)


class Draws(Sampler[tuple[int, int]]):
    """Another sampler's indices, each with a seed of its own for the augmentation.

    With it a picture's augmentation depends on the epoch and its place in the order alone, so a resumed run repeats
    what an uninterrupted one would have done, whatever the loader processes did before.
    """

    def __init__(self, sampler: Any, seed: int) -> None:
        self.sampler, self.seed, self.epoch = sampler, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch, counted from 0, before iterating."""
        # timm's sampler for repeated augmentation knows no seed besides the epoch.
        self.sampler.set_epoch(self.seed * 1_000_003 + epoch)
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        first = (self.seed * 1_000_003 + self.epoch) * len(self)
        for place, index in enumerate(self.sampler):
            yield int(index), (first + place) % 2**32


class TrainingDataset(Dataset):
    """Transformed image and label of a draw `(index, seed)`.

    An unreadable picture is named in the log and the next one stands in.
    """

    def __init__(self, source: Source, transform: Callable[[Image.Image], Any]) -> None:
        self.source = source
        self.transform = transform

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, draw: tuple[int, int]) -> tuple[Any, int]:
        index, seed = draw
        seed_generators(seed)
        for offset in range(len(self)):
            place = (index + offset) % len(self)
            try:
                image = self.source.image(place)
            except ImageError as error:
                logger.warning("skipped %s", error)
                continue
            return self._transformed(image), self.source.labels[place]
        raise ValueError("expected readable images, found none")

    def _transformed(self, image: Image.Image) -> Any:
        # At full strength timm's posterize asks for 0 bits, which Pillow 13 refuses: then the draw is repeated.
        for _ in range(9):
            try:
                return self.transform(image)
            except ValueError as error:
                if "bits must be between" not in str(error):
                    raise
        return self.transform(image)


class EvaluationDataset(Dataset):
    """Preprocessed `(3, H, W)` pixels, label and index; None where the picture cannot be read."""

    def __init__(self, source: Source, preprocessing: Preprocessing) -> None:
        self.source = source
        self.preprocessing = preprocessing

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int, int] | None:
        try:
            pixels = self.preprocessing.prepare(self.source.image(index), self.source.name(index))
        except ImageError as error:
            logger.warning("skipped %s", error)
            return None
        return pixels, self.source.labels[index], index


def _collate(samples: list[tuple[np.ndarray, int, int] | None]) -> tuple[Tensor, Tensor, Tensor]:
    readable = [sample for sample in samples if sample is not None]
    if not readable:
        return torch.empty(0), torch.empty(0, dtype=torch.long), torch.empty(0, dtype=torch.long)
    pixels, labels, indices = zip(*readable, strict=True)
    return torch.from_numpy(np.stack(pixels)), torch.tensor(labels), torch.tensor(indices)


def seed_generators(seed: int) -> None:
    """Seed Python's, NumPy's and torch's CPU generators of this process; `seed` is below 2**32."""
    random.seed(seed)
    np.random.seed(seed)
    torch.default_generator.manual_seed(
        seed
    )  # of the CPU; torch.manual_seed does much more, too much for every picture


def evaluation_loader(
    source: Source, preprocessing: Preprocessing, batch_size: int, workers: int
) -> DataLoader[tuple[Tensor, Tensor, Tensor]]:
    """Batches `(pixels (B, 3, H, W) float32, labels (B,), indices (B,))` in order, each readable picture once."""
    return DataLoader(
        EvaluationDataset(source, preprocessing),
        batch_size=batch_size,
        num_workers=workers,
        collate_fn=_collate,
        pin_memory=torch.cuda.is_available(),
        persistent_workers=workers > 0,
    )


def training_loader(
    source: Source, recipe: Recipe, image_size: int, device: torch.device, workers: int
) -> PrefetchLoader:
    """Shuffled batches with the recipe's augmentation, `(pixels (B, 3, S, S), targets)` on `device`, S = `image_size`.

    Pixels are normalised on the device. Targets are class indices `(B,)`, or, where the recipe mixes images,
    distributions `(B, classes)`. Call `loader.sampler.set_epoch(epoch)` before each epoch: the order depends on it.

    Raises:
        ValueError: fewer images than one batch.
    """
    from timm.data import FastCollateMixup, create_transform
    from timm.data.distributed_sampler import RepeatAugSampler
    from timm.data.loader import PrefetchLoader, fast_collate

    if len(source) < recipe.batch_size:
        raise ValueError(f"expected at least one batch of {recipe.batch_size} training images, found {len(source)}")
    try:
        transform = create_transform(
            image_size,
            is_training=True,
            use_prefetcher=True,
            scale=recipe.crop_scale,
            ratio=recipe.crop_ratio,
            hflip=recipe.horizontal_flip,
            color_jitter=recipe.color_jitter,
            auto_augment=recipe.auto_augment or None,
            interpolation=recipe.interpolation,
            mean=recipe.mean,
            std=recipe.std,
        )
    except (AssertionError, KeyError, ValueError) as error:
        raise ValueError(
            f"auto_augment: expected a policy of timm such as rand-m9-mstd0.5-inc1, found {recipe.auto_augment!r}"
        ) from error
    dataset = TrainingDataset(source, transform)
    collate = fast_collate
    if recipe.mixes:
        collate = FastCollateMixup(
            mixup_alpha=recipe.mixup,
            cutmix_alpha=recipe.cutmix,
            prob=recipe.mix_prob,
            switch_prob=recipe.mix_switch_prob,
            label_smoothing=recipe.label_smoothing,
            num_classes=len(source.classes),
        )
    order = (
        RepeatAugSampler(dataset, num_replicas=1, rank=0, num_repeats=recipe.repeated_augmentation)
        if recipe.repeated_augmentation > 1
        else DistributedSampler(dataset, num_replicas=1, rank=0)
    )
    loader = DataLoader(
        dataset,
        batch_size=recipe.batch_size,
        sampler=Draws(order, recipe.seed),
        drop_last=True,
        num_workers=workers,
        collate_fn=collate,
        pin_memory=device.type == "cuda",
        persistent_workers=workers > 0,
        generator=torch.Generator(),  # its own, so that starting processes does not move the model's
    )
    return PrefetchLoader(
        loader,
        mean=recipe.mean,
        std=recipe.std,
        device=device,
        re_prob=recipe.random_erasing,
        re_mode="pixel",
    )
