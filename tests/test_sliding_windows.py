"""Windows in prediction and evaluation: of models, of engines, and without torch."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from conftest import picture_with_mask
from swiftformer import Preprocessing, fuse, save
from swiftformer.data.segmentation import open_segmentation
from swiftformer.engines import Engine
from swiftformer.engines.torch import TorchEngine
from swiftformer.evaluate.segmentation import evaluate_reference
from swiftformer.export import export
from swiftformer.predict_segmentation import scores_of, segment, window_of
from swiftformer.segmentation_inference import post_process_semantic_segmentation, segment_logits
from swiftformer.sliding_windows import filled, slid, windows
from test_cli import cli  # noqa: F401
from test_segmentation import tiny_segmenter


@pytest.fixture(scope="module")
def model():
    model = tiny_segmenter(depths=[1, 1, 1], embed_dims=[8, 16, 24], num_labels=3)
    model.preprocessing = Preprocessing(size=(64, 64), resize="whole", interpolation="bilinear")
    pixels = torch.from_numpy(model.preprocessing.prepare(picture_with_mask(1, 100, 130)[0]))[None]
    with torch.no_grad():  # every class somewhere
        scores = model(pixels).logits.flatten(2)[0]
        model.decode_head.classifier.weight /= scores.std(1)[:, None, None, None]
        model.decode_head.classifier.bias.copy_((model.decode_head.classifier.bias - scores.mean(1)) / scores.std(1))
    return model


@pytest.fixture
def picture():
    return picture_with_mask(1, 100, 130)[0]


def fixed(model, size):
    """An engine that takes one size of input alone."""
    return TorchEngine(fuse(model), ("a", "b", "c"), device="cpu", input_shape=(1, 3, *size))


def test_a_window_that_covers_the_picture_is_the_whole_picture(model, picture):
    [whole] = segment(picture, model, device="cpu")
    for window in (130, 500):
        [found] = segment(picture, model, window=window, device="cpu")
        assert np.array_equal(found.mask, whole.mask) and found.classes == whole.classes and len(whole.classes) == 3
    [found] = segment(picture, model, window=64, device="cpu")
    assert found.mask.shape == (100, 130) and not np.array_equal(found.mask, whole.mask)
    with pytest.raises(ValueError, match="window: expected at least 0 pixels, found -1"):
        next(segment(picture, model, window=-1, device="cpu"))


def test_windows_are_those_of_the_evaluation(model, picture, segmentation_folder):
    pixels = torch.from_numpy(model.preprocessing.prepare(picture))
    expected = segment_logits(model, pixels[None], "slide", (48, 48))[0].numpy()
    found = scores_of(TorchEngine(model, ("a", "b", "c"), device="cpu"), pixels.numpy(), (48, 48))
    assert found.dtype == np.float32 and np.abs(found - expected).max() < 1e-5 * np.abs(expected).max()
    # A confusion matrix that is counted by hand from what `segment` finds.
    source = open_segmentation(segmentation_folder)
    hits = count = 0
    for i in range(len(source)):
        [result] = segment(source.image(i), model, window=16, device="cpu")
        known = source.mask(i) != 255
        hits, count = hits + (result.mask == source.mask(i))[known].sum(), count + known.sum()
    for reference in (model, save(model, segmentation_folder / "model")):
        engine = {} if reference is model else {"engine": "torch"}
        metrics = evaluate_reference(reference, str(segmentation_folder), window=16, workers=0, device="cpu", **engine)
        assert metrics["pixel_accuracy"] == pytest.approx(100 * hits / count, abs=0.1)


def test_windows_of_a_fixed_input(model, picture):
    """They are of its size, over the picture at its own; without them the picture is stretched."""
    engine = fixed(model, (64, 96))
    pixels = torch.from_numpy(model.preprocessing.prepare(picture))[None]
    logits = segment_logits(model, pixels, "slide", (64, 96))
    [expected] = post_process_semantic_segmentation(type("Output", (), {"logits": logits}))
    [found] = segment(picture, engine, window=64)
    assert np.mean(found.mask == expected.numpy()) > 0.999
    [stretched] = segment(picture, engine)
    assert not np.array_equal(found.mask, stretched.mask)
    assert window_of(engine, 0) is None and window_of(engine, 64) == (64, 96)
    for wrong in (96, 32):
        with pytest.raises(ValueError, match=f"window: expected 64, as the input is fixed, found {wrong}"):
            next(segment(picture, engine, window=wrong))


@pytest.mark.parametrize("raw", [False, True])
def test_small_pictures_are_filled_up_for_a_fixed_input(model, picture, raw):
    """With the gray around small pictures in training."""
    small = picture[:50, :70]
    gray = np.rint(255 * np.array([0.485, 0.456, 0.406])).astype(np.uint8)
    large = np.tile(gray, (64, 96, 1))
    large[:50, :70] = small
    net = fuse(model, raw_input=raw)
    engine = TorchEngine(net, ("a", "b", "c"), device="cpu", input_shape=(1, 3, 64, 96))
    [found], [expected] = segment(small, engine, window=64), segment(large, engine, window=64)
    assert found.mask.shape == (50, 70) and np.mean(found.mask == expected.mask[:50, :70]) > 0.99
    pixels = np.zeros((3, 64, 96), np.float32)
    assert filled(pixels, (64, 90), model.preprocessing) is pixels


@pytest.mark.parametrize("size", [(64, 64), pytest.param("dynamic", marks=pytest.mark.exhaustive)])
def test_windows_of_an_artifact(model, picture, tmp_path, size):
    pytest.importorskip("openvino")
    export(model, tmp_path / "a", "openvino", size=size)
    [found] = segment(picture, tmp_path / "a", window=64, engine="openvino")
    [expected] = segment(picture, model, window=64, device="cpu")
    assert np.mean(found.mask == expected.mask) > 0.999


def test_windows_need_no_torch(picture):
    """What an engine without torch runs through."""
    script = (
        "import sys; sys.modules['torch'] = None\n"
        "import numpy as np\n"
        "from swiftformer.engines.base import Engine\n"
        "from swiftformer.image_processing import Preprocessing\n"
        "from swiftformer.predict_segmentation import segment\n"
        "class Brightest(Engine):\n"
        "    labels, outputs, input_shape = ('a', 'b', 'c'), ('logits',), (1, 3, 8, 8)\n"
        "    preprocessing = Preprocessing(size=(8, 8))\n"
        "    def run(self, batch): return [batch]\n"
        "pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)\n"
        "[found] = segment(pixels, Brightest(), window=8)\n"
        "scores = Brightest.preprocessing.normalized(pixels)\n"
        "assert (found.mask == scores.argmax(0)).all()\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_places():
    assert list(windows((10, 7), (4, 3), (3, 2)))[:4] == [
        (slice(0, 4), slice(0, 3)),
        (slice(0, 4), slice(2, 5)),
        (slice(0, 4), slice(4, 7)),
        (slice(3, 7), slice(0, 3)),
    ]
    assert list(windows((3, 5), (8, 8))) == [(slice(0, 8), slice(0, 8))]
    covered = np.zeros((23, 31), int)
    for place in windows((23, 31), (9, 9)):
        covered[place] += 1
    assert covered.min() == 1
    pixels = np.random.default_rng(0).normal(size=(3, 23, 31)).astype(np.float32)
    np.testing.assert_allclose(slid(lambda batch: batch, pixels, (9, 9)), pixels, rtol=1e-6)
    with pytest.raises(ValueError, match="expected a window of at least 1x1 pixels"):
        windows((8, 8), (0, 4))


def test_other_outputs_are_refused(picture):
    class Classifier(Engine):
        labels, outputs, input_shape = ("a", "b"), ("logits",), (1, 3, 64, 64)
        preprocessing = Preprocessing(size=(64, 64))

        def run(self, batch):
            return [np.zeros((1, 2))]

    with pytest.raises(ValueError, match=r"expected logits of shape \(1, classes, height, width\), found \(1, 2\)"):
        next(segment(picture, Classifier(), window=64))


def test_command_line(model, picture, tmp_path, cli):  # noqa: F811
    save(model, tmp_path / "model")
    Image.fromarray(picture).save(tmp_path / "p.png")
    masks = {}
    for name, more in {"whole": (), "covered": ("--window", 130), "slid": ("--window", 64)}.items():
        code, out, err = cli(
            *("segment", tmp_path / "p.png", "--model", tmp_path / "model", "--output", tmp_path / name),
            *("--masks", "--json", *more),
        )
        assert code == 0, err
        masks[name] = np.asarray(Image.open(json.loads(out)[0]["mask"]))
    assert np.array_equal(masks["whole"], masks["covered"]) and not np.array_equal(masks["whole"], masks["slid"])
