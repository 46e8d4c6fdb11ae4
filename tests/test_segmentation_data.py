import json
import logging
import os
import pickle
import shutil
import signal
import struct
import zlib
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision import tv_tensors

from conftest import picture_with_mask as picture
from conftest import shared
from swiftformer.data.class_names import KNOWN, class_names, find_names, read_names
from swiftformer.data.dense_loaders import (
    SegmentationDataset,
    SegmentationEvaluationLoader,
    SegmentationTrainingLoader,
)
from swiftformer.data.dense_transforms import RandomScale, SegmentationAugmentation
from swiftformer.data.epoch_loader import seed_generators
from swiftformer.data.masks import VOID, AnnotationError, read_mask
from swiftformer.data.segmentation import Relabelled, bad_pairs, open_segmentation, read_pair
from swiftformer.image_processing import Preprocessing
from swiftformer.images import MAX_PIXELS, open_image

WHOLE = Preprocessing(resize="whole", interpolation="bilinear")


def write(image, mask, pixels, indices):
    for file, content in ((image, pixels), (mask, indices)):
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(content).save(file)


@pytest.fixture
def folder(segmentation_folder):
    return segmentation_folder


# Layouts


@pytest.mark.parametrize(
    ("image", "mask"),
    [
        ("images/{split}/{name}.png", "annotations/{split}/{name}.png"),
        ("images/{split}/town/{name}.jpg", "labels/{split}/town/{name}.png"),
        ("{split}/images/{name}.webp", "{split}/masks/{name}_mask.png"),
        ("{split}/img/{name}.JPG", "{split}/labels/{name}.JPG.png"),
        ("{split}/image/{name}.v2.png", "{split}/label/{name}.v2.tif"),
    ],
)
@pytest.mark.parametrize("names", [("train", "val"), ("train", "valid"), ("train", "test")])
def test_layouts(tmp_path, image, mask, names):
    for split, count in zip(names, (3, 2), strict=True):
        for i in range(count):
            paths = [tmp_path / form.format(split=split, name=f"p{i}") for form in (image, mask)]
            write(*paths, *picture(i))
    train, val = open_segmentation(tmp_path, "train"), open_segmentation(tmp_path)
    assert len(train) == 3 and len(val) == len(open_segmentation(tmp_path, "val")) == 2
    assert len(open_segmentation(tmp_path, "all")) == 5 and train.classes == ["class_0", "class_1", "class_2"]
    for source in (train, val, pickle.loads(pickle.dumps(val))):
        for i in range(len(source)):
            found, indices = read_pair(source, i)
            assert found.mode == "RGB" and indices.dtype == np.uint8 and np.array_equal(indices, picture(i)[1])
            assert f"p{i}." in source.name(i)


def test_data_without_splits_are_cut(tmp_path, caplog):
    for i in range(20):
        write(tmp_path / "images" / f"{i}.png", tmp_path / "masks" / f"{i}.png", *picture(i))
    with caplog.at_level(logging.INFO, "swiftformer"):
        train, val = open_segmentation(tmp_path, "train"), open_segmentation(tmp_path, "val")
    assert len(train) == 18 and len(val) == 2 and len(open_segmentation(tmp_path)) == 20
    assert not {train.name(i) for i in range(18)} & {val.name(i) for i in range(2)}
    assert "training on 18 of 20 pictures" in caplog.text


def test_the_first_folder_that_holds_masks_is_taken(tmp_path):
    for split in ("train", "val"):
        for i in range(3):
            write(tmp_path / split / "images" / f"{i}.png", tmp_path / split / "masks" / f"{i}.png", *picture(i))
        (tmp_path / split / "annotations" / "below").mkdir(parents=True)
        (tmp_path / split / "annotations" / "below" / "instances.json").write_text("{}")
        (tmp_path / split / "annotations" / "._0.png").write_bytes(b"x")
    for data in (tmp_path, tmp_path / "val"):
        source = open_segmentation(data)
        assert len(source) == 3 and np.array_equal(source.mask(1), picture(1)[1])


@pytest.mark.parametrize("form", ["{kind}/heldout", "heldout/{kind}"])
def test_folders_of_any_name_are_taken_whole(tmp_path, form):
    for i in range(2):
        write(*(tmp_path / form.format(kind=kind) / f"{i}.png" for kind in ("images", "masks")), *picture(i))
    for split in (None, "all", "heldout"):
        assert len(open_segmentation(tmp_path, split)) == 2


