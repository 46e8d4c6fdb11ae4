"""Where the pictures of a tar file lie, and their labels, read from its headers once and kept in the cache folder."""

from __future__ import annotations

import json
import logging
import tarfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from swiftformer.data.cache import cached_path
from swiftformer.data.sources import IMAGE_SUFFIXES
from swiftformer.files import atomic_file

logger = logging.getLogger(__name__)

VERSION = 1  # of what is cached


@dataclass(frozen=True)
class ShardIndex:
    """The samples of a tar file, in its order: keys `(N,)` UTF-8; offsets, sizes in bytes and labels `(N,)` int64."""

    keys: np.ndarray
    offsets: np.ndarray
    sizes: np.ndarray
    labels: np.ndarray
    damage: str = ""

    def __len__(self) -> int:
        return len(self.labels)


def index_shard(file: Path) -> ShardIndex:
    """The index of a tar file of WebDataset samples, from the cache or from its headers.

    Where the file is cut off or damaged, a warning names it, and the samples before that place are taken.

    Raises:
        ValueError: no uncompressed tar file, no samples, or a picture without a label.
    """
    stat = file.stat()
    cached = cached_path("shards", file, ".npz")
    stamp = np.array([VERSION, stat.st_size, stat.st_mtime_ns])
    index = _load(cached, stamp)
    if index is None:
        index = _build(file, stat.st_size)
        arrays: dict[str, Any] = vars(index)
        try:
            with atomic_file(cached) as temporary, temporary.open("wb") as opened:
                np.savez(opened, stamp=stamp, **arrays)
        except OSError as error:
            logger.debug("%s: cannot keep the index of %s (%s)", cached, file.name, error.strerror)
    if index.damage:
        logger.warning("%s: %s; taking the %d whole samples before that", file, index.damage, len(index))
    return index


def _load(cached: Path, stamp: np.ndarray) -> ShardIndex | None:
    """The cached index, or None where it is absent, damaged, or of another state of the file."""
    try:
        with np.load(cached, allow_pickle=False) as found:
            if not np.array_equal(found["stamp"], stamp):
                return None
            offsets, sizes, labels = (found[name] for name in ("offsets", "sizes", "labels"))
            index = ShardIndex(found["keys"], offsets, sizes, labels, str(found["damage"]))
    except (OSError, ValueError, KeyError, TypeError, EOFError, RuntimeError, zipfile.BadZipFile):
        return None
    numbers = (offsets, sizes, labels)
    whole = index.keys.ndim == 1 and all(n.dtype == np.int64 and n.shape == index.keys.shape for n in numbers)
    whole = whole and all(n.min(initial=0) >= 0 for n in numbers) and bool(np.all(offsets + sizes <= stamp[1]))
    return index if whole and len(index) else None


def _build(file: Path, length: int) -> ShardIndex:
    with file.open("rb") as opened:
        members, damage = _members(opened, file, length)
        rows: list[tuple[bytes, int, int, int]] = []
        for number, (key, parts) in enumerate(members.items(), 1):
            image = next((parts[suffix] for suffix in IMAGE_SUFFIXES if suffix in parts), None)
            if image is None:
                continue
            label = _label(opened, parts, f"{file}: {key}")
            if label is None:
                if damage and number == len(members):
                    continue
                raise ValueError(
                    f"{file}: expected {key}.cls or {key}.json with a label beside the picture, found none"
                )
            rows.append((key.encode("utf-8", "surrogateescape"), *image, label))
    if not rows:
        raise ValueError(
            f"{file}: expected pictures with labels (KEY.jpg, KEY.cls), found none{damage and f' ({damage})'}"
        )
    offsets, sizes, labels = np.array([row[1:] for row in rows], dtype=np.int64).T
    return ShardIndex(np.array([row[0] for row in rows], dtype=np.bytes_), offsets, sizes, labels, damage)


def _members(opened: BinaryIO, file: Path, length: int) -> tuple[dict[str, dict[str, tuple[int, int]]], str]:
    """Offset and size of the files in a tar by key and suffix, and what is wrong with the tar, if anything."""
    members: dict[str, dict[str, tuple[int, int]]] = {}
    end = 0
    try:
        with tarfile.open(fileobj=opened, mode="r:") as tar:
            for member in tar:
                end = tar.offset
                folder, _, name = member.name.rpartition("/")
                stem, _, suffix = name.partition(".")
                if (
                    not member.isreg()
                    or member.sparse is not None
                    or not stem
                    or member.offset_data + member.size > length
                ):
                    continue
                key = f"{folder}/{stem}" if folder else stem
                members.setdefault(key, {})[f".{suffix.lower()}"] = (member.offset_data, member.size)
    except (tarfile.TarError, ValueError, OverflowError) as error:
        if not members:
            raise ValueError(f"{file}: expected an uncompressed tar file ({error})") from error
        return members, f"damaged or cut off ({error})"
    # Python's reader stops without a word where a header is cut off or broken.
    opened.seek(end)
    if end > length or opened.read(512) != bytes(512):
        return members, f"damaged or cut off at byte {min(end, length)}"
    return members, ""


def _label(opened: BinaryIO, parts: dict[str, tuple[int, int]], name: str) -> int | None:
    if ".cls" in parts:
        text: Any = _content(opened, parts[".cls"]).decode("utf-8", "replace").strip()
        found: Any = int(text) if text.isascii() and text.isdigit() else text
    elif ".json" in parts:
        try:
            document = json.loads(_content(opened, parts[".json"]))
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{name}.json: expected JSON ({error})") from error
        found = (
            next((document[k] for k in ("label", "cls") if k in document), None) if isinstance(document, dict) else None
        )
    else:
        return None
    if found is not None and (type(found) is not int or not 0 <= found < 2**31):
        raise ValueError(f"{name}: expected a whole number from 0 as label, found {str(found)[:40]!r}")
    return found


def _content(opened: BinaryIO, part: tuple[int, int]) -> bytes:
    opened.seek(part[0])
    return opened.read(part[1])
