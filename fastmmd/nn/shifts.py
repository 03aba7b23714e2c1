"""Images that are moved by a few pixels at random."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from .spread import own_rows


def shifted(
    x: Tensor, pixels: int, image_shape: tuple[int, int, int], generator: torch.Generator | None = None
) -> Tensor:
    """Rows [B, C * H * W] moved along both axes, each by whole pixels from -pixels to pixels; edges are repeated."""
    _, height, width = image_shape
    padded = F.pad(x.unflatten(1, image_shape), (pixels,) * 4, mode="replicate")
    top, left = own_rows(
        len(x), lambda rows: torch.randint(2 * pixels + 1, (rows, 2), generator=generator, device=x.device)
    ).unbind(1)
    rows = (top[:, None] + torch.arange(height, device=x.device))[:, :, None]
    columns = (left[:, None] + torch.arange(width, device=x.device))[:, None, :]
    moved = padded[torch.arange(len(x), device=x.device)[:, None, None], :, rows, columns]  # [B, H, W, C]
    return moved.movedim(3, 1).flatten(1)
