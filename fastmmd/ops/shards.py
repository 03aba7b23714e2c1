"""Samples that are spread over the processes of a group of `torch.distributed`: who has what, and sums over all."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

import torch
from torch import Tensor, distributed
from torch.autograd.function import once_differentiable

Exchange = Literal["gather", "ring"]
Gradients = Literal["averaged", "summed"]
Group: TypeAlias = "distributed.ProcessGroup | Shards | None"


@dataclass(frozen=True)
class Shards:
    """The processes of which each has a shard of the points: what the argument `group` takes beside a ProcessGroup.

    Every process of the group makes the same call at the same time, each with its own points, as many as it has, none
    allowed. All get the value of one call with all points, and each the gradient in its own points.

    Args:
        group: of `torch.distributed`, gloo or NCCL; the default group by default, looked up at each call.
        exchange: "gather": every process receives all points, [N, D] numbers. "ring": they go round in shards, and a
            process holds two besides its own; its pairs with itself are computed anew for each.
        gradients: "averaged": those in the points are multiplied by the number of processes, for what takes their mean
            over the processes afterwards, as DistributedDataParallel, FSDP and Lightning do: parameters then get the
            gradient of one call with all points. "summed": as they are, for a sum.
            In what is the same on all processes, such as bandwidths, a process has its share: the mean, or the sum,
            over the processes is the gradient.

    Raises:
        TypeError: the group is none.
        ValueError: an unknown exchange or gradients; a group that this process is not in.
    """

    group: distributed.ProcessGroup | None = None
    exchange: Exchange = "gather"
    gradients: Gradients = "averaged"

    def __post_init__(self) -> None:
        given: object = self.group
        if isinstance(given, int) and not isinstance(given, bool):
            # What new_group gives to processes that are not among its ranks.
            raise ValueError(f"group: got {given}; this process is not in it, and only its members make the call")
        if given is not None and not (distributed.is_available() and isinstance(given, distributed.ProcessGroup)):
            raise TypeError(
                f"group: got {type(given).__name__}, expected a ProcessGroup, such as torch.distributed.group.WORLD, "
                "or fastmmd.Shards"
            )
        for name, value, allowed in (
            ("exchange", self.exchange, get_args(Exchange)),
            ("gradients", self.gradients, get_args(Gradients)),
        ):
            if not isinstance(value, str) or value not in allowed:
                raise ValueError(f"{name}: got {value!r}, expected {' or '.join(map(repr, allowed))}")

    def __deepcopy__(self, memo: dict[int, Any]) -> Shards:
        return self  # a group is no data: copies of a model are in the same one

    @property
    def rank(self) -> int:
        """Of this process in the group."""
        return distributed.get_rank(self.group)

    @property
    def count(self) -> int:
        """How many processes there are."""
        return distributed.get_world_size(self.group)

    def global_rank(self, rank: int) -> int:
        """The rank in the default group of a process of this one."""
        return rank if self.group is None else distributed.get_global_rank(self.group, rank)

    @property
    def gradient_scale(self) -> int:
        """What gradients of this process are multiplied by."""
        return self.count if self.gradients == "averaged" else 1

    def __copy__(self) -> Shards:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        if self.group is not None and self.group is not distributed.group.WORLD:
            raise TypeError("group: a process group cannot be saved; call model.synchronize(None) before, or save the "
                            "state_dict()")  # fmt: skip
        return Shards, (None, self.exchange, self.gradients)  # in another process the group is another

    def total(self, values: Tensor) -> Tensor:
        """The sum over all processes; the same bits on each."""
        return self._reduced(values, distributed.ReduceOp.SUM)

    def least(self, values: Tensor) -> Tensor:
        """The minimum over all processes, element by element."""
        return self._reduced(values, distributed.ReduceOp.MIN)

    def _reduced(self, values: Tensor, operation: Any) -> Tensor:
        values = values.detach().clone(memory_format=torch.contiguous_format)
        distributed.all_reduce(values, operation, group=self.group)
        return values

    def begin_alike(self, tensors: Sequence[Tensor]) -> None:
        """All processes get the values of the first one."""
        for tensor in tensors:
            distributed.broadcast(tensor.detach(), self.global_rank(0), group=self.group)

    def agree(self, settings: str, sizes: Sequence[int], device: torch.device) -> list[list[int]]:
        """The sizes, at most two, that each process gives.

        Raises:
            ValueError: their settings differ; on every process.
        """
        digest = int.from_bytes(hashlib.sha256(settings.encode()).digest()[:7], "little")
        own = torch.tensor([digest, *sizes, 0, 0][:3], device=device)  # as long for every call: any two may meet here
        all_ = [torch.empty_like(own) for _ in range(self.count)]
        distributed.all_gather(all_, own, group=self.group)
        digests, *columns = torch.stack(all_).T.tolist()
        if len(set(digests)) > 1:
            texts: list[Any] = [None] * self.count
            with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
                distributed.all_gather_object(texts, settings, group=self.group)
            other = next(rank for rank, text in enumerate(texts) if text != texts[0])
            raise ValueError(
                f"group: processes call with different settings: rank 0 with {texts[0]}, rank {other} with "
                f"{texts[other]}; expected the same on all"
            )
        return columns[: len(sizes)]

    @contextmanager
    def checking(self, tensor: object) -> Iterator[None]:
        """For checks of the arguments of this process: one that fails here raises on the others too, in their `agree`.

        Args:
            tensor: one of the arguments.
        """
        try:
            yield
        except (TypeError, ValueError) as error:
            device = tensor.device if isinstance(tensor, Tensor) else torch.device("cpu")
            with suppress(ValueError):
                self.agree(f"an error, {error}", [], device)
            raise

    def blocks(self, rows: Tensor, counts: Sequence[int]) -> Iterator[Tensor]:
        """The rows [n, C] of all processes, in blocks, each of all rows of some of them.

        Args:
            counts: n of each process.
        """
        return self._ring(rows, counts) if self.exchange == "ring" else iter([self._gathered(rows, counts)])

    def _gathered(self, rows: Tensor, counts: Sequence[int]) -> Tensor:
        most = max(counts)
        own = rows.new_zeros(most, rows.shape[1])
        own[: len(rows)] = rows.detach()
        all_ = [torch.empty_like(own) for _ in counts]
        distributed.all_gather(all_, own, group=self.group)
        return torch.cat([part[:count] for part, count in zip(all_, counts, strict=True)])

    def _ring(self, rows: Tensor, counts: Sequence[int]) -> Iterator[Tensor]:
        """Own rows first, then those of the process before, of the one before that, and so on."""
        rank = self.rank
        after, before = (self.global_rank((rank + step) % self.count) for step in (1, -1))
        block = rows.detach().contiguous()
        for step in range(1, self.count + 1):
            following, waiting = block, []
            if step < self.count:
                following = block.new_empty(counts[(rank - step) % self.count], block.shape[1])
                sends = [(distributed.isend, block, after)] if len(block) else []
                receives = [(distributed.irecv, following, before)] if len(following) else []
                exchange = [distributed.P2POp(*operation, group=self.group) for operation in (*sends, *receives)]
                waiting = distributed.batch_isend_irecv(exchange) if exchange else []
            yield block
            for request in waiting:
                request.wait()
            block = following

    def mean(self, sums: Tensor, mass: Tensor) -> Tensor:
        """The mean over the points of all processes, differentiable.

        Args:
            sums: over those of this one, by their weights, of any shape.
            mass: 0-d float64, the sum of their weights.

        Raises:
            ValueError: there is no point, or the weights of all sum to 0.
        """
        whole = self.total(mass)
        if whole == 0:
            raise ValueError("weights: got no point, or weights that sum to 0, on all processes together")
        share, part = mass / whole, sums / whole.to(sums.dtype)
        total = self.total(part)
        # Through its mass a point of larger weight takes from what all others count.
        change = part - part.detach() - (share - share.detach()).to(part.dtype) * total
        return total + self.scaled(change)

    def scaled(self, tensor: Tensor) -> Tensor:
        """The tensor, with a gradient that is multiplied by `gradient_scale`."""
        scaled: Tensor = _Scaled.apply(tensor, float(self.gradient_scale))  # type: ignore[no-untyped-call]
        return scaled


def shards_of(group: Group) -> Shards | None:
    """The shards that an argument `group` stands for.

    Raises:
        TypeError: it is something else.
        ValueError: this process is not one of the group.
        RuntimeError: there are no processes that could have shards.
    """
    if group is None:
        return None
    if not distributed.is_available() or not distributed.is_initialized():
        raise RuntimeError(
            "group: torch.distributed is not initialized; start the program with torchrun and call "
            "torch.distributed.init_process_group first"
        )
    shards = group if isinstance(group, Shards) else Shards(group)
    if shards.rank < 0:
        raise ValueError("group: this process is not in it; only its members make the call")
    return shards


class _Scaled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, scale: float) -> Tensor:
        ctx.scale = scale
        return tensor.view_as(tensor)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad * ctx.scale, None


class _Known(torch.autograd.Function):
    """A 0-d value of which the gradients are known."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, gradients: list[Tensor | None], *inputs: Tensor | None) -> Tensor:
        ctx.save_for_backward(*gradients)
        return value.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        products = [None if known is None else grad.to(known.dtype) * known for known in ctx.saved_tensors]
        return None, None, *products


def with_gradients(value: Tensor, inputs: Sequence[Tensor | None], gradients: Sequence[Tensor | None]) -> Tensor:
    """The 0-d value as a function of the inputs; a second derivative raises."""
    known: Tensor = _Known.apply(value, list(gradients), *inputs)  # type: ignore[no-untyped-call]
    return known
