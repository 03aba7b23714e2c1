"""The Triton backend: the fused operations on any GPU that Triton compiles for, without a compiler at installation."""

from __future__ import annotations

import importlib
import os
from importlib.util import find_spec

OLDEST = (3, 3)  # whose kernels take tuples


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
    if version() < OLDEST:
        installed = importlib.import_module("triton").__version__
        return f"Triton {installed} is installed, and {OLDEST[0]}.{OLDEST[1]} is needed; upgrade torch to 2.7 or later"
    return None


def version() -> tuple[int, ...]:
    """Of Triton, the first two numbers."""
    return tuple(map(int, importlib.import_module("triton").__version__.split(".")[:2]))
