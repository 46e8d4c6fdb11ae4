"""The kernels that training on a CPU takes from `swiftformer_native`: against torch, and inside of networks."""

import copy
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from conftest import relative, tiny
from swiftformer import convolutions, l2_normalization, training_kernels, training_operators
from swiftformer import mlp as mlp_module
from swiftformer.convolutions import DepthWiseConv2d, PointWiseConv2d
from swiftformer.l2_normalization import l2_normalize
from swiftformer.mlp import mlp
from swiftformer.model import DropPath
from swiftformer.training_kernels import GELU, BatchNorm2d, add_scaled
from swiftformer.training_operators import depth_wise, gelu, gelu_gradient, scaled_gradient, sum_with_scaled

KERNELS = training_operators.KERNELS
needs_kernels = pytest.mark.skipif(KERNELS is None, reason="needs swiftformer_native and AVX-512 BF16")
FINITE = torch.arange(65536, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)
FINITE = FINITE[FINITE.isfinite() & ((FINITE.abs() > 1e-36) | (FINITE == 0))]


def maps(*shape, dtype=torch.bfloat16, seed=0):
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)
    return values.contiguous(memory_format=torch.channels_last)


@needs_kernels
def test_gelu_of_all_numbers_is_the_rounded_exact_one():
    x = FINITE.double()
    exact = 0.5 * x * torch.special.erfc(-x / 2**0.5)  # torch's own GELU cancels where it is small
    seen = exact.abs() > 1e-36
    error = (gelu(FINITE).double() - exact).abs()[seen] / exact.abs()[seen]
    assert error.max() < 2**-8 + 1e-3  # half a unit in the last place, and what the polynomial adds


@needs_kernels
def test_the_slope_of_gelu_at_all_numbers():
    x = FINITE.double().requires_grad_()
    (exact,) = torch.autograd.grad(F.gelu(x).sum(), x)
    found = gelu_gradient(torch.ones_like(FINITE), FINITE).double()
    torch.testing.assert_close(found, exact, rtol=2**-8 + 1e-5, atol=2e-6)


@needs_kernels
@pytest.mark.parametrize("layout", ["channels last", "contiguous", "with gaps", "broadcast gradient"])
def test_gelu_in_any_layout(layout):
    x, gradient = maps(2, 5, 3, 4), maps(2, 5, 3, 4, seed=1)
    if layout == "contiguous":
        x = x.contiguous()
    if layout == "with gaps":
        x = maps(2, 5, 3, 8)[..., ::2]
    if layout == "broadcast gradient":
        gradient = torch.ones(1, 1, 1, 1, dtype=torch.bfloat16).expand(2, 5, 3, 4)
    x.requires_grad_()
    y = GELU()(x)
    (found,) = torch.autograd.grad(y, x, gradient)
    (wanted,) = torch.autograd.grad(F.gelu(x), x, gradient)
    assert relative(y, F.gelu(x)) < 1e-2 and relative(found, wanted) < 1e-2


@needs_kernels
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("channels", [1, 15, 16, 56, 220])
def test_scaled_sums(channels, dtype):
    x, branch = maps(3, channels, 5, 4, dtype=dtype), maps(3, channels, 5, 4, seed=1)
    scale = torch.linspace(1e-5, 1, channels).view(-1, 1, 1)
    inputs = [tensor.requires_grad_() for tensor in (x, scale, branch)]
    gradient = maps(3, channels, 5, 4, dtype=torch.float32, seed=2)
    found, wanted = sum_with_scaled(*inputs), x + scale * branch
    torch.testing.assert_close(found, wanted)
    assert found.dtype == torch.float32
    ours, torchs = (torch.autograd.grad(total, inputs, gradient) for total in (found, wanted))
    for one, other in zip(ours, torchs, strict=True):
        assert one.dtype == other.dtype
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@needs_kernels
def test_operators_keep_to_the_rules_of_torch():
    x, scale, bias = maps(2, 6, 3, 3).requires_grad_(), torch.rand(6, 1, 1).requires_grad_(), torch.rand(6)
    wide, weight = maps(2, 6, 3, 3, dtype=torch.float32), torch.rand(6).requires_grad_()
    half, one = x.detach(), weight.detach()
    operators = torch.ops.swiftformer
    torch.library.opcheck(operators.gelu.default, (x,))
    torch.library.opcheck(operators.gelu_gradient.default, (half, half))
    torch.library.opcheck(operators.sum_with_scaled.default, (wide, scale, x))
    torch.library.opcheck(operators.scaled_gradient.default, (wide, scale.detach(), half))
    torch.library.opcheck(operators.batch_norm.default, (x, weight, bias, 1e-5))
    torch.library.opcheck(operators.batch_norm_gradient.default, (half, half, one, one, one))
    taps = torch.rand(6, 1, 3, 3)
    torch.library.opcheck(operators.depth_wise.default, (wide, taps.clone().requires_grad_(), bias))
    torch.library.opcheck(operators.depth_wise_gradient.default, (half, wide, taps))
    weights = torch.rand(8, 6, 1, 1).requires_grad_(), torch.rand(8), torch.rand(6, 8, 1, 1), torch.rand(6)
    torch.library.opcheck(operators.mlp.default, (x, *weights))
    torch.library.opcheck(operators.mlp_gradient.default, (half, half, weights[0].detach(), *weights[1:3]))


