"""Detectors for real time: against transformers' own model; labels, checkpoints, training, the deployed form."""

import json

import numpy as np
import pytest
import torch
import transformers
from packaging.version import Version
from torch import nn
from torchvision.ops import box_convert
from transformers import AutoModelForObjectDetection, RTDetrImageProcessor
from transformers.models.d_fine.modeling_d_fine import DFineForObjectDetection

import swiftformer
from conftest import tiny
from swiftformer import SwiftFormerConfig, SwiftFormerForRealTimeDetection
from swiftformer.checkpoints import load, save
from swiftformer.deploy import fuse
from swiftformer.detection import SwiftFormerForObjectDetection
from swiftformer.engines import open_engine
from swiftformer.evaluate.detection import evaluate_reference
from swiftformer.export import export
from swiftformer.heads import d_fine
from swiftformer.image_processing import Preprocessing
from swiftformer.locate import CheckpointError, stored_task
from swiftformer.train.recipes import RECIPES, get_recipe
from test_cli import cli  # noqa: F401
from test_detection import assert_same_objects, detector, labels, pictures
from test_detection_training import run, shapes  # noqa: F401

NAMES = {0: "ring", 1: "disc", 2: "square"}
SMALL = {
    "depths": [1, 1, 1, 1],
    "embed_dims": [8, 12, 16, 20],
    "global_query_weighting": "l2",
    "detr_channels": 32,
    "detr_ffn_channels": 48,
    "detr_layers": 3,
    "detr_queries": 20,
    "detections_per_image": 12,
    "id2label": NAMES,
    "label2id": {name: i for i, name in NAMES.items()},
}


def quick(**fields):
    """With scores and boxes that differ, as those of a trained one do."""
    torch.manual_seed(0)
    model = SwiftFormerForRealTimeDetection(SwiftFormerConfig(**(SMALL | fields)))
    head = model.detection_head.model
    with torch.no_grad():
        for layer in (head.enc_score_head, *head.decoder.class_embed):
            layer.weight.normal_()
        for layer in (*head.enc_bbox_head.layers, *(embed.layers[-1] for embed in head.decoder.bbox_embed)):
            layer.weight.normal_(0, 0.3)
    for norm in (module for module in model.modules() if isinstance(module, nn.BatchNorm2d)):
        norm.running_mean.normal_(0, 0.1)
        norm.running_var.uniform_(0.5, 2)
    return model.eval()


def maps_of(model, pixels):
    return super(SwiftFormerForRealTimeDetection, model).forward(pixels, return_dict=True).feature_maps


class Maps(nn.Module):
    """A backbone as transformers' D-FINE wants it."""

    def __init__(self, model):
        super().__init__()
        self.maps = lambda pixels: maps_of(model, pixels)

    def forward(self, pixels, mask):
        return [(x, mask) for x in self.maps(pixels)]


def transformers_model(model):
    """transformers' D-FINE with the same weights."""
    theirs = DFineForObjectDetection(model.detection_head.model.config)
    theirs.model.backbone = Maps(model)
    missing, unexpected = theirs.load_state_dict(model.detection_head.state_dict(), strict=False)
    assert not unexpected and all(key.startswith(("class_embed.", "bbox_embed.")) for key in missing)
    return theirs.train(model.training)


def test_computes_what_transformers_does():
    model, pixels = quick(), pictures()
    with torch.inference_mode():
        ours, expected = model(pixels), transformers_model(model)(pixels)
    torch.testing.assert_close(ours.logits, expected.logits)
    torch.testing.assert_close(ours.pred_boxes, expected.pred_boxes)
    scores = expected.logits.sigmoid().flatten(1).sort(descending=True, dim=1)
    torch.testing.assert_close(ours.scores, scores.values[:, :12])
    assert (ours.labels == scores.indices[:, :12] % 3).all()
    [first, _] = RTDetrImageProcessor().post_process_object_detection(ours, 0.0, torch.tensor([[96, 128]] * 2))
    corners = box_convert(ours.boxes[0], "cxcywh", "xyxy") * torch.tensor([128, 96, 128, 96])
    torch.testing.assert_close(first["boxes"][:12], corners)
    torch.testing.assert_close(first["scores"][:12], ours.scores[0])


