"""What `swiftformer_native` computes for training on a CPU, as functions that autograd and torch.compile know. In
bfloat16 they can be called where `KERNELS` is not None, and GELU in float32 where `FLOAT_KERNELS` is not None."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from importlib import util
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import _get_current_dispatch_mode

from swiftformer.derivatives import differentiated_once, is_transformed

logger = logging.getLogger(__name__)
INSTRUCTIONS = "avx512_bf16"
NEWEST = "l2_normalize"  # of its kernels, by which an older package is told; to be changed with any argument of one


def find() -> Any:
    """`swiftformer_native.training`, or None where it cannot be used; a broken package is told."""
    if "swiftformer_native" not in sys.modules and util.find_spec("swiftformer_native") is None:
        return None
    try:
        from swiftformer_native import training as found
    except (ImportError, OSError) as error:
        logger.warning("swiftformer_native is older or broken (%s): training goes on without its kernels", error)
        return None
    if not hasattr(found, NEWEST):
        logger.warning("swiftformer_native is older, it has no %s: training goes on without its kernels", NEWEST)
        return None
    return found if found.has_openmp() else None


def knows_float32() -> bool:
    """Whether it has kernels of float32 for this processor, in more than the reference."""
    from swiftformer_native import supported

    return len(supported()) > 1


_FOUND = find()
KERNELS = _FOUND if _FOUND is not None and INSTRUCTIONS in _FOUND.supported() else None
FLOAT_KERNELS = _FOUND if _FOUND is not None and knows_float32() else None


def call_kernel(kernel: str, *arguments: Any) -> None:
    """Call one of `KERNELS`, with tensors given by their addresses; nothing is checked."""
    values = [argument.data_ptr() if isinstance(argument, Tensor) else argument for argument in arguments]
    getattr(KERNELS, kernel)(*values, torch.get_num_threads(), INSTRUCTIONS)


def _in_layout_of(like: Tensor, x: Tensor) -> Tensor:
    return x if x.stride() == like.stride() else torch.empty_like(like).copy_(x)


def _rows(x: Tensor) -> Tensor:
    """A map whose pixels are rows of channels."""
    return x.contiguous(memory_format=torch.channels_last)


def _size(x: Tensor) -> tuple[int, int]:
    """Pixels and channels."""
    return x.numel() // max(x.shape[1], 1), x.shape[1]


def _check(*maps: Tensor, channels: tuple[Tensor, ...]) -> None:
    """Raise ValueError where kernels would read or write behind the end of something."""
    shapes = {tuple(each.shape) for each in maps}
    counts = {each.numel() for each in channels}
    if len(shapes) > 1 or maps[0].ndim != 4 or maps[0].shape[1] == 0 or counts - {maps[0].shape[1]}:
        raise ValueError(f"expected maps (B, C, H, W) of one shape and C values, found {shapes} and {counts} values")


def check_types(dtype: torch.dtype, *tensors: Tensor) -> None:
    """Raise ValueError for a tensor of another type."""
    if found := {each.dtype for each in tensors} - {dtype}:
        raise ValueError(f"expected {dtype}, found {', '.join(map(str, found))}")


def _check_depth_wise(x: Tensor, weight: Tensor) -> None:
    if weight.shape != (x.shape[1], 1, 3, 3):
        raise ValueError(f"expected weights of a 3x3 depth-wise convolution of {tuple(x.shape)}, found {weight.shape}")
    if x.dtype not in (torch.float32, torch.bfloat16) or x.numel() == 0:
        raise ValueError(f"expected values of float32 or bfloat16, found {x.numel()} of {x.dtype}")
    check_types(torch.float32, weight)


def _operator(name: str, run: Callable, fake: Callable) -> Callable:
    """A function without a gradient that torch.compile takes as it is."""
    operator = torch.library.custom_op(f"swiftformer::{name}", run, mutates_args=(), device_types="cpu")
    operator.register_fake(fake)
    # What torch does around an operator takes longer than the kernels of small maps: compiling alone needs it.
    return lambda *arguments: run(*arguments) if is_run(arguments[0]) else operator(*arguments)


def _learned(name: str, run: Callable, fake: Callable, keep: Callable, backward: Callable) -> Callable:
    """A function with a gradient, that of a `torch.autograd.Function` with these parts."""
    operator = torch.library.custom_op(f"swiftformer::{name}", run, mutates_args=(), device_types="cpu")
    operator.register_fake(fake)
    operator.register_autograd(backward, setup_context=keep)
    parts = {"forward": run, "setup_context": keep, "backward": differentiated_once(backward)}
    function: Any = type(name, (torch.autograd.Function,), {key: staticmethod(part) for key, part in parts.items()})
    return lambda *arguments: function.apply(*arguments) if is_run(arguments[0]) else operator(*arguments)


def is_run(x: Tensor) -> bool:
    """Whether there are values, and nobody records what is done with them but autograd."""
    return type(x) is Tensor and not torch.compiler.is_compiling() and _get_current_dispatch_mode() is None


# --- GELU of bfloat16, in any layout


def _gelu(x: Tensor) -> Tensor:
    check_types(torch.bfloat16, x)
    y = torch.empty_like(x)
    call_kernel("gelu", _in_layout_of(y, x), x.numel(), y)
    return y


def _gelu_gradient(gradient: Tensor, x: Tensor) -> Tensor:
    if gradient.shape != x.shape:
        raise ValueError(f"expected a gradient of shape {tuple(x.shape)}, found {tuple(gradient.shape)}")
    check_types(torch.bfloat16, gradient, x)
    to = torch.empty_like(x)
    call_kernel("gelu_gradient", _in_layout_of(to, gradient), _in_layout_of(to, x), x.numel(), to)
    return to


def _keep_gelu(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


gelu_gradient = _operator("gelu_gradient", _gelu_gradient, lambda gradient, x: torch.empty_like(x))
gelu = _learned(
    "gelu", _gelu, torch.empty_like, _keep_gelu, lambda ctx, gradient: gelu_gradient(gradient, *ctx.saved_tensors)
)


# --- GELU of float32, in any layout


class _FloatGELU(torch.autograd.Function):
    """With second derivatives, and gradients of any kind, which are torch's."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        assert FLOAT_KERNELS is not None
        ctx.save_for_backward(x)
        y = torch.empty_like(x)
        source = _in_layout_of(y, x)
        FLOAT_KERNELS.gelu_float32(source.data_ptr(), x.numel(), y.data_ptr(), torch.get_num_threads(), "auto")
        return y

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        if torch.is_grad_enabled() or not is_plain(gradient) or FLOAT_KERNELS is None:
            return torch.ops.aten.gelu_backward(gradient, x)
        to = torch.empty_like(x)
        of_y, source = _in_layout_of(to, gradient), _in_layout_of(to, x)
        places = of_y.data_ptr(), source.data_ptr(), x.numel(), to.data_ptr()
        FLOAT_KERNELS.gelu_gradient_float32(*places, torch.get_num_threads(), "auto")
        return to


