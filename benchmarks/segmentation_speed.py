"""What a picture takes a segmentation model in every engine, all measured in turn.

    python benchmarks/segmentation_speed.py models/swiftformer-xs-camvid models/swiftformer-l1-camvid --data camvid

"As it is" is the network as it was trained, in torch and as OpenVINO's own converter takes it; the other rows are
exports, and the checkpoint in torch and in the native engine. OpenVINO's and ONNX Runtime's int8 are calibrated on
pictures of the data. Times are medians of the rounds' medians; the last column holds the mIoU on the validation split.
"""

from __future__ import annotations

import argparse
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import swiftformer
from swiftformer.benchmark.latency import time_calls
from swiftformer.benchmark.runtimes import Run, open_file
from swiftformer.data.segmentation import open_segmentation
from swiftformer.engines import open_engine
from swiftformer.evaluate.segmentation import evaluate_reference
from swiftformer.export import export
from swiftformer.export.graph import silent

EXPORTS = (("openvino", "fp32"), ("openvino", "bf16"), ("openvino", "int8"), ("onnx", "fp32"))
NATIVE = ("fp32", "bf16", "int8")


class Scores(nn.Module):
    """A segmenter's logits, at a fourth of the picture's size."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, pixels: Tensor) -> Tensor:
        return self.net(pixels).logits


def as_it_is(net: Any, pixels: Tensor, folder: Path) -> dict[str, Run]:
    import openvino

    scores = Scores(net).eval()
    with silent(), torch.no_grad():
        converted = openvino.convert_model(scores, example_input=pixels, input=[tuple(pixels.shape)])
    openvino.save_model(converted, folder / "as_it_is.xml", compress_to_fp16=False)
    found: dict[str, Run] = {}
    for precision in ("fp32", "bf16"):
        found[f"as it is, OpenVINO {precision}"] = open_file(folder / "as_it_is.xml", "openvino", precision, None)
    scores = scores.to(memory_format=torch.channels_last)

    @torch.inference_mode()
    def eager(images: np.ndarray) -> Any:
        return scores(torch.from_numpy(images))

    return {"as it is, torch fp32": eager} | found


def measure(model: str, data: str, pictures: list[Any], rounds: int, folder: Path) -> tuple[dict, dict[str, float]]:
    """Seconds of each way in each round, and the mIoU of some."""
    pixels = torch.randn(1, 3, pictures[0].height, pictures[0].width)
    size = (pictures[0].height, pictures[0].width)
    runs = as_it_is(swiftformer.load(model).eval(), pixels, folder)
    accuracy = {"as it is, torch fp32": evaluate_reference(model, data)["miou"]}
    for format, precision in EXPORTS:
        place, given = folder / f"{format}-{precision}", pictures if precision == "int8" else None
        export(model, place, format, precision=precision, batch=1, size=size, calibration=given)
        name = f"{'OpenVINO' if format == 'openvino' else 'ONNX Runtime'} {precision}"
        runs[name], accuracy[name] = open_engine(place), evaluate_reference(place, data)["miou"]
    runs["torch fp32"] = open_engine(model, "torch")
    for precision in NATIVE:
        runs[f"native {precision}"] = open_engine(model, "native", precision=precision)
        found = evaluate_reference(model, data, engine="native", precision=precision)
        accuracy[f"native {precision}"] = found["miou"]
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            call = partial(run, pixels.numpy())
            times[name].append(float(np.median(time_calls(call, 0.3))))
    return times, accuracy


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="+")
    parser.add_argument("--data", required=True)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--pictures", type=int, default=100, help="to calibrate on")
    arguments = parser.parse_args()
    source = open_segmentation(arguments.data, "train")
    pictures = [source.image(i) for i in range(min(arguments.pictures, len(source)))]
    for model in arguments.models:
        with tempfile.TemporaryDirectory() as folder:
            times, accuracy = measure(model, arguments.data, pictures, arguments.rounds, Path(folder))
        print(f"\n{model}, {pictures[0].height}x{pictures[0].width} pixels\n")
        print("| engine | ms | quartiles | native is | mIoU |\n|---|---|---|---|---|")
        for name, taken in sorted(times.items(), key=lambda item: -float(np.median(item[1]))):
            low, middle, high = 1000 * np.quantile(taken, [0.25, 0.5, 0.75])
            ratio = np.median(np.divide(taken, times[f"native {name.split()[-1]}"]))
            miou = f"{accuracy[name]:.2f}" if name in accuracy else ""
            print(f"| {name} | {middle:.1f} | {low:.1f} to {high:.1f} | {ratio:.2f}x | {miou} |", flush=True)


if __name__ == "__main__":
    main()
