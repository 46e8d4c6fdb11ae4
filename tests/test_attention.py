import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from conftest import relative
from swiftformer import attention
from swiftformer.attention import ATTENTION_MODULES, EfficientAdditiveAttention, SelfAttention
from swiftformer.convolutions import in_autocast, scaled
from swiftformer.l2_normalization import l2_normalize


def test_another_weighting_is_refused():
    with pytest.raises(ValueError, match="global_query_weighting: expected uniform or l2, found 'L2'"):
        EfficientAdditiveAttention(8, "L2")


def test_second_derivatives_of_the_normalisation():
    x = torch.randn(2, 5, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda x: l2_normalize(x, dim=-1), x)


def formula(module: EfficientAdditiveAttention, x: torch.Tensor) -> torch.Tensor:
    """The paper's equations, one image and one token at a time, in float64."""
    out = torch.empty_like(x)
    for b, tokens in enumerate(x):
        q = [module.to_query(t) for t in tokens]
        k = [module.to_key(t) for t in tokens]
        if module.normalize_query_key:
            q = [t / t.norm() for t in q]
            k = [t / t.norm() for t in k]
        scores = [(t @ module.w_g[:, 0]) / math.sqrt(x.shape[-1]) for t in q]
        norm = math.sqrt(sum(float(a) ** 2 for a in scores))
        weights = [a / norm if module.global_query_weighting == "l2" else 1.0 for a in scores]
        g = sum(w * t for w, t in zip(weights, q, strict=True))
        for n in range(len(tokens)):
            out[b, n] = module.final(module.proj(g * k[n]) + q[n])
    return out


