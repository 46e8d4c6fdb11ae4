import pytest

from swiftformer.train.recipes import RECIPES, Recipe, get_recipe


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_are_valid_and_frozen(name):
    recipe = get_recipe(name)
    assert isinstance(recipe, Recipe)
    with pytest.raises(AttributeError):
        recipe.lr = 1.0


def test_settings():
    recipe = get_recipe(
        "smoke",
        ["epochs=7", "lr=3e-4", "crop_scale=0.5,1", "resize_to=none", "compile=true", "progressive_sizes=32,32",
         "precision=bf16", "auto_augment="],
    )  # fmt: skip
    assert (recipe.epochs, recipe.lr, recipe.crop_scale) == (7, 3e-4, (0.5, 1.0))
    assert recipe.resize_to is None and recipe.compile and recipe.progressive_sizes == (32, 32)
    assert recipe.precision == "bf16" and recipe.auto_augment == ""
    assert get_recipe("smoke", ["progressive_sizes="]).progressive_sizes == ()


@pytest.mark.parametrize(
    ("name", "setting", "message"),
    [
        ("paper", "", "unknown recipe 'paper': expected one of small_images, finetune, smoke"),
        ("smoke", "epoch=3", "expected key=value with a key of epochs,.*found 'epoch=3'"),
        ("smoke", "epochs", "found 'epochs'"),
        ("smoke", "epochs=many", "epochs: expected int, found 'many'"),
        ("smoke", "epochs=0", "at least 1"),
        ("smoke", "image_size=16", "at least 32"),
        ("smoke", "crop_scale=1", "crop_scale: expected"),
        ("smoke", "precision=fp8", "precision: expected"),
        ("smoke", "compile=maybe", "compile: expected bool, found 'maybe'"),
        ("smoke", "warmup_epochs=9", "expected warmup_epochs from 0 to epochs"),
        ("smoke", "progressive_sizes=64", "expected progressive_sizes from 32 to image_size"),
        ("smoke", "interpolation=best", "interpolation must be one of"),
    ],
)
def test_bad_settings(name, setting, message):
    with pytest.raises(ValueError, match=message):
        get_recipe(name, [setting] if setting else [])


def test_odd_batches_cannot_be_mixed():
    with pytest.raises(ValueError, match="even batch_size, found 15"):
        get_recipe("smoke", ["mixup=0.8", "batch_size=15"])


def test_progressive_sizes_share_the_first_part():
    recipe = get_recipe("small_images", ["epochs=10", "progressive_sizes=32,48"])
    assert [recipe.image_size_at(epoch) for epoch in range(10)] == [32] * 3 + [48] * 3 + [64] * 4
    assert get_recipe("finetune").image_size_at(0) == 224
