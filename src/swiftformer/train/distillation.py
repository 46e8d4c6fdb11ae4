"""Distillation from a teacher of choice (arXiv 2012.12877, section 4): the teacher, and the two forms of the loss."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from swiftformer.image_processing import IMAGENET_MEAN, IMAGENET_STD
from swiftformer.labels import labels_of
from swiftformer.locate import CheckpointError
from swiftformer.messages import one_line

logger = logging.getLogger(__name__)


class Teacher(nn.Module):
    """A frozen classifier that takes the student's pixels and gives its own logits.

    Pixels are brought from the student's normalisation and size to the teacher's.

    Args:
        network: maps `(B, 3, h, w)` to logits `(B, classes)`, or to an output that has `logits`.
        mean, std: the teacher's normalisation of values in [0, 1].
        size: the teacher's input side in pixels; None takes images as they come.
        student_mean, student_std: the normalisation of the pixels that it will be given.
    """

    offset: Tensor
    factor: Tensor

    def __init__(
        self,
        network: nn.Module,
        mean: tuple[float, ...] = IMAGENET_MEAN,
        std: tuple[float, ...] = IMAGENET_STD,
        size: int | None = None,
        student_mean: tuple[float, ...] = IMAGENET_MEAN,
        student_std: tuple[float, ...] = IMAGENET_STD,
    ) -> None:
        super().__init__()
        self.network = network.requires_grad_(False).eval()
        self.size = size
        ours, theirs, m, s = (torch.tensor(v).view(1, -1, 1, 1) for v in (student_mean, mean, student_std, std))
        self.register_buffer("offset", (ours - theirs) / s)
        self.register_buffer("factor", m / s)

    def train(self, mode: bool = True) -> Teacher:
        """Stay in eval mode."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, pixels: Tensor) -> Tensor:
        """`(B, 3, H, W)` in the student's normalisation to logits `(B, classes)` float32."""
        pixels = pixels * self.factor + self.offset
        if self.size is not None and pixels.shape[-2:] != (self.size, self.size):
            pixels = F.interpolate(pixels, (self.size, self.size), mode="bicubic", antialias=True)
        output = self.network(pixels)
        return (output if isinstance(output, Tensor) else output.logits).float()


def load_teacher(
    reference: str,
    num_labels: int,
    student_mean: tuple[float, ...] = IMAGENET_MEAN,
    student_std: tuple[float, ...] = IMAGENET_STD,
    classes: Sequence[str] | None = None,
) -> Teacher:
    """Load a teacher: a checkpoint of this package, a timm model, or a transformers image classifier.

    Args:
        reference: what `swiftformer.load` takes; a timm name (`regnety_160.deit_in1k`) or `local-dir:FOLDER`; a
            transformers hub id or folder.
        num_labels: classes of the student, which the teacher must share.
        classes: their names; those that the teacher knows as well have to be in the same places.

    Raises:
        CheckpointError: not found, not to be downloaded, or with classes of another number or order.
    """
    import timm

    name = reference.removeprefix("timm/")
    if reference.startswith("local-dir:") or timm.is_model(name.split(".")[0]):
        network, mean, std, size, found, names = _from_timm(name, reference)
    else:
        network, mean, std, size, found, names = _from_transformers(reference)
    if found != num_labels:
        raise CheckpointError(f"teacher {reference}: expected {num_labels} classes, as the data has, found {found}")
    for place, (ours, theirs) in enumerate(zip(classes or (), names, strict=False)):
        if ours != theirs and ours in names:
            raise CheckpointError(
                f"teacher {reference}: expected the classes in the data's order, found {ours} in place "
                f"{names.index(ours)} instead of {place}"
            )
    logger.info("teacher %s: %d classes, %d pixels", reference, found, size)
    return Teacher(network, mean, std, size, student_mean, student_std)


# Network, mean, std, size, number of classes, and their names where they are known.
Loaded = tuple[nn.Module, tuple[float, ...], tuple[float, ...], int, int, list[str]]


def _from_timm(name: str, reference: str) -> Loaded:
    import timm
    from timm.data import resolve_data_config

    try:
        network: Any = timm.create_model(name, pretrained=True)
    except Exception as error:
        raise CheckpointError(
            f"teacher {reference}: cannot be downloaded ({one_line(error)}); fetch it where there is a network and "
            f"give its folder as --set teacher=local-dir:FOLDER, name another with --set teacher=, or do without by "
            f"--set distillation=none"
        ) from error
    config: dict[str, Any] = resolve_data_config({}, model=network)
    names = list(network.pretrained_cfg.get("label_names") or ())
    return network, config["mean"], config["std"], config["input_size"][-1], int(network.num_classes), names


def _from_transformers(reference: str) -> Loaded:
    from swiftformer.checkpoints import load

    try:
        ours: Any = load(reference, task="classification")
        preprocessing = ours.preprocessing
        size, found = preprocessing.size[0], ours.num_labels
        return ours, preprocessing.mean, preprocessing.std, size, found, _names(ours)
    except CheckpointError as error:
        first = error
    from transformers.models.auto import AutoImageProcessor, AutoModelForImageClassification

    try:
        network: Any = AutoModelForImageClassification.from_pretrained(reference)
        processor: Any = AutoImageProcessor.from_pretrained(reference)
    except (OSError, ValueError):
        raise CheckpointError(f"teacher {first}") from first
    size = dict(processor.crop_size or {}) if getattr(processor, "do_center_crop", False) else dict(processor.size)
    side = int(size.get("height") or size.get("shortest_edge") or 224)
    mean, std = tuple(processor.image_mean), tuple(processor.image_std)
    return network, mean, std, side, int(network.config.num_labels), _names(network)


def _names(network: Any) -> list[str]:
    return list(labels_of(network.config))


def distillation_loss(
    class_loss: Tensor,
    distillation_logits: Tensor,
    teacher_logits: Tensor,
    kind: Literal["hard", "soft"],
    alpha: float = 0.5,
    tau: float = 1.0,
) -> Tensor:
    """`(1 - alpha) * class_loss + alpha * d`, where d compares the distillation head with the teacher.

    Hard: cross-entropy with the teacher's best class. Soft: KL divergence at temperature `tau`, times `tau**2`, over
    the number of elements.

    Args:
        class_loss: the criterion on the class head, a scalar.
        distillation_logits, teacher_logits: `(B, classes)`.
    """
    if kind == "hard":
        distance = F.cross_entropy(distillation_logits, teacher_logits.argmax(dim=1))
    else:
        distance = (
            F.kl_div(
                F.log_softmax(distillation_logits / tau, dim=1),
                F.log_softmax(teacher_logits / tau, dim=1),
                reduction="sum",
                log_target=True,
            )
            * tau**2
            / distillation_logits.numel()
        )
    return (1 - alpha) * class_loss + alpha * distance
