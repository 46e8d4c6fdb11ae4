"""LiteRT models: run in ai-edge-litert, without torch, and compared."""

import json
import re
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from conftest import TINY, randomize
from swiftformer import SwiftFormerBackbone, SwiftFormerConfig
from swiftformer.artifact import ArtifactError, read_artifact
from swiftformer.deploy import fuse
from swiftformer.engines import EngineError, open_engine
from swiftformer.export import ExportError, Options, export
from swiftformer.export.compare import samples
from swiftformer.export.graph import DeployGraph
from test_executorch import SHALLOW, SMALL, damaged, difference, small

pytest.importorskip("litert_torch")


@pytest.fixture(scope="session")
def converted(tmp_path_factory):
    """A model of the l2 form and its float32 artifact."""
    model = small(global_query_weighting="l2")
    folder = tmp_path_factory.mktemp("litert") / "artifact"
    export(model, folder, "litert")
    return model, folder


def test_float32_agrees(converted):
    model, folder = converted
    artifact, engine, x = read_artifact(folder), open_engine(folder, threads=1), torch.randn(3, 3, 64, 64)
    assert artifact.input_shape == (1, 3, 64, 64) and artifact.file == "model.tflite"
    assert artifact.comparison["images"] == 9 and artifact.comparison["max_relative_difference"] < 1e-5
    assert engine.name == "litert fp32 cpu"
    with torch.inference_mode():
        assert difference(engine(x.numpy())["logits"], model(x).logits) < 1e-5


def test_float16_weights(converted, tmp_path):
    """What the float32 model becomes."""
    from swiftformer.export.litert import halve

    content = (converted[1] / "model.tflite").read_bytes()
    folder = damaged(converted[1], tmp_path, half := halve(content), checksums=False)
    assert len(half) < 0.9 * len(content)  # most of so small a model is not weights
    assert sum(detail["dtype"] == np.float16 for detail in details(folder / "model.tflite")) > 30
    x = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        assert 1e-6 < difference(open_engine(folder)(x.numpy())["logits"], converted[0](x).logits) < 0.01


@pytest.mark.exhaustive
def test_float16_agrees_in_half_the_size(converted, tmp_path):
    artifact = export(converted[0], tmp_path, "litert", precision="fp16", softmax=True)
    assert artifact.outputs == ("probabilities",)
    assert 1e-6 < artifact.comparison["max_relative_difference"] < 0.01
    dtypes = [detail["dtype"] for detail in details(tmp_path / "model.tflite")]
    assert sum(dtype == np.float16 for dtype in dtypes) > 30


def test_int8_agrees(tmp_path):
    model, x = small(), np.full((1, 3, 64, 64), 128, np.float32)
    artifact = export(model, tmp_path, "litert", precision="int8", calibration=samples(), normalize=True)
    assert artifact.value_range == "0-255" and artifact.comparison["max_relative_difference"] < 0.3
    assert 0 < difference(open_engine(tmp_path)(x)["logits"], fuse(model, raw_input=True)(torch.from_numpy(x))) < 0.5


def details(file) -> list[dict]:
    from ai_edge_litert.interpreter import Interpreter

    return Interpreter(str(file)).get_tensor_details()


def test_layers_stay_in_floating_point(converted, tmp_path):
    """Every layer is found by its name; those to be kept, and no others, give float32."""
    from swiftformer.export.litert import quantize, scope

    model, folder = converted
    layers = [name for name, m in fuse(model).named_modules() if isinstance(m, torch.nn.Conv2d)]
    kept = ["stem.0", "layers.1", "layers.0.0.attention.key_query", "layers.4.0.mlp.expand"]
    images = torch.randn(4, 3, 64, 64).numpy()
    (tmp_path / "int8.tflite").write_bytes(quantize((folder / "model.tflite").read_bytes(), images, (*kept, "head")))
    found = details(tmp_path / "int8.tflite")
    for layer in layers:
        of_layer = [detail for detail in found if re.search(scope(layer), detail["name"])]
        # What the next layer quantises for itself carries the name as well.
        outputs = [detail["dtype"] for detail in of_layer if not detail["name"].endswith("_quantized")]
        assert outputs and (np.int8 in outputs) == (layer not in kept), (layer, outputs)
    assert sum(detail["dtype"] == np.int8 and detail["shape"].tolist() == [10, 24] for detail in found) == 0


