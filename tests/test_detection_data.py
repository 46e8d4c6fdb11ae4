import json
import logging
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as coco_mask

from conftest import shared
from swiftformer.data.detection import open_detection
from swiftformer.data.object_masks import check_size, pack, unpack
from swiftformer.data.objects import decode
from swiftformer.data.voc import CLASSES, parse

NAMES = ["cat", "dog", "car"]
WIDTH, HEIGHT = 40, 30
COUNTS = {"train": 6, "val": 3}


def objects_of(seed):
    """Boxes x0, y0, x1, y1 in whole pixels and labels; the last picture of each split shows nothing."""
    rng = np.random.default_rng(seed)
    corners = rng.integers(0, (20, 15), (4, 2))
    boxes = np.concatenate([corners, corners + rng.integers(3, 15, (4, 2))], axis=1)
    return (boxes, rng.integers(0, 3, 4)) if seed % 3 != 2 else (boxes[:0], np.zeros(0, int))


def picture(file, seed=0, size=(WIDTH, HEIGHT), **options):
    file.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file, **options)


def polygon(box):
    x0, y0, x1, y1 = map(float, box)
    return [x0, y0, x1, y0, x1, y1, x0, y1]


def coco(seeds, ids=(3, 7, 20), segmentation=lambda box: [polygon(box)]):
    content = {"images": [], "annotations": [], "categories": [{"id": i, "name": n} for i, n in zip(ids, NAMES)]}  # noqa: B905
    for place, seed in enumerate(seeds):
        content["images"].append({"id": 100 + place, "file_name": f"p{seed}.png", "width": WIDTH, "height": HEIGHT})
        for box, label in zip(*objects_of(seed), strict=True):
            x0, y0, x1, y1 = map(int, box)
            content["annotations"].append(
                {
                    "id": 1000 + len(content["annotations"]),
                    "image_id": 100 + place,
                    "category_id": ids[label],
                    "bbox": [x0, y0, x1 - x0, y1 - y0],
                    "area": (x1 - x0) * (y1 - y0),
                    "iscrowd": 0,
                }
                | ({"segmentation": segmentation(box)} if segmentation else {})
            )
    return content


def write_coco(file, content):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content))


def xml(seed):
    rows = "".join(
        f"<object><name>{NAMES[label]}</name><difficult>0</difficult><bndbox><xmin>{x0 + 1}</xmin><ymin>{y0 + 1}</ymin>"
        f"<xmax>{x1}</xmax><ymax>{y1}</ymax></bndbox><part><name>head</name><bndbox><xmin>1</xmin></bndbox></part></object>"
        for (x0, y0, x1, y1), label in zip(*objects_of(seed), strict=True)
    )
    return f"<annotation><size><width>{WIDTH}</width><height>{HEIGHT}</height></size>{rows}</annotation>"


