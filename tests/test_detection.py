"""Detectors: against torchvision's own models, labels and outputs, checkpoints, the deployed form."""

import copy
import json
import subprocess
import sys

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from torch import nn
from torchvision.models.detection import FasterRCNN, MaskRCNN
from torchvision.ops import MultiScaleRoIAlign, box_convert
from transformers import AutoImageProcessor

import swiftformer
from swiftformer.checkpoints import load, save
from swiftformer.deploy import fuse
from swiftformer.detection import (
    SwiftFormerDetectionOutput,
    SwiftFormerForInstanceSegmentation,
    SwiftFormerForObjectDetection,
)
from swiftformer.detection_inference import post_process_instance_segmentation, post_process_object_detection
from swiftformer.detections import paste_masks
from swiftformer.engines import EngineError, open_engine
from swiftformer.engines.torch import TorchEngine
from swiftformer.export import ExportError, export
from swiftformer.export.compare import found_again
from swiftformer.heads import rcnn
from swiftformer.heads.rcnn import RegionPooling, fitting_levels
from swiftformer.image_processing import Preprocessing
from swiftformer.locate import stored_task

SMALL = {
    "depths": [1, 1, 1, 1],
    "embed_dims": [8, 12, 16, 20],
    "fpn_channels": 16,
    "box_channels": 24,
    "mask_channels": 8,
    "anchor_sizes": [8, 16, 32, 64, 128],
    "detection_samples": 32,
    "detection_proposals": 60,
    "detections_per_image": 12,
    "id2label": {0: "ring", 1: "disc", 2: "square"},
    "label2id": {"ring": 0, "disc": 1, "square": 2},
}

STRIDES = (4, 8, 16, 32)


def detector(kind=SwiftFormerForInstanceSegmentation, **fields):
    """With scores that differ, as those of a trained one do."""
    torch.manual_seed(0)
    model = kind.from_variant("xs", **(SMALL | fields))
    with torch.no_grad():
        for name, value in model.detection_head.named_parameters():
            if "cls" in name or "box_pred" in name or "bbox_pred" in name:
                value.copy_(torch.randn_like(value) * (0.5 if value.ndim > 1 else 0.1))
    for norm in (module for module in model.modules() if isinstance(module, nn.BatchNorm2d)):
        norm.running_mean.normal_(0, 0.1)
        norm.running_var.uniform_(0.5, 2)
    return model.eval()


def pictures(count=2, size=(96, 128)):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(count, 3, *size, generator=generator)


def labels(size=(96, 128), masks=True):
    boxes = torch.tensor([[0.3, 0.4, 0.3, 0.5], [0.7, 0.5, 0.2, 0.3]])
    first = {"class_labels": torch.tensor([2, 0]), "boxes": boxes}
    none = {"class_labels": torch.zeros(0, dtype=torch.long), "boxes": torch.zeros(0, 4)}
    if masks:
        drawn = torch.zeros(2, *size, dtype=torch.bool)
        drawn[0, 20:60, 25:50] = drawn[1, 40:60, 80:100] = True
        first["masks"], none["masks"] = drawn, torch.zeros(0, *size, dtype=torch.bool)
    return [first, none]


class Maps(nn.Module):
    """Backbone and pyramid as torchvision's models want them."""

    def __init__(self, model):
        super().__init__()
        self.model, self.out_channels = model, model.config.fpn_channels

    def forward(self, pixels):
        maps = super(SwiftFormerForObjectDetection, self.model).forward(pixels, return_dict=True).feature_maps
        return self.model.detection_head.fpn({str(level): x for level, x in enumerate(maps)})


