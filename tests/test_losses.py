import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from timm.loss import LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from torch.nn import functional as F

from swiftformer.train.losses import ClassificationLoss, balanced_weights


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.4])
def test_without_weights_it_is_that_of_timm_and_of_torch(smoothing):
    logits, targets = 5 * torch.randn(32, 11), torch.randint(0, 11, (32,))
    found = ClassificationLoss(smoothing)(logits, targets)
    torch.testing.assert_close(found, LabelSmoothingCrossEntropy(smoothing)(logits, targets), rtol=1e-6, atol=0)
    torch.testing.assert_close(found, F.cross_entropy(logits, targets, label_smoothing=smoothing), rtol=1e-6, atol=0)
    soft = torch.rand(32, 11).softmax(1)
    found = ClassificationLoss(smoothing)(logits, soft)
    torch.testing.assert_close(found, SoftTargetCrossEntropy()(logits, soft), rtol=1e-6, atol=0)


def test_weights_are_those_of_torch_on_distributions():
    logits, targets, weights = torch.randn(32, 5), torch.randint(0, 5, (32,)), torch.rand(5) + 0.1
    smoothed = 0.9 * F.one_hot(targets, 5) + 0.1 / 5
    expected = F.cross_entropy(logits, smoothed, weight=weights)
    torch.testing.assert_close(ClassificationLoss(0.1, weights)(logits, targets), expected)
    torch.testing.assert_close(ClassificationLoss(0.1, weights)(logits, smoothed), expected)


@given(st.lists(st.integers(0, 6), min_size=1, max_size=200))
def test_balanced_weights(labels):
    weights = balanced_weights(labels, 8)
    assert weights[torch.tensor(labels)].mean().item() == pytest.approx(1, abs=1e-4)
    shares = torch.bincount(torch.tensor(labels), minlength=8) * weights
    assert torch.allclose(shares[shares > 0], shares.max(), rtol=1e-4) and weights[7] == 0
