import dataclasses

import pytest
import torch

from conftest import tiny
from swiftformer import CheckpointError, save
from swiftformer.data.loaders import Normalization
from swiftformer.data.sources import open_source
from swiftformer.image_processing import AUTHORS, Preprocessing
from swiftformer.train import fitting
from swiftformer.train.classification import Classification
from swiftformer.train.distributed import Processes
from swiftformer.train.fitting import fitted, for_processor
from swiftformer.train.recipes import RECIPES, TrainingRecipe, get_recipe
from swiftformer.train.run_folder import write_recipe


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_are_valid_and_frozen(name):
    recipe = get_recipe(name)
    assert isinstance(recipe, TrainingRecipe)
    with pytest.raises(AttributeError):
        recipe.lr = 1.0


def test_settings():
    recipe = get_recipe(
        "smoke",
        ["epochs=7", "lr=3e-4", "crop_scale=0.5,1", "total_batch_size=none", "compile=true", "progressive_sizes=32,32",
         "precision=bf16", "auto_augment="],
    )  # fmt: skip
    assert (recipe.epochs, recipe.lr, recipe.crop_scale) == (7, 3e-4, (0.5, 1.0))
    assert recipe.total_batch_size is None and recipe.compile and recipe.progressive_sizes == (32, 32)
    assert recipe.precision == "bf16" and recipe.auto_augment == ""
    assert get_recipe("smoke", ["progressive_sizes="]).progressive_sizes == ()


@pytest.mark.parametrize(
    ("name", "setting", "message"),
    [
        (
            "paper",
            "",
            "unknown recipe 'paper': expected one of paper_xs, .*, smoke",
        ),
        ("smoke", "epoch=3", "expected key=value with a key of epochs,.*found 'epoch=3'"),
        ("smoke", "epochs", "found 'epochs'"),
        ("smoke", "epochs=many", "epochs: expected int, found 'many'"),
        ("smoke", "epochs=0", "at least 1"),
        ("smoke", "image_size=16", "at least 32"),
        ("smoke", "crop_scale=1", "crop_scale: expected"),
        ("smoke", "crop_scale=0,1", "expected crop_scale in"),
        ("smoke", "ema_decay=1.5", "ema_decay: expected a number of at least 0 and below 1, found 1.5"),
        ("smoke", "random_erasing=5", "random_erasing: expected a number from 0 to 1, found 5"),
        ("smoke_detection", "vertical_flip=3", "vertical_flip: expected a number from 0 to 1"),
        ("smoke", "mixup=-1", "mixup: expected a number of 0 or more, found -1"),
        ("smoke", "color_jitter=-1", "color_jitter: expected a number of 0 or more"),
        ("smoke", "min_lr=1", "expected min_lr from 0 to lr"),
        ("smoke", "repeated_augmentation=-1", "repeated_augmentation: expected 1 or more, found -1"),
        ("smoke", "cache_teacher=true", "cache_teacher: expected distillation=hard or soft with it"),
        ("smoke", "crop_ratio=2,1", "a positive crop_ratio, each with the smaller number first, found"),
        ("smoke", "precision=fp8", "precision: expected"),
        ("smoke", "compile=maybe", "compile: expected bool, found 'maybe'"),
        ("smoke", "warmup_epochs=9", "expected warmup_epochs from 0 to epochs"),
        ("smoke", "progressive_sizes=64", "expected progressive_sizes from 32 to image_size"),
        ("smoke", "total_batch_size=0", "total_batch_size of at least 1, found 0"),
        ("smoke", "class_weights=some", "class_weights: expected"),
        ("paper_xs", "sampler=balanced", "expected repeated_augmentation of 1, found 3"),
        ("balanced", "", "unknown recipe"),
        ("smoke", "distillation=medium", "distillation: expected"),
        ("smoke", "distillation_alpha=2", "distillation_alpha in"),
        ("smoke", "crop_pct=0", "crop_pct in"),
        ("smoke", "label_smoothing=1", "label_smoothing in"),
        ("smoke", "interpolation=best", "interpolation must be one of"),
        ("smoke", "schedule=step", "schedule: expected"),
        ("smoke_segmentation", "mixup=0.8", "expected key=value with a key of .*scale"),
        ("smoke_segmentation", "scale=2,1", "the smaller first, found"),
        ("smoke_segmentation", "frozen_stages=5", "frozen_stages from 0 to 4"),
        ("smoke_segmentation", "head_dropout=1", "head_dropout in"),
    ],
)
def test_bad_settings(name, setting, message):
    with pytest.raises(ValueError, match=message):
        get_recipe(name, [setting] if setting else [])