def torchvision_model(model):
    """torchvision's Faster or Mask R-CNN with the same layers."""
    config, head = model.config, model.detection_head
    options = {
        "image_mean": (0, 0, 0),
        "image_std": (1, 1, 1),
        "min_size": 96,
        "max_size": 128,
        "rpn_anchor_generator": copy.deepcopy(head.rpn.anchor_generator),
        "rpn_head": head.rpn.head,
        "box_head": head.roi_heads.box_head,
        "box_predictor": head.roi_heads.box_predictor,
        "box_batch_size_per_image": config.detection_samples,
        "box_detections_per_img": config.detections_per_image,
    }
    options |= {f"rpn_{when}_nms_top_n_train": 2 * config.detection_proposals for when in ("pre", "post")}
    options |= {f"rpn_{when}_nms_top_n_test": config.detection_proposals for when in ("pre", "post")}
    if model.with_masks:
        options |= {name: getattr(head.roi_heads, name) for name in ("mask_head", "mask_predictor")}
    theirs = (MaskRCNN if model.with_masks else FasterRCNN)(Maps(model), **options)
    theirs.roi_heads.box_roi_pool = head.roi_heads.box_roi_pool  # their constructor takes none but their own
    theirs.roi_heads.mask_roi_pool = head.roi_heads.mask_roi_pool
    return theirs


@pytest.mark.parametrize("kind", [SwiftFormerForObjectDetection, SwiftFormerForInstanceSegmentation])
def test_computes_what_torchvision_does(kind):
    model, pixels = detector(kind), pictures()
    theirs = torchvision_model(model).eval()
    with torch.inference_mode():
        ours, expected = model(pixels), theirs(list(pixels))
    assert (ours.masks is not None) == model.with_masks
    for place, found in enumerate(expected):
        count = len(found["scores"])
        assert 0 < count <= SMALL["detections_per_image"]
        np.testing.assert_allclose(ours.scores[place, :count], found["scores"], rtol=1e-6)
        assert not ours.scores[place, count:].any()
        assert (ours.labels[place, :count] == found["labels"] - 1).all()
        boxes = box_convert(ours.boxes[place, :count], "cxcywh", "xyxy") * torch.tensor([128, 96, 128, 96])
        np.testing.assert_allclose(boxes, found["boxes"], atol=1e-3)
    model.train(), theirs.train()
    targets = [
        {
            "boxes": box_convert(label["boxes"], "cxcywh", "xyxy") * torch.tensor([128.0, 96, 128, 96]),
            "labels": label["class_labels"] + 1,
            "masks": label["masks"],
        }
        for label in labels()
    ]
    torch.manual_seed(3)
    [torch.empty(1).uniform_() for _ in pixels]  # torchvision's transform draws a size for each picture
    ours = model(pixels, labels())
    torch.manual_seed(3)
    losses = theirs(list(pixels), targets)
    assert ours.loss_dict.keys() == losses.keys()
    for name, loss in losses.items():
        if name == "loss_mask":  # of other targets, see below
            continue
        np.testing.assert_allclose(ours.loss_dict[name].item(), loss.item(), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(ours.loss.item(), sum(loss.item() for loss in ours.loss_dict.values()), rtol=1e-5)


def test_regions_are_looked_at_where_torchvision_does_half_a_pixel_on():
    """Aligned points are those of torchvision's pooling for boxes that are moved by half a pixel of the level."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(512 >> level, 640 >> level) for level in (2, 3, 4, 5)]
    maps = {str(level): torch.randn(2, 5, *shape, generator=generator) for level, shape in enumerate(shapes)}
    corners = torch.rand(2, 60, 2, generator=generator) * torch.tensor([150, 100])
    sides = 10 + torch.rand(2, 60, 1, generator=generator) ** 2 * torch.tensor([390, 400])
    boxes = list(torch.cat([corners, corners + sides], dim=2))
    sizes = [(512, 640)] * 2
    ours = RegionPooling(7, STRIDES)(maps, boxes, sizes)
    theirs = MultiScaleRoIAlign(["0", "1", "2", "3"], 7, 2)
    for level in range(4):
        places = torch.stack([fitting_levels(box, STRIDES) for box in boxes]).flatten() == level
        assert places.any() or level == 3  # which is for regions of 448 pixels on
        moved = [box - 2 * 2**level for box in boxes]
        np.testing.assert_allclose(ours[places], theirs(maps, moved, sizes)[places], atol=1e-5)


def test_masks_are_learned_where_they_are():
    """A mask that says exactly what its target does, pasted back, is nearly the object's."""
    mask = torch.zeros(1, 96, 128, dtype=torch.bool)
    rows, columns = torch.meshgrid(torch.arange(96), torch.arange(128), indexing="ij")
    mask[0] = (rows - 40) ** 2 + (columns - 60) ** 2 < 81
    box = torch.tensor([[51.0, 31, 70, 50]])
    heads = detector().train().detection_head.roi_heads
    told = []

    def asked(features, boxes, sizes):
        told.append(boxes[0])
        return torch.zeros(1, 4, 28, 28)

    heads.mask_logits = asked
    captured = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            rcnn.F, "binary_cross_entropy_with_logits", lambda logits, drawn: captured.append(drawn) or logits.sum()
        )
        index = [torch.tensor([0])]
        heads.mask_loss({}, [box], [(96, 128)], index, [torch.tensor([1])], [{"masks": mask}])
    pasted = paste_masks(captured[0].numpy(), box.numpy(), (96, 128))[0]
    expected = mask[0].numpy()
    assert (pasted & expected).sum() / (pasted | expected).sum() > 0.97


