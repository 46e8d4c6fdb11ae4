"""A batch script for Slurm that trains on many GPUs, goes back to the queue in time, and resumes by itself."""

from __future__ import annotations

import re
import shlex
import unicodedata
from collections.abc import Sequence
from pathlib import Path

RUN_FOLDER = "runs/train"  # what `swiftformer train` takes without --output
INTERRUPTED = 143  # exit code of a training that has saved its state on SIGTERM

# Without "B:" the signal goes to the training processes and not to this script, which has to outlive them. There is no
# trap for SIGTERM: scancel sends it to the script as well, and a job that a person cancelled must not come back.
TEMPLATE = """\
#!/bin/bash
{directives}

{setup}arguments=({arguments})
run={run}

shopt -s nullglob
states=("$run"/states/*.sha256)
shopt -u nullglob
if ((${{#states[@]}})); then
    arguments+=(--resume)
fi

MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
MASTER_PORT=$((10000 + SLURM_JOB_ID % 20000))
export MASTER_ADDR MASTER_PORT
echo "$(date): job $SLURM_JOB_ID starts on $SLURM_JOB_NODELIST (restarts: ${{SLURM_RESTART_COUNT:-0}}," \\
    "saved states: ${{#states[@]}})"

# A process that ends does not end the others at once, but after {wait} s: the first may still be writing the state.
# shellcheck disable=SC2016
srun --export=ALL --cpus-per-task={cpus} --kill-on-bad-exit=0 --wait={wait} bash -c '
    export RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID
    export WORLD_SIZE=$SLURM_NTASKS LOCAL_WORLD_SIZE=$SLURM_NTASKS_PER_NODE
    exec swiftformer train "$@"
' swiftformer "${{arguments[@]}}"
code=$?
{requeue}echo "$(date): job $SLURM_JOB_ID ends with exit code $code"
exit "$code"
"""
REQUEUE = f"""
if ((code == {INTERRUPTED})); then
    echo "$(date): interrupted by SIGTERM; job $SLURM_JOB_ID goes back to the queue"
    scontrol requeue "$SLURM_JOB_ID" || echo "it cannot be requeued: submit this script again to go on"
fi
"""

TIME = re.compile(r"(?:(?P<days>\d+)-)?(?P<hours>\d+):(?P<minutes>[0-5]\d):(?P<seconds>[0-5]\d)", re.ASCII)
# What each text may consist of: sbatch splits its lines at blanks and knows quotes and comments.
ALLOWED = {
    "job_name": (r"[\w.+=@:-]+", "letters, digits and ._+=@:-"),
    "partition": (r"[\w.,+-]+", "letters, digits and ._,+-"),
    "account": (r"[\w.+=@-]+", "letters, digits and ._+=@-"),
    "constraint": (r"[\w.,:=&|*!()\[\]-]+", "letters, digits and ._,:=&|*!()[]-"),
    "memory": (r"[1-9]\d*[KMGT]?", "megabytes, or a number with K, M, G or T such as 64G"),
    "output": (r"[\w./%+=@,:~-]+", "letters, digits and ._/%+=@,:~-"),
}


