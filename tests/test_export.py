"""Every exported graph is run and compared with the model it came from; failures leave nothing behind."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import nn

import swiftformer.export as exports
from conftest import TINY, randomize, tiny
from swiftformer import SwiftFormerBackbone, SwiftFormerConfig, save
from swiftformer.artifact import ArtifactError, read_artifact, sha256
from swiftformer.checkpoints import FORMS, load
from swiftformer.deploy import fuse
from swiftformer.engines import EngineError, open_engine
from swiftformer.engines.openvino import shared_core
from swiftformer.evaluate import classification
from swiftformer.export import FORMATS, ExportError, calibration_pictures, export
from swiftformer.export import compare as comparison
from swiftformer.export.calibration import evenly
from swiftformer.export.compare import pictures, samples
from swiftformer.export.formats import Options
from swiftformer.export.quantize_openvino import quantize
from swiftformer.export.search import write_within_drop
from swiftformer.export.sensitivity import round_activations, round_weights, sensitivities
from swiftformer.image_processing import Preprocessing
from swiftformer.reports import artifact_table
from test_cli import cli  # noqa: F401

SMALL = Preprocessing(size=(64, 64), resize="shortest", resize_to=64)
SHALLOW = {"depths": [1, 1, 1, 1], "embed_dims": [8, 12, 16, 24]}


def small(**fields):
    model = tiny(**fields)
    model.preprocessing = SMALL
    return model


def difference(found: np.ndarray, expected: torch.Tensor) -> float:
    return float(np.abs(found - expected.numpy()).max() / expected.abs().max())


@pytest.fixture(scope="session")
def artifacts(tmp_path_factory):
    """A model of the l2 form, and its dynamic artifacts by format."""
    model = small(global_query_weighting="l2", id2label={i: f"kind {i}" for i in range(10)})
    folder = tmp_path_factory.mktemp("artifacts")
    for format_ in ("onnx", "openvino", "torch-export"):
        export(model, folder / format_, format_)
    return model, folder


@pytest.mark.parametrize("format_", ["onnx", "openvino", "torch-export"])
def test_any_batch_and_size(artifacts, format_):
    model, folder = artifacts
    artifact, engine = read_artifact(folder / format_), open_engine(folder / format_)
    assert artifact.input_shape == (None, 3, None, None) and artifact.labels == tuple(f"kind {i}" for i in range(10))
    assert artifact.comparison["images"] == 9 and artifact.comparison["max_relative_difference"] < 1e-5
    assert artifact.comparison["top1_agreement"] == 1 and artifact.source["form"] == "l2"
    for shape in [(1, 3, 64, 64), (3, 3, 97, 65), (2, 3, 33, 130)]:
        x = torch.randn(shape)
        with torch.inference_mode():
            assert difference(engine(x.numpy())["logits"], model(x).logits) < 1e-5


@pytest.mark.parametrize("engine", ["openvino", "onnxruntime"])
def test_onnx_runs_in_both(artifacts, engine):
    model, folder = artifacts
    opened = open_engine(folder / "onnx", engine, threads=1)
    assert opened.name.startswith(engine)
    x = torch.randn(2, 3, 64, 96)
    with torch.inference_mode():
        assert difference(opened(x.numpy())["logits"], model(x).logits) < 1e-5


def test_the_onnx_graph_is_what_was_fused(artifacts):
    onnx = pytest.importorskip("onnx")
    model = onnx.load(str(artifacts[1] / "onnx" / "model.onnx"))
    kinds = {node.op_type for node in model.graph.node}
    assert "Gelu" in kinds and not kinds & {"BatchNormalization", "Transpose", "Reshape", "Softmax", "MatMul", "Erf"}
    assert model.opset_import[0].version >= 20
    assert [file.name for file in sorted((artifacts[1] / "onnx").iterdir())] == ["metadata.json", "model.onnx"]


def test_torch_export_of_small_pictures(tmp_path):
    """Of 32 pixels: what it cannot leave free is fixed."""
    model = small(**SHALLOW)
    model.preprocessing = Preprocessing(size=(32, 32), resize="shortest", resize_to=32)
    artifact = export(model, tmp_path / "a", "torch-export")
    assert artifact.input_shape == (1, 3, 32, 32) and artifact.comparison["max_relative_difference"] < 1e-5
    with pytest.raises(ExportError, match="takes free sizes of at least 33 pixels: expected a fixed size for 32"):
        export(model, tmp_path / "b", "torch-export", size="dynamic")
    assert export(model, tmp_path / "c", "openvino").input_shape == (None, 3, None, None)


@pytest.mark.exhaustive
@settings(max_examples=8, deadline=None)
@given(data=st.data())
def test_all_forms(data, tmp_path_factory):
    fields = {
        "global_query_weighting": data.draw(st.sampled_from(["uniform", "l2"])),
        "normalize_query_key": data.draw(st.booleans()),
        "distillation": data.draw(st.booleans()),
        "hidden_act": data.draw(st.sampled_from(["gelu", "relu", "silu"])),
        "num_channels": data.draw(st.sampled_from([1, 3, 4])),
    }
    artifact = export(small(**fields), tmp_path_factory.mktemp("any") / "a", "openvino")
    assert artifact.comparison["max_relative_difference"] < 1e-4


@pytest.mark.exhaustive
@pytest.mark.parametrize("format_", ["onnx", "openvino", "torch-export"])
def test_backbones(tmp_path, format_):
    config = SwiftFormerConfig(**TINY, out_features=["stage1", "stage4"])
    model = randomize(SwiftFormerBackbone(config)).eval()
    model.preprocessing = SMALL
    artifact = export(model, tmp_path / "a", format_)
    assert artifact.task == "backbone" and artifact.outputs == ("stage1", "stage4")
    found = open_engine(tmp_path / "a")(np.zeros((1, 3, 96, 64), np.float32))
    assert found["stage1"].shape == (1, 16, 24, 16) and found["stage4"].shape == (1, 48, 3, 2)


@pytest.mark.parametrize(
    ("format_", "precision", "bound"),
    [
        ("onnx", "fp16", 0.01),
        pytest.param("openvino", "fp16", 0.01, marks=pytest.mark.exhaustive),
        ("openvino", "bf16", 0.05),
        pytest.param("torch-export", "bf16", 0.05, marks=pytest.mark.exhaustive),
    ],
)
def test_reduced_precision(tmp_path, format_, precision, bound):
    model = small(global_query_weighting="l2")
    artifact = export(model, tmp_path / "a", format_, precision=precision)
    assert artifact.precision == precision and 0 < artifact.comparison["max_relative_difference"] < bound
    engine = open_engine(tmp_path / "a", FORMATS[format_].compared_in)  # `auto` may compute in float32
    assert np.isfinite(engine(np.zeros((1, 3, 64, 64), np.float32))["logits"]).all()


@pytest.mark.parametrize("format_", [pytest.param("onnx", marks=pytest.mark.exhaustive), "torch-export"])
def test_float16_of_sums_that_it_could_not_hold(tmp_path, format_):
    """Of queries over all tokens, where they are not normalised."""
    model = small(**FORMS["uniform-unnormalized"])
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("to_query.bias"):
                parameter.add_(torch.linspace(-300, 300, len(parameter)))
            elif "layer_scale_1" in name:
                parameter.fill_(1e-6)
    artifact = export(model, tmp_path / "a", format_, precision="fp16", size=(224, 224))
    assert artifact.comparison["max_relative_difference"] < 0.01


def test_fixed_shapes_softmax_and_raw_pixels(tmp_path):
    model = small()
    artifact = export(model, tmp_path / "a", "onnx", batch=2, size=(64, 96), softmax=True, normalize=True)
    assert artifact.input_shape == (2, 3, 64, 96) and artifact.value_range == "0-255"
    engine = open_engine(tmp_path / "a")
    raw = torch.randint(0, 256, (5, 3, 64, 96)).float()
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (SMALL.mean, SMALL.std))
    with torch.inference_mode():
        expected = model((raw / 255 - mean) / std).logits.softmax(dim=1)
    found = engine(raw.numpy())["probabilities"]  # five images through a batch of two
    assert found.shape == (5, 10) and np.allclose(found, expected.numpy(), atol=1e-5)
    # What the engine's own preprocessing makes of a picture is what the graph expects.
    prepared = engine.preprocessing.prepare(np.full((64, 96, 3), 200, np.uint8))
    assert prepared.shape == (3, 64, 96) and np.allclose(prepared, 200)
    with pytest.raises(EngineError, match=r"expected an input of shape \(N, 3, 64, 96\), found \(1, 3, 64, 64\)"):
        engine(np.zeros((1, 3, 64, 64), np.float32))


@pytest.mark.parametrize("format_", ["tensorrt", "qnn"])
def test_for_tools_that_do_not_run_here(tmp_path, format_):
    onnx = pytest.importorskip("onnx")
    artifact = export(small(), tmp_path / "a", format_)
    assert artifact.input_shape == (1, 3, 64, 64) and artifact.comparison["max_relative_difference"] < 1e-5
    graph = onnx.load(str(tmp_path / "a" / artifact.file)).graph
    assert [d.dim_value for d in graph.input[0].type.tensor_type.shape.dim] == [1, 3, 64, 64]


@pytest.mark.parametrize("format_", ["qnn", pytest.param("tensorrt", marks=pytest.mark.exhaustive)])
def test_operators_that_those_tools_do_not_know_are_refused(tmp_path, format_):
    pytest.importorskip("onnx")
    model = small(hidden_act="mish", **SHALLOW)
    with pytest.raises(ExportError, match=f"^{format_}: expected operators that its tools take, found Mish$"):
        export(model, tmp_path / "a", format_)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.exhaustive
def test_aoti(tmp_path):
    model = small()
    artifact = export(model, tmp_path / "a", "aoti", size=(64, 64))
    assert artifact.comparison["max_relative_difference"] < 1e-5
    x = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        assert difference(open_engine(tmp_path / "a")(x.numpy())["logits"], model(x).logits) < 1e-5


def quantized_products(file):
    """How many convolutions and matrix products have both operands in int8."""
    if file.suffix == ".onnx":
        nodes = pytest.importorskip("onnx").load(str(file)).graph.node
        made_by = {output: node.op_type for node in nodes for output in node.output}
        products = [node for node in nodes if node.op_type in ("Conv", "Gemm", "MatMul")]
        return sum(all(made_by.get(name) == "DequantizeLinear" for name in node.input[:2]) for node in products)
    operations = shared_core().read_model(file).get_ordered_ops()
    names = ("Convolution", "GroupConvolution", "MatMul")
    return sum(
        any("fq_weights" in given.get_node().get_friendly_name() for given in operation.input_values())
        for operation in operations
        if operation.get_type_name() in names
    )


@pytest.mark.parametrize(
    ("format_", "fields", "fixed"),
    [
        pytest.param("onnx", {}, {}, marks=pytest.mark.exhaustive),
        ("onnx", SHALLOW, {"batch": 1, "size": (64, 64)}),
        ("openvino", {}, {}),
    ],
)
def test_int8(tmp_path, format_, fields, fixed):
    if format_ == "openvino":
        pytest.importorskip("nncf")
    rng = np.random.default_rng(0)
    calibration = samples() if fields else list(rng.integers(0, 256, (16, 64, 64, 3), np.uint8))
    model = small(global_query_weighting="l2", **fields)
    artifact = export(model, tmp_path / "a", format_, precision="int8", calibration=calibration, **fixed)
    # Without VNNI sums of this small random model saturate in 16 bits.
    bound = 0.3 if torch.cpu._is_vnni_supported() else 0.5
    assert 1e-5 < artifact.comparison["max_relative_difference"] < bound
    assert artifact.float_layers == ()
    layers = sum(isinstance(module, (nn.Conv2d, nn.Linear)) for module in fuse(model).modules())
    assert quantized_products(tmp_path / "a" / artifact.file) >= layers


def test_openvino_calibrates_with_batches_of_different_pictures(monkeypatch):
    """One at a time, the last filled up; a picture is in no batch twice."""
    nncf = pytest.importorskip("nncf")
    given = {}

    def record(model, dataset, **options):
        given.update(options, parts=[part.copy() for part in dataset.get_inference_data()], source=dataset.get_data())

    monkeypatch.setattr(nncf, "quantize", record)
    images = np.random.default_rng(0).random((5, 3, 4, 4), np.float32)
    for batch, size, count in ((None, 1, 5), (1, 1, 5), (2, 2, 3), (8, 8, 1)):
        quantize(SimpleNamespace(get_ordered_ops=list), images, batch=batch)
        assert np.array_equal(np.stack(given["parts"]), np.resize(images, (count, size, 3, 4, 4)))
        assert given["subset_size"] == count and not any(isinstance(item, np.ndarray) for item in given["source"])


@pytest.mark.exhaustive
def test_the_batch_makes_no_difference_to_ranges(tmp_path):
    """Those of OpenVINO are means over pictures: the extremes of a batch would be wider."""
    pytest.importorskip("nncf")
    noise = np.random.default_rng(0).integers(0, 256, (8, 64, 64, 3))
    dark_to_light = [(picture * (0.3 + 0.1 * i)).clip(0, 255).astype(np.uint8) for i, picture in enumerate(noise)]
    model, found = small(global_query_weighting="l2"), {}
    for batch in (1, 4):
        options = {"precision": "int8", "calibration": dark_to_light, "batch": batch, "size": (64, 64)}
        export(model, tmp_path / str(batch), "openvino", **options)
        graph = shared_core().read_model(tmp_path / str(batch) / "model.xml")
        found[batch] = {
            f"{node.get_friendly_name()} {i}": node.input_value(i).get_node().data.item()
            for node in graph.get_ordered_ops()
            if node.get_type_name() == "FakeQuantize"
            for i in (1, 2)
            if node.input_value(i).get_node().data.size == 1
        }
    assert len(found[1]) > 10 and found[4] == pytest.approx(found[1], rel=1e-3)


@pytest.mark.exhaustive
def test_int8_of_a_fixed_batch_with_float_layers(tmp_path, capsys):
    """Nothing but the artifact is printed, and the layers that were left carry no quantised weights."""
    pytest.importorskip("openvino")
    pytest.importorskip("nncf")
    calibration = list(np.random.default_rng(0).integers(0, 256, (5, 64, 64, 3), np.uint8))
    answers = iter([80.0, 10.0, 10.0, 80.0])  # the model, then with 0, 1 and 2 layers left
    options = {"precision": "int8", "calibration": calibration, "top1": lambda what: next(answers), "max_drop": 1.0}
    artifact = export(small(global_query_weighting="l2"), tmp_path / "a", "openvino", batch=2, size=(64, 64), **options)
    assert capsys.readouterr().out == ""
    assert len(artifact.float_layers) == 2 and artifact.comparison["max_relative_difference"] < 0.3
    graph = shared_core().read_model(tmp_path / "a" / "model.xml")
    quantised = {}
    for node in graph.get_ordered_ops():
        if node.get_type_name() in ("Convolution", "GroupConvolution", "MatMul"):
            kinds = {node.input_value(i).get_node().get_type_name() for i in range(2)}
            layer = node.get_friendly_name().removeprefix("__module.net.").split("/")[0]
            quantised[layer] = "FakeQuantize" in kinds or "Multiply" in kinds
    assert {layer for layer, is_int8 in quantised.items() if not is_int8} >= set(artifact.float_layers)
    assert sum(quantised.values()) > len(quantised) / 2


def test_the_search_for_sensitive_layers(tmp_path):
    """0, 1, 2, 4, ... of them, the most sensitive first, until the accuracy holds; what was tried before is gone."""
    net, images = fuse(small(**SHALLOW)), np.random.default_rng(0).random((4, 3, 32, 32), np.float32)
    ranked = list(sensitivities(net, torch.from_numpy(images)))
    tried = []

    def write(folder, left):
        tried.append(left)
        (folder / "layers").write_text(" ".join(left))

    def top1(folder):
        return 79.0 + 0.3 * len(Path(folder, "layers").read_text().split())

    (tmp_path / "a").mkdir()
    assert write_within_drop(net, images, write, top1, tmp_path / "a", 80.0, 0.3) == pytest.approx(80.2)
    assert tried == [tuple(ranked[:count]) for count in (0, 1, 2, 4)]
    assert (tmp_path / "a" / "layers").read_text().split() == ranked[:4] and len(list(tmp_path.iterdir())) == 1
    message = f"expected a top-1 of at least 89.90%.*, found 0.00% with 16 of {len(ranked)} layers in floating point"
    (tmp_path / "b").mkdir()
    with pytest.raises(ExportError, match=message):
        write_within_drop(net, images, write, lambda folder: 0.0, tmp_path / "b", 90.0, 0.1)
    assert list((tmp_path / "b").iterdir()) == [] and len(list(tmp_path.iterdir())) == 2


@pytest.mark.exhaustive
def test_int8_keeps_its_accuracy(tmp_path):
    """The layers that suffer most stay in floating point until the accuracy is good enough, and no more of them."""
    rng = np.random.default_rng(0)
    calibration = list(rng.integers(0, 256, (8, 64, 64, 3), np.uint8))
    model = small()
    measured = []

    def top1(what: object) -> float:
        if isinstance(what, nn.Module):
            return 80.0
        measured.append(read_artifact(what).float_layers)
        return 79.0 + 0.3 * len(measured[-1])

    options = {"precision": "int8", "calibration": calibration, "top1": top1}
    artifact = export(model, tmp_path / "a", "onnx", **options, max_drop=0.3)
    assert [len(layers) for layers in measured] == [0, 1, 2, 4]
    assert artifact.float_layers == measured[-1] and artifact.comparison["float_top1"] == 80
    onnx = pytest.importorskip("onnx")
    nodes = onnx.load(str(tmp_path / "a" / "model.onnx")).graph.node
    dequantised = {n.output[0] for n in nodes if n.op_type == "DequantizeLinear"}
    left = [n for n in nodes if n.op_type in ("Conv", "Gemm") and not dequantised & set(n.input[:2])]
    assert len(left) == 4
    with pytest.raises(ExportError, match="expected a top-1 of at least 89.90%"):
        export(
            model,
            tmp_path / "b",
            "onnx",
            **options | {"top1": lambda what: 90.0 * isinstance(what, nn.Module)},
            max_drop=0.1,
        )
    assert not (tmp_path / "b").exists()


def test_sensitivities():
    net, images = fuse(tiny(global_query_weighting="l2")), torch.randn(4, 3, 64, 64)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    found = sensitivities(net, images)
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    assert list(found.values()) == sorted(found.values(), reverse=True) and "head" in found
    assert all(0 < value < 0.1 for value in found.values())
    # By hand, for one layer.
    expected = net(images)
    layer = net.layers[0][0].expand
    layer.weight.data = round_weights(layer.weight.data)
    layer.register_forward_pre_hook(lambda _, inputs: (round_activations(inputs[0]),))
    change = (net(images) - expected).square().mean() / expected.square().mean()
    assert change.item() == pytest.approx(found["layers.0.0.expand"], rel=1e-4)


@given(st.lists(st.floats(-1e3, 1e3, width=32), min_size=2, max_size=30))
def test_rounding(values):
    x = torch.tensor(values)
    span = max(x.max().item(), 0) - min(x.min().item(), 0)
    assert (round_activations(x) - x).abs().max() <= span / 255 + 1e-4
    rows = x[None].repeat(2, 1) * torch.tensor([[1.0], [100.0]])
    assert ((round_weights(rows) - rows).abs().amax(dim=1) <= rows.abs().amax(dim=1) / 254 + 1e-4).all()


BAD = {
    "unknown format": ({"format": "tflight"}, "unknown format 'tflight': expected one of onnx"),
    "precision": ({"precision": "int4"}, "onnx: expected a precision of fp32, fp16, int8, found 'int4'"),
    "int8 without pictures": ({"precision": "int8"}, "expected pictures to calibrate int8 with, found none"),
    "calibration without int8": ({"calibration": ["x.jpg"]}, "expected no calibration for fp32, found some"),
    "drop without a measure": ({"max_drop": 0.3}, "max_drop: expected together with int8 that is calibrated"),
    "fixed format": ({"format": "qnn", "size": "dynamic"}, "expected a fixed size, found dynamic"),
    "fixed batch": ({"format": "qnn", "batch": "dynamic"}, "expected a fixed batch, found dynamic"),
    "batch": ({"batch": 0}, "batch: expected a number of at least 1"),
    "device": ({"device": "cuda"}, "device: expected cpu for onnx, found 'cuda'"),
    "no such GPU": (
        {"format": "aoti", "device": "cuda:7"},
        "device: expected one that this machine has, found 'cuda:7'",
    ),
    "size": ({"size": (16, 64)}, "expected a size of at least 32 pixels"),
    "one side": ({"size": 64}, "size: expected height and width, or 'dynamic', found 64"),
    "no whole batch": ({"batch": 2.0}, "batch: expected a number of at least 1, or 'dynamic', found 2.0"),
    "no pictures": ({"images": []}, "expected pictures, found none"),
}


@pytest.mark.parametrize(("options", "message"), BAD.values(), ids=BAD)
def test_bad_options(tmp_path, options, message):
    with pytest.raises(ExportError, match=message):
        export(small(), tmp_path / "a", **options)
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_export_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setitem(exports.TOLERANCES, "fp32", 0.0)
    with pytest.raises(ExportError, match="expected a relative difference from PyTorch of at most 0, found"):
        export(small(), tmp_path / "a", "openvino")
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_is_not_written_into(tmp_path):
    save(tiny(), tmp_path / "model")
    files = sorted(tmp_path.rglob("*"))
    with pytest.raises(ExportError, match="expected a folder for the artifact alone, found a checkpoint in it"):
        export(tmp_path / "model", tmp_path / "model", "onnx")
    assert sorted(tmp_path.rglob("*")) == files


def test_a_difference_that_is_no_number_at_the_second_size_is_refused(tmp_path, monkeypatch):
    found = iter([(1e-7, 1.0), (float("nan"), 1.0)])
    monkeypatch.setattr(comparison, "_difference", lambda *_: next(found))
    with pytest.raises(ExportError, match="expected a relative difference from PyTorch of at most 0.0001, found nan"):
        export(small(), tmp_path / "a", "openvino")
    assert list(tmp_path.iterdir()) == []


class FakeEngine:
    """The model itself, off by a share of the largest logit, or unable to do more than one height or picture."""

    outputs, name = ("logits",), "fake"

    def __init__(self, model, off=0.0, height=None, most=None):
        self.model, self.off, self.height, self.most = model, off, height, most

    def __call__(self, batch):
        with torch.inference_mode():
            logits = self.model(torch.from_numpy(batch)).logits.numpy()
        wrong = self.height not in (None, batch.shape[2]) or len(batch) > (self.most or len(batch))
        return {"logits": logits + self.off * np.abs(logits).max() + wrong}


@pytest.mark.parametrize("limits", [{"height": 64}, {"most": 1}])
def test_free_heights_and_batches_are_checked(tmp_path, monkeypatch, limits):
    model = small()
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8))
    monkeypatch.setattr(comparison, "open_engine", lambda *_, **__: FakeEngine(model, **limits))
    with pytest.raises(ExportError, match="expected a relative difference from PyTorch"):
        export(model, tmp_path / "a", "openvino", images=[picture])


def test_float32_on_a_gpu_may_differ_by_what_tf32_rounds_off(monkeypatch):
    model, images = small(), np.random.default_rng(0).standard_normal((2, 3, 64, 64), np.float32)
    opened = []

    def open_fake(folder, engine, device):
        opened.append((engine, device))
        return FakeEngine(model, off=0.003)

    monkeypatch.setattr(comparison, "open_engine", open_fake)
    options = Options("aoti", "fp32", 2, (64, 64), False, False, (), images, device="cuda")
    assert comparison.compare(Path(), model, options)["max_relative_difference"] == pytest.approx(0.003, rel=0.01)
    with pytest.raises(ExportError, match=r"at most 0\.0001, found 0\.003"):
        comparison.compare(Path(), model, dataclasses.replace(options, device="cpu"))
    with pytest.raises(ExportError, match=r"at most 0\.0001, found 0\.003"):
        comparison.compare(Path(), model, dataclasses.replace(options, format="onnx", device="cpu"))
    assert opened == [("torch", "cuda"), ("torch", "cpu"), ("onnxruntime", None)]


def test_an_artifact_that_exists_survives_a_failure(artifacts, tmp_path, monkeypatch):
    model, _ = artifacts
    export(model, tmp_path / "a", "openvino")
    before = {file.name: file.read_bytes() for file in (tmp_path / "a").iterdir()}
    monkeypatch.setitem(exports.TOLERANCES, "fp32", 0.0)
    with pytest.raises(ExportError):
        export(model, tmp_path / "a", "openvino")
    assert {file.name: file.read_bytes() for file in (tmp_path / "a").iterdir()} == before


def test_unwritable(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="expected a folder, found a file"):
        export(small(), tmp_path / "file" / "a", "openvino")


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(FORMATS, "onnx", dataclasses.replace(FORMATS["onnx"], needs=("no_such_module",)))
    with pytest.raises(ExportError, match=r"needs no_such_module: pip install 'swiftformer\[onnx\]'"):
        export(small(), tmp_path / "a", "onnx")
    with pytest.raises(ExportError, match="normalize: expected a model of 3 channels, found 4"):  # rather than that
        export(small(num_channels=4), tmp_path / "a", "onnx", normalize=True)


def broken(folder, tmp_path, change):
    copy = tmp_path / "broken"
    copy.mkdir()
    for file in folder.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    change(copy)
    return copy


def rewrite(copy, **fields):
    path = copy / "metadata.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


BROKEN = {
    "changed graph": (lambda f: (f / "model.onnx").write_bytes(b"x" * 100), "damaged or changed"),
    "no graph": (lambda f: (f / "model.onnx").unlink(), "expected the file model.onnx, found none"),
    "no json": (lambda f: (f / "metadata.json").write_text("{"), "expected JSON"),
    "other json": (lambda f: (f / "metadata.json").write_text("[1]"), "expected schema 1"),
    "newer": (lambda f: rewrite(f, schema=2), "expected schema 1 of this version, found 2"),
    "a field more": (lambda f: rewrite(f, colour="red"), "expected the fields of an artifact"),
    "not onnx": (lambda f: (rewrite(f, checksums={}), (f / "model.onnx").write_bytes(b"x")), "onnxruntime refuses it"),
}


@pytest.mark.parametrize(("change", "message"), BROKEN.values(), ids=BROKEN)
def test_broken_artifacts(artifacts, tmp_path, change, message):
    with pytest.raises((ArtifactError, EngineError), match=message) as caught:
        open_engine(broken(artifacts[1] / "onnx", tmp_path, change), "onnxruntime")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("format_", "options", "message"),
    [
        ("onnx", {"engine": "nonsense"}, "unknown engine 'nonsense': expected auto, native, openvino"),
        ("openvino", {"engine": "onnxruntime"}, "expected an artifact that onnxruntime runs .*, found openvino"),
        ("onnx", {"engine": "onnxruntime", "device": "npu"}, "device: expected one of cpu, cuda"),
        ("onnx", {"engine": "onnxruntime", "device": "cuda"}, "expected an onnxruntime with CUDAExecutionProvider"),
        ("onnx", {"engine": "onnxruntime", "precision": "bf16"}, "expected fp32, found bf16"),
        ("openvino", {"device": "npu"}, "device: expected one of CPU.* for openvino, found 'NPU'"),
        ("openvino", {"precision": "int4"}, "precision: expected one of fp32, bf16, fp16"),
        ("onnx", {"threads": 0}, "threads: expected a number from 1 to 1024, found 0"),
        ("torch-export", {"engine": "torch-compile"}, "expected a checkpoint for the engine torch-compile"),
        (
            "",
            {"engine": "openvino"},
            "expected an artifact of `swiftformer export` for the engine openvino, found none",
        ),
    ],
)
def test_engines_refuse(artifacts, format_, options, message):
    with pytest.raises(EngineError, match=message):
        open_engine(artifacts[1] / format_ if format_ else "swiftformer-xs-cifar10", **options)


def test_a_missing_runtime_is_named(artifacts, monkeypatch):
    from swiftformer import engines

    absent = {name: ("no_such_module", extra, formats) for name, (_, extra, formats) in engines.ENGINES.items()}
    monkeypatch.setattr(engines, "ENGINES", absent)
    with pytest.raises(EngineError, match=r"an artifact of onnx needs .*pip install openvino or onnxruntime"):
        open_engine(artifacts[1] / "onnx")
    with pytest.raises(EngineError, match=r"the engine onnxruntime needs no_such_module"):
        open_engine(artifacts[1] / "onnx", "onnxruntime")


@pytest.mark.parametrize("engine", ["openvino", "onnxruntime"])
def test_artifacts_are_classified_without_torch(artifacts, engine, tmp_path):
    """In a process of its own, in which torch cannot be imported."""
    folder = artifacts[1] / "onnx"
    script = (
        "import sys; sys.modules['torch'] = None\n"
        "from swiftformer.cli import main\n"
        f"options = ['--model', {str(folder)!r}, '--engine', {engine!r}, '--json']\n"
        "sys.argv = ['swiftformer', 'classify', sys.argv[1], *options]\n"
        "main()"
    )
    from importlib import resources

    picture = str(resources.files("swiftformer") / "samples" / "cat.jpg")
    done = subprocess.run([sys.executable, "-c", script, picture], capture_output=True, text=True, check=True)
    (result,) = json.loads(done.stdout)
    model = artifacts[0]
    with torch.inference_mode():
        expected = model(torch.from_numpy(SMALL([picture]))).logits.softmax(dim=1)[0]
    assert result["predictions"][0]["index"] == expected.argmax()
    assert result["predictions"][0]["probability"] == pytest.approx(expected.max().item(), abs=1e-4)


def hostile(file, name):
    """A program of torch.export with a pickle that would create a file."""
    import pickle
    import zipfile

    class Payload:
        def __reduce__(self):
            return (open, (str(file.with_suffix(".pwned")), "w"))

    with zipfile.ZipFile(file) as old:
        content = {n: old.read(n) for n in old.namelist()}
    (target,) = [n for n in content if n.endswith(name)]
    content[target] = pickle.dumps(Payload())
    with zipfile.ZipFile(file, "w") as new:
        for n, data in content.items():
            new.writestr(n, data)


def test_programs_with_pickles_are_not_opened(artifacts, tmp_path):
    def change(folder):
        rewrite(folder, checksums={})
        hostile(folder / "model.pt2", "sample_inputs/model.pt")

    folder = broken(artifacts[1] / "torch-export", tmp_path, change)
    with pytest.raises(EngineError, match="expected tensors alone, found a pickle"):
        open_engine(folder)
    assert not (folder / "model.pwned").exists()


def test_nobody_is_told_of_an_export(tmp_path, monkeypatch):
    """OpenVINO's converter would fork a process that sends usage data. (Under pytest NNCF does not try.)"""
    telemetry = pytest.importorskip("openvino_telemetry.main")
    sent = []
    for name in ("CI", "TF_BUILD", "JENKINS_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(telemetry.Telemetry, "_SingletonMetaClass__single_instance", None)
    monkeypatch.setenv("HOME", str(tmp_path))  # where consent would be stored
    monkeypatch.setattr(telemetry.TelemetrySender, "send", lambda *arguments: sent.append(arguments))
    export(tiny(), tmp_path / "a", "openvino", batch=1, size=(64, 64))
    assert sent == [] and "CI" not in os.environ


def test_openvino_engines_may_go_in_any_order(tmp_path):
    """Two of OpenVINO's plugins that go in the order in which they came leave a freed stack to the next signal."""
    pytest.importorskip("openvino")
    export(small(), tmp_path / "a", "openvino", size=(64, 64))
    script = """
import faulthandler, gc, os, signal, sys
from swiftformer.engines import open_engine
faulthandler.enable()
first = open_engine(sys.argv[1])
second = open_engine(sys.argv[1])
del first; gc.collect()
del second; gc.collect()
signal.signal(signal.SIGCHLD, lambda *_: print("alive"))
os.kill(os.getpid(), signal.SIGCHLD)
"""
    found = subprocess.run([sys.executable, "-c", script, str(tmp_path / "a")], capture_output=True, text=True)
    assert (found.returncode, found.stdout) == (0, "alive\n"), found.stderr


def test_evenly():
    assert evenly(599, 300)[-1] > 590 and len(set(evenly(599, 300))) == 300
    assert evenly(3, 10) == [0, 1, 2] and evenly(10, 3) == [0, 3, 6]


def test_the_model_is_left_as_it_was(tmp_path):
    model = small().double().train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    export(model, tmp_path / "a", "openvino", precision="fp16", size=(64, 96))
    assert model.training and model.preprocessing == SMALL
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.exhaustive
def test_another_format_in_the_same_folder(artifacts, tmp_path):
    export(artifacts[0], tmp_path / "a", "openvino")
    (tmp_path / "a" / "notes.txt").write_text("mine")
    export(artifacts[0], tmp_path / "a", "torch-export")
    assert sorted(file.name for file in (tmp_path / "a").iterdir()) == ["metadata.json", "model.pt2", "notes.txt"]


def test_pictures_fill_other_shapes():
    """The crop of another size lies within the picture, and keeps the margin."""
    assert exports._resized(Preprocessing((224, 224), "shortest", 256), (480, 640), "classification").resize_to == 731
    assert exports._resized(Preprocessing((64, 64), "shortest", 64), (64, 96), "classification").resize_to == 96
    assert exports._resized(Preprocessing((64, 64)), (64, 96), "classification").resize_to is None


def test_sizes_may_be_of_numpy(tmp_path):
    artifact = export(small(), tmp_path / "a", "openvino", size=(np.int64(64), np.int64(96)), batch=np.int32(1))
    assert artifact.size == (64, 96) and read_artifact(tmp_path / "a").batch == 1
    with pytest.raises(ExportError, match="batch: expected a number of at least 1, or 'dynamic', found True"):
        export(small(), tmp_path / "b", "openvino", batch=True)


def test_a_fused_model_is_refused_in_one_line(tmp_path):
    with pytest.raises(ExportError, match="expected a model as it is before fusing, found a DeployModel"):
        export(fuse(small()), tmp_path / "a")


def test_the_checksum_is_of_the_weights_that_were_exported(tmp_path):
    """Of the file that was asked for, not of its neighbour; and of none where a model was passed on."""
    save(small(), tmp_path / "model")
    other = {name: value + 0.01 * value.is_floating_point() for name, value in small().state_dict().items()}
    torch.save(other, tmp_path / "model" / "pytorch_model.bin")
    for file in ("model.safetensors", "pytorch_model.bin"):
        reference = tmp_path / "model" / file
        assert exports._source(reference, load(reference))["sha256"] == sha256(reference)
    assert "sha256" not in exports._source(None, load(tmp_path / "model"))


def test_home(tmp_path, monkeypatch):
    export(small(), tmp_path / "exports" / "a", "openvino")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert open_engine("~/exports/a").labels and open_engine("~/exports/a", "openvino").labels


def test_backbones_have_no_first_class(tmp_path, capsys):
    config = SwiftFormerConfig(**TINY, out_features=["stage4"])
    backbone = SwiftFormerBackbone(config).eval()
    backbone.preprocessing = SMALL
    artifact_table(tmp_path / "a", export(backbone, tmp_path / "a", "openvino"))
    assert "largest relative difference" in (out := capsys.readouterr().out) and "class" not in out


def test_fixed_size_with_any_batch(artifacts, tmp_path):
    artifact = export(artifacts[0], tmp_path / "a", "openvino", size=(64, 64), batch="dynamic")
    assert artifact.input_shape == (None, 3, 64, 64)
    assert open_engine(tmp_path / "a")(np.zeros((3, 3, 64, 64), np.float32))["logits"].shape == (3, 10)


def test_an_onnxruntime_of_another_name(tmp_path, monkeypatch):
    """What is imported as onnxruntime may have been installed as onnxruntime-gpu."""
    version = exports.metadata.version

    def known(package):
        if package == "onnxruntime":
            raise exports.metadata.PackageNotFoundError(package)
        return version(package)

    monkeypatch.setattr(exports.metadata, "version", known)
    artifact = export(small(), tmp_path / "onnx", "onnx")
    assert "onnxruntime" not in artifact.versions and artifact.versions["onnx"] == version("onnx")


def test_pictures_to_calibrate_with_are_read_one_by_one(image_folder, monkeypatch):
    from swiftformer.data.image_folder import FileSource

    opened = []
    image = FileSource.image
    monkeypatch.setattr(FileSource, "image", lambda *args: opened.append(1) or image(*args))
    found = calibration_pictures(image_folder, 6)
    assert len(found) == 6 and not opened
    next(iter(found))
    assert len(opened) == 1 and len(list(found)) == 6


def test_calibration_pictures(tmp_path, image_folder):
    flat = image_folder / "train" / "red"
    assert len(calibration_pictures(flat, 5)) == 5 and len(calibration_pictures(flat, 500)) == 24
    halves = [np.asarray(picture).mean(axis=(0, 1)).argmax() for picture in calibration_pictures(image_folder, 6)]
    assert halves == [2, 2, 2, 0, 0, 0]  # of both classes, which lie behind each other
    found = pictures(calibration_pictures(image_folder, 3), SMALL, channels=4)
    assert found.shape == (3, 4, 64, 64) and np.array_equal(found[:, 3], found[:, 0])


def test_a_drop_is_not_measured_on_what_was_calibrated_on(cli, tmp_path, image_folder, monkeypatch):  # noqa: F811
    save(small(**SHALLOW), tmp_path / "model")
    flat, apart, chosen = image_folder / "train", image_folder / "val", []

    def refuse(*arguments, top1, **options):
        raise ExportError(f"{top1(tmp_path / 'model'):g}")

    monkeypatch.setattr(exports, "export", refuse)
    monkeypatch.setattr(classification, "evaluate_reference", lambda *a, **k: chosen.append(a[1:]) or {"top1": 5.0})
    for validation in (flat, apart, f"{flat}/", apart / ".." / "train"):
        options = ("--calibration", flat, "--max-drop", "1", "--validation", validation, "--precision", "int8")
        code, _, err = cli("export", "--model", tmp_path / "model", "--format", "onnx", *options)
        assert code == 2 and err.endswith("error: 5\n")
    assert [split for _, split in chosen] == ["val", None, "val", "val"]


def test_command_line(cli, tmp_path, image_folder):  # noqa: F811
    model = small(id2label={0: "blue", 1: "red"}, num_labels=2)
    save(model, tmp_path / "model")
    options = ["--model", tmp_path / "model", "--output", tmp_path / "a"]
    code, out, err = cli("export", *options, "--format", "onnx", "--size", "64", "--batch", "2", "--json")
    assert code == 0, err
    document = json.loads(out)
    assert document["input"]["shape"] == [2, 3, 64, 64] and document["comparison"]["images"] == 9
    assert document["output"] == str(tmp_path / "a") and len(document["source"]["sha256"]) == 64
    code, out, _ = cli("evaluate", "--data", image_folder, "--model", tmp_path / "a", "--workers", 0, "--json")
    assert code == 0 and json.loads(out)["images"] == 16
    _, direct, _ = cli("evaluate", "--data", image_folder, "--model", tmp_path / "model", "--workers", 0, "--json")
    assert json.loads(out)["top1"] == json.loads(direct)["top1"]
    assert json.loads(out)["calibration_error"] == pytest.approx(json.loads(direct)["calibration_error"], abs=1e-3)
    # What --max-drop asks, of the artifact and of the model.
    top1 = exports.top1_on(str(image_folder))
    assert top1(tmp_path / "a") == top1(model) == json.loads(direct)["top1"]
    code, out, _ = cli("export", *options, "--format", "openvino", "--images", image_folder / "val")
    assert code == 0 and "against PyTorch" in out and "16 pictures" in out and "any x 3 x any x any" in out
    for wrong, message in [
        (["--batch", "two"], "batch: expected a number of images, found 'two'"),
        (["--size", "64y"], "size: expected pixels such as 224"),
        (["--max-drop", 1], "expected --max-drop together with --validation"),
        (["--format", "nonsense"], "unknown format 'nonsense'"),
    ]:
        code, _, err = cli("export", *options, *wrong)
        assert code == 2 and message in err