@pytest.mark.skipif(
    Version(transformers.__version__) < Version("5.23"), reason="5.17 takes the denoising queries for the others"
)
def test_losses_are_those_of_transformers_with_its_layers_put_in_order():
    model, pixels = quick().train(), pictures()
    theirs = transformers_model(model)
    torch.manual_seed(3)
    ours = model(pixels, labels(masks=False))
    torch.manual_seed(3)
    found = theirs(pixels, labels=labels(masks=False))
    for name in ("loss_vfl", "loss_bbox", "loss_giou"):
        torch.testing.assert_close(ours.loss_dict[name], found.loss_dict[name])
    _, expected, _ = theirs.loss_function(
        found.logits,
        labels(masks=False),
        "cpu",
        found.pred_boxes,
        theirs.config,
        found.intermediate_logits[:, 1:],  # without what there is before the first layer, as the distributions are
        found.intermediate_reference_points[:, 1:],
        enc_topk_logits=found.enc_topk_logits,
        enc_topk_bboxes=found.enc_topk_bboxes,
        denoising_meta_values=found.denoising_meta_values,
        predicted_corners=found.intermediate_predicted_corners,
        initial_reference_points=found.initial_reference_points,
    )
    renamed = {}
    for name, loss in expected.items():
        kind, _, number = name.rpartition("_")
        renamed[f"{kind}_{int(number) + 1}" if number.isdecimal() else name] = loss
    for name, loss in renamed.items():
        torch.testing.assert_close(ours.loss_dict[name], loss, msg=name)
    more = {"loss_fgl", "loss_ddf"}  # of the last layer; and what there is before the first one
    more |= {f"loss_{kind}_{where}_0" for kind in ("vfl", "bbox", "giou") for where in ("aux", "dn")}
    assert ours.loss_dict.keys() - renamed.keys() == more
    torch.testing.assert_close(ours.loss, sum(ours.loss_dict.values()))


def test_sizes_that_no_stride_divides():
    model = quick()
    with torch.no_grad():
        maps = maps_of(model, pictures(size=(75, 101)))  # of 75x101 pixels; D-FINE sees as many as 96x128 have
        (_, part), (_, whole) = model.detection_head(maps, (75, 101)), model.detection_head(maps, (96, 128))
    scale = torch.tensor([128 / 101, 96 / 75] * 2)
    torch.testing.assert_close(part, whole * scale)
    targets = labels(masks=False)
    scaled = [label | {"boxes": label["boxes"] / scale} for label in targets]
    model.train()
    losses = []
    for size, of_size in (((75, 101), targets), ((96, 128), scaled)):
        torch.manual_seed(0)
        losses.append(model.detection_head.losses(maps, size, of_size))
    torch.testing.assert_close(*losses)


@pytest.mark.parametrize("size", [(32, 32), (20, 70)])
def test_pictures_with_fewer_places_than_there_are_queries(size):
    """They are taken as parts of larger ones."""
    model = quick(detr_queries=150)
    with torch.no_grad():
        found = model(pictures(size=size))
    assert found.pred_boxes.shape == (2, 150, 4) and found.pred_boxes.isfinite().all() and found.scores.isfinite().all()
    assert model.train()(pictures(size=size), labels(masks=False)).loss.isfinite()


@pytest.mark.parametrize("targets", [labels(masks=False), labels(masks=False)[1:] * 2], ids=["objects", "none"])
def test_every_weight_learns_but_the_frozen_ones(targets):
    model = quick(frozen_stages=2).train()
    loss = model(pictures(), targets).loss
    loss.backward()
    assert loss.isfinite()
    untouched = {name for name, p in model.named_parameters() if p.grad is None}
    assert untouched == {name for name, p in model.named_parameters() if not p.requires_grad}
    assert {"detection_head.model.decoder.up", "detection_head.model.decoder.reg_scale"} <= untouched


def test_boxes_stay_exact_in_half_precision():
    model = quick()
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        found = model(pictures())
    assert found.boxes.dtype == found.scores.dtype == torch.float32
    assert len((found.boxes * 1000 % 1).unique()) > 20  # bfloat16 would leave few values


