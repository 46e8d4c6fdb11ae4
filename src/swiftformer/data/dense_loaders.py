"""Batches of pictures with masks, for training and evaluation."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DistributedSampler

from swiftformer.data.epoch_loader import DrawnDataset, EpochLoader, expect_images
from swiftformer.data.samplers import Draws
from swiftformer.data.segmentation import SegmentationSource, read_pair
from swiftformer.data.single_loader import SingleLoader
from swiftformer.image_processing import Preprocessing


class SegmentationSample(NamedTuple):
    """An augmented image, `(3, S, S)` uint8, its mask, `(S, S)`, its place in the source, and 1 where
    it stands in for another that cannot be read."""

    image: Tensor
    mask: Tensor
    place: int
    unreadable: int


class SegmentationBatch(NamedTuple):
    """Pixels `(B, 3, S, S)` uint8; class indices `(B, S, S)` int64, 255 for void; indices of the images `(B,)`; and
    the number of unreadable ones that others stand in for."""

    pixels: Tensor
    targets: Tensor
    indices: Tensor
    unreadable: Tensor


class SegmentationDataset(DrawnDataset):
    """Augmented images with their masks."""

    def __init__(
        self, source: SegmentationSource, transform: Callable[[Image.Image, np.ndarray], tuple[Tensor, Tensor]]
    ) -> None:
        super().__init__(source)
        self.source = source
        self.transform = transform

    def read(self, place: int) -> tuple[Image.Image, np.ndarray]:
        return read_pair(self.source, place)

    def sample(self, read: tuple[Image.Image, np.ndarray], place: int, unreadable: int) -> SegmentationSample:
        return SegmentationSample(*self.transform(*read), place, unreadable)


def collate(samples: list[SegmentationSample]) -> SegmentationBatch:
    """Samples to a batch, whose pixels are in channels-last memory."""
    pixels = torch.stack([sample.image.permute(1, 2, 0) for sample in samples]).permute(0, 3, 1, 2)
    targets = torch.stack([sample.mask for sample in samples]).long()
    indices = torch.tensor([sample.place for sample in samples])
    return SegmentationBatch(pixels, targets, indices, torch.tensor(sum(sample.unreadable for sample in samples)))


class SegmentationTrainingLoader(EpochLoader[SegmentationBatch]):
    """Shuffled, augmented batches for one of `world_size` processes.

    Args:
        transform: makes pixels `(3, S, S)` and a mask `(S, S)` of a picture and its mask, such as a
            `SegmentationAugmentation`.
        batch_size: images per batch and process.
        workers: processes that load.
        seed: of order and augmentation.

    Raises:
        ValueError: fewer images than one batch of all processes.
    """

    def __init__(
        self,
        source: SegmentationSource,
        transform: Callable[[Image.Image, np.ndarray], tuple[Tensor, Tensor]],
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
        super().__init__(
            SegmentationDataset(source, transform),
            Draws(order, seed, rank, world_size),
            batch_size,
            collate,
            workers,
            pin_memory,
        )


class SegmentationEvaluationLoader(SingleLoader[tuple[Tensor, Tensor, int]]):
    """See `SingleLoader`.

    Yields:
        Pixels `(1, 3, H, W)` float32, the mask `(height, width)` at its own size, and the index.

    Args:
        preprocessing: is made to crop nothing.
        workers: processes that load.
    """

    def __init__(
        self,
        source: SegmentationSource,
        preprocessing: Preprocessing,
        workers: int,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        read = partial(_read_with_mask, source, preprocessing.uncropped())
        super().__init__(source, read, workers, rank, world_size)


def _read_with_mask(source: SegmentationSource, preprocessing: Preprocessing, index: int) -> tuple[Tensor, Tensor, int]:
    image, mask = read_pair(source, index)
    pixels = preprocessing.prepare(image, source.name(index))
    return torch.from_numpy(pixels)[None], torch.from_numpy(mask), index