def test_every_weight_learns_but_the_frozen_ones():
    model = detector(frozen_stages=2).train()
    model(pictures(), labels()).loss.backward()
    untouched = [name for name, p in model.named_parameters() if p.grad is None]
    assert untouched == [name for name, p in model.named_parameters() if not p.requires_grad]
    assert any(name.startswith("swiftformer.encoder.network.0") for name in untouched)


def test_boxes_stay_exact_in_half_precision():
    model = detector()
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        found = model(pictures())
    assert found.boxes.dtype == found.scores.dtype == torch.float32
    assert len((found.boxes * 1000 % 1).unique()) > 20  # bfloat16 would leave few values


@pytest.mark.parametrize("kind", [SwiftFormerForObjectDetection, SwiftFormerForInstanceSegmentation])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_other_types(kind, dtype):
    model = detector(kind)
    with torch.inference_mode():
        expected = model(pictures())
        found = model.to(dtype)(pictures().to(dtype))
    assert found.boxes.dtype == found.scores.dtype == torch.float32
    assert (found.scores[:, 0] - expected.scores[:, 0]).abs().max() < 0.05


def test_a_padded_picture_has_no_boxes_in_its_padding():
    model, mask = detector(), torch.ones(2, 96, 128)
    mask[1, 64:], mask[1, :, 96:] = 0, 0
    with torch.inference_mode():
        found = model(pictures(), pixel_mask=mask)
    boxes = box_convert(found.boxes, "cxcywh", "xyxy")
    assert boxes[1, :, 2].max() <= 96 / 128 + 1e-6 and boxes[1, :, 3].max() <= 64 / 96 + 1e-6
    with torch.inference_mode():
        assert torch.equal(found.boxes[0], model(pictures()).boxes[0])
    with pytest.raises(ValueError, match=r"expected a pixel_mask of shape \(2, 96, 128\), found \(2, 64, 128\)"):
        model(pictures(), pixel_mask=mask[:, :64])


