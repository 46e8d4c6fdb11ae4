"""The native engine in two builds, in turn: what did a change to it gain?

    git worktree add /tmp/before HEAD~1
    pip install --no-deps --target /tmp/a /tmp/before/native
    pip install --no-deps --target /tmp/b ./native
    python benchmarks/native_builds.py /tmp/a /tmp/b --precision int8

Each build is loaded by a process of its own, and the processes are asked in turn, for a fraction of a second each time.
Prints the median of each over all rounds and its quartiles, and the median of the ratios of neighbouring rounds: above
1, the second build is faster. Random weights.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np


def serve(precision: str, threads: int, isa: str, size: int) -> None:
    """Answers each line `VARIANT BATCH SECONDS` with the median milliseconds of a call."""
    import swiftformer_native
    import torch

    from swiftformer import SwiftFormerForImageClassification
    from swiftformer.deploy import fuse
    from swiftformer.engines.native import build
    from swiftformer.export.native import network_of

    wanted, found = os.environ["PYTHONPATH"], swiftformer_native.__file__
    if not Path(found).is_relative_to(Path(wanted).resolve()):
        sys.exit(f"expected swiftformer_native in {wanted}, found {found}")
    networks: dict[str, Any] = {}
    for line in sys.stdin:
        variant, batch, seconds = line.split()
        if variant not in networks:
            torch.manual_seed(0)
            net = SwiftFormerForImageClassification.from_variant(variant).eval()
            networks[variant] = build(*network_of(fuse(net)), isa, precision, threads)
        pixels = np.random.default_rng(0).standard_normal((int(batch), 3, size, size), dtype=np.float32)
        networks[variant](pixels)
        taken, end = [], time.perf_counter() + float(seconds)
        while time.perf_counter() < end:
            start = time.perf_counter()
            networks[variant](pixels)
            taken.append(time.perf_counter() - start)
        print(np.median(taken) * 1e3, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("builds", nargs=2, help="folders with swiftformer_native inside")
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--isa", default="auto")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--variants", default="xs,l1")
    parser.add_argument("--batch", default="1,16")
    parser.add_argument("--size", type=int, default=224, help="height and width")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=0.5, help="of a round")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        serve(arguments.precision, arguments.threads, arguments.isa, arguments.size)
        return
    workers = [
        subprocess.Popen(
            [sys.executable, __file__, *sys.argv[1:], "--serve"],
            env={**os.environ, "PYTHONPATH": str(Path(build).resolve())},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for build in arguments.builds
    ]
    size = f"{arguments.size}x{arguments.size}"
    print(f"{arguments.precision}, {arguments.threads} threads, {size}, median ms (quartiles)\n")
    print("| | first | second | first / second |\n|---|---|---|---|")
    for variant in arguments.variants.split(","):
        for batch in arguments.batch.split(","):
            rounds = []
            for _ in range(arguments.rounds):
                row = []
                for worker in workers:
                    assert worker.stdin and worker.stdout
                    print(variant, batch, arguments.seconds, file=worker.stdin, flush=True)
                    if not (answer := worker.stdout.readline()):
                        sys.exit(worker.wait())
                    row.append(float(answer))
                rounds.append(row)
            table = np.array(rounds)
            cells = [f"{np.median(t):.2f} ({np.quantile(t, 0.25):.2f} to {np.quantile(t, 0.75):.2f})" for t in table.T]
            ratios = table[:, 0] / table[:, 1]
            spread = f"{np.quantile(ratios, 0.25):.2f} to {np.quantile(ratios, 0.75):.2f}"
            print(
                f"| {variant}, batch {batch} | {cells[0]} | {cells[1]} | {np.median(ratios):.2f} ({spread}) |",
                flush=True,
            )
    for worker in workers:
        worker.communicate()


if __name__ == "__main__":
    main()