def test_short_runs_are_warmed_up_for_half_of_it():
    short = get_recipe("small_real_time_detection", ["epochs=3"])
    assert (short.epochs, short.warmup_epochs) == (3, 1)
    assert get_recipe("small_real_time_detection", ["epochs=5"]).warmup_epochs == 2
    assert get_recipe("small_real_time_detection", ["epochs=6"]).warmup_epochs == 5
    with pytest.raises(ValueError, match="expected warmup_epochs from 0 to epochs"):
        get_recipe("small_real_time_detection", ["epochs=3", "warmup_epochs=5"])


def test_odd_batches_cannot_be_mixed():
    with pytest.raises(ValueError, match="even batch_size, found 15"):
        get_recipe("smoke", ["mixup=0.8", "batch_size=15"])


def test_paper_recipes_field_by_field():
    """The authors' main.py and the paper, arXiv 2303.15446."""
    common = {
        "epochs": 300, "optimizer": "adamw", "weight_decay": 0.025, "optimizer_eps": 1e-8, "warmup_epochs": 5,
        "warmup_lr": 1e-6, "min_lr": 1e-5, "lr": 2e-3, "total_batch_size": 2048, "clip_agc": 0.01,
        "ema_decay": 0.99996, "ema_warmup": False, "label_smoothing": 0.1, "color_jitter": 0.4,
        "interpolation": "bicubic", "random_erasing": 0.25, "repeated_augmentation": 3, "distillation": "hard",
        "distillation_alpha": 0.5, "distillation_tau": 1.0, "teacher": "regnety_160.deit_in1k", "image_size": 224,
        "crop_pct": 0.875, "crop_scale": (0.08, 1.0), "crop_ratio": (3 / 4, 4 / 3), "horizontal_flip": 0.5,
        "drop_path_rate": 0.0, "mix_prob": 1.0, "schedule": "cosine", "progressive_sizes": (), "evaluate_every": 1,
    }  # fmt: skip
    own = {
        "xs": {"auto_augment": "", "mixup": 0.0, "cutmix": 0.0},
        "s": {"auto_augment": "rand-m9-mstd0.5-inc1", "mixup": 0.0, "cutmix": 0.0},
        "l1": {"auto_augment": "rand-m9-mstd0.5-inc1", "mixup": 0.8, "cutmix": 1.0, "mix_switch_prob": 0.5},
        "l3": {"auto_augment": "rand-m9-mstd0.5-inc1", "mixup": 0.8, "cutmix": 1.0, "mix_switch_prob": 0.5},
    }
    for variant, fields in own.items():
        recipe = get_recipe(f"paper_{variant}")
        for name, value in (common | fields).items():
            assert getattr(recipe, name) == value, (variant, name)
        batch_size, accumulation = recipe.batches()
        assert (batch_size, accumulation) == (128, 16)
        assert recipe.preprocessing == AUTHORS
        erase = Normalization(recipe, torch.device("cpu"), Classification(recipe).erasing).erase
        assert (erase.probability, erase.per_pixel, erase.rand_color) == (0.25, True, False)


def test_evaluation_takes_more_images_at_once(image_folder):
    """The authors' main.py: one and a half times the training batch."""
    task, source = Classification(get_recipe("paper_xs")), open_source(image_folder, "val")
    batches = task.validation_batches(source, 8, 0, Processes(0, 1, torch.device("cpu")))
    assert [len(labels) for _, labels, _ in batches] == [12, 4]


