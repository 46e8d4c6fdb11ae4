"""The processes that load images: they outlive signals meant for the training, and die without a bang."""

from __future__ import annotations

import atexit
import logging
import signal
import threading
from collections.abc import Iterator
from multiprocessing import active_children
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from torch.utils.data import DataLoader

LOG_LINE = "%(asctime)s %(levelname)s %(message)s"
_processes: set[BaseProcess] = set()


def log_files() -> list[str]:
    """Where this package's messages go, as far as these are files."""
    handlers = logging.getLogger("swiftformer").handlers
    return [handler.baseFilename for handler in handlers if isinstance(handler, logging.FileHandler)]


def log_file(path: str | Path, delay: bool = False) -> logging.FileHandler:
    """What appends messages to a file, which may name files that are not called in UTF-8."""
    handler = logging.FileHandler(path, encoding="utf-8", errors="backslashreplace", delay=delay)
    handler.setFormatter(logging.Formatter(LOG_LINE))
    return handler


def begin(logs: list[str], worker: int) -> None:
    """In a loader process: outlive a SIGTERM or Ctrl-C that goes to all processes, as long as the state is saved, and
    write to the same log files, of which a process that is not forked knows nothing."""
    if not logging.root.handlers and not logging.getLogger("swiftformer").handlers:
        logging.getLogger("swiftformer").addHandler(logging.StreamHandler())
    for missing in set(logs) - set(log_files()):
        logging.getLogger("swiftformer").addHandler(log_file(missing))
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
    number = getattr(signal, "SIGCHLD", None)  # which Windows does not have
    handler, before = number and signal.getsignal(number), set(active_children())
    iterator = iter(loader)
    if number and threading.current_thread() is threading.main_thread():
        signal.signal(number, handler)
    _processes.difference_update([process for process in _processes if not process.is_alive()])
    _processes.update(set(active_children()) - before)
    return iterator
