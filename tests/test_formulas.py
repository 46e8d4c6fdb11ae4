"""The numbers of training against their formulas written out in numpy, and against timm and torch."""

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.loss import LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from timm.utils import ModelEmaV3
from timm.utils.agc import adaptive_clip_grad, unitwise_norm
from torch import nn
from torch.nn import functional as F

from swiftformer import SwiftFormerConfig
from swiftformer.data.sources import open_source
from swiftformer.train import loop, pace
from swiftformer.train.clipping import clip_adaptively
from swiftformer.train.distillation import distillation_loss
from swiftformer.train.distributed import Processes
from swiftformer.train.objectives import ClassificationObjective
from swiftformer.train.recipes import Recipe, get_recipe
from swiftformer.train.run_log import RunLog
from swiftformer.train.step import TrainingStep

EXACT = {"rtol": 1e-6, "atol": 1e-6}


def softmax(x: np.ndarray) -> np.ndarray:
    powers = np.exp(x - x.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def numbers(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape) * 2


# --- learning rate


def schedule(recipe: Recipe, updates: int) -> list[float]:
    """The rate of every update, as the training step sets it: before the first, then after each for the next one."""
    alone = Processes(0, 1, torch.device("cpu"))
    objective = ClassificationObjective(recipe, alone.device)
    step = TrainingStep(recipe, nn.Linear(1, 1), alone, objective, updates_per_epoch=updates)
    rates = [step.lr]
    for update in range(1, recipe.epochs * updates + 1):
        step.scheduler.step_update(num_updates=update)
        rates.append(step.lr)
    return rates


def closed_form(recipe: Recipe, updates: int) -> np.ndarray:
    """Linear warm-up inside the cosine (timm: `t_initial` is the whole run, `warmup_prefix=False`).

    The cosine begins at update 0, hidden by the warm-up, and is entered where the warm-up ends: the rate there is
    already below `lr`, and no update has exactly `lr` unless there is no warm-up.
    """
    whole, warmup = recipe.epochs * updates, recipe.warmup_epochs * updates
    t = np.arange(whole + 1)
    line = recipe.warmup_lr + (recipe.lr - recipe.warmup_lr) * t / max(warmup, 1)
    cosine = recipe.min_lr + (recipe.lr - recipe.min_lr) * (1 + np.cos(np.pi * t / whole)) / 2
    return np.where(t < warmup, line, np.where(t < whole, cosine, recipe.min_lr))


@given(
    epochs=st.integers(1, 9),
    warmup=st.integers(0, 9),
    updates=st.integers(1, 7),
    lr=st.floats(1e-4, 1),
    first=st.floats(0, 1e-4),
    last=st.floats(0, 1e-4),
)
@settings(max_examples=40, deadline=None)
def test_learning_rate(epochs, warmup, updates, lr, first, last):
    recipe = Recipe(epochs=epochs, warmup_epochs=min(warmup, epochs), lr=lr, warmup_lr=first, min_lr=last)
    np.testing.assert_allclose(schedule(recipe, updates), closed_form(recipe, updates), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("epochs", [1, 5])
def test_polynomial_learning_rate(epochs):
    recipe = Recipe(epochs=epochs, warmup_epochs=0, lr=0.1, min_lr=0.01, schedule="poly")
    left = 1 - np.arange(epochs * 7 + 1) / (epochs * 7)
    np.testing.assert_allclose(schedule(recipe, 7), 0.01 + 0.09 * left**0.9, rtol=1e-9)


def test_learning_rate_of_the_paper():
    """1,281,167 images in updates of 2048, the last one incomplete and left out."""
    recipe, updates = get_recipe("paper_xs"), 625
    rates = schedule(recipe, updates)
    np.testing.assert_allclose(rates, closed_form(recipe, updates), rtol=1e-9)
    assert rates[0] == 1e-6 and rates[-1] == 1e-5
    assert rates[1] == pytest.approx(1e-6 + (2e-3 - 1e-6) / 3125)
    assert rates[3125] == pytest.approx(1e-5 + 1.99e-3 * (1 + math.cos(math.pi * 5 / 300)) / 2) and rates[3125] < 2e-3
    assert max(rates) < 2e-3 and rates[-2] > 1e-5


@pytest.mark.parametrize(("total", "updates"), [("none", 3), ("32", 1)])
def test_the_loop_keeps_to_it(total, updates, image_folder, tmp_path, monkeypatch):
    """Every rate that it writes down is that of the next update; the average is told the updates from 1."""

    def small(cls, name, **fields):
        return SwiftFormerConfig(depths=[1, 1, 1, 1], embed_dims=[8, 8, 8, 16], global_query_weighting="l2", **fields)

    rates, averaged = {}, []
    monkeypatch.setattr(SwiftFormerConfig, "from_variant", classmethod(small))
    monkeypatch.setattr(pace, "LOG_EVERY", 1)
    monkeypatch.setattr(RunLog, "step", lambda self, step, metrics: rates.update({step: metrics["lr"]}))
    monkeypatch.setattr(ModelEmaV3, "update", lambda self, model, step: averaged.append(step))
    recipe = get_recipe("smoke", ["epochs=4", "lr=5e-3", f"total_batch_size={total}"])
    loop.train(
        recipe, open_source(image_folder, "train"), open_source(image_folder, "val"), tmp_path / "run", workers=0
    )
    expected = closed_form(recipe, updates)
    assert set(rates) - {0} == set(range(1, 4 * updates + 1)) and averaged == [*range(1, 4 * updates + 1)]
    for update, rate in rates.items():
        assert rate == pytest.approx(expected[update], rel=1e-9)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["lr"] for line in lines] == pytest.approx(expected[updates::updates], rel=1e-9)


# --- adaptive gradient clipping (arXiv 2102.06171, equation 3)


def clipped(weight: np.ndarray, gradient: np.ndarray, factor: float = 0.01, eps: float = 1e-3) -> np.ndarray:
    """A unit is what makes one output: all of the weight but its first axis; a vector as a whole is one unit."""
    axes = tuple(range(1, weight.ndim)) if weight.ndim > 1 else None
    size = np.sqrt((weight**2).sum(axis=axes, keepdims=True))
    slope = np.sqrt((gradient**2).sum(axis=axes, keepdims=True))
    allowed = factor * np.maximum(size, eps)
    return np.where(slope > allowed, gradient * allowed / np.maximum(slope, 1e-6), gradient)


SHAPES = {
    "conv": (6, 3, 3, 3),
    "depthwise": (6, 1, 3, 3),
    "linear": (5, 7),
    "bias": (6,),
    "scale": (4, 1, 1),
    "one": (1,),
}


@pytest.mark.parametrize("kind", SHAPES)
@pytest.mark.parametrize("size", [0.0, 1e-5, 1.0])
def test_adaptive_clipping(kind, size):
    weight, gradient = size * numbers(1, *SHAPES[kind]), numbers(2, *SHAPES[kind])
    gradient[0] *= 1e-7  # a unit that needs no clipping, where units are clipped one by one
    parameter = nn.Parameter(torch.tensor(weight))
    parameter.grad = torch.tensor(gradient)
    timms = nn.Parameter(torch.tensor(weight))
    timms.grad = torch.tensor(gradient)
    clip_adaptively([parameter], Recipe().clip_agc)
    adaptive_clip_grad([timms], clip_factor=Recipe().clip_agc)
    assert torch.equal(parameter.grad, timms.grad)
    np.testing.assert_allclose(parameter.grad.numpy(), clipped(weight, gradient), rtol=1e-9, atol=0)
    norms = unitwise_norm(parameter.grad).flatten()
    allowed = 0.01 * unitwise_norm(parameter.detach()).flatten().clamp(min=1e-3)
    assert (norms <= allowed * (1 + 1e-9)).all()
    if len(SHAPES[kind]) > 1 and size == 1.0:
        np.testing.assert_array_equal(parameter.grad[0].numpy(), gradient[0])
        assert len(norms) == SHAPES[kind][0]
        torch.testing.assert_close(norms[1:], allowed[1:])
    if len(SHAPES[kind]) == 1:
        assert len(norms) == 1


def test_clipping_without_a_gradient():
    one, other = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
    other.grad = torch.zeros(3)
    clip_adaptively([one, other], 0.01)
    clip_adaptively([one], 0.01)
    assert one.grad is None and other.grad.tolist() == [0, 0, 0]


# --- averaged weights


def decay_at(update: int, decay: float, warmup: bool) -> float:
    """timm's decay at an update counted from 1: the first copies the weights, the ramp is 1 - (1 + t)^(-2/3)."""
    t = update - 1
    if t == 0:
        return 0.0
    return min(1 - (1 + t) ** (-2 / 3), decay) if warmup else decay


@pytest.mark.parametrize("warmup", [False, True])
@pytest.mark.parametrize("decay", [0.6, 0.99996])
def test_averaged_weights(decay, warmup):
    net = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)).double()
    average = ModelEmaV3(net, decay=decay, use_warmup=warmup)
    steps, history = 25, []
    for update in range(1, steps + 1):
        with torch.no_grad():
            for i, tensor in enumerate([*net.parameters(), net[1].running_mean]):
                tensor.copy_(torch.tensor(numbers(100 * update + i, *tensor.shape)))
            net[1].num_batches_tracked.fill_(update)
        history.append({name: value.clone().numpy() for name, value in net.state_dict().items()})
        average.update(net, step=update)
    decays = np.array([decay_at(update, decay, warmup) for update in range(1, steps + 1)])
    # What is left of update n after the last: (1 - d_n) times all later decays.
    shares = np.array([(1 - decays[n]) * decays[n + 1 :].prod() for n in range(steps)])
    assert shares.sum() == pytest.approx(1, abs=1e-12)
    for name, value in average.module.state_dict().items():
        if name.endswith("num_batches_tracked"):
            assert value == steps
            continue
        expected = sum(share * past[name] for share, past in zip(shares, history, strict=True))
        np.testing.assert_allclose(value.numpy(), expected, rtol=1e-6, atol=1e-9)
    if not warmup:  # constant decay: d^(n-1) of the first weights, (1 - d) d^(n-k) of those after update k
        assert shares[0] == pytest.approx(decay ** (steps - 1)) and shares[-1] == pytest.approx(1 - decay)