def test_ade20k(tmp_path, caplog):
    for split in ("training", "validation"):
        for i in range(2):
            where = [
                tmp_path / kind / split / f"ADE_{i}.{end}" for kind, end in (("images", "jpg"), ("annotations", "png"))
            ]
            write(*where, *picture(i))
    (tmp_path / "objectInfo150.txt").write_text(
        "Idx\tRatio\tTrain\tVal\tStuff\tName\n1\t0.1\t9\t2\t1\twall\n2\t0.1\t9\t2\t1\tbuilding, edifice \n"
    )
    with caplog.at_level(logging.INFO, "swiftformer"):
        source = open_segmentation(tmp_path, "train")
    assert source.classes == ["wall", "building"] and "index 0 is taken for void" in caplog.text
    expected = picture(1)[1]
    assert np.array_equal(source.mask(1), np.where(expected == 0, VOID, np.where(expected == VOID, VOID, expected - 1)))
    plain = open_segmentation(tmp_path, "val", reduce_zero_label=False, classes="a, b, c")
    assert np.array_equal(plain.mask(1), expected) and plain.classes == ["a", "b", "c"]
    assert Relabelled(source, [1, 0], ["a", "b"]).reduce_zero_label and not plain.reduce_zero_label
    (tmp_path / "objectInfo150.txt").unlink()
    assert open_segmentation(tmp_path).classes == ["class_0", "class_1"]
    one = open_segmentation(tmp_path, classes=["wall"], check_masks=False)
    with pytest.raises(
        AnnotationError, match=r"ADE_0.png: expected class indices from 1 to 1, and 255 for void, found 2"
    ):
        one.mask(0)
    with pytest.raises(
        AnnotationError,
        match=r"training/ADE_0.png: expected class indices from 1 to 1, .* found 2; 3 others of the first 4 masks",
    ):
        open_segmentation(tmp_path, classes=["wall"])


@pytest.mark.parametrize("above", ["", "VOCdevkit"])
def test_pascal_voc(tmp_path, above):
    root = tmp_path / above / "VOC2012"
    for i in range(4):
        (root / "JPEGImages").mkdir(parents=True, exist_ok=True)
        (root / "SegmentationClass").mkdir(exist_ok=True)
        pixels, mask = picture(i)
        Image.fromarray(pixels).save(root / "JPEGImages" / f"2007_{i}.jpg")
        colored = Image.fromarray(mask, "P") if i % 2 else Image.fromarray(mask)
        colored.putpalette([value for index in range(256) for value in (index, 255 - index, 7)])
        colored.save(root / "SegmentationClass" / f"2007_{i}.png")
    lists = root / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("2007_0\n2007_2 \n\n")
    (lists / "val.txt").write_text("2007_1\n2007_9\n")
    for data in (root, tmp_path):
        source = open_segmentation(data, "train")
        assert source.classes == list(KNOWN["voc"]) and len(source) == 2 and len(open_segmentation(data)) == 1
        assert np.array_equal(source.mask(1), picture(2)[1])
    with pytest.raises(AnnotationError, match="2007_9: expected a picture for the mask, found none"):
        open_segmentation(root, "val", on_error="raise")
    for folder, end in (("JPEGImages", "jpg"), ("SegmentationClass", "png")):
        (root / folder / f"2007_0.{end}").rename(root / folder / f"2007 0.{end}")
    (lists / "train.txt").write_text("2007 0 \n2007_2 1\n")
    assert len(open_segmentation(root, "train")) == 2
    (lists / "trainval.txt").write_text("2007_2\n2007_1\n2007 0\n")
    everything = open_segmentation(root, "all")
    assert len(everything) == 3 == len({everything.name(i) for i in range(3)})


def test_camvid():
    data = shared("data", "camvid")
    train, val = open_segmentation(data, "train"), open_segmentation(data, "val", classes="camvid")
    assert len(train) == 367 and len(val) == 101 and val.classes[0] == "sky" and train.classes == val.classes
    image, mask = read_pair(val, 7)
    assert image.size == (480, 360) and mask.shape == (360, 480) and mask.dtype == np.uint8
    assert np.unique(mask).max() == VOID


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("cat\ndog\n\n", ["cat", "dog"]),
        ("\ufeffcat\r\ndog", ["cat", "dog"]),
        ("0 cat\n1 red dog", ["cat", "red dog"]),
        ("0: cat\n1: dog", ["cat", "dog"]),
        ("3 wheeler\n4 wheeler", ["3 wheeler", "4 wheeler"]),
        ("__ignore__\n_background_\ncat", ["_background_", "cat"]),
        ("Idx\tName\n0\tdoor\n1\tdoor, screen", ["door", "door, screen"]),
    ],
)
def test_files_with_class_names(tmp_path, text, names):
    (tmp_path / "classes.txt").write_bytes(text.encode())
    assert read_names(tmp_path / "classes.txt") == names == class_names(str(tmp_path / "classes.txt"))


@pytest.mark.parametrize("text", ["1 cat\n2 red dog", "Idx\tName\n1\tcat\n2\tred dog, big dog"])
def test_numbers_that_begin_at_1_need_an_index_0_that_is_void(folder, text):
    file = folder / "classes.txt"
    file.write_text(text)
    for read in (read_names, lambda f: class_names(str(f)), lambda f: open_segmentation(f.parent)):
        with pytest.raises(ValueError, match=r"classes.txt: expected numbers that begin at 0, .* found 1"):
            read(file)
    assert read_names(file, True) == class_names(str(file), True) == find_names(folder, True) == ["cat", "red dog"]
    assert open_segmentation(folder, reduce_zero_label=True).classes == ["cat", "red dog"]
    assert read_names(file.rename(folder / "objectInfo150.txt")) == ["cat", "red dog"]
    file.write_text("0 cat\n1 dog")
    with pytest.raises(ValueError, match=r"expected numbers that begin at 1, .* found 0"):
        read_names(file, True)


