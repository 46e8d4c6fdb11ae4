"""Metadata that others wrote or changed: whatever it holds, it is read or refused in one line."""

import copy
import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from swiftformer.artifact import Artifact, ArtifactError, checksums, read_artifact
from swiftformer.image_processing import AUTHORS


def written(folder):
    folder.mkdir(exist_ok=True)
    (folder / "model.onnx").write_bytes(b"graph")
    Artifact(
        format="onnx",
        precision="fp32",
        file="model.onnx",
        task="classification",
        outputs=("logits",),
        channels=3,
        batch=None,
        size=(64, 96),
        value_range="normalized",
        preprocessing=AUTHORS,
        labels=("cat", "dog"),
        versions={"torch": "2.14.1"},
        comparison={"images": 9},
        checksums=checksums(folder),
    ).write(folder)
    return json.loads((folder / "metadata.json").read_text())


@pytest.fixture(scope="module")
def artifact(tmp_path_factory):
    folder = tmp_path_factory.mktemp("artifact") / "a"
    return folder, written(folder)


def test_what_is_written_is_read(artifact):
    folder, fields = artifact
    (folder / "metadata.json").write_text(json.dumps(fields))
    assert read_artifact(folder).preprocessing == AUTHORS and read_artifact(folder).size == (64, 96)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("checksums", [1], "checksums: expected an object of texts by paths in the artifact's folder, found [1]"),
        ("checksums", {"model.onnx": 5}, "checksums: expected an object of texts by paths"),
        ("checksums", {"/etc/hosts": "5"}, "checksums: expected an object of texts by paths"),
        ("checksums", {"a" * 300: "5"}, "File name too long"),
        ("preprocessing", 5, "preprocessing: expected an object, found 5"),
        ("preprocessing", {"size": 5.5}, "expected a preprocessing that is known"),
        ("preprocessing", {"size": {"height": 5.5, "width": 5.5}}, "expected a preprocessing that is known"),
        ("preprocessing", {"image_mean": ["a", "b", "c"]}, "expected a preprocessing that is known"),
        ("file", 5, "file: expected a path in the artifact's folder, found 5"),
        ("file", "../../etc/hosts", "file: expected a path in the artifact's folder, found '../../etc/hosts'"),
        ("file", "/etc/hosts", "file: expected a path in the artifact's folder"),
        ("file", "other.onnx", "expected the file other.onnx, found none"),
        ("precision", "int4", "precision: expected one of fp32, fp16, bf16, int8, palettized, found 'int4'"),
        ("precision", ["fp32"], "precision: expected one of"),
        ("batch", "x", "batch: expected a positive number or null, found 'x'"),
        ("size", [224], "size: expected height and width, or null, found [224]"),
        ("outputs", "logits", "outputs: expected a list of names, found 'logits'"),
        ("channels", True, "channels: expected a positive number, found True"),
        ("labels", None, "labels: expected a list of names, found None"),
        ("versions", {"torch": 2}, "versions: expected an object of texts"),
    ],
)
def test_fields_of_another_kind(artifact, name, value, message):
    folder, fields = artifact
    (folder / "metadata.json").write_text(json.dumps(fields | {name: value}))
    with pytest.raises(ArtifactError) as caught:
        read_artifact(folder)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_fields_that_are_missing(artifact):
    folder, fields = artifact
    (folder / "metadata.json").write_text(json.dumps({k: v for k, v in fields.items() if k != "labels"} | {"more": 1}))
    with pytest.raises(
        ArtifactError, match="expected the fields of an artifact of this version, found no labels, 'more'"
    ):
        read_artifact(folder)


TEXTS = st.sampled_from(["", "..", "/", "\0", "\ud800", "a\nb", "fp32", "height", "shortest_edge"])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 300) | st.floats() | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=6,
)


@given(data=st.data())
def test_only_artifact_errors_come_out(artifact, data):
    """Any value in any place, also deep inside."""
    folder, fields = artifact
    fields = copy.deepcopy(fields)
    place = fields
    while True:
        key = data.draw(st.sampled_from(sorted(place)))
        if not (isinstance(place[key], dict) and place[key] and data.draw(st.booleans())):
            break
        place = place[key]
    if data.draw(st.booleans()):
        place[key] = data.draw(JSON)
    else:
        del place[key]
    (folder / "metadata.json").write_text(json.dumps(fields))
    said = ""
    try:
        read_artifact(folder)
    except ArtifactError as error:
        said = str(error)
    assert "\n" not in said


@given(st.binary(max_size=50))
@example(b"[" * 100_000)
@example(b"\xff")
@example(b'{"schema": 1}')
def test_any_bytes(tmp_path_factory, content):
    folder = tmp_path_factory.getbasetemp()
    (folder / "metadata.json").write_bytes(content)
    with pytest.raises(ArtifactError):
        read_artifact(folder)
