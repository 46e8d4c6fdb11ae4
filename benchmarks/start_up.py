"""Whole processes from their start to the class of a picture: what does a start cost, and what of it is the runtime's?

    python benchmarks/start_up.py
    python benchmarks/start_up.py --formats native,onnx,openvino --processes 20
    python benchmarks/start_up.py --python runtime/bin/python    # of an environment without torch, see docs/export.md

Exports the bundled model in each format, then starts processes in turn: Python alone and with NumPy and Pillow, for
comparison; a script of five lines that opens the artifact in its own engine (onnx in ONNX Runtime) and classifies a
JPEG file; and `swiftformer classify
--json`; then both with the checkpoint itself, in native and in torch. Prints medians and quartiles, and stops where a
script imported torch that was not to. Bytecode is compiled beforehand, as pip does when it installs (and as uv does
with `--compile-bytecode`).
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from swiftformer.export import FORMATS, export

PICTURE = str(Path(__file__).parent.parent / "examples" / "images" / "cat.jpg")
SCRIPT = """
import sys
from swiftformer.engines import open_engine
engine = open_engine(sys.argv[1], sys.argv[3])
print(engine.labels[engine.probabilities(engine.preprocessing(sys.argv[2])).argmax()])
sys.exit("torch was imported" if "torch" in sys.modules and sys.argv[3] != "torch" else 0)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--formats", default="native,onnx,openvino,litert")
    parser.add_argument("--model", default="swiftformer-xs-cifar10")
    parser.add_argument("--processes", type=int, default=15, help="of each kind")
    parser.add_argument("--python", default=sys.executable, help="what the processes run in, if not in this Python")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        commands = {
            "Python": ["-c", ""],
            "Python with NumPy and Pillow": ["-c", "import numpy, PIL.Image"],
        }
        models = {}
        for name in arguments.formats.split(","):
            models[name] = str(Path(folder) / name), FORMATS[name].compared_in
            export(arguments.model, models[name][0], name)
        own = arguments.python == sys.executable  # others need not have torch
        for name in [*(found for found in models if found == "native"), *(["torch"] if own else [])]:
            models[f"the checkpoint in {name}"] = arguments.model, name
        for name, (model, engine) in models.items():
            commands[f"{name}, script"] = ["-c", SCRIPT, model, PICTURE, engine]
            options = ("--json", "--model", model, "--engine", engine)
            commands[f"{name}, `swiftformer classify`"] = ["-m", "swiftformer", "classify", *options, PICTURE]
        environment = {**os.environ, "PYTHONPYCACHEPREFIX": str(Path(folder) / "bytecode")}
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        seconds: dict[str, list[float]] = {name: [] for name in commands}
        for number in range(1 + arguments.processes):
            for name, command in commands.items():
                start = time.perf_counter()
                done = subprocess.run([arguments.python, *command], env=environment, capture_output=True, text=True)
                taken = time.perf_counter() - start
                if done.returncode:
                    sys.exit(f"{name}: {(done.stderr.strip().splitlines() or ['no answer'])[-1]}")
                if number:  # the first one writes the bytecode
                    seconds[name].append(taken)
    print("| | median s | quartiles |\n|---|---|---|")
    for name, taken_each in seconds.items():
        low, median, high = np.quantile(taken_each, (0.25, 0.5, 0.75))
        print(f"| {name} | {median:.3f} | {low:.3f} to {high:.3f} |")


if __name__ == "__main__":
    main()
