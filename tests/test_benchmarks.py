"""The logic of the benchmark suite: counts, targets, the report, what an interrupted run leaves, how a process dies."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import oracle
import pytest
import torch
from helpers import BENCHMARKS, benchmark_modules

SIX = (2.0, 5.0, 10.0, 20.0, 40.0, 80.0)


@pytest.fixture(scope="module")
def suite() -> Iterator[SimpleNamespace]:
    with benchmark_modules("settings", "peers", "targets", "efficiency", "report", "record", "plots") as modules:
        yield modules


def _row(name: str, milliseconds: float, case: dict[str, Any], **extra: Any) -> dict[str, Any]:
    times = {"median_ms": milliseconds, "min_ms": milliseconds, "iqr_ms": 0.1, "rounds": 5}
    return {"name": name, "case": case} | times | extra


@pytest.fixture
def record(suite: SimpleNamespace) -> dict[str, Any]:
    """Invented numbers: 10 ms for us, 100 for a peer that dies at 2000 points."""
    mmd2 = {"operation": "mmd2", "dim": 6, "n": 1000, "bandwidths": 6}
    training = {"operation": "training", "dim": 784, "n": 1000}
    turns = {"ratio": 1.02, "interval": [1.0, 1.04], "baseline": "no regularizer", "baseline_s": 0.1}
    scaling = {"operation": "scaling", "against": "N", "amount": 1000}
    call = {"operation": "dispatch", "operator": "mmd2"}
    cells = [(1, 16, 2, 3.0), (1, 16, 64, 2.0), (1, 1000, 2, 40.0), (1, 1000, 64, 7.0), (32, 16, 64, 5.0)]
    grid = [
        _row(f"{b} x {n} x {dim}", 1.0, {"operation": "grid", "batch": b, "n": n, "dim": dim}, ratio=ratio)
        for b, n, dim, ratio in cells
    ]
    headline, wide = {"n": 160, "m": 1600, "dim": 79, "bandwidths": [9.0]}, {"n": 60_000, "m": 60_000, "dim": 4}
    alive, dead = {"seconds": 0.5, "megabytes": 2.0, "rounds": 1}, {"died": "over 16 GB"}
    small = {"n": 10, "m": 100, "dim": 79, "bandwidths": [9.0], "implementation": "eager"}
    shifts = [
        {"samples": kind, "n": 10, "shift": shift, "implementation": name, "mmd2": shift**2}
        | {"value_error": 1e-7, "gradient_error": 1e-7}
        for kind in ("independent draws", "the same points")
        for shift in (1.0, 0.1)
        for name in ("fastmmd", "eager")
    ]
    record = {
        "command": "make bench",
        "date": "2026-01-01",
        "revision": "abc",
        "hardware": "a machine",
        "memory_gigabytes": 64.0,
        "threads": 2,
        "versions": {"torch": "2"},
        "backends": ["native", "reference"],
        "yardstick": {"1": {"gflops": 50.0, "gigabytes": 20.0}, "2": {"gflops": 100.0, "gigabytes": 30.0}},
        "limits": {"bytes": 16 << 30, "seconds": 30.0},
        "seconds": 60.0,
        "groups": [
            {"title": "mmd2", "rows": [_row("native", 10.0, mmd2), _row("torch.compile", 100.0, mmd2)]},
            {"title": "training", "rows": [_row("native", 102.0, training, **turns)]},
            {"title": "grid", "rows": grid},
            {"title": "mmd2 against N, D=6", "rows": [_row("1000", 10.0, scaling)]},
            {
                "title": "beside",
                "rows": [
                    _row("w", 1.0, {"operation": "contention", "work": "w"}, slowdown=2.5, slowdown_of_eager=4.0)
                    | {"busy_ms": 2.5, "busy_ms_of_eager": 8.0}
                ],
            },
            {
                "title": "dispatch",
                "rows": [
                    _row("mmd2, forward", 0.025, call | {"layer": "forward"}),
                    _row("mmd2, compiled function", 0.004, call | {"layer": "compiled function"}),
                ],
            },
        ],
        "against_n": [
            {"implementation": name, "n": n, "m": n, "dim": 6, "bandwidths": list(SIX)}
            | (dead if name == "eager" and n == 2000 else alive)
            for name in ("fastmmd", "eager")
            for n in (1000, 2000)
        ],
        "memory": [
            {"implementation": "fastmmd", "bandwidths": list(SIX), **wide, "seconds": 1.0, "megabytes": 120.0},
            {"implementation": "fastmmd", **headline, **alive},
            {"implementation": "eager", **headline, **dead},
            small | alive,
        ],
        "accuracy": shifts,
    }
    return record | {"targets": suite.targets.outcomes(record)}


def _outcome(suite: SimpleNamespace, record: dict[str, Any], work: str) -> dict[str, Any]:
    return next(row for row in suite.targets.outcomes(record) if work in row["work"])


def test_targets_follow_the_record(suite, record):
    fast = _outcome(suite, record, "six bandwidths, N=M=1000")
    assert fast["value"] == 10 and fast["reached"] is True
    slow = copy.deepcopy(record)
    slow["groups"][0]["rows"][0]["median_ms"] = 20.0
    assert _outcome(suite, slow, "six bandwidths, N=M=1000")["reached"] is False
    step = _outcome(suite, record, "batch 1000")
    assert step["value"] == 1.02 and step["reached"] is False
    assert _outcome(suite, record, "N=M=60,000")["reached"] is False
    call = _outcome(suite, record, "dispatch")
    assert call["value"] == pytest.approx(21.0) and call["reached"] is True
    small, large = (_outcome(suite, record, f"grid with {sizes}") for sizes in ("N below 256", "N from 1000"))
    assert small["value"] == 2 and small["reached"] is False
    assert large["value"] == 7 and large["reached"] is True
    assert _outcome(suite, record, "grid with N from 256")["value"] is None
    absent = _outcome(suite, record, "batch 16384")
    assert absent["value"] is None and absent["reached"] is None


def test_every_target_has_its_case_in_the_full_run(suite):
    """Sizes stand in both places."""
    full = suite.settings.FULL
    works = " ".join(target.work for target in suite.targets.TARGETS)
    for n in full.mmd2:
        assert f"six bandwidths, N=M={n}" in works
    for batch in full.training:
        assert f"batch {batch}" in works
    assert suite.targets.WIDE["n"] == full.wide
    assert (suite.targets.FOURIER["n"], suite.targets.FOURIER["count"]) == full.fourier
    assert (suite.targets.PARZEN["n"], suite.targets.PARZEN["m"]) == full.parzen
    assert full.linear_memory == 60_000


def test_report_shows_every_part(suite, record):
    text = suite.report.markdown(record, {"time": "t.svg", "memory": "m.svg", "accuracy": "a.svg", "grid": "g.svg"})
    assert (
        "| mmd2 forward+backward, D=6, six bandwidths, N=M=1000 | torch.compile, times faster | at least 8x | 10.0x |"
        in text
    )
    assert "1.020x | **no**" in text
    assert "† over 16 GB" in text
    assert "Eager would need 1 GB" in text  # 2 MB at 10 x 100, 256 times the pairs
    assert "1.020 (1.000 to 1.040)" in text
    assert "| ms | 10 |" in text
    assert all(f"]({name}.svg)" in text for name in "tmag")
    assert "| 64 | 2.0 | 7.0 |" in text and "| [32, 16, 64] | 5.0 |" in text
    assert "nan" not in text


def test_useful_operations(suite):
    count = suite.efficiency.exponentials
    assert count(SIX) == 2 and count((1.0, 2.0, 4.0)) == 1 and count((1.0, 3.0)) == 2
    # Two points and one, D = 1, one bandwidth: 3 pairs of 2 + 20 + 4; 2 for each point that a pair pulls, 2 + 1 + 1.
    assert suite.efficiency.mmd2(2, 1, 1, (1.0,)) == 3 * 26 + 2 * (2 + 2)


def test_plots_mark_where_a_peer_dies(suite, record):
    figures = suite.plots.draw(record)
    assert set(figures) == {"time", "memory", "accuracy", "grid"}
    slower = copy.deepcopy(record)
    next(group for group in slower["groups"] if group["title"] == "grid")["rows"][0]["ratio"] = 0.1
    assert suite.plots.draw(slower)["grid"] != figures["grid"]
    again = suite.plots.draw(record)
    assert figures == again, "the same record gives the same files"
    dead_at_once = [row for row in record["against_n"] if (row["implementation"], row["n"]) != ("eager", 1000)]
    suite.plots.draw(record | {"against_n": dead_at_once})
    immortal = copy.deepcopy(record)
    immortal["against_n"] = [row for row in record["against_n"] if "died" not in row]
    assert len(suite.plots.draw(immortal)["time"]) < len(figures["time"])


def test_a_failing_run_leaves_the_old_record(suite, record, tmp_path, monkeypatch):
    suite.record.write(record, tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert sorted(Path(name).suffix for name in before) == [".json", ".md", ".svg", ".svg", ".svg", ".svg"]
    (stored,) = tmp_path.glob("*.json")
    assert json.loads(stored.read_text()) == json.loads(json.dumps(record))
    monkeypatch.setattr(suite.report, "markdown", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        suite.record.write(record | {"date": "later"}, tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_peers_compute_mmd2(suite):
    x, y = suite.peers.two_samples(60, 50, 3)
    exact = oracle.mmd2(x.double(), y.double(), bandwidths=SIX)
    assert suite.peers.exact_value(x, y, SIX) == pytest.approx(exact.item(), rel=1e-12)
    x64 = x.double().requires_grad_()
    (gradient,) = torch.autograd.grad(oracle.mmd2(x64, y.double(), bandwidths=SIX), x64)
    torch.testing.assert_close(suite.peers.exact_gradient(x, y, SIX, slice(None)), gradient, rtol=1e-9, atol=1e-14)
    assert suite.peers.sklearn_mmd2(x, y, SIX).item() == pytest.approx(exact.item(), rel=1e-3)


def test_check_rejects_wrong_results(suite):
    x, y = suite.peers.two_samples(60, 50, 3)
    value = torch.tensor(suite.peers.exact_value(x, y, SIX))
    gradient = suite.peers.exact_gradient(x, y, SIX, slice(None))
    suite.peers.check_mmd2((value, gradient), x, y, SIX, "native")
    worse = gradient.clone()
    worse[7] *= 1.05
    wrong = [(value * (1 + 1e-4), gradient), (value * float("nan"), gradient), (value, worse), (value, 0 * gradient)]
    for result in wrong:
        with pytest.raises(AssertionError):
            suite.peers.check_mmd2(result, x, y, SIX, "native")
    with pytest.raises(AssertionError):
        suite.peers.check_mmd2((value * 1.02, gradient), x, y, SIX, "eager")


@pytest.mark.skipif(sys.platform != "linux", reason="limits and peaks are read from /proc")
def test_probe_measures_growth_and_survives_what_does_not_fit():
    """Eager's first matrix of 20,000 x 20,000 is 1.6 GB, the quick run's limit 1 GB."""
    code = (
        "import json, probe\n"
        f"case = dict(dim=4, bandwidths={SIX})\n"
        "alive = probe.run(implementation='fastmmd', n=2000, m=2000, **case)\n"
        "print(json.dumps([alive, probe.run(implementation='eager', n=20_000, m=20_000, **case)]))\n"
    )
    environment = os.environ | {"FASTMMD_BENCH_QUICK": "1"}
    process = subprocess.run(
        [sys.executable, "-c", code], cwd=BENCHMARKS, env=environment, capture_output=True, text=True, check=True
    )
    alive, dead = json.loads(process.stdout)
    assert 0 < alive["seconds"] < 5 and 0 <= alive["megabytes"] < 16  # 16 MB: one matrix of 2000 x 2000
    assert dead["died"] == "over 1 GB" and "seconds" not in dead
