"""The backend "native" for CUDA tensors: compiled CUDA C++ kernels.

Kernels run on torch's current stream in memory of torch's allocator; nothing waits for the device or reads from it.
"""

from __future__ import annotations

from .library import unavailable

__all__ = ["unavailable"]
