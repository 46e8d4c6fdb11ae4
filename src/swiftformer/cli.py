"""The command line: `swiftformer VERB`. Heavy imports sit inside the commands, so that `--help` is quick.

Results go to standard output, progress and logs to standard error. Exit code 0 is success, 2 bad usage or bad input
with one line of explanation, 1 an internal failure, 128 plus the signal a training that was asked to stop.
"""

from __future__ import annotations

import io
import logging
import os
import re
import shlex
import signal
import sys
import threading
from importlib import util
from pathlib import Path
from typing import Annotated, Literal, Optional

import typer

from swiftformer.cli_benchmark import benchmark_app
from swiftformer.cli_detect import detect
from swiftformer.cli_evaluate import evaluate
from swiftformer.cli_options import (
    DATA_HELP,
    DEFAULT_MODEL,
    MODEL_HELP,
    RUNNABLE_HELP,
    AsJson,
    Device,
    Engine,
    Form,
    Precision,
    Threads,
    in_one_line,
    parse_batch,
    parse_size,
    print_json,
    rank,
)
from swiftformer.cli_segment import segment
from swiftformer.cli_train import slurm, train
from swiftformer.files import expanded
from swiftformer.messages import is_out_of_memory, one_line

app = typer.Typer(
    name="swiftformer",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.add_typer(benchmark_app, name="benchmark")


def _version(wanted: bool) -> None:
    if wanted:
        from swiftformer import __version__

        typer.echo(f"swiftformer {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Show it.")] = False,
) -> None:
    """Train, fine-tune, evaluate, export and run SwiftFormer vision models."""


@app.command()
def classify(
    images: Annotated[list[str], typer.Argument(help="Files, folders, globs, or - for standard input.")],
    model: Annotated[str, typer.Option(help=RUNNABLE_HELP)] = DEFAULT_MODEL,
    top_k: Annotated[int, typer.Option(min=1, help="Classes per picture.")] = 3,
    batch_size: Annotated[int, typer.Option(min=1, help="Pictures per forward pass.")] = 16,
    form: Form = None,
    engine: Engine = "auto",
    device: Device = None,
    precision: Precision = None,
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """Classify pictures: the likeliest classes of each, with probabilities.

    A picture that cannot be read is named, the others are classified, and the exit code is 2.
    """
    from swiftformer.predict import classify as run
    from swiftformer.predict import find_images
    from swiftformer.progress import progress_bar

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
            engine=engine,
            device=device,
            precision=precision,
            threads=threads,
        ):
            results.append(result)
            advance(1)
    if as_json:
        print_json([result.to_dict() for result in results])
    else:
        from swiftformer.reports import classification_table

        classification_table(results)
    errors = [result.error for result in results if result.error]
    for error in errors:
        typer.echo(f"error: {in_one_line(error)}", err=True)
    if errors:
        raise typer.Exit(2)


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

    expect_free(target)
    model = load(source, form=form, ema=ema)
    save(model, target, format=to, dtype=torch.float16 if half else None)
    typer.echo(f"wrote {target}", err=True)


def expect_free(target: Path) -> None:
    """Raise ValueError for a folder where a model would hide a training run, or take the place of another config."""
    expected = f"{target}: expected a folder of its own for the model"
    if (target / "recipe.json").exists():
        raise ValueError(f"{expected}, found a training run")
    config = target / "config.json"
    if config.is_file() and "swiftformer" not in config.read_text(encoding="utf-8", errors="replace"):
        raise ValueError(f"{expected}, found another config.json")


@app.command()
def grow(
    source: Annotated[str, typer.Argument(help=MODEL_HELP)],
    target: Annotated[Path, typer.Argument(help="Folder.")],
    variant: Annotated[Literal["s", "l1", "l3"], typer.Option(help="To grow to.")],
    form: Form = None,
    half: Annotated[bool, typer.Option("--half", help="Store in float16.")] = False,
) -> None:
    """Write a larger variant that computes what a trained, smaller one does, to be trained further."""
    import torch

    from swiftformer.checkpoints import load, save
    from swiftformer.growth import grow as run

    expect_free(target)
    save(run(load(source, form=form), variant), target, dtype=torch.float16 if half else None)
    typer.echo(f"wrote {target}; train it with: swiftformer train --model {shlex.quote(str(target))} ...", err=True)


