"""Batches gathered on the device, without a loader: every epoch is a fresh permutation of the rows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastmmd.errors import UserError


class Batch(NamedTuple):
    """Images [B, data_dim] and their labels [B] int64, None where training takes none."""

    images: Tensor
    labels: Tensor | None


class Batches:
    """Repeated passes over images [N, data_dim], and labels [N] if any, in memory, resumable in the middle of a pass.

    A last incomplete batch is left out: the permutation decides which images those are. It is drawn on the CPU, so
    the order is the same on every device and a run may be resumed on another one.
    """

    def __init__(self, images: Tensor, batch_size: int, seed: int, labels: Tensor | None = None) -> None:
        self.images, self.labels = images, labels
        self.batch_size = min(batch_size, len(images))
        self.position = 0  # batches done in this epoch
        self._generator = torch.Generator().manual_seed(seed)
        self._epoch_state = self._generator.get_state()

    def __len__(self) -> int:
        """Batches per epoch."""
        return len(self.images) // self.batch_size

    def epoch(self) -> Iterator[Batch]:
        """The remaining batches of this epoch."""
        self._epoch_state = self._generator.get_state()
        order = torch.randperm(len(self.images), generator=self._generator).to(self.images.device)
        while self.position < len(self):
            start = self.position * self.batch_size
            self.position += 1
            rows = order[start : start + self.batch_size]
            yield Batch(self.images[rows], None if self.labels is None else self.labels[rows])
        self.position = 0
        self._epoch_state = self._generator.get_state()

    def state_dict(self) -> dict[str, Any]:
        return {
            "generator": self._epoch_state,
            "position": self.position,
            "batch_size": self.batch_size,
            "rows": len(self.images),
        }

    def _is_state(self, state: object) -> bool:
        """Whether it is of the kinds that `state_dict` returns."""
        if not isinstance(state, dict):
            return False
        generator, numbers = state.get("generator"), [state.get(name, 0) for name in ("batch_size", "rows")]
        numbers.append(state.get("position"))
        if not isinstance(generator, Tensor) or any(type(number) is not int or number < 0 for number in numbers):
            return False
        try:
            torch.Generator().set_state(generator.cpu())
        except (RuntimeError, TypeError):
            return False
        return True

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where the state was taken; one of an earlier version says nothing about sizes.

        Raises:
            UserError: it is damaged; the batches were of another size, or of more or fewer images: the order of the
                images, the length of an epoch and the schedule would be others in the middle of a run.
        """
        if not self._is_state(state):
            raise UserError("the checkpoint's position in the data is damaged; start a new run with another --run-dir")
        if (size := state.get("batch_size", self.batch_size)) != self.batch_size:
            raise UserError(
                f"training.batch_size of a run cannot change: the checkpoint has {size}, the settings "
                f"{self.batch_size}; set it back, or start a new run"
            )
        if (rows := state.get("rows", len(self.images))) != len(self.images):
            raise UserError(
                f"the data of a run cannot change: the checkpoint has {rows:,} training images, the data "
                f"{len(self.images):,}; give the data that it began with, or start a new run"
            )
        self._epoch_state = state["generator"].cpu()
        self._generator.set_state(self._epoch_state)
        self.position = state["position"]
