import copy
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from conftest import shared
from swiftformer.data.detection import open_detection
from swiftformer.data.detection_loaders import (
    DetectionEvaluationLoader,
    DetectionSample,
    DetectionTargets,
    DetectionTrainingLoader,
    collate,
)
from swiftformer.data.detection_transforms import DetectionAugmentation, MultiScaleAugmentation, MultiScaleResize
from swiftformer.data.epoch_loader import seed_generators
from swiftformer.image_processing import Preprocessing
from test_detection_data import make

COLORS = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 0], [0, 255, 255]], dtype=np.uint8)
MEAN = (0.0, 0.0, 0.0)


def painted(seed, height, width, count):
    """Objects on black, rectangles or ellipses, each in its own colour; what another hides is not in its mask."""
    rng = np.random.default_rng(seed)
    owner = np.full((height, width), -1)
    rows, columns = np.indices((height, width))
    for index in range(count):
        y, x = rng.integers(0, height), rng.integers(0, width)
        y1, x1 = rng.integers(y + 1, height + 1), rng.integers(x + 1, width + 1)
        inside = (rows >= y) & (rows < y1) & (columns >= x) & (columns < x1)
        if rng.random() < 0.5:
            spread = ((rows + 0.5 - (y + y1) / 2) / (y1 - y)) ** 2 + ((columns + 0.5 - (x + x1) / 2) / (x1 - x)) ** 2
            inside &= spread <= 0.25
        owner[inside] = index
    shown = [index for index in range(count) if (owner == index).any()]
    masks = np.array([owner == index for index in shown], dtype=np.uint8).reshape(-1, height, width)
    pixels = np.zeros((height, width, 3), np.uint8)
    for place, mask in enumerate(masks):
        pixels[mask > 0] = COLORS[place]
    return Image.fromarray(pixels), np.array([box(mask) for mask in masks]).reshape(-1, 4), masks


def box(mask):
    """x0, y0, x1, y1 around what is true."""
    rows, columns = np.flatnonzero(np.asarray(mask).any(1)), np.flatnonzero(np.asarray(mask).any(0))
    return [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]


