"""Training recipes: functions that return a frozen `Recipe`, and the overrides that the command line gives."""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

from swiftformer.image_processing import IMAGENET_MEAN, IMAGENET_STD, RESAMPLING, Preprocessing

DEFAULT_TEACHER = "regnety_160.deit_in1k"  # RegNetY-16GF with the DeiT weights, 82.9% top-1


@dataclass(frozen=True)
class Recipe:
    """Everything that decides a training run besides data, model and machine.

    Attributes:
        epochs, warmup_epochs: length of the run, and of its linear warm-up.
        batch_size: images that go through the model at once, in every process.
        total_batch_size: images per update of the weights, over all processes, reached by accumulating gradients; None
            for `batch_size` in every process. Where that alone is more, every process takes fewer at once.
        lr, warmup_lr, min_lr: peak, first and last learning rate of the cosine schedule (stepped every update).
        optimizer: timm's name, such as `adamw` or `muon`.
        weight_decay: one-dimensional parameters (biases, norms) have none.
        optimizer_eps: epsilon of AdamW; other optimizers keep their own.
        clip_agc: factor of adaptive gradient clipping (arXiv 2102.06171); 0 switches it off.
        ema_decay: of the exponential moving average of the weights; 0 switches it off.
        ema_warmup: let the decay grow from 0 at the beginning.
        drop_path_rate: stochastic depth of the model.
        image_size: side of the square input, in pixels.
        progressive_sizes: smaller sides to begin with, each for an equal share of the first 60% of the epochs: early
            epochs cost less (arXiv 2104.00298, section 4).
        crop_scale, crop_ratio: area and aspect ratio of random resized crops.
        horizontal_flip: probability.
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
        crop_pct: in evaluation the short side is resized to `image_size / crop_pct`, then the centre is cropped.
        mean, std: normalisation of values in [0, 1].
        cache_teacher: ask the teacher once about every image, as evaluation prepares it, instead of in every step
            about the augmented one; cheaper, and cannot be combined with Mixup and CutMix.
        precision: `bf16` or `fp16` for autocast (fp16 with scaling of the loss), or `fp32`.
        sync_batchnorm: BatchNorm over the batches of all processes.
        channels_last: memory format of model and images.
        compile: run the model through torch.compile.
        evaluate_every: epochs between two evaluations; the last epoch always has one.
        seed: of weights, order and augmentation.
    """

    epochs: int = 300
    warmup_epochs: int = 5
    batch_size: int = 128
    total_batch_size: int | None = None
    lr: float = 2e-3
    warmup_lr: float = 1e-6
    min_lr: float = 1e-5
    optimizer: str = "adamw"
    weight_decay: float = 0.025
    optimizer_eps: float = 1e-8
    clip_agc: float = 0.01
    ema_decay: float = 0.99996
    ema_warmup: bool = True
    drop_path_rate: float = 0.0
    image_size: int = 224
    progressive_sizes: tuple[int, ...] = ()
    crop_scale: tuple[float, float] = (0.08, 1.0)
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    horizontal_flip: float = 0.5
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
        if self.sampler == "balanced" and self.repeated_augmentation > 1:
            raise ValueError(
                f"the balanced sampler repeats images already: expected repeated_augmentation of 1, "
                f"found {self.repeated_augmentation}"
            )
        if self.sampler == "balanced" and self.class_weights == "balanced":
            raise ValueError("balance the classes once: expected either class_weights or sampler, found both balanced")
        if self.cache_teacher and self.mixes:
            raise ValueError("a cached teacher knows nothing of mixed images: expected mixup and cutmix of 0")
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

    def batches(self, world_size: int = 1) -> tuple[int, int]:
        """Images that every process takes at once, and how many such batches make an update of the weights.

        Raises:
            ValueError: `total_batch_size` cannot be divided so.
        """
        total = self.total_batch_size
        if total is None:
            return self.batch_size, 1
        if total % world_size:
            raise ValueError(
                f"expected a number of processes that divides total_batch_size ({total}), found {world_size}"
            )
        share = total // world_size
        for batch_size in range(min(self.batch_size, share), 0, -1):
            if share % batch_size == 0 and not (self.mixes and batch_size % 2):
                return batch_size, share // batch_size
        raise ValueError(
            f"Mixup and CutMix need an even number of images per process, found {share} (total_batch_size {total} in "
            f"{world_size} processes)"
        )

    @property
    def mixes(self) -> bool:
        """Whether batches are mixed by Mixup or CutMix."""
        return (self.mixup > 0 or self.cutmix > 0) and self.mix_prob > 0

    def image_size_at(self, epoch: int) -> int:
        """Side of the training images in an epoch, counted from 0."""
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