# --- losses


@given(st.integers(0, 1000), st.integers(1, 5), st.integers(2, 12), st.floats(0, 0.9))
@settings(max_examples=30, deadline=None)
def test_label_smoothing(seed, batch, classes, smoothing):
    logits, labels = numbers(seed, batch, classes), np.random.default_rng(seed).integers(0, classes, batch)
    targets = np.full((batch, classes), smoothing / classes)
    targets[np.arange(batch), labels] += 1 - smoothing
    expected = -(targets * np.log(softmax(logits))).sum(axis=1).mean()
    x, y = torch.tensor(logits, dtype=torch.float32), torch.tensor(labels)
    for found in (
        LabelSmoothingCrossEntropy(smoothing)(x, y),
        F.cross_entropy(x, y, label_smoothing=smoothing),
        SoftTargetCrossEntropy()(x, torch.tensor(targets, dtype=torch.float32)),
    ):
        np.testing.assert_allclose(found.item(), expected, **EXACT)


def test_mixed_targets():
    """Mixup of two pictures: the loss is the mixture of their losses, each label smoothed."""
    from timm.data import Mixup

    recipe = get_recipe("paper_l1")
    mixup = Mixup(recipe.mixup, recipe.cutmix, label_smoothing=recipe.label_smoothing, num_classes=10)
    labels = torch.tensor([1, 4, 4, 7])
    np.random.seed(3)
    _, targets = mixup(torch.zeros(4, 3, 32, 32), labels)
    share = (targets[0, 1] - 0.01).item() / 0.9  # 0.9 of a label at its class, and 0.1 / 10 everywhere
    assert 0 < share < 1 and targets.sum(dim=1).tolist() == pytest.approx([1] * 4)
    x = torch.tensor(numbers(5, 4, 10), dtype=torch.float32)
    found = SoftTargetCrossEntropy()(x, targets)
    torch.testing.assert_close(found, F.cross_entropy(x, targets), **EXACT)
    both = [F.cross_entropy(x, y, label_smoothing=0.1) for y in (labels, labels.flip(0))]
    torch.testing.assert_close(found, share * both[0] + (1 - share) * both[1], **EXACT)


