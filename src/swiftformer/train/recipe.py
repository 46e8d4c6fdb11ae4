"""What decides a training run besides data, model and machine: frozen dataclasses, one for each task."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import ClassVar, Literal

from swiftformer.image_processing import IMAGENET_MEAN, IMAGENET_STD, RESAMPLING, Preprocessing

DEFAULT_TEACHER = "regnety_160.deit_in1k"  # RegNetY-16GF with the DeiT weights, 82.9% top-1
# Fields of the recipes of all tasks.
SHARES = (
    *("drop_path_rate", "horizontal_flip", "vertical_flip", "random_erasing", "mix_prob", "mix_switch_prob"),
    *("min_visible", "nms_threshold", "head_dropout"),
)
AMOUNTS = (
    *("lr", "warmup_lr", "weight_decay", "optimizer_eps", "clip_agc", "mixup", "cutmix", "color_jitter"),
    *("color_distortion", "frozen_stages"),
)


@dataclass(frozen=True)
class TrainingRecipe:
    """What the recipes of all tasks share.

    Attributes:
        epochs, warmup_epochs: length of the run, and of its linear warm-up.
        batch_size: images that go through the model at once, in every process.
        total_batch_size: images per update of the weights, over all processes, reached by accumulating gradients; None
            for `batch_size` in every process. Where that alone is more, every process takes fewer at once. Where the
            processes cannot share it equally, it is a number next to it.
        lr, warmup_lr, min_lr: peak, first and last learning rate.
        schedule: how it falls: with every update by `cosine` or `poly`, a power of 0.9 of what is left of the run, or
            by `multistep`, to a tenth behind each of `milestones`.
        milestones: epochs, counted from 1.
        optimizer: timm's name, such as `adamw` or `muon`.
        weight_decay: one-dimensional parameters (biases, norms) have none.
        optimizer_eps: epsilon of AdamW; other optimizers keep their own.
        clip_agc: factor of adaptive gradient clipping (arXiv 2102.06171); 0 switches it off.
        ema_decay: of the exponential moving average of the weights; 0 switches it off.
        ema_warmup: let the decay grow from 0 at the beginning.
        drop_path_rate: stochastic depth of the model.
        image_size: side of the square input, in pixels.
        horizontal_flip: probability.
        mean, std: normalisation of values in [0, 1].
        precision: `bf16` or `fp16` for autocast (fp16 with scaling of the loss), or `fp32`.
        sync_batchnorm: BatchNorm over the batches of all processes.
        channels_last: memory format of model and images.
        compile: run the model through torch.compile.
        evaluate_every: epochs between two evaluations; the last epoch always has one.
        seed: of weights, order and augmentation.
    """

    task: ClassVar[str]

    epochs: int = 300
    warmup_epochs: int = 5
    batch_size: int = 128
    total_batch_size: int | None = None
    lr: float = 2e-3
    warmup_lr: float = 1e-6
    min_lr: float = 1e-5
    schedule: Literal["cosine", "poly", "multistep"] = "cosine"
    milestones: tuple[int, ...] = ()
    optimizer: str = "adamw"
    weight_decay: float = 0.025
    optimizer_eps: float = 1e-8
    clip_agc: float = 0.01
    ema_decay: float = 0.99996
    ema_warmup: bool = True
    drop_path_rate: float = 0.0
    image_size: int = 224
    horizontal_flip: float = 0.5
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    precision: Literal["bf16", "fp16", "fp32"] = "bf16"
    sync_batchnorm: bool = False
    channels_last: bool = True
    compile: bool = False
    evaluate_every: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.epochs, self.batch_size, self.evaluate_every) < 1 or self.image_size < 32:
            raise ValueError(
                f"expected epochs, batch_size and evaluate_every of at least 1 and image_size of at least 32, "
                f"found {self.epochs}, {self.batch_size}, {self.evaluate_every}, {self.image_size}"
            )
        if not 0 <= self.warmup_epochs <= self.epochs:
            raise ValueError(f"expected warmup_epochs from 0 to epochs ({self.epochs}), found {self.warmup_epochs}")
        if self.total_batch_size is not None and self.total_batch_size < 1:
            raise ValueError(f"expected total_batch_size of at least 1, found {self.total_batch_size}")
        self.expect("a number from 0 to 1", lambda value: 0 <= value <= 1, SHARES)
        self.expect("a number of 0 or more", lambda value: value >= 0, AMOUNTS)
        self.expect("a number of at least 0 and below 1", lambda value: 0 <= value < 1, ("ema_decay",))
        if not 0 <= self.min_lr <= self.lr:
            raise ValueError(f"expected min_lr from 0 to lr ({self.lr}), found {self.min_lr}")

    def expect(self, what: str, fits: Callable[[float], bool], names: Iterable[str]) -> None:
        """Raise ValueError for the first of these fields, if the recipe has it, with a number that does not fit."""
        for name in names:
            if not fits(value := getattr(self, name, 0)):
                raise ValueError(f"{name}: expected {what}, found {value}")

    def batches(self, world_size: int = 1) -> tuple[int, int]:
        """Images that every process takes at once, and how many such batches make an update of the weights."""
        total = self.total_batch_size
        if total is None:
            return self.batch_size, 1
        step = 2 if self.mixes else 1  # Mixup pairs the images of a batch
        fewest = math.ceil(total / (world_size * self.batch_size))
        share, rest = divmod(total, world_size)
        least = min(2, self.batch_size, max(share, 1))  # BatchNorm learns little from single images
        for count in range(fewest, share // least + 1):
            if not rest and share % (count * step) == 0:
                return share // count, count
        # No batches share it equally: among those of about half the size or more, what comes next to it.
        most = self.batch_size - self.batch_size % step
        sizes = {}
        for count in range(fewest, 2 * fewest + 1):
            sizes[count] = max(min(step * round(total / (world_size * count * step)), most), step)
        count = min(sizes, key=lambda count: abs(sizes[count] * count * world_size - total))
        return sizes[count], count

    @property
    def mixes(self) -> bool:
        """Whether batches are mixed by Mixup or CutMix."""
        return False

    def image_size_at(self, epoch: int) -> int:
        """Side of the training images in an epoch, counted from 0."""
        return self.image_size


@dataclass(frozen=True)
class Recipe(TrainingRecipe):
    """Classification.

    Attributes:
        progressive_sizes: smaller sides than `image_size` to begin with, each for an equal share of the first 60% of
            the epochs, the last one excepted: early epochs cost less (arXiv 2104.00298, section 4).
        crop_scale, crop_ratio: area and aspect ratio of random resized crops.
        color_jitter: strength; timm ignores it where `auto_augment` is set.
        auto_augment: timm's name, such as `rand-m9-mstd0.5-inc1`; empty for none.
        interpolation: of resizing.
        random_erasing: probability, per image, filled with noise per pixel.
        repeated_augmentation: copies of an image per epoch.
        mixup, cutmix: alpha of each; 0 switches it off.
        mix_prob, mix_switch_prob: share of batches that are mixed, and of these the share that uses CutMix.
        label_smoothing: share of the target spread over all classes.
        class_weights: `balanced` weighs the loss so that every class counts the same, however many images it has.
        sampler: `balanced` draws every class equally often instead of every image once.
        distillation: `hard` learns the teacher's best class, `soft` its distribution, with the distillation head.
        distillation_alpha: share of the distillation loss.
        distillation_tau: temperature of the soft form.
        teacher: a reference for `swiftformer.train.distillation.load_teacher`.
        cache_teacher: ask the teacher once about every image, as evaluation prepares it, instead of in every step
            about the augmented one; cheaper, and cannot be combined with Mixup and CutMix.
        crop_pct: in evaluation the short side is resized to `image_size / crop_pct`, then the centre is cropped.
    """

    task = "classify"

    progressive_sizes: tuple[int, ...] = ()
    crop_scale: tuple[float, float] = (0.08, 1.0)
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    color_jitter: float = 0.4
    auto_augment: str = ""
    interpolation: str = "bicubic"
    random_erasing: float = 0.25
    repeated_augmentation: int = 1
    mixup: float = 0.0
    cutmix: float = 0.0
    mix_prob: float = 1.0
    mix_switch_prob: float = 0.5
    label_smoothing: float = 0.1
    class_weights: Literal["none", "balanced"] = "none"
    sampler: Literal["shuffle", "balanced"] = "shuffle"
    distillation: Literal["none", "hard", "soft"] = "none"
    distillation_alpha: float = 0.5
    distillation_tau: float = 1.0
    teacher: str = DEFAULT_TEACHER
    cache_teacher: bool = False
    crop_pct: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sampler == "balanced" and self.repeated_augmentation > 1:
            raise ValueError(
                f"the balanced sampler repeats images already: expected repeated_augmentation of 1, "
                f"found {self.repeated_augmentation}"
            )
        if self.sampler == "balanced" and self.class_weights == "balanced":
            raise ValueError("balance the classes once: expected either class_weights or sampler, found both balanced")
        if self.repeated_augmentation < 1:
            raise ValueError(f"repeated_augmentation: expected 1 or more, found {self.repeated_augmentation}")
        if self.cache_teacher and self.distillation == "none":
            raise ValueError("cache_teacher: expected distillation=hard or soft with it, found none")
        if self.cache_teacher and self.mixes:
            raise ValueError("a cached teacher knows nothing of mixed images: expected mixup and cutmix of 0")
        if not 0 < self.crop_scale[0] <= self.crop_scale[1] <= 1 or not 0 < self.crop_ratio[0] <= self.crop_ratio[1]:
            raise ValueError(
                f"expected crop_scale in (0, 1] and a positive crop_ratio, each with the smaller number first, "
                f"found {self.crop_scale} and {self.crop_ratio}"
            )
        if not 0 < self.crop_pct <= 1 or not 0 <= self.label_smoothing < 1:
            raise ValueError(
                f"expected crop_pct in (0, 1] and label_smoothing in [0, 1), "
                f"found {self.crop_pct} and {self.label_smoothing}"
            )
        if not 0 <= self.distillation_alpha <= 1 or self.distillation_tau <= 0:
            raise ValueError(
                f"expected distillation_alpha in [0, 1] and a positive distillation_tau, "
                f"found {self.distillation_alpha} and {self.distillation_tau}"
            )
        if self.mixes and self.batch_size % 2:
            raise ValueError(f"Mixup and CutMix need an even batch_size, found {self.batch_size}")
        if any(not 32 <= size <= self.image_size for size in self.progressive_sizes):
            raise ValueError(
                f"expected progressive_sizes from 32 to image_size ({self.image_size}), found {self.progressive_sizes}"
            )
        if self.interpolation not in (*RESAMPLING, "random"):
            raise ValueError(f"interpolation must be one of {', '.join(RESAMPLING)}, found {self.interpolation!r}")

    @property
    def mixes(self) -> bool:
        """Whether batches are mixed by Mixup or CutMix."""
        return (self.mixup > 0 or self.cutmix > 0) and self.mix_prob > 0

    def image_size_at(self, epoch: int) -> int:
        """Side of the training images in an epoch, counted from 0."""
        if epoch == self.epochs - 1:  # also of a short training
            return self.image_size
        place = int(epoch / (0.6 * self.epochs) * len(self.progressive_sizes))
        return (*self.progressive_sizes, self.image_size)[min(place, len(self.progressive_sizes))]

    @property
    def preprocessing(self) -> Preprocessing:
        """How the trained model wants its images: short side, then centre crop."""
        return Preprocessing(
            size=(self.image_size, self.image_size),
            resize="shortest",
            resize_to=math.floor(self.image_size / self.crop_pct),
            interpolation="bicubic" if self.interpolation == "random" else self.interpolation,
            mean=self.mean,
            std=self.std,
        )
