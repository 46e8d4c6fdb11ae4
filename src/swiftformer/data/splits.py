"""Which part of a data set is trained on and which is not, cut deterministically where the data do not say."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Sequence
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, Protocol

from PIL import Image

if TYPE_CHECKING:
    from swiftformer.data.sources import Source

logger = logging.getLogger(__name__)

# Under which names a split is looked for, in order of preference.
SPLIT_ALIASES: dict[str, tuple[str, ...]] = {
    "train": ("train", "training"),
    "val": ("val", "validation", "valid", "dev", "test", "testing"),
    "test": ("test", "testing", "val", "validation", "valid"),
}
SYNONYMS = {"training": "train", "validation": "val", "valid": "val", "dev": "val", "testing": "test"}
USUAL = {alias for aliases in SPLIT_ALIASES.values() for alias in aliases}
ALL = "all"
HELD_OUT = 0.1


def usual(name: str) -> str:
    """The name of a split as `SPLIT_ALIASES` has it, whatever its case, as people also call folders `Train`."""
    return name.lower() if name.lower() in USUAL else name


class NoSuchSplitError(ValueError):
    """Data that have other splits than the one that was asked for."""


class KeyedSource(Protocol):
    """A `Source` whose pictures have names that stay the same when the data are moved or grow."""

    classes: list[str]
    labels: list[int]

    def __len__(self) -> int: ...

    def image(self, index: int, short_side: int | None = None) -> Image.Image: ...

    def name(self, index: int) -> str: ...

    def key(self, index: int) -> str:
        """The picture's own name: its path in the data set, its row or its sample key."""
        ...


# How to open each split, by the name that it has in the data; `all` alone where they are not divided.
Splits = dict[str, Callable[[], KeyedSource]]


class Subset:
    """Some pictures of a source, in the given order."""

    def __init__(self, source: KeyedSource, indices: Sequence[int]) -> None:
        self.source = source
        self.indices = list(indices)
        self.classes = source.classes
        self.labels = [source.labels[index] for index in self.indices]

    def __len__(self) -> int:
        return len(self.indices)

    def image(self, index: int, short_side: int | None = None) -> Image.Image:
        return self.source.image(self.indices[index], short_side)

    def name(self, index: int) -> str:
        return self.source.name(self.indices[index])

    def key(self, index: int) -> str:
        return self.source.key(self.indices[index])


class Joined:
    """Several sources with the same classes, one after the other.

    Raises:
        ValueError: their classes differ.
    """

    def __init__(self, sources: Sequence[KeyedSource]) -> None:
        self.classes = sources[0].classes
        for source in sources:
            if source.classes != self.classes:
                raise ValueError(
                    f"expected the same classes in all splits, found {len(self.classes)} and {len(source.classes)} "
                    f"({sources[0].name(0)}; {source.name(0)})"
                )
        self.sources = list(sources)
        self.labels = [label for source in sources for label in source.labels]

    def __len__(self) -> int:
        return len(self.labels)

    def _find(self, index: int) -> tuple[Any, int]:
        for source in self.sources[:-1]:
            if index < len(source):
                return source, index
            index -= len(source)
        return self.sources[-1], index

    def image(self, index: int, short_side: int | None = None) -> Image.Image:
        source, place = self._find(index)
        return source.image(place, short_side)

    def name(self, index: int) -> str:
        source, place = self._find(index)
        return source.name(place)

    def key(self, index: int) -> str:
        source, place = self._find(index)
        return source.key(place)


def held_out(source: KeyedSource, share: float = HELD_OUT) -> tuple[Subset, Subset]:
    """Cut a source into what is trained on and what is held out, `share` of each class.

    Of a class with two or more pictures at least one is held out and at least one is not; a single picture is trained
    on. The choice depends on the names of class and pictures alone: one picture more or less in a class moves at most
    one of the others. Both parts keep the order of the source.
    """
    members: dict[int, list[int]] = defaultdict(list)
    for index, label in enumerate(source.labels):
        members[label].append(index)
    chosen: set[int] = set()
    for label, indices in members.items():
        count = min(max(round(share * len(indices)), 1), len(indices) - 1)
        ranked = sorted((_hash(source.classes[label], source.key(index)), index) for index in indices)
        chosen.update(index for _, index in ranked[:count])
    everything = range(len(source))
    return Subset(source, [i for i in everything if i not in chosen]), Subset(source, sorted(chosen))


def _hash(name: str, key: str) -> bytes:
    return blake2b(f"{name}\0{key}".encode("utf-8", "surrogateescape"), digest_size=8).digest()


def choose(splits: Splits, split: str | None, where: str) -> Source:
    """The source for a split among those that the data have; `open_source` says what the names mean.

    Raises:
        NoSuchSplitError: there is no such split.
        ValueError: nothing can be held out.
    """

    def found(kind: str) -> str | None:
        return next((name for name in SPLIT_ALIASES.get(kind, (kind,)) if name in splits), None)

    train, evaluation = found("train"), found("val")
    whole = ALL if ALL in splits else train if evaluation is None else None  # what has to be cut, if anything
    if split is not None and split not in splits:
        split = SYNONYMS.get(usual(split), usual(split))
    if whole is not None and split in ("train", "val"):
        return _share(splits[whole](), split, where)
    if ALL in splits and split in (None, "test", ALL):
        return _all_of(splits[ALL](), where) if split is None else splits[ALL]()
    if split == ALL:
        return Joined([opener() for opener in splits.values()])
    if split is None and evaluation is None:
        others = sorted(set(splits) - {*SPLIT_ALIASES["train"], "trainval"})
        if len(others) > 1:
            raise ValueError(f"{where}: expected --split with one of {', '.join(others)}, found none")
        if others:
            logger.info("%s: taking the split %s", where, others[0])
            return splits[others[0]]()
        if train is not None:
            return _all_of(splits[train](), where)
    name = found(split or "val")
    if name is None:
        wanted = ", ".join(SPLIT_ALIASES.get(split or "val", (str(split),)))
        raise NoSuchSplitError(f"{where}: expected a split named one of {wanted}, found {', '.join(sorted(splits))}")
    return splits[name]()


def _all_of(source: KeyedSource, where: str) -> Source:
    logger.info(
        "%s has no validation split: taking all %d pictures; --split val evaluates what training holds out",
        where,
        len(source),
    )
    return source


def _share(source: KeyedSource, split: str, where: str) -> Source:
    train, val = held_out(source)
    if split == "train":
        logger.info("%s has no validation split: training on %d of %d pictures", where, len(train), len(source))
        return train
    if not len(val):
        raise ValueError(
            f"{where}: expected a validation split, or two or more pictures of some class to hold one out, "
            f"found {len(source)} classes with one picture each"
        )
    logger.info(
        "%s has no validation split: evaluating on %d of %d pictures, those that training holds out of each class",
        where,
        len(val),
        len(source),
    )
    return val