def yolo(seed, polygons):
    rows = []
    for box, label in zip(*objects_of(seed), strict=True):
        x0, y0, x1, y1 = box / (WIDTH, HEIGHT, WIDTH, HEIGHT)
        shares = np.array(polygon((x0, y0, x1, y1)) if polygons else [(x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0])
        rows.append(f"{label} " + " ".join(f"{share:.8f}" for share in shares))
    return "\n".join(rows) + "\n"


def seeds_of(split):
    return range(COUNTS[split]) if split == "train" else range(30, 30 + COUNTS[split])


def make(root, layout):
    """The same pictures and objects in one of the layouts."""
    for split in COUNTS:
        year = f"{split}2017" if "year" in layout else split
        for seed in seeds_of(split):
            name = f"p{seed}.png"
            folder = {
                "coco": f"images/{split}",
                "coco year": year,
                "coco below": "images",
                "roboflow coco": split,
                "voc": "JPEGImages",
                "voc beside": split,
                "yolo": f"images/{split}",
                "yolo below": f"{split}/images",
                "yolo year": f"images/{year}",
            }[layout]
            picture(root / folder / name, seed)
            if layout.startswith("yolo"):
                labels = root / folder.replace("images", "labels") / f"p{seed}.txt"
                labels.parent.mkdir(parents=True, exist_ok=True)
                if len(objects_of(seed)[1]):
                    labels.write_text(yolo(seed, "year" in layout))
            elif layout.startswith("voc"):
                file = root / ("Annotations" if layout == "voc" else split) / f"p{seed}.xml"
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(xml(seed))
        if layout == "roboflow coco":
            write_coco(root / split / "_annotations.coco.json", coco(seeds_of(split)))
        elif "coco" in layout:
            write_coco(root / "annotations" / f"instances_{year}.json", coco(seeds_of(split)))
            write_coco(root / "annotations" / f"captions_{year}.json", {"images": []})
        elif layout == "voc":
            lists = root / "ImageSets" / "Main"
            lists.mkdir(parents=True, exist_ok=True)
            (lists / f"{split}.txt").write_text("".join(f"p{seed}\n" for seed in seeds_of(split)))
            (lists / f"cat_{split}.txt").write_text("p0 1\np1 -1\n")
    if layout.startswith("yolo"):
        names = "[cat, dog, car]" if layout == "yolo" else "{0: cat, 1: dog, 2: car}"
        (root / "data.yaml").write_text(f"names: {names}\nnc: 3\ntrain: ../train/images\n")
    return root


@pytest.fixture
def folder(tmp_path):
    return make(tmp_path / "data", "coco")


# Layouts


def test_a_picture_without_a_name_is_told_once(folder, caplog):
    file = folder / "annotations" / "instances_train.json"
    content = json.loads(file.read_text())
    content["images"][0]["file_name"] = None
    write_coco(file, content)
    with caplog.at_level(logging.WARNING, "swiftformer"):
        assert len(open_detection(folder, "train")) == COUNTS["train"] - 1
    assert "expected the id of an image" not in caplog.text


@pytest.mark.parametrize("layout", ["coco below", "yolo"])
def test_lists_that_windows_wrote(layout, tmp_path):
    root = make(tmp_path / "data", layout)
    if layout == "yolo":
        for split in COUNTS:
            (root / f"{split}.txt").write_text("".join(f"images\\{split}\\p{seed}.png\n" for seed in seeds_of(split)))
        (root / "data.yaml").write_text("names: [cat, dog, car]\ntrain: .\\train.txt\nval: .\\val.txt\n")
    else:
        for split in COUNTS:
            file = root / "annotations" / f"instances_{split}.json"
            (root / "images" / "a").mkdir(exist_ok=True)
            content = json.loads(file.read_text())
            for image in content["images"]:
                (root / "images" / image["file_name"]).rename(root / "images" / "a" / image["file_name"])
                image["file_name"] = f"a\\{image['file_name']}"
            write_coco(file, content)
    for split, count in COUNTS.items():
        assert len(open_detection(root, split)) == count


LAYOUTS = ["coco", "coco year", "coco below", "roboflow coco", "voc", "voc beside", "yolo", "yolo below", "yolo year"]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_all_layouts_give_the_same_objects(tmp_path, layout, caplog):
    root = make(tmp_path, layout)
    classes = NAMES if "voc" in layout else None  # otherwise in the order of the alphabet
    for split, count in COUNTS.items():
        masks = "coco" in layout or "year" in layout
        source = open_detection(root, split, classes=classes, masks=masks)
        source = pickle.loads(pickle.dumps(source))
        assert len(source) == count and source.classes == NAMES and source.has_masks == masks
        assert source.category_ids == ([3, 7, 20] if "coco" in layout else [8, 12, 7] if "voc" in layout else [1, 2, 3])
        for index, seed in enumerate(seeds_of(split)):
            found, (boxes, labels) = source.objects(index), objects_of(seed)
            assert source.name(index).endswith(f"p{seed}.png") and source.image(index).size == (WIDTH, HEIGHT)
            assert source.image_id(index) == (100 + index if "coco" in layout else index + 1)
            assert np.allclose(found.boxes, boxes, atol=1e-4) and np.array_equal(found.labels, labels)
            assert found.boxes.dtype == np.float32 and found.labels.dtype == np.int64 and not found.crowd.any()
            assert np.allclose(found.areas, (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]), atol=0.01)
            if masks and len(found):
                for mask, (x0, y0, x1, y1) in zip(found.decoded_masks(), boxes, strict=True):
                    expected = np.zeros((HEIGHT, WIDTH), np.uint8)
                    expected[y0:y1, x0:x1] = 1
                    assert np.array_equal(mask, expected)
    assert len(open_detection(root)) == COUNTS["val"] == len(open_detection(root, "valid"))
    everything = open_detection(root, "all")
    assert len(everything) == 9 and {everything.image_id(i) for i in range(9)} == {*range(1, 10)}
    assert np.allclose(everything.objects(7).boxes, objects_of(31)[0], atol=1e-4)
    assert not [r for r in caplog.records if r.levelno >= logging.WARNING]
    if masks:
        assert open_detection(root, "val").objects(0).masks is None  # not asked for
    if "year" in layout:
        assert len(open_detection(root, "val2017")) == 3