def test_class_names_that_are_no_file(tmp_path):
    assert len(class_names(",".join(f"class number {i}" for i in range(50)))) == 50
    for wrong in (str(tmp_path / "names"), "missing.txt", "my,missing.TXT"):
        with pytest.raises(ValueError, match="expected class names or a file with them, found no such file"):
            class_names(wrong)
    with pytest.raises(ValueError, match="expected class names or a file with them, found a folder"):
        class_names(str(tmp_path))
    assert class_names("cat/lynx, dog") == ["cat/lynx", "dog"] and class_names(["missing.txt"]) == ["missing.txt"]


def test_class_names_that_cannot_be(tmp_path):
    for text, message in (
        ("", "found none"),
        ("0 cat\n2 dog", "expected numbers that count up, found 2 after 0"),
        ("cat\ncat", "found 'cat' twice"),
        ("Idx\tName\n1", "found an empty one"),
    ):
        (tmp_path / "classes.txt").write_text(text)
        with pytest.raises(ValueError, match=message):
            read_names(tmp_path / "classes.txt")
    (tmp_path / "classes.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match="expected class names as UTF-8"):
        read_names(tmp_path / "classes.txt")
    assert class_names("sky, road") == ["sky", "road"] and len(class_names("camvid")) == 11


@pytest.mark.parametrize(
    ("make", "split", "message"),
    [
        (lambda p: None, None, "expected folders with pictures and masks, .*found an empty folder"),
        (lambda p: (p / "photos").mkdir(), None, "expected folders with pictures and masks, .*found photos"),
        (lambda p: [(p / n / "train").mkdir(parents=True) for n in ("images", "masks")], "train", "found none"),
        (
            lambda p: write(p / "images/train/0.png", p / "masks/train/0.png", *picture()),
            "test",
            "expected a split named one of test, .*found train",
        ),
        (
            lambda p: write(p / "images/val/0.png", p / "masks/val/1.png", *picture()),
            "val",
            "expected pictures with masks, found none .*0.png",
        ),
    ],
)
def test_folders_that_are_no_data_set(tmp_path, make, split, message):
    make(tmp_path)
    with pytest.raises(ValueError, match=message):
        open_segmentation(tmp_path, split)
    with pytest.raises(ValueError, match="no such folder"):
        open_segmentation(tmp_path / "nowhere")


def test_linked_folders(folder, tmp_path):
    for kind in ("images", "annotations"):
        (tmp_path / "linked" / kind).mkdir(parents=True)
        (tmp_path / "linked" / kind / "heldout").symlink_to(folder / kind / "val")
    assert len(open_segmentation(tmp_path / "linked", "heldout")) == len(open_segmentation(folder, "val")) > 0


def test_hidden_files_are_left_out(folder):
    (folder / "images" / "val" / "._00.png").write_bytes(b"x")
    write(folder / "images/val/.cache/00.png", folder / "annotations/val/.cache/00.png", *picture())
    assert len(open_segmentation(folder, on_error="raise")) == 4


# Masks


def gray_png(mask, bits):
    """A grayscale PNG with few bits, written by hand: Pillow writes none."""
    values = mask.astype(np.uint8)
    rows = b"".join(
        b"\0" + np.packbits(np.unpackbits(row[:, None], axis=1)[:, -bits:].ravel()).tobytes() for row in values
    )
    parts = [
        (b"IHDR", struct.pack(">IIBBBBB", mask.shape[1], mask.shape[0], bits, 0, 0, 0, 0)),
        (b"IDAT", zlib.compress(rows)),
    ]
    chunks = [
        struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in [*parts, (b"IEND", b"")]
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_masks_of_few_bits(tmp_path, bits):
    mask = np.random.default_rng(0).integers(0, 2**bits, (5, 7))
    (tmp_path / "mask.png").write_bytes(gray_png(mask, bits))
    assert np.array_equal(read_mask(tmp_path / "mask.png"), mask)


def gray_tiff(mask, bits):
    """A grayscale TIFF with few bits, one strip, written by hand."""
    values = mask.astype(np.uint8)
    strip = b"".join(np.packbits(np.unpackbits(row[:, None], axis=1)[:, -bits:].ravel()).tobytes() for row in values)
    height, width = mask.shape
    tags = [(256, width), (257, height), (258, bits), (259, 1), (262, 1), (273, 8), (277, 1), (278, height)]
    tags.append((279, len(strip)))
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    strip += b"\0" * (len(strip) % 2)
    return b"II*\0" + struct.pack("<I", 8 + len(strip)) + strip + struct.pack("<H", len(tags)) + entries + b"\0" * 4


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_masks_of_few_bits_in_tiff(tmp_path, bits):
    mask = np.random.default_rng(0).integers(0, 2**bits, (5, 7))
    (tmp_path / "mask.tif").write_bytes(gray_tiff(mask, bits))
    assert np.array_equal(read_mask(tmp_path / "mask.tif"), mask)


def test_more_classes_than_there_are_indices(folder):
    with pytest.raises(ValueError, match="expected at most 255 classes, as index 255 is void, found 300"):
        open_segmentation(folder, "train", classes=[f"class {i}" for i in range(300)], check_masks=False)


def test_masks_of_many_bits(tmp_path):
    mask = np.random.default_rng(0).integers(0, 1000, (5, 7)).astype(np.uint16)
    Image.fromarray(mask).save(tmp_path / "mask.png")
    found = read_mask(tmp_path / "mask.png")
    assert found.dtype == np.int32 and np.array_equal(found, mask)


def broken(folder, kind):
    """Make a mask of the training pictures unusable."""
    image, mask = (folder / name / "train" / "05.png" for name in ("images", "annotations"))
    pixels, indices = picture(5)
    if kind == "no mask":
        mask.unlink()
    elif kind == "no picture":
        image.unlink()
    elif kind == "not readable":
        mask.write_bytes(mask.read_bytes()[:60])
    elif kind == "no image":
        mask.write_text("class 1")
    elif kind == "colours":
        Image.fromarray(pixels).save(mask)
    elif kind == "size":
        Image.fromarray(indices[:-1]).save(mask)
    elif kind == "index":
        Image.fromarray(np.where(indices == 2, 77, indices).astype(np.uint8)).save(mask)
    elif kind == "picture":
        image.write_bytes(b"")


BROKEN = {
    "no mask": "images/train/05.png: expected a mask, found none",
    "no picture": "annotations/train/05.png: expected a picture for the mask, found none",
    "not readable": "annotations/train/05.png: expected a mask, found a broken image",
    "no image": "annotations/train/05.png: expected a mask, found a broken image",
    "colours": r"annotations/train/05.png: expected a mask of class indices .*, found colours \(RGB\)",
    "size": "images/train/05.png: expected a mask of 30x20 pixels, found 30x19",
    "index": "annotations/train/05.png: expected class indices from 0 to 2, and 255 for void, found 77",
    "picture": "images/train/05.png: expected an image, found an empty file",
}


@pytest.mark.parametrize("kind", BROKEN)
def test_bad_pairs_are_named_and_skipped_or_refused(folder, kind, caplog):
    broken(folder, kind)
    with pytest.raises(ValueError, match=BROKEN[kind]):
        open_segmentation(folder, "train", classes="a,b,c", on_error="raise")
    source = open_segmentation(folder, "train", classes="a,b,c")
    missing = kind.startswith("no ") and kind != "no image"
    assert len(source) == 12 - missing and len(list(bad_pairs(source))) == (not missing)
    batch = next(SegmentationTrainingLoader(source, SegmentationAugmentation(16), len(source), workers=0).batches(0))
    assert batch.unreadable == (not missing) and len(batch.targets) == len(source)
    assert len(list(SegmentationEvaluationLoader(source, WHOLE, workers=0))) == 11
    assert "05.png" in caplog.text


def test_a_foreground_in_white_is_told(tmp_path, caplog):
    pixels, mask = picture()
    for i in range(3):
        write(tmp_path / f"images/{i}.png", tmp_path / f"masks/{i}.png", pixels, (mask > 0).astype(np.uint8) * 255)
    with pytest.raises(ValueError, match="found no index but 0 and 255, .* a foreground drawn in 255 has to become 1"):
        open_segmentation(tmp_path)
    open_segmentation(tmp_path, classes="background,cell")
    assert "the first masks hold no index but 0 and 255" in caplog.text


def test_a_stray_index_that_makes_classes_is_told(folder, caplog):
    broken(folder, "index")
    assert len(open_segmentation(folder).classes) == 78
    assert "train/05.png: of 16 masks the only one with index 77, which makes 78 classes; the others" in caplog.text
    caplog.clear()
    assert open_segmentation(folder, classes="a,b,c").classes == ["a", "b", "c"] and not caplog.text


@pytest.mark.parametrize(("masks", "told"), [(100, False), (101, True)])
def test_an_index_in_one_of_many_masks_is_told(tmp_path, masks, told, caplog):
    for i in range(masks):
        mask = np.array([[0, 2 if i == 70 else 1]], dtype=np.uint8)
        write(tmp_path / f"images/{i}.png", tmp_path / f"masks/{i}.png", np.zeros((1, 2, 3), np.uint8), mask)
    with caplog.at_level("WARNING", "swiftformer"):
        assert len(open_segmentation(tmp_path).classes) == 3
    assert ("masks/70.png: of 101 masks the only one with index 2" in caplog.text) == told == bool(caplog.text)


def test_default_classes_are_for_data_without_names_and_need_no_scan(folder, monkeypatch):
    def few(files):
        assert len(files) <= 10, "all masks were read"
        return (2,) * len(files)

    monkeypatch.setattr("swiftformer.data.segmentation.SAMPLED", 10)
    monkeypatch.setattr("swiftformer.data.segmentation.largest_indices", few)
    broken(folder, "index")
    source = open_segmentation(folder, "train", default_classes=["a", "b", "c"])
    assert source.classes == ["a", "b", "c"] and len(list(bad_pairs(source))) == 1
    assert open_segmentation(folder, classes="x,y,z", default_classes=["a", "b", "c"]).classes == ["x", "y", "z"]
    (folder / "classes.txt").write_text("p\nq\nr")
    assert open_segmentation(folder, default_classes=["a", "b", "c"]).classes == ["p", "q", "r"]


@pytest.mark.parametrize("name", ["camvid", "CamVid", "town"])
def test_folders_of_known_data_sets_need_no_names(folder, name, caplog):
    """Where they have as many classes."""
    folder = folder.rename(folder.parent / name)
    assert open_segmentation(folder).classes == ["class_0", "class_1", "class_2"]
    assert open_segmentation(folder, default_classes=["a", "b", "c"]).classes == ["a", "b", "c"]
    Image.fromarray(np.full((20, 30), 10, np.uint8)).save(folder / "annotations" / "train" / "00.png")
    with caplog.at_level(logging.INFO, "swiftformer"):
        classes = open_segmentation(folder, default_classes=["a", "b", "c"] + ["d"] * 8).classes
    if name == "town":
        assert classes[0] == "a" and not caplog.text
    else:
        assert classes == list(KNOWN["camvid"]) and f"{name} is called like a known data set" in caplog.text
    assert open_segmentation(folder, classes=[f"c{i}" for i in range(11)]).classes[0] == "c0"
    (folder / "classes.txt").write_text("\n".join(f"t{i}" for i in range(11)))
    assert open_segmentation(folder).classes[0] == "t0"


def test_too_few_names_are_one_error(folder):
    for i in range(6):  # of 16
        Image.fromarray(np.zeros((20, 30), np.uint8)).save(folder / "annotations" / "train" / f"{i:02}.png")
    for options in ({"classes": "a,b"}, {"default_classes": ["a", "b"]}):
        with pytest.raises(
            AnnotationError,
            match=r"train/06.png: expected class indices from 0 to 1, .* found 2; 9 others of the first 16 masks have",
        ):
            open_segmentation(folder, **options)
    for i in range(6, 8):  # as many with as without
        Image.fromarray(np.zeros((20, 30), np.uint8)).save(folder / "annotations" / "train" / f"{i:02}.png")
    assert len(open_segmentation(folder, "train", classes="a,b")) == 12


def many_broken(tmp_path, count, kind):
    """`count` training pictures with one fault, and one without."""
    for i in range(count + 1):
        pixels, mask = picture(i)
        write(
            *(tmp_path / kind / "train" / f"{i:02}.png" for kind in ("images", "masks")),
            pixels,
            np.where(mask == 2, 7, mask).astype(np.uint8) if kind == "index" and i < count else mask,
        )
        if kind == "picture" and i < count:
            (tmp_path / "images" / "train" / f"{i:02}.png").write_bytes(b"")
    return open_segmentation(tmp_path, "all", classes="a,b,c", check_masks=False)


@pytest.mark.parametrize("kind", ["index", "picture"])
def test_a_fault_of_many_masks_does_not_flood_the_log(tmp_path, kind, caplog):
    """Pictures that cannot be read are each named, but for those in a row."""
    source = many_broken(tmp_path, 13, kind)
    assert len(list(SegmentationEvaluationLoader(source, WHOLE, workers=0))) == 1
    named = {f"{i:02}.png" for i in range(13) if f"train/{i:02}.png: expected" in caplog.text}
    lines = [record.message for record in caplog.records]
    assert len(named) == (10 if kind == "index" else 13)
    limit = [
        "others are skipped for the same reason, and not named: expected class indices from 0 to 2, and 255 for void"
    ]
    limit = limit if kind == "index" else []
    assert [line for line in lines if not line.startswith("skipped")] == limit
    caplog.clear()
    dataset = SegmentationDataset(source, SegmentationAugmentation(16))
    assert [dataset[place, 0].unreadable for place in (0, 1, 12, 13)] == [1, 1, 1, 0]
    lines = [record.message for record in caplog.records]
    assert lines[10] == "skipped 3 others behind them" and all(f"{i:02}.png" in lines[i] for i in range(10))
    assert lines[11:] == limit if limit else len(lines[11:]) == 10 + 1 + 1


@pytest.mark.parametrize("workers", [0, 1])
def test_data_without_one_usable_mask_are_one_error(folder, workers, caplog):
    source = open_segmentation(folder, "train", classes="a,b", check_masks=False)
    loader = SegmentationTrainingLoader(source, SegmentationAugmentation(16), 4, workers=workers)
    with pytest.raises(
        ValueError, match=r"^expected readable images, found none: .*png: .* found 2, nor are 11 others$"
    ):
        next(loader.batches(0))
    assert not caplog.text


@pytest.mark.parametrize("layout", ["masks", "boxes"])
def test_calibration_takes_the_pictures_and_no_masks(folder, layout):
    from swiftformer.export import calibration_pictures

    pixels = {picture(i)[0].tobytes() for i in range(12)}
    if layout == "boxes":  # text files in the place of masks: no segmentation
        for mask in (folder / "annotations").rglob("*.png"):
            mask.rename(mask.with_suffix(".txt"))
    else:
        (folder / "classes.txt").write_text("1 cat")  # nothing here needs them
    found = calibration_pictures(folder, 6)
    assert len(found) == 6 and {np.asarray(open_image(source)).tobytes() for source in found} < pixels


def test_relabelled(folder):
    source = open_segmentation(folder)
    other = Relabelled(source, [5, 0, 3], [f"name {i}" for i in range(6)])
    mask, found = source.mask(1), pickle.loads(pickle.dumps(other)).mask(1)
    assert np.array_equal(found, np.select([mask == 0, mask == 1, mask == 2], [5, 0, 3], VOID))
    assert len(other) == 4 and other.name(1) == source.name(1) and other.image(1).size == (30, 20)


# Augmentation


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    height=st.integers(4, 90),
    width=st.integers(4, 90),
    size=st.integers(8, 72),
    short_side=st.sampled_from([0, 20, 50]),
    scale=st.sampled_from([(0.5, 2.0), (1.0, 1.0), (1.1, 1.3), (0.3, 0.6)]),
    down=st.booleans(),
)
@example(seed=47, height=72, width=74, size=8, short_side=20, scale=(0.3, 0.6), down=False)
def test_picture_and_mask_stay_aligned(seed, height, width, size, short_side, scale, down):
    """Of a ramp a resized pixel tells where it comes from; the mask's must come from the nearest place."""
    ramp = np.indices((height, width))[0 if down else 1].astype(np.uint8)
    pixels = np.stack([2 * ramp, np.full_like(ramp, 200), np.full_like(ramp, 200)], axis=-1)
    transform = SegmentationAugmentation(
        size, scale=scale, short_side=short_side, color_distortion=0, mean=(1.0, 0.0, 0.0)
    )
    seed_generators(seed)
    image, mask = transform(Image.fromarray(pixels), ramp)
    assert image.shape == (3, size, size) and mask.shape == (size, size) and image.dtype == torch.uint8
    void = mask == VOID
    assert torch.equal(void, image[1] == 0) and bool((image[0][void] == 255).all())
    # Void is a border at the right and at the bottom.
    rows, columns = (int((~void).any(dim=side).sum()) for side in (1, 0))
    assert bool(void[rows:].all() and (void[:, columns:].all() or void[:, : size - columns].all()))
    assert int((~void).sum()) == rows * columns
    # At the edges the filter has less to average: it reaches as far as the next pixel's place.
    steps = mask[~void].unique().diff()
    reach = max(5, int(steps.max())) if len(steps) else int(ramp.max())
    inside = ~void & (mask > reach) & (mask < int(ramp.max()) - reach)
    if inside.any():
        difference = (image[0][inside].float() / 2 - mask[inside].float()).abs().max().item()
        assert difference <= 0.5 + 0.25 + 0.1  # the nearest place, rounding, fixed-point arithmetic


@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=20, deadline=None)
def test_augmentation_follows_the_seed_and_colours_leave_the_mask_alone(seed):
    pixels, mask = picture(1, 50, 60)
    results = []
    for distortion in (1.0, 1.0, 0.0):
        seed_generators(seed)
        results.append(SegmentationAugmentation(32, color_distortion=distortion)(Image.fromarray(pixels), mask))
    assert all(torch.equal(a, b) for a, b in zip(results[0], results[1], strict=True))
    assert torch.equal(results[0][1], results[2][1])


