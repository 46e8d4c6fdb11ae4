"""Accuracy of every exported form of a trained model, run in its engine on real pictures.

    python benchmarks/export_accuracy.py --data CIFAR10 --output accuracy.jsonl

A line of JSON is added for each artifact, and what is there already is not repeated. Each is exported by the package's
own `export` (int8 calibrated with training pictures), opened by its own engine, and asked about the same pictures as
the model in PyTorch: top-1, how often the class is PyTorch's, and the size of the artifact.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from swiftformer import load
from swiftformer.data.sources import open_source
from swiftformer.deploy import fuse
from swiftformer.engines import open_engine
from swiftformer.export import FORMATS, calibration_pictures, export
from swiftformer.image_processing import Preprocessing

DEFAULT = ("openvino", "native", "onnx", "executorch", "litert", "coreml", "torch-export")
BATCH = 64
CALIBRATION = 300  # pictures, as the command line has it


def classes_of(run: Any, pixels: np.ndarray) -> np.ndarray:
    """The best class of each picture `(N, 3, H, W)`, `(N,)`."""
    found = []
    for start in range(0, len(pixels), BATCH):
        found.append(run(pixels[start : start + BATCH]).argmax(axis=1))
    return np.concatenate(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True)
    parser.add_argument("--model", default="swiftformer-xs-cifar10")
    parser.add_argument("--split", default="test")
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=DEFAULT)
    parser.add_argument("--precisions", nargs="+", help="all by default")
    parser.add_argument("--every", type=int, default=1, help="take every n-th picture")
    parser.add_argument("--output", type=Path, default=Path("accuracy.jsonl"))
    arguments = parser.parse_args()
    lines = (
        [json.loads(line) for line in arguments.output.read_text().splitlines()] if arguments.output.exists() else []
    )
    shared = {"model": arguments.model, "data": Path(arguments.data).name, "split": arguments.split}
    shared |= {"every": arguments.every}
    lines = [line for line in lines if shared.items() <= line.items()]
    done = {(line["format"], line["precision"]) for line in lines}

    model = load(arguments.model)
    source = open_source(arguments.data, arguments.split)
    assert source.classes == [model.config.id2label[i] for i in range(model.num_labels)]
    places = range(0, len(source), arguments.every)
    labels = np.array([source.labels[i] for i in places])
    fused = fuse(model)

    @cache
    def prepared(preprocessing: Preprocessing) -> np.ndarray:
        return np.concatenate([preprocessing([source.image(i)]) for i in places])

    def in_torch(batch: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return fused(torch.from_numpy(batch)).numpy()

    expected = classes_of(in_torch, prepared(model.preprocessing))

    def tell(line: dict[str, Any]) -> None:
        print(json.dumps(line), flush=True)
        lines.append(line)
        with arguments.output.open("a") as file:
            file.write(json.dumps(line) + "\n")

    shared["images"] = len(labels)
    if ("", "fp32") not in done:
        top1 = 100 * float((expected == labels).mean())
        tell({"format": "", "precision": "fp32", "top1": top1, "agreement": 100.0, "bytes": None, **shared})
    for name in arguments.formats:
        for precision in FORMATS[name].precisions:
            if (name, precision) in done or precision not in (arguments.precisions or (precision,)):
                continue
            calibrated = precision == "int8" and FORMATS[name].calibrated
            start = time.perf_counter()
            with tempfile.TemporaryDirectory() as scratch:
                folder = Path(scratch) / "artifact"
                calibration = calibration_pictures(arguments.data, CALIBRATION) if calibrated else None
                export(model, folder, name, precision=precision, calibration=calibration)
                size = sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())
                engine = open_engine(folder, FORMATS[name].compared_in)
                found = classes_of(engine.probabilities, prepared(engine.preprocessing))
            top1 = 100 * float((found == labels).mean())
            agreement = 100 * float((found == expected).mean())
            line = {"format": name, "precision": precision, "top1": top1, "agreement": agreement, "bytes": size}
            tell(line | shared | {"seconds": time.perf_counter() - start})
    print(table(lines))


def table(lines: list[dict[str, Any]]) -> str:
    """Markdown: a row for each artifact."""
    rows = ["| format | precision | images | top-1 | same class as PyTorch | size |", "|---|---|---|---|---|---|"]
    for line in lines:
        size = "" if line["bytes"] is None else f"{line['bytes'] / 1e6:.1f} MB"
        name = line["format"] or "PyTorch"
        accuracy = f"{line['top1']:.2f} | {line['agreement']:.2f}%"
        rows.append(f"| {name} | {line['precision']} | {line['images']} | {accuracy} | {size} |")
    return "\n".join(rows)


if __name__ == "__main__":
    main()
