"""Constants on a device: made once, and safe for CUDA graphs, which know the addresses of what they read."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from helpers import F64

from fastmmd import device_cache
from fastmmd.device_cache import DeviceCache, constant

CPU = torch.device("cpu")


@pytest.fixture
def capture(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A machine whose streams capture, until undone."""
    monkeypatch.setattr(device_cache, "capturing", lambda device: True)
    monkeypatch.setattr(device_cache, "_of_graphs", set())
    return monkeypatch


def test_made_once() -> None:
    made = []
    cache = DeviceCache(lambda device: made.append(device) or torch.zeros(1, device=device))
    assert cache.get(CPU) is cache.get(CPU) and made == [CPU]


def test_values_and_dtypes() -> None:
    values = (0.1, 1 / 3, -0.0, 1e300, 5e-324)
    got = constant(values, CPU, F64)
    assert got.tolist() == list(values) and got.dtype == F64 and constant(values, CPU, F64) is got
    assert constant((1, 2**40 + 1), CPU, torch.int64).tolist() == [1, 2**40 + 1]
    assert constant((), CPU, F64).shape == (0,)


def test_inference_mode_leaves_nothing_behind() -> None:
    with torch.inference_mode():
        constant((0.7131,), CPU, F64)
    x = torch.ones(1, dtype=F64, requires_grad=True)
    (x * constant((0.7131,), CPU, F64)).backward()


def test_what_is_filled_in_a_graph_is_not_kept(capture: pytest.MonkeyPatch) -> None:
    """Outside of the graph it would have no values until the graph runs."""
    in_graph = constant((0.4711,), CPU, F64)
    assert constant((0.4711,), CPU, F64) is not in_graph
    capture.undo()
    assert constant((0.4711,), CPU, F64) is not in_graph


def test_what_a_graph_reads_stays(capture: pytest.MonkeyPatch) -> None:
    """However many constants come after it."""
    capture.undo()
    read, other = (weakref.ref(constant((value,), CPU, F64)) for value in (0.815, 0.816))
    with pytest.MonkeyPatch.context() as again:
        again.setattr(device_cache, "capturing", lambda device: True)
        assert constant((0.815,), CPU, F64) is read()
    for value in range(1025):
        constant((float(value) + 0.5,), CPU, F64)
    gc.collect()
    assert read() is not None and other() is None


def test_nothing_captures_on_the_cpu() -> None:
    assert not device_cache.capturing(CPU)
