import shutil

import pytest

from swiftformer.data.detection import open_detection
from swiftformer.data.folders import files_below
from swiftformer.data.sources import open_source
from swiftformer.images import ImageError, open_image
from swiftformer.predict import find_images
from test_detection_data import make


def test_linked_folders_are_followed_and_circles_are_not(tmp_path):
    elsewhere, root = tmp_path / "elsewhere", tmp_path / "root"
    for file in (elsewhere / "b.png", elsewhere / ".hidden.png", root / "a.png", root / ".git" / "c.png"):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    (root / "linked").symlink_to(elsewhere)
    (root / "again").symlink_to(elsewhere)
    (elsewhere / "back").symlink_to(root)
    (root / "self").symlink_to(root)
    found = [file.relative_to(root).as_posix() for file in files_below(root)]
    assert found == ["a.png", "again/b.png", "linked/b.png"]
    assert [name for name, _ in find_images([str(root)])] == [str(root / name) for name in found]


def test_one_that_stands_for_nothing_leaves_the_others(tmp_path):
    (tmp_path / "a.png").touch()
    (tmp_path / "empty").mkdir()
    wrong = [
        f"{tmp_path}/*.jpg",
        "~nobody-of-that-name/a.png",
        f"{tmp_path}/{'a' * 300}.png",
        f"{tmp_path}/empty",
    ]
    for reference in wrong:
        (name, source), good = find_images([reference, str(tmp_path / "a.png")])
        assert name == reference and good == (str(tmp_path / "a.png"), tmp_path / "a.png")
        with pytest.raises(ImageError, match="expected"):
            open_image(source, name)
        with pytest.raises(ImageError, match="expected"):
            find_images([reference])


def move(folder, elsewhere):
    """The folder lies elsewhere, and a link is in its place."""
    elsewhere.parent.mkdir(parents=True, exist_ok=True)
    shutil.move(folder, elsewhere)
    folder.symlink_to(elsewhere)


@pytest.mark.parametrize("layout", ["voc", "yolo", "yolo below"])
def test_annotated_pictures_behind_links(tmp_path, layout):
    plain, linked = make(tmp_path / "plain", layout), make(tmp_path / "linked", layout)
    names = {"voc": ("Annotations", "JPEGImages"), "yolo": ("images/train", "labels/train")}
    for number, name in enumerate(names.get(layout, ("train/images", "train/labels"))):
        files = [*(linked / name).glob("p*")]
        if layout != "voc":  # whose lists name pictures by their paths
            (linked / name / "part").mkdir()
            for file in files:
                file.rename(file.parent / "part" / file.name)
            name += "/part"
        move(linked / name, tmp_path / "elsewhere" / str(number))
    found, expected = (open_detection(root, "train") for root in (linked, plain))
    assert len(found) == len(expected) == 6 and found.counts() == expected.counts()


def test_pictures_of_classes_behind_links(tmp_path, image_folder, monkeypatch):
    """Whole classes and parts of one; links that lead back are not followed."""
    train = image_folder / "train"
    expected = open_source(image_folder, "train")
    (train / "red" / "more").mkdir()
    for i in range(12):
        (train / "red" / f"{i}.png").rename(train / "red" / "more" / f"{i}.png")
    move(train / "red" / "more", tmp_path / "elsewhere" / "more")
    move(train / "blue", tmp_path / "elsewhere" / "blue")
    (train / "red" / "back").symlink_to(train)
    (train / "red" / "far").symlink_to(tmp_path)
    (tmp_path / "elsewhere" / "more" / "self").symlink_to(tmp_path / "elsewhere" / "more")
    found = open_source(image_folder, "train")
    assert found.classes == expected.classes and sorted(found.labels) == sorted(expected.labels)
    monkeypatch.chdir(image_folder)
    assert sorted(open_source("train", "all").labels) == sorted(expected.labels)


def test_links_that_a_table_names(tmp_path):
    """Labels lie beside the link rather than beside what it leads to."""
    root = make(tmp_path / "data", "yolo")
    expected = open_detection(root, "train").counts()
    (root / "set").mkdir()
    for kind in ("images", "labels"):
        (root / kind).rename(root / "set" / kind)
        move(root / "set" / kind / "train", tmp_path / f"{kind}-of-another-set")
    (root / "data.yaml").write_text("names: [cat, dog, car]\ntrain: set/images/train\nval: set/images/val\n")
    assert open_detection(root, "train").counts() == expected
