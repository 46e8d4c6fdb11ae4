"""What a person does first: a folder of three classes of JPEGs, two commands, and a third to look at the result."""

import json

import numpy as np
import pytest
from PIL import Image

from test_cli import cli  # noqa: F401

CLASSES = {"rote Äpfel": (200, 30, 30), "limes": (40, 180, 40), "plums, blue": (50, 40, 190)}


@pytest.fixture
def photos(tmp_path):
    rng = np.random.default_rng(0)
    for name, color in CLASSES.items():
        folder = tmp_path / "photos" / name
        folder.mkdir(parents=True)
        for i in range(12):
            noise = rng.integers(-30, 30, (90, 120, 3))
            Image.fromarray(np.clip(noise + color, 0, 255).astype(np.uint8)).save(folder / f"{i}.jpg", quality=85)
    return tmp_path / "photos"


def hub_checkpoint(folder):
    """As people find it on the hub: written by stock transformers, March 2023 form, other classes."""
    from transformers import SwiftFormerConfig, SwiftFormerForImageClassification

    config = SwiftFormerConfig(depths=[1, 1, 1, 1], embed_dims=[16, 16, 32, 32], num_labels=7)
    SwiftFormerForImageClassification(config).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("start", ["bundled", "hub"])
def test_fine_tuning_in_two_commands(cli, photos, tmp_path, start):  # noqa: F811
    model = "swiftformer-xs-cifar10" if start == "bundled" else hub_checkpoint(tmp_path / "hub")
    quick = ["--set", "image_size=64", "--set", "epochs=8"]
    run = tmp_path / "run"
    code, _, err = cli("train", "--data", photos, "--model", model, "--output", run, "--workers", 0, *quick)
    assert code == 0, err
    code, out, err = cli("evaluate", "--data", photos, "--model", run, "--split", "val", "--workers", 0, "--json")
    assert code == 0, err
    metrics = json.loads(out)
    assert metrics["images"] == 3 and metrics["top1"] > 60
    code, out, err = cli("classify", photos / "limes" / "3.jpg", "--model", run, "--json", "--top-k", 3)
    (result,) = json.loads(out)
    assert {prediction["label"] for prediction in result["predictions"]} == set(CLASSES)
    card = (run / "README.md").read_text()
    assert "photos" in card and "rote Äpfel" in card and str(tmp_path) not in card
