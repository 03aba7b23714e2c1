"""Small constants of a description, made once per device: no copy from the host inside later calls."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import get_proxy_mode

T = TypeVar("T")


def tracing() -> bool:
    """Whether a compiler, make_fx or a fake mode traces: its tensors have no values and must not be kept."""
    return torch.compiler.is_compiling() or get_proxy_mode() is not None or type(torch.empty(0)) is not Tensor


class DeviceCache(Generic[T]):
    """What `make` returns, kept per device; made anew while something traces."""

    def __init__(self, make: Callable[[torch.device], T]) -> None:
        self._make = make
        self._kept: dict[torch.device, T] = {}

    def get(self, device: torch.device) -> T:
        """The value for this device."""
        if tracing():
            return self._make(device)
        if device not in self._kept:
            with torch.inference_mode(False):  # an inference tensor could not be saved for a later backward pass
                self._kept[device] = self._make(device)
        return self._kept[device]
