import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from conftest import shared
from swiftformer.data.loaders import evaluation_loader, training_loader
from swiftformer.data.sources import _from_datasets, open_source
from swiftformer.image_processing import ImageError, Preprocessing
from swiftformer.train.recipes import get_recipe
from test_image_processing import encoded

SMALL = Preprocessing(size=(32, 32), resize="shortest")


def write_parquet(path, count=6, names=("cat", "dog"), image="image", label="label", metadata=True):
    path.parent.mkdir(parents=True, exist_ok=True)
    images = [
        {"bytes": encoded(Image.new("RGB", (40, 36), (i * 9, 0, 0)), "PNG"), "path": f"{i}.png"} for i in range(count)
    ]
    table = pa.table({image: images, label: [i % len(names) for i in range(count)]})
    if metadata:
        features = {image: {"_type": "Image"}, label: {"names": list(names), "_type": "ClassLabel"}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, path)


def test_image_folder(image_folder):
    source = open_source(image_folder, "train")
    assert source.classes == ["blue", "red"] and len(source) == 48 and set(source.labels) == {0, 1}
    assert source.image(0).mode == "RGB" and source.name(0).endswith("0.png")
    assert len(open_source(image_folder, "val")) == len(open_source(image_folder, "test")) == 16
    flat = open_source(image_folder / "train", "val")
    assert len(flat) == 48


@pytest.mark.parametrize(
    "layout", ["train-00000-of-00001.parquet", "data/train-00000-of-00002.parquet", "train.parquet"]
)
def test_parquet_layouts(tmp_path, layout):
    write_parquet(tmp_path / layout)
    source = open_source(tmp_path, "train")
    assert source.classes == ["cat", "dog"] and len(source) == 6
    assert source.image(3).getpixel((0, 0)) == (27, 0, 0)
    assert len(open_source(tmp_path / layout, "anything")) == 6


def test_parquet_columns_and_shards(tmp_path):
    write_parquet(tmp_path / "test-00000-of-00002.parquet", image="img", label="fine_label", metadata=False)
    write_parquet(tmp_path / "test-00001-of-00002.parquet", image="img", label="fine_label", metadata=False)
    source = open_source(tmp_path, "val")
    assert len(source) == 12 and source.classes == ["0", "1"]
    assert source.image(11).size == (40, 36)


def test_cifar10_as_shared():
    source = open_source(shared("data", "cifar10"), "test")
    assert len(source) == 10_000 and source.classes[:2] == ["airplane", "automobile"]
    assert source.image(9_999).size == (32, 32)


def test_datasets_library(tmp_path):
    write_parquet(tmp_path / "set" / "data" / "train-00000-of-00001.parquet")
    datasets = pytest.importorskip("datasets")
    from swiftformer.data.sources import DatasetsSource

    source = DatasetsSource(
        datasets.load_dataset(str(tmp_path / "set"), split="train", cache_dir=str(tmp_path / "cache")), "set"
    )
    assert source.classes == ["cat", "dog"] and source.labels == [0, 1, 0, 1, 0, 1]
    assert source.image(2).getpixel((0, 0)) == (18, 0, 0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: (p / "a").mkdir(), "expected one folder of images per class, found none"),
        (lambda p: None, "expected one folder of images per class, found none"),
        (lambda p: (p / "train" / "x").mkdir(parents=True), "expected a split named one of val.*found train"),
        (lambda p: write_parquet(p / "train-0.parquet"), "expected a split named one of val"),
        (lambda p: (p / "val-0.parquet").write_text("no parquet"), "expected a Parquet file"),
        (
            lambda p: write_parquet(p / "val-0.parquet", image="pixels"),
            "expected an image column .* found pixels, label",
        ),
    ],
)
def test_folders_that_are_no_data_set(tmp_path, make, message):
    make(tmp_path)
    with pytest.raises(ValueError, match=message):
        open_source(tmp_path, "val")


def test_labels_beyond_the_class_names(tmp_path):
    table = pa.table({"image": [{"bytes": b"", "path": ""}], "label": [7]})
    features = {"label": {"names": ["a", "b"]}}
    pq.write_table(
        table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})}),
        tmp_path / "val-0.parquet",
    )
    with pytest.raises(ValueError, match="expected labels from 0 to 1, found 7"):
        open_source(tmp_path, "val")