def is_plain(x: Tensor) -> bool:
    """Whether a tensor of float32 has values of its own, which no transformation of functions looks at."""
    return x.dtype == torch.float32 and is_run(x) and not is_transformed(x)


def gelu_float32(x: Tensor) -> Tensor:
    """Of a tensor that is `is_plain`."""
    return _FloatGELU.apply(x)


# --- `x + scale * branch`: maps of float32 or bfloat16, `(C, 1, 1)` of float32, maps of bfloat16; gives float32


def _sum_with_scaled(x: Tensor, scale: Tensor, branch: Tensor) -> Tensor:
    _check(x, branch, channels=(scale,))
    check_types(torch.float32, scale, *(() if x.dtype == torch.bfloat16 else (x,)))
    check_types(torch.bfloat16, branch)
    x, to = _rows(x), torch.empty_like(x, dtype=torch.float32, memory_format=torch.channels_last)
    call_kernel("add_scaled", x, x.dtype == torch.bfloat16, scale.contiguous(), _rows(branch), *_size(x), to)
    return to


def _scaled_gradient(gradient: Tensor, scale: Tensor, branch: Tensor) -> tuple[Tensor, Tensor]:
    _check(gradient, branch, channels=(scale,))
    check_types(torch.float32, gradient, scale)
    check_types(torch.bfloat16, branch)
    gradient, branch, scale = _rows(gradient), _rows(branch), scale.contiguous()
    of_branch, of_scale = torch.empty_like(branch), torch.empty_like(scale)
    call_kernel("scaled_gradient", gradient, scale, branch, *_size(branch), of_branch, of_scale)
    return of_branch, of_scale