def test_bad_labels_pictures_and_configurations(monkeypatch):
    model = quick().train()
    with pytest.raises(ValueError, match="expected labels of 2 pictures to train on, found none"):
        model(pictures())
    beyond = labels(masks=False)
    beyond[0]["class_labels"] = torch.tensor([3, 0])
    with pytest.raises(ValueError, match=r"class_labels from 0 to 2, found 0 to 3"):
        model(pictures(), beyond)
    monkeypatch.setattr(d_fine, "is_scipy_available", lambda: False)
    with pytest.raises(ValueError, match="expected scipy .* found none: pip install 'swiftformer"):
        model(pictures(), labels(masks=False))
    for fields, message in (
        ({"detector": "yolo"}, "detector must be one of rcnn, d-fine, found 'yolo'"),
        ({"detr_channels": 20}, "detr_channels must be a multiple of 8, found 20"),
        ({"detr_queries": 0}, "detr_queries must be at least 1, found 0"),
        ({"id2label": {}, "label2id": {}}, "expected at least 1 class, found 0"),
        ({"depths": [1, 1, 1], "embed_dims": [8, 12, 16]}, "expected four stages with strides 4, 8, 16 and 32"),
    ):
        with pytest.raises(ValueError, match=message):
            quick(**fields)


def test_checkpoints(tmp_path):
    model, pixels = quick(), pictures()
    save(model, tmp_path / "quick")
    assert stored_task(tmp_path / "quick") == "detection"
    again = load(tmp_path / "quick")
    assert type(again) is SwiftFormerForRealTimeDetection and again.load_report.missing == []
    theirs = SwiftFormerForRealTimeDetection.from_pretrained(tmp_path / "quick").eval()
    theirs.save_pretrained(tmp_path / "theirs")
    with torch.inference_mode():
        for other in (again, theirs, load(tmp_path / "theirs")):
            # Where weights lie in memory decides which of torch's kernels is taken.
            torch.testing.assert_close(other(pixels).boxes, model(pixels).boxes, rtol=1e-5, atol=1e-6)
    others = load(tmp_path / "quick", labels=["cat", "dog"])
    assert others.num_labels == 2 and others.load_report.head_replaced
    assert all(
        ".class_embed." in key or "_class_embed." in key or "_score_" in key for key in others.load_report.missing
    )
    assert load(tmp_path / "quick", task="backbone").out_features == ["stage2", "stage3", "stage4"]


@pytest.mark.parametrize("kind", [SwiftFormerForRealTimeDetection, SwiftFormerForObjectDetection])
def test_auto_class(tmp_path, kind):
    swiftformer.register()
    model = quick() if kind is SwiftFormerForRealTimeDetection else detector(kind)
    save(model, tmp_path / "saved")
    model.save_pretrained(tmp_path / "pretrained")
    for folder in ("saved", "pretrained"):
        assert type(AutoModelForObjectDetection.from_pretrained(tmp_path / folder)) is kind
    plain = AutoModelForObjectDetection.from_config(detector(SwiftFormerForObjectDetection).config)
    assert type(plain) is SwiftFormerForObjectDetection


def test_one_detector_s_backbone_for_the_other(tmp_path):
    save(quick(), tmp_path / "quick")
    save(detector(SwiftFormerForObjectDetection), tmp_path / "rcnn")
    assert type(load(tmp_path / "rcnn")) is SwiftFormerForObjectDetection
    for source, kind, expected in (
        ("rcnn", "d-fine", SwiftFormerForRealTimeDetection),
        ("quick", "rcnn", SwiftFormerForObjectDetection),
    ):
        model = load(tmp_path / source, detector=kind, labels=["cell"], detr_queries=20)
        assert type(model) is expected and model.load_report.head_replaced and model.config.detector == kind
        key = "swiftformer.encoder.network.6.blocks.0.attn.w_g"
        assert torch.equal(model.state_dict()[key], load(tmp_path / source).state_dict()[key])
        with pytest.raises(CheckpointError, match="expected a detection head, found none; pass num_labels"):
            load(tmp_path / source, detector=kind)
    with pytest.raises(ValueError, match="expected the detector rcnn, found 'd-fine'; SwiftFormerForRealTime"):
        SwiftFormerForObjectDetection.from_pretrained(tmp_path / "quick")
    with pytest.raises(ValueError, match="expected rcnn for instances, found 'd-fine'"):
        load(tmp_path / "rcnn", task="instances", detector="d-fine", labels=["cell"])
    assert load(tmp_path / "quick", task="instances", labels=["cell"]).config.detector == "rcnn"


