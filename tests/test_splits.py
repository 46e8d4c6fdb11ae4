import io
import logging
import pickle
import shutil
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from swiftformer.data.sources import open_source
from swiftformer.data.splits import Joined, Subset, choose, held_out


class Named:
    """Pictures that are nothing but names of the form CLASS/NAME."""

    def __init__(self, keys):
        self.keys = sorted(keys)
        names = [key.split("/")[0] for key in self.keys]
        self.classes = sorted(set(names))
        self.labels = [self.classes.index(name) for name in names]

    def __len__(self):
        return len(self.keys)

    def image(self, index, short_side=None):
        return Image.new("RGB", (1, 1), (self.labels[index], 0, 0))

    def name(self, index):
        return f"/where/{self.keys[index]}"

    def key(self, index):
        return self.keys[index]


def keys(source):
    return {source.key(i) for i in range(len(source))}


pictures = st.sets(st.tuples(st.sampled_from("abc"), st.integers(0, 400)).map("{0[0]}/{0[1]}".format), max_size=120)


@given(pictures)
def test_no_picture_is_in_both_parts_and_each_class_is_in_both(names):
    source = Named(names)
    train, val = held_out(source)
    assert not keys(train) & keys(val) and keys(train) | keys(val) == names
    for part in (train, val):
        assert [part.classes[label] for label in part.labels] == [part.key(i).split("/")[0] for i in range(len(part))]
        assert sorted(part.indices) == part.indices
    total, held = (Counter(key.split("/")[0] for key in part) for part in (names, keys(val)))
    for name, count in total.items():
        assert held[name] == (0 if count == 1 else max(1, round(count / 10)))


@given(pictures, st.tuples(st.sampled_from("abcd"), st.integers(401, 999)).map("{0[0]}/{0[1]}".format))
def test_one_more_picture_moves_at_most_one_other_of_its_class(names, added):
    before, after = (keys(held_out(Named(set_))[1]) for set_ in (names, names | {added}))
    moved = (before ^ after) - {added}
    assert len(moved) <= 1 and all(key[0] == added[0] for key in moved)


def test_moving_the_folder_moves_no_picture(image_folder, tmp_path):
    shutil.copytree(image_folder / "train", tmp_path / "elsewhere" / "train")
    here, there, flat = (
        open_source(place, "val")
        for place in (image_folder / "train", tmp_path / "elsewhere", tmp_path / "elsewhere" / "train")
    )
    assert keys(here) == keys(there) == keys(flat) and len(here) == 4
    assert here.classes == ["blue", "red"] and here.image(0).size == (48, 40)
    assert keys(pickle.loads(pickle.dumps(here))) == keys(here)


def test_flat_trees(image_folder):
    flat = image_folder / "train"
    assert [len(open_source(flat, split)) for split in ("train", "val", "validation")] == [44, 4, 4]
    assert [len(open_source(flat, split)) for split in ("all", "test", None)] == [48, 48, 48]


def test_data_with_a_training_split_only(image_folder, caplog):
    shutil.rmtree(image_folder / "val")
    with caplog.at_level(logging.INFO, "swiftformer"):
        train, val, everything = (open_source(image_folder, split) for split in ("train", "val", None))
    assert not keys(train) & keys(val) and keys(train) | keys(val) == keys(everything)
    assert len(everything) == 48 == len(open_source(image_folder, "all"))
    assert [
        record.getMessage().removeprefix(f"{image_folder} has no validation split: ") for record in caplog.records
    ] == [
        "training on 44 of 48 pictures",
        "evaluating on 4 of 48 pictures, those that training holds out of each class",
        "taking all 48 pictures; --split val evaluates what training holds out",
    ]
    with pytest.raises(ValueError, match="expected a split named one of test, .*found train"):
        open_source(image_folder, "test")


@pytest.mark.parametrize(
    ("present", "split", "chosen"),
    [
        (("train", "val", "test"), None, "val"),
        (("train", "test"), None, "test"),
        (("train", "test"), "val", "test"),
        (("train", "valid"), "test", "valid"),
        (("train", "val", "test"), "testing", "test"),
        (("train", "dev"), "validation", "dev"),
        (("test",), None, "test"),
        (("train", "heldout"), None, "heldout"),
        (("training", "heldout"), None, "heldout"),
        (("heldout",), None, "heldout"),
        (("train", "val", "heldout"), None, "val"),
        (("train", "trainval"), None, "train"),
    ],
)
def test_which_split_is_chosen(present, split, chosen):
    sources = {name: Named({f"a/{name}"}) for name in present}
    assert choose({name: lambda name=name: sources[name] for name in present}, split, "data") is sources[chosen]