def test_bad_labels():
    model = detector().train()
    with pytest.raises(ValueError, match="expected labels of 2 pictures to train on, found none"):
        model(pictures())
    beyond = labels()
    beyond[0]["class_labels"] = torch.tensor([3, 0])
    with pytest.raises(ValueError, match=r"class_labels from 0 to 2, found 0 to 3"):
        model(pictures(), beyond)
    with pytest.raises(ValueError, match=r"masks of shape \(2, 96, 128\), found none"):
        model(pictures(), labels(masks=False))
    pixels, torchvision = labels(), [{"labels": one["class_labels"], "boxes": one["boxes"]} for one in labels()]
    pixels[0]["boxes"] = pixels[0]["boxes"] * 96
    with pytest.raises(ValueError, match="expected boxes as shares of the picture, from 0 to 1, found"):
        model(pictures(), pixels)
    pixels[0]["boxes"] = pixels[0]["boxes"] * torch.nan
    with pytest.raises(ValueError, match="expected boxes as shares of the picture, from 0 to 1, found nan"):
        model(pictures(), pixels)
    with pytest.raises(ValueError, match="expected class_labels in labels, found labels, boxes"):
        model(pictures(), torchvision)
    flat = labels()
    flat[0]["boxes"][1, 2] = 0
    with pytest.raises(ValueError, match="expected boxes with a width and a height, found one of 0"):
        model(pictures(), flat)
    short = labels()
    short[0]["boxes"] = short[0]["boxes"][:1]
    with pytest.raises(ValueError, match=r"boxes of shape \(2, 4\), found \(1, 4\)"):
        model(pictures(), short)


def test_bad_configurations():
    with pytest.raises(ValueError, match="expected 5 anchor_sizes"):
        detector(anchor_sizes=[8, 16])
    with pytest.raises(ValueError, match="detection_nms_threshold must be in"):
        detector(detection_nms_threshold=0.0)
    with pytest.raises(ValueError, match="expected at least 1 class"):
        detector(id2label={}, label2id={})
    with pytest.raises(ValueError, match="expected a down_stride of 2 for a pyramid of maps, found 4"):
        detector(down_stride=4)


def test_checkpoints(tmp_path):
    model = detector()
    save(model, tmp_path / "instances")
    assert stored_task(tmp_path / "instances") == "instances"
    again, pixels = load(tmp_path / "instances"), pictures()
    assert isinstance(again, SwiftFormerForInstanceSegmentation) and again.load_report.missing == []
    with torch.inference_mode():
        assert torch.equal(again(pixels).boxes, model(pixels).boxes)
    theirs = SwiftFormerForInstanceSegmentation.from_pretrained(tmp_path / "instances").eval()
    with torch.inference_mode():
        assert torch.equal(theirs(pixels).masks, model(pixels).masks)
    boxes_only = load(tmp_path / "instances", task="detection")
    assert type(boxes_only) is SwiftFormerForObjectDetection
    save(boxes_only, tmp_path / "detection")
    assert stored_task(tmp_path / "detection") == "detection"
    with_masks = load(tmp_path / "detection", task="instances", labels=["ring", "disc", "square"])
    assert all(".mask_" in name for name in with_masks.load_report.missing)
    others = load(tmp_path / "instances", labels=["cat", "dog"])
    assert others.num_labels == 2 and others.load_report.head_replaced
    assert all("predictor" in name for name in others.load_report.missing)
    assert load(tmp_path / "instances", task="backbone").out_features == ["stage1", "stage2", "stage3", "stage4"]
    with pytest.raises(ValueError, match="authors has no names for a detection head"):
        save(model, tmp_path / "file.pth", format="authors")


def test_starts_from_a_classifier():
    narrow = {"fpn_channels": 16, "box_channels": 16}
    model = swiftformer.load("swiftformer-xs-cifar10", task="detection", labels=["cell"], **narrow)
    classifier = swiftformer.load("swiftformer-xs-cifar10")
    assert torch.equal(
        model.swiftformer.encoder.network[0].blocks[0].point_wise_conv1.weight,
        classifier.swiftformer.encoder.network[0].blocks[0].point_wise_conv1.weight,
    )
    with pytest.raises(ValueError, match="expected a detection head, found none"):
        swiftformer.load("swiftformer-xs-cifar10", task="detection")


def assert_same_objects(found, expected):
    for name in ("scores", "labels", "boxes", "masks"):
        if expected.get(name) is not None:
            np.testing.assert_allclose(found[name], expected[name], atol=1e-4, err_msg=name)


