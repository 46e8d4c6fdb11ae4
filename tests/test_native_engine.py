"""The format and the engine `native`, in the compiled network and in one in torch, which is what both keep to."""

import json
import logging
import os
import subprocess
import sys
import time
from importlib import resources
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from torch.nn import functional as F

from conftest import TINY, randomize, relative, tiny
from swiftformer import SwiftFormerBackbone, SwiftFormerConfig, SwiftFormerForSemanticSegmentation, load, save
from swiftformer.artifact import read_artifact
from swiftformer.benchmark.candidates import CANDIDATES
from swiftformer.benchmark.runtimes import open_file
from swiftformer.deploy import fuse
from swiftformer.detection import SwiftFormerForObjectDetection
from swiftformer.engines import EngineError, open_engine
from swiftformer.engines.native import LAYERS
from swiftformer.export import ExportError, Options, export
from swiftformer.export.graph import DeployGraph
from swiftformer.export.native import network_of, write
from swiftformer.image_processing import Preprocessing

SMALL = Preprocessing(size=(64, 64), resize="shortest", resize_to=64)
FORMS = {
    "l2": {"global_query_weighting": "l2"},
    "uniform": {},
    "uniform-unnormalized": {"normalize_query_key": False},
    "one head, no layer scale": {"distillation": False, "use_layer_scale": False},
}
SHAPES = [(1, 33, 47), (3, 65, 97), (3, 224, 224)]


