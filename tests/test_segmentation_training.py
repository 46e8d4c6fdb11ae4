"""Training, evaluating and using a segmentation model, on pictures of coloured rectangles."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from swiftformer import SwiftFormerConfig, SwiftFormerForSemanticSegmentation, load, save
from swiftformer.cli_segment import free_targets
from swiftformer.data.segmentation import open_segmentation
from swiftformer.evaluate.segmentation import evaluate_reference
from swiftformer.train import loop, segmentation
from swiftformer.train.distributed import Processes
from swiftformer.train.interruption import StopRequest
from swiftformer.train.objectives import SegmentationObjective
from swiftformer.train.recipes import get_recipe
from swiftformer.train.segmentation import rarity_weights
from test_cli import cli  # noqa: F401

COLORS = np.array([[30, 30, 30], [220, 40, 40], [40, 60, 220]], dtype=np.uint8)
SETTINGS = ("lr=1e-2", "scale=1,1", "color_distortion=0", "batch_size=4")


@pytest.fixture(autouse=True)
def tiny_variant(monkeypatch):
    """Train a small network under the name of the smallest variant."""

    def build(cls, name, **kwargs):
        return SwiftFormerConfig(depths=[1, 1, 1, 1], embed_dims=[8, 8, 8, 16], global_query_weighting="l2", **kwargs)

    monkeypatch.setattr(SwiftFormerConfig, "from_variant", classmethod(build))


@pytest.fixture
def rectangles(tmp_path):
    rng = np.random.default_rng(0)
    for split, count in (("train", 12), ("val", 3)):
        for kind in ("images", "annotations"):
            (tmp_path / "data" / kind / split).mkdir(parents=True)
        for i in range(count):
            mask = np.zeros((64, 80), np.uint8)
            for index in (1, 2):
                top, left = rng.integers(0, 32, 2)
                mask[top : top + 30, left : left + 36] = index
            pixels = (COLORS[mask] + rng.integers(0, 20, (64, 80, 3))).clip(0, 255).astype(np.uint8)
            mask[:2] = 255
            Image.fromarray(pixels).save(tmp_path / "data" / "images" / split / f"{i}.png")
            Image.fromarray(mask).save(tmp_path / "data" / "annotations" / split / f"{i}.png")
    (tmp_path / "data" / "classes.txt").write_text("ground\nred\nblue\n")
    return tmp_path / "data"


def run(folder, output, *settings, **options):
    recipe = get_recipe("smoke_segmentation", [*SETTINGS, *settings])
    sources = [open_segmentation(folder, split) for split in ("train", "val")]
    return loop.train(recipe, *sources, output, **({"workers": 0} | options))


def test_a_run_learns_and_can_be_evaluated_again(rectangles, tmp_path):
    metrics = run(rectangles, tmp_path / "run", "epochs=30", "evaluate_every=10")
    assert metrics["miou"] > 60 and metrics["epoch"] == 30
    model = load(tmp_path / "run")
    assert isinstance(model, SwiftFormerForSemanticSegmentation)
    assert model.config.id2label == {0: "ground", 1: "red", 2: "blue"} and model.preprocessing.resize == "whole"
    assert model.preprocessing.reduce_labels is False
    again = evaluate_reference(tmp_path / "run" / "last", str(rectangles), "val", workers=0)
    for name in ("miou", "pixel_accuracy", "mean_accuracy"):
        assert again[name] == pytest.approx(metrics[name])
    card = (tmp_path / "run" / "README.md").read_text()
    assert "pipeline_tag: image-segmentation" in card and "swiftformer segment --model best" in card
    assert f"| mean intersection over union | {metrics['miou']:.2f} |" in card
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines if "miou" in line] == [10, 20, 30]


def test_resumed_run_equals_an_uninterrupted_one(rectangles, tmp_path, monkeypatch):
    settings = ("epochs=3", "drop_path_rate=0.1", "color_distortion=1", "scale=0.5,2", "class_weights=balanced")
    whole = run(rectangles, tmp_path / "whole", *settings)
    evaluate, calls = segmentation.evaluate_segmenter, iter([False, True])

    def interrupted(*args, **kwargs):
        if next(calls):
            raise KeyboardInterrupt
        return evaluate(*args, **kwargs)

    monkeypatch.setattr(segmentation, "evaluate_segmenter", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(rectangles, tmp_path / "parts", *settings)
    monkeypatch.setattr(segmentation, "evaluate_segmenter", evaluate)
    parts = run(rectangles, tmp_path / "parts", *settings, resume=True)
    assert parts["miou"] == whole["miou"]
    theirs = load(tmp_path / "whole" / "last").state_dict()
    assert all(torch.equal(v, theirs[k]) for k, v in load(tmp_path / "parts" / "last").state_dict().items())


def test_resuming_with_other_meanings_of_the_masks_is_refused(rectangles, tmp_path):
    """Classes that are called the same and counted from another index."""
    recipe = get_recipe("smoke_segmentation", [*SETTINGS, "epochs=1"])
    train, val = (open_segmentation(rectangles, split) for split in ("train", "val"))
    loop.train(recipe, train, val, tmp_path / "run", workers=0)
    train.reduce_zero_label = True
    with pytest.raises(ValueError, match="run: expected --no-reduce-zero-label with the same data"):
        loop.train(recipe, train, val, tmp_path / "run", workers=0, resume=True)


@pytest.mark.exhaustive
@pytest.mark.timeout(900)
def test_a_compiled_step_learns_as_well(rectangles, tmp_path):
    plain = run(rectangles, tmp_path / "plain", "epochs=2", "image_size=64")
    compiled = run(rectangles, tmp_path / "compiled", "epochs=2", "image_size=64", "compile=true")
    assert compiled["loss"] == pytest.approx(plain["loss"], rel=0.02)
    again = evaluate_reference(tmp_path / "compiled" / "last", str(rectangles), "val", workers=0)
    assert again["miou"] == pytest.approx(compiled["miou"])
    assert not any(key.startswith("_orig_mod") for key in load(tmp_path / "compiled").state_dict())


def test_a_classifier_lends_its_backbone(rectangles, tmp_path):
    from swiftformer import SwiftFormerForImageClassification, save

    save(SwiftFormerForImageClassification.from_variant("xs", num_labels=4), tmp_path / "classifier")
    settings = ("epochs=1", "lr=0", "warmup_lr=0", "min_lr=0", "ema_decay=0", "frozen_batch_norm=true")
    metrics = run(rectangles, tmp_path / "run", *settings, model=str(tmp_path / "classifier"))
    assert metrics["epoch"] == 1
    ours, theirs = load(tmp_path / "run").state_dict(), load(tmp_path / "classifier").state_dict()
    shared = [key for key in theirs if key.startswith("swiftformer.")]
    assert shared and all(torch.equal(ours[key], theirs[key]) for key in shared)


def test_objective():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, 4, 4, generator=generator)
    targets = torch.randint(0, 3, (2, 16, 16), generator=generator)
    targets[0, :8] = 255
    predicted = type("Output", (), {"logits": logits})
    loss, hits = SegmentationObjective(torch.device("cpu"))(predicted, None, targets, None)
    full = F.interpolate(logits, (16, 16), mode="bilinear")
    torch.testing.assert_close(loss, F.cross_entropy(full, targets, ignore_index=255))
    right = full.argmax(1) == targets
    torch.testing.assert_close(hits, right[0, 8:].float().mean() + right[1].float().mean())
    loss, hits = SegmentationObjective(torch.device("cpu"))(predicted, None, torch.full_like(targets, 255), None)
    assert loss == 0 and hits == 0


def test_rarity_weights(rectangles):
    source = open_segmentation(rectangles, "train")
    masks = np.concatenate([source.mask(i).ravel() for i in range(len(source))])
    counts = np.bincount(masks[masks != 255])
    weights = rarity_weights(source, Processes(0, 1, torch.device("cpu")), StopRequest()).numpy()
    np.testing.assert_allclose(weights / weights[0], np.sqrt(counts[0] / counts), rtol=1e-5)
    assert (weights * counts).sum() == pytest.approx(counts.sum(), rel=1e-5)


def test_command_line(rectangles, tmp_path, cli):  # noqa: F811
    options = ["--data", rectangles, "--output", tmp_path / "run", "--workers", 0, "--json"]
    for setting in (*SETTINGS, "epochs=1"):
        options += ["--set", setting]
    code, out, err = cli("train", "--task", "segment", "--recipe", "smoke_segmentation", *options)
    assert code == 0, err
    trained = json.loads(out)
    code, out, err = cli("evaluate", "--model", tmp_path / "run", "--data", rectangles, "--per-class", "--json")
    assert code == 0, err
    found = json.loads(out)
    assert found["miou"] == pytest.approx(trained["miou"]) and found["images"] == 3 and "iou/red" in found
    pictures = [rectangles / "images" / "val" / "0.png", rectangles / "images" / "train" / "0.png"]
    code, out, err = cli(
        "segment", *pictures, "--model", tmp_path / "run", "--output", tmp_path / "o", "--masks", "--json"
    )
    assert code == 0, err
    first, second = json.loads(out)
    assert sum(share["percent"] for share in first["classes"]) == pytest.approx(100)
    assert {file.name for file in (tmp_path / "o").iterdir()} == {"0.png", "0.mask.png", "0-2.png", "0-2.mask.png"}
    mask = np.asarray(Image.open(second["mask"]))
    assert mask.shape == (64, 80) and mask.max() < 3 and first["overlay"].endswith("0.png")
    code, out, err = cli(
        "segment", pictures[0], tmp_path / "none.png", "--model", tmp_path / "run", "--output", tmp_path / "p"
    )
    assert code == 2 and "none.png" in err and "%" in out


def test_results_never_lie_on_pictures_or_each_other(tmp_path):
    names = ["d1/a.jpg", "d1/a-2.jpg", "d2/a.jpg", "a.mask.jpg", "d3/A.jpg", "-"]
    found = [target.name for target in free_targets(names, tmp_path)]
    assert found == ["a", "a-2", "a-3", "a.mask-2", "A-4", "stdin"]
    with pytest.raises(ValueError, match=r"expected another folder than that of the pictures, found .*a.png"):
        free_targets([str(tmp_path / "a.png")], tmp_path)


def test_a_classifier_is_not_for_segments(rectangles, tmp_path, cli):  # noqa: F811
    run(rectangles, tmp_path / "run", "epochs=1")
    code, _, err = cli("classify", rectangles / "images" / "val" / "0.png", "--model", tmp_path / "run")
    assert code == 2 and "expected a classifier, found a model for segmentation" in err
    code, _, err = cli("evaluate", "--model", tmp_path / "run", "--data", rectangles, "--level", "genus")
    assert code == 2 and "--level: expected with another task" in err
    code, _, err = cli("evaluate", "--data", rectangles, "--window", 64, "--classes", "a,b")
    assert code == 2 and "--classes, --window: expected with another task, found together with one to classify" in err
    code, out, err = cli("info", tmp_path / "run", "--json")
    assert code == 0 and json.loads(out)["classes"] == 3, err


def test_a_recipe_for_another_task(rectangles, tmp_path, cli):  # noqa: F811
    code, _, err = cli(
        "train", "--task", "segment", "--recipe", "smoke", "--data", rectangles, "--output", tmp_path / "r"
    )
    assert code == 2 and "--task segment: expected a recipe for it, found smoke, which is to classify" in err
    code, _, err = cli("segment", rectangles / "images" / "val" / "0.png", "--model", "swiftformer-xs-cifar10")
    assert code == 2 and "expected a segmentation model" in err


def test_other_widths_than_those_stored_are_named(tmp_path):
    config = SwiftFormerConfig(
        depths=[1, 1, 1, 1], embed_dims=[8, 12, 16, 20], fpn_channels=24, segmentation_channels=24, num_labels=3
    )
    save(SwiftFormerForSemanticSegmentation(config), tmp_path)
    with pytest.raises(ValueError, match="; it has fpn_channels 24 where 16 was asked for"):
        load(tmp_path, task="segmentation", fpn_channels=16)
