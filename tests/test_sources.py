import json
import logging
import os
import pickle
import re
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from conftest import shared
from swiftformer.data import hub, parquet
from swiftformer.data.cache import cache_folder
from swiftformer.data.class_names import differences
from swiftformer.data.hub import DatasetsSource
from swiftformer.data.sources import open_source
from swiftformer.images import ImageError
from test_image_processing import encoded


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SWIFTFORMER_CACHE", str(tmp_path / "swiftformer-cache"))
    return tmp_path / "swiftformer-cache"


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
    assert len(open_source(image_folder)) == 16 and len(open_source(image_folder, "all")) == 64
    assert len(open_source(image_folder / "train", "all")) == 48


def test_a_folder_of_pictures_called_train_is_a_class(image_folder):
    vehicles = image_folder / "train"
    (vehicles / "blue").rename(vehicles / "train")
    source = open_source(vehicles)
    assert source.classes == ["red", "train"] and len(source) == 48
    (image_folder / "docs").mkdir()
    assert open_source(image_folder, "train").classes == ["red", "train"]
    assert len(open_source(image_folder, "train")) == 48


def test_other_split_names(image_folder):
    (image_folder / "val").rename(image_folder / "extra")
    assert len(open_source(image_folder, "extra")) == 16
    (image_folder / "extra").rename(image_folder / "validation")
    assert len(open_source(image_folder, "val")) == len(open_source(image_folder)) == 16
    with pytest.raises(ValueError, match="expected a split named one of nothing, found train, validation"):
        open_source(image_folder, "nothing")
    with pytest.raises(ValueError, match="level: expected one of name, .*found 'species'"):
        open_source(image_folder, "val", level="species")
    with pytest.raises(ValueError, match=r"images: expected iNaturalist data .* for level=genus, found none"):
        open_source(image_folder, "val", level="genus")


@pytest.mark.parametrize(
    "layout", ["train-00000-of-00001.parquet", "data/train-00000-of-00002.parquet", "train.parquet"]
)
def test_parquet_layouts(tmp_path, layout):
    write_parquet(tmp_path / layout)
    source = open_source(tmp_path)
    assert source.classes == ["cat", "dog"] and len(source) == 6
    assert source.image(3).getpixel((0, 0)) == (27, 0, 0)
    assert len(open_source(tmp_path / layout, "test")) == len(open_source(tmp_path / layout, "all")) == 6
    with pytest.raises(ValueError, match="expected a split named one of vall, found all"):
        open_source(tmp_path / layout, "vall")


def test_parquet_splits_of_other_names(tmp_path):
    write_parquet(tmp_path / "alone" / "heldout-00000-of-00001.parquet")
    assert len(open_source(tmp_path / "alone")) == len(open_source(tmp_path / "alone", "test")) == 6
    write_parquet(tmp_path / "numbered" / "0000.parquet")
    write_parquet(tmp_path / "numbered" / "0001.parquet")
    assert len(open_source(tmp_path / "numbered")) == 12
    beside = tmp_path / "beside" / "data"
    write_parquet(beside / "train-00000-of-00001.parquet", count=20)
    write_parquet(beside / "heldout-00000-of-00002.parquet")
    write_parquet(beside / "heldout-00001-of-00002.parquet")
    assert len(open_source(beside.parent)) == len(open_source(beside.parent, "heldout")) == 12
    assert len(open_source(beside.parent, "train")) == 18
    write_parquet(beside / "test.parquet", count=4)
    assert len(open_source(beside.parent)) == 4


def test_parquet_files_that_are_no_split(tmp_path):
    write_parquet(tmp_path / "train.parquet", count=20)
    write_parquet(tmp_path / "all.parquet", count=24)
    pq.write_table(pa.table({"name": ["a"]}), tmp_path / "metadata.parquet")
    assert len(open_source(tmp_path)) == 20 and len(open_source(tmp_path, "train")) == 18


