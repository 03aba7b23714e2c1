"""The speeds that the project set itself, looked up in a record."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Record = dict[str, Any]


def find(record: Record, name: str, **case: Any) -> dict[str, Any] | None:
    """The row of that implementation in the group with that case; None where it was not run."""
    for group in record["groups"]:
        for row in group["rows"]:
            if row["name"] == name and all(row["case"].get(key) == value for key, value in case.items()):
                return row
    return None


def ours(record: Record) -> str:
    """The backend that the automatic choice takes: the first."""
    return record["backends"][0]


def times_faster(peer: str, **case: Any) -> Callable[[Record], float | None]:
    """Median of the peer over our median."""

    def ratio(record: Record) -> float | None:
        mine, theirs = find(record, ours(record), **case), find(record, peer, **case)
        return theirs["median_ms"] / mine["median_ms"] if mine and theirs else None

    return ratio


def of_ours(key: str, **case: Any) -> Callable[[Record], float | None]:
    """A number of our row: "ratio" to the baseline that took turns with it, "median_ms"."""

    def number(record: Record) -> float | None:
        row = find(record, ours(record), **case)
        return row[key] if row else None

    return number


def probe(record: Record, implementation: str, **case: Any) -> dict[str, Any] | None:
    """A measurement in a process of its own."""
    for row in record["memory"]:
        if row["implementation"] == implementation and all(row.get(key) == value for key, value in case.items()):
            return row if "died" not in row else None
    return None


def times_smaller(peer: str, **case: Any) -> Callable[[Record], float | None]:
    """Growth of the peer's process over that of ours."""

    def ratio(record: Record) -> float | None:
        mine, theirs = probe(record, "fastmmd", **case), probe(record, peer, **case)
        return theirs["megabytes"] / max(mine["megabytes"], 0.1) if mine and theirs else None

    return ratio


def growth(**case: Any) -> Callable[[Record], float | None]:
    def megabytes(record: Record) -> float | None:
        row = probe(record, "fastmmd", **case)
        return row["megabytes"] if row else None

    return megabytes


def dispatch(record: Record) -> float | None:
    """Microseconds of mmd2 on two points each, without those of the compiled function it ends in."""
    rows = [
        find(record, f"mmd2, {layer}", operation="dispatch", operator="mmd2")
        for layer in ("forward", "compiled function")
    ]
    return 1e3 * (rows[0]["median_ms"] - rows[1]["median_ms"]) if rows[0] and rows[1] else None


def grid_cells(record: Record) -> dict[tuple[int, int, int], float]:
    """(members, N, D) -> how many times faster than eager, which takes turns with ours."""
    rows = [row for group in record["groups"] for row in group["rows"] if row["case"]["operation"] == "grid"]
    return {(row["case"]["batch"], row["case"]["n"], row["case"]["dim"]): row["ratio"] for row in rows}


def slowest_cell(least: int, below: float) -> Callable[[Record], float | None]:
    """The smallest ratio of the grid, batches included, at N from `least` to `below`."""

    def ratio(record: Record) -> float | None:
        return min((ratio for (_, n, _), ratio in grid_cells(record).items() if least <= n < below), default=None)

    return ratio


def share_of_peak(operations: float, row_of: Callable[[Record], float | None]) -> Callable[[Record], float | None]:
    """Percent of the yardstick's multiply-adds; operations: of the products alone. row_of: milliseconds."""

    def share(record: Record) -> float | None:
        milliseconds = row_of(record)
        if milliseconds is None or not record["yardstick"]:
            return None
        return 1e-4 * operations / milliseconds / record["yardstick"][str(record["threads"])]["gflops"]

    return share


def products_of(n: int, m: int, dim: int) -> float:
    """Operations of mmd2's products: each distance once, gradients in x."""
    return 2.0 * dim * (n * (n - 1) / 2 + m * (m - 1) / 2 + n * m + n * (n - 1) + n * m)


def slowdown(work: str) -> Callable[[Record], float | None]:
    """Of ours beside busy processes."""

    def measure(record: Record) -> float | None:
        row = find(record, work, operation="contention")
        return row["slowdown"] if row else None

    return measure


@dataclass(frozen=True)
class Target:
    work: str
    against: str
    bound: float
    unit: str
    at_least: bool
    measure: Callable[[Record], float | None]

    def reached(self, value: float) -> bool:
        return value >= self.bound if self.at_least else value <= self.bound


def _faster(work: str, peer: str, bound: float, **case: Any) -> Target:
    return Target(work, f"{peer}, times faster", bound, "x", True, times_faster(peer, **case))


def _mmd2(n: int, peer: str, bound: float) -> Target:
    return _faster(
        f"mmd2 forward+backward, D=6, six bandwidths, N=M={n}", peer, bound, operation="mmd2", dim=6, n=n, bandwidths=6
    )