@needs_kernels
@pytest.mark.parametrize("constant", [False, True])
def test_second_derivatives_are_refused(constant):
    """Also where what comes in is a constant, so that what goes out could be taken for one."""
    x = maps(2, 6, 3, 3).requires_grad_()
    upstream = maps(2, 6, 3, 3).requires_grad_(not constant)
    (first,) = torch.autograd.grad(gelu(x), x, upstream, create_graph=True)
    with pytest.raises(RuntimeError, match="a kernel's gradient is differentiated once only"):
        (x.sum() + first.square().sum()).backward()
    (plain,) = torch.autograd.grad(gelu(x), x, upstream)
    assert torch.equal(plain, first) and not plain.requires_grad


@needs_kernels
def test_function_transformations_are_torchs():
    """Kernels know nothing of them."""
    net, x = tiny().to(memory_format=torch.channels_last).train(), maps(2, 3, 32, 32, dtype=torch.float32)
    for norm in (module for module in net.modules() if isinstance(module, nn.BatchNorm2d)):
        norm.eval()  # torch itself changes no statistics there

    def loss(scale):
        with torch.autocast("cpu", torch.bfloat16):
            return net(scale * x).logits.float().square().mean()

    one = torch.ones(())
    found = torch.func.grad(loss)(one)
    learned = one.clone().requires_grad_()
    (wanted,) = torch.autograd.grad(loss(learned), learned)
    torch.testing.assert_close(found, wanted, rtol=0.1, atol=0.05)


@needs_kernels
@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("gelu", (torch.zeros(4, dtype=torch.uint8),)),
        ("batch_norm", (maps(1, 4, 2, 2), torch.ones(4).bfloat16(), torch.ones(4), 1e-5)),
        ("batch_norm", (maps(1, 4, 2, 2)[:, :0], torch.ones(0), torch.ones(0), 1e-5)),
        ("sum_with_scaled", (maps(1, 4, 2, 2), torch.ones(4, 1, 1).bfloat16(), maps(1, 4, 2, 2))),
        ("sum_with_scaled", (maps(1, 4, 2, 2), torch.ones(4, 1, 1), maps(1, 4, 2, 2, dtype=torch.float32))),
    ],
)
def test_operators_refuse_what_their_kernels_would_read_beyond(name, arguments):
    with pytest.raises(ValueError, match="expected"):
        getattr(torch.ops.swiftformer, name)(*arguments)


@needs_kernels
@pytest.mark.parametrize("channels", [1, 24, 56, 220])
@pytest.mark.parametrize("offset", [0.0, 100.0])
def test_batch_norm(channels, offset, monkeypatch):
    monkeypatch.setattr(training_kernels, "LARGE", 0)
    ours, exact = BatchNorm2d(channels, eps=1e-3, momentum=0.3), nn.BatchNorm2d(channels, eps=1e-3, momentum=0.3)
    nn.init.uniform_(ours.weight)
    nn.init.normal_(ours.bias)
    exact.load_state_dict(ours.state_dict())
    exact.double()
    x = (maps(8, channels, 37, 11, dtype=torch.float32) + offset).bfloat16().requires_grad_()
    wide, upstream = x.detach().double().requires_grad_(), maps(8, channels, 37, 11, seed=1)
    y, wanted = ours(x), exact(wide)
    assert y.dtype == torch.bfloat16
    found = torch.autograd.grad(y, (x, ours.weight, ours.bias), upstream)
    expected = torch.autograd.grad(wanted, (wide, exact.weight, exact.bias), upstream.double())
    for one, other in zip((y, *found), (wanted, *expected), strict=True):
        assert (one.double() - other).norm() < 3e-3 * other.norm()
    for name, buffer in ours.named_buffers():
        torch.testing.assert_close(buffer.double(), exact.get_buffer(name).double(), rtol=1e-5, atol=1e-6)


@needs_kernels
@settings(max_examples=40, deadline=None)
@given(
    shape=st.lists(st.integers(1, 9), min_size=1, max_size=3), channels=st.sampled_from([1, 15, 16, 17, 56]),
    layout=st.sampled_from(["rows", "columns", "one gradient for all"]), scale=st.sampled_from([1.0, 1e-6, 0.0, 1e15]),
)  # fmt: skip
def test_l2_normalize(shape, channels, layout, scale):
    def values(seed):
        some = torch.randn(*shape, channels, generator=torch.Generator().manual_seed(seed)).bfloat16()
        return some.transpose(0, -1).contiguous().transpose(0, -1) if layout == "columns" else some

    x, upstream = (scale * values(0)).requires_grad_(), values(1)
    if layout == "one gradient for all":
        upstream = torch.ones(1, dtype=torch.bfloat16).expand_as(x)
    y = l2_normalize(x, -1)
    (found,) = torch.autograd.grad(y, x, upstream)
    wide = x.detach().double().requires_grad_()
    exact = F.normalize(wide, dim=-1)
    (wanted,) = torch.autograd.grad(exact, wide, upstream.double())
    torch.testing.assert_close(y.double(), exact, rtol=2**-8, atol=1e-12)
    assert found.dtype == y.dtype == torch.bfloat16
    size = upstream.double().norm(dim=-1, keepdim=True) / wide.norm(dim=-1, keepdim=True).clamp_min(1e-12)
    # What is left across y of two values rounded to bfloat16.
    assert ((found.double() - wanted).abs() <= 0.01 * size).all()


