"""Stopping a run from outside: SIGTERM (a scheduler) and SIGINT (Ctrl-C) end it after its state was saved."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any, Self


class TrainingStopped(RuntimeError):
    """The run was asked to stop; the message says whether there is a state to resume. `signal` is what asked."""

    def __init__(self, message: str, signal: int) -> None:
        super().__init__(message)
        self.signal = signal


class StopRequest:
    """While entered, notes SIGTERM and SIGINT instead of dying of them; a second Ctrl-C acts as usual.

    A second SIGTERM does not: schedulers send several, and the state has to be saved first.

    `signal` is 0 until one arrives. In other threads than the main one, where Python delivers no signals, it stays 0.
    """

    def __init__(self) -> None:
        self.signal = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.signal = number
        if number == signal.SIGINT:
            signal.signal(number, self._before[number])
