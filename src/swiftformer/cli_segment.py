"""The command line's `swiftformer segment`. Heavy imports sit inside the command."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from swiftformer.cli_options import (
    RUNNABLE_HELP,
    AsJson,
    Device,
    Engine,
    Form,
    Precision,
    Threads,
    check_window,
    print_json,
)
from swiftformer.cli_video import exit_with_errors, pictures_and_clips, record, tell, write_json

if TYPE_CHECKING:
    import numpy as np

    from swiftformer.predict_segmentation import SegmentationResult

MOST_IN_LEGEND = 40  # classes, of a video
WRITTEN = (".png", ".mask.png", ".mp4", ".jsonl")  # endings of what may be written


def segment(
    model: Annotated[str, typer.Option(help=f"A segmentation model. {RUNNABLE_HELP}")],
    images: Annotated[
        Optional[list[str]], typer.Argument(help="Files, also videos, folders, globs, or - for standard input.")
    ] = None,
    output: Annotated[Path, typer.Option(help="Folder for the pictures with their classes in colours.")] = Path(
        "segments"
    ),
    masks: Annotated[bool, typer.Option("--masks", help="Also PNGs of the class indices, NAME.mask.png.")] = False,
    coco: Annotated[
        Optional[Path],
        typer.Option(
            help="Also a file of COCO results, a mask for each class that a picture shows; pictures, frames of videos "
            "and categories are numbered in order, from 1."
        ),
    ] = None,
    opacity: Annotated[float, typer.Option(min=0, max=1, help="Of the colours.")] = 0.6,
    short_side: Annotated[
        Optional[int], typer.Option(min=0, help="Pixels, 0 for a picture's own size; by default as the model wants.")
    ] = None,
    window: Annotated[int, typer.Option(min=0, help="Side of sliding windows; 0 for whole pictures.")] = 0,
    camera: Annotated[Optional[int], typer.Option(min=0, help="Number of a camera, read until Ctrl-C.")] = None,
    frames: Annotated[Optional[int], typer.Option(min=1, help="Of a video or a camera, at most.")] = None,
    form: Form = None,
    engine: Engine = "auto",
    device: Device = None,
    precision: Precision = None,
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """Segment pictures and videos: the class of every pixel, drawn over them.

    Of a video, NAME.mp4 shows the classes and NAME.jsonl lists those of each frame. A picture that cannot be read is
    named, the others are segmented, and the exit code is 2.
    """
    from swiftformer.detections import coco_mask
    from swiftformer.files import check_file
    from swiftformer.predict_segmentation import open_segmenter
    from swiftformer.predict_segmentation import segment as run
    from swiftformer.progress import progress_bar

    check_window(window)
    if coco is not None:
        coco_mask()  # which is not installed everywhere
        check_file(coco)
    pictures, clips = pictures_and_clips(images, camera)
    targets = free_targets([name for name, _ in pictures + clips], output)
    runner = open_segmenter(model, engine, device, precision, threads, form)
    if masks and clips:
        typer.echo("--masks: videos get none; --coco has the classes of every frame", err=True)
    documents, rows = [], []
    numbers = itertools.count(1)  # of pictures, and of frames behind them
    with progress_bar("segment", len(pictures)) as advance:
        for (name, source), target in zip(pictures, targets, strict=False):
            [result] = run([source], runner, names=[name], short_side=short_side, window=window)
            document = result.to_dict()
            if result.mask is not None:
                document |= write_pictures(source, result, runner.labels, target, opacity, masks)
            if coco is not None:
                rows += coco_rows(result, next(numbers))
            del result  # its mask is as large as the picture
            documents.append(document)
            advance(1)

    def step(name: str, places: Iterator[int], frame: np.ndarray) -> tuple[np.ndarray, dict[str, Any]]:
        [result] = run([frame], runner, names=[name], short_side=short_side, window=window, skip_broken=False)
        if coco is not None:
            place = next(places)
            rows.extend(row | {"frame": place} for row in coco_rows(result, next(numbers)))
        return draw_frame(frame, result, runner.labels, opacity), {"classes": result.to_dict()["classes"]}

    for (name, source), target in zip(clips, targets[len(pictures) :], strict=True):
        documents.append(record(name, source, target, partial(step, name, itertools.count()), frames))
    if coco is not None:
        write_json(coco, rows)
    if as_json:
        print_json(documents)
    else:
        if pictures:
            from swiftformer.reports import segmentation_table

            segmentation_table(documents[: len(pictures)])
        tell(documents, output)
    exit_with_errors(documents)


def draw_frame(frame: np.ndarray, result: SegmentationResult, labels: tuple[str, ...], opacity: float) -> np.ndarray:
    """A frame with its classes in colours, above a legend of all classes, which is the same below every frame."""
    import numpy as np
    from PIL import Image

    from swiftformer.visualize import overlay_mask, palette

    assert result.mask is not None
    colors = palette(len(labels))
    drawn = np.asarray(overlay_mask(Image.fromarray(frame), result.mask, colors, opacity=opacity))
    if len(labels) > MOST_IN_LEGEND:
        return drawn
    return np.concatenate([drawn, _legend(labels, frame.shape[1], frame.shape[0])])


@functools.lru_cache(maxsize=1)
def _legend(labels: tuple[str, ...], width: int, height: int) -> np.ndarray:
    """For frames of this size, `(rows, width, 3)` uint8."""
    import numpy as np

    from swiftformer.visualize import draw_legend, palette, text_size

    entries = list(zip(labels, palette(len(labels)), strict=True))
    return np.asarray(draw_legend(entries, width, text_size(width, height)))


def coco_rows(result: SegmentationResult, number: int) -> list[dict[str, Any]]:
    """COCO results of the picture or frame with this number, each with the `file_name`."""
    return [row | {"file_name": result.image} for row in result.coco_results(number)]


def write_pictures(
    source: object, result: SegmentationResult, labels: tuple[str, ...], target: Path, opacity: float, masks: bool
) -> dict[str, str]:
    """Write `target`.png, and `target`.mask.png if wanted; where they are, for JSON."""
    import numpy as np
    from PIL import Image

    from swiftformer.files import atomic_file
    from swiftformer.images import open_image
    from swiftformer.visualize import draw_segmentation, palette

    assert result.mask is not None
    target.parent.mkdir(parents=True, exist_ok=True)
    written = {"overlay": f"{target}.png"}
    with atomic_file(Path(written["overlay"])) as file:
        image = open_image(source, result.image)  # type: ignore[arg-type]
        draw_segmentation(image, result.mask, labels, opacity=opacity).save(file, format="PNG")
    if masks:
        written["mask"] = f"{target}.mask.png"
        indices = result.mask if result.mask.dtype == np.uint8 else result.mask.astype(np.uint16)
        drawn = Image.fromarray(indices)
        if drawn.mode == "L":
            drawn.putpalette(palette(256).tobytes())
        with atomic_file(Path(written["mask"])) as file:
            drawn.save(file, format="PNG")
    return written


def free_targets(pictures: list[str], folder: Path) -> list[Path]:
    """A path without suffix in `folder` for each picture; names that are taken get a number.

    Raises:
        NotADirectoryError, PermissionError: the folder cannot be written to.
        ValueError: a result would lie on one of the pictures.
    """
    from swiftformer.files import check_writable, shortened

    check_writable(folder)
    taken: set[str] = set()
    targets = []
    sources = {Path(name).resolve() for name in pictures}
    for picture in pictures:
        stem = shortened(Path(picture).stem, 200) if picture != "-" else "stdin"
        names = (stem if number == 1 else f"{stem}-{number}" for number in itertools.count(1))
        # Windows and macOS know no difference between large and small letters.
        name = next(n for n in names if not {n.casefold(), f"{n}.mask".casefold()} & taken)
        taken |= {name.casefold(), f"{name}.mask".casefold()}
        targets.append(folder / name)
        if clash := {Path(f"{folder / name}{ending}").resolve() for ending in WRITTEN} & sources:
            raise ValueError(f"output: expected another folder than that of the pictures, found {clash.pop()} in it")
    return targets