@needs_kernels
@pytest.mark.parametrize("case", ["float32", "another dimension", "nothing", "one number"])
def test_other_l2_normalisations_are_torchs(case, monkeypatch):
    called = []
    monkeypatch.setattr(l2_normalization, "call_kernel", lambda name, *arguments: called.append(name))
    shape = {"nothing": (2, 5, 0), "one number": ()}.get(case, (2, 5, 6))
    x = torch.randn(shape).to(torch.float32 if case == "float32" else torch.bfloat16)
    dim = 1 if case == "another dimension" else -1
    y = l2_normalize(x.requires_grad_(), dim)
    torch.testing.assert_close(y, F.normalize(x.float(), dim=dim).to(x.dtype))
    assert not called


@needs_kernels
def test_second_derivatives_of_an_l2_normalisation():
    """Which the kernel has no part in."""
    x, upstream = torch.randn(4, 48).bfloat16().requires_grad_(), torch.randn(4, 48).bfloat16()
    wide = x.detach().double().requires_grad_()
    found = []
    for one, other, function in ((x, upstream, l2_normalize), (wide, upstream.double(), F.normalize)):
        (first,) = torch.autograd.grad(function(one, dim=-1), one, other, create_graph=True)
        found.append(torch.autograd.grad(first.double().square().sum(), one)[0].double())
    assert (found[0] - found[1]).norm() < 0.03 * found[1].norm()


@needs_kernels
def test_several_gradients_of_an_l2_normalisation_at_once():
    x = torch.randn(3, 4).bfloat16().requires_grad_()
    y, upstream = l2_normalize(x, -1), torch.randn(5, 3, 4).bfloat16()
    (found,) = torch.autograd.grad(y, x, upstream, is_grads_batched=True, retain_graph=True)
    wanted = [torch.autograd.grad(y, x, each, retain_graph=True)[0] for each in upstream]
    torch.testing.assert_close(found, torch.stack(wanted), rtol=2e-2, atol=2e-2)


@needs_kernels
def test_l2_normalisations_refuse_what_their_kernels_would_read_beyond():
    y, inverse = l2_normalization._by_kernel(torch.randn(3, 4).bfloat16())
    for gradient, factors in ((y[:2], inverse), (y, inverse[:2]), (y, inverse.double()), (y.float(), inverse)):
        with pytest.raises(ValueError, match="expected"):
            l2_normalization._gradient_by_kernel(gradient, y, factors)


@pytest.mark.parametrize("case", ["evaluation", "float32", "no momentum", "no weights", "small", "contiguous"])
def test_other_batch_norms_are_torchs(case, monkeypatch):
    monkeypatch.setattr(training_kernels, "batch_norm", lambda *arguments: pytest.fail("a kernel was called"))
    monkeypatch.setattr(training_kernels, "LARGE", 10**9 if case == "small" else 0)
    options = {"no momentum": {"momentum": None}, "no weights": {"affine": False}}.get(case, {})
    ours, torchs = BatchNorm2d(5, **options), nn.BatchNorm2d(5, **options)
    x = maps(4, 5, 3, 3, dtype=torch.float32 if case == "float32" else torch.bfloat16).requires_grad_()
    if case == "contiguous":
        x = x.contiguous()
    for norm in (ours, torchs):
        norm.train(case != "evaluation")
    torch.testing.assert_close(ours(x), torchs(x))
    assert all(torch.equal(a, b) for a, b in zip(ours.buffers(), torchs.buffers(), strict=True))


