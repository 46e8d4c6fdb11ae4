"""What runs on a GPU alone, and what a GPU computes of the rest: `pytest -m gpu`."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.cpp_extension import CUDA_HOME

from conftest import relative, tiny
from swiftformer import SwiftFormerConfig, classify, fuse, save
from swiftformer.benchmark.attention import run_attention_benchmark
from swiftformer.benchmark.latency import run_benchmark
from swiftformer.data.detection import open_detection
from swiftformer.data.segmentation import open_segmentation
from swiftformer.data.sources import open_source
from swiftformer.device import select_device
from swiftformer.engines import open_engine
from swiftformer.engines.torch import MODES, TorchEngine
from swiftformer.evaluate.classification import evaluate_classifier, evaluate_reference
from swiftformer.export import export
from swiftformer.train import classification, loop
from swiftformer.train.recipes import get_recipe
from test_detection_training import SETTINGS, shapes  # noqa: F401

pytestmark = pytest.mark.gpu
GPU = "cuda"  # most of these tests run on `cpu` as well


@pytest.fixture
def tiny_variant(monkeypatch):
    """Train a small network under the name of the smallest variant."""

    def build(cls, name, **kwargs):
        return SwiftFormerConfig(depths=[1, 1, 1, 1], embed_dims=[8, 12, 16, 20], global_query_weighting="l2", **kwargs)

    monkeypatch.setattr(SwiftFormerConfig, "from_variant", classmethod(build))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_engines(mode, precision):
    model = tiny(global_query_weighting="l2")
    batches = [torch.randn(n, 3, 64, 64) for n in (2, 2, 3)]
    engine = TorchEngine(fuse(model), tuple("abcdefghij"), mode=mode, device=GPU, precision=precision)
    for batch in batches:
        found = torch.from_numpy(engine(batch.numpy())["logits"])
        with torch.no_grad():
            assert relative(found, model(batch).logits) < (2e-2 if precision != "bf16" else 8e-2)


@pytest.mark.parametrize("format_", ["torch-export", "aoti"])
def test_programs(format_, tmp_path):
    if format_ == "aoti" and GPU == "cuda" and CUDA_HOME is None:
        pytest.skip("needs a CUDA toolkit")
    model, batch = tiny(global_query_weighting="l2"), torch.randn(2, 3, 64, 64)
    options = {"device": GPU} if format_ == "aoti" else {}
    export(model, tmp_path / "program", format_, batch=2, size=(64, 64), **options)
    engine = open_engine(tmp_path / "program", device=GPU)
    with torch.no_grad():
        assert relative(torch.from_numpy(engine(batch.numpy())["logits"]), model(batch).logits) < 1e-2


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("precision", ["bf16", "fp16", "fp32"])
def test_training_is_resumed_and_evaluated(precision, cached, image_folder, tiny_variant, tmp_path, monkeypatch):
    teacher = save(tiny(num_labels=2), tmp_path / "teacher")
    settings = [f"precision={precision}", "epochs=4", "lr=5e-3", "distillation=soft", f"teacher={teacher}"]
    recipe = get_recipe("smoke", [*settings, f"cache_teacher={cached}"])
    sources = [open_source(image_folder, split) for split in ("train", "val")]
    options = {"workers": 2, "device": GPU}
    calls = iter([True, False])

    def interrupted(*arguments, **options):
        if not next(calls):
            raise KeyboardInterrupt
        return evaluate_classifier(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(classification, "evaluate_classifier", interrupted)
        with pytest.raises(KeyboardInterrupt):
            loop.train(recipe, *sources, tmp_path / "run", **options)
    metrics = loop.train(recipe, *sources, tmp_path / "run", **options, resume=True)
    assert np.isfinite(metrics["loss"]) and metrics["epoch"] == 4
    found = evaluate_reference(str(tmp_path / "run" / "last"), image_folder, "val", workers=0, device=GPU)
    assert found["top1"] == pytest.approx(metrics["top1"], abs=100 / len(sources[1]))  # cuDNN may choose otherwise


def test_segmentation(segmentation_folder, tiny_variant, tmp_path):
    recipe = get_recipe("smoke_segmentation", ["epochs=2", "batch_size=2"])
    sources = [open_segmentation(segmentation_folder, split) for split in ("train", "val")]
    assert np.isfinite(loop.train(recipe, *sources, tmp_path / "run", workers=0, device=GPU)["loss"])


@pytest.mark.parametrize("name", ["smoke_instances", "small_real_time_detection"])
def test_detection(name, shapes, tiny_variant, tmp_path):  # noqa: F811
    known = get_recipe(name, [])
    settings = [each for each in SETTINGS if hasattr(known, each.split("=")[0])]
    recipe = get_recipe(name, [*settings, "epochs=2"])
    sources = [open_detection(shapes, split, masks=recipe.task == "instances") for split in ("train", "val")]
    assert np.isfinite(loop.train(recipe, *sources, tmp_path / "run", workers=0, device=GPU)["loss"])


def test_benchmarks():
    options = {"rounds": 1, "seconds": 0.01, "device": GPU}
    engines = ["torch", "torch channels_last"] + ["torch-cudagraphs"] * (GPU == "cuda")
    found = run_benchmark(["xs"], [1], [(64, 64)], engines=engines, **options)
    assert found["rows"] and not [row["error"] for row in found["rows"] if "error" in row]
    rows = run_attention_benchmark([64, 1024], 16, **options)["rows"]
    assert all(row["median_ms"] > 0 and row["peak_mb"] > 0 for row in rows)


def test_a_picture():
    (found,) = classify(Image.new("RGB", (40, 40)), device=GPU)
    (expected,) = classify(Image.new("RGB", (40, 40)), device="cpu")
    assert found.predictions[0].label == expected.predictions[0].label


def test_where_the_time_of_a_training_step_goes():
    script = Path(__file__).parents[1] / "benchmarks" / "training_speed.py"
    command = [sys.executable, str(script), "--profile", "--size", "64", "--batch", "8", "--device", GPU]
    told = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert told.returncode == 0 and told.stdout.count("%") >= 10, told.stderr


def test_each_process_takes_its_gpu(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert [str(select_device(name)) for name in (None, GPU, f"{GPU}:0")] == [f"{GPU}:0"] * 3


def test_json_of_a_command(tmp_path):
    Image.new("RGB", (40, 40)).save(tmp_path / "a.png")
    command = [sys.executable, "-m", "swiftformer", "classify", "--device", GPU, "--json", str(tmp_path / "a.png")]
    told = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert told.returncode == 0 and json.loads(told.stdout), told.stderr
