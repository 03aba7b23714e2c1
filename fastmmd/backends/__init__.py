"""Who implements the operations: the table of backends, the automatic choice and the override.

A backend is a module with the functions of `specs.Backend`. Operators ask `select` at call time.
"""

from __future__ import annotations

import importlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import cast

import torch

from . import native  # noqa: F401  it must be there before a fork to know of one; it loads no compiled code yet
from .specs import Backend

NAMES = ("native", "triton", "reference")
ELSEWHERE = {("native", "cuda"): "native.cuda"}  # modules of a backend that is more than one
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
def backend(name: str) -> Iterator[None]:
    """Run the operators of this thread on one backend: "auto", "reference", "native" or "triton".

    An explicit choice never falls back: an operator that cannot run there raises RuntimeError and says what is
    missing. The backward pass uses the backend of its forward pass.

    Raises:
        ValueError: for an unknown name.
    """
    if name != "auto" and name not in NAMES:
        raise ValueError(f'backend: got {name!r}, expected one of "auto", ' + ", ".join(f'"{n}"' for n in NAMES))
    previous = current()
    _override.name = name
    try:
        yield
    finally:
        _override.name = previous


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


@cache
def select(name: str, operation: str, dtype: torch.dtype, device_type: str) -> Backend:
    """The module that runs `operation` ("mmd", "fourier", "parzen") for tensors of this dtype and device type.

    Raises:
        RuntimeError: the chosen backend, or every backend of the automatic order, cannot; the message says why.
    """
    reasons = []
    automatic = ORDER_OF_OPERATION.get((operation, device_type), AUTOMATIC_ORDER.get(device_type, ("reference",)))
    for candidate in automatic if name == "auto" else (name,):
        reason = _unavailable(candidate, device_type)
        if reason is None:
            module = _load(candidate, device_type)
            reason = module.unsupported(operation, dtype, device_type)
            if reason is None:
                return module
        reasons.append(f'backend "{candidate}" cannot run {operation} on {device_type} {dtype}: {reason}')
    raise RuntimeError("; ".join(reasons))


def _unavailable(name: str, device_type: str) -> str | None:
    if device_type == "cuda" and not torch.cuda.is_available():
        return "torch sees no CUDA device (torch.cuda.is_available() is False); pass CPU tensors"
    try:
        module = _load(name, device_type)
    except ModuleNotFoundError as error:
        if error.name != f"fastmmd.backends.{name}":
            raise
        return f'this version of fastmmd has no {name} kernels; use backend("auto")'
    return module.unavailable(device_type)


def _explained(name: str, device_type: str) -> str | None:
    try:
        return _unavailable(name, device_type)
    except ValueError as error:  # a bad FASTMMD_CPU_CAPABILITY: operators raise it, a listing shows it
        return str(error)


def _load(name: str, device_type: str) -> Backend:
    module = ELSEWHERE.get((name, device_type), name)
    return cast(Backend, importlib.import_module(f"fastmmd.backends.{module}"))
