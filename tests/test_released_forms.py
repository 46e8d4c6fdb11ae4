"""Agreement with what others wrote: the authors' stored tensors, stock transformers, timm."""

import copy
import json

import pytest
import timm
import torch
import transformers
from safetensors.torch import load_file

from conftest import SHARED, TINY, randomize, relative, shared, tiny
from swiftformer import SwiftFormerConfig, SwiftFormerForImageClassification, load
from swiftformer.convert import convert_state_dict
from swiftformer.deploy import DeployModel, fuse

FIXTURES = SHARED / "fixtures" / "original"
MANIFEST = json.loads((FIXTURES / "manifest.json").read_text()) if FIXTURES.exists() else {"absent": {}}
SIZES = [(224, 224), (192, 256), (65, 97)]


def form_of(entry: dict) -> str:
    if entry["release"] == "july2023":
        return "l2"
    return "uniform" if entry["normalise_query_key"] else "uniform-unnormalized"


@pytest.mark.parametrize("name", MANIFEST)
def test_authors_fixtures(name):
    path = shared("fixtures", "original", f"{name}.pth")
    entry, expected = MANIFEST[name], load_file(path.with_suffix(".io.safetensors"))
    model = load(path, form=form_of(entry))
    assert model.config.depths == entry["layers"] and model.config.embed_dims == entry["embed_dims"]
    assert model.config.use_layer_scale == entry.get("use_layer_scale", True)
    with torch.no_grad():
        if entry.get("fork_feat"):
            maps = model(expected["pixel_values"]).feature_maps
            found = {f"feature_{i}": feature for i, feature in enumerate(maps)}
        else:
            output = model(expected["pixel_values"], output_hidden_states=True)
            head, dist_head = model.heads(output.hidden_states[-1])
            names = ["patch_embed"] + [f"network_{i}" for i in range(7)]
            found = dict(zip(names, output.hidden_states, strict=True)) | {"logits": output.logits, "head": head}
            found |= {"dist_head": dist_head} if dist_head is not None else {}
    assert found.keys() | {"pixel_values"} == expected.keys() | {"pixel_values"} | ({"head"} & found.keys())
    for key, tensor in found.items():
        if key in expected:
            assert relative(tensor, expected[key]) < 1e-5, key


@pytest.mark.parametrize("engine", ["torch", "native"])
@pytest.mark.parametrize("name", MANIFEST)
def test_fused_on_the_authors_tensors(name, engine):
    path = shared("fixtures", "original", f"{name}.pth")
    entry, expected = MANIFEST[name], load_file(path.with_suffix(".io.safetensors"))
    net = fuse(load(path, form=form_of(entry)))
    pixels = expected["pixel_values"]
    with torch.no_grad():
        found = net(pixels) if engine == "torch" else native_outputs(net, pixels)
    found = [found] if isinstance(found, torch.Tensor) else found
    names = [f"feature_{i}" for i in range(4)] if entry.get("fork_feat") else ["logits"]
    for key, tensor in zip(names, found, strict=True):
        assert relative(tensor, expected[key]) < 1e-5, key


def native_outputs(net: DeployModel, pixels: torch.Tensor) -> list[torch.Tensor]:
    pytest.importorskip("swiftformer_native")
    from swiftformer.engines.native import build
    from swiftformer.export.native import network_of

    return [torch.from_numpy(out) for out in build(*network_of(net), "auto", "fp32", 1)(pixels.numpy())]


@pytest.mark.parametrize("name", ["march2023_tiny_distilled", "july2023_tiny_distilled"])
def test_the_wrong_form_gives_wrong_numbers(name):
    """The trap itself: the fixtures tell the forms apart."""
    path = shared("fixtures", "original", f"{name}.pth")
    expected = load_file(path.with_suffix(".io.safetensors"))
    wrong = "uniform" if name.startswith("july") else "l2"
    with torch.no_grad():
        logits = load(path, form=wrong)(expected["pixel_values"]).logits
    assert relative(logits, expected["logits"]) > 1e-3


