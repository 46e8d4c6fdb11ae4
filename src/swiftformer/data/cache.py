"""Where indexes and unpacked tables are kept between runs. Everything there can be deleted at any time."""

from __future__ import annotations

import os
from hashlib import blake2b
from pathlib import Path


def cache_folder() -> Path:
    """`$SWIFTFORMER_CACHE`, otherwise `swiftformer` in `$XDG_CACHE_HOME` or `~/.cache`."""
    if own := os.environ.get("SWIFTFORMER_CACHE"):
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "swiftformer"


def cached_path(kind: str, file: Path, suffix: str, *details: object) -> Path:
    """A file in the cache that belongs to another file, by the latter's absolute path and `details`."""
    digest = blake2b(repr((str(file.resolve()), *details)).encode("utf-8", "surrogateescape"), digest_size=12)
    return cache_folder() / kind / f"{file.stem[:60]}-{digest.hexdigest()}{suffix}"
