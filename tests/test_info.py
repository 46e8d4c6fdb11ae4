import pytest
import torch

from conftest import TINY
from swiftformer import SwiftFormerConfig, SwiftFormerForImageClassification
from swiftformer.info import complexity
from swiftformer.variants import VARIANTS


@pytest.mark.parametrize("variant", VARIANTS)
def test_published_parameters_and_gmacs(variant):
    found = complexity(SwiftFormerConfig.from_variant(variant))
    assert found.parameters == VARIANTS[variant].parameters
    assert round(found.gmacs, 1) == VARIANTS[variant].gmacs


def test_counts_by_hand():
    """Multiply-accumulates of every convolution and linear layer, counted with hooks."""
    config = SwiftFormerConfig(**TINY, num_labels=7)
    model = SwiftFormerForImageClassification(config).eval()
    macs = 0

    def hook(module, inputs, output):
        nonlocal macs
        per_output = module.weight[0].numel()
        macs += output.numel() * per_output

    for module in model.modules():
        if isinstance(module, (torch.nn.Conv2d, torch.nn.Linear)):
            module.register_forward_hook(hook)
    model(torch.zeros(1, 3, 96, 64))
    found = complexity(config, (96, 64))
    assert abs(found.gmacs * 1e9 - macs) <= 0.001 * macs  # the pooling of the l2 form is a matrix product as well
    assert found.parameters == sum(p.numel() for p in model.parameters())
    assert found.parameters == sum(layer.parameters for layer in found.layers)


def test_rows():
    names = [layer.name for layer in complexity(SwiftFormerConfig(**TINY), (65, 97)).layers]
    between = [f"{name}{i}" for i in (1, 2, 3) for name in ("stage", "downsampling")]
    assert names == ["stem", *between, "stage4", "heads"]
    shapes = [layer.shape for layer in complexity(SwiftFormerConfig(**TINY), (65, 97)).layers]
    assert shapes[0] == (16, 17, 25) and shapes[-2] == (48, 3, 4)
