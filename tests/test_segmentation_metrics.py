import json
import shutil
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.nn import functional as F

from conftest import TINY, randomize
from swiftformer import SwiftFormerConfig, predict_segmentation
from swiftformer.data.masks import VOID
from swiftformer.engines import Engine
from swiftformer.evaluate.segmentation import SegmentationMetrics, best_classes, evaluate_reference, evaluate_segmenter
from swiftformer.image_processing import Preprocessing
from swiftformer.images import ImageError
from swiftformer.predict_segmentation import segment
from swiftformer.segmentation import SwiftFormerForSemanticSegmentation
from swiftformer.segmentation_inference import segment_logits


def measured(predicted, target, classes):
    metrics = SegmentationMetrics(classes)
    metrics.update(torch.as_tensor(predicted), torch.as_tensor(target))
    return metrics


# Metrics


def test_by_hand():
    target = [[0, 0, 0, 1], [1, 1, VOID, 3]]
    predicted = [[0, 0, 1, 1], [1, 3, 0, 3]]
    metrics = measured(predicted, target, 5)
    expected = torch.zeros(5, 5, dtype=torch.long)
    expected[0, 0], expected[0, 1], expected[1, 1], expected[1, 3], expected[3, 3] = 2, 1, 2, 1, 1
    assert torch.equal(metrics.confusion, expected)
    result = metrics.result()
    assert result["iou"] == [pytest.approx(200 / 3), 50.0, None, 50.0, None]
    assert result["accuracy"] == [pytest.approx(200 / 3), pytest.approx(200 / 3), None, 100.0, None]
    assert result["miou"] == pytest.approx((200 / 3 + 100) / 3) and result["pixel_accuracy"] == pytest.approx(500 / 7)
    assert result["mean_accuracy"] == pytest.approx((400 / 3 + 100) / 3)
    assert json.loads(json.dumps(result, allow_nan=False)) == result


def test_a_class_that_is_only_predicted_counts_against():
    result = measured([[0, 2]], [[0, 0]], 3).result()
    assert result["iou"] == [50.0, None, 0.0] and result["miou"] == 25.0 and result["accuracy"] == [50.0, None, None]


maps = st.integers(1, 6).flatmap(
    lambda classes: st.tuples(
        st.just(classes),
        st.lists(
            st.tuples(st.integers(0, classes - 1), st.sampled_from([*range(classes), VOID])), min_size=2, max_size=60
        ),
    )
)


@given(maps)
@settings(deadline=None)
def test_against_itself_and_in_shares(case):
    classes, pairs = case
    predicted, target = torch.tensor(pairs).T
    if bool((target == VOID).all()):
        with pytest.raises(ValueError, match="expected annotated pixels to evaluate on, found none"):
            measured(predicted, target, classes).result()
        return
    itself = measured(torch.where(target == VOID, 0, target), target, classes).result()
    assert itself["miou"] == itself["pixel_accuracy"] == itself["mean_accuracy"] == 100
    parts = [measured(predicted[side::2], target[side::2], classes) for side in (0, 1)]

    class Other:
        def sum(self, tensor):
            return tensor.add_(parts[1].confusion)

    parts[0].merge(Other())
    assert torch.equal(parts[0].confusion, measured(predicted, target, classes).confusion)


def test_against_scikit_learn():
    sklearn = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(0)
    target, predicted = rng.choice([0, 1, 2, 3, VOID], (40, 50)), rng.integers(0, 4, (40, 50))
    known = target != VOID
    result = measured(predicted, target, 4).result()
    expected = 100 * sklearn.jaccard_score(target[known], predicted[known], average=None)
    assert result["iou"] == pytest.approx(expected.tolist()) and result["miou"] == pytest.approx(expected.mean())
    assert result["pixel_accuracy"] == pytest.approx(100 * sklearn.accuracy_score(target[known], predicted[known]))
    balanced = sklearn.balanced_accuracy_score(target[known], predicted[known])
    assert result["mean_accuracy"] == pytest.approx(100 * balanced)


def test_maps_that_do_not_fit():
    for predicted, target, message in (
        ([[0]], [[0, 0]], r"target's shape \(1, 2\), found \(1, 1\)"),
        ([[0]], [[7]], "class indices from 0 to 2 in the target, found 7 to 7"),
        ([[3]], [[0]], "class indices from 0 to 2 in the prediction, found 3 to 3"),
    ):
        with pytest.raises(ValueError, match=message):
            measured(predicted, target, 3)


