"""What steps are made of: the losses of a batch, the optimizers, the descent, the count."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, ParamSpec

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ..ops.shards import Shards
from .spread import average_gradients

P = ParamSpec("P")

OptimizerName = Literal["adam", "muon"]

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


class MuonAdam(Optimizer):
    """Muon for the weight matrices, Adam for the other parameters, as one optimizer.

    Muon (Jordan et al. 2024) descends along the orthogonal factor of the momentum: all directions of a matrix alike. It
    needs far fewer steps where batches are large and steps few. A step moves the entries of a matrix by
    `learning_rate` in root mean square, which is what Adam's first step does, so both take rates of the same size.
    """

    def __init__(self, parameters: list[nn.Parameter], learning_rate: float, beta1: float = 0.9) -> None:
        matrices = [parameter for parameter in parameters if parameter.ndim == 2]
        others = [parameter for parameter in parameters if parameter.ndim != 2]
        # "match_rms_adamw" makes the root mean square 0.2 times the rate (Liu et al. 2025, "Muon is scalable").
        rate = 5 * learning_rate
        self._parts: list[Optimizer] = []
        if matrices:
            self._parts.append(torch.optim.Muon(matrices, lr=rate, weight_decay=0.0, adjust_lr_fn="match_rms_adamw"))
        if others:
            self._parts.append(adam(others, learning_rate, beta1))
        super().__init__([group for part in self._parts for group in part.param_groups], {})
        self._share()

    def _share(self) -> None:
        """The state and the groups of the whole become those of its parts."""
        for part, group in zip(self._parts, self.param_groups, strict=True):
            part.state, part.param_groups = self.state, [group]

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step of both; returns what the closure does, which is evaluated first."""
        with torch.enable_grad():
            loss = None if closure is None else closure()
        for part in self._parts:
            part.step()
        return loss

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """For the parameters that it is made with.

        Raises:
            RuntimeError: for any others.
        """
        if len(self.param_groups) == len(self._parts):
            raise RuntimeError("optimizer: 'muon' takes no further parameters; give them an optimizer of their own")
        super().add_param_group(param_group)

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"_parts": self._parts}

    def __setstate__(self, state: dict[str, Any]) -> None:  # of a copy, and in load_state_dict
        super().__setstate__(state)
        self._share()


def descent(name: OptimizerName, parameters: list[nn.Parameter], learning_rate: float, beta1: float) -> Optimizer:
    """The optimizer of encoder and decoder by name."""
    return (adam if name == "adam" else MuonAdam)(parameters, learning_rate, beta1)


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
def descend(loss: Tensor, *optimizers: Optimizer, shards: Shards | None = None) -> None:
    """One step of each optimizer on the gradient of a 0-d loss, on its mean over the processes of `shards`."""
    for optimizer in optimizers:
        optimizer.zero_grad(set_to_none=True)
    loss.backward()
    if shards is not None:
        average_gradients(optimizers, shards)
    for optimizer in optimizers:
        optimizer.step()


class CountsSteps(nn.Module):
    """A module that counts its training steps, the first of which warm it up.

    Args:
        warmup_steps: how many of them.
    """

    def __init__(self, warmup_steps: int) -> None:
        super().__init__()
        self.warmup_steps = warmup_steps
        self.steps = 0
        self._unended = 0  # training batches since the last step that was counted

    @property
    def steps(self) -> int:
        """Training steps done."""
        return self._steps

    @steps.setter
    def steps(self, steps: int) -> None:
        # Compiled code reads whether the model warms up and not the count, which would compile it anew at each step.
        self._steps, self._warming = steps, steps < self.warmup_steps

    def get_extra_state(self) -> dict[str, Any]:
        return {"steps": self.steps}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self.steps = state["steps"]

    @outside_graphs
    def _count_step(self) -> None:
        self.steps += 1
        self._unended = 0

    def _expect_end_step(self, moves: bool) -> None:
        """Warns, once, of a loop that trains on batches and never ends a step.

        Args:
            moves: the end of a step moves an adversary.
        """
        if torch.compiler.is_compiling() or not (self.training and torch.is_grad_enabled()):
            return
        if moves or self._warming:
            self._unended += 1
            if self._unended == PATIENCE:
                what = "the adversary stands still" if moves else "the warm-up never ends"
                warnings.warn(
                    f"{PATIENCE} training batches without end_step(): {what}; call model.end_step(losses.codes, "
                    "labels) after each step of the optimizers",
                    stacklevel=5,
                )
