"""One training step: forward, loss, backward, clipping, optimizer, learning rate, average of the weights."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from swiftformer.data.loaders import seed_generators
from swiftformer.train.distillation import Teacher, distillation_loss
from swiftformer.train.distributed import Processes
from swiftformer.train.losses import ClassificationLoss
from swiftformer.train.recipes import Recipe

PRECISIONS = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


class TrainingStep:
    """A network with all that changes its weights.

    Args:
        net: a `SwiftFormerForImageClassificationWithTeacher` on the device of `processes`.
        updates_per_epoch: of the weights; the learning rate follows them.
        accumulation: batches per update.
        teacher: of the distillation that the recipe asks for.
        teacher_logits: the teacher's `(images, classes)` where they are known already; then it is not asked.
        class_weights: `(classes,)`, of the criterion.

    Attributes:
        net: the network that is trained.
        evaluated: the average of its weights where the recipe averages, otherwise `net`.
    """

    def __init__(
        self,
        recipe: Recipe,
        net: Any,
        processes: Processes,
        *,
        updates_per_epoch: int,
        accumulation: int = 1,
        teacher: Teacher | None = None,
        teacher_logits: Tensor | None = None,
        class_weights: Tensor | None = None,
    ) -> None:
        from timm.optim import create_optimizer_v2
        from timm.scheduler import create_scheduler_v2
        from timm.utils import ModelEmaV3

        device = processes.device
        self.recipe, self.net, self.processes, self.accumulation = recipe, net, processes, accumulation
        self.teacher, self.teacher_logits = teacher, teacher_logits
        self.ema = ModelEmaV3(net, decay=recipe.ema_decay, use_warmup=recipe.ema_warmup) if recipe.ema_decay else None
        self.evaluated: Any = net if self.ema is None else self.ema.module
        self.wrapped: Any = processes.wrap(net, recipe.sync_batchnorm)
        self.forward: Any = torch.compile(self.wrapped, dynamic=False) if recipe.compile else self.wrapped
        adamw_only: dict[str, Any] = {"eps": recipe.optimizer_eps, "fused": True} if recipe.optimizer == "adamw" else {}
        self.optimizer = create_optimizer_v2(
            net, opt=recipe.optimizer, lr=recipe.lr, weight_decay=recipe.weight_decay, **adamw_only
        )
        self.scheduler, _ = create_scheduler_v2(
            self.optimizer,
            sched="cosine",
            num_epochs=recipe.epochs,
            warmup_epochs=recipe.warmup_epochs,
            warmup_lr=recipe.warmup_lr,
            min_lr=recipe.min_lr,
            step_on_epochs=False,
            updates_per_epoch=updates_per_epoch,
        )
        self.scaler = torch.amp.GradScaler(device.type, enabled=recipe.precision == "fp16")
        self.autocast = torch.autocast(device.type, PRECISIONS[recipe.precision], enabled=recipe.precision != "fp32")
        self.criterion = ClassificationLoss(recipe.label_smoothing, class_weights).to(device)
        # Clipping leaves the classification heads alone, as the paper that proposed it does.
        self.clipped = [p for name, p in net.named_parameters() if not name.startswith(("head.", "dist_head."))]

    @property
    def lr(self) -> float:
        """The learning rate of the next update."""
        return self.optimizer.param_groups[0]["lr"]

    def __call__(self, pixels: Tensor, targets: Tensor, indices: Tensor, batch: int) -> tuple[Tensor, Tensor]:
        """Learn from a batch; every `accumulation`-th updates the weights.

        Args:
            pixels: `(B, 3, H, W)`, normalised.
            targets: class indices `(B,)` or distributions `(B, classes)`.
            indices: of the images in the data, `(B,)`; only a cached teacher looks at them.
            batch: batches of the run including this one.

        Returns:
            The loss, and how many images the class head (without distillation: both together) got right, as scalars
            on the device.
        """
        update = batch % self.accumulation == 0
        if self.processes.world_size > 1:
            self.wrapped.require_backward_grad_sync = update
        with self.autocast:
            predicted = self.forward(pixels, return_dict=True)
        logits = predicted.logits if self.teacher is None else predicted.cls_logits
        loss = self.criterion(logits.float(), targets)
        if self.teacher is not None:
            loss = self._distil(loss, predicted.distillation_logits.float(), pixels, indices)
        self.scaler.scale(loss / self.accumulation).backward()
        if update:
            self._update(batch // self.accumulation)
        classes = targets.argmax(1) if targets.ndim > 1 else targets
        return loss.detach(), (logits.argmax(1) == classes).sum()

    def _distil(self, loss: Tensor, logits: Tensor, pixels: Tensor, indices: Tensor) -> Tensor:
        assert self.teacher is not None and self.recipe.distillation != "none"
        if self.teacher_logits is None:
            with self.autocast:
                told = self.teacher(pixels)
        else:
            told = self.teacher_logits[indices].to(logits)
        kind, alpha, tau = self.recipe.distillation, self.recipe.distillation_alpha, self.recipe.distillation_tau
        return distillation_loss(loss, logits, told, kind, alpha, tau)

    def _update(self, number: int) -> None:
        from timm.utils import adaptive_clip_grad

        self.scaler.unscale_(self.optimizer)
        if self.recipe.clip_agc > 0:
            adaptive_clip_grad(self.clipped, clip_factor=self.recipe.clip_agc)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()
        self.scheduler.step_update(num_updates=number)
        if self.ema is not None:
            self.ema.update(self.net, step=number)

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` needs to go on after an update."""
        return {
            "model": self.net.state_dict(),
            "ema": self.ema.module.state_dict() if self.ema is not None else None,
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any], updates: int) -> None:
        """Go on behind `updates` updates of the weights."""
        self.net.load_state_dict(state["model"])
        if self.ema is not None:
            self.ema.module.load_state_dict(state["ema"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        self.scheduler.step_update(num_updates=updates)


def seed_batch(seed: int, epoch: int, batch: int, rank: int, device: torch.device) -> None:
    """Make erasing and stochastic depth depend on the batch's place alone, so that a run resumes anywhere."""
    number = int(np.random.SeedSequence((seed, epoch, batch, rank)).generate_state(1)[0])
    seed_generators(number)
    if device.type == "cuda":
        torch.cuda.manual_seed_all(number)
