"""Train SwiftFormer with the pieces of timm's train.py: its data loaders, optimisers, schedules, EMA and checkpoints.

python examples/train_with_timm.py --data photos/ --model MBZUAI/swiftformer-xs --output runs/photos
swiftformer classify --model runs/photos picture.jpg

In the folder lie train/ and val/, each with a folder for every class. What differs from a model of timm's is that the
output has `.logits`, and that there are two heads.
"""

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from timm import utils
from timm.data import create_dataset, create_loader
from timm.loss import LabelSmoothingCrossEntropy
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from torch import nn
from torch.nn import functional as F

import swiftformer
from swiftformer import Preprocessing

logger = logging.getLogger(__name__)
HEADS = ("head.", "dist_head.")
Autocast = Callable[[], AbstractContextManager]


def train_one_epoch(
    epoch: int,
    model: nn.Module,
    loader: Any,
    optimizer: torch.optim.Optimizer,
    loss_fn: nn.Module,
    lr_scheduler: Any,
    model_ema: utils.ModelEmaV3,
    autocast: Autocast,
    loss_scaler: utils.NativeScaler | None = None,
    clip_grad: float = 0.01,
) -> dict[str, float]:
    """One pass over the training images, with adaptive gradient clipping; returns the mean loss."""
    losses = utils.AverageMeter()
    # timm's `exclude_head` leaves out the last layer, which is one of the two heads.
    clipped = [p for name, p in model.named_parameters() if not name.startswith(HEADS)]
    num_updates = epoch * len(loader)
    model.train()
    for images, target in loader:
        with autocast():
            loss = loss_fn(model(images).logits, target)
        if loss_scaler is not None:
            loss_scaler(loss, optimizer, clip_grad=clip_grad, clip_mode="agc", parameters=clipped)
        else:
            loss.backward()
            utils.dispatch_clip_grad(clipped, clip_grad, mode="agc")
            optimizer.step()
        optimizer.zero_grad()
        num_updates += 1
        model_ema.update(model, step=num_updates)
        lr_scheduler.step_update(num_updates=num_updates)
        losses.update(loss.item(), len(images))
    return {"loss": losses.avg}


@torch.inference_mode()
def validate(model: nn.Module, loader: Any, autocast: Autocast) -> dict[str, float]:
    """Mean loss, and top-1 and top-5 accuracy in percent."""
    losses, top1, top5 = utils.AverageMeter(), utils.AverageMeter(), utils.AverageMeter()
    model.eval()
    for images, target in loader:
        with autocast():
            logits = model(images).logits
        acc1, acc5 = utils.accuracy(logits, target, topk=(1, 5))
        losses.update(F.cross_entropy(logits.float(), target).item(), len(images))
        top1.update(acc1.item(), len(images))
        top5.update(acc5.item(), len(images))
    return {"loss": losses.avg, "top1": top1.avg, "top5": top5.avg}


def main(
    data: Annotated[str, typer.Option(help="Folder with train/ and val/ trees of one folder per class.")],
    model: Annotated[str, typer.Option(help="What swiftformer.load reads.")],
    output: Annotated[Path, typer.Option(help="Folder for the trained model.")],
    epochs: Annotated[int, typer.Option(min=1)] = 10,
    warmup_epochs: Annotated[int, typer.Option(min=0)] = 1,
    batch_size: Annotated[int, typer.Option(min=2)] = 32,
    lr: Annotated[float, typer.Option(help="Peak learning rate.")] = 2e-4,
    opt: Annotated[str, typer.Option(help="timm's name of an optimiser.")] = "adamw",
    size: Annotated[int, typer.Option(min=32, help="Side of the input in pixels.")] = 224,
    crop_pct: Annotated[float, typer.Option(help="Share of the short side that evaluation keeps.")] = 0.95,
    ema_decay: Annotated[float, typer.Option(help="Of the averaged weights.")] = 0.999,
    form: Annotated[str | None, typer.Option(help="Numeric form of the model, where its file cannot tell.")] = None,
    workers: Annotated[int, typer.Option(min=0, help="Processes that load images.")] = 2,
    amp: Annotated[bool, typer.Option("--amp", help="Compute in float16, with a scaled loss.")] = False,
) -> None:
    """Train a classifier on one's own classes, and save it with their names."""
    utils.random_seed(42)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    autocast = partial(torch.autocast, device.type, dtype=torch.float16, enabled=amp)

    dataset_train = create_dataset("", root=data, split="train", is_training=True)
    class_to_idx = dataset_train.reader.class_to_idx
    dataset_eval = create_dataset("", root=data, split="validation", class_map=class_to_idx)
    if dataset_train.reader.root == dataset_eval.reader.root:  # which timm takes where there are no such folders
        raise typer.BadParameter(
            f"expected train/ and val/ in {data}, found folders of classes alone", param_hint="data"
        )
    classes = sorted(class_to_idx, key=class_to_idx.__getitem__)  # timm counts "10" behind "9"

    net: Any = swiftformer.load(model, labels=classes, task="classification", form=form)
    net.to(device)
    data_config: dict[str, Any] = {
        "input_size": (3, size, size),
        "interpolation": "bicubic",
        "mean": net.preprocessing.mean,
        "std": net.preprocessing.std,
        "crop_pct": crop_pct,
    }
    create: Any = partial(create_loader, batch_size=batch_size, num_workers=workers, device=device, **data_config)
    loader_train = create(dataset_train, is_training=True, scale=(0.35, 1.0), re_prob=0.1, re_mode="pixel")
    loader_eval = create(dataset_eval)

    optimizer = create_optimizer_v2(net, opt=opt, lr=lr, weight_decay=0.025)
    lr_scheduler, _ = create_scheduler_v2(
        optimizer,
        sched="cosine",
        num_epochs=epochs,
        warmup_epochs=warmup_epochs,
        warmup_lr=1e-6,
        min_lr=lr / 100,
        step_on_epochs=False,
        updates_per_epoch=len(loader_train),
    )
    model_ema = utils.ModelEmaV3(net, decay=ema_decay, use_warmup=True)
    loss_fn = LabelSmoothingCrossEntropy(smoothing=0.1)
    loss_scaler = utils.NativeScaler(device=device.type) if amp else None
    checkpoints = output / "checkpoints"
    checkpoints.mkdir(parents=True, exist_ok=True)
    saver = utils.CheckpointSaver(
        net, optimizer, model_ema=model_ema, amp_scaler=loss_scaler, checkpoint_dir=str(checkpoints), max_history=2
    )
    for epoch in range(epochs):
        trained = train_one_epoch(
            epoch, net, loader_train, optimizer, loss_fn, lr_scheduler, model_ema, autocast, loss_scaler
        )
        found = validate(model_ema.module, loader_eval, autocast)
        saver.save_checkpoint(epoch, metric=found["top1"])
        print(f"epoch {epoch + 1}: loss {trained['loss']:.4f}, top-1 {found['top1']:.2f}, top-5 {found['top5']:.2f}")

    # timm's checkpoints hold the weights under their usual names, but neither the numeric form nor the class names.
    best = swiftformer.load(checkpoints / "model_best.pth.tar", ema=True, form=net.config.form, labels=classes)
    net.load_state_dict(best.state_dict())
    net.preprocessing = Preprocessing.from_timm(data_config)
    swiftformer.save(net, output)
    print(f"accuracy {saver.best_metric:.2f}")


if __name__ == "__main__":
    typer.run(main)
