"""Training processes as torchrun, Slurm or a shell would start them, of a small network.

The tests start them from a fork server that has imported everything already, or as a script:
train_worker.py FOLDER OUTPUT [--resume] [key=value ...]
"""

import json
import multiprocessing
import os
import signal
import socket
import sys
from pathlib import Path

import torch

from swiftformer import SwiftFormerConfig, cli
from swiftformer.data.sources import open_source
from swiftformer.train import loop, pace
from swiftformer.train.interruption import TrainingStopped
from swiftformer.train.recipes import get_recipe
from swiftformer.train.run_log import RunLog

PRELOADED = [
    "swiftformer.train.loop",
    "swiftformer.cli",
    "matplotlib.figure",
    "tensorboard.summary.writer.record_writer",
]
PRELOADED += ["timm.data", "timm.optim", "timm.scheduler", "timm.utils"]


def build(cls, name, **kwargs):
    return SwiftFormerConfig(depths=[1, 1, 1, 1], embed_dims=[8, 8, 8, 16], global_query_weighting="l2", **kwargs)


def train(folder, output, *settings):
    SwiftFormerConfig.from_variant = classmethod(build)
    pace.LOG_EVERY = 1
    losses = []

    def step(self, number, metrics):
        losses.append(metrics["loss"])
        if self.rank == 0:
            (Path(output) / "losses.json").write_text(json.dumps(losses))
        if number == int(os.environ.get("KILL_AT", -1)):
            os.killpg(0, signal.Signals[os.environ["KILL_BY"]])  # with its loader processes, as Slurm does

    RunLog.step = step
    recipe = get_recipe("smoke", [setting for setting in settings if setting != "--resume"])
    try:
        loop.train(
            recipe,
            open_source(folder, "train"),
            open_source(folder, "val"),
            output,
            resume="--resume" in settings,
            device="cpu",
            workers=int(os.environ.get("WORKERS", 0)),
            save_minutes=float(os.environ.get("SAVE_MINUTES", 30)),
        )
    except TrainingStopped as stopped:
        print(stopped, file=sys.stderr)
        return 128 + stopped.signal
    return 0


def _process(function, arguments, environment, out, err):
    os.setpgid(0, 0)
    os.environ.update(environment)
    for number, path in ((1, out), (2, err)):
        os.dup2(os.open(path, os.O_CREAT | os.O_WRONLY), number)
    torch.set_num_threads(1)
    if function == "train":
        sys.exit(train(*arguments))
    sys.argv = ["swiftformer", *arguments]
    cli.main()


class Started:
    """Processes that run `train(*arguments)`, or the command line where `function` is `cli`."""

    def __init__(self, folder, arguments, world_size=1, function="train", **environment):
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOADED)
        folder.mkdir(parents=True, exist_ok=True)
        shared = {key: str(value) for key, value in environment.items()}
        if world_size > 1:
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                shared |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(probe.getsockname()[1])}
            shared |= {"WORLD_SIZE": str(world_size), "GLOO_SOCKET_IFNAME": "lo"}
        self.processes = []
        self.files = [(folder / f"out{rank}", folder / f"err{rank}") for rank in range(world_size)]
        for rank, files in enumerate(self.files):
            ranks = {"RANK": str(rank), "LOCAL_RANK": str(rank)} if world_size > 1 else {}
            arguments = [str(argument) for argument in arguments]
            process = context.Process(target=_process, args=(function, arguments, shared | ranks, *files))
            process.start()
            self.processes.append(process)

    def wait(self, *expected):
        """Standard output and error of each process; fails where the exit codes are others."""
        for process in self.processes:
            process.join(120)
            if process.is_alive():
                process.kill()
        texts = [tuple(path.read_text() if path.exists() else "" for path in files) for files in self.files]
        codes = tuple(process.exitcode for process in self.processes)
        assert codes == (expected or (0,) * len(codes)), texts
        return texts


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.exit(train(*sys.argv[1:]))
