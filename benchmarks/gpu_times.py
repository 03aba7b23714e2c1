"""The three operations at the sizes of the record on a GPU, each implementation in a process of its own.

    FASTMMD_BENCH_DEVICE=cuda python benchmarks/gpu_times.py --seconds 240 --json FILE
    FASTMMD_BENCH_DEVICE=cuda python benchmarks/gpu_times.py '{"operation": "mmd2", "implementation": "eager", "n": 99}'

Results are compared with float64 before they are timed, as in the other benchmarks. What runs out of memory or time
has "died" in place of a time. The file is written anew after every case.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from settings import DEVICE, QUICK, SIGMAS, SIX  # isort: skip  before torch

import peers
import torch
from probe import OUT_OF_MEMORY

import fastmmd

LIMIT = 75.0  # seconds for a process, compilers included
TIMED = 1.0  # seconds of rounds
TABLES = {"mmd2": peers.MMD2, "parzen": peers.DENSITY, "fourier_mean": peers.FOURIER_MEAN}
LEFT_OUT = ("GeomLoss", "scikit-learn")
SIZES: tuple[dict[str, Any], ...] = (
    {"operation": "mmd2", "n": 1000},
    {"operation": "mmd2", "n": 8192},
    {"operation": "mmd2", "n": 65536},
    {"operation": "parzen", "n": 10_000},
    {"operation": "fourier_mean", "n": 65536, "count": 4096},
)
SMALL: tuple[dict[str, Any], ...] = (
    {"operation": "mmd2", "n": 500},
    {"operation": "parzen", "n": 500},
    {"operation": "fourier_mean", "n": 1000, "count": 64},
)


def measure(operation: str, implementation: str, n: int, count: int = 0) -> dict[str, Any]:
    """Median seconds of a call and peak megabytes beyond its inputs, with the errors of the first call."""
    start = time.perf_counter()
    table = TABLES[operation]
    peer = implementation in table
    with peers.chosen(implementation, getattr(fastmmd, OURS.get(operation, operation)), table) as function:
        call, check = PROBLEMS[operation](function, n, count, peer, implementation)
        result = call()
        _wait()
        first = time.perf_counter() - start
        errors = check(result)
        del result
        before = _memory(reset=True)
        seconds: list[float] = []
        while len(seconds) < 3 or (sum(seconds) < TIMED and len(seconds) < 200):
            _wait()
            start = time.perf_counter()
            call()
            _wait()
            seconds.append(time.perf_counter() - start)
    low, median, high = statistics.quantiles(seconds, n=4)
    return {
        "median_s": median, "quartiles_s": [low, high], "rounds": len(seconds), "first_call_s": first,
        "megabytes": (_memory() - before) / 1e6, **errors,
    }  # fmt: skip


Problem = tuple[Callable[[], Any], Callable[[Any], dict[str, float]]]
OURS = {"parzen": "parzen_log_likelihood"}


def _mmd2(function: Callable[..., Any], n: int, count: int, peer: bool, implementation: str) -> Problem:
    x, y = peers.two_samples(n, n, 6)
    x = x.clone().requires_grad_()
    return (
        lambda: peers.value_and_gradient(function, x, y, SIX),
        lambda result: peers.check_mmd2(result, x, y, SIX, implementation),
    )


def _parzen(function: Callable[..., Any], n: int, count: int, peer: bool, implementation: str) -> Problem:
    generator = torch.Generator().manual_seed(0)
    points, samples = (torch.rand(n, 784, generator=generator).to(DEVICE) for _ in range(2))

    def check(result: torch.Tensor) -> dict[str, float]:
        some = slice(0, n, max(1, n // 50))
        exact = peers.parzen_log_likelihood(points[some].double(), samples.double(), SIGMAS)
        error = (result[:, some].double() - exact).abs().max().item()
        assert error <= (0.1 if peer else 0.005), error
        return {"value_error": error}

    return lambda: function(points, samples, SIGMAS), check


def _fourier_mean(function: Callable[..., Any], n: int, count: int, peer: bool, implementation: str) -> Problem:
    features = fastmmd.FourierFeatures(6, count, seed=1)
    generator = torch.Generator().manual_seed(0)
    x, cotangent = (torch.randn(*shape, generator=generator).to(DEVICE) for shape in ((n, 6), (2 * count,)))
    x.requires_grad_()
    argument = features.frequencies(device=DEVICE) if peer else features

    def call(function: Callable[..., Any] = function, x: torch.Tensor = x, argument: Any = argument) -> Any:
        mean = function(x, argument)
        return mean.detach(), *torch.autograd.grad(mean @ cotangent.to(mean), x)

    def check(result: tuple[torch.Tensor, torch.Tensor]) -> dict[str, float]:
        x64 = x.detach().double().requires_grad_()
        with fastmmd.backend("reference"):
            frequencies = features.frequencies(device=DEVICE, dtype=torch.float64)
        value, gradient = call(peers.fourier_mean, x64, frequencies)
        errors = {
            "value_error": (result[0].double() - value).abs().max().item(),
            "gradient_error": ((result[1].double() - gradient).norm(dim=1).max() / gradient.norm(dim=1).max()).item(),
        }
        factor = 10 if peer else 1
        assert errors["value_error"] <= factor * 1e-6 and errors["gradient_error"] <= factor * 1e-5, errors
        return errors

    return call, check


PROBLEMS = {"mmd2": _mmd2, "parzen": _parzen, "fourier_mean": _fourier_mean}


def _wait() -> None:
    if DEVICE != "cpu":
        torch.cuda.synchronize()


def _memory(reset: bool = False) -> int:
    """Bytes at the peak; since now, if reset. Only a GPU's are counted."""
    if DEVICE == "cpu":
        return 0
    if reset:
        torch.cuda.reset_peak_memory_stats()
    return torch.cuda.max_memory_allocated()


