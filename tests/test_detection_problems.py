"""Annotations that are wrong are named and skipped, or refused."""

import json
import logging
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from swiftformer.data.detection import bad_pictures, open_detection
from swiftformer.data.detection_checks import Problems, fit
from swiftformer.data.detection_loaders import DetectionEvaluationLoader, DetectionTrainingLoader
from swiftformer.data.detection_transforms import DetectionAugmentation
from swiftformer.data.masks import AnnotationError
from swiftformer.image_processing import Preprocessing
from test_detection_data import HEIGHT, WIDTH, coco, make, objects_of, picture, write_coco

WHOLE = Preprocessing(resize="whole", interpolation="bilinear")
BOX_REPORT = r"instances_train.json: annotation 1001: expected a box within 40x30 pixels, found "
FOUND = r"instances_train.json: annotation 1001: expected "


def rle(height=HEIGHT, width=WIDTH, counts=None):
    return {"size": [height, width], "counts": [height * width - 9, 9] if counts is None else counts}


# What the annotation with id 1001 gets, what is told, and the objects that are left of four.
COCO = {
    "over the edge": ({"bbox": [30, 20, 15, 8]}, BOX_REPORT + "x 30 to 45", 4),
    "outside": ({"bbox": [45, 20, 15, 8]}, BOX_REPORT, 3),
    "almost outside": ({"bbox": [39.5, 20, 15, 8]}, BOX_REPORT, 3),
    "no width": ({"bbox": [5, 5, 0, 8]}, FOUND + "a box of some width and height, found x 5 to 5", 3),
    "negative": ({"bbox": [5, 5, 4, -8]}, FOUND + "a box of some width and height", 3),
    "not a number": ({"bbox": [5, float("nan"), 4, 8]}, FOUND + "finite coordinates", 3),
    "infinite": ({"bbox": [5, 5, float("inf"), 8]}, FOUND + "finite coordinates", 3),
    "three numbers": ({"bbox": [5, 5, 4]}, FOUND + "a bbox of four numbers, found ", 3),
    "text": ({"bbox": "5 5 4 4"}, FOUND + "a bbox of four numbers, found ", 3),
    "no box": ({"bbox": None}, FOUND + "a bbox of four numbers, found None", 3),
    "category": ({"category_id": 99}, FOUND + "the id of a category, found 99", 3),
    "odd category": ({"category_id": [1]}, FOUND + "an image_id, a category_id and a bbox", 3),
    "image": ({"image_id": 99}, FOUND + "the id of an image, found 99", 3),
    "two points": ({"segmentation": [[1, 2, 3, 4]]}, FOUND + "polygons of 3 or more points, found 4 coord", 3),
    "half a point": ({"segmentation": [[1, 2, 3, 4, 5, 6, 7]]}, FOUND + "polygons of 3 or more points", 3),
    "polygon of text": ({"segmentation": [["a"] * 6]}, FOUND + "the coordinates of polygons to be numbers", 3),
    "infinite polygon": ({"segmentation": [[1, 2, 3, 4, 5, float("inf")]]}, FOUND + "finite coordinates", 3),
    "far polygon": ({"segmentation": [[1, 2, 3, 4, 5, 1e9]]}, FOUND + "polygons about a picture of 40x30", 3),
    "flat": ({"segmentation": [1, 2, 3, 4, 5, 6]}, FOUND + "polygons, found int", 3),
    "number": ({"segmentation": 7}, FOUND + "polygons or run lengths, found int", 3),
    "other size": ({"segmentation": rle(HEIGHT + 1)}, FOUND + "run lengths of a picture of 40x30, found 40x31", 3),
    "no size": ({"segmentation": {"counts": [1]}}, FOUND + "run lengths with the size", 3),
    "few counts": ({"segmentation": rle(counts=[4, 5])}, FOUND + "run lengths of 1200 pixels, found 9", 3),
    "odd counts": ({"segmentation": rle(counts=["a"])}, FOUND + "run lengths as numbers or text", 3),
    "odd text": ({"segmentation": rle(counts="!!")}, FOUND + "compressed run lengths, found damaged", 3),
    "cut text": ({"segmentation": rle(counts="0P")}, FOUND + "compressed run lengths, found damaged", 3),
    "no mask": ({"segmentation": []}, r"p0.png: expected a mask for each of 4 objects, found 1 with a box only", 3),
}


