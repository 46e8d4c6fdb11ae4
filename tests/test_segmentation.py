"""Semantic segmentation: shapes, loss, freezing, checkpoints, sliding windows, the fused form and exports."""

import copy
import json

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file
from torch.nn import functional as F
from transformers.modeling_outputs import SemanticSegmenterOutput

from conftest import TINY, randomize, relative, shared, tiny
from swiftformer import (
    CheckpointError,
    Preprocessing,
    SwiftFormerBackbone,
    SwiftFormerConfig,
    SwiftFormerForSemanticSegmentation,
    fuse,
    load,
    post_process_semantic_segmentation,
    register,
    save,
    segment_logits,
)
from swiftformer.engines import open_engine
from swiftformer.export import ExportError, export

SMALL = {**TINY, "fpn_channels": 16, "segmentation_channels": 8, "num_labels": 5}
SIZES = [(64, 64), (65, 97), (33, 130)]
NAMES = ["sky", "road", "tree", "car", "person"]


def tiny_segmenter(**fields: object) -> SwiftFormerForSemanticSegmentation:
    """A small segmentation model in eval mode with randomised statistics."""
    config = SwiftFormerConfig(**({**SMALL, "global_query_weighting": "l2"} | fields))
    return randomize(SwiftFormerForSemanticSegmentation(config)).eval()


@pytest.mark.parametrize("size", SIZES)
def test_logits_are_at_a_quarter_of_any_size(size):
    model = tiny_segmenter()
    with torch.no_grad():
        output = model(torch.randn(2, 3, *size), output_hidden_states=True)
    assert type(output) is SemanticSegmenterOutput and output.loss is None and len(output.hidden_states) == 8
    assert output.logits.shape == (2, 5, -(-size[0] // 4), -(-size[1] // 4)) and output.logits.isfinite().all()


def test_the_head_is_the_papers():
    """Levels of 256 channels, seven steps of 128 in all (1 + 1 + 2 + 3), and no others that are trained."""
    with torch.device("meta"):
        model = SwiftFormerForSemanticSegmentation.from_variant("l1", num_labels=150)
    head = model.decode_head
    assert model.config.form == "l2" and [len(steps) for steps in head.scale_heads] == [1, 1, 2, 3]
    widths = model.config.embed_dims
    fpn = sum(width * 256 + 256 for width in widths) + 4 * (9 * 256 * 256 + 256)
    steps = 4 * 9 * 256 * 128 + 3 * 9 * 128 * 128 + 7 * 2 * 128
    assert sum(p.numel() for p in head.parameters()) == fpn + steps + 128 * 150 + 150
    assert head.dropout.p == 0.1


def test_every_stage_is_used_whatever_the_configuration_returns():
    config = SwiftFormerConfig(**SMALL, out_features=["stage2"])
    model = SwiftFormerForSemanticSegmentation(config)
    assert model.out_features == ["stage1", "stage2", "stage3", "stage4"] and config.out_features == ["stage2"]
    three = tiny_segmenter(depths=[1, 1, 1], embed_dims=[16, 24, 24], downsamples=[True, False, True])
    assert three(torch.randn(1, 3, 65, 64)).logits.shape == (1, 5, 17, 16)


def test_names_of_classes():
    model = SwiftFormerForSemanticSegmentation.from_variant("xs", id2label=dict(enumerate(NAMES)), fpn_channels=8)
    assert model.config.num_labels == 5 and model.decode_head.classifier.out_channels == 5
    with pytest.raises(ValueError, match="expected at least 2 classes, of which one may be the background, found 1"):
        SwiftFormerForSemanticSegmentation(SwiftFormerConfig(**(SMALL | {"num_labels": 1})))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"frozen_stages": 5}, "frozen_stages must be from 0 to 4, found 5"),
        ({"fpn_channels": 0}, "fpn_channels must be at least 1, found 0"),
        ({"segmentation_dropout": 1.0}, r"segmentation_dropout must be in \[0, 1\)"),
    ],
)
def test_fields_out_of_range(fields, message):
    with pytest.raises(ValueError, match=message):
        SwiftFormerConfig(**fields)


