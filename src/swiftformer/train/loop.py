"""The training loop, from top to bottom: one process, one device, one flat function."""

from __future__ import annotations

import dataclasses
import itertools
import json
import logging
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from swiftformer.checkpoints import load, save
from swiftformer.config import SwiftFormerConfig
from swiftformer.data.loaders import evaluation_loader, seed_generators, training_loader
from swiftformer.data.sources import Source
from swiftformer.device import select_device
from swiftformer.evaluate.classification import evaluate_classifier
from swiftformer.files import atomic_file
from swiftformer.hf import SwiftFormerForImageClassificationWithTeacher
from swiftformer.train.distillation import distillation_loss, load_teacher
from swiftformer.train.plots import plot_confusion, plot_curves
from swiftformer.train.progress import TrainingProgress
from swiftformer.train.recipes import Recipe
from swiftformer.train.state import has_state, read_state, write_state

logger = logging.getLogger(__name__)
LOG_EVERY = 20  # steps between two readings of the loss, each of which waits for the device


def train(
    recipe: Recipe,
    train_source: Source,
    val_source: Source,
    output: str | Path,
    *,
    variant: str = "xs",
    model: str | None = None,
    form: str | None = None,
    resume: bool = False,
    device: str | torch.device | None = None,
    workers: int = 2,
) -> dict[str, float]:
    """Train a classifier.

    Writes to `output`: `recipe.json`, `metrics.jsonl` (a line per epoch), `curves.png`, `confusion.png`, `states/`
    (to resume from: the last two epochs), and the weights of the best and of the last epoch so far in `best/` and
    `last/` (the averaged ones, where the recipe averages), which `swiftformer.load` reads.

    Args:
        variant: `xs`, `s`, `l1` or `l3`, with random weights in the July 2023 form; ignored where `model` is given.
        model: a checkpoint reference to start from; its head is replaced where the classes differ.
        form: numeric form of `model`, where its file cannot tell.
        resume: go on from `output/states`, which also knows the model.
        device: where to train; CUDA if there is one.
        workers: processes that load images.

    Returns:
        The metrics of the last epoch: `top1`, `top5` in percent, `loss`, `images_per_second`, ...

    Raises:
        ValueError: train and val have different classes, or are the same images; `output` holds a run and `resume` is
            not set, or there is nothing to resume, or its recipe or classes differ.
        FloatingPointError: the loss is not finite; the last checkpoint stays.
    """
    from timm.loss import LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
    from timm.optim import create_optimizer_v2
    from timm.scheduler import create_scheduler_v2
    from timm.utils import ModelEmaV3, adaptive_clip_grad

    output = Path(output)
    if train_source.name(0) == val_source.name(0):
        raise ValueError(f"expected a split to validate on, found the training images again ({train_source.name(0)})")
    if train_source.classes != val_source.classes:
        raise ValueError(
            f"expected the same classes in train and val, found {train_source.classes} and {val_source.classes}"
        )
    state = _resumed(output, recipe, train_source.classes) if resume else None
    if state is None and (has_state(output) or (output / "best").exists()):
        raise ValueError(f"{output} holds a run already: choose another folder, or resume it")
    device = select_device(device)
    seed_generators(recipe.seed)
    torch.manual_seed(recipe.seed)
    net: Any = (
        SwiftFormerForImageClassificationWithTeacher(SwiftFormerConfig.from_dict(state["config"]))
        if state is not None
        else _build(recipe, train_source.classes, variant, model, form)
    ).to(device)
    if recipe.channels_last:
        net = net.to(memory_format=torch.channels_last)
    ema = ModelEmaV3(net, decay=recipe.ema_decay, use_warmup=recipe.ema_warmup) if recipe.ema_decay > 0 else None
    teacher = None
    if recipe.distillation != "none":
        teacher = load_teacher(recipe.teacher, len(train_source.classes), recipe.mean, recipe.std).to(device)
    adamw_only: dict[str, Any] = {"eps": recipe.optimizer_eps, "fused": True} if recipe.optimizer == "adamw" else {}
    optimizer = create_optimizer_v2(
        net, opt=recipe.optimizer, lr=recipe.lr, weight_decay=recipe.weight_decay, **adamw_only
    )
    first_epoch = 0 if state is None else state["epoch"] + 1
    batches = training_loader(train_source, recipe, recipe.image_size_at(first_epoch), device, workers)
    val_batches = evaluation_loader(val_source, recipe.preprocessing, max(recipe.batch_size * 3 // 2, 1), workers)
    updates = len(batches) // recipe.accumulation  # per epoch; batches that fill no update are left out
    steps = updates * recipe.accumulation
    if updates == 0:
        raise ValueError(
            f"expected at least {recipe.total_batch_size} training images for one update, found {len(train_source)}"
        )
    scheduler, _ = create_scheduler_v2(
        optimizer,
        sched="cosine",
        num_epochs=recipe.epochs,
        warmup_epochs=recipe.warmup_epochs,
        warmup_lr=recipe.warmup_lr,
        min_lr=recipe.min_lr,
        step_on_epochs=False,
        updates_per_epoch=updates,
    )
    criterion: nn.Module = (
        SoftTargetCrossEntropy() if recipe.mixes else LabelSmoothingCrossEntropy(recipe.label_smoothing)
    )
    # Clipping leaves the classification heads alone, as the paper that proposed it does.
    clipped = [p for name, p in net.named_parameters() if not name.startswith(("head.", "dist_head."))]

    best = -1.0
    if state is not None:
        net.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        if ema is not None:
            ema.module.load_state_dict(state["ema"])
        best = state["best"]
        _forget_lines_after(output / "metrics.jsonl", state["epoch"] + 1)
        logger.info("resuming %s behind epoch %d of %d", output, first_epoch, recipe.epochs)
    else:
        _forget_lines_after(output / "metrics.jsonl", 0)
    output.mkdir(parents=True, exist_ok=True)
    with atomic_file(output / "recipe.json") as file:
        file.write_text(json.dumps(dataclasses.asdict(recipe), indent=2) + "\n")

    forward = torch.compile(net, dynamic=False) if recipe.compile else net
    autocast = torch.autocast(device.type, dtype=torch.bfloat16, enabled=recipe.precision == "bf16")
    metrics: dict[str, float] = state["metrics"] if state is not None else {}
    with TrainingProgress(recipe.epochs, steps, len(val_source), first_epoch) as progress:
        for epoch in range(first_epoch, recipe.epochs):
            seed_generators(recipe.seed + 1 + epoch)
            torch.manual_seed(recipe.seed + 1 + epoch)
            if epoch > first_epoch and recipe.image_size_at(epoch) != recipe.image_size_at(epoch - 1):
                batches = training_loader(train_source, recipe, recipe.image_size_at(epoch), device, workers)
            batches.sampler.set_epoch(epoch)
            net.train()
            start = time.perf_counter()
            total_loss = torch.zeros((), device=device)
            total_hits = torch.zeros((), device=device)
            for step, (pixels, targets) in enumerate(itertools.islice(batches, steps), start=1):
                if recipe.channels_last:
                    pixels = pixels.contiguous(memory_format=torch.channels_last)
                with autocast:
                    predicted = forward(pixels, return_dict=True)
                logits = predicted.logits if teacher is None else predicted.cls_logits
                loss = criterion(logits.float(), targets)
                if teacher is not None and recipe.distillation != "none":
                    with autocast:
                        teacher_logits = teacher(pixels)
                    loss = distillation_loss(
                        loss,
                        predicted.distillation_logits.float(),
                        teacher_logits,
                        recipe.distillation,
                        recipe.distillation_alpha,
                        recipe.distillation_tau,
                    )
                (loss / recipe.accumulation).backward()
                if step % recipe.accumulation == 0:
                    update = epoch * updates + step // recipe.accumulation
                    if recipe.clip_agc > 0:
                        adaptive_clip_grad(clipped, clip_factor=recipe.clip_agc)
                    optimizer.step()
                    optimizer.zero_grad()
                    scheduler.step_update(num_updates=update)
                    if ema is not None:
                        ema.update(net, step=update)
                total_loss += loss.detach()
                total_hits += (logits.argmax(1) == (targets.argmax(1) if targets.ndim > 1 else targets)).sum()
                if step % LOG_EVERY == 0 or step == steps:
                    mean_loss = total_loss.item() / step
                    if not np.isfinite(mean_loss):
                        raise FloatingPointError(
                            f"the loss is {mean_loss} in epoch {epoch + 1}, step {step}: expected a finite number; "
                            f"try a smaller lr, or precision=fp32. The last checkpoint stays in {output}"
                        )
                    images = step * recipe.batch_size
                    progress.step(
                        epoch,
                        step,
                        loss=mean_loss,
                        accuracy=100 * total_hits.item() / images,
                        lr=optimizer.param_groups[0]["lr"],
                        images_per_second=images / (time.perf_counter() - start),
                    )
            seconds = time.perf_counter() - start

            evaluated = ema.module if ema is not None else net
            metrics = {
                "epoch": epoch + 1,
                "loss": mean_loss,
                "train_accuracy": 100 * total_hits.item() / (steps * recipe.batch_size),
                "lr": optimizer.param_groups[0]["lr"],
                "images_per_second": steps * recipe.batch_size / seconds,
                "seconds": seconds,
            }
            evaluated.preprocessing = recipe.preprocessing
            save(evaluated, output / "last")
            if epoch + 1 == recipe.epochs or (epoch + 1) % recipe.evaluate_every == 0:
                result, confusion = evaluate_classifier(evaluated, val_batches, device, progress.evaluated)
                metrics |= {name: result[name] for name in ("top1", "top5", "calibration_error")}
                if metrics["top1"] > best:
                    best = metrics["top1"]
                    save(evaluated, output / "best")
            progress.epoch(metrics)
            with (output / "metrics.jsonl").open("a") as log:
                log.write(json.dumps(metrics) + "\n")
            state = {
                "model": net.state_dict(),
                "ema": ema.module.state_dict() if ema is not None else None,
                "optimizer": optimizer.state_dict(),
                "epoch": epoch,
                "best": best,
                "metrics": metrics,
                "config": json.loads(net.config.to_json_string()),
                "recipe": dataclasses.asdict(recipe),
            }
            write_state(output, epoch, state)
            plot_curves(output / "metrics.jsonl", output / "curves.png")
            if "top1" in metrics:
                plot_confusion(confusion, train_source.classes, output / "confusion.png")
    return metrics


def _build(recipe: Recipe, classes: list[str], variant: str, model: str | None, form: str | None) -> nn.Module:
    id2label = dict(enumerate(classes))
    if model is None:
        # The class that returns both heads' logits, which distillation needs; weights and function are the same.
        return SwiftFormerForImageClassificationWithTeacher.from_variant(
            variant,
            id2label=id2label,
            label2id={name: i for i, name in id2label.items()},
            image_size=recipe.image_size,
            drop_path_rate=recipe.drop_path_rate,
        )
    loaded = load(model, form=form, task="classification", labels=classes, drop_path_rate=recipe.drop_path_rate)
    if recipe.distillation != "none" and not loaded.config.distillation:
        raise ValueError(f"{model}: expected a model with a distillation head, found one with a single head")
    net = SwiftFormerForImageClassificationWithTeacher(loaded.config)
    net.load_state_dict(loaded.state_dict())
    return net


def _resumed(output: Path, recipe: Recipe, classes: list[str]) -> dict[str, Any]:
    state = read_state(output)
    # A recipe stored by an older version lacks the newer fields: then their defaults were in force.
    stored, wanted = dataclasses.asdict(Recipe()) | state["recipe"], dataclasses.asdict(recipe)
    differing = [f"{k} {stored[k]} -> {v}" for k, v in wanted.items() if stored[k] != v]
    if differing:
        raise ValueError(f"{output} was started with another recipe ({'; '.join(differing)}): resume with the same one")
    labels = state["config"]["id2label"]
    if [labels[key] for key in sorted(labels, key=int)] != classes:
        raise ValueError(f"{output} was started with the classes {list(labels.values())}, found {classes}")
    return state


def _forget_lines_after(path: Path, epoch: int) -> None:
    """Drop what was written after the state was saved, a torn last line included: it will be trained again."""
    if path.exists():
        lines = path.read_text().splitlines()[:epoch]
        with atomic_file(path) as file:
            file.write_text("".join(line + "\n" for line in lines))
