import io
import json
import logging
import multiprocessing
import pickle
import subprocess
import sys
import tarfile

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from swiftformer.data import shard_index
from swiftformer.data.shards import _braces, expand
from swiftformer.data.sources import open_source
from swiftformer.images import ImageError
from test_image_processing import encoded

FORMATS = {"ustar": tarfile.USTAR_FORMAT, "pax": tarfile.PAX_FORMAT, "gnu": tarfile.GNU_FORMAT}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SWIFTFORMER_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def picture(number):
    return encoded(Image.new("RGB", (12, 10), (number, 2 * number, 0)), "PNG")


def add(tar, name, content):
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    tar.addfile(entry, io.BytesIO(content))


def write_shard(file, numbers=range(4), kind="pax", prefix="", label=lambda n: {"cls": str(n % 3).encode()}):
    """A shard of pictures whose red value is their number."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(file, "w", format=FORMATS[kind]) as tar:
        for number in numbers:
            for suffix, content in ({"png": picture(number)} | label(number)).items():
                add(tar, f"{prefix}{number:06d}.{suffix}", content)
    return file


def check(source, numbers):
    assert len(source) == len(numbers) and source.labels == [n % 3 for n in numbers]
    assert [source.image(i).getpixel((0, 0)) for i in range(len(source))] == [(n, 2 * n, 0) for n in numbers]


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("prefix", ["", "./", "a.b/", "long/" * 24])
def test_formats(tmp_path, kind, prefix):
    file = write_shard(tmp_path / "x.tar", kind=kind, prefix=prefix)
    source = open_source(file)
    check(source, range(4))
    assert source.key(2) == f"{prefix}000002" and source.name(2) == f"{file} {prefix}000002"
    check(open_source(file), range(4))  # by the cached index


def test_names_that_only_pax_and_gnu_hold(tmp_path):
    for kind in ("pax", "gnu"):
        file = write_shard(tmp_path / f"{kind}.tar", kind=kind, prefix="ü" * 150)
        assert open_source(file).key(0) == "ü" * 150 + "000000"


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["imagenet1k-train-0000.tar", "imagenet1k-train-0001.tar", "imagenet1k-validation-00.tar"], [8, 4]),
        (["train/0.tar", "train/1.tar", "val/0.tar"], [8, 4]),
        (["data/train-0.tar", "data/train-1.tar", "data/test-0.tar"], [8, 4]),
        (["train-0.tar", "train-1.tar", "valid-0.tar", "readme.tar"], [8, 4]),
    ],
)
def test_folders(tmp_path, names, expected):
    for place, name in enumerate(names):
        write_shard(tmp_path / name, range(4 * place, 4 * place + 4))
    assert [len(open_source(tmp_path, split)) for split in ("train", "val")] == expected
    check(open_source(tmp_path, "train"), range(8))
    check(open_source(tmp_path), range(8, 12))


def test_shards_without_validation_are_cut(tmp_path):
    for place in range(3):
        write_shard(tmp_path / f"train-{place}.tar", range(20 * place, 20 * place + 20))
    train, val, everything = (open_source(tmp_path, split) for split in ("train", "val", None))
    assert (len(train), len(val), len(everything)) == (54, 6, 60)
    assert not {train.key(i) for i in range(54)} & {val.key(i) for i in range(6)}
    check(everything, range(60))


def test_splits_of_other_names(tmp_path):
    write_shard(tmp_path / "train-0000.tar", range(20))
    write_shard(tmp_path / "set-heldout-0000.tar", range(20, 24))
    write_shard(tmp_path / "archive.tar", range(2))
    check(open_source(tmp_path), range(20, 24))
    check(open_source(tmp_path, "heldout"), range(20, 24))
    assert len(open_source(tmp_path, "train")) == 17


def test_tar_files_that_are_no_split(tmp_path):
    write_shard(tmp_path / "train-0000.tar", range(20))
    for name in ("all-0000", "backup2023", "0000"):
        write_shard(tmp_path / f"{name}.tar", range(2))
    assert len(open_source(tmp_path)) == 20 and len(open_source(tmp_path, "train")) == 17


def test_several_folders_of_other_names_are_refused(tmp_path):
    for name in ("set_train", "set_val"):
        write_shard(tmp_path / name / "0000.tar", range(4))
    with pytest.raises(ValueError, match="expected one folder of images per class"):
        open_source(tmp_path)


def test_folders_of_other_names(tmp_path):
    write_shard(tmp_path / "heldout" / "0000.tar", range(20, 24))
    check(open_source(tmp_path), range(20, 24))
    write_shard(tmp_path / "train" / "0000.tar", range(20))
    check(open_source(tmp_path), range(20, 24))
    assert len(open_source(tmp_path, "train")) == 17
    for folder in ("heldout", "train"):
        (tmp_path / folder / "classnames.txt").write_text("a\nb\nc\n")
    assert open_source(tmp_path).classes == ["a", "b", "c"] and len(open_source(tmp_path)) == 4


def test_archives_beside_class_folders_are_no_shards(image_folder):
    write_shard(image_folder / "ILSVRC2012_img_train.tar")
    assert len(open_source(image_folder, "train")) == 48
    write_shard(image_folder / "train" / "images.tar")
    assert len(open_source(image_folder / "train", "all")) == 48


def test_patterns_over_several_disks(tmp_path):
    write_shard(tmp_path / "disk1" / "train-0000.tar", range(4))
    write_shard(tmp_path / "disk2" / "train-0001.tar", range(4, 8))
    write_shard(tmp_path / "disk2" / "val-0000.tar", range(8, 10))
    check(open_source(f"{tmp_path}/{{disk1,disk2}}/train-*.tar", "all"), range(8))
    check(open_source(f"{tmp_path}/*/train-0000.tar"), range(4))
    check(open_source(f"{tmp_path}/disk{{1..2}}/*.tar"), range(8, 10))
    check(open_source(f"{tmp_path}/disk{{1..2}}/*.tar", "train"), range(8))
    with pytest.raises(ValueError, match=r"expected tar files, found none at .*/disk1/train-0001.tar \(and 2 others\)"):
        open_source(f"{tmp_path}/disk1/train-{{0000..0003}}.tar")
    (tmp_path / "disk1" / "notes.txt").write_text("x")
    with pytest.raises(ValueError, match=r"expected tar files, found .*notes.txt"):
        open_source(f"{tmp_path}/disk1/*")
    write_shard(tmp_path / "disk1" / "more.tar")
    with pytest.raises(ValueError, match=r"more.tar: expected a split in the name as in those of other shards"):
        open_source(f"{tmp_path}/disk1/*.tar")


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("a", ["a"]),
        ("{a,b}-{08..11}", [f"{x}-{n:02d}" for x in "ab" for n in range(8, 12)]),
        ("{3..1}", ["3", "2", "1"]),
        ("{9..11}", ["9", "10", "11"]),
        ("x{a,{b,c}}", ["xa", "xb", "xc"]),
        ("{a,}", ["a", ""]),
        ("{t-{0..1},v}.{x,y}", ["t-0.x", "t-0.y", "t-1.x", "t-1.y", "v.x", "v.y"]),
        ("{0..0}", ["0"]),
        ("{08..7}", ["08", "07"]),
    ],
)
def test_braces_are_those_of_bash(pattern, expected):
    assert _braces(pattern) == expected


def test_braces_that_name_nothing_sensible():
    for pattern in ("/a/{x}.tar", "/a/{x,y.tar", "/a/{}.tar", "/a/{1..}.tar"):
        with pytest.raises(ValueError, match=r"expected braces such as \{a,b\}"):
            expand(pattern)
    with pytest.raises(ValueError, match="expected at most 100000 files, found more"):
        expand("/a/{0..999999999}.tar")


@pytest.mark.parametrize(
    "label",
    [
        lambda n: {"json": json.dumps({"label": n % 3, "file": "x"}).encode()},
        lambda n: {"json": json.dumps({"cls": n % 3}).encode(), "txt": b"words"},
        lambda n: {"json": b'{"label": 2}', "cls": f" {n % 3}\n".encode()},
        lambda n: {"CLS": str(n % 3).encode(), "seg.png": b"no picture", "json": b"{}"},
    ],
)
def test_labels(tmp_path, label):
    check(open_source(write_shard(tmp_path / "x.tar", label=label)), range(4))


@pytest.mark.parametrize(
    ("label", "message"),
    [
        (lambda n: {}, r"x.tar: expected 000000.cls or 000000.json with a label beside the picture, found none"),
        (lambda n: {"json": b"{}"}, "expected 000000.cls or 000000.json with a label"),
        (lambda n: {"json": b"{"}, "000000.json: expected JSON"),
        (lambda n: {"cls": b"cat"}, "x.tar: 000000: expected a whole number from 0 as label, found 'cat'"),
        (lambda n: {"cls": b"-1"}, "expected a whole number from 0 as label, found '-1'"),
        (lambda n: {"json": b'{"label": true}'}, "found 'True'"),
    ],
)
def test_labels_that_are_none(tmp_path, label, message):
    with pytest.raises(ValueError, match=message):
        open_source(write_shard(tmp_path / "x.tar", label=label))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("classnames.txt", "cat\ndog\ngreat ape\n\n"),
        ("classes.txt", "\ufeffcat\r\ndog\r\ngreat ape\r\n"),
        ("../classes.txt", "cat\ndog\ngreat ape"),
        ("dataset_info.json", json.dumps({"features": {"label": {"names": ["cat", "dog", "great ape"]}}})),
        ("dataset_info.json", json.dumps({"features": {"jpg": None, "cls": {"names": ["cat", "dog", "great ape"]}}})),
    ],
)
def test_class_names(tmp_path, name, text):
    write_shard(tmp_path / "set" / "train" / "0.tar")
    (tmp_path / "set" / "train" / name).write_text(text)
    assert open_source(tmp_path / "set").classes == ["cat", "dog", "great ape"]
    write_shard(tmp_path / "set" / "train" / "1.tar", label=lambda n: {"cls": b"3"})
    with pytest.raises(ValueError, match="expected labels from 0 to 2, found 3"):
        open_source(tmp_path / "set")


@given(st.integers(1, 20_000))
def test_shards_that_are_cut_off(tmp_path_factory, length):
    folder = tmp_path_factory.mktemp("cut")
    whole = open_source(write_shard(folder / "whole.tar", range(6)), "all")
    content = (folder / "whole.tar").read_bytes()
    length = min(length, len(content) - 10_240)
    (folder / "cut.tar").write_bytes(content[:length])
    complete = sum(length > 2048 * n + 1536 for n in range(6))  # header, picture, header, label; in blocks of 512
    try:
        index = shard_index._build(folder / "cut.tar", length)
    except ValueError:
        assert complete == 0
    else:
        assert index.damage and len(index) == complete and index.labels.tolist() == whole.labels[:complete]


def test_a_shard_that_is_cut_off_is_named_once(tmp_path, caplog):
    file = write_shard(tmp_path / "train-0.tar", range(6))
    write_shard(tmp_path / "train-1.tar", range(6, 12))
    file.write_bytes(file.read_bytes()[:7000])
    for _ in range(2):  # read, then cached
        caplog.clear()
        check(open_source(tmp_path), [0, 1, 2, *range(6, 12)])
        (message,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
        assert message.startswith(f"{file}: damaged or cut off") and message.endswith(
            "taking the 3 whole samples before that"
        )
    content = bytearray(write_shard(file, range(6)).read_bytes())
    content[2048 * 2 : 2048 * 2 + 512] = b"x" * 512  # the third picture's header
    file.write_bytes(content)
    check(open_source(tmp_path), [0, 1, *range(6, 12)])


@pytest.mark.parametrize("content", [b"", b"words, no tar" * 99, bytes(10_240)])
def test_files_that_are_no_shards(tmp_path, content):
    (tmp_path / "train-0.tar").write_bytes(content)
    with pytest.raises(ValueError, match=r"train-0.tar: expected (an uncompressed tar file|pictures with labels)"):
        open_source(tmp_path)


def test_compressed_shards_are_refused(tmp_path):
    with tarfile.open(tmp_path / "train-0.tar", "w:gz") as tar:
        add(tar, "a.png", picture(1))
    with pytest.raises(ValueError, match="expected an uncompressed tar file"):
        open_source(tmp_path)


def test_the_cached_index(tmp_path, cache, monkeypatch):
    file = write_shard(tmp_path / "train-0.tar")
    check(open_source(tmp_path), range(4))
    (kept,) = cache.rglob("*.npz")
    with monkeypatch.context() as patched:
        patched.setattr(shard_index, "_build", None)
        check(open_source(tmp_path), range(4))
    good = kept.read_bytes()
    directory = good.index(b"PK\x01\x02") + 8  # where an entry says whether it is encrypted
    encrypted = good[:directory] + bytes([good[directory] | 1]) + good[directory + 1 :]
    hostile = io.BytesIO()
    np.savez(hostile, stamp=np.array([object()], dtype=object))
    for damaged in (
        b"",
        b"x" * 99,
        good[: len(good) // 2],
        good.replace(b"\x00\x02", b"\xff\xff"),
        encrypted,
        hostile.getvalue(),
    ):
        kept.write_bytes(damaged)
        check(open_source(tmp_path), range(4))
        assert kept.read_bytes() == good
    write_shard(file, range(9))
    check(open_source(tmp_path), range(9))
    assert list(cache.rglob("*.npz")) == [kept]
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SWIFTFORMER_CACHE", str(tmp_path / "file"))
    check(open_source(tmp_path), range(9))


def test_a_shard_that_changes_later(tmp_path):
    file = write_shard(tmp_path / "train-0.tar")
    source = open_source(tmp_path)
    file.write_bytes(file.read_bytes()[:3000])
    with pytest.raises(ImageError, match=r"train-0.tar 000003: expected \d+ bytes, found 0"):
        source.image(3)
    file.unlink()
    with pytest.raises(ImageError, match="train-0.tar 000000: cannot be read"):
        source.image(0)


def _red(source, index):
    return source.image(index).getpixel((0, 0))[0]


def test_other_processes(tmp_path):
    for place in range(2):
        write_shard(tmp_path / f"train-{place}.tar", range(4 * place, 4 * place + 4))
    source = open_source(tmp_path)
    with multiprocessing.get_context("fork").Pool(1) as pool:
        assert pool.starmap(_red, [(source, 5), (source, 2)]) == [5, 2]
    (tmp_path / "source.pickle").write_bytes(pickle.dumps(source))
    code = (
        "import pickle, sys; source = pickle.load(open(sys.argv[1], 'rb'))\n"
        "print(source.image(6).getpixel((0, 0)), 'torch' in sys.modules)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "source.pickle")]
    assert subprocess.run(command, check=True, capture_output=True, text=True).stdout == "(6, 12, 0) False\n"


def test_as_the_datasets_library_reads_them(tmp_path):
    datasets = pytest.importorskip("datasets")
    files = [str(write_shard(tmp_path / f"train-{n}.tar", range(5 * n, 5 * n + 5))) for n in range(2)]
    expected = datasets.load_dataset(
        "webdataset", data_files={"train": files}, split="train", cache_dir=tmp_path / "hub"
    )
    source = open_source(tmp_path)
    assert [row["__key__"] for row in expected] == [source.key(i) for i in range(10)]
    assert [int(row["cls"]) for row in expected] == source.labels
    for i, row in enumerate(expected):
        assert np.array_equal(np.asarray(row["png"]), np.asarray(source.image(i)))


def test_as_webdataset_writes_them(tmp_path):
    webdataset = pytest.importorskip("webdataset")
    with webdataset.TarWriter(str(tmp_path / "train-0.tar")) as writer:
        for number in range(6):
            writer.write({"__key__": f"{number:06d}", "png": picture(number), "cls": number % 3})
    check(open_source(tmp_path), range(6))