def test_a_class_that_would_never_be_learned_is_refused():
    with pytest.raises(
        ValueError, match="expected a semantic_loss_ignore_index that is none of 300 classes, found 255"
    ):
        tiny_segmenter(num_labels=300)(torch.randn(1, 3, 32, 32), labels=torch.full((1, 8, 8), 255))


def test_loss_by_hand():
    model, x = tiny_segmenter(semantic_loss_ignore_index=7), torch.randn(2, 3, 65, 97)
    labels = torch.randint(0, 5, (2, 65, 97))
    labels[:, :20] = 7
    output = model(x, labels=labels)
    scores = F.interpolate(output.logits, size=(65, 97), mode="bilinear", align_corners=False)
    torch.testing.assert_close(output.loss, F.cross_entropy(scores, labels, ignore_index=7))
    counted = -scores.log_softmax(dim=1).gather(1, labels.clamp(max=4)[:, None])[labels[:, None] != 7].mean()
    torch.testing.assert_close(output.loss, counted)
    as_tuple = model(x, labels=labels, return_dict=False)
    assert len(as_tuple) == 2 and torch.equal(as_tuple[0], output.loss) and torch.equal(as_tuple[1], output.logits)
    nothing = model(x, labels=torch.full_like(labels, 7)).loss
    nothing.backward()
    assert nothing == 0 and all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    assert model(x, labels=labels[:, :31, :40].to(torch.uint8)).loss > 0


def test_labels_that_do_not_fit():
    model, x = tiny_segmenter(), torch.randn(2, 3, 64, 64)
    with pytest.raises(ValueError, match=r"expected labels of shape \(2, height, width\), found \(2, 1, 64, 64\)"):
        model(x, labels=torch.zeros(2, 1, 64, 64, dtype=torch.long))
    with pytest.raises(ValueError, match=r"found \(3, 64, 64\)"):
        model(x, labels=torch.zeros(3, 64, 64, dtype=torch.long))
    with pytest.raises(ValueError, match="whole numbers, such as torch.int64, found torch.float32"):
        model(x, labels=torch.zeros(2, 64, 64))
    with pytest.raises(ValueError, match=r"\(batch, 3, height, width\), found \(1, 4, 64, 64\)"):
        model(torch.randn(1, 4, 64, 64))


def test_gradients_reach_everything_that_trains():
    model = tiny_segmenter(drop_path_rate=0.1).train()
    model(torch.randn(4, 3, 64, 64), labels=torch.randint(0, 5, (4, 64, 64))).loss.backward()
    # A bias in front of a BatchNorm has none but rounding.
    assert all(p.grad is not None for p in model.parameters())
    assert all(p.grad.abs().max() > 0 for name, p in model.named_parameters() if name.endswith("weight"))


@pytest.mark.parametrize("stages", [1, 3])
def test_frozen_stages(stages, tmp_path):
    network = {1: 1, 3: 5}[stages]  # members of the encoder up to the last frozen stage
    prefixes = ("swiftformer.patch_embed.", *(f"swiftformer.encoder.network.{i}." for i in range(network)))
    model = tiny_segmenter(frozen_stages=stages, drop_path_rate=0.5).train()
    model.save_pretrained(tmp_path)
    for trained in (model, SwiftFormerForSemanticSegmentation.from_pretrained(tmp_path).train()):
        for name, parameter in trained.named_parameters():
            assert parameter.requires_grad != name.startswith(prefixes), name
        for name, module in trained.named_modules():
            assert module.training != f"{name}.".startswith(prefixes), name
    before = {key: value.clone() for key, value in model.state_dict().items()}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(torch.randn(2, 3, 64, 64), labels=torch.randint(0, 5, (2, 64, 64))).loss.backward()
    optimizer.step()
    changed = {key for key, value in model.state_dict().items() if not torch.equal(value, before[key])}
    assert changed and not any(key.startswith(prefixes) for key in changed)
    assert "hidden_states_norms.stage1.running_mean" in changed


