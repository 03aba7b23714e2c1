"""The Triton backend: the fused operations on any GPU that Triton compiles for, without a compiler at installation."""

from __future__ import annotations

import importlib
import os
from importlib.util import find_spec

OLDEST = (3, 7)  # that of torch 2.13


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
    installed = importlib.import_module("triton").__version__
    if tuple(map(int, installed.split(".")[:2])) < OLDEST:
        return f"Triton {installed} is installed, and {OLDEST[0]}.{OLDEST[1]} is needed; upgrade torch to 2.13 or newer"
    return None