class Network:
    """What `swiftformer_native.Network` computes, layer by layer, in torch."""

    def __init__(self, isa="auto", precision="fp32", threads=0, pin=False):
        if precision not in ("fp32", "bf16", "int8"):
            raise ValueError(f"precision: expected fp32, bf16 or int8, found {precision}")
        self.isa, self.precision, self.threads = ("plain" if isa == "auto" else isa), precision, threads
        self.steps, self.mean = [], None

    def tensor(self, array, *shape):
        if not isinstance(array, np.ndarray):
            raise TypeError
        assert array.dtype == np.float32 and array.flags.c_contiguous and array.ndim == len(shape)
        assert all(wanted in (None, found) for wanted, found in zip(shape, array.shape, strict=True))
        tensor = torch.from_numpy(array)
        return tensor.bfloat16().float() if self.precision != "fp32" else tensor

    def stem(self, weight1, bias1, weight2, bias2, mean=None, std=None):
        first = self.tensor(weight1, None, 3, 3, 3), self.tensor(bias1, len(weight1))
        second = self.tensor(weight2, None, len(weight1), 3, 3), self.tensor(bias2, len(weight2))
        if mean is not None:
            self.mean, self.std = torch.from_numpy(mean).view(3, 1, 1), torch.from_numpy(std).view(3, 1, 1)
        for weight, bias in (first, second):
            self.steps.append(lambda x, weight=weight, bias=bias: F.conv2d(x, weight, bias, 2, 1).relu())

    def downsampling(self, weight, bias):
        weight, bias = self.tensor(weight, None, None, 3, 3), self.tensor(bias, len(weight))
        self.steps.append(lambda x: F.conv2d(x, weight, bias, 2, 1))

    def mlp(self, expand, expand_bias, project, project_bias):
        expand, expand_bias = self.tensor(expand, *project.shape[::-1]), self.tensor(expand_bias, len(expand))
        project, project_bias = self.tensor(project, None, None), self.tensor(project_bias, len(project))
        return lambda x: pointwise(F.gelu(pointwise(x, expand, expand_bias)), project, project_bias)

    def branch(self, depth_wise, depth_wise_bias, *mlp):
        weight, bias = self.tensor(depth_wise, None, 1, 3, 3), self.tensor(depth_wise_bias, len(depth_wise))
        mlp = self.mlp(*mlp)
        self.steps.append(lambda x: x + mlp(F.conv2d(x, weight, bias, padding=1, groups=len(weight))))

    def encoder(self, *arguments):
        self.branch(*arguments[:6])
        key_query, key_query_bias, score, output, output_bias, normalize, pooled_scale = arguments[6:13]
        dim = len(output)
        key_query, key_query_bias = self.tensor(key_query, 2 * dim, dim), self.tensor(key_query_bias, 2 * dim)
        score = None if score is None else self.tensor(score, dim)
        output, output_bias = self.tensor(output, dim, 2 * dim), self.tensor(output_bias, dim)
        assert isinstance(normalize, bool) and isinstance(pooled_scale, float)
        mlp = self.mlp(*arguments[13:])

        def attention(x):
            key, query = pointwise(x, key_query, key_query_bias).split(dim, dim=1)
            if normalize:
                key, query = (y * (y * y).mean(dim=1, keepdim=True).clamp_min(1e-24).rsqrt() for y in (key, query))
            weights = torch.ones_like(query[:, :1])
            if score is not None:
                scores = (query * score.view(-1, 1, 1)).sum(dim=1, keepdim=True)  # (N, 1, H, W)
                weights = scores * (scores * scores).sum(dim=(2, 3), keepdim=True).clamp_min(1e-24).rsqrt()
            pooled = (query * weights).sum(dim=(2, 3), keepdim=True) * pooled_scale  # (N, D, 1, 1)
            return pointwise(torch.cat([pooled * key, query], dim=1), output, output_bias)

        self.steps += [lambda x: x + attention(x), lambda x: x + mlp(x)]

    def output(self, factor=None, shift=None):
        factor = torch.ones(1) if factor is None else self.tensor(factor, len(shift))
        shift = torch.zeros(1) if shift is None else self.tensor(shift, len(factor))
        self.steps.append(lambda x: self.found.append(x * factor.view(-1, 1, 1) + shift.view(-1, 1, 1)) or x)

    def head(self, weight, bias):
        weight, bias = self.tensor(weight, None, None), self.tensor(bias, len(weight))
        self.steps.append(lambda x: self.found.append(x.mean(dim=(2, 3)) @ weight.T + bias))

    def lateral(self, weight, bias):
        weight, bias = self.tensor(weight, None, None), self.tensor(bias, len(weight))
        self.steps.append(lambda x: self.levels.append(pointwise(x, weight, bias)) or x)

    def pyramid_level(self, index):
        def taken(x):
            level = self.levels[index]
            if index + 1 < len(self.levels):
                level = level + F.interpolate(self.levels[index + 1], size=level.shape[2:], mode="nearest")
            self.levels[index] = level
            return level

        self.steps.append(taken)

    def convolution(self, weight, bias, relu):
        weight, bias = self.tensor(weight, None, None, 3, 3), self.tensor(bias, len(weight))
        assert isinstance(relu, bool)
        self.steps.append(lambda x: (torch.relu if relu else torch.clone)(F.conv2d(x, weight, bias, padding=1)))

    def enlarging(self, level):
        self.steps.append(lambda x: F.interpolate(x, size=self.levels[level].shape[2:], mode="bilinear"))

    def scores(self, weight, bias):
        weight, bias = self.tensor(weight, None, None), self.tensor(bias, len(weight))

        def added(x):
            scores = F.interpolate(pointwise(x, weight, bias), size=self.levels[0].shape[2:], mode="bilinear")
            self.total = self.total + scores
            return x

        self.steps.append(added)

    def scores_output(self):
        self.steps.append(lambda x: self.found.append(self.total))

    def __call__(self, pixels):
        assert pixels.flags.c_contiguous and pixels.dtype in (np.float32, np.uint8)
        x = torch.from_numpy(pixels)
        if pixels.dtype == np.uint8:
            x = (x.permute(0, 3, 1, 2) / 255 - self.mean) / self.std
        self.found, self.levels, self.total = [], [], 0
        for step in self.steps:
            x = step(x)
        return [found.numpy() for found in self.found]


def pointwise(x, weight, bias):
    return F.conv2d(x, weight[:, :, None, None], bias)


