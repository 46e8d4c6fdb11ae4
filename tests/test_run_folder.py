"""What a run writes, on whose files it does not write, and how it goes on."""

import dataclasses
import io
import shutil

import pytest
import torch
from PIL import Image

from swiftformer import SwiftFormerConfig, SwiftFormerForImageClassification, save
from swiftformer.data.sources import open_source
from swiftformer.evaluate.classification import evaluate_classifier
from swiftformer.train import classification
from swiftformer.train.recipes import get_recipe
from swiftformer.train.start import expect_two_splits
from swiftformer.train.state import read_state, write_state
from swiftformer.train.step import TrainingStep
from test_train import run, tiny_variant  # noqa: F401


def test_a_resumed_run_keeps_its_origin(image_folder, tmp_path):
    config = SwiftFormerConfig(depths=[1, 1, 1, 1], embed_dims=[8, 8, 8, 16], num_labels=5)
    save(SwiftFormerForImageClassification(config), tmp_path / "begin")
    output = tmp_path / "run"
    run(image_folder, output, model=str(tmp_path / "begin"), command="swiftformer train --data images")
    shutil.rmtree(output / "best")
    run(image_folder, output, resume=True, command="swiftformer train --resume")
    state = read_state(output)
    write_state(output, 1, 0, state | {"epochs": 1})
    run(image_folder, output, resume=True, command="swiftformer train --resume")
    card = (output / "README.md").read_text()
    assert "starting from begin" in card and "swiftformer train --data images" in card and "--resume" not in card
    with pytest.raises(ValueError, match="was started from .*begin: expected the same model, or none, found other"):
        run(image_folder, output, resume=True, model="other")


def test_another_variant_is_not_resumed(image_folder, tmp_path):
    output = tmp_path / "run"
    run(image_folder, output, "epochs=1")
    state = read_state(output)
    state["config"] |= SwiftFormerConfig().to_dict()  # XS
    write_state(output, 1, 0, state)
    with pytest.raises(ValueError, match="trains xs: expected the same variant, or none, found l3"):
        run(image_folder, output, "epochs=1", resume=True, variant="l3")


def test_resuming_takes_the_recipe_of_the_run(image_folder, tmp_path):
    """Not the default one, without its name and settings."""
    from swiftformer.train.run_folder import read_recipe, write_recipe

    output = tmp_path / "run"
    run(image_folder, output, "crop_scale=0.5,1", "evaluate_every=2")
    recipe = read_recipe(output)
    assert recipe == get_recipe("smoke", ["lr=5e-3", "crop_scale=0.5,1", "evaluate_every=2"])
    for name in ("small_segmentation", "small_detection", "small_instances", "paper_l3"):
        write_recipe(dataclasses.asdict(get_recipe(name)), output)
        assert read_recipe(output) == get_recipe(name)
    for content, reason in (
        ("[]", "list instead of fields"),
        ('{"epochs": -1}', "epochs"),
        ('{"unknown": 1}', "unknown fields unknown"),
        ("", "column"),
    ):
        (output / "recipe.json").write_text(content)
        with pytest.raises(ValueError, match=f"recipe.json: expected the recipe of a run, found damage .*{reason}"):
            read_recipe(output)


def test_the_card_tells_of_the_best_weights(image_folder, tmp_path, monkeypatch):
    """Those that it recommends, not of the last ones, also after resuming."""
    found = iter([70.0, 90.0, 80.0])

    def evaluate(*args, **kwargs):
        metrics, confusion = evaluate_classifier(*args, **kwargs)
        return metrics | {"top1": next(found)}, confusion

    monkeypatch.setattr(classification, "evaluate_classifier", evaluate)
    output = tmp_path / "run"
    run(image_folder, output, "epochs=3")
    card = (output / "README.md").read_text()
    assert "epoch 2 | %" in card and "| 90.00 |" in card and "80.00" not in card
    assert "those of the last epoch, 3" in card
    assert read_state(output)["best_metrics"]["epoch"] == 2


def test_states_of_older_versions_tell_nothing_of_the_best_weights(image_folder, tmp_path):
    output = tmp_path / "run"
    run(image_folder, output)
    state = read_state(output)
    for key in ("best_metrics", "origin"):
        del state[key]
    metrics = {key: value for key, value in state["metrics"].items() if key not in ("top1", "val_unreadable")}
    shutil.rmtree(output / "states")
    write_state(output, 1, 0, state | {"epochs": 1, "best": 101.0, "metrics": metrics})
    assert run(image_folder, output, resume=True)["epoch"] == 2
    assert "epoch 2 | %" in (output / "README.md").read_text()