def test_rows_without_label_or_image(tmp_path):
    pq.write_table(pa.table({"image": [b"x", b"y"], "label": [0, None]}), tmp_path / "val-0.parquet")
    with pytest.raises(ValueError, match="expected a label for every image, found 1 without one"):
        open_source(tmp_path, "val")
    pq.write_table(pa.table({"image": [b"x", b"y"], "label": [0, -1]}), tmp_path / "val-0.parquet")
    with pytest.raises(ValueError, match="found 1 without one"):
        open_source(tmp_path, "val")
    table = pa.table({"image": [{"bytes": None, "path": None}], "label": [0]})
    pq.write_table(table, tmp_path / "val-0.parquet")
    with pytest.raises(ImageError, match="row 0: expected an image, found an empty cell"):
        open_source(tmp_path, "val").image(0)


def test_labels_that_are_no_numbers(tmp_path):
    pq.write_table(pa.table({"image": [b"x", b"y"], "label": ["cat", "dog"]}), tmp_path / "val-0.parquet")
    with pytest.raises(ValueError, match="expected whole numbers as labels, found 'cat'"):
        open_source(tmp_path, "val")


def test_hidden_files_and_folders_are_left_out(image_folder):
    (image_folder / "val" / ".ipynb_checkpoints").mkdir()
    (image_folder / "val" / "red" / "._0.png").write_bytes(b"x")
    source = open_source(image_folder, "val")
    assert source.classes == ["blue", "red"] and len(source) == 16


def test_splits_of_a_named_data_set_are_told_apart(tmp_path, monkeypatch):
    pytest.importorskip("datasets")
    for split in ("train", "test"):
        write_parquet(tmp_path / "set" / "data" / f"{split}-00000-of-00001.parquet")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    train, val = (_from_datasets("set", split) for split in ("train", "val"))
    assert train.name(0).endswith("set train row 0") and val.name(0).endswith("set test row 0")


def test_unknown_augmentation(image_folder):
    recipe = get_recipe("smoke", ["auto_augment=foo"])
    with pytest.raises(ValueError, match="auto_augment: expected a policy of timm .*, found 'foo'"):
        training_loader(open_source(image_folder, "train"), recipe, 32, torch.device("cpu"), 0)


def test_missing_path_and_unreachable_name():
    with pytest.raises(ValueError, match="/no/such/folder: no such file or folder"):
        open_source("/no/such/folder", "val")
    with pytest.raises(ValueError, match="nobody/nothing: no such folder, and the datasets library cannot load it"):
        open_source("nobody/nothing", "val")


def test_unreadable_pictures_are_named_and_skipped(image_folder, caplog):
    broken = image_folder / "val" / "red" / "3.png"
    broken.write_bytes(b"broken")
    source = open_source(image_folder, "val")
    batches = list(evaluation_loader(source, SMALL, batch_size=4, workers=0))
    assert sum(len(labels) for _, labels, _ in batches) == 15
    assert str(broken) in caplog.text
    (image_folder / "train" / "blue" / "0.png").write_bytes(b"")
    recipe = get_recipe("smoke", ["batch_size=48"])
    _, targets = next(iter(training_loader(open_source(image_folder, "train"), recipe, 32, torch.device("cpu"), 0)))
    assert len(targets) == 48 and "found an empty file" in caplog.text


def test_evaluation_batches_are_the_preprocessing(image_folder):
    source = open_source(image_folder, "val")
    pixels, _, indices = next(iter(evaluation_loader(source, SMALL, batch_size=5, workers=0)))
    assert pixels.shape == (5, 3, 32, 32) and indices.tolist() == [0, 1, 2, 3, 4]
    assert np.array_equal(pixels[2].numpy(), SMALL(source.image(2))[0])


@pytest.mark.parametrize("settings", [(), ("mixup=0.8",), ("cutmix=1",), ("repeated_augmentation=3",)])
def test_training_batches(image_folder, settings):
    recipe = get_recipe("smoke", ["batch_size=12", "auto_augment=rand-m9-mstd0.5-inc1", "random_erasing=1", *settings])
    source = open_source(image_folder, "train")
    loader = training_loader(source, recipe, 32, torch.device("cpu"), 0)
    loader.sampler.set_epoch(0)
    batches = list(loader)
    assert len(batches) == 4
    for pixels, targets in batches:
        assert pixels.shape == (12, 3, 32, 32) and pixels.dtype == torch.float32
        if recipe.mixes:
            assert targets.shape == (12, 2)
            torch.testing.assert_close(targets.sum(1), torch.ones(12))
        else:
            assert targets.shape == (12,)


def test_order_depends_on_the_epoch_and_repeats(image_folder):
    source = open_source(image_folder, "train")
    plain = training_loader(source, get_recipe("smoke"), 32, torch.device("cpu"), 0).sampler
    repeated = get_recipe("smoke", ["repeated_augmentation=3"])
    threefold = training_loader(source, repeated, 32, torch.device("cpu"), 0).sampler
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
        training_loader(source, recipe, 32, torch.device("cpu"), 0)