def slurm_script(
    arguments: Sequence[str],
    *,
    nodes: int = 1,
    gpus: int = 8,
    tasks: int = 1,
    cpus: int = 8,
    time: str = "1-00:00:00",
    job_name: str = "swiftformer",
    partition: str | None = None,
    account: str | None = None,
    constraint: str | None = None,
    memory: str | None = None,
    output: str | Path = "slurm-%j.out",
    requeue: bool = True,
    signal_seconds: int = 120,
    setup: Sequence[str] = (),
) -> str:
    """Write a script for `sbatch` that runs `swiftformer train ARGUMENTS` with one process per GPU.

    The processes find each other through RANK, LOCAL_RANK, WORLD_SIZE, LOCAL_WORLD_SIZE, MASTER_ADDR and MASTER_PORT,
    as under torchrun. `--resume` is added whenever the run folder holds a state. A training that ends with exit code
    143, having saved its state on SIGTERM, is requeued; any other exit code is the job's.

    Args:
        arguments: of `swiftformer train`, without `--resume`; the run folder is that of their `--output`.
        nodes: machines.
        gpus: GPUs, and so processes, per node; 0 for a cluster without GPUs.
        tasks: processes per node where `gpus` is 0.
        cpus: processor cores per process; what `--workers` starts runs on them too.
        time: limit of one stay on the cluster: minutes, `HH:MM:SS` or `D-HH:MM:SS`.
        job_name, partition, account, constraint, memory: as sbatch's options; `memory` is per node.
        output: the job's log, to which a restarted job appends; `%j` becomes the job's number. Its folder has to exist.
        requeue: go back to the queue at the time limit and after preemption.
        signal_seconds: how long before the time limit the training is told to save its state.
        setup: lines of shell to run first, such as `source .venv/bin/activate`.

    Returns:
        The text of the script.

    Raises:
        ValueError: a number out of range, a time that Slurm does not read, a text with characters that would not
            arrive unchanged, or `--resume` among the arguments.
    """
    least = {"nodes": (nodes, 1), "gpus": (gpus, 0), "tasks": (tasks, 1), "cpus": (cpus, 1)}
    for name, (number, smallest) in least.items():
        if number < smallest:
            raise ValueError(f"{name}: expected at least {smallest}, found {number}")
    if gpus > 0 and tasks != 1:
        raise ValueError(f"tasks: expected to be left alone where there are GPUs (a process for each), found {tasks}")
    if not 1 <= signal_seconds <= 65535:
        raise ValueError(f"signal_seconds: expected 1 to 65535, found {signal_seconds}")
    if _seconds(time) <= signal_seconds:
        raise ValueError(f"time: expected more than the {signal_seconds} s in which the state is saved, found {time}")
    texts = {
        "job_name": job_name,
        "partition": partition,
        "account": account,
        "constraint": constraint,
        "memory": memory,
        "output": str(output),
    }
    for name, text in texts.items():
        pattern, expected = ALLOWED[name]
        if text is not None and (not re.fullmatch(pattern, text, re.ASCII) or text.startswith("-")):
            raise ValueError(f"{name}: expected {expected}, found {text!r}")
    for line in (*arguments, *setup):
        # Cc are control characters such as line ends, Cs bytes that are no text.
        if any(unicodedata.category(character) in ("Cc", "Cs") for character in line):
            raise ValueError(f"expected arguments and setup lines without control characters, found {line!r}")
    directives = {
        "job-name": job_name,
        "partition": partition,
        "account": account,
        "constraint": constraint,
        "nodes": nodes,
        "ntasks-per-node": gpus or tasks,
        "gpus-per-node": gpus or None,  # not per task: each process picks its own by LOCAL_RANK
        "cpus-per-task": cpus,
        "mem": memory,
        "time": time,
        "output": output,
        "open-mode": "append",
        "signal": f"TERM@{signal_seconds}",
    }
    lines = [f"#SBATCH --{name}={value}" for name, value in directives.items() if value is not None]
    return TEMPLATE.format(
        directives="\n".join([*lines, f"#SBATCH --{'requeue' if requeue else 'no-requeue'}"]),
        setup="".join(f"{line}\n" for line in setup),
        arguments=shlex.join(arguments),
        run=shlex.quote(_run_folder(arguments)),
        cpus=cpus,
        wait=signal_seconds,
        requeue=REQUEUE if requeue else "",
    )


def _seconds(time: str) -> int:
    """Seconds of a time limit."""
    match = TIME.fullmatch(time)
    if match:
        days, hours, minutes, seconds = (int(number or 0) for number in match.groups())
        if match["days"] is None or hours < 24:
            return ((days * 24 + hours) * 60 + minutes) * 60 + seconds
    elif re.fullmatch(r"\d+", time, re.ASCII):
        return int(time) * 60
    raise ValueError(f"time: expected minutes, HH:MM:SS or D-HH:MM:SS, found {time!r}")


def _run_folder(arguments: Sequence[str]) -> str:
    """Where the training will write, read from its arguments."""
    folder = RUN_FOLDER
    rest = iter(arguments)
    for argument in rest:
        if argument == "--resume":
            raise ValueError("expected arguments without --resume, which the script adds by itself, found it")
        if argument == "--output":
            folder = next(rest, "")
        elif argument.startswith("--output="):
            folder = argument.removeprefix("--output=")
    if not folder:
        raise ValueError("expected a folder behind --output, found none")
    return folder