def test_starts_from_a_classifier():
    options = {"detector": "d-fine", "detr_channels": 32, "detr_ffn_channels": 32, "detr_layers": 1}
    model = swiftformer.load("swiftformer-xs-cifar10", task="detection", labels=["cell"], **options)
    classifier = swiftformer.load("swiftformer-xs-cifar10")
    assert type(model) is SwiftFormerForRealTimeDetection and model.config.detector == "d-fine"
    key = "swiftformer.encoder.network.0.blocks.0.point_wise_conv1.weight"
    assert torch.equal(model.state_dict()[key], classifier.state_dict()[key])
    bias = model.detection_head.model.decoder.class_embed[0].bias
    np.testing.assert_allclose(bias.sigmoid().detach(), 0.01, rtol=1e-4)  # few objects are expected to begin with


def test_from_pretrained_begins_as_the_constructor_does(tmp_path):
    """Few objects are expected, and boxes begin where the queries are, with a head for other classes or none before."""
    save(tiny(embed_dims=SMALL["embed_dims"], depths=SMALL["depths"]), tmp_path / "classifier")
    save(quick(), tmp_path / "detector")
    fields = {name: value for name, value in SMALL.items() if name.startswith("detr")}
    for folder in ("classifier", "detector"):
        model = SwiftFormerForRealTimeDetection.from_pretrained(
            tmp_path / folder, num_labels=5, ignore_mismatched_sizes=True, **fields
        )
        decoder = model.detection_head.model.decoder
        np.testing.assert_allclose(decoder.class_embed[0].bias.sigmoid().detach(), 0.01, rtol=1e-4)
        assert decoder.class_embed[0].bias.shape == (5,)
        assert folder == "detector" or not decoder.bbox_embed[0].layers[-1].weight.any()
    kept = SwiftFormerForRealTimeDetection.from_pretrained(tmp_path / "detector")
    expected = quick().state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in kept.state_dict().items())


def test_auto_class_from_a_configuration():
    swiftformer.register()
    model = AutoModelForObjectDetection.from_config(SwiftFormerConfig(**SMALL, detector="d-fine"))
    assert type(model) is SwiftFormerForRealTimeDetection


@pytest.mark.parametrize("size", [(96, 128), (75, 101)])
def test_the_deployed_form_finds_the_same(size):
    model, pixels = quick(), pictures(2, size)
    fused = fuse(model)
    with torch.inference_mode():
        expected, found = model(pixels), fused(pixels)
    assert fused.outputs == ("scores", "labels", "boxes")
    assert_same_objects(dict(zip(fused.outputs, found, strict=True)), expected)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in fused.modules())


def test_more_places_than_there_are_pairs():
    model = quick(detections_per_image=90)
    with torch.inference_mode():
        found = model(pictures())
    assert found.scores.shape == (2, 90) and not found.scores[:, 60:].any() and (found.scores[:, :60] > 0).all()


@pytest.mark.parametrize(
    "format",
    ["onnx", *(pytest.param(name, marks=pytest.mark.exhaustive) for name in ("openvino", "torch-export"))],
)
def test_exports(format, tmp_path):
    pytest.importorskip({"onnx": "onnxruntime"}.get(format, format.partition("-")[0]))
    model, pixels = quick(detr_layers=1), pictures()
    artifact = export(model, tmp_path / "artifact", format, size=(96, 128))
    assert artifact.task == "detection" and artifact.outputs == ("scores", "labels", "boxes")
    assert artifact.comparison["top1_agreement"] >= 0.95
    engine = open_engine(tmp_path / "artifact")
    with torch.inference_mode():
        expected = model(pixels)
    assert_same_objects({k: torch.from_numpy(v) for k, v in engine(pixels.numpy()).items()}, expected)


@pytest.fixture
def start(tmp_path):
    """A small classifier's checkpoint."""
    fields = {name: SMALL[name] for name in ("depths", "embed_dims", "global_query_weighting")}
    model = swiftformer.SwiftFormerForImageClassification(SwiftFormerConfig(**fields, num_labels=2))
    return str(save(model, tmp_path / "start"))


SETTINGS = ("detector=d-fine", "detr_channels=32", "detr_ffn_channels=64", "detr_layers=2", "detr_queries=20")


