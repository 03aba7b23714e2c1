"""Times of a call on a GPU that cannot be had without doing the work.

Inputs rotate, so that no call finds its own result; device events stand around several calls at once, and around single
ones behind a write of more than the L2 cache holds; what still runs when the last event has passed is an error, as are
a result that differs from the first of the same input, and a time below what the machine needs.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

Result = tuple[Tensor, ...]
INPUTS = 4  # that rotate
TOLERATED = 1e-3  # seconds, beside a tenth of the time, by which the device may work on behind the last event
CACHE = 256 << 20  # bytes: more than the L2 of any GPU holds (H200: 50 MB)


class Clock(Protocol):
    """Where calls are timed."""

    def record(self) -> Any:
        """An event behind the work so far."""

    def seconds(self, start: Any, end: Any) -> float:
        """Between two events that have passed."""

    def wait(self, event: Any = None) -> None:
        """For an event; for all work of the device."""

    def flush(self) -> None:
        """Nothing of an earlier call is in the cache."""


class HostClock:
    """Of a CPU, where a call has ended when it returns."""

    def record(self) -> float:
        """See `Clock`."""
        return time.perf_counter()

    def seconds(self, start: float, end: float) -> float:
        """See `Clock`."""
        return end - start

    def wait(self, event: float | None = None) -> None:
        """See `Clock`."""

    def flush(self) -> None:
        """See `Clock`: left to the caller's sizes."""


class DeviceClock:
    """Events of the current stream of a GPU."""

    def __init__(self) -> None:
        self._cache = torch.empty(CACHE, dtype=torch.uint8, device="cuda")

    def record(self) -> torch.cuda.Event:
        """See `Clock`."""
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def seconds(self, start: torch.cuda.Event, end: torch.cuda.Event) -> float:
        """See `Clock`."""
        return 1e-3 * start.elapsed_time(end)

    def wait(self, event: torch.cuda.Event | None = None) -> None:
        """See `Clock`."""
        if event is None:
            torch.cuda.synchronize()
        else:
            event.synchronize()

    def flush(self) -> None:
        """See `Clock`."""
        self._cache.zero_()


@dataclass(frozen=True)
class Times:
    """Seconds of a call: median and quartiles of `rounds`, back to back ("warm") and each with an empty cache."""

    warm: tuple[float, float, float]
    cold: tuple[float, float, float]
    rounds: int


def first_results(call: Callable[[Any], Result], inputs: Sequence[Any], clock: Clock) -> list[Result]:
    """Of every input, copied: what later ones are compared with.

    Raises:
        AssertionError: inputs of one kind give one result.
    """
    assert len(inputs) >= INPUTS, f"{len(inputs)} inputs rotate, at least {INPUTS} must"
    results = [tuple(part.clone() for part in call(given)) for given in inputs]
    clock.wait()
    for one, other in zip(results, results[1:], strict=False):
        assert not _same(one, other, 0.0), "different inputs, the same result: the call does not read its input"
    return results


def timed(
    call: Callable[[Any], Result],
    inputs: Sequence[Any],
    firsts: Sequence[Result],
    clock: Clock,
    *,
    seconds: float = 1.0,
    floor: float = 0.0,
    tolerance: float = 0.0,
) -> Times:
    """The times of the call, whose results were checked.

    seconds: for the rounds of one kind; floor: what the machine needs at least; tolerance: by which later results may
    differ from the first, relative to their largest number, 0 for to the bit.

    Raises:
        AssertionError: the times are not those of the work.
    """
    warm, cold, late, passed = [], [], [], []
    calls = len(inputs)
    while len(warm) < 3 or (sum(warm) * calls < seconds and len(warm) < 100):
        clock.wait()
        host, start = time.perf_counter(), clock.record()
        results = [call(given) for given in inputs]
        end = clock.record()
        clock.wait(end)
        passed.append(time.perf_counter() - host)
        clock.wait()
        late.append(time.perf_counter() - host - passed[-1])
        _compare(results, firsts, tolerance)
        del results
        warm.append(clock.seconds(start, end) / calls)
    more, in_all = statistics.median(late), statistics.median(passed)
    assert more <= TOLERATED + 0.1 * in_all, f"work of {1e3 * more:.3g} ms goes on after the last event"
    at = 0
    while len(cold) < 5 or (sum(cold) < seconds and len(cold) < 200):
        clock.wait()
        clock.flush()
        start = clock.record()
        result = call(inputs[at % calls])
        end = clock.record()
        clock.wait()
        _compare([result], [firsts[at % calls]], tolerance)
        del result
        cold.append(clock.seconds(start, end))
        at += 1
    times = Times(_quartiles(warm), _quartiles(cold), len(warm))
    fastest = min(times.warm[1], times.cold[1])
    assert fastest >= 0.98 * floor, f"{1e3 * fastest:.3g} ms, but the machine needs {1e3 * floor:.3g} ms"
    return times


def _compare(results: Sequence[Result], firsts: Sequence[Result], tolerance: float) -> None:
    for result, first in zip(results, firsts, strict=True):
        assert _same(result, first, tolerance), "a result differs from the first of the same input"


def _same(one: Result, other: Result, tolerance: float) -> bool:
    if tolerance == 0:
        return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    return all(float((a - b).abs().max()) <= tolerance * float(b.abs().max()) for a, b in zip(one, other, strict=True))


def _quartiles(seconds: list[float]) -> tuple[float, float, float]:
    low, median, high = statistics.quantiles(seconds, n=4)
    return low, median, high
