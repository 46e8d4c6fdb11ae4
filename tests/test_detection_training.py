"""Training, evaluating, exporting and using a detector, on pictures of coloured squares and discs."""

import json
import sys

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from swiftformer import SwiftFormerConfig, load
from swiftformer.data.detection import open_detection
from swiftformer.detection import SwiftFormerForInstanceSegmentation
from swiftformer.evaluate.detection import evaluate_reference
from swiftformer.train import detection, loop
from swiftformer.train.distributed import Processes
from swiftformer.train.objectives import DetectionObjective
from swiftformer.train.recipes import RECIPES, DetectionRecipe, InstanceRecipe, get_recipe
from swiftformer.train.step import TrainingStep
from test_cli import cli  # noqa: F401

SETTINGS = ("lr=3e-3", "scale=1,1", "color_distortion=0", "batch_size=4", "fpn_channels=24", "box_channels=48")


@pytest.fixture(autouse=True)
def tiny_variant(monkeypatch):
    """Train a small network under the name of the smallest variant."""

    def build(cls, name, **kwargs):
        return SwiftFormerConfig(depths=[1, 1, 1, 1], embed_dims=[8, 12, 16, 20], global_query_weighting="l2", **kwargs)

    monkeypatch.setattr(SwiftFormerConfig, "from_variant", classmethod(build))


