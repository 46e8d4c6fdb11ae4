"""What a picture takes segmentation models and detectors in every engine, all measured in turn.

    python benchmarks/dense_speed.py models/swiftformer-xs-camvid models/swiftformer-l1-camvid --data camvid
    python benchmarks/dense_speed.py models/swiftformer-xs-bccd --data bccd --size 256x320

"As it is" is a segmentation model as it was trained, in torch and as OpenVINO's own converter takes it; the other rows
are exports, and the checkpoint in torch and in the native engine, all fused. OpenVINO's int8 is calibrated on pictures
of the data. Times are medians of the rounds' medians; the last column holds the mIoU or AP on the validation split.
"""

from __future__ import annotations

import argparse
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from dense_quality import Scores, in_openvino
from torch import Tensor

import swiftformer
from swiftformer.benchmark.latency import time_calls
from swiftformer.benchmark.runtimes import Run
from swiftformer.checkpoints import stored_task
from swiftformer.cli_options import parse_size
from swiftformer.data.detection import open_detection
from swiftformer.data.segmentation import open_segmentation
from swiftformer.engines import open_engine
from swiftformer.evaluate import detection, segmentation
from swiftformer.export import FORMATS, export

EXPORTS = {
    "segmentation": (("openvino", "fp32"), ("openvino", "bf16"), ("openvino", "int8"), ("onnx", "fp32")),
    "detection": (("openvino", "fp32"), ("onnx", "fp32")),
}
NATIVE = {"segmentation": ("fp32", "bf16", "int8"), "detection": ()}
OPEN = {"segmentation": open_segmentation, "detection": open_detection}
EVALUATE = {"segmentation": segmentation.evaluate_reference, "detection": detection.evaluate_reference}
MEASURE = {"segmentation": "miou", "detection": "AP"}
RUNTIMES = {"openvino": "OpenVINO", "onnx": "ONNX Runtime"}


def as_it_is(model: str, pixels: Tensor, folder: Path) -> dict[str, Run]:
    scores = Scores(swiftformer.load(model)).eval()
    found = in_openvino(scores, pixels, folder / "as_it_is.xml")
    scores = scores.to(memory_format=torch.channels_last)

    @torch.inference_mode()
    def eager(images: np.ndarray) -> Any:
        return scores(torch.from_numpy(images))

    return {f"as it is, {name}": run for name, run in {"torch fp32": eager, **found}.items()}


def measure(
    model: str, data: str, size: tuple[int, int], pictures: list[Any], rounds: int, folder: Path
) -> tuple[dict[str, list[float]], dict[str, float]]:
    """Seconds of each way in each round, and how good its answers are."""
    task = stored_task(model)
    pixels = torch.randn(1, 3, *size)
    accuracy_of = lambda *given, **options: EVALUATE[task](*given, **options)[MEASURE[task]]  # noqa: E731
    runs = as_it_is(model, pixels, folder) if task == "segmentation" else {}
    accuracy = {"torch fp32": accuracy_of(model, data)}
    runs["torch fp32"] = open_engine(model, "torch")
    for format, precision in EXPORTS[task]:
        place, given = folder / f"{format}-{precision}", pictures if precision == "int8" else None
        export(model, place, format, precision=precision, batch=1, size=size, calibration=given)
        name = f"{RUNTIMES[format]} {precision}"
        engine = FORMATS[format].compared_in
        runs[name], accuracy[name] = open_engine(place, engine), accuracy_of(place, data, engine=engine)
    for precision in NATIVE[task]:
        name = f"native {precision}"
        runs[name] = open_engine(model, "native", precision=precision)
        accuracy[name] = accuracy_of(model, data, engine="native", precision=precision)
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
    parser.add_argument("--size", help="HxW of the input; by default that of the first picture")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--pictures", type=int, default=100, help="to calibrate on")
    arguments = parser.parse_args()
    for model in arguments.models:
        source = OPEN[stored_task(model)](arguments.data, "train")
        pictures = [source.image(i) for i in range(min(arguments.pictures, len(source)))]
        size = parse_size(arguments.size) if arguments.size else (pictures[0].height, pictures[0].width)
        with tempfile.TemporaryDirectory() as folder:
            times, accuracy = measure(model, arguments.data, size, pictures, arguments.rounds, Path(folder))
        print(f"\n{model}, {size[0]}x{size[1]} pixels\n\n| engine | ms | quartiles | accuracy |\n|---|---|---|---|")
        for name, taken in sorted(times.items(), key=lambda item: -float(np.median(item[1]))):
            low, middle, high = 1000 * np.quantile(taken, [0.25, 0.5, 0.75])
            found = f"{accuracy[name]:.2f}" if name in accuracy else ""
            print(f"| {name} | {middle:.1f} | {low:.1f} to {high:.1f} | {found} |", flush=True)


if __name__ == "__main__":
    main()
