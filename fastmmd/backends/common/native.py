"""How Python hands tensors to compiled code."""

from __future__ import annotations

import torch
from torch import Tensor


def is_double(tensor: Tensor) -> bool:
    return tensor.dtype == torch.float64


def address(tensor: Tensor | None) -> int:
    """0 for what is absent or not needed."""
    return 0 if tensor is None or tensor.numel() == 0 else tensor.data_ptr()