def test_augmentation_varies_and_flips():
    pixels, mask = picture(1, 50, 60)
    transform = SegmentationAugmentation(32)
    seed_generators(0)
    results = [transform(Image.fromarray(pixels), mask)[1] for _ in range(5)]
    assert len({result.numpy().tobytes() for result in results}) == 5
    flipped = SegmentationAugmentation(60, scale=(1, 1), horizontal_flip=1, color_distortion=0)
    image, found = flipped(Image.fromarray(pixels), mask)
    # What lies left of the picture after the flip is what was padded at its right.
    assert np.array_equal(found[:50].numpy(), mask[:, ::-1]) and bool((found[50:] == VOID).all())
    assert np.array_equal(image[:, :50].permute(1, 2, 0).numpy(), pixels[:, ::-1])


def test_crops_of_one_class_are_drawn_again():
    mask = np.zeros((64, 640), dtype=np.uint8)
    mask[:, 600:] = 1
    image = Image.new("RGB", (640, 64))
    shares = []
    for largest_share in (0.75, 1.0):
        transform = SegmentationAugmentation(64, scale=(1, 1), largest_share=largest_share)
        seed_generators(0)
        shares.append(np.mean([bool((transform(image, mask)[1] == 1).any()) for _ in range(60)]))
    assert shares[0] > 2 * shares[1] > 0