def test_one_json_file(folder, caplog):
    file = folder / "annotations" / "instances_train.json"
    assert len(open_detection(file)) == len(open_detection(file, "all")) == 6
    with caplog.at_level(logging.INFO, "swiftformer"):
        train, val = open_detection(file, "train"), open_detection(file, "val")
    assert len(train) == 5 and len(val) == 1 and "training on 5 of 6 pictures" in caplog.text
    assert val.name(0) not in [train.name(i) for i in range(5)]
    whole = open_detection(file)
    place = [whole.name(i) for i in range(6)].index(val.name(0))
    assert np.array_equal(whole.objects(place).boxes, val.objects(0).boxes) and val.image_id(0) == 100 + place
    file.rename(folder / "annotations" / "instances_default.json")
    (folder / "images" / "train").rename(folder / "images" / "default")
    (folder / "annotations" / "instances_val.json").unlink()
    shutil.rmtree(folder / "images" / "val")
    assert len(open_detection(folder)) == 6 and len(open_detection(folder, "train")) == 5


@pytest.mark.parametrize("pictures", ["images/held_out", "held_out", "out", "images/instances_held_out"])
def test_a_split_of_two_words(tmp_path, pictures, caplog):
    write_coco(tmp_path / "annotations" / "instances_held_out.json", coco(range(3)))
    for seed in range(3):
        picture(tmp_path / pictures / f"p{seed}.png", seed)
    for data, split in (
        (tmp_path, None),
        (tmp_path, "held_out"),
        (tmp_path / "annotations/instances_held_out.json", None),
    ):
        assert len(open_detection(data, split)) == 3
    write_coco(tmp_path / "annotations" / "instances_train.json", coco(range(3)))
    assert len(open_detection(tmp_path, "held_out")) == 3
    assert not [r for r in caplog.records if r.levelno >= logging.WARNING]


def test_splits_of_unusual_names(tmp_path):
    for name, seeds in (("a", range(3)), ("heldout", range(4))):
        write_coco(tmp_path / "annotations" / f"instances_{name}.json", coco(seeds))
        for seed in seeds:
            picture(tmp_path / "images" / name / f"p{seed}.png", seed)
    assert len(open_detection(tmp_path, "heldout")) == 4 and len(open_detection(tmp_path, "a")) == 3
    with pytest.raises(ValueError, match="expected --split with one of a, heldout, found none"):
        open_detection(tmp_path)
    (tmp_path / "annotations" / "instances_a.json").rename(tmp_path / "annotations" / "instances_train.json")
    (tmp_path / "images" / "a").rename(tmp_path / "images" / "train")
    assert len(open_detection(tmp_path)) == 4  # not the training pictures


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_split_of_another_name_is_not_taken_for_training_pictures(tmp_path, layout, caplog):
    root = make(tmp_path, layout)
    for file in sorted(root.rglob("*"), reverse=True):
        word = file.stem.removeprefix("instances_").removesuffix("2017")
        if word == "val":
            file.rename(file.with_name(file.name.replace("val", "heldout")))
    caplog.set_level(logging.INFO)
    assert len(open_detection(root)) == len(open_detection(root, "heldout")) == COUNTS["val"]
    assert f"{root}: taking the split heldout" in caplog.messages
    assert len(open_detection(root, "all")) == sum(COUNTS.values())
    assert len(open_detection(root, "train")) == 5  # one is held out


