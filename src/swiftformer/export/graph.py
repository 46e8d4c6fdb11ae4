"""The module that exporters write: a fused network with float32 at both ends."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from swiftformer.deploy import DeployModel
from swiftformer.environment import NO_USAGE_DATA, environment
from swiftformer.export.formats import LEAST_TRACED

if TYPE_CHECKING:
    from swiftformer.export.formats import Options

# Of shapes in the graph, which ONNX has no operators for.
UNCHECKED = {"TRANSFORMERS_DISABLE_TORCH_CHECK": "1"}


class DeployGraph(nn.Module):
    """`(B, C, H, W)` float32 to logits, probabilities, or a tuple of feature maps or of what is detected, in float32.

    Args:
        net: computes in the dtype of its weights.
        softmax: give probabilities.
    """

    def __init__(self, net: DeployModel, softmax: bool = False) -> None:
        super().__init__()
        self.net = net
        self.softmax = softmax
        self.outputs = ("probabilities",) if softmax else net.outputs
        self.eval()

    def forward(self, pixel_values: Tensor) -> Tensor | tuple[Tensor, ...]:
        dtype = next(self.net.parameters()).dtype
        found = self.net(pixel_values if dtype == torch.float32 else pixel_values.to(dtype))
        if isinstance(found, tuple):
            return tuple(output.float() if output.is_floating_point() else output for output in found)
        found = found.float()
        return found.softmax(dim=1) if self.softmax else found


def dynamic_shapes(batch: int | None, size: tuple[int, int] | None) -> dict[str, dict[int, torch.export.Dim]] | None:
    """What torch.export is told about `pixel_values`; None where all is fixed."""
    free: dict[int, torch.export.Dim] = {}
    if batch is None:
        free[0] = torch.export.Dim("batch", min=1)
    if size is None:
        free |= {axis: torch.export.Dim(side, min=LEAST_TRACED) for axis, side in ((2, "height"), (3, "width"))}
    return {"pixel_values": free} if free else None


def example_for(options: Options) -> Tensor:
    """Zeros to trace with: `(B, C, H, W)`, of the fixed shape where one is asked for."""
    # A free batch must not be 1, which would be taken for a constant, and free sizes must give maps larger than 1x1.
    height, width = options.size or (max(side, 64) for side in options.example.shape[2:])
    shape = (options.batch or 2, options.example.shape[1], height, width)
    return torch.zeros(shape).contiguous(memory_format=torch.channels_last)


@contextlib.contextmanager
def silent() -> Iterator[None]:
    """Without what converters print, log, warn of and send, and without the handlers that some give the root logger.

    Nor with transformers' checks.
    """
    root, disabled = logging.getLogger(), logging.root.manager.disable
    handlers, level = list(root.handlers), root.level
    logging.disable(logging.WARNING)
    try:
        with (
            environment(UNCHECKED | NO_USAGE_DATA),
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
        root.handlers[:] = handlers
        root.setLevel(level)