@app.command()
def export(
    model: Annotated[str, typer.Option(help=MODEL_HELP)] = DEFAULT_MODEL,
    format_: Annotated[
        str,
        typer.Option(
            "--format",
            help="onnx, openvino, native, coreml, executorch, litert, torch-export, aoti, tensorrt, qnn, ...",
        ),
    ] = "onnx",
    output: Annotated[
        Optional[Path], typer.Option(help="Folder; by default one in exports/, called after what is asked for.")
    ] = None,
    precision: Annotated[
        Optional[str], typer.Option(help="fp32, fp16, bf16, int8, palettized, as the format has it.")
    ] = None,
    batch: Annotated[str, typer.Option(help="Images per call, or dynamic.")] = "",
    size: Annotated[str, typer.Option(help="Pixels: 224, 480x640 (height x width), or dynamic.")] = "",
    softmax: Annotated[bool, typer.Option("--softmax", help="Probabilities instead of logits.")] = False,
    normalize: Annotated[
        bool, typer.Option("--normalize", help="Take pixels from 0 to 255; the graph normalises.")
    ] = False,
    calibration: Annotated[
        Optional[str], typer.Option(help="Pictures for int8: a folder, or what --data takes elsewhere.")
    ] = None,
    calibration_images: Annotated[int, typer.Option(min=1, help="How many of them.")] = 300,
    max_drop: Annotated[
        Optional[float], typer.Option(help="Points of top-1 that int8 may lose; sensitive layers then stay float.")
    ] = None,
    validation: Annotated[Optional[str], typer.Option(help=f"To measure that on. {DATA_HELP}")] = None,
    images: Annotated[
        Optional[list[str]],
        typer.Option(help="Pictures to compare on (of a detector: that show its objects); else the package's own."),
    ] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda, to compile for; of aoti only.")] = "cpu",
    form: Form = None,
    as_json: AsJson = False,
) -> None:
    """Write a model for a device, run the result, and compare it with the model in PyTorch."""
    from swiftformer.export import calibration_pictures, top1_on
    from swiftformer.export import export as run
    from swiftformer.predict import find_images
    from swiftformer.reports import artifact_table

    weights = Path(model).name in ("best", "last", "raw")  # of a run, by whose name they are told apart
    name = re.sub(r"[^\w.-]+", "-", "-".join(Path(model).parts[-2:]) if weights else Path(model).name or model)
    folder = output or Path("exports") / "-".join(
        filter(None, [name, format_, precision, size, batch and f"batch{batch}"])
    )
    if (max_drop is None) != (validation is None):
        raise ValueError("expected --max-drop together with --validation DATA, found one of them")
    places = [data and expanded(data).resolve() for data in (validation, calibration)]
    artifact = run(
        model,
        folder,
        format_,
        precision=precision,
        batch="dynamic" if batch == "dynamic" else parse_batch(batch) if batch else None,
        size="dynamic" if size == "dynamic" else parse_size(size) if size else None,
        softmax=softmax,
        normalize=normalize,
        images=[source for _, source in find_images(images)] if images else None,
        calibration=calibration_pictures(calibration, calibration_images) if calibration else None,
        max_drop=max_drop,
        # What is calibrated on, and was trained on, is not what to measure on.
        top1=top1_on(validation, "val" if places[0] == places[1] else None) if validation else None,
        device=device,
        form=form,
    )
    if as_json:
        print_json({"output": str(folder), **artifact.to_dict()})
    else:
        artifact_table(folder, artifact)


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

    description = describe(model, parse_size(size) if size else None, form)
    print_json(description) if as_json else complexity_table(description)


for verb in (evaluate, detect, segment, train, slurm):
    app.command()(verb)


def main() -> None:
    """Run the command line."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr, force=True)
    logging.getLogger("swiftformer").setLevel(logging.INFO if rank() == 0 else logging.WARNING)
    # torchao, which transformers imports where it is installed, makes torch warn about torchao at every start.
    logging.getLogger("torch.utils._pytree").setLevel(logging.ERROR)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # On Windows files and pipes are of a code page that lacks most letters; names of files may be any bytes.
            encoding = "utf-8" if os.name == "nt" and not stream.isatty() else None
            stream.reconfigure(encoding=encoding, errors="backslashreplace")
    in_main = threading.current_thread() is threading.main_thread()
    if in_main and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # what is half written goes
    try:
        app()
    except ModuleNotFoundError as error:
        package = (error.name or "").split(".")[0]
        if not package or util.find_spec(package) is not None:
            raise
        typer.echo(f"error: this needs {package}, which is not installed: pip install swiftformer", err=True)
        sys.exit(2)
    except (ValueError, OSError) as error:
        typer.echo(f"error: {in_one_line(error)}", err=True)
        sys.exit(2)
    except MemoryError as error:
        typer.echo(f"error: out of memory {in_one_line(error)}".strip(), err=True)
        sys.exit(1)
    except (FloatingPointError, RuntimeError) as error:
        kind = type(error).__name__  # told by name: to name the classes would be to import torch at every start
        if is_out_of_memory(error):
            typer.echo(f"error: out of memory, try a smaller batch: {one_line(error)}", err=True)
            sys.exit(1)
        if kind not in ("FloatingPointError", "LoaderError", "TrainingStopped"):
            raise
        typer.echo(f"{'stopped' if kind == 'TrainingStopped' else 'error'}: {error}", err=True)
        sys.exit(128 + getattr(error, "signal", 0) if kind == "TrainingStopped" else 1)