def test_a_file_of_all_pictures_beside_the_splits_is_no_split(tmp_path):
    for name, seeds in (("train", range(4)), ("val", range(4, 6)), ("all", range(6))):
        write_coco(tmp_path / "annotations" / f"instances_{name}.json", coco(seeds))
    for seed in range(6):
        picture(tmp_path / "images" / f"p{seed}.png", seed)
    assert len(open_detection(tmp_path, "train")) == 4 and len(open_detection(tmp_path)) == 2
    root = make(tmp_path / "data", "roboflow coco")
    counts = [len(open_detection(root, split)) for split in ("train", "val")]
    shutil.copytree(root / "train", root / "all")
    assert [len(open_detection(root, split)) for split in ("train", "val")] == counts


def test_pictures_in_the_folder_of_another_split(tmp_path):
    write_coco(tmp_path / "annotations" / "instances_test.json", coco(range(3)))
    for seed in range(3):
        picture(tmp_path / "images" / "val" / f"p{seed}.png", seed)
    source = open_detection(tmp_path)
    assert len(source) == 3 and source.name(0).endswith("images/val/p0.png")
    picture(tmp_path / "images" / "train" / "p1.png")
    with pytest.raises(ValueError, match=r"test.json: expected p1.png in one folder, found it in .*train and .*val"):
        open_detection(tmp_path)
    (tmp_path / "images" / "test").mkdir()
    (tmp_path / "images" / "val" / "p0.png").rename(tmp_path / "images" / "test" / "p0.png")
    assert len(open_detection(tmp_path)) == 1  # the others may be different pictures of the same name


def test_folders_with_unusual_names(tmp_path):
    root = make(tmp_path / "data", "roboflow coco")
    (root / "val").rename(root / "heldout")
    assert len(open_detection(root)) == len(open_detection(root, "heldout")) == 3  # rather than the training pictures
    assert len(open_detection(root, "train")) == 5
    (root / "train").rename(root / "more")
    (root / ".hidden").mkdir()
    write_coco(root / ".hidden" / "_annotations.coco.json", coco(range(3)))
    source = open_detection(root)
    assert len(source) == len(open_detection(root, "all")) == 9 and source.classes == NAMES
    assert [source.image_id(i) for i in range(9)] == [*range(1, 10)]
    assert np.array_equal(source.objects(0).boxes, objects_of(30)[0])  # heldout comes before more
    assert len(open_detection(root, "heldout")) == 3
    assert len(open_detection(root, "train")) == 8 and len(open_detection(root, "val")) == 1


def test_splits_with_several_years(tmp_path):
    for year, seeds in ((2014, range(3)), (2017, range(5))):
        write_coco(tmp_path / "annotations" / f"instances_train{year}.json", coco(seeds))
        for seed in seeds:
            picture(tmp_path / f"train{year}" / f"p{seed}.png", seed)
    assert len(open_detection(tmp_path, "train2014")) == 3 and len(open_detection(tmp_path, "train2017")) == 5
    with pytest.raises(ValueError, match="expected a split named one of train, training, found train2014, train2017"):
        open_detection(tmp_path, "train")


