"""Core ML packages, run from disk in the interpreter, and what can be told of them without Apple's hardware."""

import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from conftest import TINY, randomize, tiny
from swiftformer import SwiftFormerBackbone, SwiftFormerConfig, SwiftFormerForImageClassification
from swiftformer.artifact import read_artifact
from swiftformer.deploy import DeployAttention, fuse
from swiftformer.engines import EngineError, open_engine
from swiftformer.engines.coreml import CoreMl, CoreMlEngine, unique
from swiftformer.engines.mil_ops import conv, erf, lut_to_dense, split
from swiftformer.export import ExportError, Options, export
from swiftformer.export.coreml import write
from swiftformer.export.graph import DeployGraph
from swiftformer.export.neural_engine import check_kept, check_neural_engine, class_labels, main_block
from swiftformer.image_processing import HUB

ct = pytest.importorskip("coremltools")

SIZE = (64, 96)
LABELS = ["crane", "dog", "crane", *(f"kind {i}" for i in range(7))]
UNIQUE = ["crane (0)", "dog", "crane (2)", *LABELS[3:]]


def prepared(**fields):
    torch.manual_seed(0)  # for w_g, which `randomize` leaves alone
    model = tiny(id2label=dict(enumerate(LABELS)), **fields)
    model.preprocessing = HUB
    return model