def contract():
    module = ModuleType("swiftformer_native")
    module.__spec__ = ModuleSpec("swiftformer_native", None)
    module.Network, module.supported = Network, lambda: ["plain", "other"]
    return module


@pytest.fixture(params=["contract", "compiled"])
def runtime(request, monkeypatch):
    if request.param == "contract":
        monkeypatch.setitem(sys.modules, "swiftformer_native", contract())
    else:
        pytest.importorskip("swiftformer_native")
    return request.param


def small(**fields):
    model = tiny(**fields)
    model.preprocessing = SMALL
    for name, scale in model.named_parameters():
        if name.endswith("layer_scale_1") and not model.config.normalize_query_key:
            scale.data *= 1e-3  # sums of thousands of tokens; without it values leave float32
    return model


def backbone(*names, **fields):
    model = randomize(SwiftFormerBackbone(SwiftFormerConfig(**TINY, out_features=list(names), **fields))).eval()
    model.preprocessing = SMALL
    return model


def segmenter(**fields):
    model = randomize(SwiftFormerForSemanticSegmentation(SwiftFormerConfig(**TINY, **fields))).eval()
    model.preprocessing = SMALL
    return model


def options(**fields):
    common = {"format": "native", "precision": "fp32", "batch": None, "size": None, "softmax": False}
    return Options(**common | {"normalize": False, "labels": (), "example": None} | fields)


def expected_of(model, x):
    with torch.inference_mode():
        output = model(x)
    return output.feature_maps if hasattr(output, "feature_maps") else (output.logits,)