def test_pascal_voc(tmp_path):
    root = make(tmp_path / "VOCdevkit" / "VOC2007", "voc")
    file = root / "Annotations" / "p0.xml"
    file.write_text(file.read_text().replace("<difficult>0", "<difficult>1", 1).replace("<width>40</width>", ""))
    source = open_detection(tmp_path, "train")
    assert source.classes == list(CLASSES) == open_detection(tmp_path, classes="voc").classes
    assert source.objects(0).crowd.tolist() == [True, False, False, False]
    assert len(source.objects(0).without_crowd()) == 3
    (root / "Annotations" / "p30.xml").write_text(xml(30).replace("dog", "yeti"))
    assert open_detection(tmp_path, "train").classes == ["car", "cat", "dog", "yeti"]
    (root / "ImageSets" / "Main" / "trainval.txt").write_text("p0\np30\n")
    everything = open_detection(tmp_path, "all")
    assert len(everything) == 9 and len(open_detection(tmp_path, "trainval")) == 2
    with pytest.raises(ValueError, match="expected objects with masks, found .* with boxes only"):
        open_detection(tmp_path, masks=True)


def test_yolo_names(tmp_path):
    root = make(tmp_path, "yolo")
    (root / "data.yaml").unlink()
    assert open_detection(root, "train").classes == ["class_0", "class_1", "class_2"]
    (root / "labels" / "val" / "p30.txt").write_text("4 0.5 0.5 0.2 0.2\n")  # in one split only
    assert open_detection(root, "train").classes == [f"class_{i}" for i in range(5)] == open_detection(root).classes
    assert len(open_detection(root, classes="a,b,c").objects(0)) == 0
    assert open_detection(root, default_classes=["a", "b", "c", "d"]).classes == ["a", "b", "c", "d"]
    (root / "labels" / "classes.txt").write_text("cat\ndog\ncar\n")
    assert open_detection(root, default_classes=["a", "b", "c"]).classes == NAMES
    (root / "labels" / "classes.txt").unlink()
    (root / "labels" / "val" / "p30.txt").write_text(yolo(30, False))
    elsewhere = root / "conf" / "blood.yaml"
    elsewhere.parent.mkdir()
    elsewhere.write_text("path: ..\ntrain: images/train\nval: [images/val]\nnames: [q, r, s]\n")
    assert len(open_detection(elsewhere, "train")) == 6 and open_detection(elsewhere).classes == ["q", "r", "s"]
    for names in ("[a, a]", "{1: a}", "3", "[a"):
        (root / "data.yaml").write_text(f"names: {names}")
        with pytest.raises(ValueError, match="data.yaml: expected"):
            open_detection(root)


def test_yolo_pictures_of_one_name_have_the_same_labels(tmp_path):
    make(tmp_path, "yolo")
    (first, *_) = sorted((tmp_path / "images" / "train").glob("*.png"))
    before = open_detection(tmp_path, "train")
    Image.open(first).save(first.with_suffix(".jpg"))
    source = open_detection(tmp_path, "train")
    assert len(source) == len(before) + 1
    both = [i for i in range(len(source)) if Path(source.name(i)).stem == first.stem]
    assert len(both) == 2 and len({len(source.objects(i).labels) for i in both}) == 1
    assert len(source.objects(both[0]).labels) > 0


def test_parts_of_a_polygon_that_are_none_are_left_out():
    square = [10.0, 10, 60, 10, 60, 60, 10, 60]
    assert pack([square, [61, 61, 61, 62]]) == pack([square])
    with pytest.raises(ValueError, match="expected polygons of 3 or more points, found 4 coordinates"):
        pack([[61, 61, 61, 62]])


def test_whole_numbers_as_pandas_writes_them(tmp_path):
    """With a fraction of zero."""
    content = coco([0], segmentation=lambda box: {"size": [float(HEIGHT), float(WIDTH)], "counts": [HEIGHT * WIDTH]})
    for entry in content["images"]:
        entry |= {"id": float(entry["id"]), "width": float(WIDTH), "height": float(HEIGHT)}
    for entry in content["annotations"]:
        entry["image_id"] = float(entry["image_id"])
    write_coco(tmp_path / "annotations" / "instances_train.json", content)
    picture(tmp_path / "train" / "p0.png")
    source = open_detection(tmp_path, "train", masks=True, on_error="raise")
    assert source.image_id(0) == 100 and type(source.image_id(0)) is int
    assert len(source.objects(0).labels) == len(content["annotations"])
    assert parse(Path(xml_file(tmp_path, f"{WIDTH}.0"))).width == WIDTH