@pytest.mark.parametrize("kind", COCO)
def test_coco_annotations(tmp_path, kind, caplog):
    root = make(tmp_path, "coco")
    file = root / "annotations" / "instances_train.json"
    content = json.loads(file.read_text())
    change, message, count = COCO[kind]
    content["annotations"][1] |= change
    file.write_text(json.dumps(content))
    with pytest.raises(AnnotationError, match=message):
        open_detection(root, "train", masks=True, on_error="raise")
    source = open_detection(root, "train", masks=True)
    assert len(caplog.records) == 1
    if kind == "no mask":  # what is left of the picture would be learned as background
        assert len(source) == 5 and all("p0.png" not in source.name(index) for index in range(5))
    else:
        assert len(source) == 6 and len(source.objects(0)) == count
    said = "clipped" if kind == "over the edge" else "skipped"
    assert caplog.text.count(f"{said} {root}") == 1
    if kind == "no mask":
        return
    kept = [0, 1, 2, 3] if count == 4 else [0, 2, 3]
    expected = objects_of(0)[0].astype(np.float32)
    expected[1] = (30, 20, 40, 28) if count == 4 else expected[1]
    assert np.array_equal(source.objects(0).boxes, expected[kept]) and not list(bad_pictures(source))
    if "segmentation" in change:  # masks that nobody asked for are nobody's problem
        assert len(open_detection(root, "train").objects(0)) == 4


def test_a_box_without_mask_in_every_picture(tmp_path):
    root = make(tmp_path, "coco")
    file = root / "annotations" / "instances_train.json"
    content = json.loads(file.read_text())
    first = {annotation["image_id"]: annotation for annotation in reversed(content["annotations"])}
    for annotation in first.values():
        del annotation["segmentation"]
    file.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=f"expected objects with masks, found {len(first)} with boxes only"):
        open_detection(root, "train", masks=True)
    source = open_detection(root, "train", masks="auto")
    assert len(source) == 6 and not source.has_masks and len(source.objects(0)) == 4


def test_pictures_with_some_masks(tmp_path, caplog):
    root = make(tmp_path, "coco")
    file = root / "annotations" / "instances_train.json"
    content = json.loads(file.read_text())
    for place in (1, 4, 6):  # of the first and the second picture
        del content["annotations"][place]["segmentation"]
    file.write_text(json.dumps(content))
    whole = open_detection(root, "train")
    source = open_detection(root, "train", masks=True)
    assert [source.name(index) for index in range(len(source))] == [whole.name(i) for i in range(2, len(whole))]
    expected = [f"p{i}.png: expected a mask for each of 4 objects, found {i + 1} with a box only" for i in range(2)]
    assert [text in record.getMessage() for text, record in zip(expected, caplog.records, strict=True)] == [True, True]


@pytest.mark.parametrize(
    ("place", "change", "message", "count"),
    [
        ("images", {"file_name": "gone.png"}, r"instances_train.json: image gone.png: expected its file in .* none", 5),
        ("images", {"file_name": 7}, "image number 2: expected an id and a file_name", 5),
        ("images", {"id": 100}, "image p1.png: expected an id of its own, found 100 again", 5),
        ("annotations", None, r"annotation number 2: expected an image_id, a category_id and a bbox, found None", 6),
        ("annotations", [], r"annotation number 2: expected an image_id", 6),
    ],
)
def test_coco_entries(tmp_path, place, change, message, count):
    root = make(tmp_path, "coco")
    file = root / "annotations" / "instances_train.json"
    content = json.loads(file.read_text())
    content[place][1] = content[place][1] | change if isinstance(change, dict) else change
    file.write_text(json.dumps(content))
    with pytest.raises(AnnotationError, match=message):
        open_detection(root, "train", on_error="raise")
    source = open_detection(root, "train")
    assert len(source) == count and len(source.objects(0)) == 4 - (place == "annotations")
    assert source.left_out == 6 - count
    if place == "images":
        assert source.name(1).endswith("p2.png") and source.image_id(1) == 102