def agree(found, expected, bound=1e-5):
    found = list(found.values())
    assert [array.shape for array in found] == [tensor.shape for tensor in expected]
    assert all(array.dtype == np.float32 for array in found)
    return all(relative(torch.from_numpy(a), b) < bound for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("fields", FORMS.values(), ids=FORMS)
def test_every_form_at_any_shape(runtime, tmp_path, fields):
    model = small(id2label={i: f"kind {i}" for i in range(10)}, **fields)
    artifact = export(model, tmp_path / "a", "native")
    assert artifact.input_shape == (None, 3, None, None) and artifact.file == "network.json"
    assert artifact.comparison["images"] == 9 and artifact.comparison["max_relative_difference"] < 1e-5
    assert artifact.labels[3] == "kind 3" and artifact.outputs == ("logits",)
    assert sorted(artifact.checksums) == ["network.json", "weights.safetensors"]
    engine = open_engine(tmp_path / "a", threads=1)
    for batch, height, width in SHAPES:
        x = torch.randn(batch, 3, height, width)
        assert agree(engine(x.numpy()), expected_of(model, x))


@pytest.mark.parametrize("names", [("stage1", "stage4"), ("stem", "stage2"), ("stage3",)])
def test_backbones(runtime, tmp_path, names):
    model = backbone(*names, global_query_weighting="l2")
    artifact = export(model, tmp_path / "a", "native")
    assert artifact.task == "backbone" and artifact.outputs == names
    engine = open_engine(tmp_path / "a", "native")
    for batch, height, width in SHAPES:
        x = torch.randn(batch, 3, height, width)
        assert agree(engine(x.numpy()), expected_of(model, x))


@pytest.mark.parametrize("fields", [{}, {"num_labels": 3, "fpn_channels": 24, "segmentation_channels": 40}])
def test_segmenters_at_any_shape(runtime, tmp_path, fields):
    model = segmenter(**fields)
    artifact = export(model, tmp_path / "a", "native")
    assert artifact.task == "segmentation" and artifact.outputs == ("logits",)
    assert artifact.comparison["max_relative_difference"] < 1e-5
    engine = open_engine(tmp_path / "a", "native")
    for batch, height, width in SHAPES:
        x = torch.randn(batch, 3, height, width)
        assert agree(engine(x.numpy()), expected_of(model, x))


@pytest.mark.parametrize("precision", ["bf16", "int8"])
def test_less_precision(runtime, tmp_path, precision):
    try:
        artifact = export(small(), tmp_path / "a", "native", precision=precision)
    except EngineError as error:  # of a processor that cannot compute it
        if precision not in str(error):
            raise
        pytest.skip(str(error))
    assert (
        artifact.precision == precision
        and 0 < artifact.comparison["max_relative_difference"] < {"bf16": 0.02, "int8": 0.05}[precision]
    )
    assert {array.dtype.name for array in load_file(tmp_path / "a" / "weights.safetensors").values()} == {"float32"}
    if precision == "bf16" and runtime == "compiled":  # it is float32 where the processor has no instructions for it
        precision = sys.modules["swiftformer_native"].Network(precision="bf16").precision
    assert open_engine(tmp_path / "a").name.startswith(f"native {precision} ")
    assert open_engine(tmp_path / "a", precision="fp32").name.startswith("native fp32 ")
    # A black picture is where low precision may divide by zero.
    assert np.isfinite(open_engine(tmp_path / "a")(np.zeros((1, 3, 64, 64), np.float32))["logits"]).all()


@pytest.mark.parametrize("normalize", [False, True])
def test_pixels(runtime, tmp_path, normalize):
    """Whole pixels as bytes, whatever the artifact takes; those of a raw one also as float32, with fractions."""
    model = small()
    artifact = export(model, tmp_path / "a", "native", size=(33, 47), batch="dynamic", normalize=normalize)
    assert artifact.value_range == ("0-255" if normalize else "normalized")
    engine = open_engine(tmp_path / "a")
    pixels = np.random.default_rng(0).integers(0, 256, (3, 33, 47, 3), np.uint8)
    x = torch.from_numpy(np.stack([SMALL.normalized(image) for image in pixels]))
    assert agree(engine.from_pixels(pixels), expected_of(model, x))
    given = pixels.transpose(0, 3, 1, 2).astype(np.float32) if normalize else x.numpy()
    assert agree(engine(given), expected_of(model, x))
    if normalize:
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (SMALL.mean, SMALL.std))
        x = 254.5 * torch.rand(2, 3, 33, 47)
        assert agree(engine(x.numpy()), expected_of(model, (x / 255 - mean) / std))
    for wrong in (pixels.astype(np.float32), pixels[:, :32], pixels[:0], pixels[0], pixels.transpose(0, 3, 1, 2)):
        with pytest.raises(EngineError, match=r"expected uint8 pixels of shape \(N, 33, 47, 3\), found "):
            engine.from_pixels(wrong)


def test_a_fixed_batch(runtime, tmp_path):
    model = small()
    assert export(model, tmp_path / "a", "native", batch=2, size=(64, 96)).input_shape == (2, 3, 64, 96)
    x = torch.randn(3, 3, 64, 96)
    assert agree(open_engine(tmp_path / "a")(x.numpy()), expected_of(model, x))
    with pytest.raises(EngineError, match=r"expected an input of shape \(N, 3, 64, 96\), found \(1, 3, 64, 64\)"):
        open_engine(tmp_path / "a")(np.zeros((1, 3, 64, 64), np.float32))


def test_auto_takes_it(runtime, tmp_path, caplog):
    export(small(), tmp_path / "a", "native")
    with caplog.at_level(logging.INFO, "swiftformer.engines"):
        assert open_engine(tmp_path / "a").name.startswith("native fp32 ")
    assert "running in native fp32" in caplog.text


def test_a_checkpoint(runtime, tmp_path):
    model = small(global_query_weighting="l2", id2label={i: f"kind {i}" for i in range(10)})
    save(model, tmp_path / "model")
    engine, x = open_engine(tmp_path / "model", "native", threads=1), torch.randn(2, 3, 65, 47)
    assert agree(engine(x.numpy()), expected_of(model, x))
    assert engine.labels[7] == "kind 7" and engine.preprocessing.size == (64, 64)
    assert engine.probabilities(x.numpy()).sum(axis=1) == pytest.approx(1)
    pixels = np.random.default_rng(0).integers(0, 256, (1, 64, 64, 3), np.uint8)
    assert agree(engine.from_pixels(pixels), expected_of(model, torch.from_numpy(SMALL.normalized(pixels[0]))[None]))


