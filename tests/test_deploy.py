"""The fused form against the model that it is made of, with randomised statistics."""

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import nn

from conftest import TINY, randomize, relative, tiny
from swiftformer import (
    SwiftFormerBackbone,
    SwiftFormerConfig,
    SwiftFormerForImageClassification,
    SwiftFormerModel,
    save,
)
from swiftformer.deploy import DeployModel, fuse
from swiftformer.export.graph import DeployGraph
from swiftformer.export.half import fit_half
from swiftformer.image_processing import AUTHORS, Preprocessing

FORMS = [
    {"global_query_weighting": weighting, "normalize_query_key": normalize}
    for weighting in ("uniform", "l2")
    for normalize in (True, False)
]
SIZES = [(64, 64), (97, 65), (33, 130)]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"distillation": False},
        {"use_layer_scale": False},
        {"hidden_act": "silu"},
        {"num_channels": 5},
        {"num_labels": 0},
        {"down_patch_size": 2, "down_stride": 2, "down_pad": 0},
    ],
)
def test_classifiers(form, fields):
    model = tiny(**form, **fields)
    fused = fuse(model)
    for size in SIZES:
        x = torch.randn(2, model.config.num_channels, *size)
        with torch.inference_mode():
            # Without normalisation the values grow beyond what float32 can square.
            assert relative(fused(x).double(), model(x).logits.double()) < 1e-4
            # What is left in float32 is rounding, and no mistake of that size.
            exact = fuse(copy.deepcopy(model).double())(x.double())
            assert relative(exact, copy.deepcopy(model).double()(x.double()).logits) < 1e-11


@pytest.mark.parametrize("variant", ["xs", "s", "l1", "l3"])
@pytest.mark.parametrize("form", ["uniform", "l2"])
def test_variants(variant, form):
    config = SwiftFormerConfig.from_variant(variant, num_labels=100, global_query_weighting=form)
    model = randomize(SwiftFormerForImageClassification(config)).eval()
    x = torch.randn(1, 3, 96, 64)
    with torch.inference_mode():
        assert relative(fuse(model)(x), model(x).logits) < 1e-4


@pytest.mark.parametrize("form", FORMS)
def test_backbones(form):
    stages = ["stem", "stage1", "stage3", "stage4"]
    config = SwiftFormerConfig(**TINY, **form, out_features=stages)
    model = randomize(SwiftFormerBackbone(config)).eval()
    fused = fuse(model)
    x = torch.randn(2, 3, 97, 65)
    with torch.inference_mode():
        found, expected = fused(x), model(x).feature_maps
    assert fused.out_features == stages and len(found) == 4
    for a, b in zip(found, expected, strict=True):
        assert a.shape == b.shape and relative(a.double(), b.double()) < 1e-4


def test_the_model_is_left_as_it_was():
    model = tiny(global_query_weighting="l2").train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    fused = fuse(model)
    assert model.training and not fused.training
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    shared = {p.data_ptr() for p in model.parameters()} & {p.data_ptr() for p in fused.parameters()}
    assert not shared and not any(p.requires_grad for p in fused.parameters())


def test_nothing_is_left_that_can_be_folded():
    for form in ("uniform", "l2"):
        model = tiny(global_query_weighting=form)
        fused = fuse(model)
        assert not any(isinstance(module, nn.BatchNorm2d) for module in fused.modules())
        assert sum(isinstance(module, nn.Linear) for module in fused.modules()) == 1
        assert not any("scale" in name for name in fused.state_dict())
        assert any(".score." in name for name in fused.state_dict()) == (form == "l2")
    assert sum(p.numel() for p in fused.parameters()) < sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(("dtype", "bound"), [(torch.bfloat16, 0.05), (torch.float16, 0.01)])
def test_half_precision(dtype, bound):
    """Against float32, on the whole XS; a zero image gives no NaN."""
    config = SwiftFormerConfig.from_variant("xs", num_labels=100)
    model = randomize(SwiftFormerForImageClassification(config)).eval()
    fused, x = fuse(model).to(dtype), torch.randn(2, 3, 96, 96)
    with torch.inference_mode():
        assert relative(fused(x.to(dtype)).float(), model(x).logits) < bound
        assert fused(torch.zeros(1, 3, 64, 64, dtype=dtype)).isfinite().all()


@pytest.mark.parametrize("form", FORMS)
def test_fitted_to_float16(form):
    """All forms, with sums over all tokens that float16 could not hold; and nothing changes in float32."""
    model = tiny(**form)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("to_query.bias"):
                parameter.add_(torch.linspace(-60, 60, len(parameter)))
            elif "layer_scale_1" in name:  # as trained ones are, or sums of residuals overflow as well
                parameter.fill_(1e-6)
    x, other = torch.randn(2, 3, 224, 224), torch.randn(2, 3, 224, 224)
    graph = DeployGraph(fuse(model))
    with torch.inference_mode():
        expected = graph(x), graph(other)
        fit_half(graph, x.numpy())
        assert relative(graph(x), expected[0]) < 1e-5
        half = graph.half()
        for images, wanted in zip((x, other), expected, strict=True):
            assert relative(half(images.half()).float(), wanted) < 0.01


