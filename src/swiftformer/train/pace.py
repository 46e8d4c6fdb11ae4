"""How often the loop looks at the loss, which waits for the device and the other processes each time."""

from __future__ import annotations

import time

LOG_EVERY = 20  # batches
LOG_SECONDS = 5.0  # torchrun and Slurm kill 30 seconds after they have asked several processes to stop


class Pace:
    """At which batches of an epoch to look: each `LOG_EVERY`-th, or more often where batches take long.

    Args:
        batch: the epoch's number of batches so far.
        accumulation: batches per update; it looks between updates only.
    """

    def __init__(self, batch: int, accumulation: int) -> None:
        self.accumulation = accumulation
        self.looked_at = self.next = batch
        self.since = time.perf_counter()

    def passed(self) -> float:
        """Seconds since it was looked at."""
        return time.perf_counter() - self.since

    def looked(self, batch: int, passed: float) -> None:
        """After a look at a batch, `passed` seconds after the one before, by what all processes agree on."""
        batches = batch - self.looked_at
        count = min(LOG_EVERY, int(LOG_SECONDS * batches / max(passed, 1e-9)))
        self.looked_at, self.since = batch, time.perf_counter()
        self.next = batch + max(count // self.accumulation, 1) * self.accumulation
