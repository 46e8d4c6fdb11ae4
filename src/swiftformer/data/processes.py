"""The processes that load images: they outlive signals meant for the training, and die without a bang."""

from __future__ import annotations

import atexit
import signal
import threading
from collections.abc import Iterator
from multiprocessing import active_children
from multiprocessing.process import BaseProcess
from typing import Any

from torch.utils.data import DataLoader

_processes: set[BaseProcess] = set()


def ignore_signals(worker: int) -> None:
    """Let loader processes outlive a SIGTERM or Ctrl-C that goes to all processes, as long as the state is saved."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)


@atexit.register
def _end_processes() -> None:
    """Python ends its child processes with the SIGTERM that these ignore, and would wait for them for ever."""
    for process in _processes:
        if process.is_alive():
            process.kill()


def quietly_started(loader: DataLoader[Any]) -> Iterator[Any]:
    """An iterator whose processes, when they die, make `next` raise and nothing else.

    torch raises from a signal handler, wherever the program happens to be: within an update of the weights, say.
    """
    in_main_thread = threading.current_thread() is threading.main_thread()
    handler, before = signal.getsignal(signal.SIGCHLD), set(active_children())
    iterator = iter(loader)
    if in_main_thread:
        signal.signal(signal.SIGCHLD, handler)
    _processes.difference_update([process for process in _processes if not process.is_alive()])
    _processes.update(set(active_children()) - before)
    return iterator
