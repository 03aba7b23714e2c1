"""The regularizer's share of the time of a training step."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from fastmmd.nn import Regularizer

FIRST, EVERY = 10, 50  # steps at which to measure: a warm step, then periodically


class RegularizerTimer:
    """Measures the regularizer's share of the step time on sampled steps; the others run untouched.

    A sampled step carries hooks around the regularizer's forward and backward pass and the update of its
    adversary. On a GPU it waits for the device at each of them, to time the work and not its launch.
    The backward pass ends when the gradients of all inputs are there, the posterior's moments included.
    """

    def __init__(self, regularizer: Regularizer, device: torch.device) -> None:
        self._regularizer = regularizer
        self._device = device
        self._inside = 0.0
        self._total = 0.0
        self._started: float | None = None

    @property
    def share(self) -> float | None:
        """Seconds inside the regularizer over seconds of the whole steps, sampled so far."""
        return self._inside / self._total if self._total else None

    @contextlib.contextmanager
    def step(self, step: int) -> Iterator[None]:
        """Around one training step, number `step` of the run."""
        if step % EVERY != FIRST:
            yield
            return
        module = self._regularizer
        hooks = [
            module.register_forward_pre_hook(self._before_forward),
            module.register_forward_hook(self._after_forward),
        ]
        module.update = self._timed(module.update)  # type: ignore[method-assign]  # on the instance, over the class's method
        start = self._now()
        try:
            yield
        finally:
            del module.update
            for hook in hooks:
                hook.remove()
        self._total += self._now() - start
        self._started = None

    def _before_forward(self, _module: Any, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        arguments = tuple(map(self._watched, arguments))
        self._start()
        return arguments

    def _after_forward(self, _module: Any, _arguments: Any, loss: Tensor) -> None:
        self._stop()
        if loss.requires_grad:
            loss.register_hook(self._start)

    def _watched(self, argument: Any) -> Any:
        """Stop when the regularizer's gradient reaches a tensor, or each of a named tuple's (the moments).

        The hook sits on a view: the tensor itself also collects gradients from elsewhere, and later.
        """
        if isinstance(argument, Tensor) and argument.requires_grad:
            view = argument.view_as(argument)
            view.register_hook(self._stop)
            return view
        if isinstance(argument, tuple) and hasattr(argument, "_fields"):
            return type(argument)(*map(self._watched, argument))
        return argument

    def _timed(self, function: Callable[..., None]) -> Callable[..., None]:
        def run(*arguments: object) -> None:
            self._start()
            function(*arguments)
            self._stop()

        return run

    def _start(self, *_: Any) -> None:
        self._started = self._now()

    def _stop(self, *_: Any) -> None:
        """Count the time since the last start or stop."""
        if self._started is not None:
            now = self._now()
            self._inside += now - self._started
            self._started = now  # the backward pass stops once for every input

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()
