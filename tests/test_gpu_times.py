"""The benchmark of a GPU, run on the CPU: a broken kernel, or one that does not do its work, gets no time."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers import benchmark_modules
from torch import Tensor

import fastmmd

Function = Callable[..., Tensor]


@pytest.fixture(scope="module")
def suite() -> Iterator[SimpleNamespace]:
    with benchmark_modules("gpu_clock", "gpu_cases", "gpu_times") as modules:
        yield modules


def timed(suite: SimpleNamespace, function: Function, clock: Any = None, floor: float = 0.0, **case: Any) -> Any:
    """As `gpu_times.measure` does it, of a function in place of fastmmd.mmd2."""
    clock = clock or suite.gpu_clock.HostClock()
    task = suite.gpu_cases.problem(suite.gpu_cases.Case("mmd2", 200, **case), "native", function)
    firsts = suite.gpu_clock.first_results(task.call, task.inputs, clock)
    for number, result in enumerate(firsts):
        task.check(result, number)
    return suite.gpu_clock.timed(task.call, task.inputs, firsts, clock, seconds=0.02, floor=floor)


@pytest.mark.parametrize("case", [{}, {"classes": 3}, {"gradient": "bandwidths"}, {"bandwidths": "ladder", "dim": 20}])
def test_the_work_gets_a_time(suite: SimpleNamespace, case: dict[str, Any]) -> None:
    times = timed(suite, fastmmd.mmd2, **case)
    assert 0 < times.warm[0] <= times.warm[1] <= times.warm[2] and times.cold[1] > 0


class Columns(torch.autograd.Function):
    """mmd2 of the first half of y, whose gradient has the right shape."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, bandwidths: Any) -> Tensor:
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            value = fastmmd.mmd2(leaf, y[: len(y) // 2], bandwidths)
        (ctx.gradient,) = torch.autograd.grad(value, leaf)
        return value.detach()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return grad * ctx.gradient, None, None


def test_half_of_the_columns_are_skipped(suite: SimpleNamespace) -> None:
    with pytest.raises(AssertionError, match="native"):
        timed(suite, Columns.apply)


def test_the_last_result_is_returned(suite: SimpleNamespace) -> None:
    kept: list[Tensor] = []

    def last(x: Tensor, y: Tensor, bandwidths: Any) -> Tensor:
        kept.append(fastmmd.mmd2(x, y, bandwidths))
        return kept[max(0, len(kept) - 2)] + 0 * x.sum()

    with pytest.raises(AssertionError, match="the same result|native"):
        timed(suite, last)


def test_results_are_kept_once_they_are_checked(suite: SimpleNamespace) -> None:
    """Right at first, and for an input that comes again; wrong for the one after."""
    calls = 0
    kept: list[Tensor] = []

    def lazy(x: Tensor, y: Tensor, bandwidths: Any) -> Tensor:
        nonlocal calls
        calls += 1
        if calls <= 4 or not kept:
            kept[:] = [fastmmd.mmd2(x, y, bandwidths)]
            return kept[0]
        return kept[0].detach() + 0 * x.sum()

    with pytest.raises(AssertionError, match="differs from the first"):
        timed(suite, lazy)


class SlowDevice:
    """A clock of a device that goes on after its events, until it is waited for."""

    def __init__(self) -> None:
        self.work: list[threading.Thread] = []

    def record(self) -> float:
        return time.perf_counter()

    def seconds(self, start: float, end: float) -> float:
        return end - start

    def wait(self, event: float | None = None) -> None:
        while event is None and self.work:
            self.work.pop().join()

    def flush(self) -> None:
        pass


def test_work_is_deferred_past_the_event(suite: SimpleNamespace) -> None:
    clock = SlowDevice()

    def deferring(*arguments: Any) -> Tensor:
        clock.work.append(threading.Thread(target=time.sleep, args=(0.05,)))
        clock.work[-1].start()
        return fastmmd.mmd2(*arguments)

    timed(suite, fastmmd.mmd2, clock)
    with pytest.raises(AssertionError, match="goes on after the last event"):
        timed(suite, deferring, clock)


def test_too_fast_for_the_machine(suite: SimpleNamespace) -> None:
    with pytest.raises(AssertionError, match="the machine needs 1e"):
        timed(suite, fastmmd.mmd2, floor=10.0)


def test_backends_that_differ(suite: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    case, paths = suite.gpu_cases.Case("mmd2", 65536), {name: tmp_path / name for name in ("native", "triton")}
    for factor, agree in ((1.0, True), (1 + 1e-5, False)):
        for path, by in zip(paths.values(), (1.0, factor), strict=True):
            torch.save([torch.tensor(0.3), by * torch.ones(5, 6)], path)
        assert suite.gpu_times._agree(case, paths) == agree
    assert "native and triton differ" in capsys.readouterr().out


def test_a_case_that_fails_has_no_time(suite: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And one that is measured has all that the table shows."""
    cases = suite.gpu_cases.Case("mmd2", 60), suite.gpu_cases.Case("mmd2", 60, dim=0)
    monkeypatch.setattr(suite.gpu_times, "SIZES", cases)
    monkeypatch.setattr(suite.gpu_times.peers, "ours", lambda: ["native"])
    assert not suite.gpu_times.run(["ours"], 60.0, tmp_path / "times.json")
    good, bad = json.loads((tmp_path / "times.json").read_text())["rows"]
    assert good["median_s"] > 0 and good["cold_s"] > 0 and good["value_error"] < 1e-5 and "dim" in bad["died"]
    assert suite.gpu_times.table([good, bad]).count("mmd2 n=60") == 2
    assert suite.gpu_cases.Case.of_json(json.loads(json.dumps(asdict(cases[0])))) == cases[0]


def test_every_counted_case_is_one_of_the_report(suite: SimpleNamespace) -> None:
    counted = [name for case in suite.gpu_cases.SIZES for name in case.counted]
    assert set(counted) <= set(suite.gpu_times.cuda_report.CASES) and len(counted) >= 5