@pytest.fixture
def shapes(tmp_path):
    """COCO: a red square and a blue disc per picture, both with their outlines as polygons."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 12), ("val", 3)):
        (tmp_path / "data" / "images" / split).mkdir(parents=True)
        images, annotations = [], []
        for number in range(count):
            image = Image.fromarray(rng.integers(0, 40, (64, 96, 3)).astype(np.uint8))
            draw = ImageDraw.Draw(image)
            for category, left in ((1, 2), (2, 50)):
                side = int(rng.integers(20, 36))
                x, y = left + int(rng.integers(0, 42 - side)), int(rng.integers(2, 62 - side))
                turns = np.linspace(0, 2 * np.pi, 5 if category == 1 else 25)[:-1] + (np.pi / 4) * (category == 1)
                radius = side / 2 * (2**0.5 if category == 1 else 1)
                corners = np.stack([x + side / 2 + radius * np.cos(turns), y + side / 2 + radius * np.sin(turns)], 1)
                draw.polygon([tuple(corner) for corner in corners], fill=[(220, 40, 40), (40, 60, 220)][category - 1])
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": number + 1,
                        "category_id": category,
                        "bbox": [x, y, side, side],
                        "area": float(side * side),
                        "iscrowd": 0,
                        "segmentation": [corners.ravel().round(2).tolist()],
                    }
                )
            name = f"{number}.png"
            image.save(tmp_path / "data" / "images" / split / name)
            images.append({"id": number + 1, "file_name": name, "width": 96, "height": 64})
        categories = [{"id": 1, "name": "square"}, {"id": 2, "name": "disc"}]
        target = tmp_path / "data" / "annotations" / f"instances_{split}.json"
        target.parent.mkdir(exist_ok=True)
        target.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return tmp_path / "data"


def run(folder, output, *settings, recipe="smoke_instances", **options):
    recipe = get_recipe(recipe, [*SETTINGS, *settings])
    sources = [open_detection(folder, split, masks=recipe.task == "instances") for split in ("train", "val")]
    return loop.train(recipe, *sources, output, **({"workers": 0} | options))


def test_a_run_learns_and_can_be_evaluated_and_used(shapes, tmp_path, cli):  # noqa: F811
    metrics = run(shapes, tmp_path / "run", "epochs=24", "evaluate_every=12", "warmup_epochs=2", "mask_channels=24")
    assert metrics["mask_AP50"] > 60 and metrics["AP50"] > 60 and "train_accuracy" not in metrics
    model = load(tmp_path / "run")
    assert isinstance(model, SwiftFormerForInstanceSegmentation)
    assert model.config.id2label == {0: "square", 1: "disc"}
    assert (model.preprocessing.resize, model.preprocessing.resize_to, model.preprocessing.longest) == (
        "whole",
        64,
        128,
    )
    code, out, _ = cli("evaluate", "--model", tmp_path / "run" / "last", "--data", shapes, "--json", "--workers", 0)
    again = json.loads(out)
    assert code == 0 and again["images"] == 3
    for name in ("mask_AP", "mask_AP50", "AP", "AP50"):
        assert again[name] == pytest.approx(metrics[name])
    card = (tmp_path / "run" / "README.md").read_text()
    assert "an instance segmenter for 2 classes" in card and "swiftformer detect --model best" in card
    assert f"| mask AP50 | {metrics['mask_AP50']:.2f} |" in card and not (tmp_path / "run" / "confusion.png").exists()
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines if "AP" in line] == [12, 24]

    picture = shapes / "images" / "val" / "0.png"
    code, out, _ = cli("detect", picture, "--model", tmp_path / "run", "--output", tmp_path / "seen", "--json")
    [found] = json.loads(out)
    assert code == 0 and {"square", "disc"} <= {entry["label"] for entry in found["objects"]}
    assert (tmp_path / "seen" / "0.png").exists()

    pytest.importorskip("openvino")
    options = ("--format", "openvino", "--size", "64x96", "--output", tmp_path / "ov")
    code, _, err = cli("export", "--model", tmp_path / "run" / "last", *options)
    assert code == 0, err
    exported = evaluate_reference(tmp_path / "ov", str(shapes), "val", workers=0)
    assert exported["mask_AP"] == pytest.approx(metrics["mask_AP"], abs=0.5)


def test_resumed_run_equals_an_uninterrupted_one(shapes, tmp_path, monkeypatch):
    settings = ("epochs=2", "drop_path_rate=0.1", "color_distortion=1", "scale=0.7,1.5")
    whole = run(shapes, tmp_path / "whole", *settings)
    evaluate, calls = detection.evaluate_detector, iter([False, True])

    def stopped(*arguments: object):
        if next(calls):
            raise RuntimeError("stopped by the test")
        return evaluate(*arguments)

    monkeypatch.setattr(detection, "evaluate_detector", stopped)
    with pytest.raises(RuntimeError, match="stopped by the test"):
        run(shapes, tmp_path / "parts", *settings)
    monkeypatch.setattr(detection, "evaluate_detector", evaluate)
    resumed = run(shapes, tmp_path / "parts", *settings, resume=True)
    assert resumed["loss"] == whole["loss"] and resumed["AP"] == whole["AP"]
    first, second = (load(tmp_path / name / "last").state_dict() for name in ("whole", "parts"))
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_boxes_alone(shapes, tmp_path):
    metrics = run(shapes, tmp_path / "run", "epochs=1", "warmup_epochs=0", recipe="smoke_detection")
    assert "AP" in metrics and "mask_AP" not in metrics
    again = evaluate_reference(tmp_path / "run", str(shapes), "val", workers=0, per_class=True)
    assert again["AP"] == pytest.approx(metrics["AP"]) and {"AP/square", "AP/disc"} <= again.keys()


def test_whole_pictures_of_several_sizes(shapes, tmp_path):
    metrics = run(shapes, tmp_path / "run", "epochs=1", "warmup_epochs=0", "short_sides=48,64", "longest=80")
    again = evaluate_reference(tmp_path / "run", str(shapes), "val", workers=0)
    assert again["mask_AP"] == pytest.approx(metrics["mask_AP"]) and again["images"] == 3


def test_the_paper_s_recipe():
    recipe = RECIPES["paper_coco_mask_rcnn"]()
    assert isinstance(recipe, InstanceRecipe) and (recipe.epochs, recipe.total_batch_size, recipe.lr) == (12, 32, 2e-4)
    assert (recipe.short_sides, recipe.longest, recipe.optimizer) == ((800,), 1333, "adamw")
    assert (recipe.preprocessing.resize_to, recipe.preprocessing.longest) == (800, 1333)
    net = torch.nn.Linear(1, 1)
    step = TrainingStep(recipe, net, Processes(0, 1, torch.device("cpu")), DetectionObjective(), updates_per_epoch=10)
    rates = []
    for update in (0, 70, 80, 100, 110, 119):
        step.scheduler.step_update(num_updates=update)
        rates.append(step.lr)
    np.testing.assert_allclose(rates, [2e-4, 2e-4, 2e-5, 2e-5, 2e-6, 2e-6], rtol=1e-6)


def test_data_that_cannot_be_validated_on(shapes, tmp_path):
    file = shapes / "annotations" / "instances_val.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"annotations": []}))
    with pytest.raises(ValueError, match="expected objects in the pictures to validate on, found none"):
        run(shapes, tmp_path / "run", recipe="smoke_detection")


def test_one_damaged_mask_does_not_stop_a_run(shapes, tmp_path, caplog):
    """It is named, and the other pictures are validated on."""
    file = shapes / "annotations" / "instances_val.json"
    content = json.loads(file.read_text())
    # Text of run lengths, whose sum only reading them tells.
    content["annotations"][0]["segmentation"] = {"size": [64, 96], "counts": "o0o0oooo0"}
    file.write_text(json.dumps(content))
    metrics = run(shapes, tmp_path / "run", "epochs=1", "warmup_epochs=0")
    assert "mask_AP" in metrics and metrics["val_unreadable"] == 1
    assert "expected run lengths of 6144 pixels, found those of" in caplog.text


def test_without_pycocotools(shapes, tmp_path, monkeypatch):
    """It is said before the training, not at its first evaluation."""
    monkeypatch.setitem(sys.modules, "pycocotools", None)
    with pytest.raises(ValueError, match=r"pip install 'swiftformer\[dense\]'"):
        run(shapes, tmp_path / "run", recipe="smoke_detection")


def test_bad_recipes(shapes, tmp_path, cli):  # noqa: F811
    with pytest.raises(ValueError, match="expected five anchor_sizes"):
        get_recipe("small_detection", ["anchor_sizes=8,16"])
    with pytest.raises(ValueError, match="expected scale as two positive factors"):
        DetectionRecipe(scale=(2.0, 1.0))
    with pytest.raises(ValueError, match="expected longest of 0 or at least short_side and short_sides"):
        get_recipe("small_detection", ["short_side=1600"])
    code, _, err = cli("train", "--task", "detect", "--recipe", "small_instances", "--data", shapes)
    assert code == 2 and "expected a recipe for it, found small_instances, which is to instances" in err
    code, _, err = cli("train", "--task", "detect", "--data", shapes, "--level", "genus")
    assert code == 2 and "--level: expected with another task" in err
    run(shapes, tmp_path / "run", "epochs=1", "warmup_epochs=0", recipe="smoke_detection")
    code, _, err = cli("evaluate", "--model", tmp_path / "run", "--data", shapes, "--window", 64)
    assert code == 2 and "--window: expected with another task, found together with one to detect" in err
    code, _, err = cli("classify", shapes / "images" / "val" / "0.png", "--model", tmp_path / "run")
    assert code == 2 and "expected a classifier, found" in err