def test_paper_recipe_of_ade20k():
    """Paper, section 4.3: 40,000 updates of 32 pictures, of 20,210."""
    recipe = get_recipe("paper_ade20k_semantic_fpn")
    assert (recipe.optimizer, recipe.lr, recipe.schedule, recipe.image_size) == ("adamw", 2e-4, "poly", 512)
    assert recipe.batches() == (4, 8) and recipe.epochs * (20_210 // 32) == pytest.approx(40_000, rel=0.02)


def test_progressive_sizes_share_the_first_part():
    recipe = get_recipe("small_images", ["epochs=10", "progressive_sizes=32,48"])
    assert [recipe.image_size_at(epoch) for epoch in range(10)] == [32] * 3 + [48] * 3 + [64] * 4
    assert get_recipe("finetune").image_size_at(0) == 224
    short = [get_recipe("small_images", [f"epochs={epochs}"]) for epochs in (1, 2)]
    assert [[r.image_size_at(epoch) for epoch in range(r.epochs)] for r in short] == [[64], [32, 64]]


def test_a_damaged_recipe_is_named(tmp_path):
    recipe = get_recipe("finetune")
    (tmp_path / "recipe.json").write_text("{")
    for again in (lambda: fitted(recipe, [], None, 1000, tmp_path), lambda: for_processor(recipe, [], "cpu", tmp_path)):
        with pytest.raises(ValueError, match=r"recipe.json: expected the recipe of a run, found damage"):
            again()


@pytest.mark.parametrize(("name", "epochs", "warmup"), [("finetune", 3, 1), ("paper_xs", 5, 2), ("paper_xs", 6, 5)])
def test_a_short_run_is_not_all_warm_up(name, epochs, warmup):
    assert get_recipe(name, [f"epochs={epochs}"]).warmup_epochs == warmup


def test_fine_tuning_fits_checkpoint_and_data(tmp_path, caplog):
    """What a person has set stays, and a run that goes on keeps what it began with."""
    caplog.set_level("INFO", "swiftformer")
    model = tiny()
    model.preprocessing = Preprocessing(size=(64, 64))
    reference = str(save(model, tmp_path / "model"))
    recipe = get_recipe("finetune")
    assert fitted(recipe, [], reference, 320) == dataclasses.replace(recipe, image_size=64)
    assert fitted(recipe, ["image_size=224"], reference, 320) == recipe
    few = fitted(recipe, [], reference, 319)
    assert few == dataclasses.replace(recipe, image_size=64, batch_size=8, lr=1e-3)
    assert caplog.messages[-1] == (
        "for this checkpoint and 319 training images: image_size=64, batch_size=8, lr=0.001; --set decides otherwise"
    )
    assert fitted(recipe, ["batch_size=32"], reference, 319).batch_size == 32
    single = str(save(model, tmp_path / "model.pth", format="authors"))
    assert fitted(recipe, [], single, 320) == dataclasses.replace(recipe, image_size=64)
    write_recipe(dataclasses.asdict(few), tmp_path)
    assert fitted(recipe, [], None, 1000, tmp_path) == few
    assert fitted(recipe, ["lr=2e-4"], None, 1000, tmp_path).lr == 2e-4
    with pytest.raises(CheckpointError, match="absent: no such file or folder"):
        fitted(recipe, [], str(tmp_path / "absent"), 319)


@pytest.mark.parametrize("name", ["paper_xs", "small_segmentation"])
def test_precision_fits_the_processor(name, tmp_path, caplog, monkeypatch):
    caplog.set_level("INFO", "swiftformer")
    recipe = get_recipe(name)
    monkeypatch.setattr(fitting, "_has_bf16", lambda: True)
    assert for_processor(recipe, [], "cpu") == recipe and not caplog.messages
    monkeypatch.setattr(fitting, "_has_bf16", lambda: False)
    assert for_processor(recipe, [], "cpu") == dataclasses.replace(recipe, precision="fp32")
    assert caplog.messages == ["bfloat16 is slow on this processor: precision=fp32; --set decides otherwise"]
    assert for_processor(recipe, ["precision=bf16"], "cpu") == recipe
    assert for_processor(recipe, [], "meta") == recipe
    caplog.clear()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    for device in ("cuda:1", None):
        assert for_processor(recipe, [], device) == dataclasses.replace(recipe, precision="fp16")
    assert caplog.messages[0] == "bfloat16 is slow on this GPU: precision=fp16; --set decides otherwise"
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    assert for_processor(recipe, [], "cuda") == recipe
    write_recipe(dataclasses.asdict(recipe), tmp_path)  # of a run that began elsewhere
    assert for_processor(recipe, [], "cpu", tmp_path) == recipe