@settings(max_examples=12, deadline=None)
@given(
    batch=st.integers(1, 3),
    tokens=st.integers(1, 30),
    dim=st.integers(2, 24),
    weighting=st.sampled_from(["uniform", "l2"]),
    normalize=st.booleans(),
)
def test_additive_attention_is_the_formula(batch, tokens, dim, weighting, normalize):
    module = EfficientAdditiveAttention(dim, weighting, normalize).double().eval()
    x = torch.randn(batch, tokens, dim, dtype=torch.float64)
    assert relative(module(x), formula(module, x)) < 1e-10


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_l2_normalize_keeps_zero_vectors_finite(dtype):
    x = torch.zeros(3, 8, dtype=dtype)
    x[0] = 1e-4
    y = l2_normalize(x, dim=-1)
    assert y.dtype == dtype and torch.isfinite(y).all() and (y[1:] == 0).all()
    torch.testing.assert_close(y[0].float().norm(), torch.tensor(1.0), atol=1e-2, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("weighting", ["uniform", "l2"])
def test_zero_image_gives_no_nan_in_half_precision(dtype, weighting):
    module = EfficientAdditiveAttention(16, weighting).to(dtype)
    for layer in (module.to_query, module.to_key):
        torch.nn.init.zeros_(layer.bias)
    assert torch.isfinite(module(torch.zeros(2, 9, 16, dtype=dtype))).all()


@pytest.mark.parametrize("weighting", ["uniform", "l2"])
def test_half_precision_stays_close(weighting):
    module = EfficientAdditiveAttention(32, weighting).eval()
    x = torch.randn(2, 49, 32)
    expected = module(x)
    for dtype, bound in ((torch.bfloat16, 2e-2), (torch.float16, 3e-3)):
        assert relative(module.to(dtype)(x.to(dtype)).float(), expected) < bound


def test_w_g_of_the_uniform_form_has_a_zero_gradient_instead_of_none():
    module = EfficientAdditiveAttention(8, "uniform")
    module(torch.randn(1, 4, 8)).sum().backward()
    assert module.w_g.grad is not None and (module.w_g.grad == 0).all()
    frozen = EfficientAdditiveAttention(8, "uniform").requires_grad_(False)
    assert torch.isfinite(frozen(torch.randn(1, 4, 8))).all()


@pytest.mark.parametrize("name", ATTENTION_MODULES)
def test_every_module_keeps_shape_and_trains(name):
    module = ATTENTION_MODULES[name](24)
    x = torch.randn(2, 10, 24, requires_grad=True)
    y = module(x)
    assert y.shape == x.shape
    y.square().sum().backward()
    assert all(p.grad is not None for p in module.parameters())


def test_self_attention_is_torchs():
    module = SelfAttention(16).eval()
    x = torch.randn(2, 7, 16)
    weight, bias = module.to_query_key_value.weight, module.to_query_key_value.bias
    expected, _ = F.multi_head_attention_forward(
        x.transpose(0, 1), x.transpose(0, 1), x.transpose(0, 1), 16, 1, weight, bias, None, None, False, 0.0,
        module.proj.weight, module.proj.bias,
    )  # fmt: skip
    torch.testing.assert_close(module(x), expected.transpose(0, 1))


def test_only_self_attention_depends_on_all_pairs():
    """A permutation of the tokens permutes the output of every module."""
    order = torch.randperm(12)
    for module in ATTENTION_MODULES.values():
        m, x = module(16).eval(), torch.randn(1, 12, 16)
        torch.testing.assert_close(m(x)[:, order], m(x[:, order]), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("dim", [1, 2])
def test_gradient_of_the_normalisation_is_exact(dim):
    x = torch.randn(2, 5, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda t: l2_normalize(t, dim), (x,))
    weights = torch.randn_like(x)
    (l2_normalize(x, dim) * weights).sum().backward()
    other = x.detach().clone().requires_grad_()
    (F.normalize(other, dim=dim) * weights).sum().backward()
    torch.testing.assert_close(x.grad, other.grad)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_normalisation_is_the_same_with_and_without_gradients(dtype):
    x = torch.randn(2, 7, 48, dtype=dtype)
    x[0, 3] = 0
    learning = l2_normalize(x.clone().requires_grad_(), -1)
    torch.testing.assert_close(learning.detach(), l2_normalize(x, -1))
    learning.sum().backward()  # a vector of zeros has no direction to keep
    assert torch.isfinite(learning).all()


@pytest.mark.parametrize("layer", [torch.nn.Linear(6, 4), torch.nn.Conv2d(6, 4, 1)])
def test_scaled_weights_give_scaled_outputs(layer):
    layer = layer.double()
    linear = isinstance(layer, torch.nn.Linear)
    scale = torch.randn((4,) if linear else (4, 1, 1), dtype=torch.float64, requires_grad=True)
    x = torch.randn(2, 5, 6, dtype=torch.float64) if linear else torch.randn(2, 6, 3, 5, dtype=torch.float64)
    by_hand = scale * layer(x)
    torch.testing.assert_close(scaled(layer, x, scale), by_hand)
    grads = [
        torch.autograd.grad(y.square().sum(), (scale, layer.weight, layer.bias))
        for y in (scaled(layer, x, scale), by_hand)
    ]
    for ours, plain in zip(*grads, strict=True):
        torch.testing.assert_close(ours, plain)
    torch.testing.assert_close(scaled(torch.nn.Sequential(layer), x, scale), by_hand)  # an adapter around it
    torch.testing.assert_close(scaled(layer, x, None), layer(x))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_small_scales_survive_half_precision(dtype):
    layer, x = torch.nn.Linear(6, 4), torch.randn(5, 6)
    scale = torch.full((4,), 1e-5)
    with torch.no_grad(), torch.autocast("cpu", dtype):
        found = scaled(layer, x.to(dtype), scale)
    assert found.dtype == torch.float32  # sums of residuals stay float32 under autocast
    torch.testing.assert_close(found, scale * layer(x), rtol=0.05, atol=5e-8)


@pytest.mark.parametrize(
    "register",
    [
        "register_forward_hook",
        "register_forward_pre_hook",
        "register_full_backward_hook",
        "register_full_backward_pre_hook",
    ],
)
def test_hooks_of_scaled_layers_are_called(register):
    layer, calls = torch.nn.Linear(6, 4), []
    getattr(layer, register)(lambda *_: calls.append(1))
    scaled(layer, torch.randn(5, 6, requires_grad=True), torch.ones(4)).sum().backward()
    assert calls == [1]


@pytest.mark.parametrize("watched", [False, True])
def test_tokens_are_rounded_once_for_queries_and_keys(watched, monkeypatch):
    module, x, seen = EfficientAdditiveAttention(48), torch.randn(2, 9, 48), []
    if watched:  # by somebody who counts on what the layer was given
        module.to_key.register_forward_pre_hook(lambda layer, inputs: seen.append(inputs[0].dtype))
    with torch.autocast("cpu", torch.bfloat16):
        found = module(x)
        monkeypatch.setattr(attention, "in_autocast", lambda x: pytest.fail("rounded") if watched else x)
        wanted = module(x)
    assert torch.equal(found, wanted)
    assert seen == [torch.float32, torch.float32] * watched


def test_what_autocast_rounds():
    x = torch.randn(3)
    with torch.autocast("cpu", torch.bfloat16):
        assert in_autocast(x).dtype == torch.bfloat16
        for other in (x.double(), x.long(), x.to("meta"), x.half()):
            assert in_autocast(other) is other
    assert in_autocast(x) is x


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_gradient_of_the_normalisation_in_half_precision(dtype):
    x, weights = torch.randn(3, 9, 48).to(dtype), torch.randn(3, 9, 48).to(dtype)
    ours, plain = (x.detach().clone().requires_grad_() for _ in range(2))
    (l2_normalize(ours, -1) * weights).sum().backward()
    (F.normalize(plain.float(), dim=-1) * weights.float()).sum().backward()
    torch.testing.assert_close(ours.grad, plain.grad, rtol=2e-2, atol=2e-3)
