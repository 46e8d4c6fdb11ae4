import json
import re
import runpy
import sys
from pathlib import Path

import pytest
import torch

from conftest import tiny
from swiftformer import Preprocessing, classify, load, save
from swiftformer.cli import main as swiftformer_main
from swiftformer.data.sources import open_source

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


@pytest.fixture
def start(tmp_path):
    """A small checkpoint of ten classes, in the July 2023 form, for pictures of 32 pixels."""
    model = tiny(global_query_weighting="l2", id2label={i: f"kind {i}" for i in range(10)})
    model.preprocessing = Preprocessing(size=(32, 32))
    return save(model, tmp_path / "start")


@pytest.fixture
def script(monkeypatch, capsys):
    """Run an example as a script in this process; returns what it printed."""

    def run(name: str, **options: object) -> str:
        words = [f"--{key.replace('_', '-')}={value}" for key, value in options.items()]
        monkeypatch.setattr(sys, "argv", [name, *words])
        with pytest.raises(SystemExit) as caught:
            runpy.run_path(str(EXAMPLES / name), run_name="__main__")
        out, _ = capsys.readouterr()
        assert not caught.value.code
        return out

    return run


def losses(out: str) -> list[float]:
    return [float(number) for number in re.findall(r"(?<!_)\bloss'?:? '?([\d.]+)", out)]


def accuracy_of(folder, data) -> float:
    """Share of the validation pictures that the saved model, as a user loads it, names rightly, in percent."""
    source = open_source(data, "val")
    results = classify([source.image(i) for i in range(len(source))], str(folder), top_k=1)
    names = [result.predictions[0].label for result in results]
    return 100 * sum(n == source.classes[y] for n, y in zip(names, source.labels, strict=True)) / len(source)


def classified(folder, picture, capsys, monkeypatch) -> str:
    """The class name that the command line prints."""
    monkeypatch.setattr(sys, "argv", ["swiftformer", "classify", str(picture), "--model", str(folder), "--json"])
    capsys.readouterr()
    with pytest.raises(SystemExit):
        swiftformer_main()
    return json.loads(capsys.readouterr().out)[0]["predictions"][0]["label"]


@pytest.mark.parametrize("name", ["train_with_transformers.py", "train_with_timm.py"])
def test_training(name, script, start, image_folder, tmp_path, capsys, monkeypatch):
    output = tmp_path / "trained"
    options = {"size": 32} if "timm" in name else {}
    out = script(
        name, data=image_folder, model=start, output=output, epochs=4, batch_size=8, lr=5e-3, workers=0, **options
    )
    found = losses(out)
    assert len(found) == 4 and found[-1] < 0.7 * found[0], out
    told = float(out.split("accuracy ")[-1])
    assert told >= 90 and told == pytest.approx(accuracy_of(output, image_folder), abs=0.01)
    for colour in ("red", "blue"):
        assert classified(output, image_folder / "val" / colour / "0.png", capsys, monkeypatch) == colour
    assert load(output).config.form == "l2"


def heads(folder, data) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Classes that each head of a saved model predicts for the validation pictures, and the labels."""
    model, source = load(folder), open_source(data, "val")
    pixels = torch.from_numpy(model.preprocessing([source.image(i) for i in range(len(source))]))
    with torch.inference_mode():
        ours, distilled = model.heads(model.swiftformer(pixels).last_hidden_state)
    return ours.argmax(1), distilled.argmax(1), torch.tensor(source.labels)


@pytest.mark.parametrize("kind", ["hard", pytest.param("soft", marks=pytest.mark.exhaustive)])
def test_the_distillation_head_learns_from_the_teacher(kind, script, start, image_folder, tmp_path):
    """The teacher takes red for blue and blue for red: what a head says shows whom it has listened to."""
    options = {"data": image_folder, "model": start, "epochs": 4, "batch_size": 8, "lr": 5e-3, "workers": 0}
    script("train_with_transformers.py", output=tmp_path / "honest", **options)
    teacher = load(tmp_path / "honest")
    with torch.no_grad():
        for head in (teacher.head, teacher.dist_head):
            head.weight.neg_()
            head.bias.neg_()
    save(teacher, tmp_path / "teacher")
    output = tmp_path / "student"
    out = script("train_with_transformers.py", output=output, teacher=tmp_path / "teacher", kind=kind, **options)
    ours, distilled, labels = heads(output, image_folder)
    agreement = {"class": (ours == labels).float().mean(), "distillation": (distilled != labels).float().mean()}
    assert min(agreement.values()) >= 0.9, (agreement, out)
    assert len(losses(out)) == 4 and losses(out)[-1] < 0.7 * losses(out)[0]
    assert json.loads((output / "config.json").read_text())["id2label"] == {"0": "blue", "1": "red"}


def test_timm_checkpoints_hold_both_weights(script, start, image_folder, tmp_path):
    options = {"epochs": 2, "batch_size": 8, "size": 32, "workers": 0, "ema_decay": 0.5}
    script("train_with_timm.py", data=image_folder, model=start, output=tmp_path / "trained", **options)
    file = tmp_path / "trained" / "checkpoints" / "last.pth.tar"
    stored = torch.load(file, weights_only=True)
    for ema, name in ((False, "state_dict"), (True, "state_dict_ema")):
        model = load(file, form="l2", ema=ema)
        assert all(torch.equal(value, stored[name][key]) for key, value in model.state_dict().items())
    assert not torch.equal(stored["state_dict"]["head.weight"], stored["state_dict_ema"]["head.weight"])


def test_a_broken_picture_does_not_stop_the_training(script, start, image_folder, tmp_path, caplog):
    (image_folder / "train" / "red" / "3.png").write_bytes(b"no picture")
    options = {"epochs": 1, "batch_size": 8, "workers": 0}
    script("train_with_transformers.py", data=image_folder, model=start, output=tmp_path / "trained", **options)
    assert "3.png" in caplog.text and load(tmp_path / "trained").config.num_labels == 2
