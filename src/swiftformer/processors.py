"""How many processors there are to work with."""

from __future__ import annotations

import os


def loaders(beside_gpu: bool) -> int:
    """How many processes a training or an evaluation loads pictures with, unless it is told: a GPU waits for all that a
    machine can do, of which several processes have a part each; a CPU has enough to do itself."""
    here = processors() // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return max(1, min(16, here)) if beside_gpu else min(2, processors())


def processors() -> int:
    """Those that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