def peers(variant: str, kind: str) -> tuple[torch.nn.Module, SwiftFormerForImageClassification]:
    """A peer with randomised weights, and our model holding the same ones."""
    if kind == "timm":
        peer = randomize(timm.create_model(f"swiftformer_{variant}", num_classes=10))
        ours = SwiftFormerForImageClassification.from_variant(variant, num_labels=10)
        ours.load_state_dict(convert_state_dict(peer.state_dict(), "timm", "transformers"))
    else:
        config = SwiftFormerConfig.from_variant(variant, num_labels=10, global_query_weighting="uniform")
        fields = {"depths": config.depths, "embed_dims": config.embed_dims, "num_labels": 10}
        peer = randomize(transformers.SwiftFormerForImageClassification(transformers.SwiftFormerConfig(**fields)))
        ours = SwiftFormerForImageClassification(config)
        ours.load_state_dict(peer.state_dict())
    return peer, ours


def logits_of(model: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
    output = model(x)
    return output if isinstance(output, torch.Tensor) else output.logits


@pytest.mark.parametrize("kind", ["timm", "transformers"])
@pytest.mark.parametrize("variant", ["xs", "s", "l1", "l3"])
def test_inference_agrees_with_peers_and_weights_go_back(variant, kind):
    peer, ours = peers(variant, kind)
    peer.eval(), ours.eval()
    with torch.no_grad():
        for size in SIZES:
            x = torch.randn(2, 3, *size)
            assert relative(logits_of(ours, x), logits_of(peer, x)) < 1e-5
        randomize(ours, seed=1)
        back = ours.state_dict()
        peer.load_state_dict(convert_state_dict(back, "transformers", "timm") if kind == "timm" else back)
        assert relative(logits_of(peer, x), logits_of(ours, x)) < 1e-5


@pytest.mark.parametrize("kind", ["timm", "transformers"])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    "variant", ["xs", "s", *(pytest.param(name, marks=pytest.mark.exhaustive) for name in ("l1", "l3"))]
)
def test_training_agrees_with_peers(variant, size, kind):
    peer, ours = peers(variant, kind)
    peer.train(), ours.train()
    x, labels = torch.randn(2, 3, *size), torch.tensor([1, 7])
    with torch.no_grad():
        assert relative(logits_of(copy.deepcopy(ours), x), logits_of(copy.deepcopy(peer), x)) < 1e-5
    # Gradients in float64: that of a bias in front of a BatchNorm is zero, and in float32 only its rounding is left.
    peer.double(), ours.double()
    x = x.double()
    found, expected = logits_of(ours, x), logits_of(peer, x)
    assert relative(found, expected) < 1e-5
    torch.nn.functional.cross_entropy(found, labels).backward()
    torch.nn.functional.cross_entropy(expected, labels).backward()
    gradients = {name: p.grad for name, p in peer.named_parameters()}
    if kind == "timm":
        gradients = convert_state_dict(gradients, "timm", "transformers")
    for name, parameter in ours.named_parameters():
        scale = max(gradients[name].norm().item(), 1e-9)
        assert (parameter.grad - gradients[name]).norm().item() / scale < 1e-4, name
    statistics = dict(peer.named_buffers())
    if kind == "timm":
        statistics = convert_state_dict(statistics, "timm", "transformers")
    for name, buffer in ours.named_buffers():
        torch.testing.assert_close(buffer, statistics[name], msg=name)


def test_hidden_states_equal_stock_transformers():
    peer, ours = peers("xs", "transformers")
    x = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        found = ours.eval()(x, output_hidden_states=True)
        expected = peer.eval()(x, output_hidden_states=True)
        as_tuple = ours(x, output_hidden_states=True, return_dict=False)
    assert len(found.hidden_states) == len(expected.hidden_states) == 8
    for a, b in zip(found.hidden_states, expected.hidden_states, strict=True):
        assert relative(a, b) < 1e-5
    assert torch.equal(as_tuple[0], found.logits) and len(as_tuple[1]) == 8


@pytest.mark.parametrize("fields", [{"use_layer_scale": False}, {"mlp_ratio": 2}, {"num_channels": 1}])
def test_options_agree_with_stock_transformers(fields):
    fields = {**TINY, "num_labels": 10} | fields
    ours = tiny(**fields)
    peer = transformers.SwiftFormerForImageClassification(transformers.SwiftFormerConfig(**fields)).eval()
    peer.load_state_dict(ours.state_dict())
    x = torch.randn(2, fields.get("num_channels", 3), 64, 64)
    with torch.no_grad():
        assert relative(ours(x).logits, peer(x).logits) < 1e-5
