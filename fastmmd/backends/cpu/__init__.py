"""The backend "native" for CPU tensors: compiled C++ kernels, which get addresses and sizes.

Matrix products are torch's; csrc holds what is fused around them.
"""

from __future__ import annotations

from .library import capability, unavailable

__all__ = ["capability", "unavailable"]
