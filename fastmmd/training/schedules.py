"""What changes from step to step: learning rates, and the weight of the regularizer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

from torch.optim import Optimizer

from fastmmd.nn import Autoencoder
from fastmmd.nn.base import Model
from fastmmd.training.config import Training


class Schedules:
    """The learning rates of a model's optimizers and its regularizer's weight, from those that they begin with."""

    def __init__(self, model: Model, optimizers: Mapping[str, Optimizer], training: Training) -> None:
        self.model, self.training = model, training
        groups = [group for optimizer in optimizers.values() for group in optimizer.param_groups]
        self._rates = [group["lr"] for group in groups]
        self._optimizers = optimizers
        self._weight = getattr(model, "regularizer_weight", 1.0)

    def advance(self) -> None:
        """Rates and weight of the step that `model.progress` says."""
        factor = self.training.rate_factor(self.model.phase_progress)
        # A state that was loaded brings groups of its own.
        groups = [group for optimizer in self._optimizers.values() for group in optimizer.param_groups]
        for group, rate in zip(groups, self._rates, strict=True):
            group["lr"] = rate * factor
        if (growth := self.training.regularizer_growth) != 1:  # of a model that has a weight
            cast(Autoencoder, self.model).regularizer_weight = self._weight * growth ** (self.model.progress or 0)