def corners(target, height, width):
    x, y, across, down = (target["boxes"].double() * torch.tensor([width, height] * 2)).T.numpy()
    return np.stack([x - across / 2, y - down / 2, x + across / 2, y + down / 2], axis=1)


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    height=st.integers(4, 60),
    width=st.integers(4, 60),
    size=st.tuples(st.integers(8, 70), st.integers(8, 70)),
    flips=st.tuples(st.sampled_from([0.0, 0.5, 1.0]), st.sampled_from([0.0, 0.5, 1.0])),
    count=st.integers(0, 5),
)
def test_without_scaling_everything_is_exact(seed, height, width, size, flips, count):
    image, boxes, masks = painted(seed, height, width, count)
    transform = DetectionAugmentation(
        size,
        scale=(1.0, 1.0),
        horizontal_flip=flips[0],
        vertical_flip=flips[1],
        color_distortion=0,
        mean=MEAN,
        min_visible=0.0,
    )
    seed_generators(seed)
    pixels, target = transform(image, boxes, np.arange(len(boxes)), masks)
    assert pixels.shape == (3, *size) and pixels.dtype == torch.uint8
    assert target["masks"].shape == (len(target["boxes"]), *size) and target["masks"].dtype == torch.bool
    kept = target["class_labels"].tolist()
    found = corners(target, *size)
    for index, color in enumerate(COLORS[: len(boxes)]):
        shown = (pixels.numpy() == color[:, None, None]).all(0)
        if index in kept:
            place = kept.index(index)
            assert np.array_equal(target["masks"][place].numpy(), shown)
            assert np.allclose(found[place], box(shown), atol=1e-3)
        else:
            assert not shown.any()
    inside = min(height, size[0]) * min(width, size[1])
    assert (pixels > 0).any(0).sum() <= inside


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    height=st.integers(20, 70),
    width=st.integers(20, 70),
    scale=st.sampled_from([(0.4, 0.9), (1.1, 2.0), (0.3, 3.0)]),
    short_side=st.sampled_from([0, 33, 80]),
    whole=st.booleans(),
)
def test_scaling_keeps_picture_mask_and_box_within_a_pixel(seed, height, width, scale, short_side, whole):
    """One white rectangle on black: the picture's blurred edge, the mask's and the box's are at one place."""
    rng = np.random.default_rng(seed)
    y, x = rng.integers(0, height - 10), rng.integers(0, width - 10)
    y1, x1 = rng.integers(y + 8, height + 1), rng.integers(x + 8, width + 1)
    mask = np.zeros((1, height, width), np.uint8)
    mask[0, y:y1, x:x1] = 1
    options = {"horizontal_flip": 0.5, "vertical_flip": 0.5, "color_distortion": 0, "mean": MEAN}
    if whole:
        transform = MultiScaleAugmentation((24, 50, 90), 120, **options)
    else:
        transform = DetectionAugmentation((64, 48), scale=scale, short_side=short_side, min_visible=0.1, **options)
    image = Image.fromarray(np.repeat(mask[0][..., None] * 255, 3, axis=2))
    seed_generators(seed)
    pixels, target = transform(image, np.array([[x, y, x1, y1]]), np.array([3]), mask)
    seed_generators(seed)
    plain = transform(image, np.array([[x, y, x1, y1]]), np.array([3]))[1]
    assert plain["class_labels"].tolist() in ([3], []) and "masks" not in plain
    shown = pixels[0].numpy() >= 128
    if not len(target["boxes"]):
        return
    assert target["class_labels"].tolist() == [3]
    found, drawn = corners(target, *pixels.shape[1:])[0], target["masks"][0].numpy()
    assert np.abs(found - box(drawn)).max() <= 1 + 1e-3
    if shown.any():  # an object that is cut down to part of a pixel's width may not reach half of the brightness
        assert np.abs(np.array(box(shown)) - box(drawn)).max() <= 1
        disagree = shown != drawn
        edge = (shown.sum(0) > 0).sum() * 2 + (shown.sum(1) > 0).sum() * 2
        assert disagree.sum() <= edge + 4
    assert np.abs(found - corners(plain, *pixels.shape[1:])[0]).max() <= 1 + 1e-3
    assert (found >= -1e-3).all() and (found[2:] <= np.array(pixels.shape[:0:-1]) + 1e-3).all()


def test_what_is_hardly_visible_is_dropped():
    image, boxes = Image.new("RGB", (100, 100)), np.array([[0, 0, 100, 10], [45, 45, 55, 55], [0.0, 0, 100, 100]])
    seen = {0.0: set(), 0.25: set(), 0.9: set()}
    for share, labels in seen.items():
        transform = DetectionAugmentation(50, scale=(1.0, 1.0), color_distortion=0, min_visible=share)
        for seed in range(60):
            seed_generators(seed)
            target = transform(image, boxes, np.arange(3))[1]
            labels.update(target["class_labels"].tolist())
            assert ((target["boxes"][:, 2:] * 50) >= 1).all()
    assert seen == {0.0: {0, 1, 2}, 0.25: {0, 1, 2}, 0.9: {1}}
    # A half of the first one at most and a quarter of the third fit in.
    empty = transform(image, np.zeros((0, 4)), np.zeros(0), np.zeros((0, 100, 100), np.uint8))[1]
    assert {key: tuple(value.shape) for key, value in empty.items()} == {
        "class_labels": (0,),
        "boxes": (0, 4),
        "masks": (0, 50, 50),
    }


def test_a_thin_picture_is_not_made_as_long_as_it_takes():
    thin = Image.new("RGB", (20, 20_000))
    size = MultiScaleResize((800,), sys.maxsize).make_params([thin])["size"]
    assert size == [3200, 3]
    assert MultiScaleResize((800,), 1333).make_params([Image.new("RGB", (600, 900))])["size"] == [1200, 800]


