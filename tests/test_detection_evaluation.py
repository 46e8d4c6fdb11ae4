"""Evaluating detectors on data that differ from what they learned, and what is told of it."""

import json
import logging

import pytest
from rich.console import Console

from swiftformer import reports, save
from swiftformer.artifact import Artifact
from swiftformer.data.detection import open_detection
from swiftformer.evaluate.detection import evaluate_reference
from swiftformer.image_processing import Preprocessing
from test_cli import cli  # noqa: F401
from test_coco_metrics import coco_folder, tiny_detector  # noqa: F401
from test_detection_data import make, xml

PLAIN = {"workers": 0, "device": "cpu"}


def change(folder, edit):
    """Rewrite the annotations of `coco_folder` elsewhere; its pictures are found as before."""
    file = folder / "annotations" / "instances_val.json"
    content = json.loads(file.read_text())
    edit(content)
    file.write_text(json.dumps(content))
    return str(folder)


@pytest.fixture
def folder(coco_folder, tmp_path):  # noqa: F811
    root = tmp_path / "data"
    (root / "annotations").mkdir(parents=True)
    (root / "images").symlink_to(coco_folder / "images")
    (root / "annotations" / "instances_val.json").write_text(
        (coco_folder / "annotations" / "instances_val.json").read_text()
    )
    return root


# Classes


def test_voc_classes_are_those_of_the_model_where_they_can_be(tmp_path):
    root = make(tmp_path / "voc", "voc")
    known = ["yeti", "car", "cat", "dog"]  # in another order than VOC's, and with a class that VOC lacks
    source = open_detection(root, "val", default_classes=known)
    assert source.classes == known and source.category_ids == [1, 2, 3, 4]
    assert len(open_detection(root, "val", default_classes=["car", "yeti"]).classes) == 20
    (root / "Annotations" / "p30.xml").write_text(xml(30).replace("dog", "yeti"))
    assert open_detection(root, "val", default_classes=known).classes == known
    assert open_detection(root, "val").classes == ["car", "cat", "dog", "yeti"]
    model = tiny_detector(names=("car", "dog", "helmet", "cat", "yeti"))
    assert evaluate_reference(model, str(root), "val", **PLAIN)["images"] == 3


def test_classes_without_objects_need_not_be_known(folder, tmp_path):
    model = tiny_detector()
    expected = evaluate_reference(model, str(folder), **PLAIN)
    data = change(folder, lambda content: content["categories"].append({"id": 0, "name": "animals"}))
    results = tmp_path / "results.json"
    found = evaluate_reference(model, data, **PLAIN, output=results)
    assert found["AP"] == expected["AP"] and found["AP50"] == expected["AP50"]
    assert {row["category_id"] for row in json.loads(results.read_text())} <= {7, 40}

    change(folder, lambda content: content["annotations"][0].update(category_id=0))
    with pytest.raises(ValueError, match=r"knows \(3: dog, bird, cat\), found 1 others \(animals\); --classes chooses"):
        evaluate_reference(model, data, **PLAIN)
    assert evaluate_reference(model, data, **PLAIN, classes="cat,dog")["images"] == 6


def test_matching_by_position_is_told(folder, caplog):
    found = [
        evaluate_reference(tiny_detector(names=names), str(folder), **PLAIN)
        for names in (("dog", "cat"), ("Dog", "CAT"))
    ]
    assert found[0]["AP"] == found[1]["AP"]
    assert not [r for r in caplog.records if "matched by position" in r.getMessage()]
    evaluate_reference(tiny_detector(names=("tree", "house")), str(folder), **PLAIN)
    [record] = [r for r in caplog.records if "matched by position" in r.getMessage()]
    assert record.levelno == logging.WARNING and "dog, cat" in record.getMessage() and "tree" in record.getMessage()


# Pictures that are not there


def test_pictures_that_are_missing_count_as_unreadable(folder):
    before = evaluate_reference(tiny_detector(), str(folder), **PLAIN)
    data = change(folder, lambda content: content["images"][0].update(file_name="gone.png"))
    found = evaluate_reference(tiny_detector(), data, **PLAIN)
    assert (before["images"], before["unreadable"]) == (6, 1)  # one is broken
    assert (found["images"], found["unreadable"]) == (5, 2)


# Masks


def test_boxes_alone_are_evaluated_of_a_model_with_masks(folder, caplog):
    model = tiny_detector(masks=True)
    expected = evaluate_reference(model, str(folder), **PLAIN)
    assert "mask_AP" in expected and not [r for r in caplog.records if "boxes only" in r.getMessage()]
    data = change(folder, lambda content: [entry.pop("segmentation") for entry in content["annotations"]])
    found = evaluate_reference(model, data, **PLAIN, per_class=True)
    assert found["AP"] == expected["AP"] and not [name for name in found if "mask" in name]
    assert len([r for r in caplog.records if "boxes only" in r.getMessage()]) == 1


