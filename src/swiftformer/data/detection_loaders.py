"""Batches of pictures with objects, for training and evaluation."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DistributedSampler

from swiftformer.data.detection import DetectionSource
from swiftformer.data.detection_transforms import PADDING, Target
from swiftformer.data.epoch_loader import DrawnDataset, EpochLoader, expect_images
from swiftformer.data.objects import Objects
from swiftformer.data.samplers import Draws
from swiftformer.data.single_loader import SingleLoader
from swiftformer.image_processing import IMAGENET_MEAN, Preprocessing

# Pixels and objects of a picture, its boxes `(n, 4)` in pixels, labels `(n,)` and masks `(n, height, width)` or None.
Transform = Callable[[Image.Image, np.ndarray, np.ndarray, np.ndarray | None], tuple[Tensor, Target]]


class DetectionSample(NamedTuple):
    """An augmented image, `(3, H, W)` uint8, its objects, its place in the source, and 1 where
    it stands in for another that cannot be read."""

    image: Tensor
    target: Target
    place: int
    unreadable: int


class DetectionTargets(list[Target]):
    """The objects of each picture of a batch: `class_labels` `(n,)` int64, `boxes` `(n, 4)` float32 as centre x,
    centre y, width and height in shares of the batch's width and height, and `masks` `(n, H, W)` bool where there are
    any."""

    def to(self, device: torch.device | str, non_blocking: bool = False) -> DetectionTargets:
        return DetectionTargets(
            {key: value.to(device, non_blocking=non_blocking) for key, value in target.items()} for target in self
        )

    def pin_memory(self, device: torch.device | str | None = None) -> DetectionTargets:
        return DetectionTargets({key: value.pin_memory() for key, value in target.items()} for target in self)


class DetectionBatch(NamedTuple):
    """Pixels `(B, 3, H, W)` uint8; the objects of each picture; indices of the images `(B,)`; and the number of
    unreadable ones that others stand in for."""

    pixels: Tensor
    targets: DetectionTargets
    indices: Tensor
    unreadable: Tensor


class DetectionDataset(DrawnDataset):
    """Augmented images with their objects, without crowds."""

    def __init__(self, source: DetectionSource, transform: Transform) -> None:
        super().__init__(source)
        self.source = source
        self.transform = transform

    def read(self, place: int) -> tuple[Image.Image, Objects, np.ndarray | None]:
        objects = self.source.objects(place).without_crowd()
        image = self.source.image(place)
        if not self.source.has_masks:
            return image, objects, None
        if not len(objects):
            return image, objects, np.zeros((0, image.height, image.width), dtype=np.uint8)
        return image, objects, objects.decoded_masks()

    def sample(
        self, read: tuple[Image.Image, Objects, np.ndarray | None], place: int, unreadable: int
    ) -> DetectionSample:
        image, objects, masks = read
        return DetectionSample(*self.transform(image, objects.boxes, objects.labels, masks), place, unreadable)


def collate(
    samples: list[DetectionSample], divisor: int = PADDING, fill: tuple[int, ...] = (0, 0, 0)
) -> DetectionBatch:
    """Samples to a batch, whose pixels are in channels-last memory.

    Args:
        divisor: pictures are padded at the right and at the bottom to the largest height and width among them, each
            to a multiple of this.
        fill: colour there.
    """
    sizes = [sample.image.shape[1:] for sample in samples]
    height, width = (-(-max(sides) // divisor) * divisor for sides in zip(*sizes, strict=True))
    pixels = torch.empty((len(samples), height, width, len(fill)), dtype=torch.uint8)
    targets = DetectionTargets()
    for canvas, sample in zip(pixels, samples, strict=True):
        down, across = sample.image.shape[1:]
        if (down, across) != (height, width):
            canvas[:] = torch.tensor(fill, dtype=torch.uint8)
        canvas[:down, :across] = sample.image.permute(1, 2, 0)
        target = {**sample.target}
        target["boxes"] = target["boxes"] * torch.tensor([across / width, down / height] * 2)
        if "masks" in target:
            target["masks"] = torch.nn.functional.pad(target["masks"], [0, width - across, 0, height - down])
        targets.append(target)
    indices = torch.tensor([sample.place for sample in samples])
    unreadable = torch.tensor(sum(sample.unreadable for sample in samples))
    return DetectionBatch(pixels.permute(0, 3, 1, 2), targets, indices, unreadable)


class DetectionTrainingLoader(EpochLoader[DetectionBatch]):
    """Shuffled, augmented batches for one of `world_size` processes.

    Args:
        transform: makes pixels and objects of a picture, such as a `DetectionAugmentation` or a
            `MultiScaleAugmentation`.
        batch_size: images per batch and process.
        workers: processes that load.
        seed: of order and augmentation.

    Raises:
        ValueError: fewer images than one batch of all processes.
    """

    def __init__(
        self,
        source: DetectionSource,
        transform: Transform,
        batch_size: int,
        workers: int,
        rank: int = 0,
        world_size: int = 1,
        *,
        seed: int = 0,
        pin_memory: bool = False,
    ) -> None:
        expect_images(len(source), batch_size, world_size)
        indices: Any = range(len(source))
        order: Any = DistributedSampler(indices, num_replicas=world_size, rank=rank)
        fill = getattr(transform, "fill", tuple(round(255 * value) for value in IMAGENET_MEAN))
        super().__init__(
            DetectionDataset(source, transform),
            Draws(order, seed, rank, world_size),
            batch_size,
            partial(collate, divisor=getattr(transform, "divisor", PADDING), fill=fill),
            workers,
            pin_memory,
        )


class DetectionEvaluationLoader(SingleLoader[tuple[Tensor, tuple[int, int], int]]):
    """See `SingleLoader`; pictures whose objects cannot be read are left out as well.

    Yields:
        Pixels `(1, 3, H, W)` float32, height and width of the picture itself, and the index.

    Args:
        preprocessing: is made to crop nothing.
        workers: processes that load.
    """

    def __init__(
        self,
        source: DetectionSource,
        preprocessing: Preprocessing,
        workers: int,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        read = partial(_read_with_size, source, preprocessing.uncropped())
        super().__init__(source, read, workers, rank, world_size)


def _read_with_size(
    source: DetectionSource, preprocessing: Preprocessing, index: int
) -> tuple[Tensor, tuple[int, int], int]:
    source.objects(index)
    image = source.image(index)
    pixels = preprocessing.prepare(image, source.name(index))
    return torch.from_numpy(pixels)[None], (image.height, image.width), index