def test_a_crop_is_what_resizing_first_would_give():
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (90, 120, 3), dtype=np.uint8))
    transform = DetectionAugmentation((40, 40), scale=(0.7, 0.7), horizontal_flip=0, color_distortion=0)
    pixels = transform(image, np.zeros((0, 4)), np.zeros(0))[0].permute(1, 2, 0).numpy().astype(int)
    resized = np.asarray(image.resize((84, 63), Image.Resampling.BILINEAR)).astype(int)
    least = min(
        np.abs(resized[top : top + 40, left : left + 40] - pixels).max() for top in range(24) for left in range(45)
    )
    assert least <= 2


def test_colours_change_nothing_else_and_the_generator_decides():
    image, boxes, masks = painted(3, 40, 50, 4)
    outcomes = []
    for strength, seed in ((1.0, 5), (1.0, 5), (0, 5), (1.0, 6)):
        seed_generators(seed)
        outcomes.append(
            DetectionAugmentation(32, color_distortion=strength)(image, boxes, np.arange(len(boxes)), masks)
        )
    (first, target), (again, same), (plain, undistorted), (other, _) = outcomes
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert all(torch.equal(target[key], same[key]) and torch.equal(target[key], undistorted[key]) for key in target)
    assert first.shape == plain.shape


@pytest.mark.parametrize(
    "make_it",
    [
        lambda: DetectionAugmentation(0),
        lambda: DetectionAugmentation((4, 0)),
        lambda: DetectionAugmentation(8, scale=(2.0, 1.0)),
        lambda: DetectionAugmentation(8, short_side=-1),
        lambda: DetectionAugmentation(8, horizontal_flip=1.5),
        lambda: DetectionAugmentation(8, min_visible=-0.1),
        lambda: DetectionAugmentation(8, color_distortion=-1),
        lambda: MultiScaleResize((), 10),
        lambda: MultiScaleResize((800,), 600),
        lambda: MultiScaleAugmentation((0,)),
    ],
)
def test_settings_that_cannot_be(make_it):
    with pytest.raises(ValueError, match=r"expected .*, found"):
        make_it()


# Batches


def sample(height, width, place=0):
    target = {
        "class_labels": torch.tensor([1]),
        "boxes": torch.tensor([[0.5, 0.5, 1.0, 1.0]]),
        "masks": torch.ones(1, height, width, dtype=torch.bool),
    }
    return DetectionSample(torch.full((3, height, width), 200, dtype=torch.uint8), target, place, place)


def test_collate_pads_and_boxes_follow():
    samples = [sample(40, 50, 4), sample(64, 20, 0)]
    before = copy.deepcopy(samples)
    batch = collate(samples, fill=(1, 2, 3))
    assert batch.pixels.shape == (2, 3, 64, 64) and batch.pixels.is_contiguous(memory_format=torch.channels_last)
    assert batch.indices.tolist() == [4, 0] and batch.unreadable == 4
    for index, (height, width) in enumerate(((40, 50), (64, 20))):
        target = batch.targets[index]
        assert torch.allclose(corners_tensor(target), torch.tensor([0.0, 0, width / 64, height / 64]))
        assert target["masks"].shape == (1, 64, 64) and target["masks"].sum() == height * width
        assert (batch.pixels[index][:, :height, :width] == 200).all()
        outside = batch.pixels[index].permute(1, 2, 0)[~target["masks"][0]]
        assert (outside == torch.tensor([1, 2, 3])).all()
    assert all(torch.equal(a.target["boxes"], b.target["boxes"]) for a, b in zip(samples, before, strict=True))
    assert collate(samples[:1], divisor=1).pixels.shape == (1, 3, 40, 50)
    moved = batch.targets.to("cpu", non_blocking=True)
    assert isinstance(moved, DetectionTargets) and torch.equal(moved[0]["boxes"], batch.targets[0]["boxes"])