# --- distillation (arXiv 2012.12877, equations 2 and 3)


@given(
    seed=st.integers(0, 1000), batch=st.integers(1, 5), classes=st.integers(2, 12), alpha=st.floats(0, 1),
    tau=st.floats(0.5, 5), class_loss=st.floats(0, 5),
)  # fmt: skip
@settings(max_examples=40, deadline=None)
def test_distillation(seed, batch, classes, alpha, tau, class_loss):
    student, teacher = numbers(seed, batch, classes), numbers(seed + 1, batch, classes)
    tensors = [torch.tensor(v, dtype=torch.float32) for v in (class_loss, student, teacher)]

    best = teacher.argmax(axis=1)
    hard = -np.log(softmax(student)[np.arange(batch), best]).mean()
    found = distillation_loss(*tensors, "hard", alpha, tau)  # the temperature has no part in it
    np.testing.assert_allclose(found.item(), (1 - alpha) * class_loss + alpha * hard, **EXACT)

    p, q = softmax(teacher / tau), softmax(student / tau)
    soft = (p * (np.log(p) - np.log(q))).sum() * tau**2 / (batch * classes)
    found = distillation_loss(*tensors, "soft", alpha, tau)
    np.testing.assert_allclose(found.item(), (1 - alpha) * class_loss + alpha * soft, **EXACT)
    _, x, y = tensors
    divergence = F.kl_div(F.log_softmax(x / tau, 1), F.log_softmax(y / tau, 1), reduction="none", log_target=True)
    written_out = (1 - alpha) * tensors[0] + alpha * tau**2 * divergence.mean()  # over batch times classes
    torch.testing.assert_close(found, written_out, **EXACT)


def test_the_gradient_of_distillation():
    """Hard: softmax minus the teacher's class. Soft: tau (q - p). The class head has its share from the criterion."""
    x, y = (torch.tensor(numbers(seed, 3, 5), dtype=torch.float64) for seed in (1, 2))
    tau, alpha, class_loss = 2.0, 0.3, torch.tensor(1.5, dtype=torch.float64, requires_grad=True)
    x.requires_grad_()
    distillation_loss(class_loss, x, y, "hard", alpha).backward()
    expected = alpha * (x.detach().softmax(1) - F.one_hot(y.argmax(1), 5)) / 3
    torch.testing.assert_close(x.grad, expected, **EXACT)
    assert class_loss.grad.item() == pytest.approx(1 - alpha)
    x.grad = None
    distillation_loss(class_loss, x, y, "soft", alpha, tau).backward()
    expected = alpha * tau * ((x.detach() / tau).softmax(1) - (y / tau).softmax(1)) / 15
    torch.testing.assert_close(x.grad, expected, **EXACT)
