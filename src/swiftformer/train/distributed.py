"""Several processes that train one model. torchrun, `accelerate launch` or Slurm start them, this module joins them."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from swiftformer.device import on_cpu, select_device
from swiftformer.train.interruption import TrainingStopped
from swiftformer.train.sync_batchnorm import synchronize_batchnorm

Value = TypeVar("Value")

PATIENCE = timedelta(hours=1)  # with processes that come later, as one may unpack its data first


@dataclass(frozen=True)
class Processes:
    """This process among those of a run.

    Attributes:
        rank: number of this process, from 0.
        world_size: how many there are.
        device: where this one computes.
    """

    rank: int
    world_size: int
    device: torch.device

    @property
    def main(self) -> bool:
        """Whether this process writes files and shows progress."""
        return self.rank == 0

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum of all processes' tensors, in place."""
        if self.world_size > 1:
            torch.distributed.all_reduce(tensor)
        return tensor

    def gather_objects(self, value: Value) -> list[Value]:
        """All processes' values of any picklable kind, in the order of their ranks."""
        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        torch.distributed.all_gather_object(values, value)
        return values

    def wait(self) -> None:
        """Return when all processes are here."""
        self.sum(torch.zeros(1, device=self.device)).item()  # on a GPU the sum alone would only be queued

    def agree(self, number: int) -> bool:
        """Whether all processes have the same number."""
        return self.max(torch.tensor([number, -number], device=self.device)).tolist() == [number, -number]

    def share_buffers(self, module: nn.Module) -> None:
        """Give all processes the first one's buffers, such as the statistics of BatchNorm."""
        if self.world_size > 1:
            for buffer in module.buffers():
                torch.distributed.broadcast(buffer, src=0)

    def max(self, tensor: Tensor) -> Tensor:
        """The largest of all processes' tensors, in place."""
        if self.world_size > 1:
            torch.distributed.all_reduce(tensor, torch.distributed.ReduceOp.MAX)
        return tensor

    def wrap(self, net: nn.Module, sync_batchnorm: bool) -> nn.Module:
        """A module whose backward pass averages the gradients over the processes; `net` itself where there is one.

        With `sync_batchnorm` the BatchNorms of `net` are replaced by those that see the batches of all processes.
        """
        if self.world_size == 1:
            return net
        if sync_batchnorm:
            synchronize_batchnorm(net, self.device)
        return nn.parallel.DistributedDataParallel(
            net,
            device_ids=[self.device] if self.device.type == "cuda" else None,
            gradient_as_bucket_view=True,
        )


@contextlib.contextmanager
def join_processes(device: str | torch.device | None = None) -> Iterator[Processes]:
    """Join the other processes of the run, which the environment names (RANK, WORLD_SIZE, MASTER_ADDR, ...).

    On GPUs every process takes the one of its LOCAL_RANK and talks through NCCL, on CPUs through Gloo. Without those
    variables this is the only process.

    Raises:
        ValueError: `accelerate launch` was asked for sharding or DeepSpeed, the variables are not complete, or there is
            no such device.
    """
    for kind in ("FSDP", "DEEPSPEED"):
        if os.environ.get(f"ACCELERATE_USE_{kind}", "false").lower() in ("true", "1"):
            raise ValueError(
                f"expected copies of the network in all processes, the largest has 28 million weights, found {kind}: "
                "configure accelerate without it"
            )
    if int(os.environ.get("WORLD_SIZE", "1")) <= 1:
        yield Processes(0, 1, select_device(device))
        return
    from accelerate import PartialState

    if missing := [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]:
        raise ValueError(f"WORLD_SIZE is {os.environ['WORLD_SIZE']}: expected {', '.join(missing)} to be set as well")
    os.environ.setdefault("LOCAL_RANK", "0")
    started = not torch.distributed.is_initialized()
    state: Any = PartialState(cpu=on_cpu(device), timeout=PATIENCE)
    if state.num_processes != int(os.environ["WORLD_SIZE"]):
        raise ValueError(
            f"expected CPUs or GPUs for {os.environ['WORLD_SIZE']} processes, found that {state.device} is for one"
        )
    try:
        yield Processes(state.process_index, state.num_processes, state.device)
    except BaseException as error:
        if started and _may_leave(error):
            _leave(state)
        raise
    if started:
        _leave(state)


def _may_leave(error: BaseException) -> bool:
    """Whether the group can be given up although there was an error.

    NCCL waits for all processes there. Where one fails alone, others wait for it in turn: it has to end instead, which
    torchrun and Slurm see.
    """
    return torch.distributed.get_backend() != "nccl" or isinstance(error, TrainingStopped)


def _leave(state: Any) -> None:
    """End the process group, a moment after its last use.

    Gloo's threads take Python's lock to free the last tensors. Whoever ends the group waits for these threads, and
    DistributedDataParallel would do so with the lock in its hands.
    """
    from accelerate import PartialState

    time.sleep(0.1)
    state.destroy_process_group()
    PartialState._reset_state()