def corners_tensor(target):
    x, y, across, down = target["boxes"][0]
    return torch.stack([x - across / 2, y - down / 2, x + across / 2, y + down / 2])


@pytest.mark.parametrize("masks", [False, True])
def test_training_batches_repeat(tmp_path, masks):
    source = open_detection(make(tmp_path, "coco"), "train", masks=masks)
    for transform in (DetectionAugmentation(32), MultiScaleAugmentation((20, 30), 50)):
        batches = [
            list(DetectionTrainingLoader(source, transform, 2, workers, seed=1).batches(epoch))
            for workers, epoch in ((0, 2), (1, 2), (0, 3))
        ]
        assert [len(found) for found in batches] == [3, 3, 3]
        assert sorted(torch.cat([batch.indices for batch in batches[0]]).tolist()) == list(range(6))
        for one, other in zip(*batches[:2], strict=True):
            assert torch.equal(one.pixels, other.pixels) and isinstance(other.targets, DetectionTargets)
            for first, second in zip(one.targets, other.targets, strict=True):
                assert first.keys() == second.keys() and ("masks" in first) == masks
                assert all(torch.equal(first[key], second[key]) for key in first)
        assert not all(torch.equal(a.indices, b.indices) for a, b in zip(batches[0], batches[2], strict=True))
    shares = [DetectionTrainingLoader(source, transform, 1, 0, rank, 2).batches(0) for rank in range(2)]
    places = [int(batch.indices[0]) for share in shares for batch in share]
    assert sorted(places) == list(range(6))
    with pytest.raises(ValueError, match="expected at least one batch of 8 training images, found 6"):
        DetectionTrainingLoader(source, transform, 8, 0)


def test_crowds_are_not_learned_from(tmp_path):
    source = open_detection(make(tmp_path, "coco"), "train", masks=True)
    source._crowd[1:3] = True
    batch = next(DetectionTrainingLoader(source, MultiScaleAugmentation((60,), 90), 6, workers=0).batches(0))
    counts = {
        int(index): len(target["class_labels"]) for index, target in zip(batch.indices, batch.targets, strict=True)
    }
    assert counts == {0: 2, 1: 4, 2: 0, 3: 4, 4: 4, 5: 0}


@pytest.mark.parametrize("short_side, size", [(None, (60, 80)), (0, (30, 40)), (15, (15, 20))])
def test_evaluation_gives_each_picture_once(tmp_path, short_side, size):
    source = open_detection(make(tmp_path, "coco"), "train")
    preprocessing = Preprocessing(resize="shortest", resize_to=60, size=(50, 50))
    if short_side is not None:
        preprocessing = preprocessing.uncropped(short_side)
    found = [sample for rank in range(2) for sample in DetectionEvaluationLoader(source, preprocessing, rank, rank, 2)]
    assert sorted(index for *_, index in found) == list(range(6))
    assert all(pixels.shape == (1, 3, *size) and whole == (30, 40) for pixels, whole, _ in found)
    pixels = next(iter(DetectionEvaluationLoader(source, preprocessing.uncropped(0), 0)))[0]
    assert np.allclose(pixels[0].numpy(), preprocessing.uncropped(0).prepare(source.image(0)))


def test_real_pictures():
    source = open_detection(shared("data", "nuclei"), "val", masks=True)
    transform = DetectionAugmentation(128, short_side=256, horizontal_flip=0.5, vertical_flip=0.5)
    batch = next(DetectionTrainingLoader(source, transform, 8, workers=0).batches(0))
    count = 0
    for target in batch.targets:
        found = corners(target, 128, 128)
        for mask, edges in zip(target["masks"].numpy(), found, strict=True):
            assert np.abs(np.array(box(mask)) - edges).max() <= 1.01
            count += 1
    assert count > 50
