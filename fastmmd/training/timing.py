"""How much of a training step the regulariser takes."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch

FIRST, EVERY = 10, 50  # steps at which to measure: a warm step, then now and then


class RegularizerTimer:
    """Measures the regulariser's share of the step time on sampled steps; the others run untouched.

    A sampled step carries hooks around the regulariser's forward and backward pass and the update of its
    adversary. On a GPU it waits for the device at each of them, so as to time the work and not its launch.
    """

    def __init__(self, regularizer: Any, device: torch.device) -> None:
        self._regularizer = regularizer
        self._device = device
        self._inside = 0.0
        self._total = 0.0
        self._started: float | None = None

    @property
    def share(self) -> float | None:
        """Seconds inside the regulariser over seconds of the whole steps, sampled so far."""
        return self._inside / self._total if self._total else None

    @contextlib.contextmanager
    def step(self, step: int) -> Iterator[None]:
        """Around one training step, number `step` of the run."""
        if step % EVERY != FIRST:
            yield
            return
        module = self._regularizer
        hooks = [
            module.register_forward_pre_hook(self._start),
            module.register_forward_hook(self._stop),
            module.register_full_backward_pre_hook(self._start),
            module.register_full_backward_hook(self._stop),
        ]
        module.update = self._timed(module.update)  # on the instance, over the class's method
        start = self._now()
        try:
            yield
        finally:
            del module.update
            for hook in hooks:
                hook.remove()
        self._total += self._now() - start
        self._started = None

    def _timed(self, function: Callable[..., None]) -> Callable[..., None]:
        def run(*arguments: Any) -> None:
            self._start()
            function(*arguments)
            self._stop()

        return run

    def _start(self, *_: Any) -> None:
        self._started = self._now()

    def _stop(self, *_: Any) -> None:
        if self._started is not None:
            self._inside += self._now() - self._started
            self._started = None

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()