def xml_file(folder, width):
    (folder / "a.xml").write_text(f"<annotation><size><width>{width}</width><height>5</height></size></annotation>")
    return folder / "a.xml"


def test_lists_with_a_mark_of_their_byte_order(tmp_path):
    make(tmp_path, "voc")
    file = tmp_path / "ImageSets" / "Main" / "train.txt"
    before = len(open_detection(tmp_path, "train"))
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    assert len(open_detection(tmp_path, "train")) == before


def names_of(source):
    return [Path(source.name(index)).name for index in range(len(source))]


def test_what_a_yolo_table_names_comes_first(tmp_path, caplog):
    root = make(tmp_path, "yolo")
    for name in ("batch_a", "batch_b"):
        (root / "images" / name).mkdir()
        (root / "labels" / name).mkdir()
    for place, name in enumerate(("p0", "p1", "p2", "p30")):
        batch = "batch_a" if place < 2 else "batch_b"
        split = "val" if name == "p30" else "train"
        (root / "images" / split / f"{name}.png").rename(root / "images" / batch / f"{name}.png")
        if (labels := root / "labels" / split / f"{name}.txt").exists():
            labels.rename(root / "labels" / batch / f"{name}.txt")
    table = root / "data.yaml"
    table.write_text("names: [cat, dog, car]\ntrain: images/batch_a\nval: [images/batch_b]\n")
    for data in (root, table):
        assert names_of(open_detection(data, "train")) == ["p0.png", "p1.png"]
        assert names_of(open_detection(data)) == ["p2.png", "p30.png"]
    (root / "val.txt").write_text("images/batch_a/p1.png\n./images/batch_b/p30.png\n\n")
    table.write_text("names: [cat, dog, car]\ntrain: images/batch_a\nval: val.txt\n")
    source = open_detection(root)
    assert names_of(source) == ["p1.png", "p30.png"] and len(source.objects(1)) == len(objects_of(30)[1])
    (root / "val.txt").write_text("images/batch_a/p1.png\nimages/batch_a/p1.png\n")  # twice the same
    assert names_of(open_detection(root)) == ["p1.png"]
    (root / "images" / "val" / "p31.png").unlink()
    table.write_text("names: [cat, dog, car]\ntrain: images/batch_a\nval: images/absent\n")
    with caplog.at_level(logging.WARNING, "swiftformer"):
        assert len(open_detection(root, "train")) == 2
    assert "data.yaml: val: no pictures in images/absent" in caplog.text
    (root / "images" / "bare").mkdir()
    picture(root / "images" / "bare" / "p.png", 3)
    table.write_text("names: [cat, dog, car]\ntrain: images/batch_a\nval: images/bare\n")
    with pytest.raises(ValueError, match="val: expected pictures with labels in images/bare, found none with labels"):
        open_detection(root)
    table.write_text("names: [cat, dog, car]\ntrain: [images/batch_a, images/bare]\nval: images/batch_b\n")
    assert len(open_detection(root, "train")) == 3  # one of them shows no objects
    table.write_text("names: [cat, dog, car]\ntrain: /elsewhere/train\nval: /elsewhere/val\n")  # of another machine
    assert len(open_detection(root, "train")) == 3


@pytest.mark.parametrize("layout", ["yolo", "coco", "voc beside"])
def test_validation_pictures_without_annotations_are_not_replaced_by_others(tmp_path, layout):
    root = make(tmp_path, layout)
    for file in [*root.glob("labels/val/*"), *root.glob("annotations/*val*"), *root.glob("val/*.xml")]:
        file.unlink()
    for split in (None, "val"):
        with pytest.raises(ValueError, match="expected annotations for the pictures in .*val, found none"):
            open_detection(root, split)
    assert len(open_detection(root, "train"))


