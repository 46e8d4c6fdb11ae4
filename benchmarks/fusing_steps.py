"""What each step of fusing gains on a CPU: the fused form without it, in turn with the fused form, in one run.

python benchmarks/fusing_steps.py --variant xs --batch 1
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fusing import converted, options, table
from torch import Tensor, nn
from torch.nn import functional as F

from swiftformer.benchmark.candidates import Case
from swiftformer.benchmark.runtimes import open_file
from swiftformer.deploy import DeployAttention, DeployBranch, DeployEncoder, DeployMlp, fuse, pointwise, total, unit_rms
from swiftformer.export.openvino import TwoProducts
from swiftformer.model import EncoderBlock


class Made(nn.Module):
    """A module of others and a function of it and its input."""

    def __init__(self, function: Callable[[Any, Tensor], Tensor], *modules: nn.Module) -> None:
        super().__init__()
        self.function, self.parts = function, nn.ModuleList(modules)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.parts, x)


def with_scale(layer: Any) -> nn.Module:
    """A layer scale of a half behind a layer of twice the size."""
    scale = torch.full((layer.out_channels, 1, 1), 0.5)
    for parameter in layer.parameters():
        parameter *= 2
    return Made(lambda parts, x: parts[0](x) * scale, layer)


def norm(channels: int) -> nn.Module:
    return nn.BatchNorm2d(channels, eps=0.0).eval()


def batch_norms(net: Any, blocks: Any) -> None:
    for layers in (net.stem, net.layers):
        for place, layer in enumerate(layers):
            if isinstance(layer, nn.Conv2d):
                layers[place] = nn.Sequential(layer, norm(layer.out_channels))
    for module in list(net.modules()):
        if isinstance(module, DeployBranch):
            module.depth_wise = nn.Sequential(module.depth_wise, norm(module.expand.in_channels))  # type: ignore
        elif isinstance(module, DeployMlp):
            module.expand = nn.Sequential(norm(module.expand.in_channels), module.expand)  # type: ignore
    net.layers.append(norm(net.head.in_features))


def layer_scales(net: Any, blocks: Any) -> None:
    for module in list(net.modules()):
        if isinstance(module, (DeployBranch, DeployMlp)):
            module.project = with_scale(module.project)
        elif isinstance(module, DeployAttention):
            module.output = with_scale(module.output)  # type: ignore


def heads(net: Any, blocks: Any) -> None:
    net.head = Made(lambda heads, x: (heads[0](x) + heads[1](x)) / 2, net.head, copy.deepcopy(net.head))


def attention(make: Callable[[Any, Any], nn.Module]) -> Callable[[Any, Any], None]:
    def undo(net: Any, blocks: Any) -> None:
        encoders: list[Any] = [module for module in net.modules() if isinstance(module, DeployEncoder)]
        for encoder, block in zip(encoders, blocks, strict=True):
            encoder.attention = make(encoder.attention, block)

    return undo


def two_products(fused: Any, block: Any) -> nn.Module:
    fused.key_query = TwoProducts(fused.key_query)
    return fused


def on_tokens(fused: Any, block: Any) -> nn.Module:
    return Made(lambda parts, x: parts[0].attend(x, parts[0].layer_scale_1), block)


def three_norms(fused: Any, block: Any) -> nn.Module:
    fused.output.weight[:, fused.dim :] *= fused.dim**0.5

    def run(parts: Any, x: Tensor) -> Tensor:
        key, query = (F.normalize(part, dim=1) for part in parts[0].key_query(x).chunk(2, dim=1))
        score = parts[0].score(query)
        pooled = total(query * (score / total(score * score).sqrt().clamp_min(1e-12)))
        return parts[0].output(torch.cat([pooled * key, query], dim=1))

    return Made(run, fused)


def last_two_products(fused: Any, block: Any) -> nn.Module:
    proj, final, root, scale = block.attn.proj, block.attn.final, fused.dim**0.5, block.layer_scale_1.flatten()

    def run(parts: Any, x: Tensor) -> Tensor:
        key, query = (unit_rms(part) for part in parts[0].key_query(x).chunk(2, dim=1))
        score = parts[0].score(query)
        pooled = total(query * score) * (torch.rsqrt(total(score * score).clamp_min(1e-24)) / parts[0].dim)
        return parts[2](parts[1](pooled * key) + query)

    first = pointwise(proj.weight * root, proj.bias * root, proj.weight)
    return Made(run, fused, first, pointwise(final.weight * scale[:, None] / root, final.bias * scale, proj.weight))


STEPS: dict[str, Callable[[Any, Any], None]] = {
    "fused": lambda net, blocks: None,
    "BatchNorms not folded": batch_norms,
    "layer scales not folded": layer_scales,
    "two heads": heads,
    "keys and queries as two products": attention(two_products),
    "the attention's last two products in a row": attention(last_two_products),
    "the attention with three norms": attention(three_norms),
    "the attention on tokens, as it is trained": attention(on_tokens),
}


@torch.inference_mode()
def main() -> None:
    arguments = options(__doc__)
    with tempfile.TemporaryDirectory() as folder:
        case = Case(arguments.variant, arguments.batch, (arguments.size,) * 2, None, "cpu", Path(folder))
        model, first, last = case.model(), case.pixels, case.pixels.to(memory_format=torch.channels_last)
        expected, nets = model(first).logits, {}
        for name, undo in STEPS.items():
            nets[name] = fuse(model)
            undo(nets[name], [copy.deepcopy(block) for block in model.modules() if isinstance(block, EncoderBlock)])
            found = nets[name].to(memory_format=torch.channels_last)(last)  # type: ignore[call-overload]
            assert (found - expected).abs().max() < 1e-3 * expected.abs().max(), name
        runs = {name: lambda _, net=net: net(last).numpy() for name, net in nets.items()}
        contiguous = copy.deepcopy(nets["fused"]).to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        runs["channels first"] = lambda _: contiguous(first).numpy()
        print("| | | median ms | over the fused form, median of the rounds | quartiles |\n|---|---|---|---|---|")
        table(runs, np.empty(0), "torch fp32", arguments, "fused")
        files = {name: converted(case, net, str(place)) for place, (name, net) in enumerate(nets.items())}
        for precision in ("fp32", "bf16"):
            runs = {name: open_file(file, "openvino", precision, None) for name, file in files.items()}
            table(runs, first.numpy(), f"OpenVINO {precision}", arguments, "fused")


if __name__ == "__main__":
    main()