@pytest.mark.parametrize("kind", [SwiftFormerForObjectDetection, SwiftFormerForInstanceSegmentation])
@pytest.mark.parametrize("size", [(96, 128), (75, 101)])
def test_the_deployed_form_finds_the_same(kind, size):
    model, pixels = detector(kind), pictures(1, size)
    fused = fuse(model)
    with torch.inference_mode():
        expected, found = model(pixels), fused(pixels)
    assert fused.outputs == ("scores", "labels", "boxes", "masks")[: len(found)]
    assert_same_objects(dict(zip(fused.outputs, found, strict=True)), expected)


def test_more_places_than_there_are_candidates():
    model = detector(detections_per_image=300, detection_proposals=20)
    with torch.inference_mode():
        expected, found = model(pictures(1)), fuse(model)(pictures(1))
    assert found[0].shape == (1, 300)
    assert_same_objects(dict(zip(fuse(model).outputs, found, strict=True)), expected)


def test_transformers_trainer(tmp_path):
    """It asks for no loss where it evaluates, if it is told that there are no labels."""

    class Rectangles(torch.utils.data.Dataset):
        def __len__(self):
            return 4

        def __getitem__(self, i):
            return {"pixel_values": pictures(1, (64, 64))[0], "labels": labels((64, 64), masks=False)[i % 2]}

    def collate(samples):
        return {
            "pixel_values": torch.stack([sample["pixel_values"] for sample in samples]),
            "labels": [sample["labels"] for sample in samples],
        }

    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path), max_steps=2, per_device_train_batch_size=2, use_cpu=True, report_to=[],
        eval_strategy="steps", eval_steps=1, label_names=[], disable_tqdm=True,
    )  # fmt: skip
    model = detector(SwiftFormerForObjectDetection)
    trainer = transformers.Trainer(model, arguments, collate, Rectangles(), Rectangles())
    assert np.isfinite(trainer.train().training_loss) and trainer.evaluate()["eval_runtime"] > 0


def test_a_fused_model_detects_as_it_is(tmp_path):
    model = detector()
    model.preprocessing = Preprocessing(size=(64, 64), resize="whole", resize_to=64)
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (80, 60, 3), np.uint8))
    (found,), (expected,) = (swiftformer.detect(picture, net, threshold=0.0) for net in (fuse(model), model))
    np.testing.assert_allclose(found.detections.scores, expected.detections.scores, atol=1e-4)
    assert found.labels == expected.labels and found.detections.masks is not None


def test_an_export_that_takes_pixels_finds_the_same(tmp_path):
    """Also in what fills up a picture of other proportions."""
    pytest.importorskip("openvino")
    model = detector(SwiftFormerForObjectDetection)
    model.preprocessing = Preprocessing(size=(64, 96), resize="fit")
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (80, 60, 3), np.uint8))
    assert export(model, tmp_path / "a", "openvino", normalize=True).comparison["objects"] > 0
    (usual,), (raw,) = (swiftformer.detect(picture, net, threshold=0.0) for net in (model, tmp_path / "a"))
    np.testing.assert_allclose(raw.detections.scores, usual.detections.scores, atol=1e-4)


@pytest.mark.parametrize(("shortest", "longest"), [(64, 100), (64, None), (None, None)])
@pytest.mark.parametrize("kind", ["rcnn", "d-fine"])
def test_the_image_processor_that_is_saved_understands_the_model(tmp_path, kind, shortest, longest):
    """One query that is sure of nothing, where DETR's processor would see an object."""
    preprocessing = Preprocessing(size=(64, 64), resize="whole", resize_to=shortest, longest=longest)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(preprocessing.to_dict(kind)))
    processor = AutoImageProcessor.from_pretrained(tmp_path)
    assert Preprocessing.from_dict(preprocessing.to_dict(kind)) == preprocessing
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (80, 60, 3), np.uint8))
    shape = processor(picture, return_tensors="pt").pixel_values.shape
    assert shape[2:] == preprocessing.prepare(picture).shape[1:]
    unsure = {"rcnn": [-4.0, -6.0, -7.0, 5.0], "d-fine": [-4.0, -6.0, -7.0]}[kind]
    output = SwiftFormerDetectionOutput(logits=torch.tensor([[unsure]]), pred_boxes=torch.full((1, 1, 4), 0.5))
    (found,) = processor.post_process_object_detection(output, threshold=0.0, target_sizes=[(80, 60)])
    assert found["scores"].max() < 0.02