@pytest.mark.parametrize("form", FORMS)
def test_float16_of_keys_and_queries_that_are_zero(form):
    model = tiny(**form)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "to_query" in name or "to_key" in name:
                parameter.zero_()
    graph, x = DeployGraph(fuse(model)), torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        expected = graph(x)
        fit_half(graph, x.numpy())
        assert relative(graph.half()(x.half()).float(), expected) < 0.01


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_any_form_width_and_size(data):
    """Small networks of random statistics, and the same after a few steps of training."""
    fields = data.draw(st.sampled_from(FORMS)) | {
        "depths": data.draw(st.lists(st.integers(1, 2), min_size=4, max_size=4)),
        "embed_dims": [8 * width for width in data.draw(st.lists(st.integers(1, 4), min_size=4, max_size=4))],
        "use_layer_scale": data.draw(st.booleans()),
        "distillation": data.draw(st.booleans()),
    }
    side = st.integers(33, 100)
    x = torch.randn(2, 3, data.draw(side), data.draw(side), dtype=torch.float64)
    model = tiny(**fields).double()
    if data.draw(st.booleans()):
        optimizer = torch.optim.AdamW(model.train().parameters(), lr=1e-3)
        for _ in range(3):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x).logits, torch.tensor([0, 1])).backward()
            optimizer.step()
        model.eval()
    with torch.inference_mode():
        assert relative(fuse(model)(x), model(x).logits) < 1e-9


def test_raw_input():
    model = tiny(global_query_weighting="l2")
    with pytest.raises(ValueError, match="expected a model with preprocessing"):
        fuse(model, raw_input=True)
    model.preprocessing = AUTHORS
    x = torch.randint(0, 256, (2, 3, 75, 64), dtype=torch.uint8)
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (AUTHORS.mean, AUTHORS.std))
    with torch.inference_mode():
        found, expected = fuse(model, raw_input=True)(x), model((x / 255 - mean) / std).logits
    assert relative(found, expected) < 1e-4


def test_raw_input_is_filled_up_with_the_same_colour():
    """A detector's picture that has other proportions than its input."""
    model = tiny()
    model.preprocessing = usual = Preprocessing(size=(64, 96), resize="fit")
    raw = fuse(model, raw_input=True).preprocessing
    picture = Image.new("RGB", (30, 40), (200, 10, 60))
    mean, std = (np.array(values, np.float32)[:, None, None] for values in (usual.mean, usual.std))
    pixels = raw.prepare(picture)
    np.testing.assert_allclose(pixels[:, 0, -1], [round(255 * value) for value in usual.mean], atol=1e-3)
    np.testing.assert_allclose((pixels / 255 - mean) / std, usual.prepare(picture), atol=1e-5)
    assert Preprocessing.from_dict(raw.to_dict()) == raw
    assert "filling" not in usual.to_dict()
    with pytest.raises(ValueError, match="expected as many values to fill with as means"):
        Preprocessing(filling=(0.5,))


@pytest.mark.exhaustive
def test_compile_and_export():
    fused, x = fuse(tiny(global_query_weighting="l2")), torch.randn(2, 3, 64, 96)
    dynamic = {0: torch.export.Dim("batch", max=64), 2: torch.export.Dim("height", min=33, max=2048),
               3: torch.export.Dim("width", min=33, max=2048)}  # fmt: skip
    program = torch.export.export(fused, (x,), dynamic_shapes=(dynamic,))
    other = torch.randn(3, 3, 130, 77)
    with torch.inference_mode():
        assert relative(program.module()(other), fused(other)) < 1e-5
        assert relative(torch.compile(fused, fullgraph=True)(x), fused(x)) < 1e-5


def test_other_models_are_refused(tmp_path):
    with pytest.raises(ValueError, match="found SwiftFormerModel"):
        fuse(SwiftFormerModel(SwiftFormerConfig(**TINY)))
    model = tiny()
    model.dist_head = nn.Sequential(nn.Dropout(), model.dist_head)
    with pytest.raises(ValueError, match="expected heads of one linear layer, found Sequential"):
        fuse(model)
    fused = fuse(tiny())
    assert isinstance(fused, DeployModel)
    with pytest.raises(ValueError, match="expected a SwiftFormer model that can be trained, found DeployModel"):
        save(fused, tmp_path / "fused")
