"""Periodic checks of the codes and the kernel; each kind of problem is reported once, with a remedy."""

from __future__ import annotations

import torch
from torch import Tensor

from fastmmd.evaluation.sampling import posterior_codes
from fastmmd.nn import Autoencoder, GenerativeModel, code_health, kernel_problem
from fastmmd.nn.inputs import eval_mode


class HealthMonitor:
    """Checks a batch of codes against draws from the prior; of a generator without codes the kernel alone, over data.

    It draws from a generator of its own and leaves the model as it was, so a checked run takes the same steps
    as an unchecked one. It waits for the device: call it where the loop waits anyway.
    """

    def __init__(self, model: GenerativeModel, seed: int = 0) -> None:
        self._model = model
        self._seed = seed
        self.warned: list[str] = []  # kinds of problems; a resumed run does not repeat them

    @torch.no_grad()
    def check(self, batch: Tensor, step: int) -> list[str]:
        """What is wrong with the codes of a batch [B, data_dim], if it is new: each kind of problem once."""
        generator = torch.Generator(batch.device).manual_seed(self._seed + step)
        model, problems = self._model, []
        if isinstance(model, Autoencoder):
            with eval_mode(model):
                ours = posterior_codes(model, batch, generator)
                theirs = model.prior.sample(len(ours), generator=generator, device=ours.device, dtype=ours.dtype)
            problems.append(code_health(ours, theirs).problem)
        else:
            ours, theirs = model.sample(len(batch), generator=generator), batch
        problems.append(kernel_problem(model.regularizer, ours, theirs))
        return [f"step {step}: {problem}" for problem in problems if problem and self._is_new(problem)]

    def _is_new(self, problem: str) -> bool:
        kind = problem.partition(":")[0]  # the figures after it change from step to step
        if kind in self.warned:
            return False
        self.warned.append(kind)
        return True