def test_engine_takes_several_pictures(tmp_path):
    model, pixels = detector(), pictures()
    save(model, tmp_path / "model")
    engine = open_engine(tmp_path / "model", "torch")
    with torch.inference_mode():
        expected = model(pixels)
    assert_same_objects({k: torch.from_numpy(v) for k, v in engine(pixels.numpy()).items()}, expected)
    with pytest.raises(EngineError, match="expected fp32 for a detector, found bf16"):
        TorchEngine.fused(fuse(model), precision="bf16")


@pytest.mark.parametrize(
    "format", ["onnx", *(pytest.param(name, marks=pytest.mark.exhaustive) for name in ("openvino", "torch-export"))]
)
def test_exports(format, tmp_path):
    pytest.importorskip({"onnx": "onnxruntime"}.get(format, format.partition("-")[0]))
    model = detector()
    artifact = export(model, tmp_path / "artifact", format, size=(96, 128))
    assert artifact.task == "instances" and artifact.outputs == ("scores", "labels", "boxes", "masks")
    assert artifact.comparison["top1_agreement"] >= 0.95
    engine = open_engine(tmp_path / "artifact")
    with torch.inference_mode():
        expected = model(pictures())
    found = engine(pictures().numpy())
    assert_same_objects({k: torch.from_numpy(v) for k, v in found.items()}, expected)
    expected = {name: expected[name].numpy() for name in found}
    objects, hits = found_again(found, expected)
    assert objects == hits > 0
    assert found_again(found | {"masks": 0 * found["masks"]}, expected)[1] < hits
    assert found_again(found | {"boxes": found["boxes"] + 0.01}, expected)[1] == 0
    if format == "torch-export":  # whose operators are torchvision's, which nothing has imported yet
        code = f"from swiftformer.engines import open_engine; open_engine({str(tmp_path / 'artifact')!r})"
        subprocess.run([sys.executable, "-c", code], check=True)


def test_exports_that_are_refused(tmp_path):
    model = detector(SwiftFormerForObjectDetection)
    with pytest.raises(ExportError, match="detectors are exported to onnx fp32; openvino fp32 or fp16"):
        export(model, tmp_path / "a", "litert")
    with pytest.raises(ExportError, match="found onnx int8"):  # before pictures to calibrate with are asked for
        export(model, tmp_path / "a", "onnx", precision="int8")
    with pytest.raises(ExportError, match="one picture of a fixed size: found batch 4"):
        export(model, tmp_path / "a", "onnx", batch=4)
    with pytest.raises(ExportError, match="multiples of 32 for a detector, found 100x128"):
        export(model, tmp_path / "a", "onnx", size=(100, 128))
    assert not (tmp_path / "a").exists()


def test_output_for_transformers_own_post_processing():
    """DETR's image processor finds the same in `logits` and `pred_boxes`."""
    from transformers import DetrImageProcessor

    with torch.inference_mode():
        found = detector()(pictures())
    theirs = DetrImageProcessor().post_process_object_detection(found, threshold=0.2, target_sizes=[(96, 128)] * 2)
    ours = post_process_object_detection(found, 0.2, [(96, 128)] * 2)
    for one, other in zip(theirs, ours, strict=True):
        assert len(other["scores"]) > 0
        np.testing.assert_allclose(one["scores"], other["scores"], atol=1e-5)
        np.testing.assert_allclose(one["boxes"], other["boxes"], atol=1e-3)
        assert torch.equal(one["labels"], other["labels"])