def test_annotations_of_all_pictures_are_those_of_the_validation_pictures_too(tmp_path):
    for split in ("train", "val"):
        for seed in seeds_of(split):
            picture(tmp_path / split / f"p{seed}.png", seed)
    write_coco(tmp_path / "annotations" / "instances_trainval.json", coco([*seeds_of("train"), *seeds_of("val")]))
    assert len(open_detection(tmp_path)) == sum(COUNTS.values())


@pytest.mark.parametrize("data, counts", [("bccd", (205, 87)), ("nuclei", (398, 132))])
def test_real_data(data, counts):
    root = shared("data", data)
    for split, count in zip(("train", "val"), counts, strict=True):
        source = open_detection(root, split, on_error="raise" if data == "bccd" and split == "val" else "skip")
        assert len(source) == count and not source.has_masks
        assert all(len(source.objects(i)) for i in range(count))
    if data == "bccd":
        with pytest.raises(ValueError, match="bccd: expected objects with masks, found 1137 with boxes only"):
            open_detection(root, masks=True)
        return
    source = open_detection(root, "val", masks=True, on_error="raise")
    for index in range(0, count, 11):
        objects = source.objects(index)
        masks = objects.decoded_masks()
        assert np.array_equal(masks.sum((1, 2)), objects.areas) and masks.shape[1:] == source.image(index).size[::-1]
        x0, y0, across, down = coco_mask.toBbox(objects.masks).T
        assert np.array_equal(objects.boxes, np.stack([x0, y0, x0 + across, y0 + down], axis=1))


# Classes


def test_classes_reorder_and_limit(folder, caplog):
    source = open_detection(folder, "train", classes=["car", "person", "cat"])
    assert source.classes == ["car", "person", "cat"] and source.category_ids[::2] == [20, 3]
    assert len({*source.category_ids}) == 3
    dogs = 0
    for index in range(6):
        boxes, labels = objects_of(index)
        kept = labels != 1
        dogs += (~kept).sum()
        assert np.array_equal(source.objects(index).labels, np.where(labels == 2, 0, 2)[kept])
        assert np.array_equal(source.objects(index).boxes, boxes[kept].astype(np.float32))
    assert f"left out {dogs} objects of other classes: dog" in caplog.text
    assert "knows no objects of the classes person" in caplog.text
    with pytest.raises(ValueError, match="expected some of the classes lion, tiger, found cat, dog, car"):
        open_detection(folder, classes="lion,tiger")
    assert open_detection(folder, default_classes=["x"]).classes == NAMES


# Masks


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), height=st.integers(1, 40), width=st.integers(1, 40), share=st.floats(0, 1))
def test_run_lengths_agree_with_pycocotools(seed, height, width, share):
    rng = np.random.default_rng(seed)
    mask = np.asfortranarray(rng.random((height, width)) < share, dtype=np.uint8)
    encoded = coco_mask.encode(mask)
    flat = mask.ravel(order="F")
    changes = np.flatnonzero(np.diff(np.concatenate([[0], flat, [2]])))
    counts = np.diff(np.concatenate([[0], changes])).tolist()
    corners = np.round(rng.uniform(0, [width, height], (rng.integers(3, 9), 2)), 2).ravel().tolist()
    for segmentation, expected in (
        ({"size": [height, width], "counts": encoded["counts"].decode()}, encoded),
        ({"size": [height, width], "counts": counts}, encoded),
        ([corners], coco_mask.frPyObjects([corners], height, width)[0]),
        ([corners, corners[::-1]], coco_mask.merge(coco_mask.frPyObjects([corners, corners[::-1]], height, width))),
    ):
        packed = pack(segmentation)
        check_size(packed, width, height)
        found = unpack(packed, width, height)
        assert found == expected
        assert np.array_equal(decode([found, found])[1], coco_mask.decode(expected))
    with pytest.raises(ValueError, match="expected run lengths of"):
        unpack(pack({"size": [height + 1, width], "counts": encoded["counts"].decode()}), width, height + 1)


