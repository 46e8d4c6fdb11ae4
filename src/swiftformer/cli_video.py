"""What `swiftformer segment` and `swiftformer detect` do with videos and cameras."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from swiftformer.cli_options import in_one_line

if TYPE_CHECKING:
    import numpy as np

    from swiftformer.images import ImageError


def pictures_and_clips(images: list[str] | None, camera: int | None) -> tuple[list[Any], list[Any]]:
    """What the command line names, as pairs of a name and a source: pictures; videos and the camera.

    Raises:
        ValueError: nothing is named, or what reads videos is not installed.
    """
    from swiftformer.predict import find_images
    from swiftformer.video import is_video, opencv

    if not images and camera is None:
        raise ValueError("expected pictures, videos or --camera, found none")
    found = find_images(images or [])
    pictures = [(name, source) for name, source in found if not is_video(name)]
    clips: list[Any] = [(name, source) for name, source in found if is_video(name)]
    clips += [] if camera is None else [(f"camera-{camera}", camera)]
    if clips:
        opencv()  # before pictures are looked at, whose results would be lost
    return pictures, clips


def record(
    name: str,
    source: str | Path | int | ImageError,
    target: Path,
    step: Callable[[np.ndarray], tuple[np.ndarray, dict[str, Any]]],
    limit: int | None = None,
) -> dict[str, Any]:
    """See `swiftformer.video.record_video`; a video that cannot be read gives `{"video", "error"}`."""
    from swiftformer.images import ImageError
    from swiftformer.progress import progress_bar
    from swiftformer.video import VideoReader, record_video

    if isinstance(source, ImageError):  # of a name that stands for none
        return {"video": name, "error": str(source)}
    try:
        with VideoReader(source) as reader:
            if reader.live:
                typer.echo(f"{reader.name}: until Ctrl-C" + (f", or {limit} frames" if limit else ""), err=True)
            known = [number for number in (reader.frames, limit) if number is not None]
            with progress_bar(Path(reader.name).name, min(known, default=None)) as advance:
                return record_video(reader, target, step, limit=limit, progress=advance)
    except ImageError as error:
        return {"video": f"camera {source}" if isinstance(source, int) else name, "error": str(error)}


def write_json(file: Path, rows: list[dict[str, Any]]) -> None:
    """All results in one document."""
    from swiftformer.files import atomic_file

    with atomic_file(file) as temporary:
        temporary.write_text(json.dumps(rows), encoding="utf-8")


def tell(documents: list[dict[str, Any]], folder: Path) -> None:
    """On standard error, where what was drawn is."""
    for document in documents:
        if "frames" in document:
            typer.echo(f"{document['video']}: {document['frames']} frames are in {document['overlay']}", err=True)
        if "frames_missing" in document:
            typer.echo(
                f"{document['video']}: {document['frames_missing']} frames fewer than the file says: it may be cut off",
                err=True,
            )
    if any("overlay" in document and "frames" not in document for document in documents):
        typer.echo(f"pictures are in {folder}", err=True)


def exit_with_errors(documents: list[dict[str, Any]]) -> None:
    """Name what could not be read; the exit code is 2 where there is something."""
    errors = [document["error"] for document in documents if "error" in document]
    for error in errors:
        typer.echo(f"error: {in_one_line(error)}", err=True)
    if errors:
        raise typer.Exit(2)