@pytest.mark.parametrize("names", [("Train", "Val"), ("Training", "Testing"), ("TRAIN", "test")])
def test_capitals_do_not_matter(image_folder, names):
    for old, new in zip(("train", "val"), names, strict=True):
        (image_folder / old).rename(image_folder / new)
    train, val = open_source(image_folder, "train"), open_source(image_folder, "val")
    assert train.classes == ["blue", "red"] and (len(train), len(val)) == (48, 16)
    assert len(open_source(image_folder, names[1])) == 16 and len(open_source(image_folder, "all")) == 64


def test_capitals_do_not_matter_in_tables(tmp_path):
    import numpy as np
    import pyarrow
    import pyarrow.parquet

    content = io.BytesIO()
    Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(content, "PNG")
    for count, name in enumerate(("train-0", "validation-0", "Test-0"), start=2):
        table = pyarrow.table({"image": [content.getvalue()] * count, "label": [i % 2 for i in range(count)]})
        pyarrow.parquet.write_table(table, tmp_path / f"{name}.parquet")
    assert [len(open_source(tmp_path, split)) for split in ("train", "val", "test", "Test")] == [2, 3, 4, 4]


def test_a_class_may_be_called_like_a_split(image_folder):
    """In capitals, beside other classes; as data sets of vehicles have a train."""
    for name in ("Bus", "Car", "Train/front", "Train/side"):
        (image_folder / "vehicles" / name).mkdir(parents=True)
        Image.new("RGB", (32, 32)).save(image_folder / "vehicles" / name / "a.png")
    found = open_source(image_folder / "vehicles")
    assert found.classes == ["Bus", "Car", "Train"] and len(found) == 4


def test_capitals_do_not_matter_beside_masks_and_boxes(segmentation_folder, tmp_path):
    from swiftformer.data.dense_splits import split_of
    from swiftformer.data.segmentation import open_segmentation

    for kind in ("images", "annotations"):
        for old in ("train", "val"):
            (segmentation_folder / kind / old).rename(segmentation_folder / kind / old.title())
    for split, count in (("train", 12), ("val", 4), ("Val", 4)):
        assert len(open_segmentation(segmentation_folder, split)) == count
    assert [split_of(name) for name in ("Train2017", "VALID", "Extra")] == ["train", "valid", "Extra"]


def test_several_splits_of_unknown_names_are_asked_for():
    with pytest.raises(ValueError, match=r"data: expected --split with one of hidden, holdout, found none"):
        choose({name: lambda: Named({"a/0"}) for name in ("train", "holdout", "hidden")}, None, "data")


def test_a_split_of_another_name_is_evaluated(image_folder, tmp_path):
    root = tmp_path / "data"
    shutil.copytree(image_folder / "train", root / "train")
    shutil.copytree(image_folder / "val", root / "heldout")
    (root / "notes" / "figures").mkdir(parents=True)
    held_out = open_source(root, None)
    assert keys(held_out) == keys(open_source(root / "heldout", "all")) == keys(open_source(root, "heldout"))
    assert len(open_source(root, "train")) == 44  # what training holds out is still cut from it


def test_a_folder_without_splits_says_that_all_of_it_is_taken(image_folder, caplog):
    with caplog.at_level(logging.INFO, "swiftformer"):
        assert len(open_source(image_folder / "train", None)) == 48
        open_source(image_folder / "train", "all")
    assert [record.getMessage() for record in caplog.records] == [
        f"{image_folder / 'train'} has no validation split: taking all 48 pictures; "
        "--split val evaluates what training holds out"
    ]


def test_everything_of_several_splits():
    parts = [Named({"a/0", "b/0"}), Named({"a/1", "b/1", "b/2"})]
    joined = choose({"train": lambda: parts[0], "val": lambda: parts[1]}, "all", "data")
    assert [joined.key(i) for i in range(5)] == ["a/0", "b/0", "a/1", "b/1", "b/2"] and joined.labels == [0, 1, 0, 1, 1]
    assert joined.name(4) == "/where/b/2" and joined.image(4).getpixel((0, 0))[0] == 1
    with pytest.raises(ValueError, match="expected the same classes in all splits, found 2 and 1"):
        Joined([parts[0], Named({"a/1"})])


def test_subset_keeps_the_given_order():
    subset = Subset(Named({"a/0", "b/0", "c/0"}), [2, 0])
    assert subset.labels == [2, 0] and [subset.key(0), subset.name(1)] == ["c/0", "/where/a/0"]