@pytest.mark.parametrize("text", ["{", "[1, 2", "", "\xff", "[" * 100_000])
def test_broken_json(tmp_path, text):
    root = make(tmp_path, "coco")
    (root / "annotations" / "instances_val.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match="instances_val.json: expected JSON, found damage"):
        open_detection(root)
    assert len(open_detection(root, "train")) == 6


def test_at_most_ten_are_told_one_by_one(tmp_path, caplog):
    root = make(tmp_path, "coco")
    file = root / "annotations" / "instances_train.json"
    content = json.loads(file.read_text())
    for entry in content["annotations"]:
        entry["bbox"][2] = 0
    file.write_text(json.dumps(content))
    source = open_detection(root, "train")
    count = len(content["annotations"])
    assert count > 10 and len(source) == 6 and not len(source.objects(0))
    assert caplog.text.count("skipped") == 10 and len(caplog.records) == 11
    assert f"{count - 10} more problems of the annotations of {root}" in caplog.text
    with pytest.raises(ValueError, match="on_error: expected 'skip' or 'raise', found 'warn'"):
        open_detection(root, on_error="warn")


@pytest.mark.parametrize(
    ("old", "new", "message", "pictures", "objects"),
    [
        ("</annotation>", "", "p0.xml: expected Pascal VOC's XML, found damage", 5, None),
        ("<xmin>", "<xmin>a", "p0.xml: object 1: expected a bndbox of four numbers, found a", 6, 3),
        ("bndbox>", "box>", "p0.xml: object 1: expected a bndbox of four numbers", 6, 3),
        ("<xmin>", "<xmin>9", r"p0.xml: object 1 \(\w+\): expected a box of some width and height", 6, 3),
        ("<xmin>", "<xmin>-2", r"p0.xml: object 1 \(\w+\): expected a box within 40x30 pixels", 6, 4),
        ("<name>", "<name/><other>", "p0.xml: object 1: expected a name, found none", 6, 3),
        (None, "", "p0.xml: expected a picture for it, found none", 5, None),
        ("", None, "p0.xml: expected the annotations of p0.png, found none", 5, None),
    ],
)
def test_voc(tmp_path, old, new, message, pictures, objects):
    root = make(tmp_path, "voc")
    file = root / "Annotations" / "p0.xml"
    if old is None:
        (root / "JPEGImages" / "p0.png").unlink()
    elif new is None:
        file.unlink()
    else:
        text = file.read_text().replace(old, new, 2 if old == "bndbox>" else 1)
        file.write_text(text.replace("</name>", "</other>", 1) if "other" in new else text)
    with pytest.raises(AnnotationError, match=message):
        open_detection(root, "train", on_error="raise")
    source = open_detection(root, "train")
    assert len(source) == pictures and (objects is None or len(source.objects(0)) == objects)
    assert source.left_out == 6 - pictures


@pytest.mark.parametrize("layout", ["voc", "voc beside", "folders"])
def test_voc_pictures_without_annotations(tmp_path, layout, caplog):
    """Where no list says which there are, one line does."""
    root = make(tmp_path, "voc" if layout == "folders" else layout)
    if layout == "folders":
        for file in [*root.glob("*/p*")]:
            (file.parent / "train").mkdir(exist_ok=True)
            file.rename(file.parent / "train" / file.name)
    if layout != "voc beside":
        shutil.rmtree(root / "ImageSets")
    for file in root.rglob("p[134].xml"):
        file.unlink()
    message = r": expected an XML file for each picture, found 3 without: .*p1.png, .*p3.png, .*p4.png"
    with pytest.raises(AnnotationError, match=message):
        open_detection(root, "train", on_error="raise")
    expected = open_detection(root, "all")
    assert len(expected) == 6 and expected.left_out == 0  # nobody says that they belong to the data
    assert len(caplog.records) == 1 and "skipped" in caplog.text and re.search(message, caplog.text)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("0 0.5 0.5 0.2", "expected 4 numbers of a box or 3 or more points of a polygon, found 3 numbers"),
        ("0 0.5 0.5 0.2 0.2 0.9", "expected 4 numbers of a box or 3 or more points of a polygon, found 5 numbers"),
        ("0 0.5 0.5 0.2 0.2 0.2 0.1 0.4", "expected 4 numbers of a box or 3 or more points"),
        ("cat 0.5 0.5 0.2 0.2", "expected a class and numbers, found 'cat"),
        ("0.5 0.5 0.5 0.2 0.2", "expected a class index and finite numbers"),
        ("0 0.5 nan 0.2 0.2", "expected a class index and finite numbers"),
        ("0 0.5 0.5 0 0.2", "expected a box of some width and height"),
        ("0 1.5 0.5 0.2 0.2", "expected a box within 40x30 pixels"),
        ("0 10 15 4 4", "expected a box within 40x30 pixels"),  # pixels, no shares
        ("3 0.5 0.5 0.2 0.2", "expected class indices from 0 to 2, found 3"),
        ("-1 0.5 0.5 0.2 0.2", "expected class indices from 0 to 2, found -1"),
    ],
)
def test_yolo_rows(tmp_path, row, message):
    root = make(tmp_path, "yolo")
    file = root / "labels" / "train" / "p0.txt"
    lines = file.read_text().splitlines()
    file.write_text("\n".join([lines[0], row, *lines[2:]]))
    with pytest.raises(AnnotationError, match=f"p0.txt: row 2: {message}"):
        open_detection(root, "train", on_error="raise")
    assert len(open_detection(root, "train").objects(0)) == 3


