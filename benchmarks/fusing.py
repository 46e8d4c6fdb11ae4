"""What fusing gains on a CPU, a step more from row to row, in OpenVINO: all rows are called in turn in one run.

python benchmarks/fusing.py --variant xs --batch 1
"""

from __future__ import annotations

import argparse
import random
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from swiftformer.benchmark.candidates import Case, WithLogits, ours_in_file, peer_in_openvino
from swiftformer.benchmark.latency import describe_machine, time_calls
from swiftformer.benchmark.runtimes import Run, open_file
from swiftformer.deploy import fuse
from swiftformer.environment import import_openvino
from swiftformer.export.graph import silent


def converted(case: Case, net: nn.Module, name: str) -> Path:
    """A network as OpenVINO converts it."""
    openvino = import_openvino()

    file = case.folder / f"{name}.xml"
    with silent(), torch.no_grad():
        shape = tuple(case.pixels.shape)
        net = net.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        openvino.save_model(
            openvino.convert_model(net, example_input=case.pixels, input=[shape]), file, compress_to_fp16=False
        )
    return file


FILES: dict[str, Callable[[Case], Path]] = {
    "timm": peer_in_openvino("timm"),
    "as it is trained": lambda case: converted(case, WithLogits(case.model()), "plain"),
    "fused": lambda case: converted(case, fuse(case.model()), "fused"),
    "exported: keys and queries as two products": ours_in_file("openvino", "fp32"),
}


def options(description: str) -> Any:
    """Of the command line; also tells the machine."""
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("--variant", default="xs")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--seconds", type=float, default=0.15, help="of each row in a round")
    arguments = parser.parse_args()
    print(
        {key: value for key, value in describe_machine().items() if key in ("processor", "cores", "torch", "openvino")}
    )
    return arguments


def main() -> None:
    arguments = options(__doc__)
    with tempfile.TemporaryDirectory() as folder:
        size = (arguments.size, arguments.size)
        case = Case(arguments.variant, arguments.batch, size, None, "cpu", Path(folder))
        files = {name: write(case) for name, write in FILES.items()}
        print(f"{arguments.variant}, batch {arguments.batch}, {arguments.size}x{arguments.size}\n")
        print("| | precision | median ms | over timm's, median of the rounds | quartiles |\n|---|---|---|---|---|")
        for precision in ("fp32", "bf16"):
            runs = {name: open_file(file, "openvino", precision, None) for name, file in files.items()}
            table(runs, case.pixels.numpy(), precision, arguments)


def table(runs: dict[str, Run], pixels: np.ndarray, precision: str, arguments: Any, base: str = "timm") -> None:
    """A line for each, with the ratio to `base` in the same round."""
    rounds: dict[str, list[float]] = {name: [] for name in runs}
    generator = random.Random(0)
    for _ in range(arguments.rounds):
        for name in generator.sample(list(runs), len(runs)):
            rounds[name].append(float(np.median(time_calls(lambda n=name: runs[n](pixels), arguments.seconds))))  # type: ignore[misc]
    for name, times in rounds.items():
        low, middle, high = np.percentile(np.divide(times, rounds[base]), [25, 50, 75])
        print(f"| {name} | {precision} | {1e3 * np.median(times):.2f} | {middle:.3f} | {low:.3f} to {high:.3f} |")


if __name__ == "__main__":
    main()
