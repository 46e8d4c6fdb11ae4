import pytest
import torch

from conftest import TINY
from swiftformer import (
    Preprocessing,
    SwiftFormerConfig,
    SwiftFormerForImageClassification,
    SwiftFormerForSemanticSegmentation,
    save,
)
from swiftformer.info import complexity, describe
from swiftformer.model_kinds import model_class
from swiftformer.variants import VARIANTS


@pytest.mark.parametrize("variant", VARIANTS)
def test_published_parameters_and_gmacs(variant):
    found = complexity(SwiftFormerConfig.from_variant(variant))
    assert found.parameters == VARIANTS[variant].parameters
    assert round(found.gmacs, 1) == VARIANTS[variant].gmacs


@pytest.mark.parametrize(
    ("task", "kind"),
    [("classification", SwiftFormerForImageClassification), ("segmentation", SwiftFormerForSemanticSegmentation)],
)
def test_counts_by_hand(task, kind, monkeypatch):
    """Multiply-accumulates of every convolution and linear layer, counted with hooks."""
    config = SwiftFormerConfig(**TINY, num_labels=7, fpn_channels=16, segmentation_channels=8)
    model = kind(config).eval()
    macs = 0

    def hook(module, inputs, output):
        nonlocal macs
        per_output = module.weight[0].numel()
        macs += output.numel() * per_output

    for module in model.modules():
        if isinstance(module, (torch.nn.Conv2d, torch.nn.Linear)):
            module.register_forward_hook(hook)
    with monkeypatch.context() as plain:  # hooks see no layer whose weights are scaled
        for place in ("mlp", "attention"):
            plain.setattr(f"swiftformer.{place}.scaled", lambda layer, x, scale: layer(x))
        model(torch.zeros(1, 3, 96, 64))
    found = complexity(config, (96, 64), task)
    assert abs(found.gmacs * 1e9 - macs) <= 0.001 * macs  # the pooling of the l2 form is a matrix product as well
    assert found.parameters == sum(p.numel() for p in model.parameters())
    assert found.parameters == sum(layer.parameters for layer in found.layers)


def test_rows():
    names = [layer.name for layer in complexity(SwiftFormerConfig(**TINY), (65, 97)).layers]
    between = [f"{name}{i}" for i in (1, 2, 3) for name in ("stage", "downsampling")]
    assert names == ["stem", *between, "stage4", "heads"]
    shapes = [layer.shape for layer in complexity(SwiftFormerConfig(**TINY), (65, 97)).layers]
    assert shapes[0] == (16, 17, 25) and shapes[-2] == (48, 3, 4)


def test_a_segmentation_model(tmp_path):
    """At the size that it was trained at, or another; the rows of its backbone are those of a backbone."""
    names = {0: "sky", 1: "road", 2: "tree"}
    config = SwiftFormerConfig(**TINY, id2label=names, fpn_channels=16, segmentation_channels=8)
    model = SwiftFormerForSemanticSegmentation(config)
    model.preprocessing = Preprocessing(size=(64, 96), resize="whole", resize_to=64)
    found = describe(str(save(model, tmp_path / "model")))
    assert found["size"] == [64, 96] and found["classes"] == 3 and found["form"] == config.form
    assert found["task"] == "segmentation" and found["preprocessing"] == model.preprocessing.to_dict()
    head = sum(p.numel() for p in [*model.decode_head.parameters(), *model.hidden_states_norms.parameters()])
    assert found["head"]["parameters"] == head and found["layers"][-1]["shape"] == [3, 16, 24]
    assert found["backbone"]["parameters"] == sum(p.numel() for p in model.swiftformer.parameters())
    assert found["gmacs"] == pytest.approx(found["head"]["gmacs"] + found["backbone"]["gmacs"])
    backbone = complexity(model.config, (64, 96), "backbone").to_dict()
    assert backbone["layers"] == found["layers"][:-1] and backbone["head"] == {"parameters": 0, "gmacs": 0}
    assert describe(str(tmp_path / "model"), (128, 192))["gmacs"] == pytest.approx(4 * found["gmacs"], rel=0.01)
    with pytest.raises(ValueError, match="expected a model for classification, segmentation, detection, .* found one"):
        complexity(config, task="pose")


DETECTORS = {
    "fpn_channels": 16,
    "box_channels": 24,
    "mask_channels": 8,
    "detection_proposals": 20,
    "detections_per_image": 5,
    "detr_channels": 32,
    "detr_ffn_channels": 48,
    "detr_queries": 20,
}


@pytest.mark.parametrize(("task", "detector"), [("detection", "rcnn"), ("instances", "rcnn"), ("detection", "d-fine")])
def test_a_detector(tmp_path, task, detector):
    names = {0: "cat", 1: "dog"}
    config = SwiftFormerConfig(**TINY, **DETECTORS, id2label=names, detector=detector)
    model = model_class(task, detector)(config)
    model.preprocessing = Preprocessing(size=(64, 96), resize="whole", resize_to=64)
    found = describe(str(save(model, tmp_path / "model")))
    assert found["task"] == task and found["size"] == [64, 96] and found["classes"] == 2
    assert found["parameters"] == sum(p.numel() for p in model.parameters())
    assert found["backbone"]["parameters"] == sum(p.numel() for p in model.swiftformer.parameters())
    assert found["layers"][-1]["name"] == "head" and found["layers"][-1]["shape"] == [5, 4]
    assert found["layers"][:-1] == complexity(config, (64, 96), "backbone").to_dict()["layers"]
    macs = 0

    def count(module, inputs, output):
        nonlocal macs
        macs += output.numel() * module.weight[0].numel()

    if detector == "rcnn":  # which looks at no more proposals than there are, and masks no more objects
        head = model.detection_head
        for module in [*head.fpn.modules(), *head.rpn.head.modules()]:
            if isinstance(module, torch.nn.Conv2d):
                module.register_forward_hook(count)
        model.eval()(torch.zeros(1, 3, 64, 96))
        macs += 20 * (16 * 49 * 24 + 24 * 24 + 24 * 3 + 24 * 12)
        if task == "instances":  # four convolutions on 14x14 pixels, one to 28x28, and one there
            macs += 5 * (14**2 * 9 * (16 * 8 + 3 * 8 * 8) + 14**2 * 4 * 8 * 8 + 28**2 * 8 * 3)
        assert found["head"]["gmacs"] * 1e9 == pytest.approx(macs, rel=1e-6)
    else:
        assert found["head"]["gmacs"] > 0