@needs_kernels
@settings(max_examples=40, deadline=None)
@given(
    batch=st.integers(1, 3), channels=st.sampled_from([1, 15, 16, 17, 56]), height=st.integers(1, 9),
    width=st.integers(1, 9), dtype=st.sampled_from([torch.float32, torch.bfloat16]), wide_gradient=st.booleans(),
)  # fmt: skip
def test_depth_wise_convolutions(batch, channels, height, width, dtype, wide_gradient):
    conv = DepthWiseConv2d(channels)
    x = maps(batch, channels, height, width, dtype=dtype).requires_grad_()
    upstream = maps(batch, channels, height, width, seed=1)
    with torch.autocast("cpu", torch.bfloat16):
        y = conv(x)
    if wide_gradient:
        upstream = torch.ones(1, 1, 1, 1, dtype=torch.bfloat16).expand_as(y)
    assert "depth_wise" in y.grad_fn.name() and y.dtype == torch.bfloat16
    assert y.is_contiguous(memory_format=torch.channels_last)
    found = torch.autograd.grad(y, (x, conv.weight, conv.bias), upstream)
    wide, exact = x.detach().double().requires_grad_(), copy.deepcopy(conv).double()
    wanted = exact(wide)
    expected = torch.autograd.grad(wanted, (wide, exact.weight, exact.bias), upstream.double())
    assert [gradient.dtype for gradient in found] == [dtype, torch.float32, torch.float32]
    torch.testing.assert_close(y.double(), wanted, rtol=2**-8, atol=1e-6)
    torch.testing.assert_close(found[0].double(), expected[0], rtol=2**-8, atol=1e-6)
    for one, other in zip(found[1:], expected[1:], strict=True):
        torch.testing.assert_close(one.double(), other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "case", ["evaluation", "float32", "float16", "no gradient", "frozen", "contiguous", "half", "dilated"]
)
def test_other_depth_wise_convolutions_are_torchs(case, monkeypatch):
    monkeypatch.setattr(convolutions, "depth_wise", lambda *arguments: pytest.fail("a kernel was called"))
    conv, x = DepthWiseConv2d(6).train(case != "evaluation"), maps(2, 6, 5, 4)
    conv.requires_grad_(case != "frozen")
    if case == "half":
        conv.bfloat16()
    if case == "contiguous":
        x = x.contiguous()
    if case == "dilated":
        conv.dilation = conv.padding = (2, 2)
    options = {"padding": conv.padding, "dilation": conv.dilation, "groups": 6}
    dtype = torch.float16 if case == "float16" else torch.bfloat16
    with torch.autocast("cpu", dtype, enabled=case != "float32"), torch.set_grad_enabled(case != "no gradient"):
        x = x.float() if case == "float32" else x
        torch.testing.assert_close(conv(x), F.conv2d(x, conv.weight, conv.bias, **options))


@needs_kernels
def test_depth_wise_convolutions_of_wrong_shapes_end_as_with_torch():
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(RuntimeError, match="expected input"):
        DepthWiseConv2d(6)(maps(2, 7, 4, 4))
    for shape in ((5, 1, 3, 3), (6, 1, 5, 5), (6, 1, 1, 1)):
        with pytest.raises(ValueError, match="expected weights of a 3x3 depth-wise convolution"):
            depth_wise(maps(2, 6, 4, 4), torch.rand(shape), torch.rand(6))
    with pytest.raises(ValueError, match="expected values of float32 or bfloat16, found 0"):
        depth_wise(maps(2, 6, 4, 0), torch.rand(6, 1, 3, 3), torch.rand(6))
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(RuntimeError, match="Kernel size can't be greater"):
        DepthWiseConv2d(6)(maps(2, 6, 4, 0))


@needs_kernels
def test_the_gradient_of_depth_wise_weights_has_their_layout():
    weight = torch.rand(3, 3, 1, 6).permute(3, 2, 0, 1).requires_grad_()
    (found,) = torch.autograd.grad(depth_wise(maps(2, 6, 4, 4), weight, torch.rand(6)).sum(), weight)
    assert found.stride() == weight.stride()
    (wanted,) = torch.autograd.grad(F.conv2d(maps(2, 6, 4, 4).float(), weight, padding=1, groups=6).sum(), weight)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


def layers(channels, hidden):
    return PointWiseConv2d(channels, hidden), GELU(), PointWiseConv2d(hidden, channels)


@needs_kernels
@settings(max_examples=40, deadline=None)
@given(
    batch=st.integers(1, 3), sizes=st.sampled_from([(2, 4), (16, 64), (18, 38), (56, 224), (128, 512)]),
    height=st.integers(1, 13), width=st.integers(1, 13), dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    channels_last=st.booleans(),
)  # fmt: skip
def test_mlps(batch, sizes, height, width, channels_last, dtype):
    """Errors are those of autocast, to which bfloat16 is all that lies between."""
    torch.manual_seed(0)
    net = nn.Sequential(*layers(*sizes))
    if channels_last:
        net = net.to(memory_format=torch.channels_last)
    x, upstream = maps(batch, sizes[0], height, width, dtype=dtype), maps(batch, sizes[0], height, width, seed=1)
    learned = list(net.parameters())
    found = []
    for function in (lambda x: mlp(x, *net), net):
        given = x.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16):
            y = function(given)
        found.append([y, *torch.autograd.grad(y, [given, *learned], upstream)])
    assert "mlp" in found[0][0].grad_fn.name() and found[0][0].is_contiguous(memory_format=torch.channels_last)
    assert [each.stride() for each in found[0][2:]] == [each.stride() for each in learned]
    exact, wide = copy.deepcopy(net).double(), x.double().requires_grad_()
    wanted = exact(wide)
    expected = [wanted, *torch.autograd.grad(wanted, [wide, *exact.parameters()], upstream.double())]
    for ours, torchs, true in zip(*found, expected, strict=True):
        assert ours.dtype == torchs.dtype and ours.shape == torchs.shape
        assert (ours.double() - true).norm() < 1.2 * (torchs.double() - true).norm() + 1e-2 * true.norm()


OTHERS = ["evaluation", "float32", "no gradient", "frozen", "frozen bias", "contiguous", "odd", "wide", "narrow"]
OTHERS += ["tanh", "scale", "drop", "stride", "patched", "patched drop"]
HOOKS = ["hook", "hook before", "hook of expand", "hook of project", "hook of drop", "hook of all", "backward hook"]


