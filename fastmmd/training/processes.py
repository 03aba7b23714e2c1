"""The processes that torchrun starts: how they find one another, agree, and end together."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from torch import distributed

from fastmmd.errors import UserError, first_line
from fastmmd.ops.shards import Shards

MEETING = timedelta(minutes=30)  # until all are there, one of which may fetch data first
PATIENCE = timedelta(seconds=50)  # of a process that waits for one that has ended, or does something else


@dataclass(frozen=True)
class Processes:
    """This process among those that train one model."""

    shards: Shards

    @property
    def leads(self) -> bool:
        """Whether this is the one that writes files and prints."""
        return self.shards.rank == 0

    def same(self, value: Any) -> Any:
        """What the first process has: a string, a number, None."""
        box = [value]
        distributed.broadcast_object_list(box, self.shards.global_rank(0), self.shards.group)
        return box[0]

    def agree(self, settings: str) -> None:
        """
        Raises:
            UserError: the processes were given different settings.
        """
        try:
            self.shards.agree(settings, [], self._device)
        except ValueError as error:
            raise UserError(f"the processes do not train the same model: {error}") from error

    def any(self, number: int) -> int:
        """The largest number that one of them has."""
        flag = torch.tensor([number], device=self._device)
        distributed.all_reduce(flag, distributed.ReduceOp.MAX, group=self.shards.group)
        return int(flag)

    @property
    def _device(self) -> torch.device:
        cuda = distributed.get_backend(self.shards.group) == "nccl"
        return torch.device("cuda", torch.cuda.current_device()) if cuda else torch.device("cpu")


def started_by_torchrun() -> bool:
    """Whether this is one of several processes."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1 and "RANK" in os.environ


def local_device(name: str) -> str:
    """The device of this process: of several GPUs its own."""
    if started_by_torchrun() and name in ("auto", "cuda") and torch.cuda.is_available():
        return f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
    return name


@contextmanager
def processes(device: torch.device) -> Iterator[Processes | None]:
    """Those that torchrun has started, on their devices; None for one that is alone.

    Raises:
        UserError: another process has ended or no longer answers.
    """
    if not started_by_torchrun():
        yield None
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    distributed.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=MEETING)
    try:
        group = distributed.new_group(timeout=PATIENCE)
        yield Processes(Shards(group))
    except RuntimeError as error:  # of which those of torch.distributed are
        if isinstance(error, distributed.DistError) or "gloo" in str(error).lower():
            raise UserError(
                f"another process has ended or does not answer ({first_line(error)}); its message says why. "
                "Continue with torchrun ... --resume RUN"
            ) from error
        raise
    finally:
        distributed.destroy_process_group()
