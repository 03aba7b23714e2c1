"""Small constants on a device, made once: no copy from the host inside later calls, nor one that waits."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import get_proxy_mode

T = TypeVar("T")


def tracing() -> bool:
    """Whether a compiler, make_fx or a fake mode traces: its tensors have no values and must not be kept."""
    return torch.compiler.is_compiling() or get_proxy_mode() is not None or type(torch.empty(0)) is not Tensor


def capturing(device: torch.device) -> bool:
    """Whether a CUDA graph is captured: what is made meanwhile has its values only where the graph runs."""
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


class DeviceCache(Generic[T]):
    """What `make` returns, kept per device; made anew while something traces, and where a CUDA graph that is captured
    would be its first use."""

    def __init__(self, make: Callable[[torch.device], T]) -> None:
        self._make = make
        self._kept: dict[torch.device, T] = {}

    def get(self, device: torch.device) -> T:
        """The value for this device."""
        return self._make(device) if tracing() else self.kept(device)

    def kept(self, device: torch.device) -> T:
        """The same within the kernel of an operator, where nothing traces."""
        if capturing(device):
            _of_graphs.add(self)
            return self._kept[device] if device in self._kept else self._make(device)
        if device not in self._kept:
            with torch.inference_mode(False):  # an inference tensor could not be saved for a later backward pass
                made = self._made(device)
            return self._kept.setdefault(device, made)  # the first of two threads wins: its tensor may be in a graph
        return self._kept[device]

    def _made(self, device: torch.device) -> T:
        """The value, which any stream may read from now on: made on one of its own, for which the host waits, and not
        for what the caller's still has to do."""
        if device.type != "cuda":
            return self._make(device)
        stream = torch.cuda.Stream(device)
        with torch.cuda.stream(stream):
            made = self._make(device)
        stream.synchronize()
        return made


_of_graphs: set[DeviceCache[Any]] = set()  # graphs know the addresses of what they read: it must outlive them


def constant(values: tuple[float, ...], device: torch.device, dtype: torch.dtype) -> Tensor:
    """Numbers on a device where nothing traces, the latest ones kept: [len(values)]."""
    return _numbers(values, dtype).kept(device)


@lru_cache(1024)  # one that is evicted has been read: its readers are older than the launches for 1,024 others
def _numbers(values: tuple[float, ...], dtype: torch.dtype) -> DeviceCache[Tensor]:
    return DeviceCache(lambda device: _filled(values, device, dtype))


def _filled(values: tuple[float, ...], device: torch.device, dtype: torch.dtype) -> Tensor:
    """Filled in on the device: a copy from the host waits for all that the device has to do."""
    out = torch.empty(len(values), dtype=dtype, device=device)
    for element, value in zip(out.unbind(), values, strict=True):
        element.fill_(value)
    return out
