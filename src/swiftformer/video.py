"""Videos and cameras, frame by frame, through OpenCV: what is drawn over every frame, and what was found in it."""

from __future__ import annotations

import itertools
import json
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any

import numpy as np

from swiftformer.files import atomic_file
from swiftformer.images import ImageError

SUFFIXES = (".mp4", ".avi", ".mov", ".mkv", ".webm")
CODEC = "mp4v"  # MPEG-4: what every build of OpenCV can write
USUAL_RATE = 30.0  # frames per second, where a camera does not tell

Draw = Callable[[np.ndarray], np.ndarray]


class VideoError(ImageError):
    """A video or camera that cannot be read; the message names it."""


def is_video(name: str | Path) -> bool:
    """Whether a path is that of a video, by its suffix."""
    return Path(name).suffix.lower() in SUFFIXES


class VideoReader:
    """A video file, or a camera. To be used in a `with` statement.

    Args:
        source: a path, or the number of a camera.

    Attributes:
        name: for messages.
        live: whether it is a camera.
        rate: frames per second.
        frames: how many there are, as the file says; None where that is unknown.

    Raises:
        VideoError: it cannot be opened.
        ValueError: OpenCV is not installed.
    """

    def __init__(self, source: str | Path | int) -> None:
        cv2 = opencv()
        self.live = isinstance(source, int)
        self.name = f"camera {source}" if self.live else str(source)
        if not self.live and not Path(source).is_file():  # type: ignore[arg-type]
            raise VideoError(f"{source}: expected a video, found no such file")
        self._capture = cv2.VideoCapture(source if self.live else str(source))
        if not self._capture.isOpened():
            kind = "a camera" if self.live else "a video"
            raise VideoError(
                f"{self.name}: expected {kind}, found {'none' if self.live else 'what OpenCV cannot read'}"
            )
        rate, frames = (self._capture.get(key) for key in (cv2.CAP_PROP_FPS, cv2.CAP_PROP_FRAME_COUNT))
        # 1000 is what OpenCV tells of a WebM file that does not say, and the number of frames is then made of it.
        told = math.isfinite(rate) and 1 <= rate < 1000
        self.rate = rate if told else USUAL_RATE
        self.frames = int(frames) if told and not self.live and math.isfinite(frames) and frames >= 1 else None

    def __iter__(self) -> Iterator[np.ndarray]:
        """Frames, upright, `(height, width, 3)` uint8 RGB."""
        while True:
            there, frame = self._capture.read()
            if not there:
                return
            yield np.ascontiguousarray(frame[:, :, ::-1])

    def __enter__(self) -> VideoReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._capture.release()


def annotate_video(
    reader: VideoReader,
    target: Path,
    draw: Draw,
    *,
    limit: int | None = None,
    progress: Callable[[int], None] = lambda frames: None,
) -> int:
    """Write an mp4 of what is drawn over every frame, at the same rate, without sound. It appears when it is complete.

    A camera is read until Ctrl-C; where its frames come slower than at its rate, they are repeated, so that the film
    lasts as long as what it shows. The format needs even sides: the last column or row of others is cut.

    Args:
        draw: takes a frame `(height, width, 3)` uint8 RGB and returns the picture to write, of one shape for all.
        limit: frames at most.
        progress: called with 1 after every frame.

    Returns:
        The number of frames, without those that are repeated.

    Raises:
        VideoError: there are no frames, OpenCV cannot write such a film, or `draw` returned another shape than for the
            first frame.
    """
    cv2 = opencv()
    count, written, writer, shape = 0, 0, None, (0, 0, 3)
    began = 0.0
    with atomic_file(target) as temporary:
        part = temporary.with_suffix(".mp4")  # which tells OpenCV the format
        try:
            for frame in _until_stopped(reader, limit):
                drawn = draw(frame)
                if writer is None:
                    shape = (drawn.shape[0], drawn.shape[1], 3)
                    writer = cv2.VideoWriter(
                        str(part), cv2.VideoWriter.fourcc(*CODEC), reader.rate, (shape[1], shape[0])
                    )
                    if not writer.isOpened():
                        raise VideoError(f"{target}: OpenCV cannot write an mp4 of shape {shape}")
                    began = time.monotonic()
                if drawn.shape != shape:
                    raise VideoError(
                        f"{reader.name}: expected overlays of the first one's shape {shape}, found {drawn.shape}"
                    )
                owed = int((time.monotonic() - began) * reader.rate) - written if reader.live else 1
                for _ in range(max(owed, 1)):
                    writer.write(np.ascontiguousarray(drawn[:, :, ::-1]))
                count, written = count + 1, written + max(owed, 1)
                progress(1)
            if writer is None:
                raise VideoError(f"{reader.name}: expected a video with frames, found none")
            writer.release()
            part.replace(temporary)
        finally:
            if writer is not None:
                writer.release()
            part.unlink(missing_ok=True)
    return count


def record_video(
    reader: VideoReader,
    target: Path,
    step: Callable[[np.ndarray], tuple[np.ndarray, dict[str, Any]]],
    *,
    limit: int | None = None,
    progress: Callable[[int], None] = lambda frames: None,
) -> dict[str, Any]:
    """Write `target`.mp4 as `annotate_video` does, and `target`.jsonl with a line for every frame.

    Args:
        target: path without suffix.
        step: takes a frame and returns what to write of it, and what was found, for JSON.

    Returns:
        For JSON: `{"video", "height", "width", "frames", "frames_per_second", "overlay", "lines"}`, and, where the file
        says that it has more frames than could be read and there was no limit, "frames_missing".

    Raises:
        VideoError: as `annotate_video`.
    """
    overlay, lines = (Path(f"{target}{suffix}") for suffix in (".mp4", ".jsonl"))
    shape: list[int] = []
    with atomic_file(lines) as file, file.open("w", encoding="utf-8") as stream:
        number, began = 0, time.monotonic()

        def draw(frame: np.ndarray) -> np.ndarray:
            nonlocal number
            seconds = time.monotonic() - began if reader.live else number / reader.rate
            drawn, fields = step(frame)
            stream.write(json.dumps({"frame": number, "seconds": round(seconds, 4)} | fields) + "\n")
            shape[:] = frame.shape[:2]
            number += 1
            return drawn

        count = annotate_video(reader, overlay, draw, limit=limit, progress=progress)
    fields: dict[str, Any] = {"video": reader.name, "height": shape[0], "width": shape[1], "frames": count}
    fields |= {"frames_per_second": reader.rate, "overlay": str(overlay), "lines": str(lines)}
    missing = (reader.frames or 0) - count
    about_all = max(2, 0.02 * count)  # the number in a file is often an estimate, by duration and rate
    return fields | ({"frames_missing": missing} if missing > about_all and limit is None else {})


def _until_stopped(reader: VideoReader, limit: int | None) -> Iterator[np.ndarray]:
    """Frames until the end, the limit, or, of a camera, Ctrl-C."""
    stop: list[bool] = []
    interruptible = reader.live and threading.current_thread() is threading.main_thread()
    if interruptible:
        # A flag, as an exception could come in the middle of a frame that is being written.
        before = signal.signal(signal.SIGINT, lambda number, frame: stop.append(True))
    try:
        for frame in itertools.islice(reader, limit):
            if stop:
                return
            yield frame
    finally:
        if interruptible:
            signal.signal(signal.SIGINT, before)


def opencv() -> ModuleType:
    """The module. Raises ValueError where it is not installed."""
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # its own complaints: errors are told here
    try:
        import cv2
    except ImportError:
        raise ValueError("videos and cameras need OpenCV: pip install 'swiftformer[video]'") from None
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    return cv2
