"""Where to compute."""

from __future__ import annotations

import os
from typing import Any

import torch

from swiftformer.messages import one_line


def on_cpu(name: str | torch.device | None) -> bool:
    """Whether `select_device` chooses the CPU, told without touching a GPU: each process takes another one.

    Raises:
        ValueError: no such device.
    """
    if name is None:
        return not torch.cuda.is_available()
    try:
        return torch.device(name).type == "cpu"
    except RuntimeError as error:
        raise _missing(name, error) from None


def select_device(name: str | torch.device | None) -> torch.device:
    """The device of that name; where None is given, CUDA if there is one, else the CPU.

    Of several processes, as torchrun and Slurm start them, each takes the GPU of its LOCAL_RANK.

    Raises:
        ValueError: no such device, or not usable on this machine.
    """
    if name is None:
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        several = int(os.environ.get("WORLD_SIZE", "1")) > 1 and "LOCAL_RANK" in os.environ
        if several and device == torch.device("cuda") and (count := torch.cuda.device_count()):
            device = torch.device("cuda", int(os.environ["LOCAL_RANK"]) % count)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise _missing(name, error) from None
    return device


def moved(x: Any, device: str | torch.device) -> Any:
    """`x.to(device)`, which only CUDA is not waited for: elsewhere memory may be read after it was freed."""
    return x.to(device, non_blocking=torch.device(device).type == "cuda")


def _missing(name: str | torch.device, error: Exception) -> ValueError:
    return ValueError(f"device: expected one that this machine has, found {str(name)!r} ({one_line(error)})")
