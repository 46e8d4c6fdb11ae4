"""The training loop, from top to bottom. The same for one process and for many, on one machine or several."""

from __future__ import annotations

import dataclasses
import errno
import itertools
import json
import logging
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from swiftformer.data.epoch_loader import EpochLoader, seed_generators
from swiftformer.data.lasting_loader import LoaderError
from swiftformer.data.loaders import Normalization
from swiftformer.device import moved
from swiftformer.files import check_writable
from swiftformer.train.distributed import Processes, join_processes
from swiftformer.train.interruption import StopRequest, TrainingStopped
from swiftformer.train.memory import keep_freed_memory
from swiftformer.train.pace import Pace
from swiftformer.train.plots import RunPictures
from swiftformer.train.progress import TrainingProgress
from swiftformer.train.recipe import Recipe, TrainingRecipe
from swiftformer.train.run_folder import save_weights, write_card, write_recipe
from swiftformer.train.run_log import RunLog
from swiftformer.train.start import batches_at_once, expect_agreement, first_state, told_of_data
from swiftformer.train.state import what_is_left, write_state
from swiftformer.train.step import TrainingStep, seed_batch
from swiftformer.train.tasks import Examples, Task, task_of

logger = logging.getLogger(__name__)


def train(
    recipe: TrainingRecipe,
    train_source: Examples,
    val_source: Examples,
    output: str | Path,
    *,
    variant: str | None = None,
    model: str | None = None,
    form: str | None = None,
    resume: bool = False,
    device: str | torch.device | None = None,
    workers: int = 2,
    save_minutes: float = 30.0,
    keep_states: int = 2,
    data_name: str = "",
    command: str | None = None,
) -> dict[str, float]:
    """Train a network, together with the other processes where torchrun, accelerate or Slurm started several.

    Writes to `output`, which all processes must see: `recipe.json`, `metrics.jsonl` (a line per epoch), `train.log`,
    `tensorboard/`, `curves.png`, `confusion.png`, `README.md` (the model card), `states/` (to resume from), and the
    weights of the best and of the last epoch so far in `best/` and `last/` (the averaged ones, where the recipe
    averages; then `raw/` holds the last epoch's others), which `swiftformer.load` reads.

    Args:
        recipe: of one of the tasks, see `swiftformer.train.recipe`.
        train_source, val_source: pictures of the task, from `open_source`, `open_segmentation` or `open_detection`.
        variant: `xs` (the default), `s`, `l1` or `l3`, with random weights in the July 2023 form; ignored where `model`
            is given.
        model: a checkpoint reference to start from; its head is replaced where the classes differ.
        form: numeric form of `model`, where its file cannot tell.
        resume: go on from `output/states`, which also knows variant and model.
        device: where to train; CUDA if there is one.
        workers: processes that load images, for each training process.
        save_minutes: the state is saved after every epoch, and in the middle of one that takes longer than this.
        keep_states: how many of the last states stay.
        data_name, command: for the model card.

    Returns:
        The metrics of the last epoch: `loss`, `images_per_second`, ..., and in percent the task's measures.

    Raises:
        ValueError: train and val have different classes, or are the same images; `output` holds a run and `resume` is
            not set, or other files, or another process trains there, or sees other data or another recipe; there is
            nothing to resume, or its recipe, classes, number of images, variant or model differ.
        OSError: `output` cannot be written, or the disk is full; the last state stays.
        FloatingPointError: the loss, or what is evaluated, is not finite; the last state stays.
        TrainingStopped: SIGTERM or Ctrl-C came; the state is saved, in the middle of an epoch too.
        LoaderError: the processes that load images keep dying; a single training process has saved the state.
    """
    check_writable(output := Path(output))
    state = first_state(output, recipe, train_source, val_source, variant, model, resume)
    origin = (state or {}).get("origin", {"command": command, "started_from": model})
    with join_processes(device) as processes, StopRequest() as stop:
        expect_agreement(processes, output, state, recipe, train_source, val_source)
        seed_generators(recipe.seed)
        torch.manual_seed(recipe.seed)
        task = task_of(recipe)
        net: Any = (
            task.new_network(train_source.classes, variant or "xs", model, form)
            if state is None
            else task.network_of(state["config"])
        )
        net = net.to(processes.device)
        if processes.device.type == "cpu":
            keep_freed_memory()
        torch.backends.cudnn.benchmark = isinstance(recipe, Recipe)  # pictures of one size, as dense tasks' are not
        run = _Run(
            recipe,
            task,
            train_source,
            val_source,
            output,
            processes,
            stop,
            net,
            state,
            origin,
            workers=workers,
            save_minutes=save_minutes,
            keep_states=keep_states,
        )
        del net, state
        try:
            metrics = run.train(data_name)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise OSError(error.errno, f"{output}: no space left to write to; {what_is_left(output)}") from error
            raise
        del run  # before its group is left; see `join_processes`
        return metrics


