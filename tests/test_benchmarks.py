"""The benchmark scripts run, on a handful of pictures; their figures mean nothing here."""

import importlib.util
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from swiftformer import load
from swiftformer.training_operators import KERNELS

FOLDER = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture
def script(monkeypatch, capsys):
    """Run a script's `main` with arguments in this process; its standard output."""

    def run(name, *arguments):
        monkeypatch.syspath_prepend(FOLDER)  # as it is for a script
        spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        module.main()
        return capsys.readouterr().out

    return run


@pytest.fixture
def ten_classes(tmp_path):
    rng = np.random.default_rng(0)
    for split, count in (("train", 2), ("test", 1)):
        for name in load("swiftformer-xs-cifar10").config.id2label.values():
            (tmp_path / "data" / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 255, (36, 40, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / "data" / split / name / f"{i}.png")
    return tmp_path / "data"


@pytest.mark.exhaustive
def test_quality(script, ten_classes, tmp_path):
    options = ["--data", ten_classes, "--epochs", 1, "--workers", 0, "--device", "cpu", "--output", tmp_path / "out"]
    options += ["--set", "image_size=64", "--set", "batch_size=10"]
    out = script("quality", *options)
    table = [line for line in out.splitlines() if line.startswith("| ")]
    assert len(table) == 8 and sum("distillation" in line for line in table) == 2
    again = script("quality", *options)  # what is there is not repeated
    assert [line for line in again.splitlines() if line] == ["".join(line) for line in out.splitlines()[-9:]]


@pytest.mark.exhaustive
def test_export_accuracy(script, ten_classes, tmp_path):
    pytest.importorskip("openvino")
    options = ["--data", ten_classes, "--formats", "openvino", "--precisions", "fp32", "--output", tmp_path / "a.jsonl"]
    out = script("export_accuracy", *options)
    rows = [line for line in out.splitlines() if line.startswith("| ")]
    assert "| openvino | fp32 | 10 | " in rows[2] and "100.00%" in rows[2] and "| PyTorch |" in rows[1]
    assert script("export_accuracy", *options).splitlines() == rows[:1] + out.splitlines()[-3:]


@pytest.mark.exhaustive
def test_fusing(script):
    pytest.importorskip("openvino")
    out = script("fusing", "--size", 32, "--rounds", 1, "--seconds", 0)
    assert out.count("| fused |") == 2 and out.count("| timm |") == 2


@pytest.mark.exhaustive
def test_fusing_steps(script):
    """Each of its networks computes what the model does: the script itself sees to that."""
    pytest.importorskip("openvino")
    out = script("fusing_steps", "--size", 32, "--rounds", 1, "--seconds", 0)
    assert out.count("| fused | ") == 3 and out.count("| BatchNorms not folded | OpenVINO") == 2
    assert "| channels first | torch fp32 |" in out


def test_small_maps(script):
    out = script("small_maps", "--channels", 3, "--batch", 1, "--rounds", 1)
    assert "| depth-wise | bfloat16 | 2x2 | " in out and "| 1x1, 12 to 3 | float32 | 4x4 | " in out


@pytest.mark.skipif(KERNELS is None, reason="needs swiftformer_native and AVX-512 BF16")
def test_training_kernels(script):
    out = script("training_kernels", "--batch", 2, "--rounds", 1)
    assert "| BatchNorm | 24x32x32 | " in out and "| scaled sum | 220x2x2 | " in out


@pytest.mark.exhaustive
def test_start_up(script):
    pytest.importorskip("onnxruntime")
    out = script("start_up", "--formats", "onnx", "--processes", 1)
    assert re.search(r"\| onnx, script \| \d+\.\d{3} \|", out) and "| Python with NumPy and Pillow |" in out
    assert "| the checkpoint in torch, script |" in out and "native" not in out


def test_loading_speed(script, ten_classes):
    out = script(
        "loading_speed", "--data", ten_classes / "train", "--workers", 1, "--batch", 5, "--size", 32, "--rounds", 2,
        "--epochs", 1,
    )  # fmt: skip
    assert "| swiftformer |" in out and "20 pictures" in out
    out = script(
        "loading_speed", "--data", ten_classes / "train", "--workers", 0, "--batch", 5, "--size", 32, "--rounds", 2,
        "--epochs", 1, "--pictures", 10, "--enlarge", 200,
    )  # fmt: skip
    assert "| swiftformer |" in out and "10 pictures" in out


@pytest.mark.parametrize("options", [["--no-compile"], pytest.param(["--profile"], marks=pytest.mark.exhaustive)])
def test_training_speed(script, options):
    out = script("training_speed", "--size", 32, "--batch", 4, "--rounds", 2, "--steps", 1, "--device", "cpu", *options)
    assert ("| swiftformer |" if options == ["--no-compile"] else "| aten::convolution_backward |") in out