def test_parquet_files_beside_class_folders_are_no_data(image_folder):
    write_parquet(image_folder / "table.parquet")
    assert len(open_source(image_folder)) == 16
    write_parquet(image_folder / "train" / "table.parquet")
    assert len(open_source(image_folder / "train", "all")) == 48


def test_parquet_columns_and_shards(tmp_path):
    write_parquet(tmp_path / "test-00000-of-00002.parquet", image="img", label="fine_label", metadata=False)
    write_parquet(tmp_path / "test-00001-of-00002.parquet", image="img", label="fine_label", metadata=False)
    source = open_source(tmp_path, "val")
    assert len(source) == 12 and source.classes == ["0", "1"]
    assert source.image(11).size == (40, 36)
    assert [source.name(index).rpartition("/")[2] for index in (5, 6)] == [
        "test-00000-of-00002.parquet row 5",
        "test-00001-of-00002.parquet row 0",
    ]


def test_cifar10_as_shared():
    source = open_source(shared("data", "cifar10"), "test")
    assert len(source) == 10_000 and source.classes[:2] == ["airplane", "automobile"]
    assert source.image(9_999).size == (32, 32)


def test_datasets_library(tmp_path):
    write_parquet(tmp_path / "set" / "data" / "train-00000-of-00001.parquet")
    datasets = pytest.importorskip("datasets")
    source = DatasetsSource(
        datasets.load_dataset(str(tmp_path / "set"), split="train", cache_dir=str(tmp_path / "cache")), "set"
    )
    assert source.classes == ["cat", "dog"] and source.labels == [0, 1, 0, 1, 0, 1]
    assert source.image(2).getpixel((0, 0)) == (18, 0, 0)
    numbers = datasets.Dataset.from_dict({"image": [{"bytes": b"x", "path": None}] * 3, "label": [True, False, True]})
    numbered = DatasetsSource(numbers.cast_column("image", datasets.Image()), "set")
    assert numbered.classes == ["0", "1"] and [type(label) for label in numbered.labels] == [int] * 3


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: (p / "a").mkdir(), "expected one folder of images per class, found none"),
        (lambda p: None, "expected one folder of images per class, found none"),
        (
            lambda p: (p / "train" / "x").mkdir(parents=True),
            "train: expected one folder of images per class, found none",
        ),
        (lambda p: (p / "extra" / "train").mkdir(parents=True), "expected one folder of images per class, found none"),
        (
            lambda p: [write_parquet(p / f"{name}-0.parquet") for name in ("a", "b")],
            "expected a split named one of val.*found a, b",
        ),
        (lambda p: write_parquet(p / "train-0.parquet", count=2), "two or more pictures of some class to hold one out"),
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


def test_labels_that_are_true_or_false_or_numbers_of_products(tmp_path):
    pq.write_table(pa.table({"image": [b"x", b"y"], "label": [True, False]}), tmp_path / "val-0.parquet")
    source = open_source(tmp_path, "val")
    assert torch.tensor(source.labels).dtype == torch.int64 and source.classes == ["0", "1"]
    pq.write_table(pa.table({"image": [b"x", b"y"], "label": [3, 48_213]}), tmp_path / "val-0.parquet")
    with pytest.raises(ValueError, match="expected labels from 0 on, found 2 different ones up to 48213"):
        open_source(tmp_path, "val")


@pytest.mark.parametrize(
    "folders", [("training_set", "test_set"), ("seg_train", "seg_test", "seg_pred"), ("train2017", "val2017", "docs")]
)
def test_folders_called_like_splits_are_no_classes(image_folder, tmp_path, folders):
    for name in folders:
        shutil.copytree(image_folder / "val", tmp_path / "data" / name)
    with pytest.raises(ValueError, match=f"or splits called train and val .* found {folders[0]}, {folders[1]}"):
        open_source(tmp_path / "data")


def test_objects_called_like_splits_are_classes(image_folder):
    (image_folder / "val" / "blue").rename(image_folder / "val" / "train")
    (image_folder / "val" / "red").rename(image_folder / "val" / "test tubes")
    assert open_source(image_folder / "val", "all").classes == ["test tubes", "train"]


