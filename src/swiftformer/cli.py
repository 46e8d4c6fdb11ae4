"""The command line: `swiftformer VERB`. Heavy imports sit inside the commands, so that `--help` is quick.

Results go to standard output, progress and logs to standard error. Exit code 0 is success, 2 bad usage or bad input
with one line of explanation, 1 an internal failure.
"""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from typing import Annotated, Any, Literal, Optional

import typer

app = typer.Typer(
    name="swiftformer",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

Form = Annotated[
    Optional[Literal["uniform", "l2", "uniform-unnormalized"]],
    typer.Option(help="Numeric form of the model, where its file cannot tell."),
]
Device = Annotated[Optional[str], typer.Option(help="cpu, cuda, ...; CUDA if there is one.")]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON document on standard output.")]
DEFAULT_MODEL = "swiftformer-xs-cifar10"
MODEL_HELP = "Bundled name, hub id, timm name, folder or file."


def _version(wanted: bool) -> None:
    if wanted:
        from swiftformer import __version__

        typer.echo(f"swiftformer {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Show it.")] = False,
) -> None:
    """Train, fine-tune, evaluate, convert and run SwiftFormer vision models."""


@app.command()
def classify(
    images: Annotated[list[str], typer.Argument(help="Files, folders, globs, or - for standard input.")],
    model: Annotated[str, typer.Option(help=MODEL_HELP)] = DEFAULT_MODEL,
    top_k: Annotated[int, typer.Option(min=1, help="Classes per picture.")] = 3,
    batch_size: Annotated[int, typer.Option(min=1, help="Pictures per forward pass.")] = 16,
    form: Form = None,
    device: Device = None,
    as_json: AsJson = False,
) -> None:
    """Classify pictures: the likeliest classes of each, with probabilities.

    A picture that cannot be read is named, the others are classified, and the exit code is 2.
    """
    from swiftformer.predict import classify as run
    from swiftformer.predict import find_images
    from swiftformer.reports import classification_table, progress_bar

    found = find_images(images)
    results = []
    with progress_bar("classify", len(found)) as advance:
        for result in run(
            [source for _, source in found],
            model,
            names=[name for name, _ in found],
            form=form,
            top_k=top_k,
            batch_size=batch_size,
            device=device,
        ):
            results.append(result)
            advance(1)
    if as_json:
        _print_json([result.to_dict() for result in results])
    else:
        classification_table(results)
    errors = [result.error for result in results if result.error]
    for error in errors:
        typer.echo(f"error: {error}", err=True)
    if errors:
        raise typer.Exit(2)


@app.command()
def train(
    data: Annotated[str, typer.Option(help="Folder with train/ and val/, Parquet shards, or a data set's name.")],
    output: Annotated[Path, typer.Option(help="Run folder.")] = Path("runs/train"),
    recipe: Annotated[
        str, typer.Option(help="paper_xs, paper_s, paper_l1, paper_l3, small_images, finetune or smoke.")
    ] = "finetune",
    set_: Annotated[
        Optional[list[str]], typer.Option("--set", metavar="KEY=VALUE", help="Change a field of the recipe.")
    ] = None,
    variant: Annotated[str, typer.Option(help="xs, s, l1 or l3, from scratch.")] = "xs",
    model: Annotated[Optional[str], typer.Option(help=f"Start from a checkpoint instead. {MODEL_HELP}")] = None,
    form: Form = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in the output folder.")] = False,
    device: Device = None,
    workers: Annotated[int, typer.Option(min=0, help="Processes that load images.")] = 2,
    as_json: AsJson = False,
) -> None:
    """Train or fine-tune a classifier; weights, metrics and the state to resume from go to the run folder."""
    from swiftformer.data.sources import open_source
    from swiftformer.train.loop import train as run
    from swiftformer.train.recipes import get_recipe

    if recipe == "finetune" and model is None and not resume:
        raise ValueError(
            "the recipe finetune starts from a checkpoint: expected --model, such as MBZUAI/swiftformer-xs, "
            "or another --recipe to train from scratch"
        )
    metrics = run(
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
    if as_json:
        _print_json(metrics)


@app.command()
def evaluate(
    data: Annotated[str, typer.Option(help="Folder with val/, Parquet shards, or a data set's name.")],
    model: Annotated[str, typer.Option(help=MODEL_HELP)] = DEFAULT_MODEL,
    split: Annotated[str, typer.Option(help="val, test or train.")] = "val",
    batch_size: Annotated[int, typer.Option(min=1, help="Pictures per forward pass.")] = 64,
    workers: Annotated[int, typer.Option(min=0, help="Processes that load images.")] = 2,
    per_class: Annotated[bool, typer.Option("--per-class", help="Accuracy of each class as well.")] = False,
    form: Form = None,
    device: Device = None,
    as_json: AsJson = False,
) -> None:
    """Top-1 and top-5 accuracy and calibration error of a classifier, in percent."""
    from swiftformer.evaluate.classification import evaluate_reference
    from swiftformer.reports import metrics_table, progress_bar

    with progress_bar("evaluate", None) as advance:
        metrics = evaluate_reference(
            model,
            data,
            split,
            form=form,
            batch_size=batch_size,
            workers=workers,
            device=device,
            per_class=per_class,
            progress=advance,
        )
    _print_json(metrics) if as_json else metrics_table(metrics)


@app.command()
def convert(
    source: Annotated[str, typer.Argument(help=MODEL_HELP)],
    target: Annotated[Path, typer.Argument(help="Folder (transformers) or file (authors, timm).")],
    to: Annotated[Literal["transformers", "authors", "timm"], typer.Option(help="Format to write.")] = "transformers",
    form: Form = None,
    ema: Annotated[bool, typer.Option("--ema", help="Take the averaged weights of a training checkpoint.")] = False,
    half: Annotated[bool, typer.Option("--half", help="Store in float16.")] = False,
) -> None:
    """Convert a checkpoint between the formats of transformers, the authors and timm."""
    import torch

    from swiftformer.checkpoints import load, save

    model = load(source, form=form, ema=ema)
    save(model, target, format=to, dtype=torch.float16 if half else None)
    typer.echo(f"wrote {target}", err=True)


@app.command()
def info(
    model: Annotated[str, typer.Argument(help=f"xs, s, l1, l3, or a checkpoint. {MODEL_HELP}")] = "xs",
    size: Annotated[str, typer.Option(help="Pixels: 224, or 480x640 for height x width.")] = "",
    form: Form = None,
    as_json: AsJson = False,
) -> None:
    """Parameters, multiply-accumulates and activation sizes, for any input size."""
    from swiftformer.info import describe
    from swiftformer.reports import complexity_table

    description = describe(model, _parse_size(size) if size else None, form)
    _print_json(description) if as_json else complexity_table(description)


def _parse_size(text: str) -> tuple[int, int]:
    try:
        numbers = [int(number) for number in text.lower().split("x")]
    except ValueError:
        numbers = []
    if len(numbers) not in (1, 2) or min(numbers) < 1:
        raise ValueError(f"size: expected pixels such as 224 or 480x640, found {text!r}")
    return numbers[0], numbers[-1]


def _print_json(document: Any) -> None:
    typer.echo(json.dumps(document, indent=2))


def main() -> None:
    """Run the command line."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr, force=True)
    logging.getLogger("swiftformer").setLevel(logging.INFO)
    try:
        app()
    except (ValueError, OSError) as error:
        lines = str(error).split("\n")
        typer.echo(f"error: {' '.join(line.strip() for line in lines).strip()}", err=True)
        sys.exit(2)
    except FloatingPointError as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(1)