@pytest.mark.parametrize("case", [*OTHERS, *HOOKS])
def test_other_mlps_are_torchs(case, monkeypatch):
    monkeypatch.setattr(mlp_module, "mlp_in_blocks", lambda *arguments: pytest.fail("a kernel was called"))
    channels, hidden = {"odd": (6, 15), "wide": (6, 514), "narrow": (6, 10)}.get(case, (6, 16))
    expand, activation, project = (layer.train(case != "evaluation") for layer in layers(channels, hidden))
    drop = {"drop": nn.Dropout(0.5), "hook of drop": nn.Dropout(0.0), "patched drop": nn.Dropout(0.0)}.get(case)
    x, seen = maps(2, channels, 5, 4).requires_grad_(), []

    def see(*arguments):
        seen.append(1)

    watched = {"hook of expand": expand, "hook of project": project, "hook of drop": drop}.get(case, activation)
    if case == "hook of all":
        monkeypatch.setattr(torch.nn.modules.module, "_global_forward_hooks", {0: see})
    elif case == "hook before":
        watched.register_forward_pre_hook(see)
    elif case == "backward hook":
        watched.register_full_backward_hook(see)
    elif case in HOOKS:
        watched.register_forward_hook(see)
    if case.startswith("patched"):
        patched = drop or activation
        patched.forward = lambda x: seen.append(1) or type(patched).forward(patched, x)
    if case == "contiguous":
        x = x.contiguous()
    if case == "tanh":
        activation.approximate = "tanh"
    if case == "stride":
        expand.stride = (2, 2)
    expand.requires_grad_(case != "frozen")
    project.bias.requires_grad_(case != "frozen bias")
    scale = torch.rand(6, 1, 1) if case == "scale" else None
    autocast = torch.autocast("cpu", torch.bfloat16, enabled=case != "float32")
    with autocast, torch.set_grad_enabled(case != "no gradient"):
        x = x.float() if case == "float32" else x
        torch.manual_seed(0)
        found = mlp(x, expand, activation, project, scale, drop)
        if case == "backward hook":
            found.sum().backward()
        assert bool(seen) == (case in HOOKS or case.startswith("patched"))
        torch.manual_seed(0)
        kept = drop or nn.Identity()
        between = kept(activation(expand(x)))
        expected = kept(project(between) if scale is None else scale * project(between))
    torch.testing.assert_close(found, expected)


@needs_kernels
def test_gradients_of_mlps_have_the_layout_of_their_weights():
    x = maps(2, 6, 4, 4)
    weights = [torch.rand(6, 16).t()[..., None, None], torch.rand(16), torch.rand(16, 6).t()[..., None, None]]
    weights = [weight.requires_grad_() for weight in (*weights, torch.rand(6))]
    found = torch.autograd.grad(training_operators.mlp(x, *weights).sum(), weights)
    assert [each.stride() for each in found] == [each.stride() for each in weights]
    expand, expand_bias, project, project_bias = weights
    exact = F.conv2d(F.gelu(F.conv2d(x.float(), expand, expand_bias)), project, project_bias)
    for one, other in zip(found, torch.autograd.grad(exact.sum(), weights), strict=True):
        assert relative(one, other) < 1e-2


@needs_kernels
def test_mlps_of_several_threads_and_blocks():
    net, x = nn.Sequential(*layers(56, 224)), maps(3, 56, 21, 23).requires_grad_()
    exact, wide = copy.deepcopy(net).double(), x.detach().double().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        y = mlp(x, *net)
    found = torch.autograd.grad(y.sum(), (x, *net.parameters()))
    expected = torch.autograd.grad(exact(wide).sum(), (wide, *exact.parameters()))
    assert max(relative(one.double(), other) for one, other in zip(found, expected, strict=True)) < 2e-2


@needs_kernels
def test_sums_of_mlps_over_many_pixels_are_exact():
    weights = [torch.full(shape, 0.25) for shape in ((4, 2, 1, 1), (4,), (2, 4, 1, 1), (2,))]
    for weight in weights:
        weight.requires_grad_()
    found = []
    for height, width in ((1500, 1000), (128, 1)):
        x = maps(1, 2, height, width).fill_(0.5)
        y = training_operators.mlp(x, *weights)
        found.append(torch.autograd.grad(y, weights, torch.full_like(y, 0.7)))
    for many, few in zip(*found, strict=True):
        torch.testing.assert_close(many, few * (1.5e6 / 128), rtol=2e-4, atol=0)  # of weights in float32


@needs_kernels
def test_mlps_keep_little():
    """Of what lies between the layers nothing is kept for the gradient."""
    expand, activation, project = layers(16, 64)
    kept = []
    with (
        torch.autocast("cpu", torch.bfloat16),
        torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.numel()) or x, lambda x: x),
    ):
        mlp(maps(2, 16, 20, 20).requires_grad_(), expand, activation, project)
    assert max(kept) == 2 * 16 * 20 * 20


