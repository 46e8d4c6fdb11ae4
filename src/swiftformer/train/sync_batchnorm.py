"""BatchNorm over the batches of all processes; torch's own where it works, which is not on a CPU."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class SumOfProcesses(torch.autograd.Function):
    """The sum of all processes' tensors; in the backward pass, of all processes' gradients."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        summed = tensor.clone()
        torch.distributed.all_reduce(summed)
        return summed

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return SumOfProcesses.forward(ctx, gradients[0])


class CpuSyncBatchNorm2d(nn.BatchNorm2d):
    """BatchNorm whose training statistics come from the batches `(B, C, H, W)` of all processes."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        channels = x.shape[1]
        values = x.float()
        count = values.new_full((1,), values.numel() / channels)
        sums = SumOfProcesses.apply(torch.cat([values.sum((0, 2, 3)), count]))  # (C + 1,)
        count = sums[channels]
        mean = sums[:channels] / count
        centred = values - mean.view(1, -1, 1, 1)
        # In two passes: the mean of squares minus the square of the mean loses the digits that matter.
        var = SumOfProcesses.apply(centred.square().sum((0, 2, 3))) / count
        with torch.no_grad():
            assert self.running_mean is not None and self.running_var is not None
            assert self.num_batches_tracked is not None and self.momentum is not None
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(var * count / (count - 1), self.momentum)
        normalized = centred * torch.rsqrt(var + self.eps).view(1, -1, 1, 1)
        if self.weight is not None:
            normalized = torch.addcmul(self.bias.view(1, -1, 1, 1), normalized, self.weight.view(1, -1, 1, 1))
        return normalized.to(x.dtype)


def synchronize_batchnorm(net: nn.Module, device: torch.device) -> None:
    """Replace every BatchNorm of `net`, in place; parameters, statistics and keys stay."""
    for name, child in net.named_children():
        if isinstance(child, nn.BatchNorm2d):
            kind = CpuSyncBatchNorm2d if device.type == "cpu" else nn.SyncBatchNorm
            new = kind(child.num_features, child.eps, child.momentum, child.affine, child.track_running_stats)
            new.weight, new.bias = child.weight, child.bias
            new.running_mean, new.running_var = child.running_mean, child.running_var
            new.num_batches_tracked = child.num_batches_tracked
            new.train(child.training)
            setattr(net, name, new)
        else:
            synchronize_batchnorm(child, device)
