"""How much of the machine's peak the kernels use: operations counted by formula, over time, over the yardstick.

An addition, a multiplication or a comparison counts one, a fused multiply-add two. The counts are what the mathematics
needs, whatever a kernel does beyond: distances and gradients by products (2 D), an exponential 20 (range reduction 6,
polynomial 12, scaling 2), sine and cosine 22 (range reduction 3, square 1, polynomials 16, signs 2), a sine alone 14, a
rung of the ladder of bandwidths 4, the sums of value and slope 4 for each bandwidth.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from settings import SIGMAS, SIX, wide_bandwidth
from targets import find, ours

EXPONENTIAL, SINE_COSINE, SINE, RUNG, SUMS = 20, 22, 14, 4, 4


def exponentials(bandwidths: Sequence[float]) -> int:
    """A bandwidth whose double is there too comes from it by two squarings; the others need an exponential."""
    return sum(2 * s not in bandwidths for s in bandwidths)


def mmd2(n: int, m: int, dim: int, bandwidths: Sequence[float]) -> float:
    """Value and gradient in x: pairs within x pull both points, pairs of x and y one, pairs within y none."""
    count = exponentials(bandwidths)
    kernel = 2 * dim + EXPONENTIAL * count + RUNG * (len(bandwidths) - count) + SUMS * len(bandwidths)
    within_x, within_y, across = n * (n - 1) / 2, m * (m - 1) / 2, n * m
    return kernel * (within_x + within_y + across) + 2 * dim * (2 * within_x + across)


def fourier_mean(n: int, count: int, dim: int) -> float:
    """Forward: projection, sine and cosine, two sums. Backward: projection, a wave of the two, its product with W."""
    return n * count * ((2 * dim + SINE_COSINE + 3) + (2 * dim + SINE + 1 + 2 * dim))


def parzen(n: int, m: int, dim: int, sigmas: int) -> float:
    """Distance by a product, one exponential and one sum for each sigma."""
    return n * m * (2 * dim + 3 + sigmas * (EXPONENTIAL + 1))


def rows(record: dict[str, Any]) -> list[dict[str, Any]]:
    """Operations, GFLOP/s and fraction of the yardstick of every kernel that the record contains."""
    cases = [
        row["case"]
        for group in record["groups"]
        for row in group["rows"]
        if row["name"] == ours(record) and row["case"]["operation"] in ("mmd2", "fourier_mean", "parzen")
    ]
    peak = record["yardstick"][str(record["threads"])]["gflops"]
    rows = []
    for case in cases:
        operations = _operations(case)
        row = find(record, ours(record), **case)
        assert row is not None
        gflops = operations / row["median_ms"] * 1e-6
        rows.append({"case": case, "operations": operations, "gflops": gflops, "fraction": gflops / peak})
    return rows


def _operations(case: dict[str, Any]) -> float:
    if case["operation"] == "mmd2":
        bandwidths = SIX if case["bandwidths"] == len(SIX) else wide_bandwidth(case["dim"])
        return mmd2(case["n"], case["n"], case["dim"], bandwidths)
    if case["operation"] == "fourier_mean":
        return fourier_mean(case["n"], case["count"], case["dim"])
    return parzen(case["n"], case["m"], case["dim"], case["sigmas"])


assert exponentials(SIX) == 2 and len(SIGMAS) == 10
