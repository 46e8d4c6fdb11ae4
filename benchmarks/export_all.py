"""Every format and precision for every variant: exported, run, compared with PyTorch; differences and sizes in a table.

    python benchmarks/export_all.py --output exports.jsonl

A line of JSON is added for each artifact, and what is there already is not repeated, so that it can be done in several
sittings. Random weights in the July 2023 form, 1000 classes, 224x224 pixels, layer scales of 0.1 so that every branch
is seen; compared, and int8 calibrated, on the photographs that come with the package. Accuracy is another question:
`swiftformer evaluate` answers it for a trained model.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from swiftformer import SwiftFormerForImageClassification
from swiftformer.export import FORMATS, export
from swiftformer.export.compare import samples
from swiftformer.image_processing import AUTHORS

VARIANTS = ("xs", "s", "l1", "l3")


def model(variant: str) -> Any:
    torch.manual_seed(0)
    net = SwiftFormerForImageClassification.from_variant(variant, num_labels=1000, global_query_weighting="l2")
    for name, parameter in net.named_parameters():
        if "layer_scale" in name:
            parameter.data.fill_(0.1)
    net.preprocessing = AUTHORS
    return net.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("exports.jsonl"))
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=VARIANTS)
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=list(FORMATS))
    arguments = parser.parse_args()
    lines = (
        [json.loads(line) for line in arguments.output.read_text().splitlines()] if arguments.output.exists() else []
    )
    done = {(line["variant"], line["format"], line["precision"]) for line in lines}
    for variant in arguments.variants:
        net = model(variant)
        for name in arguments.formats:
            for precision in FORMATS[name].precisions:
                if (variant, name, precision) in done:
                    continue
                calibrated = precision == "int8" and FORMATS[name].calibrated
                start = time.perf_counter()
                line: dict[str, Any] = {"variant": variant, "format": name, "precision": precision}
                with tempfile.TemporaryDirectory() as scratch:
                    folder = Path(scratch) / "artifact"
                    try:
                        artifact = export(
                            net, folder, name, precision=precision, calibration=samples() if calibrated else None
                        )
                        line |= artifact.comparison
                    except Exception as error:
                        line["error"] = str(error).splitlines()[0]
                    line["seconds"] = time.perf_counter() - start
                    line["bytes"] = sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())
                print(json.dumps(line), flush=True)
                lines.append(line)
                with arguments.output.open("a") as file:
                    file.write(json.dumps(line) + "\n")
    print(table(lines))


def table(lines: list[dict[str, Any]]) -> str:
    """Markdown: a row for each format and precision, a column for each variant."""
    found = {(line["variant"], line["format"], line["precision"]): line for line in lines}
    rows = [f"| format | precision | {' | '.join(VARIANTS)} |", "|---|---|" + "---|" * len(VARIANTS)]
    for name, target in FORMATS.items():
        for precision in target.precisions:
            cells = []
            for variant in VARIANTS:
                line = found.get((variant, name, precision))
                if line is None:
                    cells.append("")
                elif "error" in line:
                    cells.append(line["error"])
                else:
                    size = f"{line['bytes'] / 1e6:.1f} MB"
                    difference = line.get("max_relative_difference")
                    cells.append(f"not run here, {size}" if difference is None else f"{difference:.1e}, {size}")
            if any(cells):
                rows.append(f"| {name} | {precision} | {' | '.join(cells)} |")
    return "\n".join(rows)


if __name__ == "__main__":
    main()