def in_process(case: dict[str, Any], seconds: float) -> dict[str, Any]:
    """The case with what was measured, or with "died" and why."""
    command = [sys.executable, "-W", "ignore", __file__, json.dumps(case)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds)
    except subprocess.TimeoutExpired:
        return case | {"died": f"over {seconds:.0f} s"}
    if done.returncode == 0:
        return case | json.loads(done.stdout.splitlines()[-1])
    if any(words in done.stderr for words in OUT_OF_MEMORY):
        return case | {"died": "out of memory"}
    lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
    return case | {"died": lines[-1][:120], "stderr": done.stderr[-4000:]}


def run(seconds: float, output: Path | None) -> bool:
    """All cases, ours first, as far as the time allows; whether all of ours were measured."""
    end = time.perf_counter() + seconds
    sizes = SMALL if QUICK else SIZES
    order = [(size, name) for size in sizes for name in peers.ours()]
    order += [(size, name) for size in sizes for name in TABLES[size["operation"]] if name not in LEFT_OUT]
    about = {"device": DEVICE, "torch": torch.__version__, "backends": peers.ours()}
    if DEVICE != "cpu":
        about |= {"device": torch.cuda.get_device_name(), "cuda": torch.version.cuda}
    rows: list[dict[str, Any]] = []
    for size, implementation in order:
        case = size | {"implementation": implementation}
        left = min(LIMIT, end - time.perf_counter())
        rows.append(in_process(case, left) if left > 5 else case | {"died": "no time left"})
        outcome = rows[-1].get("died") or f"{1e3 * rows[-1]['median_s']:.3g} ms"
        print(f"{size} {implementation}: {outcome}", file=sys.stderr, flush=True)
        if output:
            temporary = output.with_suffix(".new")
            temporary.write_text(json.dumps(about | {"rows": rows}, indent=1) + "\n")
            temporary.replace(output)
    print(table(rows))
    return all("died" not in row for row in rows if row["implementation"] in peers.ours())


def table(rows: list[dict[str, Any]]) -> str:
    """Milliseconds: a line for each size, a column for each implementation."""
    names = list(dict.fromkeys(row["implementation"] for row in rows))
    cells_of: dict[str, dict[str, str]] = {}
    for row in rows:
        size = ", ".join(f"{key}={row[key]}" for key in ("n", "count") if key in row)
        cell = f"† {row['died']}" if "died" in row else f"{1e3 * row['median_s']:.3g}"
        cells_of.setdefault(f"{row['operation']} {size}", {})[row["implementation"]] = cell
    lines = [["ms", *names], ["---"] * (len(names) + 1)]
    lines += [[size, *(cells.get(name, "") for name in names)] for size, cells in cells_of.items()]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("case", nargs="?", help="one case as JSON, in this process")
    parser.add_argument("--seconds", type=float, default=240.0)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if options.case:
        print(json.dumps(measure(**json.loads(options.case))))
    else:
        sys.exit(0 if run(options.seconds, options.json) else 1)


if __name__ == "__main__":
    main()