def _keep_sum(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
    x, scale, branch = inputs
    ctx.save_for_backward(scale, branch)
    ctx.dtype = x.dtype


def _sum_backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    of_branch, of_scale = scaled_gradient(gradient, *ctx.saved_tensors)
    return gradient.to(ctx.dtype), of_scale, of_branch


def _like_rows(x: Tensor, **options: Any) -> Tensor:
    return torch.empty_like(x, memory_format=torch.channels_last, **options)


scaled_gradient = _operator(
    "scaled_gradient", _scaled_gradient, lambda _, scale, branch: (_like_rows(branch), torch.empty_like(scale))
)
sum_with_scaled = _learned(
    "sum_with_scaled",
    _sum_with_scaled,
    lambda x, scale, branch: _like_rows(x, dtype=torch.float32),
    _keep_sum,
    _sum_backward,
)


# --- BatchNorm of maps of bfloat16 by the batch's statistics; gives means and `1 / sqrt(variance + eps)` as well


def _batch_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    _check(x, channels=(weight, bias))
    check_types(torch.bfloat16, x)
    check_types(torch.float32, weight, bias)
    x, weight, bias = _rows(x), weight.contiguous(), bias.contiguous()
    y, mean, inverse = torch.empty_like(x), torch.empty_like(weight), torch.empty_like(weight)
    call_kernel("batch_norm", x, *_size(x), weight, bias, eps, y, mean, inverse)
    return y, mean, inverse


def _batch_norm_gradient(
    gradient: Tensor, x: Tensor, weight: Tensor, mean: Tensor, inverse: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    _check(gradient, x, channels=(weight, mean, inverse))
    check_types(torch.bfloat16, gradient, x)
    check_types(torch.float32, weight, mean, inverse)
    gradient, x, weight = _rows(gradient), _rows(x), weight.contiguous()
    to, of_weight, of_bias = torch.empty_like(x), torch.empty_like(weight), torch.empty_like(weight)
    call_kernel("batch_norm_gradient", gradient, x, *_size(x), weight, mean, inverse, to, of_weight, of_bias)
    return to, of_weight, of_bias


def _keep_batch_norm(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor, float], output: tuple[Tensor, ...]) -> None:
    x, weight, _, _ = inputs
    _, mean, inverse = output
    ctx.mark_non_differentiable(mean, inverse)
    ctx.save_for_backward(x, weight, mean, inverse)


def _batch_norm_backward(ctx: Any, gradient: Tensor, *unused: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
    return *batch_norm_gradient(gradient, *ctx.saved_tensors), None


def _like_norm(x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return _like_rows(x), torch.empty_like(weight), torch.empty_like(weight)


batch_norm_gradient = _operator(
    "batch_norm_gradient", _batch_norm_gradient, lambda gradient, x, weight, mean, inverse: _like_norm(x, weight)
)
batch_norm = _learned(
    "batch_norm",
    _batch_norm,
    lambda x, weight, bias, eps: _like_norm(x, weight),
    _keep_batch_norm,
    _batch_norm_backward,
)


# --- 3x3 depth-wise convolution with zeros around it: maps of float32 or bfloat16, weights `(C, 1, 3, 3)` and biases of
# float32; gives bfloat16


def _sizes(x: Tensor) -> tuple[int, int, int, int]:
    """Pictures, height, width and channels."""
    pictures, channels, height, width = x.shape
    return pictures, height, width, channels


def _depth_wise(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    _check(x, channels=(bias,))
    _check_depth_wise(x, weight)
    check_types(torch.float32, bias)
    x, y = _rows(x), torch.empty_like(x, dtype=torch.bfloat16, memory_format=torch.channels_last)
    call_kernel("depth_wise", x, x.dtype == torch.bfloat16, *_sizes(x), weight.contiguous(), bias.contiguous(), y)
    return y


def _depth_wise_gradient(gradient: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    _check(gradient, x, channels=())
    _check_depth_wise(x, weight)
    check_types(torch.bfloat16, gradient)
    gradient, x, taps = _rows(gradient), _rows(x), weight.contiguous()
    to, of_weight, of_bias = torch.empty_like(x), torch.empty_like(taps), taps.new_empty(len(taps))
    half = x.dtype == torch.bfloat16
    call_kernel("depth_wise_gradient", gradient, x, half, *_sizes(x), taps, to, of_weight, of_bias)
    return to, _in_layout_of(weight, of_weight), of_bias


def _keep_depth_wise(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
    x, weight, _ = inputs
    ctx.save_for_backward(x, weight)


depth_wise_gradient = _operator(
    "depth_wise_gradient",
    _depth_wise_gradient,
    lambda _, x, weight: (_like_rows(x), torch.empty_like(weight), weight.new_empty(len(weight))),
)
depth_wise = _learned(
    "depth_wise",
    _depth_wise,
    lambda x, weight, bias: _like_rows(x, dtype=torch.bfloat16),
    _keep_depth_wise,
    lambda ctx, gradient: depth_wise_gradient(gradient, *ctx.saved_tensors),
)


# --- `project(gelu(expand(x)))`: maps of bfloat16, weights `(hidden, C, 1, 1)` and `(C, hidden, 1, 1)` and biases of
# float32, C and hidden even numbers. What lies between is not kept, but computed again for the gradient, before which
# weights may not change.


def _check_mlp(x: Tensor, expand: Tensor, expand_bias: Tensor, project: Tensor) -> None:
    hidden, channels = expand.shape[:2]
    shapes = [tuple(each.shape) for each in (expand, expand_bias, project)]
    wanted = [(hidden, channels, 1, 1), (hidden,), (channels, hidden, 1, 1)]
    if shapes != wanted or hidden % 2 or channels % 2:
        raise ValueError(f"expected weights of two 1x1 convolutions with even numbers of channels, found {shapes}")
    check_types(torch.bfloat16, x)
    check_types(torch.float32, expand, expand_bias, project)
    _check(x, channels=(project[:, 0, 0, 0],))


def _mlp(x: Tensor, expand: Tensor, expand_bias: Tensor, project: Tensor, project_bias: Tensor) -> Tensor:
    _check_mlp(x, expand, expand_bias, project)
    check_types(torch.float32, project_bias)
    _check(x, channels=(project_bias,))
    x, y = _rows(x), _like_rows(x)
    weights = (each.contiguous() for each in (expand, expand_bias, project, project_bias))
    call_kernel("mlp", x, *_size(x), len(expand), *weights, y)
    return y


Gradients = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


def _mlp_gradient(gradient: Tensor, x: Tensor, expand: Tensor, expand_bias: Tensor, project: Tensor) -> Gradients:
    _check(gradient, x, channels=())
    check_types(torch.bfloat16, gradient)
    _check_mlp(x, expand, expand_bias, project)
    gradient, x = _rows(gradient), _rows(x)
    weights = [each.contiguous() for each in (expand, expand_bias, project)]
    to, *of_weights, of_project_bias = _empty_gradients(gradient, x, *weights)
    call_kernel("mlp_gradient", gradient, x, *_size(x), len(expand), *weights, to, *of_weights, of_project_bias)
    of_expand, of_expand_bias, of_project = map(_in_layout_of, (expand, expand_bias, project), of_weights)
    return to, of_expand, of_expand_bias, of_project, of_project_bias


def _empty_gradients(_: Tensor, x: Tensor, expand: Tensor, expand_bias: Tensor, project: Tensor) -> Gradients:
    of_expand, of_expand_bias, of_project = (torch.empty_like(each) for each in (expand, expand_bias, project))
    return _like_rows(x), of_expand, of_expand_bias, of_project, expand_bias.new_empty(len(project))


def _keep_mlp(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor, Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:4])


mlp_gradient = _operator("mlp_gradient", _mlp_gradient, _empty_gradients)
mlp = _learned(
    "mlp",
    _mlp,
    lambda x, *weights: _like_rows(x),
    _keep_mlp,
    lambda ctx, gradient: mlp_gradient(gradient, *ctx.saved_tensors),
)