def test_what_was_not_asked_for_is_in_the_log(image_folder, tmp_path):
    run(image_folder, tmp_path / "run", "epochs=1", "batch_size=64")
    assert "taking 48 at once instead of 64" in (tmp_path / "run" / "train.log").read_text()


def test_a_run_writes_over_nothing_else(image_folder, tmp_path):
    output = tmp_path / "project"
    output.mkdir()
    (output / "README.md").write_text("mine")
    with pytest.raises(ValueError, match=r"expected a folder for the run alone, found README.md in it"):
        run(image_folder, output)
    assert (output / "README.md").read_text() == "mine" and [*output.iterdir()] == [output / "README.md"]
    save(SwiftFormerForImageClassification(SwiftFormerConfig()), tmp_path / "model")
    with pytest.raises(ValueError, match=r"found config.json in it"):
        run(image_folder, tmp_path / "model", model=str(tmp_path / "model"))


def test_a_run_that_died_early_begins_again(image_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(TrainingStep, "__call__", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        run(image_folder, tmp_path / "run")
    monkeypatch.undo()
    with pytest.raises(ValueError, match="found none; without --resume it begins"):
        run(image_folder, tmp_path / "run", resume=True)
    assert run(image_folder, tmp_path / "run", "epochs=1")["epoch"] == 1


def test_runs_below_the_data_are_no_class(image_folder, tmp_path):
    for part in ("train", "val"):
        for folder in (image_folder / part).iterdir():
            folder.rename(image_folder / f"{part}-{folder.name}")
        (image_folder / part).rmdir()
    before = open_source(image_folder).classes
    run(image_folder, image_folder / "runs" / "train", "epochs=1")
    assert (image_folder / "runs" / "train" / "curves.png").exists()
    assert open_source(image_folder).classes == before == ["train-blue", "train-red", "val-blue", "val-red"]


def test_numbered_classes_of_which_one_split_lacks_the_last(tmp_path):
    import numpy as np
    import pyarrow
    import pyarrow.parquet

    content = io.BytesIO()
    Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(content, "PNG")
    for name, labels in (("train", [0, 1, 2, 2]), ("val", [1, 0])):
        table = pyarrow.table({"image": [content.getvalue()] * len(labels), "label": labels})
        pyarrow.parquet.write_table(table, tmp_path / f"{name}.parquet")
    for swap in (False, True):
        train, val = open_source(tmp_path, "train"), open_source(tmp_path, "val")
        expect_two_splits(*((val, train) if swap else (train, val)))
        assert train.classes == val.classes == ["0", "1", "2"]


def test_balancing_reaches_loss_and_order(image_folder, tmp_path, monkeypatch):
    """Of classes with 24 and 6 images, weights of 5/8 and 5/2, or as many of each in an epoch."""
    for file in sorted((image_folder / "train" / "red").iterdir())[6:]:
        file.unlink()
    weights, drawn = [], []

    def loss(logits, targets, weight=None, **options):
        weights.append(weight)
        return original(logits, targets, weight, **options)

    original = torch.nn.functional.cross_entropy
    monkeypatch.setattr(torch.nn.functional, "cross_entropy", loss)
    run(image_folder, tmp_path / "weights", "class_weights=balanced", "epochs=1", "batch_size=6")
    found = [weight.tolist() for weight in weights if weight is not None]
    assert found and found[0] == pytest.approx([5 / 8, 5 / 2])

    def step(self, pixels, targets, indices, batch):
        drawn.extend(indices.tolist())
        return called(self, pixels, targets, indices, batch)

    called = TrainingStep.__call__
    monkeypatch.setattr(TrainingStep, "__call__", step)
    for sampler, count in (("shuffle", 6), ("balanced", 60)):
        drawn.clear()
        epochs = 1 if sampler == "shuffle" else 4
        run(
            image_folder,
            tmp_path / sampler,
            f"sampler={sampler}",
            f"epochs={epochs}",
            "batch_size=6",
            "warmup_epochs=0",
        )
        assert sum(index >= 24 for index in drawn) == pytest.approx(count, abs=0 if sampler == "shuffle" else 20)