@needs_kernels
def test_mlps_of_wrong_shapes():
    x, weights = maps(2, 6, 4, 4), (torch.rand(8, 6, 1, 1), torch.rand(8), torch.rand(6, 8, 1, 1), torch.rand(6))
    for place, wrong in ((0, torch.rand(8, 4, 1, 1)), (1, torch.rand(6)), (2, torch.rand(6, 8)), (3, torch.rand(5))):
        with pytest.raises(ValueError, match=r"expected (weights of two 1x1 convolutions|maps .* and C values)"):
            training_operators.mlp(x, *(wrong if i == place else each for i, each in enumerate(weights)))
    odd = torch.rand(7, 6, 1, 1), torch.rand(7), torch.rand(6, 7, 1, 1), torch.rand(6)
    with pytest.raises(ValueError, match="even numbers of channels"):
        training_operators.mlp(x, *odd)
    with pytest.raises(ValueError, match=r"expected torch.bfloat16, found torch.float32"):
        training_operators.mlp(x.float(), *weights)
    with pytest.raises(ValueError, match=r"expected torch.float32, found torch.bfloat16"):
        training_operators.mlp(x, *(each.bfloat16() for each in weights))


def gradients(net, x):
    net = copy.deepcopy(net)
    with torch.autocast("cpu", torch.bfloat16):
        output = net(x).logits
    output.float().square().sum().backward()
    return output, [parameter.grad for parameter in net.parameters()]


@needs_kernels
@pytest.mark.parametrize("drop_path", [0.0, 0.3])
def test_a_network_learns_no_worse_than_with_torchs_operators(drop_path, monkeypatch):
    net = tiny(drop_path_rate=drop_path).to(memory_format=torch.channels_last).train()
    x = maps(8, 3, 64, 96, dtype=torch.float32)
    torch.manual_seed(0)
    output, ours = gradients(net, x)
    monkeypatch.setattr(training_operators, "KERNELS", None)
    torch.manual_seed(0)
    other, torchs = gradients(net, x)
    torch.manual_seed(0)
    exact_net = copy.deepcopy(net)
    exact = exact_net(x).logits
    exact.square().sum().backward()
    assert relative(output.float(), exact) < 1.3 * relative(other.float(), exact) + 1e-3
    norm = torch.cat([parameter.grad.flatten() for parameter in exact_net.parameters()])
    errors = [torch.cat([g.flatten() for g in found]).sub(norm).norm() / norm.norm() for found in (ours, torchs)]
    assert errors[0] < 1.2 * errors[1] + 1e-3


@needs_kernels
def test_repeated_steps_are_the_same_bit_for_bit():
    net = tiny().to(memory_format=torch.channels_last).train()
    x = maps(8, 3, 64, 64, dtype=torch.float32)
    (_, one), (_, other) = gradients(net, x), gradients(net, x)
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def refuse(*arguments):
    raise AssertionError("a kernel was called")


@needs_kernels
@pytest.mark.parametrize("case", ["float32", "no gradient", "evaluation", "scales of bfloat16"])
def test_nothing_changes_where_nothing_is_learned_in_bfloat16(case, monkeypatch):
    names = ("gelu", "add_scaled", "batch_norm", "depth_wise", "mlp")
    if case != "evaluation":  # which the normalisation does not know of
        names += ("l2_normalize",)
    monkeypatch.setattr(training_kernels, "LARGE", 0)
    net, x = tiny().to(memory_format=torch.channels_last).train(case != "evaluation"), maps(2, 3, 64, 64)
    if case == "scales of bfloat16":
        names = names[1:2]
        for block in net.modules():
            for name in ("layer_scale", "layer_scale_1", "layer_scale_2"):
                if hasattr(block, name):
                    setattr(block, name, nn.Parameter(getattr(block, name).bfloat16()))
    others = {name: getattr(KERNELS, name) for name in dir(KERNELS) if name not in names}
    monkeypatch.setattr(training_operators, "KERNELS", SimpleNamespace(**others, **dict.fromkeys(names, refuse)))
    with (
        torch.autocast("cpu", torch.bfloat16, enabled=case != "float32"),
        torch.set_grad_enabled(case != "no gradient"),
    ):
        net(x.float())


@needs_kernels
def test_a_network_in_training_uses_every_kernel(monkeypatch):
    called = set()

    class Spy:
        def __getattr__(self, name):
            called.add(name)
            return getattr(KERNELS, name)

    monkeypatch.setattr(training_kernels, "LARGE", 0)
    monkeypatch.setattr(training_kernels, "MOST_CHANNELS", 16)  # wider ones take GELU alone
    monkeypatch.setattr(training_operators, "KERNELS", Spy())
    gradients(tiny().to(memory_format=torch.channels_last).train(), maps(2, 3, 64, 64, dtype=torch.float32))
    expected = {"gelu", "add_scaled", "batch_norm", "l2_normalize", "depth_wise", "mlp"}
    expected |= {"gelu_gradient", "scaled_gradient", "batch_norm_gradient", "depth_wise_gradient", "mlp_gradient"}
    expected |= {"l2_normalize_gradient"}
    assert called == expected