def test_masks_where_there_are_any(tmp_path):
    assert open_detection(make(tmp_path / "coco", "coco"), masks="auto").has_masks
    source = open_detection(make(tmp_path / "voc", "voc"), masks="auto")
    assert not source.has_masks and source.objects(0).masks is None and len(source.objects(0)) == 4


# Detections in a file


@pytest.mark.parametrize("ids", ["numbers", "text"])
def test_the_file_of_detections_names_the_pictures(folder, tmp_path, ids):
    def number(content):
        for entry in content["images"]:
            entry["id"] = f"p{entry['id']}"
        for entry in content["annotations"]:
            entry["image_id"] = f"p{entry['image_id']}"

    data = change(folder, number if ids == "text" else lambda content: None)
    results = tmp_path / "results.json"
    evaluate_reference(tiny_detector(), data, **PLAIN, output=results)
    source = open_detection(data)
    names = {source.image_id(index): source.name(index) for index in range(len(source))}
    rows = json.loads(results.read_text())
    assert rows and all(row["file_name"] == names[row["image_id"]] for row in rows)
    assert {row["image_id"] for row in rows} <= ({*range(1, 8)} if ids == "text" else {*range(10, 17)})


# The command line


@pytest.fixture
def saved(tmp_path):
    save(tiny_detector(), tmp_path / "saved")
    return tmp_path / "saved"


def test_another_number_of_detections_is_told(cli, folder, saved):  # noqa: F811
    arguments = ("evaluate", "--data", folder, "--model", saved, "--workers", 0, "--device", "cpu")
    code, out, err = cli(*arguments)
    assert code == 0 and "objects per class" not in err and "AR_100" in out
    code, out, err = cli(*arguments, "--max-detections", 7)
    assert code == 0 and "AR_7" in out
    assert err.count("AP counts up to 7 objects per class and picture, where COCO counts 100\n") == 1


def test_annotations_are_refused_where_asked(cli, folder, saved, tmp_path):  # noqa: F811
    arguments = ("--data", folder, "--workers", 0, "--device", "cpu")
    change(folder, lambda content: content["annotations"][0].update(bbox=[5, 5, 0, 5]))
    evaluation = ("evaluate", "--model", saved, *arguments)
    code, _, err = cli(*evaluation, "--on-error", "skip")
    assert code == 0 and "skipped" in err
    code, _, err = cli(*evaluation, "--on-error", "raise")
    assert code == 2 and "annotation 0: expected a box of some width" in err
    file = folder / "annotations" / "instances_val.json"
    training = ("train", *arguments, "--data", file, "--output", tmp_path / "run", "--on-error", "raise")
    code, _, err = cli(*training, "--task", "detect")
    assert code == 2 and "annotation 0: expected a box of some width" in err
    code, _, err = cli(*training, "--recipe", "smoke")
    assert code == 2 and "--on-error: expected with another task, found together with one to classify" in err


def test_classifiers_have_no_annotations(cli, folder):  # noqa: F811
    code, _, err = cli("evaluate", "--data", folder, "--on-error", "raise")
    assert code == 2 and "--on-error: expected with another task, found together with one to classify" in err


# Tables


@pytest.fixture
def printed(monkeypatch, capsys):
    monkeypatch.setattr(reports, "console", lambda: Console(width=160))
    return lambda: capsys.readouterr().out


def test_metrics_that_are_not_there(printed):
    reports.metrics_table({"AP": 12.345, "AP/Platelets": None, "images": 3})
    assert [line.split() for line in printed().splitlines()] == [
        ["AP", "12.35"],
        ["AP/Platelets", "-"],
        ["images", "3"],
    ]


@pytest.mark.parametrize(
    ("outputs", "compared", "text"),
    [
        (("logits",), {}, "same first class for 98% of 9 pictures"),
        (("logits",), {"pixels": 1}, "same class for 98% of the pixels of 9 pictures"),
        (("scores", "labels", "boxes"), {}, "98% of the objects in 9 pictures found again"),
        (("scores", "labels", "boxes"), {"objects": 57.0}, "98% of 57 objects in 9 pictures found again"),
        (("scores", "labels", "boxes"), {"objects": 0.0}, "no objects to find again in 9 pictures"),
    ],
)
def test_what_an_export_is_compared_on(printed, tmp_path, outputs, compared, text):
    found = {"images": 9.0, "top1_agreement": 0.98, "max_relative_difference": 1e-5} | compared
    artifact = Artifact(
        *(
            "onnx",
            "fp32",
            "model.onnx",
            "segmentation" if "pixels" in compared else "any",
            outputs,
            3,
            1,
            None,
            "normalized",
            Preprocessing(),
            ("a",),
        ),
        comparison=found,
    )
    reports.artifact_table(tmp_path, artifact)
    assert f"largest relative difference 1.0e-05, {text}" in printed()