def load_spec(folder):
    return ct.utils.load_spec(str(folder / "model.mlpackage"))


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Exported once: the folder by form and precision."""
    found: dict[tuple[str, str], Path] = {}

    def folder(form="l2", precision="fp16"):
        if (form, precision) not in found:
            found[form, precision] = tmp_path_factory.mktemp("coreml") / f"{form}-{precision}"
            model = prepared(global_query_weighting=form)
            export(model, found[form, precision], "coreml", precision=precision, size=SIZE)
        return found[form, precision]

    return folder


@pytest.mark.parametrize(
    ("form", "precision", "difference", "compressed"),
    [
        pytest.param("l2", "fp32", 1e-5, None, marks=pytest.mark.exhaustive),
        ("l2", "fp16", 0.005, None),
        pytest.param("uniform", "fp16", 0.01, None, marks=pytest.mark.exhaustive),
        ("l2", "int8", 0.05, "constexpr_affine_dequantize"),
        ("l2", "palettized", 0.2, "constexpr_lut_to_dense"),
    ],
)
def test_precisions(folders, form, precision, difference, compressed):
    folder = folders(form, precision)
    engine = open_engine(folder)
    assert engine.name == f"coreml {precision} interpreted" and engine.input_shape == (1, 3, *SIZE)
    assert engine.outputs == ("probabilities",) and engine.labels == tuple(LABELS)
    model = prepared(global_query_weighting=form)
    # Other pictures than the exporter compared on.
    pixels = np.random.default_rng(1).integers(0, 256, (3, 3, *SIZE)).astype(np.float32)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (HUB.mean, HUB.std))
    with torch.inference_mode():
        expected = model((torch.from_numpy(pixels) / 255 - mean) / std).logits.softmax(dim=1).numpy()
    found = engine.probabilities(pixels)
    assert found.shape == (3, 10) and np.abs(found - expected).max() < difference * expected.max()
    assert (found.argmax(axis=1) == expected.argmax(axis=1)).all()
    operators = {op.type for op in main_block(load_spec(folder)).operations}
    assert {kind for kind in operators if kind.startswith("constexpr_")} == ({compressed} if compressed else set())
    is_half = np.array_equal(found, found.astype(np.float16))
    assert is_half == (precision != "fp32"), "rounded to float16 where the program says so, and only there"


def test_names_that_look_like_numbered_ones_stay_apart():
    for labels in (["a", "a", "a (0)"], ["a (1)", "a", "a", "a (1)"], ["a"] * 3, ["a", "b"]):
        assert len(set(unique(labels))) == len(labels)


def test_the_package(folders):
    spec = load_spec(folders())
    description = spec.description
    assert spec.specificationVersion == 7 and spec.WhichOneof("Type") == "mlProgram"
    (pixels,) = description.input
    image = pixels.type.imageType
    assert pixels.name == "pixel_values" and (image.height, image.width) == SIZE and image.colorSpace == image.RGB
    assert [output.name for output in description.output] == ["classLabel", "probabilities"]
    assert description.predictedFeatureName == "classLabel"
    assert description.predictedProbabilitiesName == "probabilities"
    assert class_labels(main_block(spec)) == UNIQUE == unique(LABELS)
    assert description.metadata.shortDescription == "SwiftFormer classifier, 10 classes, 64x96 pixels, fp16"
    assert description.metadata.versionString and not description.metadata.author and not description.metadata.license
    assert check_neural_engine(spec, labels=UNIQUE) == []
    assert check_kept(spec, fuse(prepared(global_query_weighting="l2"))) == []


@pytest.mark.exhaustive
def test_compressed_packages_are_smaller(folders):
    weights = "model.mlpackage/Data/com.apple.CoreML/weights/weight.bin"
    sizes = [(folders("l2", p) / weights).stat().st_size for p in ("palettized", "int8", "fp16", "fp32")]
    assert sizes == sorted(set(sizes)) and 1.9 * sizes[2] < sizes[3]


@pytest.mark.exhaustive
@pytest.mark.parametrize("variant", ["xs", "s", "l1", "l3"])
def test_variants_keep_all_attention(tmp_path, variant):
    config = SwiftFormerConfig.from_variant(variant, num_labels=10)
    model = SwiftFormerForImageClassification(config).eval()
    model.preprocessing = HUB
    graph = DeployGraph(fuse(model, raw_input=True), softmax=True)
    labels = tuple(f"kind {i}" for i in range(10))
    example = np.random.default_rng(0).integers(0, 256, (1, 3, 64, 64)).astype(np.float32)
    write(graph, Options("coreml", "fp16", 1, (64, 64), True, True, labels, example), tmp_path)
    spec = load_spec(tmp_path)
    assert check_neural_engine(spec, labels=labels) == [] and check_kept(spec, graph.net) == []
    operators = [op.type for op in main_block(spec).operations]
    attentions = sum(isinstance(m, DeployAttention) for m in graph.modules())
    assert attentions == len(config.depths) == operators.count("split") == operators.count("concat")
    # Of each attention two root mean squares and one norm of the scores.
    assert operators.count("rsqrt") == 3 * attentions and operators.count("gelu") == sum(config.depths) + attentions


def test_what_the_checks_find(folders):
    net = fuse(prepared(global_query_weighting="l2"))
    spec = load_spec(folders())
    block = main_block(spec)
    assert check_neural_engine(spec, labels=LABELS) == ["expected the names of 10 classes, found others"]
    place = next(i for i, op in enumerate(block.operations) if op.type == "concat")
    block.operations[place].type = "layer_norm"
    assert check_neural_engine(spec, labels=UNIQUE) == [
        "expected operators that the Neural Engine takes, found 1 of layer_norm"
    ]
    assert check_kept(spec, net) == ["expected 4 attention layers, found 3"]
    dropped = next(i for i, op in enumerate(block.operations) if op.type == "conv")
    size = net.stem[0].weight.numel() + net.stem[0].bias.numel()
    del block.operations[dropped]
    total = sum(p.numel() for p in net.parameters())
    assert check_kept(spec, net)[1:] == [
        f"expected {sum(isinstance(m, torch.nn.Conv2d) for m in net.modules())} convolutions, found "
        f"{sum(isinstance(m, torch.nn.Conv2d) for m in net.modules()) - 1}",
        f"expected {total} weights, found {total - size}",
    ]
    single = load_spec(folders("l2", "fp32"))
    assert any("expected float16" in problem for problem in check_neural_engine(single, labels=UNIQUE))
    single.specificationVersion = 9
    assert check_neural_engine(single, half=False, labels=UNIQUE) == ["expected specification 7 of iOS 16, found 9"]


def test_backbones_and_other_channels_take_tensors(tmp_path):
    config = SwiftFormerConfig(**TINY, out_features=["stage1", "stage3", "stage4"])
    backbone = randomize(SwiftFormerBackbone(config)).eval()
    artifact = export(backbone, tmp_path / "backbone", "coreml", size=SIZE, batch=2)
    assert artifact.outputs == ("stage1", "stage3", "stage4") and artifact.value_range == "normalized"
    found = open_engine(tmp_path / "backbone")(np.zeros((3, 3, *SIZE), np.float32))
    assert [a.shape for a in found.values()] == [(3, 16, 16, 24), (3, 32, 4, 6), (3, 48, 2, 3)]
    spec = load_spec(tmp_path / "backbone")
    assert check_neural_engine(spec, image=False) == []
    assert check_neural_engine(spec) == ["expected an RGB image as input, found multiArrayType"]

    artifact = export(prepared(num_channels=5), tmp_path / "five", "coreml", size=SIZE)
    assert artifact.outputs == ("probabilities",) and artifact.value_range == "normalized"


@pytest.mark.parametrize("form", [pytest.param("uniform", marks=pytest.mark.exhaustive), "l2"])
def test_vectors_of_zeros(tmp_path, form):
    model = prepared(global_query_weighting=form)
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if "to_key" in name or "to_query" in name:
                tensor.zero_()
    assert export(model, tmp_path / "out", "coreml", size=SIZE).comparison["max_relative_difference"] < 0.01


def test_sizes_beyond_float16_cancel_out(tmp_path):
    model = prepared(global_query_weighting="l2")
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if "to_key" in name:
                tensor *= 1000
            elif "to_query" in name:
                tensor *= 1e-4
    assert export(model, tmp_path / "out", "coreml", size=SIZE).comparison["max_relative_difference"] < 0.01


def test_pixels_are_whole(folders):
    engine = open_engine(folders())
    pixels = np.random.default_rng(0).integers(0, 256, (1, 3, *SIZE)).astype(np.float32)
    expected = engine(pixels)["probabilities"]
    assert np.array_equal(engine(pixels + 0.4)["probabilities"], expected)
    assert np.array_equal(engine(np.where(pixels == 255, 300, pixels))["probabilities"], expected)


def test_refusals(folders, tmp_path):
    model = prepared()
    for options, message in (
        ({"size": "dynamic"}, "coreml takes inputs of one shape only: expected a fixed size, found dynamic"),
        ({"batch": 2}, "expected a batch of 1, found 2"),
        ({"precision": "bf16"}, "coreml: expected a precision of fp16, fp32, int8, palettized, found 'bf16'"),
        ({"precision": "int8", "calibration": ["a.jpg"]}, "expected no calibration for int8, found some"),
    ):
        with pytest.raises(ExportError, match=message):
            export(model, tmp_path / "out", "coreml", **options)
    assert not (tmp_path / "out").exists()
    engine = open_engine(folders())
    with pytest.raises(EngineError, match=r"expected an input of shape \(N, 3, 64, 96\), found \(1, 3, 64, 64\)"):
        engine(np.zeros((1, 3, 64, 64), np.float32))
    for options, message in (
        ({"precision": "fp32"}, "expected fp16, found fp32"),
        ({"device": "tpu"}, "device: expected .* for coreml here, found 'tpu'"),
        ({"engine": "openvino"}, "expected an artifact that openvino runs"),
    ):
        with pytest.raises(EngineError, match=message):
            open_engine(folders(), **options)


def test_broken_packages(folders, tmp_path):
    package = Path(shutil.copytree(folders() / "model.mlpackage", tmp_path / "model.mlpackage"))
    artifact = read_artifact(folders())
    weights = package / "Data/com.apple.CoreML/weights/weight.bin"
    whole = weights.read_bytes()
    for content in (b"", whole[:200], bytes(len(whole))):
        weights.write_bytes(content)
        with pytest.raises(EngineError, match=r"expected .* found"):
            CoreMlEngine(package, artifact)
    weights.write_bytes(whole)
    graph = package / "Data/com.apple.CoreML/model.mlmodel"
    spec = load_spec(tmp_path)
    next(op for op in main_block(spec).operations if op.type == "gelu").type = "erf"
    graph.write_bytes(spec.SerializeToString())
    with pytest.raises(EngineError, match=r"expected operators of add, .*, found erf"):
        CoreMlEngine(package, artifact)
    graph.write_bytes(b"no protobuf")
    with pytest.raises(EngineError, match="coremltools refuses it"):
        CoreMlEngine(package, artifact)


def test_predictions_of_core_ml_come_in_order(folders):
    """What happens on macOS, with a model that answers as Core ML does: probabilities by name, in any order."""

    class Answers:
        def predict(self, inputs):
            picture = inputs["pixel_values"]
            assert picture.mode == "RGB" and picture.size == (96, 64) and picture.getpixel((1, 0)) == (7, 8, 9)
            answers = {label: i / 10 for i, label in enumerate(UNIQUE)}
            return {"classLabel": "dog", "probabilities": dict(sorted(answers.items()))}

    pixels = np.zeros((1, 3, *SIZE), np.float32)
    pixels[0, :, 0, 1] = 7, 8, 9
    (found,) = CoreMl(Answers(), read_artifact(folders()))(pixels, True)
    assert np.allclose(found, [[i / 10 for i in range(10)]])


@pytest.mark.parametrize(
    ("weight", "options"),
    [
        ((6, 4, 1, 1), {}),
        ((6, 4, 3, 3), {"stride": 2, "padding": 1}),
        ((4, 1, 3, 3), {"padding": 1, "groups": 4}),
        ((6, 2, 3, 2), {"stride": (2, 1), "padding": (2, 1), "dilation": (1, 2), "groups": 2}),
    ],
)
def test_convolution(weight, options):
    x, w, bias = torch.randn(2, 4, 9, 7), torch.randn(weight), torch.randn(weight[0])
    expected = F.conv2d(x, w, bias, **options)

    def pair(name, default):
        value = options.get(name, default)
        return value if isinstance(value, tuple) else (value, value)

    (top, left), strides, dilations = pair("padding", 0), pair("stride", 1), pair("dilation", 1)
    given = [tensor.numpy() for tensor in (x, w, bias)]
    found = conv(*given, strides, "custom", (top, top, left, left), dilations, options.get("groups", 1))
    assert np.abs(found - expected.numpy()).max() < 1e-5


def test_operators():
    x = np.linspace(-6, 6, 1001)
    assert np.abs(erf(x) - [math.erf(value) for value in x]).max() < 2e-7
    assert [part.shape for part in split(np.zeros((1, 5, 2)), 1, split_sizes=[2, 3])] == [(1, 2, 2), (1, 3, 2)]
    # Two bits each, the first index in the lowest bits: 1, 2, 3, 0, then 2.
    packed = np.array([0b00111001, 0b00000010], np.uint8)
    palette = np.array([0.0, 1.0, 10.0, 100.0], np.float32)
    assert lut_to_dense(packed, palette, np.array([5])).tolist() == [1, 10, 100, 0, 10]
