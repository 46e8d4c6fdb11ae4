"""CIFAR, Flowers-102 and iNaturalist in the layouts of their authors."""

import json
import os
import pickle
import struct

import numpy as np
import pytest
import torchvision
from PIL import Image

from swiftformer.data.sources import open_source

PER_BATCH = 4
COARSE, FINE = [f"group {i}" for i in range(20)], [f"class {i}" for i in range(100)]
TEN = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


class Python2Pickler(pickle._Pickler):
    """Writes strings and bytes as Python 2 did, whose pickles the authors distribute."""

    dispatch = dict(pickle._Pickler.dispatch)

    def save_string(self, value):
        content = value.encode("latin1") if isinstance(value, str) else value
        self.write(pickle.BINSTRING + struct.pack("<i", len(content)) + content)

    dispatch[str] = dispatch[bytes] = save_string


def python2(value, file):
    with file.open("wb") as opened:
        Python2Pickler(opened, protocol=2).dump(value)
    file.write_bytes(file.read_bytes().replace(b"cnumpy._core.", b"cnumpy.core."))


def batch(seed, classes):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (PER_BATCH, 3072), dtype=np.uint8), rng.integers(0, classes, PER_BATCH).tolist()


def write_cifar(root, dump=python2):
    """All four folders below `root`, with the same few pictures in both versions."""
    folders = {
        n: root / n for n in ("cifar-10-batches-bin", "cifar-10-batches-py", "cifar-100-binary", "cifar-100-python")
    }
    for folder in folders.values():
        folder.mkdir(parents=True)
    binary, python, binary100, python100 = folders.values()
    for seed, name in enumerate([*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]):
        data, labels = batch(seed, 10)
        (binary / f"{name}.bin").write_bytes(
            b"".join(bytes([n]) + p.tobytes() for n, p in zip(labels, data, strict=True))
        )
        dump({"data": data, "labels": labels, "batch_label": name, "filenames": ["x.png"] * PER_BATCH}, python / name)
    (binary / "batches.meta.txt").write_text("\n".join(TEN) + "\n\n")
    dump({"label_names": TEN, "num_cases_per_batch": PER_BATCH, "num_vis": 3072}, python / "batches.meta")
    for seed, name in enumerate(["train", "test"]):
        data, labels = batch(seed + 9, 100)
        rows = zip(labels, data, strict=True)
        (binary100 / f"{name}.bin").write_bytes(b"".join(bytes([n // 5, n]) + p.tobytes() for n, p in rows))
        dump({"data": data, "fine_labels": labels, "coarse_labels": [n // 5 for n in labels]}, python100 / name)
    (binary100 / "fine_label_names.txt").write_text("\n".join(FINE) + "\n")
    (binary100 / "coarse_label_names.txt").write_text("\n".join(COARSE) + "\n")
    dump({"fine_label_names": FINE, "coarse_label_names": COARSE}, python100 / "meta")
    return folders


@pytest.mark.parametrize(("hundred", "split"), [(False, "train"), (False, "test"), (True, "train"), (True, "test")])
def test_cifar_is_what_torchvision_reads(tmp_path, monkeypatch, hundred, split):
    folders = write_cifar(tmp_path)
    kind = torchvision.datasets.CIFAR100 if hundred else torchvision.datasets.CIFAR10
    monkeypatch.setattr(kind, "_check_integrity", lambda self: True)
    monkeypatch.setattr(torchvision.datasets.cifar, "check_integrity", lambda *_: True)
    expected = kind(tmp_path, train=split == "train")
    for folder in [f for name, f in folders.items() if ("100" in name) == hundred]:
        source = open_source(folder, split)
        assert source.classes == expected.classes and source.labels == expected.targets
        assert len(source) == len(expected) and str(folder) in source.name(0)
        for i in range(len(source)):
            assert np.array_equal(np.asarray(source.image(i)), np.asarray(expected[i][0]))
    copy = pickle.loads(pickle.dumps(source))
    assert np.array_equal(np.asarray(copy.image(1)), np.asarray(source.image(1)))
    assert len(open_source(folder, "val")) == len(open_source(folder)) == PER_BATCH  # the test split


def test_cifar_by_the_parent_folder(tmp_path):
    folders = write_cifar(tmp_path)
    with pytest.raises(ValueError, match="expected one data set, found cifar-10-batches-bin, cifar-100-binary"):
        open_source(tmp_path, "train")
    for name in ("cifar-100-binary", "cifar-100-python"):
        folders[name].rename(tmp_path.parent / f"{tmp_path.name}-{name}")
    assert "cifar-10-batches-bin" in open_source(tmp_path, "train").name(0)
    (tmp_path / "cifar-10-batches-bin" / "data_batch_3.bin").unlink()
    with pytest.raises(ValueError, match=r"data_batch_3.bin: expected this file of CIFAR, found none"):
        open_source(tmp_path, "train")
    (tmp_path / "cifar-10-batches-bin" / "test_batch.bin").write_bytes(b"x" * 3000)
    with pytest.raises(ValueError, match="expected records of 3073 bytes, found 3000 bytes"):
        open_source(tmp_path, "test")


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_cifar_as_newer_pythons_pickle_it(tmp_path, protocol):
    folders = write_cifar(tmp_path, lambda value, file: file.write_bytes(pickle.dumps(value, protocol)))
    source = open_source(folders["cifar-100-python"], "train")
    assert source.labels == batch(9, 100)[1] and source.classes == FINE


class Hostile:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize(
    "value",
    [
        Hostile(os.system, "touch {mark}"),
        {"data": Hostile(eval, "open('{mark}', 'w')"), "labels": []},
        Hostile(getattr, "{mark}", "upper"),
        Hostile(np.save, "{mark}", np.zeros(1)),
        np.array([Hostile(os.mkdir, "{mark}")], dtype=object),
    ],
)
def test_hostile_pickles_are_refused(tmp_path, value):
    folder = write_cifar(tmp_path)["cifar-10-batches-py"]
    mark = tmp_path / "mark"
    content = pickle.dumps(value, 0).replace(b"{mark}", str(mark).encode())
    (folder / "test_batch").write_bytes(content)
    with pytest.raises(
        ValueError, match=r"test_batch: expected a pickle of arrays and plain containers \(refused .*\)"
    ) as e:
        open_source(folder, "test")
    assert not mark.exists() and "\n" not in str(e.value)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([1], "expected a pickled dictionary with lists data, labels"),
        (
            {"data": np.zeros((4, 3072)), "labels": [0] * 4},
            r"expected uint8 pixels of shape \(4, 3072\), found float64",
        ),
        ({"data": np.zeros((4, 3072), np.uint8), "labels": [0, 1, 2, 10]}, "expected labels from 0 to 9, found 0, 10"),
    ],
)
def test_pickles_of_something_else(tmp_path, value, message):
    folder = write_cifar(tmp_path)["cifar-10-batches-py"]
    python2(value, folder / "test_batch")
    with pytest.raises(ValueError, match=message):
        open_source(folder, "test")
    (folder / "test_batch").write_bytes((folder / "data_batch_1").read_bytes()[:999])
    with pytest.raises(ValueError, match="test_batch: expected a pickle"):
        open_source(folder, "test")


def write_flowers(root, labels, ids):
    savemat = pytest.importorskip("scipy.io").savemat
    folder = root / "flowers-102"
    (folder / "jpg").mkdir(parents=True)
    savemat(folder / "imagelabels.mat", {"labels": np.array([labels], np.uint8)})
    savemat(folder / "setid.mat", {k: np.array([v], np.uint16) for k, v in ids.items()})
    for i in range(1, len(labels) + 1):
        Image.new("RGB", (9, 8), (i * 20, 0, 0)).save(folder / "jpg" / f"image_{i:05d}.jpg")
    return folder


def test_flowers_are_what_torchvision_reads(tmp_path, monkeypatch):
    ids = {"trnid": [4, 2], "valid": [3, 7], "tstid": [1, 6, 5]}
    folder = write_flowers(tmp_path, [77, 1, 102, 5, 5, 9, 1], ids)
    monkeypatch.setattr(torchvision.datasets.Flowers102, "_check_integrity", lambda self: True)
    for split in ("train", "val", "test"):
        expected = torchvision.datasets.Flowers102(tmp_path, split=split)
        for place in (folder, tmp_path):
            source = open_source(place, split)
            assert source.labels == expected._labels and len(source.classes) == 102
            assert [source.name(i) for i in range(len(source))] == [str(file) for file in expected._image_files]
            assert np.array_equal(np.asarray(source.image(0)), np.asarray(expected[0][0]))
    assert source.classes[:2] == list(getattr(expected, "classes", ["1", "2"]))[:2]
    assert len(open_source(tmp_path)) == 2


def test_flowers_with_damaged_files_or_without_scipy(tmp_path, monkeypatch):
    folder = write_flowers(tmp_path, [1, 2], {"trnid": [1, 2, 3], "valid": [1]})
    with pytest.raises(ValueError, match="expected a label from 1 for each picture, found 2 for 3"):
        open_source(folder, "train")
    with pytest.raises(ValueError, match="setid.mat: expected a MATLAB file with tstid"):
        open_source(folder, "test")
    (folder / "setid.mat").write_bytes(b"no such format")
    with pytest.raises(ValueError, match="setid.mat: expected a MATLAB file with valid"):
        open_source(folder, "val")
    monkeypatch.setitem(__import__("sys").modules, "scipy.io", None)
    with pytest.raises(ValueError, match=r"pip install 'swiftformer\[flowers\]'"):
        open_source(folder, "val")


RANKS = ("name", "supercategory", "kingdom", "phylum", "class", "order", "family", "genus")
SPECIES = [  # in the order of their ids
    ("Zea mays", "Plantae", "Plantae", "Tracheophyta", "Liliopsida", "Poales", "Poaceae", "Zea"),
    ("Apis mellifera", "Insecta", "Animalia", "Arthropoda", "Insecta", "Hymenoptera", "Apidae", "Apis"),
    ("Apis cerana", "Insecta", "Animalia", "Arthropoda", "Insecta", "Hymenoptera", "Apidae", "Apis"),
]


def write_inaturalist(root, year=2018, taxonomy=True, annotations=True):
    categories = [{"id": i, **dict(zip(RANKS, species, strict=True))} for i, species in enumerate(SPECIES)]
    if taxonomy:
        (root / "categories.json").write_text(json.dumps(categories[::-1]))
    for split, ids in (("train", [2, 0, 1, 2]), ("val", [1, 0])):
        names = [f"train_val{year}/{SPECIES[c][1]}/{c}/{split}{i}.png" for i, c in enumerate(ids)]
        images = [{"id": 100 + i, "file_name": name, "width": 9} for i, name in enumerate(names)]
        listed = [{"id": i, "image_id": 100 + i, "category_id": c} for i, c in enumerate(ids)]
        plain = [{key: c[key] for key in ("id", "name", "supercategory")} for c in categories]
        document = {"images": images, "categories": plain} | ({"annotations": listed[::-1]} if annotations else {})
        (root / f"{split}{year}.json").write_text(json.dumps(document))
        for image, c in zip(images, ids, strict=True):
            (root / image["file_name"]).parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (9, 8), (c * 9, 0, 0)).save(root / image["file_name"])


@pytest.mark.parametrize("annotations", [True, False])
@pytest.mark.parametrize("year", [2018, 2019])
def test_inaturalist(tmp_path, year, annotations):
    write_inaturalist(tmp_path, year, annotations=annotations)
    train, val = open_source(tmp_path, "train"), open_source(tmp_path)
    assert train.labels == [2, 0, 1, 2] and val.labels == [1, 0]
    assert train.classes == val.classes == ["Zea mays", "Apis mellifera", "Apis cerana"]
    assert [train.image(i).getpixel((0, 0))[0] for i in range(4)] == [18, 0, 9, 18]
    assert train.key(0) == f"train_val{year}/Insecta/2/train0.png" and train.name(0) == str(tmp_path / train.key(0))


@pytest.mark.parametrize("level", RANKS)
def test_inaturalist_levels(tmp_path, level):
    write_inaturalist(tmp_path)
    for split, ids in (("train", [2, 0, 1, 2]), ("val", [1, 0])):
        source = open_source(tmp_path, split, level=level)
        assert [source.classes[n] for n in source.labels] == [SPECIES[i][RANKS.index(level)] for i in ids]
        assert source.classes == list(dict.fromkeys(species[RANKS.index(level)] for species in SPECIES))


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ("[]", "expected an object with lists of objects"),
        ('{"images": 5, "categories": [{"id": 0, "name": "x"}]}', "expected an object with lists of objects"),
        ('{"images": [{"id": 1}], "categories": [{"id": 0, "name": "x"}]}', "expected entries with 'file_name'"),
        ('{"images": [{"file_name": "a"}], "categories": [{"name": "x"}]}', "expected entries with 'id'"),
        ('{"images": [], "categories": [{"id": 0, "name": "x"}]}', "expected images, found none"),
    ],
)
def test_broken_inaturalist(tmp_path, document, message):
    (tmp_path / "train2018.json").write_text(document)
    with pytest.raises(ValueError, match=f"train2018.json: {message}"):
        open_source(tmp_path, "train")


def test_inaturalist_without_taxonomy(tmp_path):
    write_inaturalist(tmp_path, taxonomy=False)
    assert open_source(tmp_path, "val", level="supercategory").classes == ["Plantae", "Insecta"]
    with pytest.raises(
        ValueError, match="train2018.json: expected categories with 'genus', found id, name, supercategory"
    ):
        open_source(tmp_path, "val", level="genus")


def test_inaturalist_in_the_folders_of_deit(tmp_path):
    write_inaturalist(tmp_path)
    for folder in list(tmp_path.glob("train_val2018/*/*")):
        folder.rename(tmp_path / "train_val2018" / folder.name)
    assert open_source(tmp_path, "train").image(0).getpixel((0, 0))[0] == 18


def test_inaturalist_files_that_are_odd(tmp_path):
    write_inaturalist(tmp_path)
    (tmp_path / "test2018.json").write_text(json.dumps({"images": [{"id": 1, "file_name": "test2018/x.jpg"}]}))
    with pytest.raises(
        ValueError, match="test2018.json: expected annotations, or file names such as .*found test2018/x"
    ):
        open_source(tmp_path, "test")
    (tmp_path / "val2018.json").write_text("{")
    with pytest.raises(ValueError, match="val2018.json: expected a JSON file"):
        open_source(tmp_path)
    (tmp_path / "val2019.json").write_text("{}")
    with pytest.raises(ValueError, match="expected the files of one year, found 2018, 2019"):
        open_source(tmp_path)
