"""The command line's `swiftformer detect`. Heavy imports sit inside the command."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from swiftformer.cli_options import RUNNABLE_HELP, AsJson, Device, Engine, Form, Precision, Threads, print_json
from swiftformer.cli_segment import free_targets
from swiftformer.cli_video import exit_with_errors, pictures_and_clips, record, tell, write_json

if TYPE_CHECKING:
    import numpy as np

    from swiftformer.predict_detection import DetectionResult


def detect(
    model: Annotated[str, typer.Option(help=f"A detector, with masks or without. {RUNNABLE_HELP}")],
    images: Annotated[
        Optional[list[str]], typer.Argument(help="Files, also videos, folders, globs, or - for standard input.")
    ] = None,
    output: Annotated[Path, typer.Option(help="Folder for the pictures with their objects.")] = Path("detections"),
    threshold: Annotated[float, typer.Option(min=0, max=1, help="Lowest score of an object.")] = 0.5,
    masks: Annotated[bool, typer.Option("--masks/--no-masks", help="Draw masks, where the model gives them.")] = True,
    coco: Annotated[
        Optional[Path],
        typer.Option(
            help="Also a file of COCO results; pictures, frames of videos and categories are numbered in order, from 1."
        ),
    ] = None,
    camera: Annotated[Optional[int], typer.Option(min=0, help="Number of a camera, read until Ctrl-C.")] = None,
    frames: Annotated[Optional[int], typer.Option(min=1, help="Of a video or a camera, at most.")] = None,
    short_side: Annotated[
        Optional[int], typer.Option(min=0, help="Pixels, 0 for a picture's own size; by default as the model wants.")
    ] = None,
    form: Form = None,
    engine: Engine = "auto",
    device: Device = None,
    precision: Precision = None,
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """Detect objects in pictures and videos, drawn over them.

    Of a video, NAME.mp4 shows the objects and NAME.jsonl lists those of each frame. A picture that cannot be read is
    named, the others are looked at, and the exit code is 2.
    """
    from swiftformer.detections import coco_mask
    from swiftformer.files import check_file
    from swiftformer.predict_detection import detect as run
    from swiftformer.predict_detection import open_detector
    from swiftformer.progress import progress_bar

    if coco is not None:
        check_file(coco)
    pictures, clips = pictures_and_clips(images, camera)
    targets = free_targets([name for name, _ in pictures + clips], output)
    runner = open_detector(model, engine, device, precision, threads, form)
    if coco is not None and "masks" in runner.outputs:
        coco_mask()  # which is not installed everywhere
    documents, rows = [], []
    numbers = itertools.count(1)  # of pictures, and of frames behind them
    with progress_bar("detect", len(pictures)) as advance:
        for (name, source), target in zip(pictures, targets, strict=False):
            [result] = run([source], runner, names=[name], short_side=short_side, threshold=threshold)
            document = result.to_dict()
            if result.detections is not None:
                document["overlay"] = write_picture(source, result, target, masks)
            if coco is not None:
                rows += coco_rows(result, next(numbers))
            del result  # its masks are as large as the picture
            documents.append(document)
            advance(1)

    def step(name: str, places: Iterator[int], frame: np.ndarray) -> tuple[np.ndarray, dict[str, Any]]:
        [result] = run([frame], runner, names=[name], short_side=short_side, threshold=threshold, skip_broken=False)
        if coco is not None:
            place = next(places)
            rows.extend(row | {"frame": place} for row in coco_rows(result, next(numbers)))
        return draw_frame(frame, result, masks), {"objects": result.objects()}

    for (name, source), target in zip(clips, targets[len(pictures) :], strict=True):
        documents.append(record(name, source, target, partial(step, name, itertools.count()), frames))
    if coco is not None:
        write_json(coco, rows)
    if as_json:
        print_json(documents)
    else:
        if pictures:
            from swiftformer.reports import detection_table

            detection_table(documents[: len(pictures)])
        tell(documents, output)
    exit_with_errors(documents)


def write_picture(source: Any, result: DetectionResult, target: Path, masks: bool) -> str:
    """Write `target`.png, and return its path."""
    from swiftformer.files import atomic_file
    from swiftformer.images import open_image
    from swiftformer.visualize_objects import draw_detections

    assert result.detections is not None
    with atomic_file(f"{target}.png") as file:
        image = open_image(source, result.image)
        draw_detections(image, result.detections, result.labels, masks=masks).save(file, format="PNG")
    return f"{target}.png"


def draw_frame(frame: np.ndarray, result: DetectionResult, masks: bool) -> np.ndarray:
    """A frame with its objects, in colours that classes keep from frame to frame."""
    import numpy as np
    from PIL import Image

    from swiftformer.visualize_objects import draw_detections

    assert result.detections is not None
    image = Image.fromarray(frame)
    return np.asarray(
        draw_detections(image, result.detections, result.labels, masks=masks, by_object=False, fixed_size=True)
    )


def coco_rows(result: DetectionResult, number: int) -> list[dict[str, Any]]:
    """COCO results of the picture or frame with this number, each with the `file_name`."""
    if result.detections is None:
        return []
    rows = result.detections.coco_results(number, range(1, len(result.labels) + 1))
    return [row | {"file_name": result.image} for row in rows]
