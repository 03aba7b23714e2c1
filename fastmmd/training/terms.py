"""What training steps report, summed over an epoch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from fastmmd.training.processes import Processes

TERMS = ("loss", "reconstruction", "regularizer")


class Terms:
    """Sums of the terms since the epoch began, on the device: nothing waits for it until they are read."""

    def __init__(self, device: torch.device, processes: Processes) -> None:
        self._processes = processes
        self._sums = torch.zeros(len(TERMS), device=device)

    def add(self, terms: Mapping[str, Tensor]) -> None:
        """Those of a step."""
        self._sums += torch.stack([terms[name].to(self._sums) for name in TERMS])

    def means(self, steps: int) -> dict[str, float]:
        """Over the steps and processes."""
        return {name: value / steps for name, value in zip(TERMS, self._of_all().tolist(), strict=True)}

    def clear(self) -> None:
        self._sums.zero_()

    def state_dict(self) -> dict[str, Tensor]:
        """The same for all processes."""
        return dict(zip(TERMS, self._of_all().clone(), strict=True))

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._sums = torch.tensor([float(state[name]) for name in TERMS], device=self._sums.device)

    def _of_all(self) -> Tensor:
        shards = self._processes.shards
        return self._sums if shards is None else shards.total(self._sums) / shards.count
