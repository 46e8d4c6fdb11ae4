"""Where indexes and unpacked tables are kept between runs. Everything there can be deleted at any time."""

from __future__ import annotations

import os
import tempfile
from hashlib import blake2b
from pathlib import Path

from swiftformer.files import expanded


def cache_folder() -> Path:
    """`$SWIFTFORMER_CACHE`, otherwise `swiftformer` in `$XDG_CACHE_HOME`, in `~/.cache`, or, for a user without a home,
    in the folder for temporary files."""
    if own := os.environ.get("SWIFTFORMER_CACHE"):
        return expanded(own)
    shared = expanded(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    if shared.is_absolute():
        return shared / "swiftformer"
    return Path(tempfile.gettempdir()) / f"swiftformer-{os.getuid()}"


def cached_path(kind: str, file: Path, suffix: str, *details: object) -> Path:
    """A file in the cache that belongs to another file, by the latter's absolute path and `details`."""
    digest = blake2b(repr((str(file.resolve()), *details)).encode("utf-8", "surrogateescape"), digest_size=12)
    return cache_folder() / kind / f"{file.stem[:60]}-{digest.hexdigest()}{suffix}"
