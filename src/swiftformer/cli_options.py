"""What the verbs of the command line share: options, their parsing, and how results are printed."""

from __future__ import annotations

import json
import os
from typing import Annotated, Any, Literal, Optional

import typer

Form = Annotated[
    Optional[Literal["uniform", "l2", "uniform-unnormalized"]],
    typer.Option(help="Numeric form of the model, where its file cannot tell."),
]
Device = Annotated[
    Optional[str], typer.Option(help="cpu, cuda, ...; by default CUDA for what runs in torch, if there is one.")
]
Engine = Annotated[
    str,
    typer.Option(
        help="torch, torch-compile, torch-cudagraphs, native, openvino, onnxruntime, executorch, litert, coreml; "
        "auto: the first of native, openvino, onnxruntime and the others that runs it."
    ),
]
Precision = Annotated[Optional[str], typer.Option(help="fp32, bf16, fp16 or int8, where the engine can choose.")]
Threads = Annotated[Optional[int], typer.Option(min=1, help="On the CPU; the engine's own choice by default.")]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON document on standard output.")]
Level = Annotated[str, typer.Option(help="What a class is in iNaturalist's data: name, genus, family, ...")]
Classes = Annotated[
    Optional[str],
    typer.Option(help="To segment or detect: class names, with commas; a file of them; camvid or voc."),
]
DATA_HELP = "Class folders (also below train/ and val/), Parquet or tar shards, CIFAR, ..., or a data set's name."
MASKS_HELP = "To segment: a folder with images/ and annotations/, or Pascal VOC's."
OBJECTS_HELP = "To detect: COCO's JSON, Pascal VOC's XML or YOLO's text files with their pictures."
ReduceZeroLabel = Annotated[
    Optional[bool], typer.Option(help="To segment: index 0 belongs to no class; else as the layout or the model says.")
]
OnError = Annotated[
    Literal["skip", "raise"],
    typer.Option(help="To segment or detect: leave out wrong annotations and pictures, or refuse the data for one."),
]
Workers = Annotated[
    Optional[int],
    typer.Option(
        min=0, help="Processes that load images: beside a CPU 2, beside a GPU one for each processor, up to 16."
    ),
]
DEFAULT_MODEL = "swiftformer-xs-cifar10"
MODEL_HELP = "Bundled name, hub id, timm name, folder or file."
RUNNABLE_HELP = "Bundled name, hub id, timm name, folder, file, or exported artifact."


def parse_size(text: str) -> tuple[int, int]:
    try:
        numbers = [int(number) for number in text.lower().split("x")]
    except ValueError:
        numbers = []
    if len(numbers) not in (1, 2) or min(numbers) < 1:
        raise ValueError(f"size: expected pixels such as 224 or 480x640, found {text!r}")
    return numbers[0], numbers[-1]


def parse_count(text: str, option: str, things: str) -> int:
    """A number from 1 on. Raises ValueError with the option's name and what it counts."""
    if not text.isdecimal() or int(text) < 1:
        raise ValueError(f"{option}: expected a number of {things}, found {text!r}")
    return int(text)


def parse_batch(text: str) -> int:
    return parse_count(text, "batch", "images")


def check_window(side: int) -> None:
    """Raise ValueError for windows that are narrower than the pixels of the network's last map are apart; 0 is none."""
    if 0 < side < 32:
        raise ValueError(f"--window: expected at least 32 pixels, or 0 for whole pictures, found {side}")


def in_one_line(error: object) -> str:
    return " ".join(line.strip() for line in str(error).splitlines()).strip()


def print_json(document: Any) -> None:
    if rank() == 0:  # of several processes, one speaks
        typer.echo(json.dumps(document, indent=2))


def rank() -> int:
    return int(os.environ.get("RANK", "0"))


def refuse_for(task: str, given: dict[str, Any]) -> None:
    """A ValueError for options that mean nothing to a task; None is one that was not given."""
    if names := [name for name, value in given.items() if value is not None]:
        raise ValueError(f"{', '.join(names)}: expected with another task, found together with one to {task}")


def listed(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]
