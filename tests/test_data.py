import io
import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from swiftformer.data.epoch_loader import seed_generators
from swiftformer.data.loaders import Normalization, TrainingLoader, _augmentation, _needed, evaluation_loader
from swiftformer.data.samplers import BalancedSampler, training_order
from swiftformer.data.sources import open_source
from swiftformer.image_processing import Preprocessing
from swiftformer.images import open_image
from swiftformer.train.recipes import get_recipe

SMALL = Preprocessing(size=(32, 32), resize="shortest")


def test_unknown_augmentation(image_folder):
    recipe = get_recipe("smoke", ["auto_augment=foo"])
    with pytest.raises(ValueError, match="auto_augment: expected a policy of timm .*, found 'foo'"):
        TrainingLoader(open_source(image_folder, "train"), recipe, 32, 16, workers=0)


def test_unreadable_pictures_are_named_and_skipped(image_folder, caplog):
    broken = image_folder / "val" / "red" / "3.png"
    broken.write_bytes(b"broken")
    source = open_source(image_folder, "val")
    batches = list(evaluation_loader(source, SMALL, batch_size=4, workers=0))
    assert sum(len(labels) for _, labels, _ in batches) == 15
    assert str(broken) in caplog.text
    (image_folder / "train" / "blue" / "0.png").write_bytes(b"")
    recipe = get_recipe("smoke", ["batch_size=48"])
    batch = next(TrainingLoader(open_source(image_folder, "train"), recipe, 32, 48, workers=0).batches(0))
    assert (
        len(batch.targets) == 48
        and batch.unreadable == 1
        and sorted(batch.indices.tolist())[:2] == [1, 1]
        and "found an empty file" in caplog.text
    )


def test_evaluation_batches_are_the_preprocessing(image_folder):
    source = open_source(image_folder, "val")
    pixels, _, indices = next(iter(evaluation_loader(source, SMALL, batch_size=5, workers=0)))
    assert pixels.shape == (5, 3, 32, 32) and indices.tolist() == [0, 1, 2, 3, 4]
    assert np.array_equal(pixels[2].numpy(), SMALL(source.image(2))[0])


@pytest.mark.parametrize("changes", [(), ("mixup=0.8",), ("cutmix=1",), ("repeated_augmentation=3",)])
def test_training_batches(image_folder, changes):
    recipe = get_recipe("smoke", ["batch_size=12", "auto_augment=rand-m9-mstd0.5-inc1", "random_erasing=1", *changes])
    source = open_source(image_folder, "train")
    loader = TrainingLoader(source, recipe, 32, 12, workers=0)
    normalize = Normalization(recipe, torch.device("cpu"), recipe.random_erasing)
    batches = list(loader.batches(0))
    assert len(batches) == len(loader) == 4
    for pixels, targets, indices, unreadable in batches:
        assert pixels.shape == (12, 3, 32, 32) and pixels.dtype == torch.uint8 and unreadable == 0
        normalized = normalize(pixels)
        assert normalized.shape == (12, 3, 32, 32) and normalized.dtype == torch.float32
        if not recipe.mixes:
            assert [source.labels[index] for index in indices] == targets.tolist()
        if recipe.mixes:
            assert targets.shape == (12, 2)
            torch.testing.assert_close(targets.sum(1), torch.ones(12))
        else:
            assert targets.shape == (12,)


def test_order_depends_on_the_epoch_and_repeats(image_folder):
    source = open_source(image_folder, "train")
    plain = TrainingLoader(source, get_recipe("smoke"), 32, 16, workers=0).sampler
    repeated = get_recipe("smoke", ["repeated_augmentation=3"])
    threefold = TrainingLoader(source, repeated, 32, 16, workers=0).sampler
    assert len(training_order(range(300), repeated, 0, 1)) == 300  # DeiT's own would draw 256
    assert len(training_order(range(30_000), repeated, 0, 1)) == 30_000 // 256 * 256
    plain.set_epoch(0)
    first = list(plain)
    assert sorted(index for index, _ in first) == list(range(48)) and first == list(plain)
    assert len({seed for _, seed in first}) == 48
    plain.set_epoch(1)
    assert not {seed for _, seed in plain} & {seed for _, seed in first}
    assert [index for index, _ in plain] != [index for index, _ in first]
    indices = [index for index, _ in threefold]
    assert len(indices) == 48 and len(set(indices)) == 16


