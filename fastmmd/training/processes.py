"""The processes that torchrun starts: how they find one another, agree, and end together."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar

import torch
from torch import distributed

from fastmmd.errors import UserError, first_line
from fastmmd.ops.shards import Shards

T = TypeVar("T")
MEETING = timedelta(hours=6)  # until all are there, of which one may fetch data, or have measured longer
PATIENCE = timedelta(seconds=50)  # of a process that waits for one that has ended, or does something else


class Processes:
    """Those that train one model together: this one alone."""

    shards: Shards | None = None
    leads = True  # this is the one that writes files and prints

    def agree(self, settings: str) -> None:
        """All train the same model.

        Raises:
            UserError: the processes were given different settings.
        """

    def any(self, number: int) -> int:
        """The largest number that one of them has; all have asked before one gets it."""
        return number

    def same(self, value: T) -> T:
        """What the leading process has, which may take it hours."""
        return value

    def wait(self) -> None:
        """Until all have come here, which may take them hours."""


class Group(Processes):
    """Processes with a shard each."""

    def __init__(self, shards: Shards) -> None:
        self.shards = self._shards = shards
        self.leads = shards.rank == 0

    def agree(self, settings: str) -> None:
        try:
            self._shards.agree(settings, [], torch.device("cpu"))
        except ValueError as error:
            raise UserError(f"the processes do not train the same model: {error}") from error

    def any(self, number: int) -> int:
        flag = torch.tensor([number])  # on the CPU, where nothing waits for a GPU
        distributed.all_reduce(flag, distributed.ReduceOp.MAX, group=self._shards.group)
        return int(flag)

    def same(self, value: T) -> T:
        box = [value]
        distributed.broadcast_object_list(box, 0, device=torch.device("cpu"))
        return box[0]

    def wait(self) -> None:
        distributed.all_reduce(torch.zeros(1))


def started_by_torchrun() -> bool:
    """Whether this is one of several processes."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1 and "RANK" in os.environ


def local_device(name: str) -> str:
    """The device of this process: of several GPUs its own."""
    if started_by_torchrun() and name.startswith(("auto", "cuda")) and torch.cuda.is_available():
        return f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
    return name


@contextmanager
def processes(device: torch.device) -> Iterator[Processes]:
    """Those that torchrun has started, or this one alone.

    Raises:
        UserError: another process has ended or no longer answers.
    """
    if not started_by_torchrun():
        yield Processes()
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    distributed.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo", timeout=MEETING)
    try:
        group = distributed.new_group(timeout=PATIENCE)
        yield Group(Shards(group))
    except RuntimeError as error:  # of which those of torch.distributed are
        if isinstance(error, distributed.DistError) or "gloo" in str(error).lower():
            raise UserError(
                f"another process has ended or does not answer ({first_line(error)}); its message says why. "
                "Continue with torchrun ... --resume RUN"
            ) from error
        raise
    finally:
        distributed.destroy_process_group()
