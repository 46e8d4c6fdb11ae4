"""How much each layer of a fused network suffers from int8, to know which ones to leave in floating point."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from swiftformer.deploy import DeployModel


@torch.inference_mode()
def sensitivities(net: DeployModel, images: Tensor) -> dict[str, float]:
    """The change of the output when one layer alone is quantised, for every convolution and linear layer.

    Weights are rounded to int8 by output channel, symmetrically, the layer's input to uint8 between its smallest and
    largest value on `images`, as the quantisers of the targets do.

    Args:
        images: `(B, C, H, W)`, as the network takes them.

    Returns:
        Mean square difference of the outputs over their mean square, by name of the layer, largest first.
    """
    expected = _joined(net(images))
    found = {}
    layers = {name: m for name, m in net.named_modules() if isinstance(getattr(m, "weight", None), nn.Parameter)}
    for name, layer in layers.items():
        weight = layer.weight.data
        hook = layer.register_forward_pre_hook(lambda _, inputs: (round_activations(inputs[0]),))
        layer.weight.data = round_weights(weight)
        try:
            difference = _joined(net(images)) - expected
        finally:
            hook.remove()
            layer.weight.data = weight
        found[name] = (difference.square().mean() / expected.square().mean()).item()
    return dict(sorted(found.items(), key=lambda pair: -pair[1]))


def round_weights(weight: Tensor) -> Tensor:
    """`(out, ...)` at the 255 symmetric steps of int8, by output channel."""
    rows = weight.flatten(1)
    step = rows.abs().amax(dim=1, keepdim=True).clamp_min(1e-12) / 127
    return (rows / step).round().mul(step).view_as(weight)


def round_activations(x: Tensor) -> Tensor:
    """A tensor at the 256 steps of uint8 between its extremes, of which one is zero."""
    low, high = x.amin().clamp_max(0), x.amax().clamp_min(0)
    step = ((high - low) / 255).clamp_min(1e-12)
    zero = (-low / step).round()
    return ((x / step + zero).round().clamp(0, 255) - zero) * step


def _joined(output: Tensor | tuple[Tensor, ...]) -> Tensor:
    return output if isinstance(output, Tensor) else torch.cat([part.flatten(1) for part in output], dim=1)