def test_crowds_and_areas(folder):
    file = folder / "annotations" / "instances_val.json"
    content = json.loads(file.read_text())
    crowd, plain = content["annotations"][:2]
    counts = [WIDTH * HEIGHT - 50, 50]
    crowd |= {"iscrowd": 1, "segmentation": {"size": [HEIGHT, WIDTH], "counts": counts}}
    del crowd["area"]
    plain |= {"area": 5}
    write_coco(file, content)
    objects = open_detection(folder, masks=True).objects(0)
    assert objects.crowd.tolist() == [True, False, False, False] and objects.areas[:2].tolist() == [50, 5]
    across, down = crowd["bbox"][2:]
    assert open_detection(folder).objects(0).areas[0] == across * down


def test_without_pycocotools(folder, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pycocotools", None)
    assert len(open_detection(folder)) == 3
    with pytest.raises(ValueError, match=r"found none: pip install 'swiftformer\[dense\]'"):
        open_detection(folder, masks=True)


# Pictures


@pytest.mark.parametrize("orientation", [1, 3, 5, 6, 7, 8])
def test_pictures_that_exif_turns(tmp_path, orientation, caplog):
    exif = Image.Exif()
    exif[0x0112] = orientation
    for seed in range(3):
        picture(tmp_path / "images" / "val" / f"p{seed}.png", seed, exif=exif)
    upright = Image.open(tmp_path / "images/val/p0.png")
    content = coco(range(3))
    write_coco(tmp_path / "annotations" / "instances_val.json", content)
    source = open_detection(tmp_path)
    images = [source.image(i) for i in range(3)]
    assert {image.size for image in images} == {(WIDTH, HEIGHT)}
    turned = orientation > 4
    assert caplog.text.count("annotated as it is stored (40x30), and its EXIF data turn it") == turned
    assert caplog.text.count("those turned by 180, and square ones, cannot be told") == turned
    if turned or orientation == 1:
        assert np.array_equal(np.asarray(images[0]), np.asarray(upright))
    for entry in content["images"]:  # as they are to be looked at
        entry |= {"width": HEIGHT, "height": WIDTH} if turned else {}
    for entry in content["annotations"]:
        entry["bbox"] = [0, 0, 5, 5]
    write_coco(tmp_path / "annotations" / "instances_val.json", content)
    source = open_detection(tmp_path)
    assert source.image(0).size == ((HEIGHT, WIDTH) if turned else (WIDTH, HEIGHT))
    for entry in content["images"]:
        del entry["width"]
    write_coco(tmp_path / "annotations" / "instances_val.json", content)
    assert open_detection(tmp_path).size(0) == source.image(0).size


@pytest.mark.parametrize("layout", ["yolo below", "voc beside", "coco"])
def test_one_split_of_an_unusual_name_needs_no_name(tmp_path, layout):
    root = make(tmp_path, layout)
    for file in sorted(root.rglob("*"), reverse=True):
        word = file.stem.removeprefix("instances_")
        if word in ("train", "test") or file.name == "data.yaml":
            shutil.rmtree(file) if file.is_dir() else file.unlink()
        elif word == "val":
            file.rename(file.with_name(file.name.replace("val", "heldout")))
    if layout == "coco":
        (root / "annotations" / "instances_heldout.json").rename(root / "heldout.json")
        shutil.rmtree(root / "annotations")
    assert len(open_detection(root)) == len(open_detection(root, "all")) == COUNTS["val"]
    (root / "settings.json").write_text('{"images": 3}')
    assert len(open_detection(root)) == COUNTS["val"]


def test_what_lies_beside_data_of_usual_names_changes_nothing(tmp_path):
    root = make(tmp_path, "yolo")
    for file in (".idea/workspace.xml", "cvat/annotations.xml"):
        (root / file).parent.mkdir()
        (root / file).write_text(xml(0))
    write_coco(root / "exported.json", coco(range(1)))
    (root / "folder.json").mkdir()
    assert len(open_detection(root, "train")) == COUNTS["train"]