def test_too_few_images(image_folder):
    source, recipe = open_source(image_folder, "train"), get_recipe("smoke", ["batch_size=64"])
    with pytest.raises(ValueError, match="at least one batch of 64 training images, found 48"):
        TrainingLoader(source, recipe, 32, 64, workers=0)


@pytest.mark.parametrize("channels_last", [True, False])
def test_normalisation_is_that_of_timm(image_folder, channels_last):
    """timm's own loader on the same batch; erasing follows the generators, which are seeded alike."""
    from timm.data.loader import PrefetchLoader

    recipe = get_recipe("smoke", ["random_erasing=0.7", f"channels_last={channels_last}"])
    batch = next(TrainingLoader(open_source(image_folder, "train"), recipe, 32, 16, workers=0).batches(0))
    loader = PrefetchLoader(
        [(batch.pixels.clone(), batch.targets)], mean=recipe.mean, std=recipe.std, device=torch.device("cpu"),
        re_prob=0.7, re_mode="pixel",
    )  # fmt: skip
    seed_generators(3)
    ((expected, _),) = loader
    seed_generators(3)
    found = Normalization(recipe, torch.device("cpu"), recipe.random_erasing)(batch.pixels)
    assert torch.equal(found, expected)


@pytest.mark.parametrize("changes", [(), ("repeated_augmentation=3",), ("sampler=balanced",)])
def test_processes_share_the_order_of_one(image_folder, changes):
    """Batch by batch: the same pictures with the same augmentation."""
    (image_folder / "train" / "red" / "3.png").unlink()  # 47 is no multiple of two
    source, recipe = open_source(image_folder, "train"), get_recipe("smoke", ["random_erasing=0", *changes])
    one = list(TrainingLoader(source, recipe, 32, 12, workers=0).batches(3))
    shares = [list(TrainingLoader(source, recipe, 32, 6, workers=0, rank=r, world_size=2).batches(3)) for r in (0, 1)]
    assert len(one) == 3 and all(len(share) >= 3 for share in shares)
    for whole, first, second in zip(one, *shares, strict=False):
        order = torch.stack([torch.arange(6), torch.arange(6, 12)], dim=1).flatten()
        for name in ("pixels", "targets", "indices"):
            together = torch.cat([getattr(first, name), getattr(second, name)])[order]
            assert torch.equal(getattr(whole, name), together)


def test_batches_from_the_middle_of_an_epoch(image_folder):
    source, recipe = open_source(image_folder, "train"), get_recipe("smoke", ["mixup=0.8"])
    loader = TrainingLoader(source, recipe, 32, 6, workers=0)
    whole, part = list(loader.batches(2)), list(loader.batches(2, start=3, stop=7))
    assert len(part) == 4
    for a, b in zip(whole[3:7], part, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_balanced_sampler_draws_every_class_equally_often():
    labels = [0] * 9000 + [2] * 900 + [3] * 100  # no picture of class 1
    sampler = BalancedSampler(labels)
    drawn = torch.bincount(torch.tensor([labels[index] for index in sampler]), minlength=4)
    assert len(sampler) == 10_000 and drawn[1] == 0 and ((drawn[[0, 2, 3]] - 3333).abs() < 200).all()
    sampler.set_epoch(1)
    again = torch.bincount(torch.tensor([labels[index] for index in sampler]), minlength=4)
    assert not torch.equal(again, drawn)


def test_evaluation_is_shared_without_repeating(image_folder):
    source = open_source(image_folder, "val")
    found = []
    for rank in range(3):
        for _, _, indices in evaluation_loader(source, SMALL, batch_size=4, workers=0, rank=rank, world_size=3):
            found += indices.tolist()
    assert sorted(found) == list(range(16))


@settings(max_examples=30, deadline=None)
@given(width=st.integers(64, 900), height=st.integers(64, 900), seed=st.integers(0, 99))
def test_no_crop_of_what_is_decoded_smaller_lacks_pixels(width, height, seed):
    recipe = get_recipe("paper_xs", ["image_size=32", "auto_augment=", "color_jitter=0"])
    crop = _augmentation(recipe, 32).transforms[0]
    short_side = _needed(recipe, 32)
    file = io.BytesIO()
    Image.new("RGB", (width, height)).save(file, "JPEG")
    read = open_image(file, short_side=short_side)
    if read.size == (width, height):
        return
    assert min(read.size) >= short_side
    random.seed(seed)
    _, _, tall, wide = crop.get_params(read, crop.scale, crop.ratio)
    assert min(tall, wide) >= 32
