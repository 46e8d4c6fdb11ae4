"""The command line's `swiftformer evaluate`. Heavy imports sit inside the command."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from swiftformer.cli_options import (
    DATA_HELP,
    DEFAULT_MODEL,
    MASKS_HELP,
    OBJECTS_HELP,
    RUNNABLE_HELP,
    AsJson,
    Classes,
    Device,
    Engine,
    Form,
    Level,
    OnError,
    Precision,
    ReduceZeroLabel,
    Threads,
    Workers,
    check_window,
    print_json,
    rank,
    refuse_for,
)
from swiftformer.processors import loaders

# What only models of some tasks are evaluated with.
CLASSIFY = ("level", "batch_size")
SEGMENT = ("classes", "reduce_zero_label", "short_side", "window", "on_error")
DETECT = ("classes", "short_side", "max_detections", "output", "on_error")
OWN_OPTIONS = {
    "segmentation": ("segment", SEGMENT),
    "detection": ("detect", DETECT),
    "instances": ("detect", DETECT),
    "classification": ("classify", CLASSIFY),
    "backbone": ("classify", CLASSIFY),
}


def evaluate(
    data: Annotated[str, typer.Option(help=f"{DATA_HELP} {MASKS_HELP} {OBJECTS_HELP}")],
    model: Annotated[str, typer.Option(help=RUNNABLE_HELP)] = DEFAULT_MODEL,
    split: Annotated[
        Optional[str], typer.Option(help="train, val, test or all; validation images where they lie apart, or all.")
    ] = None,
    batch_size: Annotated[
        Optional[int], typer.Option(min=1, help="To classify: pictures per forward pass, 64.", show_default=False)
    ] = None,
    workers: Workers = None,
    per_class: Annotated[bool, typer.Option("--per-class", help="Accuracy, IoU or AP of each class as well.")] = False,
    raw: Annotated[bool, typer.Option("--raw", help="Of a run folder, the weights that are not averaged.")] = False,
    level: Level = "name",
    classes: Classes = None,
    reduce_zero_label: ReduceZeroLabel = None,
    short_side: Annotated[
        Optional[int],
        typer.Option(min=0, help="To segment and detect: pixels, 0 for a picture's own size; else the model's."),
    ] = None,
    window: Annotated[int, typer.Option(min=0, help="To segment: side of sliding windows; 0 for whole pictures.")] = 0,
    max_detections: Annotated[
        Optional[int],
        typer.Option(
            min=1,
            help="To detect: objects of each class and picture that count (COCO's maxDets, there 100); by default as "
            "many as the model gives, and 100 at least.",
            show_default=False,
        ),
    ] = None,
    output: Annotated[Optional[Path], typer.Option(help="To detect: file for COCO's results.")] = None,
    on_error: OnError = "skip",
    form: Form = None,
    engine: Engine = "auto",
    device: Device = None,
    precision: Precision = None,
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """How good a model is, in percent: top-1 of a classifier, mean IoU of a segmenter, COCO's AP of a detector."""
    from swiftformer.locate import stored_task
    from swiftformer.progress import progress_bar
    from swiftformer.reports import metrics_table

    if raw and not (Path(model) / "raw").is_dir():
        raise ValueError(f"{model}: expected the folder of a run that averages its weights, found no raw/ in it")
    check_window(window)
    reference = str(Path(model) / "raw") if raw else model
    special = {
        "level": None if level == "name" else level,
        "batch_size": batch_size,
        "classes": classes,
        "reduce_zero_label": reduce_zero_label,
        "short_side": short_side,
        "window": window or None,
        "max_detections": max_detections,
        "output": output,
        "on_error": None if on_error == "skip" else on_error,
    }
    verb, own = OWN_OPTIONS[stored_task(reference)]
    refuse_for(verb, {f"--{name.replace('_', '-')}": value for name, value in special.items() if name not in own})
    options: dict[str, Any] = {name: special[name] for name in own if special[name] is not None}
    options |= {"form": form, "engine": engine, "device": device, "precision": precision, "threads": threads}
    if verb == "classify":
        from swiftformer.evaluate.classification import evaluate_reference
    elif verb == "segment":
        from swiftformer.evaluate.segmentation import evaluate_reference  # type: ignore[assignment]
    else:
        from swiftformer.evaluate.detection import evaluate_reference  # type: ignore[assignment]
    workers = loaders(device) if workers is None else workers
    with progress_bar("evaluate", None) as advance:
        metrics = evaluate_reference(
            reference, data, split, workers=workers, per_class=per_class, **options, progress=advance
        )
    if as_json:
        print_json(metrics)
    elif rank() == 0:
        metrics_table(metrics)
