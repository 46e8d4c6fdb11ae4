import dataclasses
import json
import re
from pathlib import Path

import pytest
import yaml
from huggingface_hub import EvalResult, ModelCard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import swiftformer
from swiftformer.train.model_card import write_model_card
from swiftformer.train.recipes import Recipe, get_recipe

METRICS = {"epoch": 30, "loss": 0.4, "top1": 87.214, "top5": 99.4, "calibration_error": 6.77}
FACTS = {
    "recipe": dataclasses.asdict(get_recipe("finetune")), "metrics": METRICS, "model_name": "SwiftFormer-XS",
    "data": "flowers", "classes": ["rose", "tulip"], "train_images": 50000, "val_images": 10000, "command": None,
    "started_from": None, "world_size": 1, "seconds": 6120.0, "device": "cpu",
}  # fmt: skip


def write(folder: Path, **facts: object) -> tuple[dict, str]:
    """The front matter and the body of a card."""
    path = write_model_card(folder, **(FACTS | facts))
    assert path == folder / "README.md"
    _, front, body = re.split(r"^---$", path.read_text("utf-8"), maxsplit=2, flags=re.MULTILINE)
    return yaml.safe_load(front), body


def table(body: str, header: str) -> dict[str, str]:
    rows = body[body.index(f"| {header}") :].split("\n\n")[0].splitlines()[2:]
    return dict(row.strip("| ").split(" | ") for row in rows)


def test_the_hub_reads_it(tmp_path):
    front, _ = write(tmp_path, data="uoft-cs/cifar10", started_from="timm/swiftformer_xs.dist_in1k")
    assert front["library_name"] == "swiftformer" and front["pipeline_tag"] == "image-classification"
    assert front["datasets"] == ["uoft-cs/cifar10"] and front["base_model"] == "timm/swiftformer_xs.dist_in1k"
    assert "image-classification" in front["tags"] and "license" not in front
    card = ModelCard.load(tmp_path / "README.md")
    assert card.data.model_name == "SwiftFormer-XS"
    assert all(isinstance(result, EvalResult) for result in card.data.eval_results)
    found = {result.metric_name: (result.metric_type, result.metric_value) for result in card.data.eval_results}
    assert found == {
        "top-1 accuracy": ("accuracy", 0.87214),
        "top-5 accuracy": ("top_5_accuracy", 0.994),
        "calibration error": ("expected_calibration_error", 0.0677),
    }
    assert {(r.dataset_type, r.dataset_name) for r in card.data.eval_results} == {("uoft-cs/cifar10",) * 2}


def test_what_a_person_reads(tmp_path):
    (tmp_path / "curves.png").write_bytes(b"")
    _, body = write(tmp_path, command="swiftformer train --data flowers --set 'crop_scale=0.5, 1'", world_size=2)
    assert body.startswith("\n\n# SwiftFormer-XS\n") and "from random weights" in body
    assert table(body, "on 10,000 validation images, epoch 30") == {
        "top-1 accuracy": "87.21", "top-5 accuracy": "99.40", "calibration error": "6.77",
    }  # fmt: skip
    assert "](curves.png)" in body and "confusion.png" not in body
    assert "The 2 classes: rose, tulip." in body
    assert "flowers, 50,000 training images, 10,000 validation images." in body
    assert "$ swiftformer train --data flowers --set 'crop_scale=0.5, 1'\n" in body
    assert "Duration: 102 minutes." in body and "cores, 2 processes" in body
    assert f"swiftformer {swiftformer.__version__}, torch " in body
    recipe, default = get_recipe("finetune"), Recipe()
    shown = table(body, "field")
    for field in dataclasses.fields(Recipe):
        if getattr(recipe, field.name) != getattr(default, field.name):
            assert f"`{field.name}`" in shown
    assert shown["`lr`"] == "0.0002" and shown["`crop_scale`"] == "0.35, 1.0" and shown["`total_batch_size`"] == "none"
    assert "`mixup`" not in shown and "`std`" not in shown


@pytest.mark.parametrize("task", ["classify", "segment"])
def test_the_python_in_it_runs(task, tmp_path, monkeypatch, capsys):
    from PIL import Image

    from conftest import TINY, tiny

    _, body = write(tmp_path, task=task)
    config = swiftformer.SwiftFormerConfig(**TINY, num_labels=3, fpn_channels=8, segmentation_channels=8)
    model = tiny() if task == "classify" else swiftformer.SwiftFormerForSemanticSegmentation(config)
    swiftformer.save(model, tmp_path / "best")
    Image.new("RGB", (40, 40)).save(tmp_path / "picture.jpg")
    monkeypatch.chdir(tmp_path)
    exec(body.split("```python\n")[1].split("```")[0], {})
    assert len(capsys.readouterr().out.splitlines()) == (5 if task == "classify" else 1)