def test_yolo_files(tmp_path, caplog):
    root = make(tmp_path, "yolo")
    (root / "images" / "train" / "p0.png").unlink()
    (root / "images" / "train" / "p1.png").write_bytes(b"")
    (root / "labels" / "train" / "p3.txt").write_bytes(b"\xff\xfe\x00")
    source = open_detection(root, "train")
    assert source.left_out == 2 and len(source) == 4 and [len(source.objects(i)) for i in range(4)] == [0, 0, 4, 0]
    for message in ("p0.txt: expected a picture", "p1.png: expected an image, found an empty", "p3.txt: expected rows"):
        assert message in caplog.text


def test_what_shows_when_pictures_are_read(tmp_path, caplog):
    root = make(tmp_path, "coco")
    (root / "images" / "train" / "p0.png").write_bytes(b"x")
    Image.new("RGB", (7, 7)).save(root / "images" / "train" / "p1.png")
    file = root / "annotations" / "instances_train.json"
    content = json.loads(file.read_text())
    third = next(entry for entry in content["annotations"] if entry["image_id"] == 103)
    third["segmentation"] = {"size": [HEIGHT, WIDTH], "counts": "o0o0oooo0"}
    file.write_text(json.dumps(content))
    source = open_detection(root, "train", masks=True)
    assert len(source) == 6 and not caplog.records and len(list(bad_pictures(source))) == 3
    damage = "p3.png: expected run lengths of 1200 pixels, found those of"
    with pytest.raises(AnnotationError, match=damage):
        source.objects(3)
    assert damage in list(bad_pictures(source))[2]
    with pytest.raises(AnnotationError, match="p0.png: expected an image"):
        open_detection(root, "train", masks=True, on_error="raise")
    with caplog.at_level(logging.WARNING):
        batch = next(DetectionTrainingLoader(source, DetectionAugmentation(16), 6, workers=0).batches(0))
    assert batch.unreadable >= 3 and not {0, 1, 3} & {*batch.indices.tolist()}
    assert [index for _, _, index in DetectionEvaluationLoader(source, WHOLE, workers=0)] == [2, 4, 5]
    for name in ("p0.png", "p1.png", "p3.png"):
        assert name in caplog.text


def test_boxes_that_hardly_leave_the_picture():
    assert fit((-0.9, 0, 41, 30), 40, 30) == ((0, 0, 40, 30), None)
    assert fit((39.7, 0, 40.2, 30), 40, 30)[1] is None  # narrower than a pixel is no reason
    problems = Problems("skip")
    problems.report("x: expected a, found b")
    assert problems.first == "x: expected a, found b" and problems.count == 1


def test_pictures_of_another_size(tmp_path):
    folder = make(tmp_path, "coco")
    picture(folder / "images/val/p31.png", size=(20, 15))
    source = open_detection(folder)
    with pytest.raises(AnnotationError, match=r"p31.png: expected 40x30 pixels, as annotated, found 20x15"):
        source.image(1)
    assert len(list(bad_pictures(source))) == 1
    with pytest.raises(AnnotationError, match="p31.png: expected 40x30"):
        open_detection(folder, on_error="raise")


@pytest.mark.parametrize(
    ("make_it", "message"),
    [
        (lambda p: None, "expected COCO's .* found an empty folder"),
        (lambda p: (p / "photos").mkdir(), "found photos"),
        (lambda p: [(p / n / "train").mkdir(parents=True) for n in ("images", "labels")], "found images, labels"),
        (lambda p: write_coco(p / "annotations/instances_val.json", []), "expected COCO's lists .* found list"),
        (lambda p: write_coco(p / "annotations/instances_val.json", {"info": 1}), "expected COCO's .* found info"),
        (lambda p: write_coco(p / "annotations/instances_val.json", coco(range(2))), r"found none .*image p0.png"),
        (
            lambda p: write_coco(
                p / "annotations/val.json",
                {"images": [], "annotations": [], "categories": [{"id": 1, "name": "a"}, {"id": 2, "name": "a"}]},
            ),
            "expected categories with ids and names of their own, found a repeatedly",
        ),
        (
            lambda p: [write_coco(p / f"annotations/{n}.json", coco(range(1))) for n in ("a_val", "b_val")],
            "expected one set of annotations for the split val, found several",
        ),
    ],
)
def test_folders_that_are_no_data_set(tmp_path, make_it, message):
    make_it(tmp_path)
    with pytest.raises(ValueError, match=message):
        open_detection(tmp_path)
    with pytest.raises(ValueError, match="no such file or folder"):
        open_detection(Path(tmp_path, "nowhere"))
