"""What a model costs besides time: its start-up and its memory, each in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from swiftformer.variants import get_variant

if TYPE_CHECKING:
    from swiftformer.benchmark.candidates import Candidate, Case

ANSWER = "footprint: "
PATIENCE = 600  # seconds


def footprint(candidate: Candidate, case: Case) -> dict[str, float]:
    """Run a candidate once in a new process.

    Returns:
        `start_seconds`, from the start of the process to its first answer; `load_seconds`, of these what importing the
        runtime, loading and the first call take; `memory_mb`, the most that the process had in memory. Candidates in
        torch, which are eager ones, make a network with random weights instead of loading it.

    Raises:
        RuntimeError: the process failed.
        subprocess.TimeoutExpired: it did not end.
    """
    asked = {
        "implementation": candidate.implementation,
        "engine": candidate.engine,
        "precision": candidate.precision,
        "variant": case.variant,
        "batch": case.batch,
        "size": case.size,
        "threads": case.threads,
        "file": None if candidate.file is None else str(candidate.file(case)),
    }
    # Installed packages have bytecode. Where none is written here, each start would compile all that it imports.
    environment = {**os.environ, "PYTHONPYCACHEPREFIX": str(case.folder / "bytecode")}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    for _ in range(2 if sys.dont_write_bytecode else 1):
        start = time.time()
        done = subprocess.run(
            [sys.executable, "-m", "swiftformer.benchmark.footprint", json.dumps(asked)],
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            env=environment if sys.dont_write_bytecode else None,
        )
    answers = [line for line in done.stdout.splitlines() if line.startswith(ANSWER)]
    if done.returncode or not answers:
        raise RuntimeError((done.stderr.strip().splitlines() or ["the process died"])[-1])
    found = json.loads(answers[0].removeprefix(ANSWER))
    return {"start_seconds": found.pop("answered") - start, **found}


def main() -> None:
    """The process: load, answer once, tell."""
    asked = json.loads(sys.argv[1])
    begin = time.perf_counter()
    if asked["file"] is None:
        _in_torch(asked)
    else:
        from swiftformer.benchmark.runtimes import open_file

        run = open_file(Path(asked["file"]), asked["engine"], asked["precision"], asked["threads"])
        run(np.zeros((asked["batch"], 3, *asked["size"]), np.float32))
    found = {"answered": time.time(), "load_seconds": time.perf_counter() - begin}
    if (memory := peak_memory()) is not None:
        found["memory_mb"] = memory / 2**20
    print(ANSWER + json.dumps(found))


def _in_torch(asked: dict[str, Any]) -> None:
    """An eager network with random weights, and nothing but what a program that runs it imports."""
    import torch

    torch.set_num_threads(asked["threads"] or torch.get_num_threads())
    net: Any
    if asked["implementation"] == "timm":
        import timm

        net = timm.create_model(f"swiftformer_{asked['variant']}")
    elif asked["implementation"] == "transformers":
        from transformers.models.swiftformer import SwiftFormerConfig, SwiftFormerForImageClassification

        variant = get_variant(asked["variant"])
        config = SwiftFormerConfig(depths=[*variant.depths], embed_dims=[*variant.embed_dims], num_labels=1000)
        net = SwiftFormerForImageClassification(config)
    else:
        import swiftformer

        net = swiftformer.SwiftFormerForImageClassification.from_variant(asked["variant"], num_labels=1000)
        net = swiftformer.fuse(net.eval())
    ours_or_asked = asked["implementation"] == "swiftformer" or asked["engine"].endswith("channels_last")
    layout = torch.channels_last if ours_or_asked else torch.contiguous_format
    pixels = torch.zeros(asked["batch"], 3, *asked["size"]).contiguous(memory_format=layout)
    with torch.inference_mode():
        net.eval().to(memory_format=layout)(pixels)


def peak_memory() -> int | None:
    """Bytes that this process had in memory at most; None on Windows, which is not asked."""
    try:
        # Not getrusage: Linux has it begin with what the process that started this one had.
        status = Path("/proc/self/status").read_text()
        return 1024 * int(status.split("VmHWM:")[1].split()[0])
    except (OSError, IndexError):
        if sys.platform == "win32":
            return None
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # of macOS, in bytes


if __name__ == "__main__":
    main()