def test_frozen_batch_norm():
    model = tiny_segmenter(frozen_batch_norm=True).train()
    x, labels = torch.randn(2, 3, 64, 64), torch.randint(0, 5, (2, 64, 64))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    model(x, labels=labels).loss.backward()
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            frozen = name.startswith("swiftformer.")
            assert module.training != frozen and (module.weight.grad is None) == frozen, name
            assert torch.equal(module.running_mean, before[f"{name}.running_mean"]) == frozen
    conv = model.swiftformer.patch_embed.patch_embedding[0]
    assert conv.weight.grad.abs().max() > 0
    features = model.swiftformer(x).last_hidden_state
    torch.testing.assert_close(features, copy.deepcopy(model).eval().swiftformer(x).last_hidden_state)


def test_backbones_of_other_models_freeze_as_well():
    backbone = SwiftFormerBackbone(SwiftFormerConfig(**TINY, frozen_stages=4, frozen_batch_norm=True))
    outer = torch.nn.Sequential(backbone).train()
    assert outer.training and not backbone.swiftformer.encoder.network[6].training
    assert not any(p.requires_grad for p in backbone.swiftformer.parameters())


@pytest.mark.parametrize("form", ["uniform", "l2"])
def test_save_and_load(tmp_path, form):
    model = tiny_segmenter(global_query_weighting=form, id2label=dict(enumerate(NAMES)), frozen_stages=1)
    model.preprocessing = Preprocessing(size=(48, 64), resize="shortest", resize_to=70)
    save(model, tmp_path / "model")
    stored = json.loads((tmp_path / "model" / "config.json").read_text())
    assert stored["architectures"] == ["SwiftFormerForSemanticSegmentation"]
    again = load(tmp_path / "model")
    assert isinstance(again, SwiftFormerForSemanticSegmentation) and not again.training
    assert again.config.form == form and list(again.config.id2label.values()) == NAMES
    assert again.config.fpn_channels == 16 and again.config.frozen_stages == 1
    assert again.preprocessing == model.preprocessing
    report = again.load_report
    assert report.task == "segmentation" and report.num_labels == 5 and not report.missing and not report.unexpected
    for key, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[key], value), key
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]
    assert load(tmp_path / "model", frozen_stages=0).swiftformer.patch_embed.patch_embedding[0].weight.requires_grad


def test_other_classes_replace_the_last_layer_alone(tmp_path):
    model = tiny_segmenter()
    save(model, tmp_path / "model")
    other = load(tmp_path / "model", labels=["a", "b"])
    assert other.load_report.head_replaced and other.config.id2label == {0: "a", 1: "b"}
    assert set(other.load_report.missing) == {"decode_head.classifier.weight", "decode_head.classifier.bias"}
    assert torch.equal(other.decode_head.fpn.lateral[0].weight, model.decode_head.fpn.lateral[0].weight)
    with pytest.raises(CheckpointError, match="expected shape"):
        load(tmp_path / "model", fpn_channels=32)


def test_as_backbone_and_as_classifier(tmp_path):
    model, x = tiny_segmenter(), torch.randn(1, 3, 64, 64)
    save(model, tmp_path / "model")
    backbone = load(tmp_path / "model", task="backbone")
    assert isinstance(backbone, SwiftFormerBackbone) and not hasattr(backbone, "decode_head")
    assert not backbone.load_report.missing
    expected = SwiftFormerBackbone.forward(model, x).feature_maps
    for a, b in zip(backbone(x).feature_maps, expected, strict=True):
        torch.testing.assert_close(a, b)
    assert load(tmp_path / "model", task="classification", num_labels=3)(x).logits.shape == (1, 3)
    with pytest.raises(CheckpointError, match="expected a classification head, found none; pass num_labels"):
        load(tmp_path / "model", task="classification")
    for format_ in ("authors", "timm"):
        with pytest.raises(ValueError, match=f"{format_} has no names for a segmentation head"):
            save(model, tmp_path / "file.pth", format=format_)