def test_exports_in_evaluation_mode_have_no_limits_of_size(monkeypatch):
    monkeypatch.setattr(training_kernels, "LARGE", 2**10)
    net = tiny().eval()
    sizes = {0: torch.export.Dim("batch", min=1, max=64)}
    program = torch.export.export(net, (torch.randn(2, 3, 64, 64),), dynamic_shapes={"pixel_values": sizes})
    assert program.module()(torch.randn(33, 3, 64, 64)).logits.shape[0] == 33


@needs_kernels
def test_wrong_shapes_end_as_with_torch():
    x, scale = maps(2, 6, 4, 4, dtype=torch.float32), torch.rand(6, 1, 1).requires_grad_()
    drop = nn.Dropout(0.0).train()

    def added(x, branch, scale):
        with torch.autocast("cpu", torch.bfloat16):
            return add_scaled(x, lambda x, scale: branch.requires_grad_(), scale, drop)

    with pytest.raises(RuntimeError, match="size of tensor"):
        added(x, maps(2, 6, 3, 3), scale)
    one = torch.rand(1, 1, 1).requires_grad_()
    for few, branch, factor in (
        (x, maps(2, 6, 1, 1), scale),
        (x[:1], maps(2, 6, 4, 4), scale),
        (x, maps(2, 6, 4, 4), one),
    ):
        torch.testing.assert_close(added(few, branch, factor), few + factor * branch)
    with pytest.raises((RuntimeError, ValueError), match="running_mean should contain 256"):
        BatchNorm2d(64)(maps(8, 256, 32, 32).requires_grad_())
    with pytest.raises(ValueError, match="expected a gradient of shape"):
        gelu_gradient(maps(1, 6, 4, 4), maps(2, 6, 4, 4))
    with pytest.raises(ValueError, match="maps .* of one shape and C values"):
        sum_with_scaled(x, torch.rand(5), maps(2, 6, 4, 4))


@needs_kernels
def test_drops_that_somebody_replaced_or_looks_at_are_called():
    class Zero(nn.Module):
        def forward(self, x):
            return 0 * x

    x, scale, branch = maps(2, 6, 4, 4, dtype=torch.float32), torch.rand(6, 1, 1), maps(2, 6, 4, 4).requires_grad_()
    watched, seen = nn.Dropout(0.0), []
    watched.register_forward_hook(lambda *arguments: seen.append(1))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(add_scaled(x, lambda x, scale: branch, scale, Zero().train()), x)
        add_scaled(x, lambda x, scale: branch, scale, watched.train())
    assert seen == [1]


@needs_kernels
def test_sums_over_many_pixels_are_exact():
    gradient, branch = torch.full((1, 3, 1500, 1000), 0.7), torch.full((1, 3, 1500, 1000), 0.3, dtype=torch.bfloat16)
    _, found = scaled_gradient(gradient, torch.ones(3, 1, 1), branch)
    torch.testing.assert_close(
        found.flatten(), torch.full((3,), 0.7 * branch[0, 0, 0, 0].item() * 1.5e6), rtol=1e-5, atol=0
    )


@needs_kernels
@pytest.mark.parametrize("drop", [nn.Dropout(0.5), DropPath(0.5)])
def test_a_branch_that_is_dropped(drop):
    x, scale, branch = maps(4, 6, 3, 3, dtype=torch.float32), torch.full((6, 1, 1), 0.5), maps(4, 6, 3, 3, seed=1)
    torch.manual_seed(0)
    with torch.autocast("cpu", torch.bfloat16):
        found = add_scaled(x, lambda x, scale: branch, scale.requires_grad_(), drop.train())
    torch.manual_seed(0)
    torch.testing.assert_close(found, x + drop(scale * branch))


@pytest.mark.parametrize(
    "module",
    [
        None,
        SimpleNamespace(),
        SimpleNamespace(training=SimpleNamespace(has_openmp=lambda: True, supported=lambda: ["avx512_bf16"])),
        SimpleNamespace(
            training=SimpleNamespace(has_openmp=lambda: False, supported=lambda: ["avx512_bf16"], l2_normalize=None)
        ),
    ],
)
def test_broken_and_older_packages_are_told_and_other_processors_have_no_kernels(module, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "swiftformer_native", module)
    assert training_operators.find() is None
    newest = hasattr(getattr(module, "training", None), "l2_normalize")
    assert ("swiftformer_native is older" in caplog.text) == (not newest)


@pytest.mark.parametrize("sets", [["plain"], ["plain", "avx2"]])
def test_float32_needs_more_than_the_reference(sets, monkeypatch):
    training = SimpleNamespace(has_openmp=lambda: True, l2_normalize=None)
    monkeypatch.setitem(sys.modules, "swiftformer_native", SimpleNamespace(training=training, supported=lambda: sets))
    assert training_operators.find() is training and training_operators.knows_float32() == (len(sets) > 1)


needs_float_kernels = pytest.mark.skipif(
    training_operators.FLOAT_KERNELS is None, reason="needs swiftformer_native, and AVX2 or NEON"
)


