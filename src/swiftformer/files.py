"""Files that are either complete or absent: written beside their place, flushed to disk, then renamed."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ON_WINDOWS = os.name == "nt"
LAST = ("config.json", "metadata.json")  # without them a folder is no model, so that an interrupted change is seen


def expanded(path: str | Path) -> Path:
    """With a home folder in the place of `~`; as it is where there is no such home, which pathlib raises for."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)


def is_path(text: str) -> bool:
    """Whether a name can only be that of a file or folder, on this system or on Windows, and none on the hub."""
    return text.startswith((".", "/", "~")) or "\\" in text or re.match("[A-Za-z]:", text) is not None


@contextmanager
def atomic_file(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path` to write to; on success it takes the place of `path`.

    Raises:
        OSError: from writing; `path` is then as it was before.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{shortened(path.name, 100)}.", suffix=".tmp", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o644)
        _sync(temporary)
        _replace(temporary, path)
        _sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """Yield a temporary folder to fill; on success its files take their places in `path`.

    A new folder appears at once. In a folder that exists, each file is replaced at once, those of `LAST` behind the
    others, and other files are left alone.

    Raises:
        NotADirectoryError: `path` is a file.
        OSError: from writing; `path` is then as it was before.
    """
    path = Path(path)
    if path.exists() and not path.is_dir():
        raise NotADirectoryError(f"{path}: expected a folder, found a file")
    # Within a folder that exists: it may be another file system than the one around it, or a link to one.
    place = path if path.is_dir() else path.parent
    place.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{shortened(path.name, 100)}.", suffix=".tmp", dir=place))
    try:
        yield temporary
        files = sorted((f for f in temporary.rglob("*") if f.is_file()), key=lambda f: (f.name in LAST, f))
        for file in files:
            file.chmod(0o644)  # some writers make files that only their owner can read
            _sync(file)
        if not path.exists():  # nor has another process made it meanwhile
            temporary.chmod(0o755)
            _sync(temporary)
            _replace(temporary, path)
            _sync(place)
        else:
            for file in files:
                target = path / file.relative_to(temporary)
                target.parent.mkdir(parents=True, exist_ok=True)
                _replace(file, target)
            _sync(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def shortened(name: str, size: int) -> str:
    """The beginning of a file's name, at most `size` bytes: file systems take 255."""
    encoded = os.fsencode(name)
    return name if len(encoded) <= size else encoded[:size].decode(errors="ignore")


def _replace(source: Path, target: Path) -> None:
    """Windows refuses while another program, of which many look at new files, has one of them open: wait a moment."""
    for pause in (0.1, 0.3, 1) if ON_WINDOWS else ():
        try:
            source.replace(target)
            return
        except PermissionError:
            time.sleep(pause)
    source.replace(target)


def _sync(path: Path) -> None:
    if ON_WINDOWS and path.is_dir():  # which cannot be opened there
        return
    handle = os.open(path, os.O_RDWR if ON_WINDOWS else os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def check_file(path: Path) -> None:
    """As `check_writable`, before minutes of work whose results go into one file.

    Raises:
        IsADirectoryError, NotADirectoryError, PermissionError: it cannot be written.
    """
    if path.is_dir():
        raise IsADirectoryError(f"{path}: expected a file to write, found a folder")
    check_writable(path.parent)


def check_writable(output: Path) -> None:
    """Before minutes of work whose results go into a folder: it, or the nearest above that exists, takes a new file.

    Raises:
        NotADirectoryError, PermissionError: it does not.
    """
    folder = output
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    if not folder.is_dir():
        raise NotADirectoryError(f"{folder}: expected a folder, found a file")
    if not os.access(folder, os.W_OK):
        raise PermissionError(f"{folder}: expected a folder that can be written to")
