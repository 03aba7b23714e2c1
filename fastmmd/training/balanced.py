"""Labeled images that join every batch, as many of each class."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from fastmmd.errors import UserError


class BalancedRows:
    """The rows of the labeled images of each step: `count` of them, as many of each class, no image twice.

    A class is passed through in a fresh order again and again; what a pass leaves over is left out. The order follows
    from the seed, the class and the number of the pass alone, so there is nothing to save: a step always has the same
    rows.

    Args:
        labels: [N] int64 of all images, -1 for unlabeled ones. classes: how many there are.

    Raises:
        UserError: `count` is no multiple of the classes, or a class has too few labeled images.
    """

    def __init__(self, labels: Tensor, count: int, classes: int, seed: int) -> None:
        if count % classes:
            raise UserError(
                f"training.labeled_batch: got {count}, expected a multiple of the {classes} classes, of which every "
                "batch gets equally many labeled images"
            )
        self.count, self._each, self._seed = count, count // classes, seed
        labels = labels.cpu()
        self._members = [(labels == label).nonzero()[:, 0] for label in range(classes)]
        few = min(range(classes), key=lambda label: len(self._members[label]))
        if (most := len(self._members[few])) < self._each:
            raise UserError(
                f"training.labeled_batch: got {count}, {self._each} of each class, but class {few} has {most} labeled "
                f"images; expected at most {most * classes}, or raise training.labeled"
            )
        self._orders: dict[int, tuple[int, Tensor]] = {}  # of each class: a pass and its order

    def at(self, step: int) -> Tensor:
        """[count] int64, class by class."""
        return torch.cat([self._of(label, step) for label in range(len(self._members))])

    def _of(self, label: int, step: int) -> Tensor:
        members = self._members[label]
        number, position = divmod(step, len(members) // self._each)
        if self._orders.get(label, (-1,))[0] != number:
            order = np.random.default_rng((self._seed, label, number)).permutation(len(members))
            self._orders[label] = number, members[torch.from_numpy(order)]
        return self._orders[label][1][position * self._each :][: self._each]