def test_the_bundled_checkpoint(runtime):
    net = load("swiftformer-xs-cifar10")
    x = torch.from_numpy(net.preprocessing(str(resources.files("swiftformer") / "samples" / "cat.jpg")))
    assert agree(open_engine("swiftformer-xs-cifar10", "native")(x.numpy()), expected_of(net, x))


def test_the_instruction_set_can_be_forced(runtime, tmp_path):
    export(small(), tmp_path / "a", "native")
    assert open_engine(tmp_path / "a", isa="plain").name == "native fp32 plain"
    assert open_engine("swiftformer-xs-cifar10", "native", isa="plain").name == "native fp32 plain"
    with pytest.raises(EngineError, match=r"isa: expected one of auto, plain, .*, found '6502'"):
        open_engine(tmp_path / "a", isa="6502")
    with pytest.raises(EngineError, match="isa: expected the engine native, found torch"):
        open_engine("swiftformer-xs-cifar10", "torch", isa="plain")
    with pytest.raises(EngineError, match="pin: expected the engine native, found torch"):
        open_engine("swiftformer-xs-cifar10", "torch", pin=True)
    with pytest.raises(EngineError, match="pin: expected True or False, found 'yes'"):
        open_engine(tmp_path / "a", pin="yes")


@pytest.mark.skipif(
    not hasattr(os, "sched_getaffinity") or len(os.sched_getaffinity(0)) < 2, reason="needs Linux and two processors"
)
@pytest.mark.parametrize("source", ["artifact", "checkpoint"])
@pytest.mark.parametrize("pin", [False, True])
def test_threads_stay_on_one_processor_each_if_asked_to(pin, source, tmp_path):
    pytest.importorskip("swiftformer_native")
    model = "swiftformer-xs-cifar10"
    if source == "artifact":
        model = tmp_path / "a"
        export(small(), model, "native")
    tasks = Path("/proc/self/task")
    before = set(tasks.iterdir())
    engine = open_engine(model, "native", threads=2, pin=pin)
    started = [int(task.name) for task in set(tasks.iterdir()) - before]
    end = time.monotonic() + (10 if pin else 0.2)  # until they have begun
    while time.monotonic() < end and not any(len(os.sched_getaffinity(thread)) == 1 for thread in started):
        time.sleep(0.01)
    assert any(len(os.sched_getaffinity(thread)) == 1 for thread in started) is pin
    assert engine.network.threads == 2 and len(os.sched_getaffinity(0)) > 1


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"precision": "fp16"}, "precision: expected one of fp32, bf16, int8 for native, found 'fp16'"),
        ({"device": "cuda"}, "device: expected cpu for native, found 'cuda'"),
        ({"engine": "openvino"}, "expected an artifact that openvino runs .*, found native"),
    ],
)
def test_the_engine_refuses(runtime, tmp_path, asked, message):
    export(small(), tmp_path / "a", "native")
    with pytest.raises(EngineError, match=message):
        open_engine(tmp_path / "a", **asked)


def drop_a_tensor(folder):
    tensors = load_file(folder / "weights.safetensors")
    save_file({name: array for name, array in tensors.items() if name != "head.weight"}, folder / "weights.safetensors")


def change_a_kind(folder):
    text = (folder / "network.json").read_text()
    (folder / "network.json").write_text(text.replace('"kind": "head"', '"kind": "__call__"'))


def cut(name):
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:100])