def test_pictures_without_classes_are_no_split(image_folder):
    """As contests have them in `test`."""
    shutil.move(image_folder / "val" / "red", image_folder / "test")
    shutil.rmtree(image_folder / "val")
    assert len(open_source(image_folder, "train")) == 44 and len(open_source(image_folder, "val")) == 4
    (image_folder / "val").mkdir()
    with pytest.raises(ValueError, match="val: expected one folder of images per class, found none"):
        open_source(image_folder, "val")
    (image_folder / "val" / "red").mkdir()
    (image_folder / "val" / "red" / "1.heic").write_bytes(b"x")
    with pytest.raises(ValueError, match="found 1 files .heic, which are not read"):
        open_source(image_folder, "val")


def test_pictures_that_phones_and_browsers_save(image_folder, caplog):
    red = image_folder / "val" / "red"
    Image.new("RGB", (40, 48)).save(red / "saved.jfif", "JPEG")
    Image.new("L", (40, 48)).save(red / "face.pgm")
    (red / "IMG_1.HEIC").write_bytes(b"x")
    source = open_source(image_folder, "val")
    assert len(source) == 18 and source.image(len(source) - 1).size == (40, 48)
    assert "1 pictures of kinds that are not read are left out (IMG_1.HEIC, ...)" in caplog.text