def paper_xs() -> Recipe:
    """ImageNet-1k as in the paper and the authors' code, for XS: no RandAugment, no Mixup, no CutMix.

    swiftformer train --data imagenet --variant xs --recipe paper_xs

    The learning rate is that of the authors' code (2e-3; the paper's text says 1e-3). Published: 75.7% top-1 after
    about 36 hours on eight A100; not run by this project.
    """
    return Recipe(
        epochs=300,
        warmup_epochs=5,
        batch_size=128,
        total_batch_size=2048,
        lr=2e-3,
        warmup_lr=1e-6,
        min_lr=1e-5,
        weight_decay=0.025,
        optimizer_eps=1e-8,
        clip_agc=0.01,
        ema_decay=0.99996,
        ema_warmup=False,
        image_size=224,
        crop_pct=0.875,
        color_jitter=0.4,
        interpolation="bicubic",
        random_erasing=0.25,
        repeated_augmentation=3,
        label_smoothing=0.1,
        distillation="hard",
        distillation_alpha=0.5,
        distillation_tau=1.0,
    )


def paper_s() -> Recipe:
    """As `paper_xs`, with RandAugment. Published for S: 78.5% top-1; not run by this project."""
    return dataclasses.replace(paper_xs(), auto_augment="rand-m9-mstd0.5-inc1")


def paper_l1() -> Recipe:
    """As `paper_s`, with Mixup and CutMix. Published for L1: 80.9% top-1; not run by this project."""
    return dataclasses.replace(paper_s(), mixup=0.8, cutmix=1.0, mix_prob=1.0, mix_switch_prob=0.5)


def paper_l3() -> Recipe:
    """As `paper_l1`. Published for L3: 83.0% top-1; not run by this project."""
    return paper_l1()


def small_images() -> Recipe:
    """From scratch on small pictures (CIFAR and the like), at 64 pixels. On a GPU, set `epochs=300`.

    swiftformer train --data cifar10 --variant xs --recipe small_images

    The bundled model's card tells hardware, hours and accuracy.
    """
    return Recipe(
        epochs=48,
        warmup_epochs=2,
        batch_size=128,
        lr=2e-3,
        weight_decay=0.05,
        ema_decay=0.999,
        image_size=64,
        progressive_sizes=(32, 48),
        crop_scale=(0.45, 1.0),
        auto_augment="rand-m5-mstd0.5-inc1",
        random_erasing=0.1,
        evaluate_every=4,
    )


def finetune() -> Recipe:
    """From a checkpoint to one's own classes.

    swiftformer train --data FOLDER --model CHECKPOINT --recipe finetune
    """
    return Recipe(
        epochs=30,
        warmup_epochs=3,
        batch_size=32,
        lr=2e-4,
        min_lr=1e-6,
        ema_decay=0.999,
        crop_scale=(0.35, 1.0),
        auto_augment="rand-m7-mstd0.5-inc1",
        crop_pct=0.875,
    )


def smoke() -> Recipe:
    """Two epochs of small batches: shows in seconds that data, model and machine work together."""
    return Recipe(epochs=2, warmup_epochs=1, batch_size=16, image_size=32, ema_decay=0.9, precision="fp32")


RECIPES: dict[str, Callable[[], Recipe]] = {
    "paper_xs": paper_xs,
    "paper_s": paper_s,
    "paper_l1": paper_l1,
    "paper_l3": paper_l3,
    "small_images": small_images,
    "finetune": finetune,
    "smoke": smoke,
}


def get_recipe(name: str, settings: Iterable[str] = ()) -> Recipe:
    """A recipe by name with overrides.

    Args:
        name: a key of `RECIPES`.
        settings: `key=value`, each key a field of `Recipe`; tuples are written `0.5,1`.

    Raises:
        ValueError: unknown recipe or field, or a value of another type.
    """
    if name not in RECIPES:
        raise ValueError(f"unknown recipe {name!r}: expected one of {', '.join(RECIPES)}")
    types_ = typing.get_type_hints(Recipe)
    changes = {}
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals or key not in types_:
            raise ValueError(f"expected key=value with a key of {', '.join(types_)}; found {setting!r}")
        try:
            changes[key] = _parse(text, types_[key])
        except ValueError:
            kind = types_[key]
            expected = str(kind).replace("typing.", "") if typing.get_origin(kind) else kind.__name__
            raise ValueError(f"{key}: expected {expected}, found {text!r}") from None
    return dataclasses.replace(RECIPES[name](), **changes)


def _parse(text: str, kind: Any) -> Any:
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        if text not in args:
            raise ValueError(text)
        return text
    if origin is types.UnionType:  # X | None
        return None if text.lower() == "none" else _parse(text, args[0])
    if origin is tuple:
        values = [value for value in text.strip("()[]").split(",") if value.strip()]
        if args[-1] is Ellipsis:
            return tuple(_parse(value.strip(), args[0]) for value in values)
        if len(values) != len(args):
            raise ValueError(text)
        return tuple(_parse(value.strip(), arg) for value, arg in zip(values, args, strict=True))
    if kind is bool:
        if text.lower() not in ("true", "false"):
            raise ValueError(text)
        return text.lower() == "true"
    return kind(text)
