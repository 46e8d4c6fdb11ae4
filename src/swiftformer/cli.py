"""The command line: `swiftformer VERB`. Heavy imports sit inside the commands, so that `--help` is quick."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from typing import Annotated, Any, Optional

import typer

app = typer.Typer(
    name="swiftformer",
    help="Train, fine-tune, evaluate, convert and run SwiftFormer vision models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Form = Annotated[
    Optional[str], typer.Option(help="Numeric form, where a file cannot tell: uniform, l2, uniform-unnormalized.")
]
Device = Annotated[Optional[str], typer.Option(help="cpu, cuda, mps, ...; CUDA if there is one.")]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON document on standard output.")]


@app.callback()
def _root() -> None:
    """Train, fine-tune, evaluate, convert and run SwiftFormer vision models."""


@app.command()
def train(
    data: Annotated[str, typer.Option(help="Folder with train/ and val/, Parquet shards, or a data set's name.")],
    output: Annotated[Path, typer.Option(help="Run folder.")] = Path("runs/train"),
    recipe: Annotated[str, typer.Option(help="small_images, finetune or smoke.")] = "finetune",
    set_: Annotated[Optional[list[str]], typer.Option("--set", help="Change a field of the recipe: key=value.")] = None,
    variant: Annotated[str, typer.Option(help="xs, s, l1 or l3, from scratch.")] = "xs",
    model: Annotated[Optional[str], typer.Option(help="Checkpoint to start from, instead of from scratch.")] = None,
    form: Form = None,
    resume: Annotated[bool, typer.Option(help="Go on with the run in the output folder.")] = False,
    device: Device = None,
    workers: Annotated[int, typer.Option(help="Processes that load images.")] = 2,
) -> None:
    """Train or fine-tune a classifier."""
    from swiftformer.data.sources import open_source
    from swiftformer.train.loop import train as run
    from swiftformer.train.recipes import get_recipe

    run(
        get_recipe(recipe, set_ or ()),
        open_source(data, "train"),
        open_source(data, "val"),
        output,
        variant=variant,
        model=model,
        form=form,
        resume=resume,
        device=device,
        workers=workers,
    )


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    app()
