import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from conftest import relative, tiny
from swiftformer.convolutions import MOST, DepthWiseConv2d, PointWiseConv2d, _SmallMaps


def plain(conv):
    """The same convolution as torch has it."""
    twin = nn.Conv2d(conv.in_channels, conv.out_channels, 3, padding=1, groups=conv.groups).to(conv.weight.dtype)
    twin.load_state_dict(conv.state_dict())
    return twin


def gradients(conv, x, upstream):
    x = x.detach().requires_grad_()
    output = conv(x)
    return output, torch.autograd.grad(output, (x, conv.weight, conv.bias), upstream.to(output.dtype))


@settings(max_examples=40, deadline=None)
@given(
    batch=st.integers(1, 4), dim=st.integers(1, 9), height=st.integers(1, 5), width=st.integers(1, 5),
    channels_last=st.booleans(),
)  # fmt: skip
def test_outputs_and_gradients_are_torchs(batch, dim, height, width, channels_last):
    conv = DepthWiseConv2d(dim).double()
    x, upstream = torch.randn(2, batch, dim, height, width, dtype=torch.float64)
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    output, found = gradients(conv, x, upstream)
    expected, wanted = gradients(plain(conv), x, upstream)
    assert torch.equal(output, expected)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other)


def test_gradients_are_exact():
    conv = DepthWiseConv2d(3).double()
    x = torch.randn(2, 3, 2, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(_SmallMaps.apply, (x, conv.weight, conv.bias))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_under_autocast(dtype):
    conv = DepthWiseConv2d(8)
    x, upstream = torch.randn(2, 16, 8, 2, 2)
    with torch.autocast("cpu", dtype):
        output, found = gradients(conv, x, upstream)
        expected, _ = gradients(plain(conv), x, upstream)
    assert output.dtype == dtype and torch.equal(output, expected)
    _, exact = gradients(plain(conv).double(), x.double(), upstream.double())
    assert [gradient.dtype for gradient in found] == [torch.float32] * 3
    assert max(relative(one.double(), other) for one, other in zip(found, exact, strict=True)) < 2e-2


def test_in_evaluation_mode_nothing_but_a_convolution(monkeypatch):
    monkeypatch.setattr(_SmallMaps, "apply", lambda *arguments: pytest.fail("the gradient of its own was asked for"))
    DepthWiseConv2d(4).eval()(torch.randn(1, 4, 2, 2))


def test_frozen_weights_and_parts_that_do_not_learn():
    conv = DepthWiseConv2d(4).requires_grad_(False)
    x = torch.randn(1, 4, 2, 2, requires_grad=True)
    conv(x).sum().backward()
    assert x.grad is not None and conv.weight.grad is None
    conv.weight.requires_grad_()
    conv(x.detach()).sum().backward()
    assert conv.weight.grad is not None and conv.bias.grad is None


def test_a_network_on_small_pictures_learns_as_with_torchs_convolutions():
    torch.manual_seed(0)
    net = tiny().double().train()
    other = copy.deepcopy(net)
    for block in other.modules():
        if hasattr(block, "depth_wise_conv"):
            block.depth_wise_conv = plain(block.depth_wise_conv)
    x = torch.randn(3, 3, 40, 64, dtype=torch.float64)
    for each in (net, other):
        each(x).logits.square().sum().backward()
    assert net.swiftformer.encoder.network[-1].blocks[-1].local_representation.depth_wise_conv.weight.grad.any()
    for (name, one), two in zip(net.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(one.grad, two.grad, msg=name)


@pytest.mark.exhaustive
def test_compiled():
    conv = DepthWiseConv2d(8)
    x, upstream = torch.randn(2, 16, 8, 2, 2)
    compiled = torch.compile(conv, dynamic=False, fullgraph=True)
    with torch.autocast("cpu", torch.bfloat16):
        output, found = gradients(conv, x, upstream)
        x.requires_grad_()
        again = compiled(x)
        other = torch.autograd.grad(again, (x, conv.weight, conv.bias), upstream.to(again.dtype))
    assert relative(again, output) < 1e-2
    assert max(relative(one, two) for one, two in zip(other, found, strict=True)) < 1e-2


def plain_point_wise(conv):
    twin = nn.Conv2d(conv.in_channels, conv.out_channels, 1).to(conv.weight.dtype)
    twin.load_state_dict(conv.state_dict())
    return twin


@settings(max_examples=40, deadline=None)
@given(
    batch=st.integers(1, 4), channels=st.integers(1, 9), more=st.integers(1, 9), height=st.integers(1, 6),
    width=st.integers(1, 6), channels_last=st.booleans(),
)  # fmt: skip
def test_point_wise_convolutions_are_torchs(batch, channels, more, height, width, channels_last):
    conv = PointWiseConv2d(channels, more).double()
    x = torch.randn(batch, channels, height, width, dtype=torch.float64)
    upstream = torch.randn(batch, more, height, width, dtype=torch.float64)
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    output, found = gradients(conv, x, upstream)
    expected, wanted = gradients(plain_point_wise(conv), x, upstream)
    torch.testing.assert_close(output, expected)
    if channels_last and height * width <= MOST:
        assert output.is_contiguous(memory_format=torch.channels_last)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other)


def test_point_wise_convolutions_of_small_maps_are_products_where_they_learn(monkeypatch):
    calls = []
    monkeypatch.setattr(F, "linear", lambda *arguments: calls.append(1) or torch._C._nn.linear(*arguments))
    conv = PointWiseConv2d(8, 16)
    small, large = (torch.randn(2, 8, side, side).contiguous(memory_format=torch.channels_last) for side in (4, 5))
    for x in (small, large, small.contiguous()):
        conv(x)
    assert len(calls) == 1
    with torch.no_grad():
        conv(small)
    conv.eval()(small)
    assert len(calls) == 1
    conv.train()
    with torch.autocast("cpu", torch.bfloat16):
        assert conv(small).dtype == torch.bfloat16


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_gradients_have_the_strides_of_the_weights(memory_format):
    conv = PointWiseConv2d(8, 16).to(memory_format=memory_format)
    conv(torch.randn(2, 8, 4, 4).contiguous(memory_format=torch.channels_last)).sum().backward()
    assert conv.weight.grad.stride() == conv.weight.stride()
