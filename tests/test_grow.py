"""Larger variants that begin as smaller ones."""

from __future__ import annotations

import json

import pytest
import torch
from typer.testing import CliRunner

import swiftformer
from conftest import TINY, randomize
from swiftformer.cli import app
from swiftformer.model_kinds import model_class
from swiftformer.variants import VARIANTS

FORMS = [("uniform", True), ("uniform", False), ("l2", True)]


def tiny(task: str = "classification", detector: str = "rcnn", **fields) -> swiftformer.SwiftFormerPreTrainedModel:
    config = swiftformer.SwiftFormerConfig(num_labels=5, detector=detector, **(TINY | fields))
    return randomize(model_class(task, detector)(config)).eval()


def logits(model: torch.nn.Module, pixels: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model(pixels).logits


@pytest.mark.parametrize("variant", ["s", "l1", "l3"])
@pytest.mark.parametrize(("weighting", "normalized"), FORMS)
def test_the_larger_variant_computes_what_the_smaller_does(variant, weighting, normalized):
    model = tiny(global_query_weighting=weighting, normalize_query_key=normalized)
    larger = swiftformer.grow(model, variant)
    assert tuple(larger.config.embed_dims) == VARIANTS[variant].embed_dims
    pixels = torch.randn(2, 3, 65, 97, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(logits(larger, pixels), logits(model, pixels), rtol=1e-4, atol=1e-5)


def test_without_layer_scales_of_the_attention():
    model = tiny(use_layer_scale=False)
    pixels = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(
        logits(swiftformer.grow(model, "l1"), pixels), logits(model, pixels), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize(("task", "detector"), [("segmentation", "rcnn"), ("detection", "d-fine")])
def test_dense_models_grow_too(task, detector):
    model = tiny(task, detector)
    larger = swiftformer.grow(model, "s")
    pixels = torch.randn(1, 3, 128, 160, generator=torch.Generator().manual_seed(0)).double()
    torch.testing.assert_close(logits(larger.double(), pixels), logits(model.double(), pixels), rtol=1e-4, atol=1e-5)


def test_all_that_is_new_learns():
    larger = swiftformer.grow(tiny(global_query_weighting="l2"), "s").train()
    optimizer = torch.optim.SGD(larger.parameters(), lr=0.1)
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):  # what zeros hold back learns from the second or third step on
        optimizer.zero_grad()
        pixels = torch.randn(4, 3, 64, 64, generator=generator)
        larger(pixels, labels=torch.tensor([0, 1, 2, 3])).loss.backward()
        optimizer.step()
    idle = [name for name, p in larger.named_parameters() if p.ndim > 1 and not (p.grad.flatten(1) != 0).any(1).all()]
    assert idle == []


def test_the_smaller_model_stays_as_it_is_and_preprocessing_goes_along():
    model = swiftformer.load("swiftformer-xs-cifar10")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    larger = swiftformer.grow(model, "l1")
    assert larger.preprocessing == model.preprocessing
    assert larger.config.id2label == model.config.id2label
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert tuple(model.config.embed_dims) == VARIANTS["xs"].embed_dims


@pytest.mark.parametrize(
    ("fields", "variant", "message"),
    [
        ({"embed_dims": [16, 24, 32, 400]}, "l1", r"fits into l1 .* found depths .*400"),
        ({"depths": [2, 1, 2, 9]}, "l3", r"fits into l3 .* found depths \(2, 1, 2, 9\)"),
        ({"depths": [2, 1], "embed_dims": [16, 24]}, "s", "fits into s"),
        ({"embed_dims": [16, 16, 32, 48], "downsamples": [False, True, True, True]}, "s", "downsamples"),
        ({}, "m", "unknown variant 'm': expected one of xs, s, l1, l3"),
    ],
)
def test_models_that_do_not_fit_are_refused(fields, variant, message):
    with pytest.raises(ValueError, match=message):
        swiftformer.grow(tiny(**fields), variant)


def test_other_modules_are_refused_and_the_type_stays():
    model = tiny()
    with pytest.raises(ValueError, match="can be trained, found DeployModel"):
        swiftformer.grow(swiftformer.fuse(model), "l1")
    assert swiftformer.grow(model.half(), "s").dtype == torch.float16


def test_the_command_writes_a_checkpoint_that_evaluates_alike(tmp_path):
    result = CliRunner().invoke(
        app, ["grow", "swiftformer-xs-cifar10", str(tmp_path / "grown"), "--variant", "l1", "--half"]
    )
    assert result.exit_code == 0, result.output
    assert json.loads((tmp_path / "grown" / "config.json").read_text())["embed_dims"] == list(VARIANTS["l1"].embed_dims)
    pixels = torch.randn(2, 3, 112, 112, generator=torch.Generator().manual_seed(0))
    smaller, grown = (swiftformer.load(source) for source in ("swiftformer-xs-cifar10", tmp_path / "grown"))
    torch.testing.assert_close(logits(grown, pixels), logits(smaller, pixels), rtol=1e-3, atol=1e-3)
