"""ExecuTorch programs: run in its own runtime and compared; those of absent backends are lowered and said to be so."""

import json
import logging
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from conftest import TINY, randomize, tiny
from swiftformer import SwiftFormerBackbone, SwiftFormerConfig
from swiftformer.artifact import ArtifactError, read_artifact
from swiftformer.deploy import fuse
from swiftformer.engines import EngineError, open_engine
from swiftformer.engines.base import BackendMissingError
from swiftformer.export import ExportError, export
from swiftformer.export.compare import samples
from swiftformer.export.graph import DeployGraph
from swiftformer.image_processing import Preprocessing

pytest.importorskip("executorch")
SMALL = Preprocessing(size=(64, 64), resize="shortest", resize_to=64)
SHALLOW = {"depths": [1, 1, 1, 1], "embed_dims": [8, 12, 16, 24]}


def small(**fields):
    model = tiny(**(SHALLOW | fields))
    model.preprocessing = SMALL
    return model


def difference(found: np.ndarray, expected: torch.Tensor) -> float:
    return float(np.abs(found - expected.numpy()).max() / expected.abs().max())


@pytest.fixture(scope="session")
def program(tmp_path_factory):
    """A model of the l2 form and its float32 artifact."""
    model = small(global_query_weighting="l2")
    folder = tmp_path_factory.mktemp("executorch") / "artifact"
    export(model, folder, "executorch")
    return model, folder


def test_float32_agrees(program):
    model, folder = program
    artifact, engine, x = read_artifact(folder), open_engine(folder, threads=1), torch.randn(3, 3, 64, 64)
    assert artifact.input_shape == (1, 3, 64, 64) and artifact.file == "model.pte"
    assert artifact.comparison["images"] == 9 and artifact.comparison["max_relative_difference"] < 1e-5
    assert engine.name == "executorch xnnpack fp32"
    with torch.inference_mode():
        assert difference(engine(x.numpy())["logits"], model(x).logits) < 1e-5


@pytest.mark.exhaustive
def test_int8_agrees(tmp_path):
    model, x = small(), np.full((1, 3, 64, 64), 128, np.float32)
    artifact = export(model, tmp_path, "executorch", precision="int8", calibration=samples(), normalize=True)
    assert artifact.value_range == "0-255" and artifact.comparison["max_relative_difference"] < 0.3
    assert 0 < difference(open_engine(tmp_path)(x)["logits"], fuse(model, raw_input=True)(torch.from_numpy(x))) < 0.5


def test_int8_keeps_weights_behind_small_layer_scales():
    from swiftformer.export.executorch import quantize

    model = small(global_query_weighting="l2")
    for name, parameter in model.named_parameters():
        if "layer_scale" in name:
            parameter.data.fill_(1e-2)
    graph = DeployGraph(fuse(model)).to(memory_format=torch.contiguous_format)
    module = quantize(graph, torch.randn(8, 3, 64, 64).numpy())
    tensors = [*module.parameters(), *module.buffers()]
    weights = [tensor for tensor in tensors if tensor.dtype == torch.int8]
    assert len(weights) > 10
    for weight in weights:  # of 127 levels; with the quantizer's own smallest step it is a tenth of that
        assert weight.to(torch.int16).abs().flatten(1).amax(dim=1).min() > 100


@pytest.mark.exhaustive
def test_int8_keeps_the_bias_of_a_channel_without_weights(tmp_path):
    model = small(global_query_weighting="l2")
    norm = model.swiftformer.patch_embed.patch_embedding[1]
    norm.weight.data[0], norm.bias.data[0] = 0.0, 5.0
    artifact = export(model, tmp_path, "executorch", precision="int8", calibration=samples())
    assert artifact.comparison["max_relative_difference"] < 0.1


@pytest.mark.exhaustive
def test_layers_stay_in_floating_point():
    from swiftformer.export.executorch import quantize

    graph = DeployGraph(fuse(small(global_query_weighting="l2"))).to(memory_format=torch.contiguous_format)
    x = torch.randn(8, 3, 64, 64)

    def quantized(module: torch.fx.GraphModule) -> set[str]:
        layers = [
            n for n in module.graph.nodes if n.target in (torch.ops.aten.conv2d.default, torch.ops.aten.linear.default)
        ]
        return {
            list(n.meta["nn_module_stack"].values())[-1][0].removeprefix("net.")
            for n in layers
            if "dequantize" in str(n.args[0].target)
        }

    every = quantized(quantize(graph, x.numpy()))
    assert every == {name for name, m in graph.net.named_modules() if isinstance(m, (torch.nn.Conv2d, torch.nn.Linear))}
    kept = ("stem.0", "layers.0.0.attention.key_query", "head")
    module = quantize(graph, x.numpy(), kept)
    assert quantized(module) == every - set(kept)
    with torch.inference_mode():
        assert difference(module(x).numpy(), graph(x)) < 0.2


