"""The command line's `swiftformer train` and `swiftformer slurm`. Heavy imports sit inside the commands."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated, Any, Literal, Optional

import typer

from swiftformer.cli_options import (
    DATA_HELP,
    MASKS_HELP,
    MODEL_HELP,
    OBJECTS_HELP,
    AsJson,
    Classes,
    Device,
    Form,
    Level,
    OnError,
    ReduceZeroLabel,
    Workers,
    print_json,
    refuse_for,
)
from swiftformer.processors import loaders
from swiftformer.train.slurm import RUN_FOLDER

DEFAULT_RECIPES = {
    "classify": "finetune",
    "segment": "small_segmentation",
    "detect": "small_detection",
    "instances": "small_instances",
}


def train(
    data: Annotated[str, typer.Option(help=f"{DATA_HELP} {MASKS_HELP} {OBJECTS_HELP}")],
    output: Annotated[Path, typer.Option(help="Run folder.")] = Path(RUN_FOLDER),
    task: Annotated[
        Optional[Literal["classify", "segment", "detect", "instances"]],
        typer.Option(help="What to learn; the recipe's, or classify."),
    ] = None,
    recipe: Annotated[
        Optional[str],
        typer.Option(
            help="paper_xs, paper_s, paper_l1, paper_l3, small_images, finetune, smoke; to segment, "
            "paper_ade20k_semantic_fpn, small_segmentation, smoke_segmentation; to detect, small_detection, "
            "small_real_time_detection, smoke_detection; for instances, paper_coco_mask_rcnn, small_instances, "
            "smoke_instances. By default finetune, or the task's small one."
        ),
    ] = None,
    set_: Annotated[
        Optional[list[str]], typer.Option("--set", metavar="KEY=VALUE", help="Change a field of the recipe.")
    ] = None,
    variant: Annotated[Optional[str], typer.Option(help="xs, s, l1 or l3, from scratch; xs by default.")] = None,
    model: Annotated[Optional[str], typer.Option(help=f"Start from a checkpoint instead. {MODEL_HELP}")] = None,
    form: Form = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in the output folder.")] = False,
    device: Device = None,
    workers: Workers = None,
    save_minutes: Annotated[float, typer.Option(min=0, help="Save the state this often within an epoch.")] = 30.0,
    keep_states: Annotated[int, typer.Option(min=1, help="Saved states to keep.")] = 2,
    level: Level = "name",
    classes: Classes = None,
    reduce_zero_label: ReduceZeroLabel = None,
    on_error: OnError = "skip",
    as_json: AsJson = False,
) -> None:
    """Train or fine-tune a model; weights, metrics and the state to resume from go to the run folder.

    On several GPUs or machines: torchrun -m swiftformer train ..., or see `swiftformer slurm --help`.
    """
    from swiftformer.train.fitting import fitted, for_processor
    from swiftformer.train.loop import train as run
    from swiftformer.train.recipes import get_recipe
    from swiftformer.train.run_folder import read_recipe

    name = recipe or DEFAULT_RECIPES[task or "classify"]
    if resume and recipe is None and not set_ and (output / "recipe.json").exists():
        chosen: Any = read_recipe(output)
        name = f"that of {output}"
    else:
        chosen = get_recipe(name, set_ or ())
    if task not in (None, chosen.task):
        raise ValueError(f"--task {task}: expected a recipe for it, found {name}, which is to {chosen.task}")
    if variant is not None and model is not None:
        raise ValueError(f"expected --variant to train from scratch or --model, found both ({variant} and {model})")
    options: dict[str, Any] = {"classes": classes, "reduce_zero_label": reduce_zero_label}
    if name == "finetune" and model is None and not resume:
        from swiftformer.data.image_folder import refuse_other_tasks

        if Path(data).is_dir():
            refuse_other_tasks(Path(data))
        raise ValueError(
            "the recipe finetune starts from a checkpoint: expected --model, such as MBZUAI/swiftformer-xs, "
            "or another --recipe to train from scratch"
        )
    train_source, val_source = open_splits(chosen.task, data, level, options, on_error)
    if name == "finetune":
        chosen = fitted(chosen, set_ or (), model, len(train_source), output if resume else None)
    chosen = for_processor(chosen, set_ or (), device, output if resume else None)
    metrics = run(
        chosen,
        train_source,
        val_source,
        output,
        variant=variant,
        model=model,
        form=form,
        resume=resume,
        device=device,
        workers=loaders(device) if workers is None else workers,
        save_minutes=save_minutes,
        keep_states=keep_states,
        data_name=data,
        command=shlex.join(["swiftformer", *sys.argv[1:]]),
    )
    if as_json:
        print_json(metrics)


def open_splits(
    task: str, data: str, level: str, options: dict[str, Any], on_error: Literal["skip", "raise"]
) -> tuple[Any, Any]:
    """The pictures to train and to validate on, as the task needs them."""
    told_level = {"--level": None if level == "name" else level}
    if task == "classify":
        from swiftformer.data.sources import open_source

        own = options | {"on_error": None if on_error == "skip" else on_error}
        refuse_for("classify", {f"--{name.replace('_', '-')}": value for name, value in own.items()})
        return open_source(data, "train", level=level), open_source(data, "val", level=level)
    if task == "segment":
        from swiftformer.data.segmentation import open_segmentation as opened

        refuse_for("segment", told_level)
    else:
        from swiftformer.data.detection import open_detection as opened  # type: ignore[assignment]

        refuse_for(task, told_level | {"--reduce-zero-label": options["reduce_zero_label"]})
        options = {"classes": options["classes"], "masks": task == "instances"}
    options["on_error"] = on_error
    train_source = opened(data, "train", **options)
    return train_source, opened(data, "val", **options, default_classes=train_source.classes)


def slurm(
    arguments: Annotated[list[str], typer.Argument(help="Behind --: what `swiftformer train` gets.")],
    nodes: Annotated[int, typer.Option(help="Machines.")] = 1,
    gpus: Annotated[int, typer.Option(help="GPUs of each, with one process per GPU; 0 for a cluster without.")] = 8,
    tasks: Annotated[int, typer.Option(help="Processes per machine where there are no GPUs.")] = 1,
    cpus: Annotated[int, typer.Option(help="Cores per process; --workers share them.")] = 8,
    time: Annotated[str, typer.Option(help="Limit of one stay: minutes, HH:MM:SS or D-HH:MM:SS.")] = "1-00:00:00",
    job_name: Annotated[str, typer.Option(help="What squeue shows.")] = "swiftformer",
    partition: Annotated[Optional[str], typer.Option(help="As sbatch's.")] = None,
    account: Annotated[Optional[str], typer.Option(help="As sbatch's.")] = None,
    constraint: Annotated[Optional[str], typer.Option(help="As sbatch's.")] = None,
    memory: Annotated[Optional[str], typer.Option(help="Per machine, such as 200G.")] = None,
    log: Annotated[str, typer.Option(help="The job's log; %j is the job's number.")] = "slurm-%j.out",
    requeue: Annotated[bool, typer.Option(help="Back to the queue at the time limit and after preemption.")] = True,
    signal_seconds: Annotated[int, typer.Option(help="Time to save the state before the limit.")] = 120,
    setup: Annotated[
        Optional[list[str]], typer.Option(help="Line of shell to run first, such as 'module load cuda'; repeatable.")
    ] = None,
    write: Annotated[Optional[Path], typer.Option(help="File to write; otherwise the script is printed.")] = None,
) -> None:
    """A batch script for Slurm that trains on many GPUs, requeues itself and resumes: swiftformer slurm ... -- ARGS."""
    from swiftformer.files import atomic_file
    from swiftformer.train.slurm import slurm_script

    script = slurm_script(
        arguments,
        nodes=nodes,
        gpus=gpus,
        tasks=tasks,
        cpus=cpus,
        time=time,
        job_name=job_name,
        partition=partition,
        account=account,
        constraint=constraint,
        memory=memory,
        output=log,
        requeue=requeue,
        signal_seconds=signal_seconds,
        setup=setup or (),
    )
    if write is None:
        typer.echo(script, nl=False)
        return
    with atomic_file(write) as file:
        file.write_text(script, encoding="utf-8", newline="\n")
    typer.echo(f"wrote {write}; submit it with: sbatch {shlex.quote(str(write))}", err=True)