def test_no_picture_is_made_larger_than_any_may_be():
    """All of it is computed before the crop."""
    aerial = torch.empty(1).expand(3, 10_000, 10_000)
    height, width = RandomScale((2.0, 2.0)).make_params([tv_tensors.Image(aerial)])["size"]
    assert height == width and MAX_PIXELS * 0.99 < height * width <= MAX_PIXELS * 1.01


def test_long_pictures_are_made_smaller():
    transform = SegmentationAugmentation(64, scale=(1, 1), short_side=64)
    _, mask = transform(Image.new("RGB", (4000, 20)), np.zeros((20, 4000), dtype=np.uint8))
    assert int((mask != VOID).any(dim=1).sum()) == round(20 * 4 * 64 / 4000)


@pytest.mark.parametrize("options", [{"size": 0}, {"scale": (2, 1)}, {"horizontal_flip": 2}, {"largest_share": 0}])
def test_bad_augmentation(options):
    with pytest.raises(ValueError, match="expected .*, found"):
        SegmentationAugmentation(**{"size": 8} | options)


def test_masks_of_many_classes():
    mask = np.arange(256 * 40, dtype=np.int32).reshape(64, 160) % 1000
    found = SegmentationAugmentation(64, scale=(1, 1), largest_share=1)(Image.new("RGB", (160, 64)), mask)[1]
    assert found.dtype == torch.int32 and found.max() > 900


