"""The swiss roll."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..ops.arguments import check_int, check_number
from .base import Prior, check_draws


class SwissRoll(Prior):
    """A two-dimensional swiss roll, uniform in arc parameter with Gaussian noise (AAE paper, figure 3).

    A point is t * (cos t, sin t) * radius / t_max + noise, t = t_max * sqrt(u), u uniform; t_max = 2 pi * turns. The
    square root makes the density along the roll even. Class i is the i-th of `num_classes` parts of equal mass, from
    the inner end on: u in [i, i + 1) / num_classes.

    Args:
        turns: number of turns. radius: of the outer end. std: standard deviation of the noise.
        num_classes: parts that labels choose from; ten as in the paper.
        margin: share of a part in [0, 1), half at either end, from which no draw of its class comes: neighboring
            classes keep apart. Draws without labels come from the whole roll.
    """

    def __init__(
        self, turns: float = 1.5, radius: float = 3.0, std: float = 0.1, num_classes: int = 10, margin: float = 0.0
    ) -> None:
        super().__init__(2)
        self.turns, self.radius = check_number("turns", turns), check_number("radius", radius)
        self.std = check_number("std", std)
        self.num_classes = check_int("num_classes", num_classes)
        self.margin = check_number("margin", margin, zero=True, below=1)

    def sample(
        self,
        count: int,
        *,
        labels: Tensor | None = None,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> Tensor:
        """Independent draws: [count, 2]; see `Prior.sample`."""
        check_draws(count, generator, device, dtype)
        u = torch.rand(count, generator=generator, device=device, dtype=dtype)
        noise = torch.randn(count, 2, generator=generator, device=device, dtype=dtype)
        if labels is not None:
            noise = self._known(noise, labels)
            within = self.margin / 2 + (1 - self.margin) * u if self.margin else u
            u = torch.where(labels < 0, u, (labels + within) / self.num_classes)
        root = u.sqrt()
        angle = 2 * math.pi * self.turns * root
        return self.radius * root[:, None] * torch.stack([angle.cos(), angle.sin()], 1) + self.std * noise