@pytest.mark.exhaustive
def test_backbone(tmp_path):
    config = SwiftFormerConfig(**(TINY | SHALLOW), num_labels=10, out_features=["stage1", "stage3"])
    model = randomize(SwiftFormerBackbone(config)).eval()
    model.preprocessing = SMALL
    artifact = export(model, tmp_path, "litert", batch=2)
    assert artifact.outputs == ("stage1", "stage3") and artifact.comparison["max_relative_difference"] < 1e-5
    x = torch.randn(3, 3, 64, 64)  # filled up to two batches of 2
    with torch.inference_mode():
        for found, expected in zip(open_engine(tmp_path)(x.numpy()).values(), model(x).feature_maps, strict=True):
            assert difference(found, expected) < 1e-5


def test_other_shapes_are_refused(converted):
    engine = open_engine(converted[1])
    with pytest.raises(EngineError, match=r"expected an input of shape \(N, 3, 64, 64\), found \(1, 3, 32, 64\)"):
        engine(np.zeros((1, 3, 32, 64), np.float32))


@pytest.mark.parametrize("part", [0, 300, 0.5, 0.98], ids=str)
def test_damaged_files_are_refused(converted, tmp_path, part):
    content = (converted[1] / "model.tflite").read_bytes()
    content = content[: part if isinstance(part, int) else int(part * len(content))]
    with pytest.raises(EngineError, match="model.tflite: litert refuses it") as caught:
        open_engine(damaged(converted[1], tmp_path, content, checksums=False))
    assert "\n" not in str(caught.value)
    with pytest.raises(ArtifactError, match="damaged or changed"):
        open_engine(damaged(converted[1], tmp_path, content, checksums=True))


def test_another_model_is_refused(converted, tmp_path):
    folder = damaged(converted[1], tmp_path, (converted[1] / "model.tflite").read_bytes(), checksums=False)
    fields = json.loads((folder / "metadata.json").read_text())
    (folder / "metadata.json").write_text(json.dumps(fields | {"outputs": ["probabilities"]}))
    with pytest.raises(EngineError, match="expected probabilities in its signature, found none there"):
        open_engine(folder)


def test_options_that_do_not_fit(converted):
    with pytest.raises(EngineError, match="computes as the artifact is stored: expected fp32, found fp16"):
        open_engine(converted[1], precision="fp16")
    with pytest.raises(EngineError, match="device: expected cpu for litert, found 'cuda'"):
        open_engine(converted[1], device="cuda")


def test_runs_without_torch(converted):
    """In a process of its own, in which torch cannot be imported."""
    script = (
        "import sys; sys.modules['torch'] = None\n"
        "import numpy as np\n"
        "from swiftformer.engines import open_engine\n"
        f"print(open_engine({str(converted[1])!r})(np.ones((1, 3, 64, 64)))['logits'].tolist())"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    with torch.inference_mode():
        expected = converted[0](torch.ones(1, 3, 64, 64)).logits
    assert difference(np.array(json.loads(done.stdout)), expected) < 1e-5


def test_a_torch_too_new_is_refused(converted, tmp_path, monkeypatch):
    from importlib import metadata

    versions = {"torch": "2.15.0+cpu", "litert-torch": "0.10.0"}
    fake = SimpleNamespace(version=versions.__getitem__, requires=metadata.requires)
    monkeypatch.setattr("swiftformer.export.litert.metadata", fake)
    with pytest.raises(ExportError, match=r"litert-torch 0.10.0: expected torch.*<2.15.0.*, found 2.15.0$"):
        export(converted[0], tmp_path / "new", "litert")
    assert not (tmp_path / "new").exists()


@pytest.mark.exhaustive
def test_calibration_of_a_fixed_batch(converted):
    """Fewer images than the batch holds are repeated."""
    from swiftformer.export.litert import quantize, to_litert

    images = torch.randn(3, 3, 64, 64).numpy()
    options = Options("litert", "int8", 2, (64, 64), False, False, (), images)
    graph = DeployGraph(fuse(small())).to(memory_format=torch.contiguous_format)
    assert len(quantize(to_litert(graph, options), images, batch=2)) > 10_000