def test_a_user_without_a_home_has_a_cache(monkeypatch):
    monkeypatch.delenv("SWIFTFORMER_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)

    def homeless(self):
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr("pathlib.Path.expanduser", homeless)
    assert cache_folder() == Path(tempfile.gettempdir()) / f"swiftformer-{os.getuid()}"


def test_hidden_files_and_folders_are_left_out(image_folder):
    (image_folder / "val" / ".ipynb_checkpoints").mkdir()
    (image_folder / "val" / "red" / "._0.png").write_bytes(b"x")
    source = open_source(image_folder, "val")
    assert source.classes == ["blue", "red"] and len(source) == 16


def test_folders_that_systems_leave_behind_are_no_classes(image_folder, caplog):
    """Synology's and macOS's hold pictures of their own, beside the classes and within them."""
    root = image_folder / "val"
    for place in ("@eaDir/0.png", "__MACOSX/red", "red/@eaDir/0.png", "red/.ipynb_checkpoints"):
        (root / place).mkdir(parents=True)
        shutil.copy(root / "red" / "0.png", root / place / "0.png")
    source = open_source(image_folder, "val")
    assert source.classes == ["blue", "red"] and len(source) == 16 and not caplog.records


def test_folders_without_pictures_are_no_classes(image_folder, caplog):
    (image_folder / "train" / "notes").mkdir()
    (image_folder / "train" / "notes" / "readme.txt").touch()
    (image_folder / "train" / "later").mkdir()
    for split in ("train", "all"):
        source = open_source(image_folder / "train", split)
        assert source.classes == ["blue", "red"] and set(source.labels) == {0, 1}
    assert [record.getMessage() for record in caplog.records] == [
        f"{image_folder / 'train'}: no classes are made of 2 folders without pictures (later, notes)"
    ]


def test_a_class_stays_where_another_split_has_pictures_of_it(image_folder, caplog):
    for file in (image_folder / "val" / "blue").iterdir():
        file.unlink()
    (image_folder / "val" / "notes").mkdir()
    train, val = open_source(image_folder, "train"), open_source(image_folder, "val")
    assert train.classes == val.classes == ["blue", "red"] and set(val.labels) == {1}
    assert len(open_source(image_folder, "all")) == 56
    assert "without pictures (notes)" in caplog.text and "blue" not in caplog.text


def test_splits_of_a_named_data_set_are_told_apart(tmp_path, monkeypatch):
    pytest.importorskip("datasets")
    for split in ("train", "test"):
        write_parquet(tmp_path / "set" / "data" / f"{split}-00000-of-00001.parquet")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(hub, "_ask_once", lambda name: None)  # a folder stands for the hub
    splits = hub.find("set")
    assert sorted(splits) == ["test", "train"]
    assert splits["train"]().name(0) == "set train row 0" and splits["test"]().name(0) == "set test row 0"


def test_a_named_data_set_without_validation_split_is_cut(tmp_path, monkeypatch, caplog):
    pytest.importorskip("datasets")
    write_parquet(tmp_path / "set" / "data" / "train-00000-of-00001.parquet", count=20)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(hub, "_ask_once", lambda name: None)  # a folder stands for the hub
    splits = hub.find("set")
    monkeypatch.setattr(hub, "find", lambda name: splits)
    train, val, everything = (open_source("hub/set", split) for split in ("train", "val", None))
    assert (len(train), len(val), len(everything)) == (18, 2, 20)
    assert {train.name(i) for i in range(18)} | {val.name(i) for i in range(2)} == {
        everything.name(i) for i in range(20)
    }


@pytest.mark.parametrize("forked", [True, False])
def test_large_tables_are_unpacked_and_mapped(forked, tmp_path, monkeypatch, caplog, cache):
    for shard in range(2):
        write_parquet(tmp_path / f"val-{shard}.parquet", count=5 + shard)
    small = open_source(tmp_path, "val")
    monkeypatch.setattr(parquet, "IN_MEMORY" if forked else "COPIED", 0)
    monkeypatch.setattr(parquet, "are_forked", lambda: forked)

    def check(source):
        assert source.classes == small.classes and source.labels == small.labels and len(source) == 11
        for i in range(11):
            assert np.array_equal(np.asarray(source.image(i)), np.asarray(small.image(i)))

    with caplog.at_level(logging.INFO, "swiftformer"):
        check(mapped := open_source(tmp_path, "val"))
        assert len(pickle.dumps(mapped)) < 2000
        check(pickle.loads(pickle.dumps(mapped)))
        unpacked = sorted(cache.rglob("*.arrow"))
        unpacked[0].unlink()
        unpacked[0].write_bytes(b"damaged")
        check(open_source(tmp_path, "val"))
    assert len(unpacked) == 2
    assert [record.getMessage().split(" (")[0] for record in caplog.records] == [
        "unpacking 2 Parquet files",
        "unpacking 1 Parquet files",
    ]
    monkeypatch.setattr(parquet, "_unpacked_bytes", lambda *_: 10**18)
    monkeypatch.setenv("SWIFTFORMER_CACHE", str(tmp_path / "other"))
    with pytest.raises(ValueError, match="expected .* GB of free space to unpack Parquet files to, found"):
        open_source(tmp_path, "val")


def test_missing_path_and_unreachable_name():
    pytest.importorskip("datasets")
    with pytest.raises(ValueError, match="/no/such/folder: no such file or folder"):
        open_source("/no/such/folder", "val")
    for address in ("s3://bucket/x.tar", "https://example.org/{000..146}.tar"):
        with pytest.raises(ValueError, match="^" + re.escape(address) + ": expected .* on this machine.* an address"):
            open_source(address, "val")
    with pytest.raises(ValueError, match="nobody/nothing: no such folder, and the datasets library cannot load it"):
        open_source("nobody/nothing", "val")


def test_a_name_unknown_to_the_hub_is_told_at_once(monkeypatch, tmp_path):
    pytest.importorskip("datasets")

    def refuse(*_, **__):
        raise ConnectionError("no network")

    asked = []
    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", refuse)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path)
    monkeypatch.setattr("datasets.get_dataset_split_names", lambda name: asked.append(name) or [])
    with pytest.raises(ValueError, match=r"nobody/nothing: no such folder, .*\(ConnectionError: no network\)"):
        hub.find("nobody/nothing")
    assert not asked
    (tmp_path / "Nobody___no_thing").mkdir()  # as the library calls it
    assert hub.find("Nobody/NoThing") == {}
    assert asked == ["Nobody/NoThing"]


def test_how_classes_differ():
    assert differences(["a", "b"], ["b", "a"], "x", "y") == "the same names in another order"
    assert differences(["a", "b"], ["b"], "x", "y") == "1 only in x (a)"