@pytest.mark.parametrize("source", ["folder", "authors", "timm"])
def test_from_a_classifier(tmp_path, source):
    model, x = tiny(global_query_weighting="l2"), torch.randn(1, 3, 65, 97)
    path = tmp_path / {"folder": "model", "authors": "model.pth", "timm": "model.safetensors"}[source]
    save(model, path, format="transformers" if source == "folder" else source)
    found = load(path, task="segmentation", labels=NAMES, drop_path_rate=0.1, fpn_channels=16)
    assert isinstance(found, SwiftFormerForSemanticSegmentation) and list(found.config.id2label.values()) == NAMES
    assert found.config.form == "l2" and found.config.drop_path_rate == 0.1
    for a, b in zip(
        found(x, output_hidden_states=True).hidden_states,
        model(x, output_hidden_states=True).hidden_states,
        strict=True,
    ):
        assert torch.equal(a, b)
    assert found.load_report.head_replaced and "head.weight" in found.load_report.unexpected
    assert all(key.startswith(("hidden_states_norms.", "decode_head.")) for key in found.load_report.missing)
    with pytest.raises(CheckpointError, match="expected a segmentation head, found none; pass num_labels"):
        load(path, task="segmentation")


def test_from_pretrained_takes_a_classifiers_backbone(tmp_path):
    model = tiny(global_query_weighting="l2")
    save(model, tmp_path / "model")
    found = SwiftFormerForSemanticSegmentation.from_pretrained(
        tmp_path / "model", num_labels=5, fpn_channels=16, segmentation_channels=8
    )
    for key, value in model.swiftformer.state_dict().items():
        assert torch.equal(found.swiftformer.state_dict()[key], value), key
    head = found.decode_head
    for conv, std in (
        (head.classifier, 0.01),
        (head.fpn.lateral[0], (2 / (16 + 16)) ** 0.5),
        (head.scale_heads[3][1].conv, (2 / (9 * 8)) ** 0.5),
    ):
        assert conv.weight.std().item() == pytest.approx(std, rel=0.3)


@pytest.mark.parametrize("release", ["march2023", "july2023"])
def test_from_the_authors_dense_backbone(release):
    path = shared("fixtures", "original", f"{release}_tiny_backbone.pth")
    expected = load_file(path.with_suffix(".io.safetensors"))
    form = {"march2023": "uniform", "july2023": "l2"}[release]
    model = load(path, form=form, task="segmentation", num_labels=5, fpn_channels=16)
    assert all(key.startswith("decode_head.") for key in model.load_report.missing)
    with torch.no_grad():
        maps = SwiftFormerBackbone.forward(model, expected["pixel_values"]).feature_maps
    for i, feature in enumerate(maps):
        assert relative(feature, expected[f"feature_{i}"]) < 1e-5


def test_auto_class(tmp_path):
    register()
    save(tiny_segmenter(), tmp_path / "model")
    model = transformers.AutoModelForSemanticSegmentation.from_pretrained(tmp_path / "model")
    assert isinstance(model, SwiftFormerForSemanticSegmentation) and model.config.fpn_channels == 16


def test_classifiers_stay_readable_for_stock_transformers(tmp_path):
    model, x = tiny(), torch.randn(1, 3, 64, 64)
    save(model, tmp_path / "model")
    stock = transformers.SwiftFormerForImageClassification.from_pretrained(tmp_path / "model").eval()
    assert relative(stock(x).logits, model(x).logits) < 1e-6


