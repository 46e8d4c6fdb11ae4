"""Segmentation in two processes against one."""

import json

import numpy as np
import pytest
from PIL import Image

from conftest import picture_with_mask, tiny
from swiftformer import load, save
from swiftformer.evaluate.segmentation import evaluate_reference
from train_worker import Started


@pytest.fixture
def masks(tmp_path):
    """16 pictures to train on, and 5 to validate on, one of them with a mask of another size."""
    for split, count in (("train", 16), ("val", 5)):
        for i in range(count):
            pixels, mask = picture_with_mask(i, 40, 56)
            for kind, content in (("images", pixels), ("annotations", mask[:-1] if (split, i) == ("val", 3) else mask)):
                (tmp_path / "data" / kind / split).mkdir(parents=True, exist_ok=True)
                Image.fromarray(content).save(tmp_path / "data" / kind / split / f"{i}.png")
    (tmp_path / "data" / "classes.txt").write_text("sky\nroad\ntree\n")
    return tmp_path / "data"


@pytest.mark.exhaustive
def test_two_processes_train_and_count_every_picture_once(masks, tmp_path):
    save(tiny(global_query_weighting="l2"), tmp_path / "tiny")
    common = ["--data", masks, "--device", "cpu", "--workers", 0, "--json"]
    train = ["train", "--task", "segment", "--recipe", "smoke_segmentation", "--model", tmp_path / "tiny", *common]
    for setting in ("epochs=2", "batch_size=4", "image_size=32", "fpn_channels=8", "head_channels=8"):
        train += ["--set", setting]
    (out, _), (silent, _) = Started(tmp_path / "t", [*train, "--output", tmp_path / "run"], 2, "cli").wait()
    assert silent == ""  # one process speaks
    trained = json.loads(out)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2] and all(np.isfinite(line["loss"]) for line in lines)
    assert list(load(tmp_path / "run").config.id2label.values()) == ["sky", "road", "tree"]
    assert "2 processes" in (tmp_path / "run" / "README.md").read_text()

    expected = evaluate_reference(tmp_path / "run" / "last", str(masks), workers=0, device="cpu")
    assert expected["images"] == 4 and expected["unreadable"] == 1
    evaluate = ["evaluate", "--model", tmp_path / "run" / "last", *common]
    (out, _), (silent, _) = Started(tmp_path / "e", evaluate, 2, "cli").wait()
    found = json.loads(out)
    assert silent == "" and found["images"] == 4 and found["unreadable"] == 1
    for name in ("miou", "mean_accuracy", "pixel_accuracy"):
        assert found[name] == pytest.approx(expected[name], abs=1e-6)
        assert trained[name] == lines[-1][name] == pytest.approx(expected[name], abs=1e-6)