def test_post_processing_as_transformers_does_it():
    outputs = SwiftFormerDetectionOutput(
        scores=torch.tensor([[0.9, 0.6, 0.0], [0.3, 0.0, 0.0]]),
        labels=torch.tensor([[2, 0, 0], [1, 0, 0]]),
        boxes=torch.tensor([[[0.5, 0.5, 0.2, 0.4], [0.5, 0.5, 1.0, 1.0], [0, 0, 0, 0]]] * 2),
        masks=torch.ones(2, 3, 28, 28),
    )
    first, second = post_process_object_detection(outputs, 0.5, [(100, 200), (50, 50)])
    np.testing.assert_allclose(first["boxes"], [[80, 30, 120, 70], [0, 0, 200, 100]], atol=1e-4)
    assert first["labels"].tolist() == [2, 0] and len(second["scores"]) == 0
    np.testing.assert_allclose(post_process_object_detection(outputs)[0]["boxes"][0], [0.4, 0.3, 0.6, 0.7], atol=1e-6)
    first, second = post_process_instance_segmentation(outputs, 0.5, torch.tensor([[100, 200], [50, 50]]))
    assert (first["segmentation"] == 0).sum() == 40 * 40 and 18_300 < (first["segmentation"] == 1).sum() <= 18_400
    assert [entry["label_id"] for entry in first["segments_info"]] == [2, 0]
    assert (second["segmentation"] == -1).all() and second["segments_info"] == []
    maps = post_process_instance_segmentation(outputs, 0.5, [(100, 200), (50, 50)], return_binary_maps=True)
    assert maps[0]["segmentation"].sum(dim=(1, 2)).tolist() == [1600, (first["segmentation"] == 1).sum() + 1600]
    with pytest.raises(ValueError, match="expected 2 target sizes, one for each picture, found 1"):
        post_process_object_detection(outputs, 0.5, [(100, 200)])
    with pytest.raises(ValueError, match="expected target_sizes, found none"):
        post_process_instance_segmentation(outputs)


@pytest.mark.parametrize("size", [(241, 321), (300, 300), (96, 97), (33, 65)])
def test_anchors_lie_at_the_strides_whatever_the_size(size):
    model = detector(SwiftFormerForObjectDetection)
    seen = []
    model.detection_head.rpn.anchor_generator.register_forward_hook(lambda module, given, output: seen.append(output))
    with torch.inference_mode():
        model(pictures(1, size))
    centres = (seen[0][0][:, :2] + seen[0][0][:, 2:]) / 2
    expected, (height, width) = [], size
    for stride in (4, 8, 16, 32, 64):
        grid = torch.meshgrid(torch.arange(0, height, stride), torch.arange(0, width, stride), indexing="ij")
        expected.append(torch.stack(grid[::-1], dim=-1).reshape(-1, 1, 2).expand(-1, 3, 2).reshape(-1, 2))
    np.testing.assert_allclose(centres, torch.cat(expected), atol=0.51)  # sides are whole numbers


def test_a_picture_in_a_larger_canvas_is_looked_at_as_in_a_smaller_one():
    """Where there is nothing but zeros around it, and whatever else is in the batch."""
    model = detector(SwiftFormerForObjectDetection)
    canvas, mask = torch.zeros(2, 3, 256, 256), torch.zeros(2, 256, 256)
    canvas[0, :, :96, :128], mask[0, :96, :128] = pictures(1), 1
    canvas[1], mask[1] = pictures(1, (256, 256)), 1
    with torch.inference_mode():
        alone, together = model(canvas[:1], pixel_mask=mask[:1]), model(canvas, pixel_mask=mask)
    np.testing.assert_allclose(together.boxes[0], alone.boxes[0], atol=1e-5)
    np.testing.assert_allclose(together.scores[0], alone.scores[0], atol=1e-5)
