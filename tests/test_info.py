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
def test_counts_by_hand(task, kind):
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
    with pytest.raises(ValueError, match="expected a model for classification, segmentation, backbone to count"):
        complexity(config, task="pose")