def test_post_processing_is_transformers():
    outputs = SemanticSegmenterOutput(logits=torch.randn(3, 5, 17, 25))
    processor = transformers.SegformerImageProcessor()
    sizes = [(65, 97), (40, 30), (17, 25)]
    for target_sizes in (None, sizes, torch.tensor(sizes)):
        found = post_process_semantic_segmentation(outputs, target_sizes)
        expected = processor.post_process_semantic_segmentation(outputs, sizes if target_sizes is not None else None)
        assert len(found) == 3 and all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    with pytest.raises(ValueError, match="expected 3 target sizes, one for each image, found 1"):
        post_process_semantic_segmentation(outputs, [(4, 4)])


def test_whole_and_sliding_windows():
    model, x = tiny_segmenter(), torch.randn(2, 3, 65, 97)
    whole = segment_logits(model, x)
    assert whole.shape == (2, 5, 65, 97)
    assert torch.equal(segment_logits(model, x, "slide", (65, 97), (65, 97)), whole)
    assert torch.equal(segment_logits(model, x, "slide", (200, 200)), whole)  # images smaller than the window
    assert torch.equal(segment_logits(fuse(model), x), segment_logits(fuse(model), x, "slide", (65, 97)))


def test_overlapping_windows_are_averaged():
    """A model that scores a pixel with its value, and with its place in the window."""

    def places(pixels: torch.Tensor) -> torch.Tensor:
        rows = torch.arange(pixels.shape[2], dtype=torch.float32)[:, None].expand(pixels.shape[2:])
        return torch.cat([pixels[:, :1], rows.expand(len(pixels), 1, -1, -1)], dim=1)

    x = torch.randn(2, 3, 10, 7)
    found = segment_logits(places, x, "slide", window=(4, 3), stride=(3, 2))
    torch.testing.assert_close(found[:, :1], x[:, :1])
    # Windows begin at rows 0, 3 and 6.
    expected = torch.tensor([0, 1, 2, (3 + 0) / 2, 1, 2, (3 + 0) / 2, 1, 2, 3])
    torch.testing.assert_close(found[:, 1], expected[None, :, None].expand(2, 10, 7))
    for mode, window, stride, message in (
        ("tile", None, None, "'whole' or 'slide', found 'tile'"),
        ("slide", None, None, "expected a window"),
        ("slide", (4, 4), (5, 4), r"a stride from 1 to the window's size \(4, 4\), found \(5, 4\)"),
    ):
        with pytest.raises(ValueError, match=message):
            segment_logits(places, x, mode, window, stride)


@pytest.mark.parametrize("form", ["uniform", "l2"])
def test_fused_form(form):
    model = tiny_segmenter(global_query_weighting=form)
    fused = fuse(model)
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in fused.modules())
    exact = copy.deepcopy(model).double()
    for size in SIZES:
        x = torch.randn(2, 3, *size)
        with torch.inference_mode():
            assert relative(fused(x), model(x).logits) < 1e-4
            assert relative(fuse(exact)(x.double()), exact(x.double()).logits) < 1e-11
    model.preprocessing = Preprocessing()
    raw = torch.randint(0, 256, (1, 3, 65, 97)).float()
    mean, std = (
        torch.tensor(values).view(1, 3, 1, 1) for values in (model.preprocessing.mean, model.preprocessing.std)
    )
    with torch.inference_mode():
        assert relative(fuse(model, raw_input=True)(raw), model((raw / 255 - mean) / std).logits) < 1e-4