def test_a_recipe_that_was_stored_reads_the_same(tmp_path):
    recipe = dataclasses.asdict(get_recipe("small_images"))
    assert write(tmp_path, recipe=recipe) == write(tmp_path, recipe=json.loads(json.dumps(recipe)))
    _, body = write(tmp_path, recipe=recipe | {"a_newer_field": 3})
    assert table(body, "field")["`a_newer_field`"] == "3"


@given(data=st.text(min_size=1).filter(lambda s: "\0" not in s), name=st.text(min_size=1), classes=st.lists(st.text()))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_name_gives_a_valid_card(data, name, classes, tmp_path):
    write_model_card(tmp_path, **(FACTS | {"data": data, "model_name": name, "classes": classes, "started_from": name}))
    card = ModelCard.load(tmp_path / "README.md")
    assert len(card.data.eval_results) == 3 and "## Training" in card.text


@pytest.mark.parametrize(
    "name",
    ["a: b", "\"quoted'", "- list", "Blüten 花", "{x}", "[y", "#z", "yes", "1e3", "null", "a\nb: c", "---", "@a"],
)
def test_awkward_names_survive(name, tmp_path):
    front, body = write(tmp_path, data=f"/somewhere/{name}", classes=[name, "b|`c`<script>"])
    (result,) = front["model-index"][0]["results"]
    assert result["dataset"]["name"] == result["dataset"]["type"] == name and "datasets" not in front
    assert r"b\|\`c\`\<script\>" in body and "somewhere" not in body


def test_no_folder_of_the_machine_is_told(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", "/home/alice")
    recipe = FACTS["recipe"] | {"teacher": "local-dir:/home/alice/teachers/regnet"}
    command = (
        "/home/alice/.venv/bin/swiftformer train --data /home/alice/flowers/ --output=~/runs/1 "
        "--model '/mnt/my disk/xs' "
        "--set teacher=local-dir:/home/alice/teachers/regnet --set url=https://example.org/a ../other/alice.txt"
    )
    front, body = write(
        tmp_path, recipe=recipe, command=command, data="/home/alice/flowers/", started_from="/home/alice/runs/0/best",
        model_name="/home/alice/model",
    )  # fmt: skip
    text = (tmp_path / "README.md").read_text()
    assert "/home" not in text and "mnt" not in text and "~/" not in text
    assert front["model-index"][0]["name"] == "model" and "base_model" not in front
    assert "starting from best." in body and "trained on flowers " in body
    assert (
        "$ swiftformer train --data flowers --output=1 --model xs --set teacher=local-dir:regnet "
        "--set url=https://example.org/a alice.txt\n" in body
    )
    assert table(body, "field")["`teacher`"] == "local-dir:regnet"
    _, body = write(tmp_path, command='swiftformer "not closed /home/alice/x')
    assert "/home" not in body


def test_a_local_folder_is_no_hub_name(tmp_path, monkeypatch):
    (tmp_path / "data" / "pets").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    front, _ = write(tmp_path, data="data/pets", started_from="data/pets")
    assert "datasets" not in front and "base_model" not in front
    assert front["model-index"][0]["results"][0]["dataset"]["name"] == "pets"
    for data, name in (
        (".", tmp_path.name),
        ("data/pets/..", "data"),
        ("", "images"),
        ("/data/x.parquet", "x.parquet"),
    ):
        front, _ = write(tmp_path / "run", data=data)
        assert front["model-index"][0]["results"][0]["dataset"]["name"] == name


def test_variants_have_their_full_name(tmp_path):
    front, body = write(tmp_path, model_name="l1")
    assert front["model-index"][0]["name"] == "SwiftFormer-L1" and body.startswith("\n\n# SwiftFormer-L1\n")


def test_without_an_evaluation_and_with_many_classes(tmp_path):
    front, body = write(tmp_path, metrics={"loss": 1.0}, classes=[f"c{i:03}" for i in range(120)])
    assert "model-index" not in front and ModelCard.load(tmp_path / "README.md").data.eval_results is None
    assert "The 120 classes: c000, c001" in body and "c049 and 70 more" in body and "c050" not in body


def test_names_that_are_no_text(tmp_path):
    write(tmp_path, classes=["ros\udce9"], data="/x/ros\udce9")  # a folder named in Latin-1


def test_an_earlier_card_stays_where_writing_fails(tmp_path, monkeypatch):
    write(tmp_path)
    before = (tmp_path / "README.md").read_bytes()
    monkeypatch.setattr(Path, "write_bytes", lambda self, content: (_ for _ in ()).throw(OSError(28, "No space left")))
    with pytest.raises(OSError):
        write_model_card(tmp_path, **(FACTS | {"data": "another"}))
    monkeypatch.undo()
    assert (tmp_path / "README.md").read_bytes() == before and len(list(tmp_path.iterdir())) == 1
