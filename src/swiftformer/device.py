"""Where to compute."""

from __future__ import annotations

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

    Raises:
        ValueError: no such device, or not usable on this machine.
    """
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise _missing(name, error) from None
    return device


def _missing(name: str | torch.device, error: Exception) -> ValueError:
    return ValueError(f"device: expected one that this machine has, found {str(name)!r} ({one_line(error)})")
