"""Batches for training and evaluation."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import Dataset

from swiftformer.data.epoch_loader import DrawnDataset, EpochLoader, expect_images
from swiftformer.data.lasting_loader import ShareLoader
from swiftformer.data.samplers import Draws, Share, training_order
from swiftformer.data.sources import Source
from swiftformer.device import moved
from swiftformer.image_processing import Preprocessing
from swiftformer.images import ImageError

if TYPE_CHECKING:
    from swiftformer.train.recipe import Recipe, TrainingRecipe

logger = logging.getLogger(__name__)


class TrainingSample(NamedTuple):
    """An augmented image, `(3, S, S)` uint8, its label, its place in the source, and 1 where it stands in for
    another that cannot be read."""

    image: Tensor | np.ndarray  # by version of timm
    label: int
    place: int
    unreadable: int


class TrainingBatch(NamedTuple):
    """Pixels `(B, 3, S, S)` uint8; class indices `(B,)` or, where images are mixed, distributions `(B, classes)`;
    indices of the images `(B,)`; and the number of unreadable ones that others stand in for."""

    pixels: Tensor
    targets: Tensor
    indices: Tensor
    unreadable: Tensor


class TrainingDataset(DrawnDataset):
    """Augmented images with their labels.

    Args:
        short_side: pixels of it that the transform can do with, so that large photographs are decoded smaller.
    """

    def __init__(self, source: Source, transform: Callable[[Image.Image], Any], short_side: int | None = None) -> None:
        super().__init__(source)
        self.source = source
        self.transform = transform
        self.short_side = short_side

    def read(self, place: int) -> Image.Image:
        return self.source.image(place, self.short_side)

    def sample(self, read: Image.Image, place: int, unreadable: int) -> TrainingSample:
        return TrainingSample(self._transformed(read), self.source.labels[place], place, unreadable)

    def _transformed(self, image: Image.Image) -> Any:
        # At full strength timm's posterize asks for 0 bits, which Pillow 13 refuses: then the draw is repeated.
        for _ in range(9):
            try:
                return self.transform(image)
            except ValueError as error:
                if "bits must be between" not in str(error):
                    raise
        return self.transform(image)


class TrainingCollate:
    """Samples to a `TrainingBatch`. `mix` is timm's Mixup and CutMix, which stacks the images as well."""

    def __init__(self, mix: Callable[[list[Any]], tuple[Tensor, Tensor]] | None) -> None:
        self.mix = mix

    def __call__(self, samples: list[TrainingSample]) -> TrainingBatch:
        if self.mix is not None:
            pixels, targets = self.mix([(sample.image, sample.label) for sample in samples])
        else:
            # The images are views of (S, S, 3) arrays: stacked as these, the batch is in channels-last memory for free.
            pixels = torch.stack([torch.as_tensor(sample.image).permute(1, 2, 0) for sample in samples])
            pixels = pixels.permute(0, 3, 1, 2)
            targets = torch.tensor([sample.label for sample in samples])
        indices = torch.tensor([sample.place for sample in samples])
        return TrainingBatch(pixels, targets, indices, torch.tensor(sum(sample.unreadable for sample in samples)))


class Normalization(nn.Module):
    """uint8 pixels to normalised float32, on the device that it lies on.

    Args:
        erasing: probability with which an image is partly erased, by noise.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, recipe: TrainingRecipe, device: torch.device, erasing: float = 0.0) -> None:
        from timm.data.random_erasing import RandomErasing

        super().__init__()
        for name, values in (("mean", recipe.mean), ("std", recipe.std)):
            self.register_buffer(name, torch.tensor([255 * value for value in values], device=device))
        self.erase = RandomErasing(erasing, mode="pixel", device=device)
        self.channels_last = recipe.channels_last

    def forward(self, pixels: Tensor) -> Tensor:
        """`(B, 3, H, W)` to the same shape."""
        pixels = moved(pixels, self.mean.device)
        if self.channels_last:
            # As rows of W * 3 values: arithmetic over an innermost dimension of three is seven times slower.
            batch, _, height, width = pixels.shape
            rows = pixels.permute(0, 2, 3, 1).reshape(batch, height, width * 3)
            rows = rows.float().sub_(self.mean.repeat(width)).div_(self.std.repeat(width))
            pixels = rows.view(batch, height, width, 3).permute(0, 3, 1, 2)
        else:
            pixels = pixels.float().sub_(self.mean.view(1, 3, 1, 1)).div_(self.std.view(1, 3, 1, 1))
        return self.erase(pixels) if self.erase.probability > 0 else pixels


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


def evaluation_loader(
    source: Source, preprocessing: Preprocessing, batch_size: int, workers: int, rank: int = 0, world_size: int = 1
) -> ShareLoader[tuple[Tensor, Tensor, Tensor]]:
    """Batches `(pixels (B, 3, H, W) float32, labels (B,), indices (B,))` in order, each readable picture once.

    All images for one process, for several their shares.
    """
    share = Share(len(source), rank, world_size)
    return ShareLoader(EvaluationDataset(source, preprocessing), share, batch_size, _collate, workers)


class TrainingLoader(EpochLoader[TrainingBatch]):
    """Shuffled, augmented batches for one of `world_size` processes.

    Args:
        image_size: side of the images in pixels.
        batch_size: images per batch and process.
        workers: processes that load.

    Raises:
        ValueError: fewer images than one batch of all processes, or an unknown augmentation.
    """

    def __init__(
        self,
        source: Source,
        recipe: Recipe,
        image_size: int,
        batch_size: int,
        workers: int,
        rank: int = 0,
        world_size: int = 1,
        pin_memory: bool = False,
    ) -> None:
        expect_images(len(source), batch_size, world_size)
        super().__init__(
            TrainingDataset(source, _augmentation(recipe, image_size), _needed(recipe, image_size)),
            Draws(training_order(source, recipe, rank, world_size), recipe.seed, rank, world_size),
            batch_size,
            TrainingCollate(_mixing(recipe, len(source.classes))),
            workers,
            pin_memory,
        )


def _needed(recipe: Recipe, image_size: int) -> int:
    """The short side of which the smallest and narrowest crop still has `image_size` pixels each way."""
    narrowest = min(*recipe.crop_ratio, *(1 / ratio for ratio in recipe.crop_ratio))
    return math.ceil(image_size / math.sqrt(recipe.crop_scale[0] * narrowest))


def _augmentation(recipe: Recipe, image_size: int) -> Callable[[Image.Image], Any]:
    from timm.data import create_transform

    try:
        return create_transform(
            image_size,
            is_training=True,
            use_prefetcher=True,  # uint8 arrays; normalised later, on the device
            scale=recipe.crop_scale,
            ratio=recipe.crop_ratio,
            hflip=recipe.horizontal_flip,
            color_jitter=recipe.color_jitter,
            auto_augment=recipe.auto_augment or None,
            interpolation=recipe.interpolation,
        )
    except (AssertionError, KeyError, ValueError) as error:
        raise ValueError(
            f"auto_augment: expected a policy of timm such as rand-m9-mstd0.5-inc1, found {recipe.auto_augment!r}"
        ) from error


def _mixing(recipe: Recipe, classes: int) -> Callable[[Any], tuple[Tensor, Tensor]] | None:
    if not recipe.mixes:
        return None
    from timm.data import FastCollateMixup

    return FastCollateMixup(
        mixup_alpha=recipe.mixup,
        cutmix_alpha=recipe.cutmix,
        prob=recipe.mix_prob,
        switch_prob=recipe.mix_switch_prob,
        label_smoothing=recipe.label_smoothing,
        num_classes=classes,
    )