def test_training_and_resuming(shapes, start, tmp_path):  # noqa: F811
    settings = (*SETTINGS, "epochs=1", "warmup_epochs=0")
    metrics = run(shapes, tmp_path / "run", *settings, recipe="smoke_detection", model=start)
    assert np.isfinite(metrics["loss"]) and "AP" in metrics
    model = load(tmp_path / "run")
    assert type(model) is SwiftFormerForRealTimeDetection and model.config.id2label == {0: "square", 1: "disc"}
    assert (model.config.detr_channels, model.config.detr_layers, model.config.detr_queries) == (32, 2, 20)
    again = evaluate_reference(tmp_path / "run", str(shapes), "val", workers=0)
    assert again["AP"] == pytest.approx(metrics["AP"]) and again["images"] == 3
    resumed = run(shapes, tmp_path / "run", *settings, recipe="smoke_detection", resume=True)
    assert resumed["AP"] == pytest.approx(metrics["AP"])


@pytest.mark.exhaustive
def test_a_run_learns_and_can_be_used(shapes, start, tmp_path, cli):  # noqa: F811
    settings = (*SETTINGS, "epochs=50", "warmup_epochs=2", "evaluate_every=50", "lr=2e-3", "clip_agc=0")
    metrics = run(shapes, tmp_path / "run", *settings, recipe="smoke_detection", model=start)
    assert metrics["AP50"] > 60
    picture = shapes / "images" / "val" / "0.png"
    code, out, _ = cli("detect", picture, "--model", tmp_path / "run", "--output", tmp_path / "seen", "--json")
    [found] = json.loads(out)
    assert code == 0 and {"square", "disc"} <= {entry["label"] for entry in found["objects"]}
    pytest.importorskip("openvino")
    export(tmp_path / "run", tmp_path / "ov", "openvino", size=(64, 96))
    exported = evaluate_reference(tmp_path / "ov", str(shapes), "val", workers=0)
    assert exported["AP50"] == pytest.approx(metrics["AP50"], abs=1)


@pytest.mark.exhaustive
def test_four_pictures_by_heart():
    torch.manual_seed(0)
    model = SwiftFormerForRealTimeDetection(SwiftFormerConfig(**SMALL | {"detr_layers": 2}))
    pixels, targets = torch.zeros(4, 3, 64, 96), []
    for picture, left, width, label in zip(pixels, (4, 30, 50, 12), (24, 32, 40, 48), (0, 1, 2, 1), strict=True):
        picture[label, 16:48, left : left + width] = 2.0
        box = torch.tensor([[(left + width / 2) / 96, 0.5, width / 96, 0.5]])
        targets.append({"class_labels": torch.tensor([label]), "boxes": box})
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=120, pct_start=0.1)
    for _ in range(120):
        loss = model(pixels, targets).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        found = model.eval()(pixels)
    assert found.labels[:, 0].tolist() == [0, 1, 2, 1] and (found.scores[:, 0] > 0.5).all()
    expected = torch.cat([target["boxes"] for target in targets])
    np.testing.assert_allclose(found.boxes[:, 0], expected, atol=0.05)


def test_recipes(shapes, tmp_path, cli):  # noqa: F811
    recipe = RECIPES["small_real_time_detection"]()
    assert recipe.network_fields["detector"] == "d-fine" and recipe.task == "detect"
    with pytest.raises(ValueError, match="expected detector rcnn for instances, found d-fine"):
        get_recipe("small_instances", ["detector=d-fine"])
    with pytest.raises(ValueError, match="expected detr_channels as a multiple of 8"):
        get_recipe("small_real_time_detection", ["detr_channels=20"])
    code, _, err = cli("train", "--task", "detect", "--set", "detector=yolo", "--data", shapes)
    assert code == 2 and "detector: expected" in err and "found 'yolo'" in err


def test_evaluating_in_an_engine(shapes, tmp_path):  # noqa: F811
    """However many queries there are: no smaller picture than those of the data is shown to the model."""
    net = quick(detr_queries=100, detections_per_image=100, id2label={0: "square", 1: "disc"}, label2id=None)
    net.preprocessing = Preprocessing((64, 96), "whole", 64)
    save(net, tmp_path / "model")
    plain, fused = (
        evaluate_reference(tmp_path / "model", str(shapes), "val", workers=0, threads=threads) for threads in (None, 1)
    )
    assert fused["images"] == 3 and fused["AP"] == pytest.approx(plain["AP"], abs=0.5)
