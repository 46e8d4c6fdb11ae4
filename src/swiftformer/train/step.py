"""One training step: forward, loss, backward, clipping, optimizer, learning rate, average of the weights."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from swiftformer.data.epoch_loader import seed_generators
from swiftformer.train.clipping import clip_adaptively
from swiftformer.train.distributed import Processes
from swiftformer.train.objectives import Objective, autocast
from swiftformer.train.recipe import TrainingRecipe

POWER = 0.9  # of the schedule `poly`
# Of masks the predictor is clipped: most of it is a convolution in front of its classifier.
CLASSIFIERS = (
    *("head.", "dist_head.", "decode_head.classifier.", "detection_head.roi_heads.box_predictor."),
    *("detection_head.model.enc_score_head.", "detection_head.model.decoder.class_embed."),
)


class TrainingStep:
    """A network with all that changes its weights.

    Args:
        net: on the device of `processes`.
        objective: the loss of what it computes.
        updates_per_epoch: of the weights; the learning rate follows them.
        accumulation: batches per update.

    Attributes:
        net: the network that is trained.
        evaluated: the average of its weights where the recipe averages, otherwise `net`.
    """

    def __init__(
        self,
        recipe: TrainingRecipe,
        net: Any,
        processes: Processes,
        objective: Objective,
        *,
        updates_per_epoch: int,
        accumulation: int = 1,
    ) -> None:
        from timm.optim import create_optimizer_v2
        from timm.scheduler import create_scheduler_v2
        from timm.utils import ModelEmaV3

        device = processes.device
        self.recipe, self.net, self.processes, self.accumulation = recipe, net, processes, accumulation
        self.objective = objective
        self.ema = ModelEmaV3(net, decay=recipe.ema_decay, use_warmup=recipe.ema_warmup) if recipe.ema_decay else None
        self.evaluated: Any = net if self.ema is None else self.ema.module
        self.wrapped: Any = processes.wrap(net, recipe.sync_batchnorm)
        self.forward: Any = self.wrapped
        if recipe.compile and hasattr(net, "compile_static_parts"):
            net.compile_static_parts()
        elif recipe.compile:
            self.forward = torch.compile(self.wrapped, dynamic=False)
        adamw_only: dict[str, Any] = {"eps": recipe.optimizer_eps, "fused": True} if recipe.optimizer == "adamw" else {}
        self.optimizer = create_optimizer_v2(
            net, opt=recipe.optimizer, lr=recipe.lr, weight_decay=recipe.weight_decay, **adamw_only
        )
        if getattr(self.optimizer, "is_second_order", False):
            raise ValueError(f"optimizer: expected one that needs no second derivatives, found {recipe.optimizer}")
        self.scheduler, _ = create_scheduler_v2(
            self.optimizer,
            sched=recipe.schedule,
            num_epochs=recipe.epochs,
            decay_rate=0.1 if recipe.schedule == "multistep" else POWER,  # of the cosine without effect
            decay_milestones=list(recipe.milestones),
            warmup_epochs=recipe.warmup_epochs,
            warmup_lr=recipe.warmup_lr,
            min_lr=recipe.min_lr,
            step_on_epochs=False,
            updates_per_epoch=updates_per_epoch,
        )
        self.scaler = torch.amp.GradScaler(device.type, enabled=recipe.precision == "fp16")
        self.autocast = autocast(recipe, device)
        # Clipping leaves the classifiers alone, as the paper that proposed it does.
        self.clipped = [p for name, p in net.named_parameters() if not name.startswith(CLASSIFIERS)]

    @property
    def lr(self) -> float:
        """The learning rate of the next update."""
        return self.optimizer.param_groups[0]["lr"]

    def __call__(self, pixels: Tensor, targets: Any, indices: Tensor, batch: int) -> tuple[Tensor, Tensor]:
        """Learn from a batch; every `accumulation`-th updates the weights.

        Args:
            pixels: `(B, 3, H, W)`, normalised.
            targets: of the objective, B of them.
            indices: of the images in the data, `(B,)`; only a cached teacher looks at them.
            batch: batches of the run including this one.

        Returns:
            The loss, and the number of hits, as the objective counts them, as scalars on the device.
        """
        update = batch % self.accumulation == 0
        if self.processes.world_size > 1:
            self.wrapped.require_backward_grad_sync = update
        with self.autocast:
            predicted = self.forward(pixels, return_dict=True, **self.objective.arguments(targets))
        loss, hits = self.objective(predicted, pixels, targets, indices)
        self.scaler.scale(loss / self.accumulation).backward()
        if update:
            self._update(batch // self.accumulation)
        return loss.detach(), hits

    def _update(self, number: int) -> None:
        self.scaler.unscale_(self.optimizer)
        if self.recipe.clip_agc > 0:
            clip_adaptively(self.clipped, self.recipe.clip_agc)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()
        self.scheduler.step_update(num_updates=number)
        if self.ema is not None:
            self.ema.update(self.net, step=number)

    def has_finite_weights(self) -> bool:
        """Whether no weight of the network is infinite or NaN."""
        norms = torch._foreach_norm([p.detach() for p in self.net.parameters()])
        return bool(torch.stack(norms).isfinite().all())

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
    elif device.type == "mps":
        torch.mps.manual_seed(number)