WIDE = {"dim": 784, "n": 4096}
FOURIER = {"operation": "fourier_mean", "dim": 6, "n": 16384, "count": 4096}
PARZEN = {"operation": "parzen", "n": 2000, "m": 10_000, "sigmas": 10}
FOURIER_WORK = "fourier_mean forward+backward, D=6, N=16384, count=4096"
PARZEN_WORK = "parzen, 2000 x 10,000 x 784, ten sigmas"
WIDE_WORK = "mmd2 forward+backward, D=784, one bandwidth, N=M=4096"

TARGETS = (
    _mmd2(1000, "torch.compile", 8),
    _mmd2(4096, "torch.compile", 18),
    _mmd2(8192, "torch.compile", 22),
    _mmd2(4096, "eager", 150),
    _mmd2(8192, "KeOps", 100),
    *(
        Target(
            f"mmd2 forward+backward, every cell of the grid with {sizes}", "eager, times faster", bound, "x", True, cell
        )
        for sizes, bound, cell in (
            ("N below 256", 2.5, slowest_cell(0, 256)),
            ("N from 256", 4, slowest_cell(256, 1000)),
            ("N from 1000", 6, slowest_cell(1000, math.inf)),
        )
    ),
    _faster(WIDE_WORK, "eager", 2, operation="mmd2", **WIDE),
    Target(WIDE_WORK, "eager's peak memory, times smaller", 20, "x", True, times_smaller("eager", **WIDE)),
    _faster(FOURIER_WORK, "eager", 20, **FOURIER),
    _faster(FOURIER_WORK, "torch.compile", 8, **FOURIER),
    _faster(WIDE_WORK, "torch.compile", 3.6, operation="mmd2", **WIDE),
    Target(
        WIDE_WORK,
        "multiply-add peak, products alone",
        78,
        "%",
        True,
        share_of_peak(products_of(4096, 4096, 784), of_ours("median_ms", operation="mmd2", **WIDE)),
    ),
    Target(PARZEN_WORK, "the bare matrix product, times its time", 1.1, "x", False, of_ours("ratio", **PARZEN)),
    Target(
        PARZEN_WORK,
        "multiply-add peak, product alone",
        62,
        "%",
        True,
        share_of_peak(2.0 * 2000 * 10_000 * 784, of_ours("median_ms", **PARZEN)),
    ),
    _faster("parzen, 200 x 10,000 x 784, one sigma", "torch.compile", 2, operation="parzen", n=200, sigmas=1),
    _faster(PARZEN_WORK, "eager", 5, **PARZEN),
    *(
        Target(
            f"training step of the MMD-AE, batch {batch}",
            "no regularizer, times its time",
            bound,
            "x",
            False,
            of_ours("ratio", operation="training", n=batch),
        )
        for batch, bound in ((1000, 1.01), (4096, 1.03), (16384, 1.08))
    ),
    _faster(
        "parzen forward+backward, 10,000 x 10,000 x 784, ten sigmas", "eager", 5, operation="parzen backward", n=10_000
    ),
    *(
        _faster(
            f"mmd2 forward+backward, D={dim}, one bandwidth, N=M=4096",
            "torch.compile",
            4,
            operation="mmd2",
            dim=dim,
            n=4096,
        )
        for dim in (24, 32, 48, 64, 128, 256, 2048)
    ),
    Target(
        "mmd2 forward+backward, D=4, N=M=60,000", "growth of the process", 100, " MB", False, growth(n=60_000, dim=4)
    ),
    *(
        Target(work, "beside busy processes, times its time", 3, "x", False, slowdown(work))
        for work in (
            "mmd2 forward+backward, D=6, N=M=1000",
            "mmd2 forward+backward, D=6, N=M=4096",
            "fourier_mean forward+backward, D=6, N=4096, count=1024",
            "parzen, 200 x 10,000 x 784, one sigma",
            "parzen, 1000 x 10,000 x 8, ten sigmas",
            "training step of the MMD-AE, batch 1000",
        )
    ),
    Target("dispatch of mmd2 from Python to the kernel", "time", 60, " us", False, dispatch),
)


def outcomes(record: Record) -> list[dict[str, Any]]:
    """One row for each target: what was asked, what was reached; value None where the run did not contain it."""
    rows = []
    for target in TARGETS:
        value = target.measure(record)
        rows.append(
            {
                "work": target.work,
                "against": target.against,
                "required": f"{'at least' if target.at_least else 'at most'} {target.bound:g}{target.unit}",
                "value": value,
                "reached": None if value is None else target.reached(value),
                "unit": target.unit,
            }
        )
    return rows
