"""`TrainingStep` against a loop of timm's functions and of formulas written out."""

import copy

import pytest
import torch
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler
from timm.utils import ModelEmaV3, adaptive_clip_grad
from torch.nn import functional as F

from conftest import TINY, randomize
from swiftformer import SwiftFormerConfig, SwiftFormerForImageClassificationWithTeacher
from swiftformer.train.distillation import Teacher
from swiftformer.train.distributed import Processes
from swiftformer.train.objectives import ClassificationObjective
from swiftformer.train.recipes import get_recipe
from swiftformer.train.step import TrainingStep

ALONE = Processes(0, 1, torch.device("cpu"))


def smoke_step(*settings):
    recipe = get_recipe("smoke", settings)
    return TrainingStep(recipe, network(0), ALONE, ClassificationObjective(recipe, ALONE.device), updates_per_epoch=1)


def network(seed):
    config = SwiftFormerConfig(**TINY, num_labels=5, global_query_weighting="l2")
    return randomize(SwiftFormerForImageClassificationWithTeacher(config), seed).train()


@pytest.mark.parametrize("distillation", ["none", "hard", "soft"])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_two_updates_of_two_batches(distillation, optimizer):
    """With SGD a factor in the gradients cannot hide."""
    settings = [f"optimizer={optimizer}", f"distillation={distillation}", "lr=0.05", "clip_agc=0.02", "ema_decay=0.9"]
    recipe = get_recipe("smoke", [*settings, "batch_size=4", "total_batch_size=8", "epochs=4", "distillation_tau=2"])
    net, teacher = network(0), network(1).eval()
    theirs = copy.deepcopy(net)
    objective = ClassificationObjective(recipe, ALONE.device, Teacher(teacher) if distillation != "none" else None)
    step = TrainingStep(recipe, net, ALONE, objective, updates_per_epoch=3, accumulation=2)
    opt = create_optimizer_v2(theirs, opt=optimizer, lr=0.05, weight_decay=recipe.weight_decay)
    schedule = CosineLRScheduler(
        opt, t_initial=12, warmup_t=3, warmup_lr_init=1e-6, lr_min=1e-5, t_in_epochs=False, k_decay=1.0
    )
    ema = ModelEmaV3(theirs, decay=0.9, use_warmup=True)
    for batch in range(1, 5):
        pixels, targets = torch.randn(4, 3, 32, 32), torch.randint(0, 5, (4,))
        indices = torch.arange(4)
        loss, hits = step(pixels, targets, indices, batch)

        output = theirs(pixels)
        logits = output.logits if distillation == "none" else output.cls_logits
        expected = F.cross_entropy(logits, targets, label_smoothing=recipe.label_smoothing)
        if distillation != "none":
            told, student = teacher(pixels).logits, output.distillation_logits
            if distillation == "hard":
                other = F.cross_entropy(student, told.argmax(1))
            else:
                p, q = (told / 2).log_softmax(1), (student / 2).log_softmax(1)
                other = (p.exp() * (p - q)).sum() * 4 / student.numel()
            expected = 0.5 * expected + 0.5 * other
        (expected / 2).backward()
        torch.testing.assert_close(loss, expected.detach(), rtol=1e-6, atol=1e-6)
        assert hits == (logits.argmax(1) == targets).sum()
        if batch % 2 == 0:
            body = [p for name, p in theirs.named_parameters() if "head" not in name]
            adaptive_clip_grad(body, clip_factor=0.02)
            opt.step()
            opt.zero_grad()
            schedule.step_update(batch // 2)
            ema.update(theirs, step=batch // 2)
            assert step.lr == pytest.approx(opt.param_groups[0]["lr"], rel=1e-6)
    for ours, others in ((net, theirs), (step.evaluated, ema.module)):
        for (name, a), b in zip(ours.state_dict().items(), others.state_dict().values(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6, msg=name)


@pytest.mark.parametrize("distillation", ["hard", "soft"])
def test_a_teacher_that_is_known_is_as_good_as_one_that_is_asked(distillation):
    """In whatever order the images come."""
    recipe = get_recipe("smoke", [f"distillation={distillation}", "precision=fp32"])
    teacher, student = Teacher(network(1).eval()), network(0)
    images, targets = torch.randn(9, 3, 32, 32), torch.arange(9) % 5
    known = teacher(images)
    losses = []
    for logits in (None, known):
        objective = ClassificationObjective(recipe, ALONE.device, teacher, logits)
        step = TrainingStep(recipe, copy.deepcopy(student), ALONE, objective, updates_per_epoch=1)
        for batch, indices in enumerate((torch.tensor([7, 2, 8]), torch.tensor([0, 5, 1])), 1):
            loss, _ = step(images[indices], targets[indices], indices, batch)
            losses.append(loss)
    torch.testing.assert_close(losses[2:], losses[:2])
    assert abs(losses[0] - losses[1]) > 0.01


def test_clipping_leaves_the_heads_alone():
    step = smoke_step()
    clipped = {id(parameter) for parameter in step.clipped}
    left = {name for name, parameter in step.net.named_parameters() if id(parameter) not in clipped}
    assert left == {"head.weight", "head.bias", "dist_head.weight", "dist_head.bias"}


def test_float16_scales_the_loss_and_unscales_before_clipping(monkeypatch):
    norms = []

    def spy(parameters, factor):
        norms.append(max(p.grad.abs().max().item() for p in parameters))

    monkeypatch.setattr("swiftformer.train.step.clip_adaptively", spy)
    for precision in ("fp32", "fp16"):
        step = smoke_step(f"precision={precision}")
        if precision == "fp16":
            step.scaler = torch.amp.GradScaler("cpu", init_scale=64.0)  # small enough for these gradients
        torch.manual_seed(0)
        step(torch.randn(4, 3, 32, 32), torch.randint(0, 5, (4,)), torch.arange(4), 1)
    assert norms[0] / 8 < norms[1] < norms[0] * 8  # without unscaling it would be 64 times as large


def test_an_overflow_in_float16_skips_the_update():
    step = smoke_step("precision=fp16")
    before = [parameter.clone() for parameter in step.net.parameters()]
    step.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**30)
    step(torch.randn(4, 3, 32, 32), torch.randint(0, 5, (4,)), torch.arange(4), 1)
    assert all(torch.equal(a, b) for a, b in zip(before, step.net.parameters(), strict=True))
    assert step.scaler.get_scale() == 2.0**29