@pytest.mark.exhaustive
def test_backbone(tmp_path):
    config = SwiftFormerConfig(**(TINY | SHALLOW), num_labels=10, out_features=["stage1", "stage3"])
    model = randomize(SwiftFormerBackbone(config)).eval()
    model.preprocessing = SMALL
    artifact = export(model, tmp_path, "executorch", batch=2)
    assert artifact.outputs == ("stage1", "stage3") and artifact.comparison["max_relative_difference"] < 1e-5
    x = torch.randn(3, 3, 64, 64)  # filled up to two batches of 2
    with torch.inference_mode():
        for found, expected in zip(open_engine(tmp_path)(x.numpy()).values(), model(x).feature_maps, strict=True):
            assert difference(found, expected) < 1e-5


@pytest.mark.exhaustive
@pytest.mark.parametrize("backend", ["coreml", "vulkan"])
def test_other_backends_are_lowered_and_not_run(tmp_path, caplog, backend):
    if backend == "coreml":
        pytest.importorskip("coremltools")
    from executorch.runtime import Runtime

    if any(backend in name.lower() for name in Runtime.get().backend_registry.registered_backend_names):
        pytest.skip(f"this executorch runs {backend}")
    with caplog.at_level(logging.WARNING, "swiftformer.export"):
        artifact = export(small(), tmp_path, f"executorch-{backend}")
    assert artifact.comparison == {} == json.loads((tmp_path / "metadata.json").read_text())["comparison"]
    [record] = [record for record in caplog.records if record.name == "swiftformer.export"]
    assert "lowered, but not run and not compared: expected an executorch with" in record.getMessage()
    assert ("CoreMLBackend" if backend == "coreml" else "VulkanBackend").encode() in (
        tmp_path / "model.pte"
    ).read_bytes()
    with pytest.raises(BackendMissingError, match=f"(?i)expected an executorch with {backend}Backend, found one with"):
        open_engine(tmp_path)


def test_other_shapes_are_refused(program):
    engine = open_engine(program[1])
    with pytest.raises(EngineError, match=r"expected an input of shape \(N, 3, 64, 64\), found \(1, 3, 32, 64\)"):
        engine(np.zeros((1, 3, 32, 64), np.float32))


def damaged(folder, tmp_path, content: bytes, checksums: bool):
    fields = json.loads((folder / "metadata.json").read_text())
    if not checksums:
        fields["checksums"] = {}
    (tmp_path / "metadata.json").write_text(json.dumps(fields))
    (tmp_path / fields["file"]).write_bytes(content)
    return tmp_path


@pytest.mark.parametrize("part", [0, 300, 0.5, 0.98], ids=str)
def test_damaged_files_are_refused(program, tmp_path, part):
    content = (program[1] / "model.pte").read_bytes()
    content = content[: part if isinstance(part, int) else int(part * len(content))]
    with pytest.raises(EngineError, match="model.pte: executorch refuses it") as caught:
        open_engine(damaged(program[1], tmp_path, content, checksums=False))
    assert "\n" not in str(caught.value)
    with pytest.raises(ArtifactError, match="damaged or changed"):
        open_engine(damaged(program[1], tmp_path, content, checksums=True))


def test_options_that_do_not_fit(program):
    with pytest.raises(EngineError, match="computes as the artifact is stored: expected fp32, found fp16"):
        open_engine(program[1], precision="fp16")
    with pytest.raises(EngineError, match="device: expected cpu for executorch, found 'cuda'"):
        open_engine(program[1], device="cuda")


def test_a_wrong_pair_is_refused(program, tmp_path, monkeypatch):
    def installed(torch: str, executorch: str) -> None:
        versions = {"torch": torch, "executorch": executorch}
        monkeypatch.setattr("swiftformer.engines.executorch.metadata", SimpleNamespace(version=versions.__getitem__))

    installed("2.14.1+cpu", "1.4.1")
    message = r"expected executorch 1.5 beside torch 2.14.1, found 1.4.1: pip install 'executorch==1.5.\*'$"
    with pytest.raises(ExportError, match=message):
        export(program[0], tmp_path / "new", "executorch")
    assert not (tmp_path / "new").exists()
    with pytest.raises(EngineError, match=message):
        open_engine(program[1])
    from swiftformer.engines.executorch import wrong_pair

    for torch_, executorch in [("2.11.0", "1.2.0"), ("2.12.1", "1.3.1"), ("2.15.0", "1.5.1"), ("2.16.0", "1.6.0")]:
        installed(torch_, executorch)
        assert wrong_pair() is None
