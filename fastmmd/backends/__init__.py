"""Who implements the operations: the table of backends, the automatic choice and the override.

A backend is a package with a module for each operation, `mmd`, `fourier` and `parzen` (see `calls`), and a function
`unavailable`. Operators ask `select` at call time.
"""

from __future__ import annotations

import importlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, cast, overload

import torch

from . import cpu  # it must be there before a fork to know of one; it loads no compiled code yet
from .calls import FourierBackend, MmdBackend, ParzenBackend

BackendName = Literal["auto", "native", "triton", "reference"]
NAMES = ("native", "triton", "reference")
AUTOMATIC_ORDER = {"cpu": ("native", "reference"), "cuda": ("native", "triton", "reference")}
# Where counts say otherwise (benchmarks/NOTES.md): products of Parzen windows on tensor cores, which only Triton has.
ORDER_OF_OPERATION = {("parzen", "cuda"): ("triton", "native", "reference")}


class _Override(threading.local):
    name = "auto"


_override = _Override()


@dataclass(frozen=True)
class BackendStatus:
    """Whether a backend runs on one kind of device; `reason` says why not and what to do."""

    available: bool
    reason: str | None = None


@contextmanager
def backend(name: BackendName) -> Iterator[None]:
    """Run the operators of this thread on one backend: "auto", "reference", "native" or "triton".

    An explicit choice never falls back: an operator that cannot run there raises RuntimeError and says what is
    missing. The backward pass uses the backend of its forward pass.

    Raises:
        ValueError: for an unknown name.
    """
    if not isinstance(name, str) or (name != "auto" and name not in NAMES):
        raise ValueError(f'backend: got {name!r}, expected one of "auto", ' + ", ".join(f'"{n}"' for n in NAMES))
    previous = current()
    _override.name = name
    try:
        yield
    finally:
        _override.name = previous


def native_build() -> dict[str, str | int]:
    """The instruction set of the compiled CPU kernels that runs here, their number of threads, and what was built.

    Raises:
        ImportError: the compiled module is missing or cannot be loaded.
        ValueError: FASTMMD_CPU_CAPABILITY names an instruction set that cannot run here.
    """
    return cpu.capability()


def cuda_build() -> str | None:
    """The architectures and the nvcc of the compiled CUDA kernels; None where there are none, or they do not load."""
    try:
        return str(importlib.import_module(f"{__name__}.cuda.library").load().build_summary)
    except ImportError:
        return None


def current() -> str:
    """The backend this thread asked for, "auto" unless inside `fastmmd.backend(...)`."""
    return _override.name


def available_backends() -> dict[str, dict[str, BackendStatus]]:
    """What works here: backend name -> device type ("cpu", "cuda") -> status, in the automatic order."""
    return {
        name: {
            device: BackendStatus(reason is None, reason)
            for device in ("cpu", "cuda")
            for reason in [_explained(name, device)]
        }
        for name in NAMES
    }


@overload
def select(name: str, operation: Literal["mmd"], device: torch.device | str) -> MmdBackend: ...
@overload
def select(name: str, operation: Literal["fourier"], device: torch.device | str) -> FourierBackend: ...
@overload
def select(name: str, operation: Literal["parzen"], device: torch.device | str) -> ParzenBackend: ...
@cache
def select(name: str, operation: str, device: torch.device | str) -> Any:
    """The module that runs an operation for tensors of this device, which is the current one of its type: of several
    GPUs some may be too old for the kernels.

    Raises:
        RuntimeError: the chosen backend, or every backend of the automatic order, cannot; the message says why.
    """
    reasons, device_type = [], torch.device(device).type
    automatic = ORDER_OF_OPERATION.get((operation, device_type), AUTOMATIC_ORDER.get(device_type, ("reference",)))
    for candidate in automatic if name == "auto" else (name,):
        reason = _unavailable(candidate, device_type)
        if reason is None:
            return importlib.import_module(f"{package(candidate, device_type)}.{operation}")
        reasons.append(f'backend "{candidate}" cannot run {operation} on {device_type}: {reason}')
    raise RuntimeError("; ".join(reasons))


def package(name: str, device_type: str) -> str:
    """Where a backend is: "native" has a package for each device type, those of CPU serving where there is none."""
    folder = {"native": "cuda" if device_type == "cuda" else "cpu"}.get(name, name)
    return f"{__name__}.{folder}"


def _unavailable(name: str, device_type: str) -> str | None:
    if device_type == "cuda" and not torch.cuda.is_available():
        return "torch sees no CUDA device (torch.cuda.is_available() is False); pass CPU tensors"
    return cast("str | None", importlib.import_module(package(name, device_type)).unavailable(device_type))


def _explained(name: str, device_type: str) -> str | None:
    try:
        return _unavailable(name, device_type)
    except ValueError as error:  # a bad FASTMMD_CPU_CAPABILITY: operators raise it, a listing shows it
        return str(error)
