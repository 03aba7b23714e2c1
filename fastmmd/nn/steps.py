"""What steps are made of: the losses of a batch, the optimizers, the descent."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import NamedTuple, ParamSpec

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

P = ParamSpec("P")

PATIENCE = 100  # training batches without `end_step` until a warning


class Losses(NamedTuple):
    """What a batch costs, and its codes.

    The gradients of `loss` and `adversary` reach different parameters, so one backward pass of their sum serves both
    optimizers.

    Attributes:
        loss: 0-d, of encoder and decoder: reconstruction + regularizer_weight * regularizer.
        reconstruction, regularizer: 0-d, the terms of `loss`; the reconstruction is 0 while the model warms up.
        adversary: 0-d, of a trained adversary (AAE's discriminator); 0 without one.
        codes: [B, code_size], as drawn from the posterior.
    """

    loss: Tensor
    reconstruction: Tensor
    regularizer: Tensor
    adversary: Tensor
    codes: Tensor


def adam(parameters: list[nn.Parameter], learning_rate: float, beta1: float = 0.9) -> Optimizer:
    """Adam, fused where the device has it."""
    fused = all(parameter.device.type in ("cpu", "cuda") for parameter in parameters)
    return torch.optim.Adam(parameters, lr=learning_rate, betas=(beta1, 0.999), fused=fused or None)


def outside_graphs(function: Callable[P, None]) -> Callable[P, None]:
    """A function that torch.compile does not trace: it would compile it anew for each learning rate, or count."""

    @functools.wraps(function)
    def call(*arguments: P.args, **named: P.kwargs) -> None:
        # Not as a decorator: that would import the compiler with the package.
        if torch.compiler.is_compiling():
            torch.compiler.disable(function)(*arguments, **named)
        else:
            function(*arguments, **named)

    return call


@outside_graphs
def descend(loss: Tensor, optimizer: Optimizer) -> None:
    """One step of the optimizer on the gradient of a 0-d loss."""
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()


def remind_of_end_step(batches: int, what: str) -> None:
    """Warns a loop that has trained on so many batches without ending a step, once.

    Args:
        what: is wrong without it.
    """
    if batches == PATIENCE:
        warnings.warn(
            f"{batches} training batches without end_step(): {what}; call model.end_step(losses.codes, labels) after "
            "each step of the optimizers",
            stacklevel=5,
        )
