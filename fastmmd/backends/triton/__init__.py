"""The Triton backend: the fused operations on any GPU that Triton compiles for, without a compiler at installation."""

from __future__ import annotations

import importlib
import os
from importlib.util import find_spec
from typing import Any

import torch

__all__ = [
    "fourier_ascent",
    "fourier_discrepancy",
    "fourier_discrepancy_backward",
    "fourier_frequencies",
    "fourier_function",
    "fourier_sum",
    "mmd2",
    "parzen_backward",
    "parzen_update",
    "unavailable",
    "unsupported",
    "witness",
    "witness_backward",
]
OLDEST = (3, 3)  # whose kernels take tuples
_OPERATIONS = {"mmd": ("mmd2", "witness"), "fourier": ("fourier_",), "parzen": ("parzen_",)}


def __getattr__(name: str) -> Any:
    """Kernels are imported at their first call: Triton takes a second to load, and need not be there."""
    for operation, starts in _OPERATIONS.items():
        if name.startswith(starts):
            return getattr(importlib.import_module(f".{operation}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def interpreted() -> bool:
    """Whether Triton interprets kernels on the CPU, which it decides when the kernels are imported."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def unavailable(device_type: str) -> str | None:
    """None where Triton is installed and compiles for this device, or interprets; else what is missing."""
    if find_spec("triton") is None:
        return "Triton is not installed; pip install triton"
    if device_type == "cpu" and not interpreted():
        return "Triton compiles for GPUs; pass CUDA tensors, or set TRITON_INTERPRET=1 to interpret kernels on the CPU"
    if device_type not in ("cpu", "cuda"):
        return f"no Triton kernels for {device_type} tensors; pass CUDA tensors"
    version = importlib.import_module("triton").__version__
    if tuple(map(int, version.split(".")[:2])) < OLDEST:
        return f"Triton {version} is installed, and {OLDEST[0]}.{OLDEST[1]} is needed; upgrade torch to 2.7 or later"
    return None


def unsupported(operation: str, dtype: torch.dtype, device_type: str) -> str | None:
    """None: every operation runs in float32 and float64."""
    return None