@pytest.mark.parametrize(
    ("format_", "module", "size"),
    [
        ("onnx", "onnxscript", "dynamic"),
        ("openvino", "openvino", (64, 96)),
        pytest.param("onnx", "onnxscript", (64, 96), marks=pytest.mark.exhaustive),
        pytest.param("openvino", "openvino", "dynamic", marks=pytest.mark.exhaustive),
        pytest.param("tensorrt", "onnxscript", (65, 97), marks=pytest.mark.exhaustive),
        pytest.param("torch-export", "torch", "dynamic", marks=pytest.mark.exhaustive),
        pytest.param("torch-export", "torch", (64, 96), marks=pytest.mark.exhaustive),
    ],
)
def test_exports(tmp_path, format_, module, size):
    pytest.importorskip(module)
    # Three stages have all that four have: upsampling by one step and by two.
    model = tiny_segmenter(depths=[1, 1, 1], embed_dims=[8, 16, 24], id2label=dict(enumerate(NAMES)))
    model.preprocessing = Preprocessing(size=(64, 64), resize="whole", resize_to=64)
    artifact = export(model, tmp_path / "a", format_, size=size)
    assert artifact.task == "segmentation" and artifact.outputs == ("logits",) and artifact.labels == tuple(NAMES)
    assert artifact.preprocessing.resize == ("whole" if size == "dynamic" else "squash")
    assert artifact.comparison["max_relative_difference"] < 1e-4 and artifact.comparison["top1_agreement"] > 0.999
    engine = open_engine(tmp_path / "a", "auto" if format_ != "tensorrt" else "onnxruntime")
    for shape in [(1, 3, *size)] if size != "dynamic" else [(1, 3, 64, 64), (3, 3, 97, 65), (2, 3, 33, 130)]:
        x = torch.randn(shape)
        with torch.inference_mode():
            expected = model(x).logits.numpy()
        found = engine(x.numpy())["logits"]
        assert found.shape == expected.shape and np.abs(found - expected).max() / np.abs(expected).max() < 1e-4


def test_softmax_is_for_classifiers(tmp_path):
    with pytest.raises(ExportError, match="expected a classifier, found a model for segmentation"):
        export(tiny_segmenter(), tmp_path / "a", "torch-export", softmax=True)


def test_upernet_on_the_backbone_trains_one_step():
    register()
    config = SwiftFormerConfig(**TINY, out_features=["stage1", "stage2", "stage3", "stage4"], frozen_stages=1)
    model = transformers.UperNetForSemanticSegmentation(
        transformers.UperNetConfig(
            backbone_config=config, hidden_size=16, auxiliary_in_channels=32, auxiliary_channels=8, num_labels=5
        )
    ).train()
    assert isinstance(model.backbone, SwiftFormerBackbone)
    before = copy.deepcopy(model.state_dict())
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    loss = model(torch.randn(2, 3, 64, 64), labels=torch.randint(0, 5, (2, 64, 64))).loss
    loss.backward()
    optimizer.step()
    stem, last = "backbone.swiftformer.patch_embed.patch_embedding.0.weight", "backbone.swiftformer.encoder.network.6"
    after = model.state_dict()
    assert loss.isfinite() and torch.equal(after[stem], before[stem])
    assert not torch.equal(
        after[f"{last}.blocks.0.attn.to_query.weight"], before[f"{last}.blocks.0.attn.to_query.weight"]
    )


def test_a_square_is_learnt():
    """A bright square on noise, in a few steps from nothing."""
    model = SwiftFormerForSemanticSegmentation(
        SwiftFormerConfig(**(SMALL | {"num_labels": 2, "segmentation_channels": 32, "global_query_weighting": "l2"}))
    ).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    x = 0.1 * torch.randn(4, 3, 64, 64)
    labels = torch.zeros(4, 64, 64, dtype=torch.long)
    for i in range(4):
        place = (slice(8 * i, 8 * i + 24), slice(32 - 8 * i, 56 - 8 * i))
        x[i, :, *place] += 2
        labels[i, *place] = 1
    for _ in range(30):
        loss = model(x, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        found = torch.stack(post_process_semantic_segmentation(model(x), [(64, 64)] * 4))
    overlap = ((found == 1) & (labels == 1)).sum() / ((found == 1) | (labels == 1)).sum()
    assert overlap > 0.8