@needs_float_kernels
@pytest.mark.parametrize("layout", ["channels last", "contiguous", "with gaps", "broadcast gradient"])
def test_gelu_of_float32_in_any_layout(layout):
    x, gradient = maps(2, 5, 3, 4, dtype=torch.float32), maps(2, 5, 3, 4, dtype=torch.float32, seed=1)
    if layout == "contiguous":
        x = x.contiguous()
    if layout == "with gaps":
        x = maps(2, 5, 3, 8, dtype=torch.float32)[..., ::2]
    if layout == "broadcast gradient":
        gradient = torch.ones(1, 1, 1, 1).expand(2, 5, 3, 4)
    x.mul_(4).requires_grad_()
    y, exact = GELU()(x), F.gelu(x.double())
    assert y.grad_fn.name() == "_FloatGELUBackward" and y.dtype == torch.float32
    (found,) = torch.autograd.grad(y, x, gradient)
    (wanted,) = torch.autograd.grad(exact, x, gradient.double())
    torch.testing.assert_close(y.double(), exact, rtol=1e-6, atol=5e-7)
    torch.testing.assert_close(found.double(), wanted.double(), rtol=1e-6, atol=8e-6)
    assert GELU().eval()(x).grad_fn.name() == "GeluBackward0"


@needs_float_kernels
def test_gelu_of_float32_can_be_transformed_as_torchs():
    x = torch.linspace(-3, 3, 7)
    net, same = GELU(), nn.GELU()

    def second(net):
        learned = x.clone().requires_grad_()
        (first,) = torch.autograd.grad(net(learned).sum(), learned, create_graph=True)
        return torch.autograd.grad(first.square().sum(), learned)[0]

    def batched(net):
        learned = x.clone().requires_grad_()
        return torch.autograd.grad(net(learned), learned, torch.eye(7), is_grads_batched=True)[0]

    transformations = {
        "second derivatives": second,
        "batched gradients": batched,
        "jacrev": lambda net: torch.func.jacrev(net)(x),
        "jvp": lambda net: torch.func.jvp(net, (x,), (torch.ones(7),))[1],
        "vmap of grad": lambda net: torch.func.vmap(torch.func.grad(lambda one: net(one).sum()))(x),
    }
    for name, transformed in transformations.items():
        torch.testing.assert_close(transformed(net), transformed(same), rtol=1e-5, atol=1e-5, msg=name)
    assert GELU()(torch.empty(0, requires_grad=True)).shape == (0,)
    odd = torch.tensor([float("nan"), float("inf")], requires_grad=True)
    assert GELU()(odd).isnan().tolist() == [True, False]


@needs_float_kernels
def test_a_network_in_float32_learns_as_with_torchs_gelu(monkeypatch):
    net, x = tiny().to(memory_format=torch.channels_last).train(), maps(4, 3, 64, 96, dtype=torch.float32)
    found = []
    for kernels in (training_operators.FLOAT_KERNELS, None):
        monkeypatch.setattr(training_operators, "FLOAT_KERNELS", kernels)
        copied = copy.deepcopy(net)
        copied(x).logits.square().sum().backward()
        found.append([parameter.grad for parameter in copied.parameters()])
    assert all(relative(ours, torchs) < 1e-4 for ours, torchs in zip(*found, strict=True) if torchs.norm() > 1e-3)


@needs_float_kernels
def test_compiled_networks_keep_torchs_gelu_in_float32():
    seen = []

    def look(graph, inputs):
        seen.extend(str(node.target) for node in graph.graph.nodes)
        return graph.forward

    torch.compile(GELU(), backend=look)(torch.randn(4, requires_grad=True))
    assert any("gelu" in name for name in seen) and not any("swiftformer" in name for name in seen)


def test_without_the_package_there_are_no_kernels(monkeypatch, caplog):
    monkeypatch.delitem(sys.modules, "swiftformer_native", raising=False)
    monkeypatch.setattr(training_operators.util, "find_spec", lambda name: None)
    assert training_operators.find() is None and caplog.text == ""


@needs_kernels
@pytest.mark.parametrize("threads", [1, 3])
def test_the_reference_agrees(threads):
    kernels = training_operators.KERNELS
    x = torch.randn(100003, generator=torch.Generator().manual_seed(0)).bfloat16()
    found = []
    for isa in ("plain", training_operators.INSTRUCTIONS):
        y = torch.empty_like(x)
        kernels.gelu(x.data_ptr(), len(x), y.data_ptr(), threads, isa)
        found.append(y.view(torch.int16).numpy().astype(np.int32))
    assert np.abs(found[0] - found[1]).max() <= 1
    with pytest.raises(ValueError, match="instruction set of this processor for training, found sse9"):
        kernels.gelu(x.data_ptr(), 0, x.data_ptr(), 1, "sse9")


@needs_kernels
@pytest.mark.exhaustive
def test_compiled(monkeypatch):
    monkeypatch.setattr(training_kernels, "LARGE", 0)
    net = tiny().to(memory_format=torch.channels_last).train()
    x = maps(4, 3, 64, 64, dtype=torch.float32)
    output, found = gradients(net, x)
    compiled, others = gradients(torch.compile(net, dynamic=False, fullgraph=True), x)
    assert relative(compiled.float(), output.float()) < 3e-2
    one, other = (torch.cat([gradient.flatten() for gradient in each]) for each in (found, others))
    assert (one - other).norm() < 0.1 * one.norm()  # each is 0.05 from that of float32