BROKEN = {
    "a tensor is missing": (
        drop_a_tensor,
        "expected the layers of a network and their tensors, found no 'head.weight'",
    ),
    "another kind of layer": (change_a_kind, "found no layer of a known kind in network.json: {'kind': '__call__'"),
    "no names of tensors": (
        lambda folder: (folder / "network.json").write_text('{"layers": [{"kind": "stem", "tensors": [1]}]}'),
        "found no layer of a known kind in network.json: {'kind': 'stem', 'tensors': \\[1\\]}",
    ),
    "other arguments": (
        lambda folder: (folder / "network.json").write_text('{"layers": [{"kind": "stem", "tensors": {}}]}'),
        "native: stem: expected weight1, .*, std, found other arguments",
    ),
    "half the layers": (cut("network.json"), "expected a network and its weights, found"),
    "half the weights": (cut("weights.safetensors"), "expected a network and its weights, found"),
}


@pytest.mark.parametrize(("change", "message"), BROKEN.values(), ids=BROKEN)
def test_broken_artifacts(runtime, tmp_path, change, message):
    export(small(), tmp_path / "a", "native")
    change(tmp_path / "a")
    metadata = json.loads((tmp_path / "a" / "metadata.json").read_text())
    (tmp_path / "a" / "metadata.json").write_text(json.dumps(metadata | {"checksums": {}}))
    with pytest.raises(EngineError, match=message) as caught:
        open_engine(tmp_path / "a")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("fields", FORMS.values(), ids=FORMS)
def test_what_is_written(tmp_path, fields):
    net = fuse(small(**fields))
    assert write(DeployGraph(net), options(), tmp_path) == "network.json"
    layers = json.loads((tmp_path / "network.json").read_text())["layers"]
    tensors = load_file(tmp_path / "weights.safetensors")
    kinds = ["stem", "branch", "encoder", "downsampling", "encoder", "downsampling", "branch", "encoder"]
    assert [layer["kind"] for layer in layers] == [*kinds, "downsampling", "encoder", "head"]
    assert [layer["name"] for layer in layers[1:4]] == ["layers.0.0", "layers.0.1", "layers.1"]
    assert sorted(name for layer in layers for name in layer["tensors"].values()) == sorted(tensors)
    for layer in layers:
        assert set(layer) - {"kind", "name", "tensors"} | set(layer["tensors"]) == set(LAYERS[layer["kind"]])
    encoder = layers[2]
    assert encoder["normalize"] == fields.get("normalize_query_key", True)
    assert encoder["pooled_scale"] == (1 / 16 if encoder["normalize"] else 1)
    assert ("score" in encoder["tensors"]) == ("global_query_weighting" in fields)
    shapes = {name: tensors[f"layers.0.1.{name}"].shape for name in encoder["tensors"] if "bias" not in name}
    assert shapes.pop("score", (16,)) == (16,)
    assert shapes == {
        "depth_wise": (16, 1, 3, 3),
        "local_expand": (16, 16),
        "local_project": (16, 16),
        "key_query": (32, 16),
        "output": (16, 32),
        "expand": (64, 16),
        "project": (16, 64),
    }
    assert np.array_equal(tensors["stem.weight1"], net.stem[0].weight.numpy())
    assert np.allclose(tensors["stem.mean"], SMALL.mean) and np.allclose(tensors["stem.std"], SMALL.std)


def test_layers_behind_the_last_map_are_left_out():
    layers, tensors = network_of(fuse(backbone("stem", "stage2")))
    kinds = ["stem", "output", "branch", "encoder", "downsampling", "encoder", "output"]
    assert [layer["kind"] for layer in layers] == kinds
    assert tensors["norms.stage2.factor"].shape == tensors["norms.stage2.shift"].shape == (24,)
    assert not any(name.startswith("layers.3") for name in tensors)


def test_half_precision_models_are_written_in_float32():
    _, tensors = network_of(fuse(small().half()))
    assert {array.dtype.name for array in tensors.values()} == {"float32"}


