"""What the command line prints: tables on standard output."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from pathlib import Path

    from swiftformer.artifact import Artifact
    from swiftformer.predict import Classified

MOST_CLASSES = 6  # of a picture, in a table
UNREAD = "cannot be read"


def console() -> Console:
    """Standard output, with room for long paths where it is a file or a pipe."""
    console = Console()
    return console if console.is_terminal else Console(width=160)


def artifact_table(folder: Path, artifact: Artifact) -> None:
    """What was exported, and how far it is from the model."""
    table = Table(box=None, pad_edge=False, show_header=False)
    free = ("any" if n is None else str(n) for n in artifact.input_shape)
    size = sum(file.stat().st_size for name in artifact.checksums if (file := folder / name).is_file())
    rows = {
        "written": str(folder / artifact.file),
        "format": f"{artifact.format} {artifact.precision}, {size / 1e6:.1f} MB",
        "input": f"{' x '.join(free)}, {artifact.value_range}",
        "outputs": ", ".join(artifact.outputs),
    }
    if found := artifact.comparison:
        texts = [f"largest relative difference {found['max_relative_difference']:.1e}", _agreement(artifact)]
        rows["against PyTorch"] = ", ".join(filter(None, texts))
    else:
        rows["against PyTorch"] = "not compared: this format does not run here"
    for name, value in rows.items():
        table.add_row(Text(name), Text(value))
    console().print(table)


def _agreement(artifact: Artifact) -> str:
    found = artifact.comparison
    percent, pictures = f"{100 * found['top1_agreement']:.0f}%", f"{found['images']:.0f} pictures"
    if artifact.task == "backbone":
        return ""
    if artifact.task == "segmentation":
        return f"same class for {percent} of the pixels of {pictures}"
    if "boxes" not in artifact.outputs:
        return f"same first class for {percent} of {pictures}"
    count = found.get("objects")
    if count == 0:
        return f"no objects to find again in {pictures}"
    return f"{percent} of {'the' if count is None else f'{count:.0f}'} objects in {pictures} found again"


def classification_table(results: list[Classified]) -> None:
    """A row for each picture and class, with a bar for the probability."""
    table = Table(box=None, pad_edge=False)
    for name, options in (("image", {"overflow": "fold"}), ("label", {}), ("probability", {"justify": "right"})):
        table.add_column(name, **options)  # type: ignore[arg-type]
    table.add_column("")
    for result in results:
        if result.error:
            table.add_row(Text(result.image), Text(UNREAD))
        for rank, prediction in enumerate(result.predictions):
            table.add_row(
                Text(result.image if rank == 0 else ""),
                Text(prediction.label),
                f"{100 * prediction.probability:.1f}%",
                "█" * round(20 * prediction.probability),
                style=None if rank == 0 else "dim",
            )
    console().print(table)


def segmentation_table(documents: list[dict[str, Any]]) -> None:
    """A row for each picture with the classes that cover most of it.

    Args:
        documents: as `SegmentationResult.to_dict` gives them.
    """
    table = Table(box=None, pad_edge=False)
    for name in ("image", "classes"):
        table.add_column(name, overflow="fold")
    for document in documents:
        shares = [f"{share['label']} {share['percent']:.0f}%" for share in document["classes"][:MOST_CLASSES]]
        rest = len(document["classes"]) - MOST_CLASSES
        text = ", ".join(shares) + (f" and {rest} more" if rest > 0 else "")
        table.add_row(Text(document["image"]), Text(UNREAD if "error" in document else text))
    console().print(table)


def detection_table(documents: list[dict[str, Any]]) -> None:
    """A row for each picture with the number of objects of each class, the commonest first, and the best score.

    Args:
        documents: of `DetectionResult.to_dict`.
    """
    table = Table(box=None, pad_edge=False)
    for name in ("image", "objects"):
        table.add_column(name, overflow="fold")
    table.add_column("best score", justify="right")
    for document in documents:
        if document.get("error"):
            table.add_row(Text(document["image"]), Text(UNREAD), "")
            continue
        found = document["objects"]
        counts = Counter(entry["label"] for entry in found).most_common()
        names = [f"{count} {label}" for label, count in counts[:MOST_CLASSES]]
        rest = len(counts) - MOST_CLASSES
        text = ", ".join(names) + (f" and {rest} more classes" if rest > 0 else "")
        table.add_row(Text(document["image"]), Text(text or "none"), f"{found[0]['score']:.2f}" if found else "")
    console().print(table)


def metrics_table(metrics: dict[str, Any]) -> None:
    """A line for each metric, with - for one that there is nothing to tell of."""
    table = Table(box=None, pad_edge=False, show_header=False)
    for name, value in metrics.items():
        text = "-" if value is None else f"{value:.2f}" if isinstance(value, float) else str(value)
        table.add_row(Text(name), text)
    console().print(table)


def complexity_table(description: dict[str, Any]) -> None:
    """The rows of `swiftformer.info.describe`, and their totals."""
    height, width = description["size"]
    title = Text(f"{description['model']} at {height}x{width}")
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    table.add_column("layer")
    for name in ("output", "parameters", "GMACs", "output MB"):
        table.add_column(name, justify="right")
    for layer in description["layers"]:
        table.add_row(
            layer["name"],
            "x".join(map(str, layer["shape"])),
            f"{layer['parameters']:,}",
            f"{layer['gmacs']:.4f}",
            f"{layer['megabytes']:.3f}",
        )
    table.add_row(
        "total",
        "",
        f"{description['parameters']:,}",
        f"{description['gmacs']:.4f}",
        f"{description['activation_megabytes']:.3f}",
        style="bold",
    )
    screen = console()
    screen.print(table)
    for key in ("form", "classes", "path", "published"):
        if key in description:
            screen.print(f"{key}: {description[key]}", highlight=False, markup=False, soft_wrap=True)
