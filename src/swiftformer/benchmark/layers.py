"""Where a fused network's time goes, layer by layer, in torch."""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from typing import Any

import torch
from torch import nn

from swiftformer.benchmark.latency import describe_machine
from swiftformer.deploy import DeployModel
from swiftformer.deploy_detection import DeployRCNN
from swiftformer.device import select_device


def profile_layers(
    net: DeployModel, batch: int = 1, size: tuple[int, int] = (224, 224), *, device: str | None = None, calls: int = 30
) -> dict[str, Any]:
    """Time every layer of a network, eagerly.

    Args:
        net: as `fuse` gives it.
        batch: pictures; 1 for an R-CNN detector, which takes one at a time.
        calls: of the network; the first fifth is not counted.

    Returns:
        `{"machine", "batch", "size", "total_ms", "rows"}`; rows in order with `layer`, `kind`, `median_ms` and `share`
        of the total. A layer that a call of the network runs several times, as a detector's do on each of its maps, has
        their sum. The rest is what no layer does, such as sums of branches, resizing and choosing boxes, and the
        measuring itself. Attention's own arithmetic, without its products, is the row of the attention itself.

    Raises:
        ValueError: several pictures for an R-CNN detector.
    """
    if batch != 1 and isinstance(net.detection_head, DeployRCNN):
        raise ValueError(f"batch: expected 1 for this detector, which takes one picture at a time, found {batch}")
    where = select_device(device or "cpu")
    net = net.to(where)
    pixels = torch.randn(batch, net.config.num_channels, *size, device=where).contiguous(
        memory_format=torch.channels_last
    )
    leaves: dict[str, nn.Module] = {"": net}
    leaves |= {name: m for name, m in net.named_modules() if name and not any(True for _ in m.children())}
    leaves |= {name: m for name, m in net.named_modules() if type(m).__name__ == "DeployAttention"}
    times: dict[str, list[float]] = defaultdict(list)
    starts: dict[str, float] = {}
    taken: dict[str, float] = {}  # of one call of the network

    def now() -> float:
        if where.type == "cuda":
            torch.cuda.synchronize(where)
        return time.perf_counter()

    handles = []
    for name, module in leaves.items():

        def before(_: nn.Module, __: Any, name: str = name) -> None:
            starts[name] = now()

        def after(_: nn.Module, __: Any, ___: Any, name: str = name) -> None:
            taken[name] = taken.get(name, 0.0) + now() - starts[name]

        handles += [module.register_forward_pre_hook(before), module.register_forward_hook(after)]
    try:
        with torch.inference_mode():
            for _ in range(calls):
                taken.clear()
                net(pixels)
                for name, seconds in taken.items():
                    times[name].append(seconds)
    finally:
        for handle in handles:
            handle.remove()
    medians = {name: 1e3 * statistics.median(found[calls // 5 :]) for name, found in times.items()}
    for name in medians:
        if type(leaves.get(name)).__name__ == "DeployAttention":
            medians[name] -= sum(value for inner, value in medians.items() if inner.startswith(f"{name}."))
    total = 1e3 * statistics.median(times[""][calls // 5 :])
    medians["rest"] = total - sum(value for name, value in medians.items() if name)
    del medians[""]
    rows = [
        {
            "layer": name,
            "kind": type(leaves.get(name)).__name__ if name in leaves else "",
            "median_ms": value,
            "share": value / total,
        }
        for name, value in medians.items()
    ]
    return {
        "machine": describe_machine(str(where)),
        "batch": batch,
        "size": list(size),
        "total_ms": total,
        "rows": rows,
    }