# Logits to classes


@pytest.mark.parametrize("size", [(8, 8), (37, 50), (5, 3)])
def test_classes_are_taken_behind_the_interpolation(size, monkeypatch):
    logits = torch.randn(2, 7, 8, 8)
    expected = F.interpolate(logits, size, mode="bilinear", align_corners=False).argmax(dim=1)
    assert torch.equal(best_classes(logits, size), expected)
    monkeypatch.setattr("swiftformer.evaluate.segmentation.VALUES_AT_ONCE", 3 * 2 * size[0] * size[1])
    assert torch.equal(best_classes(logits, size), expected)
    if size[0] >= 8:  # Pillow averages where it makes smaller
        found = predict_segmentation.resized_classes(logits[0].numpy(), size)
        assert found.dtype == np.uint8 and (found == expected[0].numpy()).mean() > 0.999


# Evaluation


def batches(count=5, height=12, width=20):
    """Pixels of which the first channel is the mask at half the size, and the mask."""
    for i in range(count):
        small = torch.randint(0, 3, (height // 2, width // 2), generator=torch.Generator().manual_seed(i))
        mask = small.repeat_interleave(2, 0).repeat_interleave(2, 1).to(torch.uint8)
        yield small.float().expand(1, 3, -1, -1), mask, i


def perfect(pixels):
    return F.one_hot(pixels[:, 0].long(), 3).permute(0, 3, 1, 2).float()


def without_the_last(pixels):
    """Takes the last class for the one before."""
    return perfect(pixels.clamp(max=1))


def test_what_knows_the_masks_gets_everything_right():
    def sharp(pixels):
        return F.interpolate(perfect(pixels), scale_factor=2, mode="nearest")

    seen = []
    metrics, confusion = evaluate_segmenter(sharp, batches(), progress=seen.append)
    assert metrics["miou"] == metrics["pixel_accuracy"] == 100 and metrics["images"] == 5 == sum(seen)
    assert confusion.sum() == 5 * 12 * 20 and torch.equal(confusion, confusion.diagonal().diag())
    assert metrics["images_per_second"] > 0
    with pytest.raises(ValueError, match="expected readable images to evaluate on, found none"):
        evaluate_segmenter(sharp, [])


def test_modules_and_windows():
    class Net(torch.nn.Module):
        def forward(self, pixels):
            assert not self.training
            return type("Output", (), {"logits": without_the_last(pixels)})()

    plain, _ = evaluate_segmenter(Net().train(), batches())
    slid, _ = evaluate_segmenter(partial(segment_logits, without_the_last, mode="slide", window=(4, 4)), batches())
    assert plain["miou"] == pytest.approx(slid["miou"]) and 40 < plain["miou"] < 60


def segmenter(classes=3, labels=None):
    config = SwiftFormerConfig(**TINY, num_labels=classes, fpn_channels=8, segmentation_channels=8)
    config.id2label = dict(enumerate(labels or [f"class_{i}" for i in range(classes)]))
    net = randomize(SwiftFormerForSemanticSegmentation(config)).eval()
    net.preprocessing = Preprocessing(size=(32, 32), resize="whole", interpolation="bilinear")
    return net


def test_evaluating_on_a_folder(segmentation_folder):
    (segmentation_folder / "images" / "val" / "02.png").write_bytes(b"")
    metrics = evaluate_reference(segmenter(), str(segmentation_folder), workers=0, device="cpu", per_class=True)
    assert metrics["images"] == 3 and metrics["unreadable"] == 1 and 0 < metrics["miou"] < 100
    values = [metrics[f"iou/class_{i}"] for i in range(3)]
    assert np.mean([value for value in values if value is not None]) == pytest.approx(metrics["miou"])
    slid = evaluate_reference(segmenter(), str(segmentation_folder), workers=0, device="cpu", short_side=40, window=32)
    assert slid["images"] == 3
    with pytest.raises(ValueError, match="expected a segmentation model, found a Linear"):
        evaluate_reference(torch.nn.Linear(1, 1), str(segmentation_folder), device="cpu")


def test_classes_are_matched_by_name(segmentation_folder, caplog):
    options = {"workers": 0, "device": "cpu", "per_class": True}
    expected = evaluate_reference(segmenter(), str(segmentation_folder), **options)
    net = segmenter(labels=["cat", "dog", "sky"])
    assert (
        evaluate_reference(net, str(segmentation_folder), **options)["miou"] == expected["miou"]
    )  # the data have no names
    same = evaluate_reference(net, str(segmentation_folder), classes="cat,dog,sky", **options)
    assert same["iou/sky"] == expected["iou/class_2"]
    other = evaluate_reference(net, str(segmentation_folder), classes="sky,cat,dog", **options)
    assert other["miou"] != expected["miou"]
    assert (
        evaluate_reference(net, str(segmentation_folder), classes="Sky,CAT,dog", **options).items()
        >= {key: value for key, value in other.items() if not key.startswith(("images_per", "iou"))}.items()
    )
    listed = evaluate_reference(net, str(segmentation_folder), classes="cat,dog,sky,void", **options)
    assert listed["miou"] == same["miou"] and listed["unreadable"] == 0  # no pixel is void
    for name in ("00", "01"):  # a broken mask is none of the question's business
        (segmentation_folder / "annotations" / "val" / f"{name}.png").write_bytes(b"")
    message = r"expected pixels of classes that the model knows \(3: cat, dog, sky\), found 1 others \(cow\)"
    with pytest.raises(ValueError, match=message):
        evaluate_reference(net, str(segmentation_folder), classes="cat,dog,cow,void", **options)
    assert not caplog.messages


def test_the_offset_of_the_masks_goes_with_the_model(segmentation_folder, tmp_path):
    from swiftformer import save

    data, options = str(segmentation_folder), {"workers": 0, "device": "cpu"}
    net = segmenter(2)
    expected = evaluate_reference(net, data, reduce_zero_label=True, **options)
    net.preprocessing = replace(net.preprocessing, reduce_labels=True)
    save(net, tmp_path / "saved")
    for model, more in ((net, {}), (str(tmp_path / "saved"), {}), (str(tmp_path / "saved"), {"precision": "fp32"})):
        found = evaluate_reference(model, data, **options, **more)
        assert found["images"] == 4 and found["miou"] == pytest.approx(expected["miou"], abs=0.2)
    with pytest.raises(ValueError, match="expected class indices from 0 to 1, .* 15 others of the first 16 masks"):
        evaluate_reference(net, data, reduce_zero_label=False, **options)
    plain = segmenter()
    plain.preprocessing = replace(plain.preprocessing, reduce_labels=False)
    expected = evaluate_reference(plain, data, **options)
    for kind in ("images", "annotations"):  # what tells ADE20K's masks where the model does not
        (segmentation_folder / kind / "train").rename(segmentation_folder / kind / "training")
    assert evaluate_reference(plain, data, **options)["miou"] == expected["miou"]
    assert evaluate_reference(plain, data, reduce_zero_label=True, **options)["miou"] != expected["miou"]


def test_data_without_names_have_those_of_the_model(segmentation_folder, caplog):
    masks = segmentation_folder / "annotations"
    for file in (masks / "train" / "05.png", masks / "val" / "01.png"):
        Image.fromarray(np.full((20, 30), 200, dtype=np.uint8)).save(file)
    options = {"workers": 0, "device": "cpu"}
    found = evaluate_reference(segmenter(labels=["sky", "road", "car"]), str(segmentation_folder), **options)
    assert found["images"] == 3 and found["unreadable"] == 1
    assert "val/01.png: expected class indices from 0 to 2, and 255 for void, found 200" in caplog.text
    for kind in ("images", "annotations"):
        shutil.rmtree(segmentation_folder / kind / "train")
    for file in (masks / "val").iterdir():
        Image.fromarray(np.zeros((20, 30), dtype=np.uint8)).save(file)
    assert evaluate_reference(segmenter(), str(segmentation_folder), **options)["images"] == 4


# Prediction


class Thresholds(Engine):
    """Knows dark, gray and bright pixels, at half the size."""

    name, labels, outputs = "thresholds", ("dark", "gray", "bright"), ("logits",)
    preprocessing = Preprocessing(size=(64, 64), resize="whole", mean=(0, 0, 0), std=(1, 1, 1))

    def __init__(self, input_shape=(None, 3, None, None)):
        self.input_shape = input_shape
        self.seen = []

    def run(self, batch):
        self.seen.append(batch.shape)
        level = batch[:, 0, ::2, ::2]
        return [np.stack([-level, -abs(level - 0.5) + 0.2 - 0.5 * (level < 0.1), level - 1], axis=1)]


def test_segmenting_pictures(tmp_path):
    pixels = np.zeros((40, 60, 3), dtype=np.uint8)
    pixels[:, 20:] = 128
    Image.fromarray(pixels).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"no picture")
    engine = Thresholds()
    good, bad, array = segment([tmp_path / "a.png", tmp_path / "b.png", pixels[:10]], engine)
    assert good.mask.shape == (40, 60) and good.mask.dtype == np.uint8
    assert (good.mask[:, :18] == 0).all() and (good.mask[:, 22:] == 1).all() and array.mask.shape == (10, 60)
    assert [share.label for share in good.classes] == ["gray", "dark"] and array.image == "image 2"
    assert sum(share.percent for share in good.classes) == pytest.approx(100)
    fields = json.loads(json.dumps(good.to_dict()))
    assert list(fields) == ["image", "height", "width", "classes"] and fields["width"] == 60
    assert list(fields["classes"][0]) == ["label", "index", "percent"] and fields["classes"][1]["index"] == 0
    assert bad.mask is None and bad.classes == [] and "b.png: expected an image" in bad.to_dict()["error"]
    with pytest.raises(ImageError, match="b.png"):
        list(segment(tmp_path / "b.png", engine, skip_broken=False))
    assert engine.seen == [(1, 3, 40, 60), (1, 3, 10, 60)]


def test_sizes_that_are_asked_for_or_fixed():
    pixels = np.zeros((40, 60, 3), dtype=np.uint8)
    engine = Thresholds()
    (result,) = segment(pixels, engine, short_side=20)
    assert result.mask.shape == (40, 60) and engine.seen == [(1, 3, 20, 30)]
    fixed = Thresholds((2, 3, 32, 48))
    (result,) = segment(pixels, fixed)
    assert result.mask.shape == (40, 60) and fixed.seen == [(2, 3, 32, 48)]
    with pytest.raises(ValueError, match="short_side: expected 32, as the input is fixed, found 64"):
        list(segment(pixels, fixed, short_side=64))
    fixed.outputs = ("probabilities",)
    with pytest.raises(ValueError, match="expected a segmentation model, found one with the outputs probabilities"):
        list(segment(pixels, fixed))


def test_a_model_and_its_evaluation_agree(segmentation_folder):
    from swiftformer.data.segmentation import open_segmentation

    net, source = segmenter(), open_segmentation(segmentation_folder)
    results = list(segment([source.name(i) for i in range(4)], net, device="cpu"))
    counted = SegmentationMetrics(3)
    for i, result in enumerate(results):
        counted.update(torch.from_numpy(result.mask), torch.from_numpy(source.mask(i)))
    metrics = evaluate_reference(net, str(segmentation_folder), workers=0, device="cpu")
    assert counted.result()["miou"] == pytest.approx(metrics["miou"], abs=0.2)
    with pytest.raises(ValueError, match="expected a segmentation model, found a Linear"):
        list(segment(source.name(0), torch.nn.Linear(1, 1)))


def test_checkpoints_run_as_they_are_and_fused(segmentation_folder, tmp_path):
    from swiftformer import save

    net = segmenter(labels=["cat", "dog", "sky"])
    save(net, tmp_path / "saved")
    options = {"workers": 0, "device": "cpu"}
    expected = evaluate_reference(net, str(segmentation_folder), **options)
    for more in ({}, {"precision": "fp32"}, {"engine": "torch"}):
        found = evaluate_reference(str(tmp_path / "saved"), str(segmentation_folder), **options, **more)
        assert found["miou"] == pytest.approx(expected["miou"], abs=0.2)
    name = segmentation_folder / "images" / "val" / "00.png"
    (plain,), (fused,) = segment(name, net, device="cpu"), segment(name, tmp_path / "saved", device="cpu")
    assert (plain.mask == fused.mask).mean() > 0.99 and {share.label for share in fused.classes} <= {
        "cat",
        "dog",
        "sky",
    }
