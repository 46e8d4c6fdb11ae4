"""What other packages' errors say, short enough to be part of a message."""

from __future__ import annotations

NO_MEMORY = (  # of torch on Linux, macOS and Windows
    "can't allocate memory",
    "not enough memory: you tried to allocate",
    "CUDA error: out of memory",
    "MPS backend out of memory",
)


def one_line(error: BaseException, line: int = 0) -> str:
    """A line of what an error says, or its class where it says nothing."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[line].strip()


def named(error: BaseException) -> str:
    """An error's class and the first line of what it says."""
    kind = type(error).__name__
    return f"{kind}: {one_line(error)}" if str(error).strip() else kind


def is_out_of_memory(error: BaseException) -> bool:
    """Told by name and text: to name the classes would be to import torch."""
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or any(text in str(error) for text in NO_MEMORY)
    )