# Loaders


def test_training_batches(folder):
    source = open_segmentation(folder, "train")
    loader = SegmentationTrainingLoader(source, SegmentationAugmentation(16), 4, workers=0)
    batches = list(loader.batches(0))
    assert len(batches) == len(loader) == 3
    for pixels, targets, indices, unreadable in batches:
        assert pixels.shape == (4, 3, 16, 16) and pixels.dtype == torch.uint8 and unreadable == 0
        assert pixels.is_contiguous(memory_format=torch.channels_last)
        assert targets.shape == (4, 16, 16) and targets.dtype == torch.int64 and indices.shape == (4,)
    assert sorted(torch.cat([batch.indices for batch in batches]).tolist()) == list(range(12))
    others = list(loader.batches(1))
    assert [b.indices.tolist() for b in others] != [b.indices.tolist() for b in batches]
    with pytest.raises(ValueError, match="at least one batch of 26 training images, found 12"):
        SegmentationTrainingLoader(source, SegmentationAugmentation(16), 13, 0, 0, 2)


def test_batches_from_the_middle_of_an_epoch_and_in_several_processes(folder):
    source, transform = open_segmentation(folder, "train"), SegmentationAugmentation(16)
    whole = list(SegmentationTrainingLoader(source, transform, 4, 0, seed=3).batches(2))
    part = list(SegmentationTrainingLoader(source, transform, 4, 0, seed=3).batches(2, start=1, stop=3))
    shares = [list(SegmentationTrainingLoader(source, transform, 2, 0, rank, 2, seed=3).batches(2)) for rank in (0, 1)]
    for i in (1, 2):
        assert all(torch.equal(a, b) for a, b in zip(whole[i], part[i - 1], strict=True))
        for name in ("pixels", "targets", "indices"):
            together = torch.cat([getattr(share[i], name) for share in shares])[[0, 2, 1, 3]]
            assert torch.equal(getattr(whole[i], name), together)


