"""What there is to work with: processors, a GPU, and processes that load pictures."""

from __future__ import annotations

import os
import sys

# Of NVIDIA (whose devices may appear with the first call), Tegra, AMD, and Windows below WSL.
GPU_DRIVERS = ("/proc/driver/nvidia", "/dev/nvidiactl", "/dev/nvhost-gpu", "/dev/nvmap", "/dev/kfd", "/dev/dxg")
MOST_LOADERS = 16


def processors() -> int:
    """Those that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def may_have_gpu() -> bool:
    """Whether torch may find a GPU that it calls CUDA, told by the system's drivers: importing torch takes seconds."""
    if sys.platform == "win32":
        return os.path.exists(rf"{os.environ.get('SYSTEMROOT', 'C:/Windows')}\System32\nvcuda.dll")  # noqa: PTH110
    return any(map(os.path.exists, GPU_DRIVERS))


def loaders(device: str | None) -> int:
    """How many processes `swiftformer train` and `evaluate` load pictures with, unless they are told.

    A GPU waits for all that a machine can do, of which several processes have a part each; a CPU is busy itself.
    """
    here = processors()
    if device == "cpu" or (device is None and not may_have_gpu()):
        return min(2, here)
    # Slurm gives each process its own part; torchrun's share one, which may be less than the machine too.
    if here == os.cpu_count() or "TORCHELASTIC_RUN_ID" in os.environ:
        here //= int(os.environ.get("LOCAL_WORLD_SIZE") or 1)
    return max(1, min(MOST_LOADERS, here))


def are_forked() -> bool:
    """Whether processes that load pictures share what is in memory.

    On Windows, macOS, and with Python 3.14 on Linux each has its own, and begins with the script that asked for it.
    """
    import multiprocessing

    methods = multiprocessing.get_all_start_methods()  # the system's own first
    return (multiprocessing.get_start_method(allow_none=True) or methods[0]) == "fork"