class _Run:
    """A run in one process: the data, the step, and where it stands."""

    def __init__(
        self,
        recipe: TrainingRecipe,
        task: Task,
        train_source: Any,
        val_source: Any,
        output: Path,
        processes: Processes,
        stop: StopRequest,
        net: Any,
        state: dict[str, Any] | None,
        origin: dict[str, str | None],
        *,
        workers: int,
        save_minutes: float,
        keep_states: int,
    ) -> None:
        self.recipe, self.task, self.output, self.processes, self.stop = recipe, task, output, processes, stop
        self.train_source, self.val_source, self.workers = train_source, val_source, workers
        self.save_minutes, self.keep_states, self.origin = save_minutes, keep_states, origin
        self.batch_size, accumulation, self.told = batches_at_once(recipe, processes.world_size, len(train_source))
        self.images_per_batch = self.batch_size * processes.world_size
        self.epoch = 0 if state is None else state["epochs"]
        self.loader = self.loader_at(self.epoch)
        self.val_batches = task.validation_batches(val_source, self.batch_size, workers, processes)
        self.updates = len(self.loader) // accumulation  # per epoch; batches that fill no update are left out
        self.batches = self.updates * accumulation  # per epoch
        if self.updates == 0:
            raise ValueError(
                f"expected at least {self.images_per_batch * accumulation} training images for one update, "
                f"found {len(train_source)}"
            )
        if recipe.channels_last:
            net = net.to(memory_format=torch.channels_last)
        objective = task.objective(train_source, output, workers, processes, stop)
        self.step = TrainingStep(
            recipe, net, processes, objective, updates_per_epoch=self.updates, accumulation=accumulation
        )
        task.prepare(self.step.net, train_source)
        task.prepare(self.step.evaluated, train_source)
        self.normalize = Normalization(recipe, processes.device, task.erasing)
        self.best, self.metrics, self.best_metrics, self.seconds = -1.0, {}, {}, 0.0
        self.batch = 0  # of the epoch under way
        self.saved = (-1, -1)  # epoch and batch of the last state
        # Of the epoch under way: the sums of losses, of hits and of unreadable pictures; `totals` over the
        # images of this process, `summed` over all as far as they were read.
        self.totals = torch.zeros(3, device=processes.device)
        self.summed = [0.0, 0.0, 0.0]
        if state is not None:
            # Whole updates only: with another number of processes the state may lie within one.
            self.batch = state["images"] // (self.images_per_batch * accumulation) * accumulation
            self.batch = min(self.batch, self.batches)  # with more processes the last images may be padded
            self.saved = (self.epoch, self.batch)
            self.best, self.metrics, self.seconds = state["best"], state["metrics"], state["seconds"]
            self.best_metrics = state.get("best_metrics", {})  # which older states do not tell
            self.summed = state["totals"]
            if processes.main:
                self.totals += torch.tensor(self.summed, device=processes.device)
            self.step.load_state_dict(state, self.epoch * self.updates + self.batch // accumulation)

    def loader_at(self, epoch: int) -> EpochLoader[Any]:
        epoch = min(epoch, self.recipe.epochs - 1)
        return self.task.training_loader(self.train_source, epoch, self.batch_size, self.workers, self.processes)

    def train(self, data_name: str) -> dict[str, float]:
        recipe, output, main = self.recipe, self.output, self.processes.main
        fields, measures = dataclasses.asdict(recipe), self.task.measures
        data = len(self.train_source), len(self.val_source), len(self.train_source.classes)
        progress = TrainingProgress(recipe.epochs, self.batches, data[1], self.epoch, measures[:2], enabled=main)
        with RunLog(output, fields, measures, epochs_done=self.epoch, rank=self.processes.rank) as log, progress:
            if main:
                write_recipe(fields, output)
            logger.info(
                "%d training and %d validation images of %d classes, %d pixels, %d at once; %s; %s",
                *(*data, recipe.image_size, self.batch_size),
                f"starting from {self.origin['started_from']}"
                if self.origin["started_from"]
                else "from random weights",
                self.origin["command"] or "called from Python",
            )
            if main and self.told:
                logger.warning(self.told)
            if self.epoch or self.batch:
                images = self.batch * self.images_per_batch
                left = "" if self.epoch < recipe.epochs else ": nothing is left to train"
                logger.info("resuming %s behind %d epochs and %d images%s", output, self.epoch, images, left)
            pictures = RunPictures(output, measures[0], self.train_source.classes)
            while self.epoch < recipe.epochs:
                if recipe.image_size_at(self.epoch) != recipe.image_size_at(max(self.epoch - 1, 0)):
                    self.loader = self.loader_at(self.epoch)
                self.train_epoch(progress, log)
                self.save()  # whatever happens to the evaluation
                confusion = self.evaluate(progress)
                self.epoch, self.batch, self.seconds = self.epoch + 1, 0, 0.0
                self.totals.zero_()
                self.summed = [0.0, 0.0, 0.0]
                if not main:
                    continue
                progress.epoch(self.metrics)
                log.epoch(self.metrics)
                if pictures.draw(confusion, last=self.epoch == recipe.epochs):
                    log.figure("confusion", output / "confusion.png", self.epoch)
                if measures[0] in self.metrics:
                    config = self.step.net.config
                    best = self.best_metrics or self.metrics
                    sizes = {"train_images": len(self.train_source), "val_images": data[1] - best["val_unreadable"]}
                    known = {"data": data_name, "last_epoch": self.epoch, **sizes, **self.origin}
                    write_card(output, recipe, best, config, self.processes, **known)
                self.save()
        self.processes.wait()
        return self.metrics

    def train_epoch(self, progress: TrainingProgress, log: RunLog) -> None:
        """Train from `self.batch` to the end of the epoch, and fill `self.metrics`."""
        processes, recipe, step, epoch = self.processes, self.recipe, self.step, self.epoch
        step.net.train()
        began = last_saved = time.perf_counter()
        earlier, pace = self.seconds, Pace(self.batch, step.accumulation)
        batches = self.loader.batches(epoch, self.batch, self.batches)
        while True:
            if self.batch in (pace.next, self.batches) or self.interrupted():
                self.seconds = earlier + time.perf_counter() - began
                overdue = time.perf_counter() - last_saved > 60 * self.save_minutes
                told = self.totals.new_tensor([self.stop.signal > 0, overdue, pace.passed()])
                *self.summed, stopped, overdue, passed = processes.sum(torch.cat([self.totals, told])).tolist()
                pace.looked(self.batch, passed / processes.world_size)
                self.read(progress, log)
                if stopped:
                    self.stop_here()
                if self.batch == self.batches:
                    return
                if overdue:
                    self.save()
                    last_saved = time.perf_counter()
            try:
                batch = next(batches)
            except LoaderError:
                if processes.world_size == 1:
                    # The sums of a few batches that will be repeated stay in the epoch's metrics.
                    self.batch -= self.batch % step.accumulation
                    self.summed = self.totals.tolist()
                    self.save()
                raise
            seed_batch(recipe.seed, epoch, self.batch, processes.rank, processes.device)
            self.batch += 1
            pixels = self.normalize(batch.pixels)
            targets = moved(batch.targets, pixels.device)
            loss, hits = step(pixels, targets, batch.indices, epoch * self.batches + self.batch)
            unreadable = moved(batch.unreadable, pixels.device)
            self.totals += torch.stack([len(pixels) * loss.float(), hits.float(), unreadable.float()])

    def interrupted(self) -> bool:
        """Whether a single process stops here; several agree on it where they read the loss."""
        between_updates = self.batch % self.step.accumulation == 0
        return self.processes.world_size == 1 and between_updates and self.stop.signal > 0

    def asked_to_stop(self) -> bool:
        """Whether any process was; all of them have to ask."""
        return bool(self.processes.max(torch.tensor([self.stop.signal], device=self.processes.device)).item())

    def read(self, progress: TrainingProgress, log: RunLog) -> None:
        """Look at the epoch's sums so far: metrics, progress, whether the loss is finite."""
        if self.batch == 0:
            return
        mean_loss = self.summed[0] / (images := self.batch * self.images_per_batch)
        if not np.isfinite(mean_loss):
            raise FloatingPointError(
                f"the loss is {mean_loss} in epoch {self.epoch + 1}, step {self.batch}: expected a finite number; "
                f"try a smaller lr, or precision=fp32; {what_is_left(self.output)}"
            )
        now = {
            "epoch": self.epoch + 1,
            "loss": mean_loss,
            "lr": self.step.lr,
            "images_per_second": images / self.seconds,
            "seconds": self.seconds,
            "unreadable": int(self.summed[2]),
        }
        if self.task.counts_hits:
            now["train_accuracy"] = 100 * self.summed[1] / images
        progress.step(self.epoch, self.batch, now)
        update = self.epoch * self.updates + self.batch // self.step.accumulation
        log.step(update, {key: now[key] for key in ("loss", "lr")})
        if self.batch == self.batches:
            self.metrics = now

    def evaluate(self, progress: TrainingProgress) -> Any:
        """Save the weights, evaluate them if it is time to, and return the confusion matrix, if the task has one."""
        main, output, evaluated = self.processes.main, self.output, self.step.evaluated
        fields = dataclasses.asdict(self.recipe)
        if main:
            save_weights(evaluated, fields, output / "last")
            if evaluated is not self.step.net:
                save_weights(self.step.net, fields, output / "raw")
        epochs = self.epoch + 1
        if epochs % self.recipe.evaluate_every and epochs != self.recipe.epochs:
            return None

        def batches() -> Iterator[Any]:
            yield from itertools.takewhile(lambda _: not self.stop.signal, self.val_batches)

        self.processes.share_buffers(evaluated)  # each process has averaged the statistics of its own batches
        try:
            # Pictures of many sizes are not worth compiling for.
            with torch.compiler.set_stance("force_eager"):
                result, confusion = self.task.evaluate(
                    evaluated, self.val_source, batches(), progress.evaluated, self.processes
                )
        except ValueError:  # no image: all processes have stopped before the first
            if self.asked_to_stop():
                self.stop_here()
            raise
        if self.asked_to_stop():
            self.stop_here()
        self.metrics |= {name: result[name] for name in self.task.measures}
        unread = len(self.val_source) - int(result.get("images", len(self.val_source)))
        self.metrics["val_unreadable"] = unread
        if unread and main:
            logger.warning("%d of %d validation images could not be used", unread, len(self.val_source))
        if self.metrics[self.task.measures[0]] >= self.best:  # of equals the one that was trained longer
            self.best, self.best_metrics = self.metrics[self.task.measures[0]], self.metrics
            if main:
                save_weights(evaluated, fields, output / "best")
        return confusion

    def save(self) -> None:
        """Write the state to resume from, after `self.batch` batches of the epoch under way."""
        if self.saved == (self.epoch, self.batch):
            return
        if not self.step.has_finite_weights():  # all processes ask, so that none waits for one that has raised
            raise FloatingPointError(
                f"weights in epoch {self.epoch + 1}, step {self.batch} are not finite: expected finite numbers; try a "
                f"smaller lr, or precision=fp32; {what_is_left(self.output)}"
            )
        if self.processes.main:
            self._write_state()
        self.saved = (self.epoch, self.batch)

    def _write_state(self) -> None:
        images = self.batch * self.images_per_batch
        state = self.step.state_dict() | {
            "epochs": self.epoch,
            "images": images,
            "totals": self.summed,
            "seconds": self.seconds,
            "best": self.best,
            "metrics": self.metrics,
            "best_metrics": self.best_metrics,
            "origin": self.origin,
            "config": json.loads(self.step.net.config.to_json_string()),
            "recipe": dataclasses.asdict(self.recipe),
            **told_of_data(self.train_source, self.val_source),
        }
        write_state(self.output, self.epoch, images, state, self.keep_states)

    def stop_here(self) -> None:
        """Save the state and leave, as somebody asked for it."""
        self.save()
        self.processes.wait()  # the first to end may take the others with it
        raise TrainingStopped(
            f"stopped in epoch {self.epoch + 1} after {self.batch} of {self.batches} batches; resume {self.output} to "
            f"go on from there",
            self.stop.signal or signal.SIGTERM,  # another process may have been told first
        )