class Deadly:
    """A source whose picture 5 kills the process that reads it, once."""

    def __init__(self, source, file):
        self.source, self.file, self.classes = source, file, source.classes
        self.reduce_zero_label = source.reduce_zero_label

    def __len__(self):
        return len(self.source)

    def image(self, index):
        if index == 5 and not self.file.exists():
            self.file.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return self.source.image(index)

    def mask(self, index):
        return self.source.mask(index)

    def name(self, index):
        return self.source.name(index)


@pytest.mark.exhaustive  # torch takes five seconds to see it, and other loaders on the same ground are tested
def test_a_dead_loader_process_is_replaced(folder, tmp_path, caplog):
    source, transform = open_segmentation(folder, "train"), SegmentationAugmentation(16)
    expected = list(SegmentationTrainingLoader(source, transform, 4, workers=0).batches(0))
    found = list(SegmentationTrainingLoader(Deadly(source, tmp_path / "died"), transform, 4, workers=1).batches(0))
    assert caplog.text.count("a process that loads images died") == 1 and len(found) == 3
    for a, b in zip(expected, found, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize(("short_side", "shape"), [(None, (20, 30)), (0, (20, 30)), (40, (40, 60)), (10, (10, 15))])
def test_evaluation_takes_pictures_whole_and_masks_as_they_are(folder, short_side, shape):
    source = open_segmentation(folder)
    loader = SegmentationEvaluationLoader(source, WHOLE.uncropped(short_side), workers=0)
    samples = list(loader)
    assert len(samples) == len(loader) == 4
    for i, (pixels, mask, index) in enumerate(samples):
        assert index == i and pixels.shape == (1, 3, *shape) and pixels.dtype == torch.float32
        assert np.array_equal(mask.numpy(), source.mask(i))
    if shape == (20, 30):
        assert np.array_equal(samples[2][0][0].numpy(), WHOLE.normalized(np.asarray(source.image(2))))


def test_evaluation_is_shared_without_repeating(folder):
    source = open_segmentation(folder, "train")
    loaders = [SegmentationEvaluationLoader(source, WHOLE, 0, rank, 5) for rank in range(5)]
    assert sorted(index for loader in loaders for _, _, index in loader) == list(range(12))


# Preprocessing without a crop


@pytest.mark.parametrize(
    "preprocessing",
    [
        Preprocessing(size=(64, 96), resize="whole"),
        Preprocessing(size=(64, 96), resize="whole", resize_to=80, interpolation="bilinear", reduce_labels=True),
    ],
)
def test_preprocessing_without_a_crop_is_that_of_transformers(preprocessing):
    from transformers import SegformerImageProcessor

    assert Preprocessing.from_dict(preprocessing.to_dict()) == preprocessing
    image = Image.fromarray(picture(0, 100, 130)[0])
    expected = SegformerImageProcessor.from_dict(preprocessing.to_dict())(image, return_tensors="np")["pixel_values"][0]
    found = preprocessing.prepare(image)
    assert found.shape == expected.shape and np.abs(found - expected).max() < 0.06


@pytest.mark.parametrize("reduce", [None, False, True])
def test_the_offset_of_masks_is_that_of_transformers(tmp_path, reduce):
    from transformers import SegformerImageProcessor

    preprocessing = Preprocessing(size=(64, 96), resize="whole", reduce_labels=reduce)
    fields = preprocessing.to_dict()
    assert ("do_reduce_labels" in fields) == (reduce is not None)
    for resize in ("whole", "squash", "shortest"):
        changed = replace(preprocessing, resize=resize, resize_to=96 if resize == "shortest" else None)
        assert Preprocessing.from_dict(json.loads(json.dumps(changed.to_dict()))) == changed
    assert (
        Preprocessing.from_dict(Preprocessing(resize="whole").to_dict() | {"reduce_labels": reduce}).reduce_labels
        == reduce
    )
    pixels, mask = picture()
    Image.fromarray(mask).save(tmp_path / "mask.png")
    processor = SegformerImageProcessor.from_dict(fields)
    labels = processor(Image.fromarray(pixels), segmentation_maps=mask, return_tensors="np")["labels"][0]
    assert np.array_equal(labels, read_mask(tmp_path / "mask.png", bool(reduce)))


def test_uncropped():
    cropped = Preprocessing(size=(64, 64), resize="shortest", resize_to=72)
    assert cropped.uncropped() == Preprocessing(size=(64, 64), resize="whole", resize_to=72)
    assert cropped.uncropped(0).prepare(Image.new("RGB", (30, 20))).shape == (3, 20, 30)
    assert Preprocessing().uncropped() == Preprocessing() and Preprocessing().uncropped(99).resize_to == 99
    with pytest.raises(ValueError, match="expected a short side of 0 .* found -1"):
        cropped.uncropped(-1)


@pytest.mark.parametrize("orientation", [1, 5, 6, 7, 8])
@pytest.mark.parametrize("stored", [False, True])
def test_masks_of_pictures_that_exif_turns(tmp_path, orientation, stored, caplog):
    exif = Image.Exif()
    exif[0x0112] = orientation
    raw = np.arange(12 * 20 * 3, dtype=np.uint8).reshape(12, 20, 3)
    turned = orientation != 1 and not stored
    write(
        tmp_path / "images/p.png", tmp_path / "masks/p.png", raw, np.zeros((20, 12) if turned else (12, 20), np.uint8)
    )
    Image.fromarray(raw).save(tmp_path / "images/p.png", exif=exif)
    image, mask = read_pair(open_segmentation(tmp_path, "all", classes=["one"]), 0)
    assert image.size == mask.shape[::-1] == ((12, 20) if turned else (20, 12))
    if stored or orientation == 1:
        assert np.array_equal(np.asarray(image), raw)
    assert ("masks are as the pictures are stored" in caplog.text) == (stored and orientation != 1)


@pytest.mark.parametrize("folders", ["images/{}", "{}/images"])
def test_calibration_takes_the_training_pictures_of_data_to_detect(tmp_path, folders):
    from swiftformer.export import calibration_pictures

    for split, value in (("train", 10), ("val", 200)):
        for i in range(3):
            file = tmp_path / folders.format(split) / f"{i}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 8), (value, 0, 0)).save(file)
            labels = tmp_path / folders.format(split).replace("images", "labels")
            labels.mkdir(parents=True, exist_ok=True)
    found = calibration_pictures(tmp_path, 9)
    assert [np.asarray(open_image(source)).max() for source in found] == [10] * 3


def test_validation_pictures_without_masks_are_not_replaced_by_others(tmp_path):
    for split in ("train", "val"):
        for folder in ("images", "annotations"):
            (tmp_path / folder / split).mkdir(parents=True)
        Image.new("RGB", (32, 32)).save(tmp_path / "images" / split / "p.jpg")
        Image.new("L", (32, 32), 1).save(tmp_path / "annotations" / split / "p.png")
    assert len(open_segmentation(tmp_path)) == 1
    shutil.rmtree(tmp_path / "annotations" / "val")
    with pytest.raises(ValueError, match="expected annotations for the pictures in images/val, found none"):
        open_segmentation(tmp_path)
    assert len(open_segmentation(tmp_path, "train")) == 1


def test_masks_in_colours_are_told_where_their_classes_are_counted(tmp_path):
    for folder, name in (("images", "p.jpg"), ("annotations", "p.png")):
        (tmp_path / folder / "train").mkdir(parents=True)
        Image.new("RGB", (32, 32)).save(tmp_path / folder / "train" / name)
    with pytest.raises(ValueError, match=r"two or more classes, found none in 1 files .*found colours \(RGB\)"):
        open_segmentation(tmp_path, "train")