UNFIT = {
    "detector": (
        lambda: SwiftFormerForObjectDetection(SwiftFormerConfig(**TINY, fpn_channels=16, box_channels=16)),
        "expected a classifier, a segmentation model or a backbone, found a detector",
    ),
    "activation": (lambda: tiny(hidden_act="gelu_new"), "expected the activation gelu, found gelu_new"),
    "channels": (lambda: tiny(num_channels=4), "expected a model of 3 channels, found 4"),
    "downsampling": (
        lambda: tiny(down_patch_size=5, down_pad=2),
        "expected downsampling of a 3x3 kernel, stride 2 and padding 1, found 5x5, 2 and 2",
    ),
}


@pytest.mark.parametrize(("make", "message"), UNFIT.values(), ids=UNFIT)
def test_models_that_it_does_not_compute(make, message, tmp_path, monkeypatch):
    model = make()
    with pytest.raises(ExportError, match=f"^native: {message}$"):
        network_of(fuse(model))
    save(model, tmp_path / "model")
    monkeypatch.setitem(sys.modules, "swiftformer_native", contract())
    with pytest.raises(EngineError, match=f"model: native: {message}"):
        open_engine(tmp_path / "model", "native")


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"precision": "fp16"}, "native: expected a precision of fp32, bf16, int8, found 'fp16'"),
        ({"softmax": True}, "native: expected a network that gives logits, found softmax"),
        ({"device": "cuda"}, "device: expected cpu for native, found 'cuda'"),
    ],
)
def test_options_that_make_no_sense(tmp_path, monkeypatch, asked, message):
    monkeypatch.setitem(sys.modules, "swiftformer_native", contract())
    with pytest.raises(ExportError, match=message):
        export(small(), tmp_path / "a", "native", **asked)
    assert list(tmp_path.iterdir()) == []


def test_an_engine_that_is_not_installed_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "swiftformer_native", contract())
    export(small(), tmp_path / "a", "native")
    monkeypatch.setitem(sys.modules, "swiftformer_native", None)
    install = r"needs swiftformer_native: pip install \./native, in a clone of swiftformer"
    with pytest.raises(EngineError, match=f"an artifact of native {install}"):
        open_engine(tmp_path / "a")
    for reference in (tmp_path / "a", "swiftformer-xs-cifar10"):
        with pytest.raises(EngineError, match=f"the engine native {install}"):
            open_engine(reference, "native")
    with pytest.raises(ExportError, match=f"native fp32 {install}"):
        export(small(), tmp_path / "b", "native")
    assert all(c.missing() == ["swiftformer_native"] for c in CANDIDATES if c.engine == "native")


def test_the_benchmark_has_it(runtime, tmp_path):
    rows = [c for c in CANDIDATES if c.engine == "native"]
    assert [str(c) for c in rows] == [
        "swiftformer in native, fp32",
        "swiftformer in native, bf16",
        "swiftformer in native, int8",
    ]
    assert all(not c.missing() and c.devices == ("cpu",) for c in rows)
    model = small()
    export(model, tmp_path / "a", "native", batch=2, size=(64, 64))
    x = torch.randn(2, 3, 64, 64)
    run = open_file(tmp_path / "a", "native", "fp32", 1)
    assert relative(torch.from_numpy(run(x.numpy())), expected_of(model, x)[0]) < 1e-5


def test_without_torch(tmp_path, monkeypatch):
    """In a process of its own, in which torch cannot be imported."""
    pytest.importorskip("swiftformer_native")
    model = small()
    export(model, tmp_path / "a", "native")
    assert read_artifact(tmp_path / "a").versions["safetensors"]
    script = "import sys; sys.modules['torch'] = None\nfrom swiftformer.cli import main\nmain()"
    picture = str(resources.files("swiftformer") / "samples" / "cat.jpg")
    options = ["classify", picture, "--model", str(tmp_path / "a"), "--json"]
    done = subprocess.run([sys.executable, "-c", script, *options], capture_output=True, text=True, check=True)
    with torch.inference_mode():
        expected = model(torch.from_numpy(SMALL([picture]))).logits.softmax(dim=1)[0]
    assert json.loads(done.stdout)[0]["predictions"][0]["index"] == expected.argmax()
