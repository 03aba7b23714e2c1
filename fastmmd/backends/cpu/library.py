"""The compiled module: loaded on first use, kept out of forks, asked for addresses and threads."""

# Wheels of torch before about 2.10 carry libgomp under a name of their own (libgomp-<hash>.so.1). There the module
# loads the system's libgomp.so.1 beside it: two pools of threads, which take turns, and two to keep out of a fork.

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

REINSTALL = (
    "install a C++17 compiler with OpenMP and Python's headers (Debian, Ubuntu: apt install g++ python3-dev) and "
    "reinstall: pip install --force-reinstall --no-deps . in a checkout, else "
    "pip install --force-reinstall --no-deps --no-binary fastmmd fastmmd"
)
LIBGOMP = "install GCC's OpenMP runtime (Debian, Ubuntu: apt install libgomp1; others: libgomp)"

_forked = False


def _after_fork() -> None:
    """Keep the child out of OpenMP: our loops, and the torch operations around them, which would hang as well."""
    global _forked
    _forked = True
    torch.set_num_threads(1)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


@cache
def load() -> Any:
    """The compiled module.

    Raises:
        ImportError: it is missing or cannot be loaded.
        ValueError: FASTMMD_CPU_CAPABILITY names what cannot run here.
    """
    module = importlib.import_module("fastmmd._native")
    module.capability()  # chooses the instruction set
    return module


def unavailable(device_type: str) -> str | None:
    """Why the native kernels cannot run on this device type and what to do; None where they can."""
    if device_type != "cpu":
        return 'the native kernels of this version are for CPU tensors; use backend("auto") or move the tensors'
    if importlib.util.find_spec("fastmmd._native") is None:
        return f"fastmmd was installed without its native code; {REINSTALL}"
    try:
        load()
    except ImportError as error:
        remedy = LIBGOMP if "libgomp" in str(error) else REINSTALL
        return f"its native code cannot be loaded ({error}); {remedy}"
    return None


def capability() -> dict[str, str | int]:
    """The instruction set that runs, the threads it gets and what was built."""
    library = load()
    return {"capability": library.capability(), "threads": threads(), "build": library.build_summary}


def is_double(tensor: Tensor) -> bool:
    return tensor.dtype == torch.float64


def threads() -> int:
    return 1 if _forked else torch.get_num_threads()


def address(tensor: Tensor | None) -> int:
    """0 for what is absent or not needed."""
    return 0 if tensor is None or tensor.numel() == 0 else tensor.data_ptr()


def numbers(values: tuple[float, ...] | Tensor) -> Sequence[float]:
    """As floats: on the CPU reading a tensor waits for nothing."""
    return values.tolist() if isinstance(values, Tensor) else values
