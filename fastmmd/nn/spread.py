"""A batch that is spread over processes: gradients averaged over them, and random numbers as one process draws them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.optim import Optimizer

from ..ops.shards import Shards

_one_generator: Shards | None = None  # whose processes draw the numbers of all of them, and keep their own
_parts = 1  # of the rows that a network sees at once, each with its own rows of every process


@contextmanager
def one_generator(shards: Shards | None) -> Iterator[None]:
    """For batches of one size on every process, whose generators are in the same state: they draw as one process does.

    Each draws the noise, the dropout and the draws from the prior of the whole batch and keeps those of its own rows.
    So processes with shards of a batch repeat what one process makes of it.
    """
    global _one_generator
    before, _one_generator = _one_generator, shards
    try:
        yield
    finally:
        _one_generator = before


@contextmanager
def in_parts(count: int) -> Iterator[None]:
    """For a network on rows that are several batches one after the other: one process has all rows of each in turn."""
    global _parts
    before, _parts = _parts, count
    try:
        yield
    finally:
        _parts = before


def own_rows(count: int, draw: Callable[[int], Tensor]) -> Tensor:
    """draw(count), rows for the points of this process: under `one_generator` its part of those of all."""
    if _one_generator is None:
        return draw(count)
    return draw(count * _one_generator.count)[own_slice(count)]


def normal_rows(like: Tensor, shape: Sequence[int], generator: torch.Generator | None = None) -> Tensor:
    """Draws from N(0, I) in the dtype and on the device of `like`."""
    return own_rows(
        shape[0],
        lambda rows: torch.randn((rows, *shape[1:]), generator=generator, device=like.device, dtype=like.dtype),
    )


def own_slice(count: int) -> slice:
    """Where `count` rows of this process are among those of all."""
    start = 0 if _one_generator is None else count * _one_generator.rank
    return slice(start, start + count)


def own_count(name: str, count: int) -> int:
    """How many of `count` for a whole batch fall to this process.

    Raises:
        ValueError: they cannot be shared out evenly.
    """
    if _one_generator is None:
        return count
    if count % _one_generator.count:
        raise ValueError(f"{name}: got {count}, expected a multiple of the {_one_generator.count} processes")
    return count // _one_generator.count


class Dropout(nn.Dropout):
    """The same, of rows that may be some of a batch."""

    def forward(self, x: Tensor) -> Tensor:
        if _one_generator is None or not self.training or self.p == 0:
            return super().forward(x)
        of_all = x.new_empty(len(x) * _one_generator.count, *x.shape[1:]).bernoulli_(1 - self.p)
        kept: Tensor = of_all.unflatten(0, (_parts, -1))[:, own_slice(len(x) // _parts)].flatten(0, 1)
        return x * kept / (1 - self.p)


@contextmanager
def without_dropout(network: nn.Module) -> Iterator[None]:
    """A network in training that drops nothing."""
    dropping = [part for part in network.modules() if isinstance(part, nn.Dropout) and part.training]
    for part in dropping:
        part.eval()
    try:
        yield
    finally:
        for part in dropping:
            part.train()


class _Total(torch.autograd.Function):
    """The sum over all processes, each of which has a loss that depends on it."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, shards: Shards) -> Tensor:
        ctx.shards = shards
        return shards.total(values)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return ctx.shards.total(grad), None


class BatchNorm1d(nn.BatchNorm1d):
    """The same, of rows that may be some of a batch: by the statistics of all, on any device.

    torch.nn.SyncBatchNorm is for GPUs alone.
    """

    shards: Shards | None = None

    def forward(self, x: Tensor) -> Tensor:
        return _normalized(self, x, self.shards) if self.training and self.shards is not None else super().forward(x)


class BatchNorm2d(nn.BatchNorm2d):
    """The same, of images."""

    shards: Shards | None = None

    def forward(self, x: Tensor) -> Tensor:
        return _normalized(self, x, self.shards) if self.training and self.shards is not None else super().forward(x)


def _normalized(norm: nn.BatchNorm1d | nn.BatchNorm2d, x: Tensor, shards: Shards) -> Tensor:
    values, dims = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x, [0, *range(2, x.ndim)]
    shape = [1, -1, *[1] * (x.ndim - 2)]

    def total(sums: Tensor) -> Tensor:
        of_all: Tensor = _Total.apply(sums, shards)  # type: ignore[no-untyped-call]
        return of_all

    own = values.new_full((1,), values.numel() // values.shape[1])
    totals = total(torch.cat([values.sum(dims), own]))
    count = totals[-1].detach()
    mean = totals[:-1] / count
    centered = values - mean.view(shape)
    variance = total(centered.square().sum(dims)) / count
    assert norm.running_mean is not None and norm.running_var is not None and norm.momentum is not None
    with torch.no_grad():
        assert norm.num_batches_tracked is not None
        norm.num_batches_tracked.add_(1)
        norm.running_mean.lerp_(mean.to(norm.running_mean), norm.momentum)
        norm.running_var.lerp_((variance * count / (count - 1).clamp(min=1)).to(norm.running_var), norm.momentum)
    normal = centered * (variance + norm.eps).rsqrt().view(shape)
    if norm.affine:
        normal = normal * norm.weight.view(shape) + norm.bias.view(shape)
    return normal.to(x.dtype)


def share_statistics(model: nn.Module, shards: Shards | None) -> None:
    """For all batch normalization of this package in the model."""
    for module in model.modules():
        if isinstance(module, (BatchNorm1d, BatchNorm2d)):
            module.shards = shards


def average_gradients(optimizers: Sequence[Optimizer], shards: Shards) -> None:
    """The gradients of all their parameters become their means over the processes."""
    gradients = [
        parameter.grad
        for optimizer in optimizers
        for group in optimizer.param_groups
        for parameter in group["params"]
        if parameter.grad is not None
    ]
    for dtype in dict.fromkeys(gradient.dtype for gradient in gradients):
        some = [gradient for gradient in gradients if gradient.dtype == dtype]
        mean = shards.total(torch.cat([gradient.reshape(-1) for gradient in some])) / shards.count
        for gradient, part in zip(some, mean.split([gradient.numel() for gradient in some]), strict=True):
            gradient.copy_(part.view_as(gradient))


def unsynchronized() -> bool:
    """Whether there are several processes, as far as torch.distributed knows."""
    if torch.compiler.is_compiling() or not distributed.is_available() or not distributed.is_initialized():
        return False
    return distributed.get_world_size() > 1
