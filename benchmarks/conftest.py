"""How rows are timed: threads fixed, the checked call first, as many rounds as the time allows, medians."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from typing import Any

from settings import DEVICE, SIZES, THREADS  # isort: skip  before torch

import numpy as np
import pytest
import torch

REPEATED = 3.0  # seconds: a first call above is taken as it is


def pytest_configure(config: pytest.Config) -> None:
    config.option.benchmark_disable_gc = True
    torch.set_num_threads(THREADS)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def _synchronized(function: Callable[[], Any]) -> Callable[[], Any]:
    """Wait for what a GPU still computes; on a CPU the function itself."""
    if DEVICE == "cpu":
        return function

    def run() -> Any:
        result = function()
        torch.cuda.synchronize()
        return result

    return run


def _seconds(function: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    result = function()
    return time.perf_counter() - start, result


@pytest.fixture
def measure(benchmark: Any) -> Callable[..., None]:
    """measure(function, check, case, compiles=False): check(function()) first, then time the function.

    The first call, in which some peers compile and libraries start, is recorded apart; a second one tells how many
    rounds fit. What takes longer than a row's time gets one round.
    """

    def run(
        function: Callable[[], Any], check: Callable[[Any], Any], case: dict[str, Any], compiles: bool = False
    ) -> None:
        function = _synchronized(function)
        once, result = _seconds(function)
        benchmark.extra_info |= {"case": case, "first_call_s": once, **(check(result) or {})}
        del result
        if compiles or once < REPEATED:
            once, _ = _seconds(function)
        iterations = max(1, math.ceil(1e-4 / once))  # rounds of 0.1 ms at least: the clock's own cost stays below 1%
        least = 1 if once > SIZES.row_seconds else 3
        rounds = min(max(math.ceil(SIZES.row_seconds / (once * iterations)), least), 1000)
        benchmark.pedantic(function, rounds=rounds, iterations=iterations)

    return run


@pytest.fixture
def interleave(benchmark: Any) -> Callable[..., None]:
    """interleave(function, baseline, rounds, case): time the two in turn, so that drift cancels in their ratio.

    Records the baseline's median, the ratio of medians, and its 95% interval over resampled pairs.
    """

    def run(function: Callable[[], Any], baseline: Callable[[], Any], rounds: int, case: dict[str, Any]) -> None:
        function, baseline = _synchronized(function), _synchronized(baseline)
        other: list[float] = []
        warmup = 2
        benchmark.pedantic(
            function, setup=lambda: other.append(_seconds(baseline)[0]), rounds=rounds, warmup_rounds=warmup
        )
        benchmark.extra_info["case"] = case
        if benchmark.disabled:
            return
        mine, other = list(benchmark.stats.stats.data), other[warmup:]
        pairs = np.array([mine, other])
        samples = np.random.default_rng(0).integers(0, rounds, (2000, rounds))
        medians = np.median(pairs[:, samples], axis=2)
        benchmark.extra_info |= {
            "baseline_s": statistics.median(other),
            "ratio": statistics.median(mine) / statistics.median(other),
            "interval": np.quantile(medians[0] / medians[1], [0.025, 0.975]).tolist(),
        }

    return run
