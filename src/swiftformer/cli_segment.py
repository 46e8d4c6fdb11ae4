"""The command line's `swiftformer segment`. Heavy imports sit inside the command."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from swiftformer.cli_options import RUNNABLE_HELP, AsJson, Device, Engine, Form, Precision, Threads, print_json

if TYPE_CHECKING:
    from swiftformer.predict_segmentation import SegmentationResult


def segment(
    images: Annotated[list[str], typer.Argument(help="Files, folders, globs, or - for standard input.")],
    model: Annotated[str, typer.Option(help=f"A segmentation model. {RUNNABLE_HELP}")],
    output: Annotated[Path, typer.Option(help="Folder for the pictures with their classes in colours.")] = Path(
        "segments"
    ),
    masks: Annotated[bool, typer.Option("--masks", help="Also PNGs of the class indices, NAME.mask.png.")] = False,
    opacity: Annotated[float, typer.Option(min=0, max=1, help="Of the colours.")] = 0.6,
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
    """Segment pictures: the class of every pixel, drawn over the picture.

    A picture that cannot be read is named, the others are segmented, and the exit code is 2.
    """
    from swiftformer.predict import find_images
    from swiftformer.predict_segmentation import open_segmenter
    from swiftformer.predict_segmentation import segment as run
    from swiftformer.reports import progress_bar, segmentation_table

    found = find_images(images)
    runner = open_segmenter(model, engine, device, precision, threads, form)
    targets = unique_names([name for name, _ in found])
    results, documents = [], []
    with progress_bar("segment", len(found)) as advance:
        for (name, source), target in zip(found, targets, strict=True):
            [result] = run([source], runner, names=[name], short_side=short_side)
            document = result.to_dict()
            if result.mask is not None:
                document |= write_pictures(source, result, runner.labels, output / target, opacity, masks)
            results.append(result)
            documents.append(document)
            advance(1)
    if as_json:
        print_json(documents)
    else:
        segmentation_table(results)
        typer.echo(f"pictures are in {output}", err=True)
    errors = [result.error for result in results if result.error]
    for error in errors:
        typer.echo(f"error: {error}", err=True)
    if errors:
        raise typer.Exit(2)


def write_pictures(
    source: object, result: SegmentationResult, labels: tuple[str, ...], target: Path, opacity: float, masks: bool
) -> dict[str, str]:
    """Write `target`.png, and `target`.mask.png if wanted; where they are, for JSON."""
    from PIL import Image

    from swiftformer.files import atomic_file
    from swiftformer.image_processing import open_image
    from swiftformer.visualize import draw_segmentation, palette

    assert result.mask is not None
    target.parent.mkdir(parents=True, exist_ok=True)
    written = {"overlay": str(target) + ".png"}
    with atomic_file(Path(written["overlay"])) as file:
        image = open_image(source, result.image)  # type: ignore[arg-type]
        draw_segmentation(image, result.mask, labels, opacity=opacity).save(file, format="PNG")
    if masks:
        written["mask"] = str(target) + ".mask.png"
        drawn = Image.fromarray(result.mask)
        if drawn.mode == "L":
            drawn.putpalette(palette(256).tobytes())
        with atomic_file(Path(written["mask"])) as file:
            drawn.save(file, format="PNG")
    return written


def unique_names(pictures: list[str]) -> list[str]:
    """A file name without suffix for each picture; those of the same name are numbered."""
    stems = [Path(name).stem if name != "-" else "stdin" for name in pictures]
    seen: dict[str, int] = {}
    names = []
    for stem in stems:
        number = seen[stem] = seen.get(stem, 0) + 1
        names.append(stem if number == 1 else f"{stem}-{number}")
    return names
