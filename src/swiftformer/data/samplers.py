"""In which order the training images are drawn, and with which random numbers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import DistributedSampler, Sampler

if TYPE_CHECKING:
    from swiftformer.data.sources import Source
    from swiftformer.train.recipe import Recipe

MANY = 100 * 256


class Draws(Sampler[tuple[int, int]]):
    """Another sampler's indices, each with a seed of its own for the augmentation.

    With it a picture's augmentation depends on the epoch and its place in the order alone: a resumed run repeats what
    an uninterrupted one would have done, and several processes do together what one would have done.

    Args:
        sampler: the indices of process `rank` among `world_size`, which takes turns with the others.
    """

    def __init__(self, sampler: Any, seed: int, rank: int = 0, world_size: int = 1) -> None:
        self.sampler, self.seed, self.epoch, self.start = sampler, seed, 0, 0
        self.rank, self.world_size = rank, world_size

    def set_epoch(self, epoch: int, start: int = 0) -> None:
        """Choose the epoch, counted from 0, and the draw to begin with, before iterating."""
        # timm's sampler for repeated augmentation knows no seed besides the epoch.
        self.sampler.set_epoch(self.seed * 1_000_003 + epoch)
        self.epoch, self.start = epoch, start

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        first = (self.seed * 1_000_003 + self.epoch) * 1_000_000_007  # apart from the other epochs' seeds
        for place, index in enumerate(self.sampler):
            if place >= self.start:
                yield int(index), (first + place * self.world_size + self.rank) % 2**32


class Share(Sampler[int]):
    """Every `world_size`-th image, from `rank` on: together the shares hold each image exactly once.

    Attributes:
        start: how many of them the next iteration leaves out.
    """

    def __init__(self, length: int, rank: int, world_size: int) -> None:
        self.places = range(rank, length, world_size)
        self.start = 0

    def __len__(self) -> int:
        return len(self.places)

    def __iter__(self) -> Iterator[int]:
        return iter(self.places[self.start :])


class BalancedSampler(Sampler[int]):
    """As many draws as there are images, every class equally often, pictures with replacement."""

    def __init__(self, labels: Sequence[int], rank: int = 0, world_size: int = 1) -> None:
        counts = torch.bincount(torch.tensor(labels)).double()
        self.weights = 1 / counts[torch.tensor(labels)]
        self.rank, self.world_size, self.epoch = rank, world_size, 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch before iterating."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.weights) // self.world_size

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.epoch)
        # torch.multinomial takes 2**24 weights at most; drawing from the cumulative sum takes any number.
        edges = self.weights.cumsum(0)
        points = torch.rand(len(edges), generator=generator, dtype=torch.float64) * edges[-1]
        indices = torch.searchsorted(edges, points).clamp_(max=len(edges) - 1)
        yield from indices[self.rank : len(self) * self.world_size : self.world_size].tolist()


def training_order(source: Source, recipe: Recipe, rank: int, world_size: int) -> Any:
    """The sampler that a recipe asks for, with `set_epoch`."""
    if recipe.sampler == "balanced":
        return BalancedSampler(source.labels, rank, world_size)
    indices: Any = range(len(source))
    if recipe.repeated_augmentation > 1:
        from timm.data.distributed_sampler import RepeatAugSampler

        repeats: Any = {"num_replicas": world_size, "rank": rank, "num_repeats": recipe.repeated_augmentation}
        # DeiT draws a multiple of 256, which of few images would leave many out.
        return RepeatAugSampler(indices, **repeats, selected_round=0 if len(source) < MANY else 256)
    return DistributedSampler(indices, num_replicas=world_size, rank=rank)
